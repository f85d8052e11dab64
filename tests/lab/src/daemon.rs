//! `pvmmd` on a host, and what its guests print.

use std::thread;
use std::time::{Duration, Instant};

use crate::error::{LabError, Result};
use crate::host::Host;
use crate::net::Wire;

/// Where daemons write what guests print on COM1.
const CONSOLES: &str = "/tmp/consoles";
/// Where daemons log.
const LOG: &str = "/tmp/pvmmd.log";
/// Port at which daemons take guests.
const PORT: u16 = 7000;
/// Between two looks at a console, each of which costs the host some thousand instructions; a verifier's line comes once a
/// second.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Where a host's daemon takes guests.
pub fn url(host: &Host) -> String {
    format!("tcp:{}:{PORT}", host.address(Wire::Migration))
}

/// Loads the module.
///
/// # Errors
/// Those of [`Host::sh`].
pub fn load_module(host: &mut Host) -> Result<()> {
    host.sh("insmod /lib/modules/pvmm.ko").map(drop)
}

/// Starts `pvmmd serve` with these options and waits until it answers. Returns its process id.
///
/// # Errors
/// Those of the host; [`LabError::Failed`] with the daemon's log if it doesn't answer.
pub fn serve(host: &mut Host, options: &str) -> Result<u32> {
    let line = format!(
        "mkdir -p {CONSOLES} /run/pvmm; RUST_LOG=debug exec pvmmd serve --console-log {CONSOLES} {options}"
    );
    let pid = host.spawn(&["sh", "-c", &line], LOG)?;
    host.sh(&format!(
        "for i in $(seq 600); do pvmmd version > /dev/null 2>&1 && exit 0; usleep 50000; done; cat {LOG}; exit 1"
    ))?;
    Ok(pid)
}

/// What the newest daemon's log says of system calls that its filter has refused: nothing, if all is well.
///
/// # Errors
/// Those of the host.
pub fn refused_calls(host: &mut Host) -> Result<String> {
    host.sh(&format!(
        "[ ! -e {LOG} ] || grep -F 'refused system call' {LOG} || [ $? = 1 ]"
    ))
}

/// The file with what a guest has printed on COM1 while it was on a host.
pub fn console_log(guest: &str) -> String {
    format!("{CONSOLES}/{guest}.log")
}

/// What a guest has printed on COM1 while it was on this host.
///
/// # Errors
/// Those of the host.
pub fn console(host: &mut Host, guest: &str) -> Result<String> {
    host.sh(&format!("cat {} 2>/dev/null; :", console_log(guest)))
}

/// Waits until the guest's console on this host has at least `count` lines with `text`, and returns it.
///
/// # Errors
/// Those of the host; [`LabError::Guest`] if the lines don't come, or one comes in which the verifier reports a failure.
pub fn wait_for(
    host: &mut Host,
    guest: &str,
    text: &str,
    count: usize,
    limit: Duration,
) -> Result<String> {
    let until = Instant::now() + limit;
    loop {
        let console = console(host, guest)?;
        let failure = console
            .lines()
            .find(|line| line.contains("pvmm-guest FAIL"));
        if failure.is_none() && console.lines().filter(|line| line.contains(text)).count() >= count
        {
            return Ok(console);
        }
        if failure.is_some() || Instant::now() >= until {
            let what = failure.map_or_else(
                || {
                    format!(
                        "has not printed {text:?} {count} times in {} s",
                        limit.as_secs()
                    )
                },
                |line| format!("has noticed something: {line}"),
            );
            let log = host.sh(&format!(
                "tail -n 20 {LOG}; pvmmd list; dmesg | tail -n 20; :"
            ))?;
            return Err(LabError::Guest {
                host: host.name().to_owned(),
                guest: guest.to_owned(),
                what,
                said: format!("{console}\n{log}"),
            });
        }
        thread::sleep(LOOK_AGAIN);
    }
}
