//! `/init` of the test guest: checks that nothing in the guest notices a move.
//!
//! Started by the kernel as PID 1 it sets up the guest, starts one process per kind of check (this
//! program again, with the name of the check as argument) and speaks with the outside on COM1; see
//! the library for the lines and the parameters. On the path it is the guest access at the start
//! and the verified state at the end.
//!
//! The reading order: `boot` (mounts, sizes, end of the guest), `supervisor` (PID 1), `process`
//! (a checker seen from PID 1), `report` (PID 1 seen from a checker), `checkers` (the checks).

mod arch;
mod boot;
mod checkers;
mod console;
mod kmsg;
mod process;
mod report;
mod supervisor;

use std::process::ExitCode;

use checkers::Role;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().filter(|_| std::process::id() != 1) {
        // The kernel hands words of its command line to PID 1; they are none of our business.
        None if std::process::id() == 1 => supervisor::run(),
        Some(name) => match Role::parse(&name, arguments) {
            Some(role) => checkers::run(role),
            None => usage(),
        },
        None => usage(),
    }
}

fn usage() -> ExitCode {
    eprintln!(
        "pvmm-guest is the /init of a test guest: put it into an initramfs as /init and start \
         a Linux kernel with console=ttyS0"
    );
    ExitCode::from(2)
}
