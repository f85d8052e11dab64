//! Guests: an unmodified Debian kernel on emulated VT-x, at rest and on the move, with the host's second serial
//! port as its own.

#![forbid(unsafe_code)]

use std::time::Duration;

use pvmm_e2e::guest::{console, migrate, serve, wait_for, COM2, LIMIT};
use pvmm_e2e::{on_lab, TestResult};
use pvmm_guest::check_heartbeats;
use pvmm_lab::HostSpec;

/// The papers' machine: 8259 pair and 8254 only.
const PIC: &str = "--irqchip pic --cmdline 'console=ttyS0 quiet nokaslr cryptomgr.notests noapic nolapic acpi=off pvmm.load=idle pvmm.gap_ms=20000'";
/// An emulated link carries some 2 MB a second, which the default of 300 ms is too short for.
const DOWNTIME: &str = "--downtime-limit 3000";

#[test]
fn a_guest_with_8259_and_8254_owns_the_hosts_serial_port_and_takes_it_along() -> TestResult {
    on_lab("guest-pic", 2, |lab| {
        let (mut one, mut two) = lab.boot_two(&HostSpec::new("one"), &HostSpec::new("two"))?;
        serve(&mut one)?;
        serve(&mut two)?;
        one.sh(&format!(
            "pvmmd run --name g --kernel /guest/vmlinuz --initrd /guest/initrd --memory 80M {PIC} \
             --device {COM2},backend=physical"
        ))?;
        wait_for(&mut one, "g", "pvmm-guest OK", 2)?;
        assert!(one.com2().wait_for(b"pvmm-heartbeat com2 2 ", LIMIT));
        for number in 0..2 {
            let (from, to) = if number % 2 == 0 {
                (&mut one, &mut two)
            } else {
                (&mut two, &mut one)
            };
            let seen = console(to, "g")?.matches("pvmm-guest OK").count();
            let report = migrate(from, to, "g", DOWNTIME)?;
            assert!(report.contains("downtime"), "{report}");
            wait_for(to, "g", "pvmm-guest OK", seen + 2)?;
            assert!(!from.sh("pvmmd list")?.contains("running"));
        }
        // What the two machines' real ports have sent, put in order by the guest's own numbers, is whole.
        let mut lines: Vec<String> = Vec::new();
        for host in [&one, &two] {
            let sent = String::from_utf8_lossy(&host.com2().received()).into_owned();
            lines.extend(
                sent.lines()
                    .filter(|line| line.contains("com2"))
                    .map(str::to_owned),
            );
        }
        lines.sort_by_key(|line| {
            line.split_whitespace()
                .nth(2)
                .and_then(|n| n.parse::<u64>().ok())
        });
        let summary = check_heartbeats(&lines.join("\n"))?;
        assert!(summary.com2.is_some_and(|stream| stream.count() > 10));
        for host in [&mut one, &mut two] {
            let log = host.sh("dmesg")?;
            assert!(!log.contains("WARNING:") && !log.contains("BUG:"), "{log}");
        }
        one.sh("pvmmd stop g; rmmod pvmm || { sleep 1; rmmod pvmm; }")?;
        Ok(())
    })
}

#[test]
fn a_daemon_that_is_killed_leaves_nothing_behind() -> TestResult {
    on_lab("guest-killed", 1, |lab| {
        let mut host = lab.boot(&HostSpec::new("one"))?;
        host.sh("insmod /lib/modules/pvmm.ko && mkdir -p /run/pvmm")?;
        let daemon = host.spawn(&["pvmmd", "serve", "--grant", COM2], "/tmp/pvmmd.log")?;
        host.sh("until pvmmd version > /dev/null 2>&1; do usleep 50000; done")?;
        host.sh(&format!(
            "pvmmd run --name g --kernel /guest/vmlinuz --initrd /guest/initrd --memory 80M {PIC} \
             --device {COM2},backend=physical"
        ))?;
        assert_ne!(host.run(&["rmmod", "pvmm"])?.code, 0);
        host.sh(&format!("kill -9 {daemon}"))?;
        host.wait(daemon, Duration::from_secs(60))?;
        host.sh("rmmod pvmm")?;
        let claimed = host.sh("grep pvmm /proc/ioports /proc/interrupts; :")?;
        assert_eq!(claimed, "");
        let log = host.sh("dmesg")?;
        assert!(!log.contains("WARNING:") && !log.contains("BUG:"), "{log}");
        Ok(())
    })
}
