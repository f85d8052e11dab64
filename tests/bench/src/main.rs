//! Measures single operations and ordinary work in ticks of the time-stamp counter; see the library for what it prints.
//!
//! As PID 1, that is as `/init` of a guest, it mounts nothing, measures, and switches the machine off; otherwise, on a
//! host, it only measures. `pmtimer` as an argument (or on the kernel's command line) says that the machine has the ACPI
//! timer of a pvmm guest, `com2` that it has a second serial port.

mod arch;
mod measure;
mod work;

use std::process::ExitCode;

use arch::{port_read, port_read_long, port_write, Port};
use measure::operation;
use pvmm_bench::{END, PREFIX};
use rustix::system::{reboot, RebootCommand};

fn main() -> ExitCode {
    let is_init = std::process::id() == 1;
    let words: Vec<String> = std::env::args().skip(1).collect();
    let has = |word: &str| words.iter().any(|given| given == word);
    if let Err(error) = arch::allow_ports() {
        eprintln!("{PREFIX}: no access to ports: {error}; run it as root");
        return ExitCode::FAILURE;
    }
    measure_all(has("pmtimer"), has("com2"));
    if is_init {
        // Without ACPI nothing can be switched off.
        let command = if has("pmtimer") {
            RebootCommand::PowerOff
        } else {
            RebootCommand::Restart
        };
        if let Err(error) = reboot(command) {
            eprintln!("{PREFIX}: {error}");
        }
        // PID 1 must not end.
        loop {
            std::thread::park();
        }
    }
    ExitCode::SUCCESS
}

fn measure_all(pm_timer: bool, com2: bool) {
    say("cpuid", operation(arch::cpuid));
    say("port-in-core", operation(|| port_read(Port::Mask8259)));
    if pm_timer {
        say("pm-timer", operation(|| port_read_long(Port::PmTimer)));
    }
    say("port-in-daemon", operation(|| port_read(Port::Com1Scratch)));
    if com2 {
        let through = operation(|| port_read(Port::Com2Scratch));
        say("passed-through-read", through);
        let through = operation(|| port_write(Port::Com2Scratch, 0));
        say("passed-through-write", through);
        // FIFOs on: what Linux writes there.
        let recorded = operation(|| port_write(Port::Com2FifoControl, 1));
        say("recorded-write", recorded);
    }
    // A kernel that has just booted goes on for a while with what it has put off. Not measured.
    work::compute();
    say("compute", work::compute());
    say("memory", work::memory());
    say("syscall", work::syscall());
    match work::context_switch() {
        Ok(ticks) => say("context-switch", ticks),
        Err(error) => eprintln!("{PREFIX}: context-switch: {error}"),
    }
    if com2 {
        match work::serial() {
            Ok(ticks) => say("serial", ticks),
            Err(error) => eprintln!("{PREFIX}: serial: {error}"),
        }
    }
    println!("{END}");
}

fn say(name: &str, ticks: u64) {
    println!("{PREFIX} {name} {ticks}");
}
