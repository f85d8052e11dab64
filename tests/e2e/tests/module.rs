//! The module: it loads where it can work, says why where it cannot, and leaves nothing behind.

#![forbid(unsafe_code)]

use pvmm_e2e::{on_lab, TestResult};
use pvmm_lab::{Host, HostSpec};

const MODULE: &str = "/lib/modules/pvmm.ko";

/// Loads the module and returns insmod's exit code and what the module said in the kernel log since.
fn insmod(host: &mut Host, parameters: &str) -> Result<(i32, String), Box<dyn std::error::Error>> {
    host.sh("dmesg -c > /dev/null")?;
    let out = host.run(&["sh", "-c", &format!("insmod {MODULE} {parameters}")])?;
    let said = host.sh("dmesg | grep pvmm; :")?;
    Ok((out.code, said))
}

#[test]
fn the_module_loads_in_debians_stock_kernel_and_keeps_every_contract_of_the_host_abi() -> TestResult
{
    on_lab("module-selftest", 1, |lab| {
        let mut host = lab.boot(&HostSpec::new("a").cpus(2))?;
        let before = host.sh("grep -c . /proc/modules")?;
        let (code, said) = insmod(&mut host, "selftest=1")?;
        assert_eq!(code, 0, "{said}");
        let passed = said
            .lines()
            .filter(|line| line.contains("selftest: ok:"))
            .count();
        assert!(passed > 40, "{said}");
        assert!(
            said.contains(&format!("selftest: {passed} passed, 0 failed")),
            "{said}"
        );
        host.sh("test -c /dev/pvmm")?;
        host.sh("rmmod pvmm")?;
        host.sh("test ! -e /dev/pvmm")?;
        assert_eq!(host.sh("grep -c . /proc/modules")?, before);
        let log = host.sh("dmesg")?;
        assert!(!log.contains("WARNING") && !log.contains("BUG"), "{log}");
        Ok(())
    })
}

#[test]
fn the_module_is_refused_while_kvm_owns_vtx_and_loads_when_it_has_gone() -> TestResult {
    on_lab("module-kvm", 1, |lab| {
        let mut host = lab.boot(&HostSpec::new("a"))?;
        host.sh("cd /lib/modules; for m in irqbypass kvm kvm-intel; do \
             test -e $m.ko && insmod $m.ko || test $m = irqbypass || exit 1; done")?;
        let (code, said) = insmod(&mut host, "")?;
        assert_ne!(code, 0);
        assert!(said.contains("owned by another hypervisor"), "{said}");
        host.sh("rmmod kvm_intel")?;
        let (code, said) = insmod(&mut host, "")?;
        assert_eq!(code, 0, "{said}");
        Ok(())
    })
}

#[test]
fn the_module_is_refused_on_a_machine_without_vtx() -> TestResult {
    on_lab("module-without-vtx", 1, |lab| {
        let mut host = lab.boot(&HostSpec::without_vtx("q"))?;
        let (code, said) = insmod(&mut host, "")?;
        assert_ne!(code, 0);
        assert!(said.contains("this CPU has no VT-x"), "{said}");
        Ok(())
    })
}

#[test]
fn the_module_stays_while_a_file_is_open_and_goes_after_the_holder_was_killed() -> TestResult {
    on_lab("module-busy", 1, |lab| {
        let mut host = lab.boot(&HostSpec::new("a"))?;
        host.sh(&format!("insmod {MODULE}"))?;
        let holder = host.spawn(
            &["sh", "-c", "exec 3<>/dev/pvmm; exec sleep 1000"],
            "/tmp/log",
        )?;
        host.sh(&format!(
            "until ls -l /proc/{holder}/fd | grep -q pvmm; do usleep 20000; done"
        ))?;
        assert_ne!(host.run(&["rmmod", "pvmm"])?.code, 0);
        host.sh(&format!("kill -9 {holder}"))?;
        host.wait(holder, std::time::Duration::from_secs(60))?;
        host.sh("rmmod pvmm")?;
        Ok(())
    })
}
