//! Moves that fail, and moves that are refused: the guest goes on where it was.

#![forbid(unsafe_code)]

use std::error::Error;
use std::time::Duration;

use pvmm_e2e::guest::{
    check_logs, console, daemon, serve, start, wait_for, Departure, Trail, COM2, PIC,
};
use pvmm_e2e::{on_lab, TestResult};
use pvmm_guest::check_heartbeats;
use pvmm_lab::{Host, HostSpec};
use pvmm_migrate::wire::Answer;

/// As long as a pause of these tests can become: the link's limit of 30 s, and all memory. Linux takes a processor that has
/// not run for 20 s for a hung one, unless it is told not to.
const PARAMETERS: &str = "pvmm.load=idle pvmm.gap_ms=240000 nowatchdog";

/// Lets the guest verify itself on `host`, and makes sure that `peer` has nothing of it.
fn goes_on(host: &mut Host, peer: Option<&mut Host>) -> TestResult {
    let seen = console(host, "g")?.matches("pvmm-guest OK").count();
    wait_for(host, "g", "pvmm-guest OK", seen + 2)?;
    assert!(host.sh("pvmmd list")?.contains("running"));
    if let Some(peer) = peer {
        // It finds out by the link's limit at the latest.
        peer.sh(
            "for i in $(seq 900); do pvmmd list | grep -qE 'inmigrate|running' || exit 0; sleep 0.1; done; \
             pvmmd list; exit 1",
        )?;
    }
    Ok(())
}

#[test]
fn a_move_that_fails_leaves_the_guest_at_the_source() -> TestResult {
    on_lab("failures", 2, |lab| {
        let (mut one, mut two) = lab.boot_two(&HostSpec::new("one"), &HostSpec::new("two"))?;
        serve(&mut one)?;
        let mut target = serve(&mut two)?;
        let mut trail = Trail::begin(&mut one, "g")?;
        let device = format!("--device {COM2},backend=physical");
        start(&mut one, "g", PIC, PARAMETERS, &device)?;

        // In the middle of pre-copy, and between pause and commit: a stop-and-copy is paused while it sends pages.
        for (options, phase) in [("", "precopy"), ("--mode stopcopy", "last-pages")] {
            let departure = Departure::begin(&mut one, &two, "g", options)?;
            departure.wait_for_phase(&mut one, phase)?;
            lab.net().cut(two.number())?;
            let said = departure.fails(&mut one)?;
            assert!(said.contains("30 s"), "{said}");
            goes_on(&mut one, Some(&mut two))?;
            lab.net().heal(two.number())?;

            let departure = Departure::begin(&mut one, &two, "g", options)?;
            departure.wait_for_phase(&mut one, phase)?;
            two.sh(&format!("kill -9 {target}"))?;
            two.wait(target, Duration::from_secs(60))?;
            departure.fails(&mut one)?;
            goes_on(&mut one, None)?;
            target = daemon(&mut two, &format!("--grant {COM2}"))?;
        }

        let report = trail.migrate(&mut one, &mut two, "--downtime-limit 3000")?;
        assert!(report.contains("downtime"), "{report}");
        goes_on(&mut two, Some(&mut one))?;
        let (com1, com2) = trail.end(&mut two)?;
        let first = check_heartbeats(&com1)?.com1.ok_or("nothing on COM1")?;
        let second = check_heartbeats(&com2)?.com2.ok_or("nothing on COM2")?;
        assert!(
            first.first <= 2 && second.first == 1,
            "{first:?} {second:?}"
        );
        check_logs(&mut [&mut one, &mut two])
    })
}

/// Tries to move guest `g`, which must be refused before a page is sent; returns what was said.
fn refused(from: &mut Host, to: &Host) -> Result<String, Box<dyn Error>> {
    let said = Departure::begin(from, to, "g", "")?.fails(from)?;
    let info = from.sh("pvmmd job-info g")?;
    assert!(info.contains("transferred:        0"), "{info}");
    assert!(from.sh("pvmmd list")?.contains("running"));
    Ok(said)
}

#[test]
fn a_target_that_cant_take_the_guest_says_why_before_the_first_page() -> TestResult {
    on_lab("refusals", 2, |lab| {
        let older = HostSpec::new("two").model("corei7_skylake_x");
        let (mut one, mut two) = lab.boot_two(&HostSpec::new("one"), &older)?;
        one.sh("insmod /lib/modules/pvmm.ko")?;
        daemon(&mut one, &format!("--grant {COM2} --max-memory 200M"))?;
        let daemon_of_two = serve(&mut two)?;
        let run = "pvmmd run --kernel /guest/vmlinux --initrd /guest/initrd";
        let device = format!("--device {COM2},backend=physical");

        one.sh(&format!("{run} --name g --memory 80M {device}"))?;
        let said = refused(&mut one, &two)?;
        assert!(said.contains("which this host lacks"), "{said}");
        one.sh("pvmmd stop g")?;

        // The older CPU's features are a part of the newer one's.
        two.sh(&format!("{run} --name g --memory 80M {device}"))?;
        one.sh(&format!("{run} --name hog --memory 160M"))?;
        let said = refused(&mut two, &one)?;
        assert!(said.contains("bytes of memory"), "{said}");
        one.sh("pvmmd stop hog")?;

        one.sh(&format!("{run} --name other --memory 80M {device}"))?;
        let said = refused(&mut two, &one)?;
        assert!(said.contains("serial at port 0x2f8 IRQ 3"), "{said}");
        one.sh("pvmmd stop other")?;

        // A daemon of the future, as far as it gets.
        two.sh("pvmmd stop g")?;
        two.sh(&format!("kill {daemon_of_two}"))?;
        two.wait(daemon_of_two, Duration::from_secs(60))?;
        let answer = Answer {
            chosen: 0,
            versions: vec![99],
        };
        two.put("/tmp/answer", 0o600, &answer.encode())?;
        two.spawn(
            &["sh", "-c", "nc -l -p 7000 < /tmp/answer > /dev/null"],
            "/tmp/nc.log",
        )?;
        two.sh("for i in $(seq 100); do netstat -tln | grep -q :7000 && exit 0; usleep 50000; done; exit 1")?;
        one.sh(&format!("{run} --name g --memory 80M {device}"))?;
        let said = refused(&mut one, &two)?;
        assert!(said.contains("99"), "{said}");
        check_logs(&mut [&mut one, &mut two])
    })
}
