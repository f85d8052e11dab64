//! A guest on emulated hosts: daemons, the verifier in the guest, and what it says on its consoles.

use std::error::Error;
use std::time::{Duration, Instant};

use pvmm_lab::{Host, Wire};

/// Where the daemons write what guests print on COM1.
const CONSOLES: &str = "/tmp/consoles";
/// Port of a daemon that takes guests.
const PORT: u16 = 7000;
/// How long a step may take on a slow machine.
pub const LIMIT: Duration = Duration::from_secs(900);
/// The device that the tests pass through: the host's second serial port.
pub const COM2: &str = "serial,port=0x2f8,irq=3";

/// Loads the module and starts the daemon, which takes guests and may give them the second serial port.
///
/// # Errors
/// Those of the host; the daemon's log if it doesn't answer.
pub fn serve(host: &mut Host) -> Result<(), Box<dyn Error>> {
    host.sh(&format!(
        "insmod /lib/modules/pvmm.ko && mkdir -p {CONSOLES} /run/pvmm"
    ))?;
    let listen = format!("tcp:{}:{PORT}", host.address(Wire::Migration));
    let words = [
        "pvmmd",
        "serve",
        "--console-log",
        CONSOLES,
        "--listen",
        &listen,
        "--grant",
        COM2,
    ];
    host.spawn(&words, "/tmp/pvmmd.log")?;
    host.sh(
        "for i in $(seq 600); do pvmmd version > /dev/null 2>&1 && exit 0; usleep 50000; done; \
         cat /tmp/pvmmd.log; exit 1",
    )?;
    Ok(())
}

/// What a guest has printed on COM1 while it was on this host.
///
/// # Errors
/// Those of the host.
pub fn console(host: &mut Host, guest: &str) -> Result<String, Box<dyn Error>> {
    Ok(host.sh(&format!("cat {CONSOLES}/{guest}.log 2>/dev/null; :"))?)
}

/// Waits until the guest's console on this host has at least `count` lines with `text`. A line in which the verifier
/// reports a failure ends the test.
///
/// # Errors
/// The failure that the guest has reported, or the console if the lines don't come.
pub fn wait_for(
    host: &mut Host,
    guest: &str,
    text: &str,
    count: usize,
) -> Result<String, Box<dyn Error>> {
    let until = Instant::now() + LIMIT;
    loop {
        let console = console(host, guest)?;
        if let Some(line) = console
            .lines()
            .find(|line| line.contains("pvmm-guest FAIL"))
        {
            return Err(format!("the guest has noticed something: {line}").into());
        }
        if console.lines().filter(|line| line.contains(text)).count() >= count {
            return Ok(console);
        }
        if Instant::now() >= until {
            let log = host.sh("tail -n 20 /tmp/pvmmd.log; pvmmd list; dmesg | tail -n 20; :")?;
            return Err(format!(
                "no {count} lines with {text:?} on {}:\n{console}\n{log}",
                host.name()
            )
            .into());
        }
        // Each look costs the host some thousand instructions; the guest's lines come once a second.
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Moves a guest; returns what `pvmmd migrate` printed.
///
/// # Errors
/// What it printed if the move failed.
pub fn migrate(
    from: &mut Host,
    to: &Host,
    guest: &str,
    options: &str,
) -> Result<String, Box<dyn Error>> {
    let target = format!("tcp:{}:{PORT}", to.address(Wire::Migration));
    let line = format!("pvmmd migrate {guest} {target} {options}");
    let out = from.run_with(&["sh", "-c", &line], LIMIT, &mut |_| ())?;
    if out.code == 0 {
        return Ok(out.stdout);
    }
    Err(format!(
        "{line} ended with {}:\n{}{}",
        out.code, out.stdout, out.stderr
    )
    .into())
}
