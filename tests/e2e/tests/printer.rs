//! A print job on the move: the guest's own driver prints on the host's parallel port.

#![forbid(unsafe_code)]

use std::error::Error;
use std::time::{Duration, Instant};

use pvmm_e2e::guest::{check_logs, console, daemon, migrate, start, wait_for, APIC, LIMIT};
use pvmm_e2e::{on_lab, TestResult};
use pvmm_guest::printout;
use pvmm_lab::daemon::load_module;
use pvmm_lab::{Host, HostSpec};

/// The device that is passed through: every Bochs host has a parallel port with a printer.
const LPT1: &str = "parallel,port=0x378,irq=7";
/// Lines of the job: enough that both moves cut it.
const LINES: u32 = 1500;
/// An emulated link carries about 1 MB a second, which the default limit of 300 ms is too short for.
const CONVERGING: &str = "--downtime-limit 5000";
/// Clocks may jump by such a pause, and nothing else may take it for a hung processor.
const GAP: &str = "pvmm.gap_ms=240000 nowatchdog";

/// Waits until a host's printer has printed more than `length` bytes; returns how many it has.
fn prints_beyond(host: &Host, length: usize) -> Result<usize, Box<dyn Error>> {
    let give_up = Instant::now() + LIMIT;
    loop {
        let now = host.printout()?.len();
        if now > length {
            return Ok(now);
        }
        if Instant::now() > give_up {
            return Err(format!("{} prints nothing beyond {length} bytes", host.name()).into());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn a_print_job_that_moves_cut_comes_out_whole_across_two_printers() -> TestResult {
    on_lab("printer", 2, |lab| {
        let (mut one, mut two) = lab.boot_two(&HostSpec::new("one"), &HostSpec::new("two"))?;
        for host in [&mut one, &mut two] {
            load_module(host)?;
            daemon(host, &format!("--grant {LPT1}"))?;
            host.sh("pvmmd device-kinds | grep parallel && pvmmd host devices --json")?;
        }
        let parameters = format!("pvmm.load=idle {GAP} pvmm.com2=0 pvmm.print={LINES}");
        start(
            &mut one,
            "g",
            APIC,
            &parameters,
            &format!("--device {LPT1}"),
        )?;
        prints_beyond(&one, 0)?;

        let report = migrate(&mut one, &two, "g", CONVERGING)?;
        eprintln!("there:\n{report}");
        let first = one.printout()?;
        prints_beyond(&two, 0)?;
        let seen = console(&mut two, "g")?.matches("pvmm-guest OK").count();
        wait_for(&mut two, "g", "pvmm-guest OK", seen + 2)?;

        let report = migrate(&mut two, &one, "g", CONVERGING)?;
        eprintln!("and back:\n{report}");
        let second = two.printout()?;
        wait_for(&mut one, "g", "lines printed", 1)?;
        let third = one.printout()?;
        let rest = third
            .strip_prefix(&first[..])
            .ok_or("what was printed has changed")?;
        eprintln!(
            "printed {} + {} + {} bytes",
            first.len(),
            second.len(),
            rest.len()
        );
        printout::check(&[&first[..], &second, rest].concat(), LINES)?;
        // Otherwise nothing was cut.
        assert!(!first.is_empty() && !second.is_empty() && !rest.is_empty());
        check_logs(&mut [&mut one, &mut two])
    })
}
