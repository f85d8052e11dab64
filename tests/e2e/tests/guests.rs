//! Guests at rest, and what is left of them on their host.

#![forbid(unsafe_code)]

use pvmm_e2e::guest::{check_logs, console, kill_daemon, serve, start, wait_for, COM2, PIC};
use pvmm_e2e::{on_lab, TestResult};
use pvmm_lab::HostSpec;

#[test]
fn a_guest_is_paused_and_resumed_and_a_killed_daemon_leaves_nothing_behind() -> TestResult {
    on_lab("guest-killed", 1, |lab| {
        let mut host = lab.boot(&HostSpec::new("one"))?;
        let daemon = serve(&mut host)?;
        let device = format!("--device {COM2},backend=physical");
        start(&mut host, "g", PIC, "", &device)?;
        assert_ne!(host.run(&["rmmod", "pvmm"])?.code, 0);

        host.sh("pvmmd pause g; pvmmd list | grep paused; sleep 1")?;
        let said = console(&mut host, "g")?;
        host.sh("sleep 2")?;
        assert_eq!(console(&mut host, "g")?, said, "it runs while it is paused");
        host.sh("pvmmd resume g; pvmmd list | grep running; pvmmd info g --json | grep running")?;
        let seen = said.matches("pvmm-guest OK").count();
        wait_for(&mut host, "g", "pvmm-guest OK", seen + 2)?;

        kill_daemon(&mut host, daemon)?;
        check_logs(&mut [&mut host])
    })
}
