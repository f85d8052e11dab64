//! Prints a job on the first parallel port, by the kernel's own driver.
//!
//! On the path this is a device that is passed through, like COM2, whose every byte takes a handshake: none of its bytes may
//! be lost, doubled or changed when the handshake is cut by a move.
#![forbid(unsafe_code)]

use std::convert::Infallible;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::thread;
use std::time::{Duration, Instant};

use pvmm_guest::message::{Message, Stat};
use pvmm_guest::printout::Line;
use pvmm_guest::Config;

use crate::boot;
use crate::report::{Ended, Reporter};

/// How long the driver may take to find its printer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Loads the drivers, which this kernel doesn't have built in, and opens the printer.
fn open() -> io::Result<File> {
    boot::load_modules()?;
    let give_up = Instant::now() + PATIENCE;
    loop {
        match OpenOptions::new().write(true).open("/dev/lp0") {
            Err(error) if error.kind() == io::ErrorKind::NotFound && Instant::now() < give_up => {
                thread::sleep(Duration::from_millis(100));
            }
            result => return result,
        }
    }
}

/// Prints until the job is done, then waits until PID 1 has enough.
pub fn run(reporter: &mut Reporter, config: &Config) -> Result<Infallible, Ended> {
    let mut printer = match open() {
        Ok(printer) => printer,
        Err(error) => {
            reporter.fail("printer", format_args!("/dev/lp0: {error}"))?;
            return Err(Ended);
        }
    };
    reporter.send(&Message::Ready)?;
    for number in 1..=config.print {
        if let Err(error) = writeln!(printer, "{}", Line(number)) {
            reporter.fail("printer", format_args!("line {number}: {error}"))?;
            return Err(Ended);
        }
        let stat = Stat {
            checks: number.into(),
            ..Stat::default()
        };
        reporter.stat(stat)?;
    }
    reporter.note("printer", format_args!("{} lines printed", config.print))?;
    loop {
        reporter.orders()?;
    }
}
