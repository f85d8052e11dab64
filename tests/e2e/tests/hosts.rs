//! The lab's own promises: hosts boot, answer, reach each other, and leave nothing behind.

#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use pvmm_e2e::{on_lab, TestResult};
use pvmm_lab::{HostSpec, Wire};

#[test]
fn a_host_with_vtx_boots_answers_and_powers_off() -> TestResult {
    on_lab("boots", 1, |lab| {
        let mut host = lab.boot(&HostSpec::new("a"))?;
        let flags = host.sh("grep -m 1 ^flags /proc/cpuinfo")?;
        assert!(flags.split_whitespace().any(|flag| flag == "vmx"));
        let out = host.run(&["sh", "-c", "echo out; echo err >&2; exit 7"])?;
        assert_eq!(
            (out.code, out.stdout.as_str(), out.stderr.as_str()),
            (7, "out\n", "err\n")
        );
        host.put("/tmp/deep/file", 0o600, b"content")?;
        assert_eq!(host.get("/tmp/deep/file")?, b"content");
        let pid = host.spawn(
            &["sh", "-c", "echo from the background; exit 3"],
            "/tmp/log",
        )?;
        assert_eq!(host.wait(pid, Duration::from_secs(60))?, 3);
        assert_eq!(host.get("/tmp/log")?, b"from the background\n");
        let before = host.tsc()?;
        assert!(host.tsc()? > before);
        host.sh("echo to the console > /dev/kmsg")?;
        host.wait_for_line("to the console", Duration::from_secs(60))?;
        host.power_off(Duration::from_secs(120))?;
        Ok(())
    })
}

#[test]
fn the_second_serial_port_carries_bytes_both_ways() -> TestResult {
    on_lab("serial", 1, |lab| {
        let mut host = lab.boot(&HostSpec::new("a"))?;
        assert!(host.console().is_ascii());
        host.sh("stty -F /dev/ttyS1 raw -echo; echo hello > /dev/ttyS1")?;
        assert!(host.com2().wait_for(b"hello", Duration::from_secs(60)));
        let reader = host.spawn(&["head", "-c", "4", "/dev/ttyS1"], "/tmp/received")?;
        host.com2().send(b"ping")?;
        assert_eq!(host.wait(reader, Duration::from_secs(60))?, 0);
        assert_eq!(host.get("/tmp/received")?, b"ping");
        Ok(())
    })
}

#[test]
fn a_host_without_vtx_answers_the_same_way() -> TestResult {
    on_lab("without-vtx", 1, |lab| {
        let mut host = lab.boot(&HostSpec::without_vtx("q"))?;
        let flags = host.sh("grep -m 1 ^flags /proc/cpuinfo")?;
        assert!(!flags.split_whitespace().any(|flag| flag == "vmx"));
        host.power_off(Duration::from_secs(120))?;
        Ok(())
    })
}

#[test]
fn two_hosts_move_8_mib_by_tcp_and_a_cut_link_stops_them() -> TestResult {
    on_lab("two-hosts", 2, |lab| {
        let (mut a, mut b) = lab.boot_two(&HostSpec::new("a"), &HostSpec::new("b"))?;
        let to_b = b.address(Wire::Migration);
        a.sh(&format!("ping -c 2 -W 20 {to_b}"))?;
        let receiver = b.spawn(
            &["sh", "-c", "pvmm-agent receive 7000 | sha256sum > /tmp/sum"],
            "/tmp/log",
        )?;
        b.sh("until grep -q listening /tmp/log; do usleep 50000; done")?;
        let sent = a.sh(&format!(
            "dd if=/dev/urandom of=/tmp/8m bs=1M count=8 2>/dev/null; \
             pvmm-agent send {to_b}:7000 < /tmp/8m; sha256sum < /tmp/8m"
        ))?;
        assert_eq!(b.wait(receiver, Duration::from_secs(300))?, 0);
        assert_eq!(b.sh("cat /tmp/sum")?, sent);

        lab.net().cut(b.number())?;
        assert_ne!(
            a.run(&["ping", "-c", "1", "-W", "3", &to_b.to_string()])?
                .code,
            0
        );
        // The control network isn't cut.
        b.sh("true")?;
        lab.net().heal(b.number())?;
        a.sh(&format!("ping -c 2 -W 20 {to_b}"))?;
        Ok(())
    })
}

/// What a run outside of this test's namespaces would leave behind.
fn processes_in(namespace: &PathBuf) -> Vec<String> {
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter(|entry| fs::read_link(entry.path().join("ns/net")).is_ok_and(|ns| ns == *namespace))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

fn namespaces() -> BTreeSet<PathBuf> {
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter_map(|entry| fs::read_link(entry.path().join("ns/net")).ok())
        .collect()
}

#[test]
fn nothing_is_left_behind_when_a_run_is_killed() -> TestResult {
    on_lab("killed", 1, |_| {
        let xtask =
            env::var_os("PVMM_XTASK").ok_or("PVMM_XTASK isn't set: use cargo xtask test")?;
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
            let mounts = fs::read_to_string("/proc/self/mountinfo")?;
            let before = namespaces();
            // Whoever started the tests in the background may have made them, and so the victim, deaf to SIGINT.
            let mut victim = Command::new("env")
                .arg("--default-signal=INT")
                .arg(&xtask)
                .args([
                    "lab",
                    "run",
                    "--quiet",
                    "--qemu",
                    "--",
                    "echo up; sleep 10000",
                ])
                .env_remove("PVMM_LAB_INSIDE")
                .stdout(Stdio::piped())
                .spawn()?;
            // It is in the middle of its work when its command's output comes through.
            let mut first = [0u8; 2];
            let stdout = victim.stdout.as_mut().ok_or("no standard output")?;
            std::io::Read::read_exact(stdout, &mut first)?;
            assert_eq!(&first, b"up");
            let new: Vec<PathBuf> = namespaces().difference(&before).cloned().collect();
            let [namespace] = &new[..] else {
                return Err(format!("expected one new network namespace, got {new:?}").into());
            };
            assert!(processes_in(namespace).len() > 2);

            kill(Pid::from_raw(i32::try_from(victim.id())?), signal)?;
            let until = Instant::now() + Duration::from_secs(20);
            while victim.try_wait()?.is_none() || !processes_in(namespace).is_empty() {
                assert!(
                    Instant::now() < until,
                    "still there after {signal}: {:?}",
                    processes_in(namespace)
                );
                std::thread::sleep(Duration::from_millis(50));
            }
            assert_eq!(fs::read_to_string("/proc/self/mountinfo")?, mounts);
        }
        Ok(())
    })
}
