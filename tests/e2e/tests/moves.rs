//! Guests on the move, back and forth, without noticing: idle, and while they write memory faster than the link carries it
//! away.

#![forbid(unsafe_code)]

use std::error::Error;

use pvmm_e2e::guest::{
    check_logs, console, serve, start, uart_setting, wait_for, Trail, UartSetting, APIC, COM2,
    LIMIT, PIC,
};
use pvmm_e2e::{on_lab, TestResult};
use pvmm_guest::check_heartbeats;
use pvmm_lab::{Host, HostSpec};

/// For a guest that writes little: pre-copy converges. An emulated link carries about 1 MB a second, which the default
/// limit of 300 ms is too short for.
const CONVERGING: &str = "--downtime-limit 5000";
/// For a guest that writes faster than the link: it is paused after some rounds, and what it has written goes then.
const SUSPENDING: &str = "--timeout 60 --timeout-action suspend";
/// Clocks may jump by such a pause, and nothing else may take it for a hung processor: Linux does so after 20 s.
const GAP: &str = "pvmm.gap_ms=240000 nowatchdog";

/// Moves guest `g` to and fro, once for each of the options, and lets it verify itself after each move.
///
/// Returns what its two serial ports have said.
fn travel(
    mut trail: Trail,
    one: &mut Host,
    two: &mut Host,
    moves: &[&str],
) -> Result<(String, String), Box<dyn Error>> {
    for (number, options) in moves.iter().enumerate() {
        let (from, to) = if number % 2 == 0 {
            (&mut *one, &mut *two)
        } else {
            (&mut *two, &mut *one)
        };
        let seen = console(to, "g")?.matches("pvmm-guest OK").count();
        let report = trail.migrate(from, to, options)?;
        eprintln!("move {} ({options}):\n{report}", number + 1);
        wait_for(to, "g", "pvmm-guest OK", seen + 2)?;
        assert!(!from.sh("pvmmd list")?.contains("running"));
    }
    let last = if moves.len() % 2 == 0 { one } else { two };
    trail.end(last)
}

#[test]
fn a_guest_with_8259_and_8254_and_the_hosts_serial_port_moves_back_and_forth() -> TestResult {
    on_lab("moves-pic", 2, |lab| {
        let (mut one, mut two) = lab.boot_two(&HostSpec::new("one"), &HostSpec::new("two"))?;
        serve(&mut one)?;
        serve(&mut two)?;
        let device = format!("--device {COM2},backend=physical");
        let trail = Trail::begin(&mut one, "g")?;
        // A speed that no reset leaves behind.
        let parameters = format!("pvmm.load=idle {GAP} pvmm.baud=38400");
        start(&mut one, "g", PIC, &parameters, &device)?;
        assert!(one.com2().wait_for(b"pvmm-heartbeat com2 2 ", LIMIT));

        let options = vec![CONVERGING; moves(2)?];
        let (com1, com2) = travel(trail, &mut one, &mut two, &options)?;
        let first = check_heartbeats(&com1)?.com1.ok_or("nothing on COM1")?;
        let second = check_heartbeats(&com2)?.com2.ok_or("nothing on COM2")?;
        assert!(first.first == 1 && first.count() > 100, "{first:?}");
        assert!(second.first == 1 && second.count() > 100, "{second:?}");
        check_logs(&mut [&mut one, &mut two])?;

        one.sh("pvmmd pause g")?;
        let expected = UartSetting {
            divisor: 115_200 / 38_400,
            fifo: true,
            // 8 data bits, one stop bit, parity off; Linux selects even parity all the same.
            line_control: 0x13,
        };
        assert_eq!(uart_setting(&mut one)?, expected);
        Ok(())
    })
}

#[test]
fn a_guest_with_apics_moves_while_it_writes_faster_than_the_link() -> TestResult {
    on_lab("moves-apic", 2, |lab| {
        let (mut one, mut two) = lab.boot_two(&HostSpec::new("one"), &HostSpec::new("two"))?;
        serve(&mut one)?;
        serve(&mut two)?;
        let device = format!("--device {COM2},backend=physical");
        let trail = Trail::begin(&mut one, "g")?;
        start(
            &mut one,
            "g",
            APIC,
            &format!("pvmm.load=fast {GAP}"),
            &device,
        )?;
        assert!(one.com2().wait_for(b"pvmm-heartbeat com2 2 ", LIMIT));

        let options = vec![SUSPENDING; moves(2)?];
        let (com1, com2) = travel(trail, &mut one, &mut two, &options)?;
        let first = check_heartbeats(&com1)?.com1.ok_or("nothing on COM1")?;
        let second = check_heartbeats(&com2)?.com2.ok_or("nothing on COM2")?;
        assert!(first.first == 1 && first.count() > 100, "{first:?}");
        assert!(second.first == 1 && second.count() > 100, "{second:?}");
        check_logs(&mut [&mut one, &mut two])
    })
}

/// How often a guest moves: `usual` times, or as often as `PVMM_MOVES` says, since each takes a minute or more.
fn moves(usual: usize) -> Result<usize, Box<dyn Error>> {
    match std::env::var("PVMM_MOVES") {
        Ok(number) => Ok(number
            .parse()
            .map_err(|_| format!("PVMM_MOVES={number} is not a number of moves"))?),
        Err(_) => Ok(usual),
    }
}
