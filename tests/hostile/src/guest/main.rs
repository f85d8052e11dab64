//! The hostile guest: boots as a Linux kernel does, runs what its command line asks for, says on COM1 what it does, and
//! powers itself off.
//!
//! Also boots by the PVH protocol, so that it can be tried on other implementations of the processor, for example
//! `qemu-system-x86_64 -accel tcg -cpu max -kernel pvmm-hostile -append 'seed=1' -serial stdio`.
#![no_std]
#![no_main]

mod console;
mod hardware;
mod run;
mod tables;

use console::say;
use core::panic::PanicInfo;
use pvmm_hostile::{Case, Options};

core::arch::global_asm!(include_str!("start.S"), options(att_syntax));

/// Vectors that exceptions have.
const EXCEPTIONS: usize = 32;

/// Called by `_start` on the guest's own stack, with the address of the command line.
#[no_mangle]
extern "C" fn hostile_main(command_line: u64) -> ! {
    let mut line = [0; 512];
    let options = Options::parse(hardware::copy_string(command_line, &mut line));
    tables::build();
    console::open();
    say!(
        "pvmm-hostile begins: seed={:#x} first={} rounds={}",
        options.seed,
        options.first,
        options.rounds
    );
    let mut total = 0;
    for case in Case::all().filter(|case| options.wants(*case)) {
        say!("pvmm-hostile case {} begins", case.name());
        total += rounds(case, &options);
    }
    say!("pvmm-hostile ends: {total} rounds");
    hardware::power_off()
}

/// Runs the rounds of a case; returns their number.
fn rounds(case: Case, options: &Options<'_>) -> u64 {
    let mut ends = [0u64; EXCEPTIONS + 1];
    for round in options.first..options.first + options.rounds {
        let vector = run::round(case, options.seed, round);
        ends[(vector as usize).min(EXCEPTIONS)] += 1;
        if round % 64 == 63 {
            say!("pvmm-hostile case {} round {round}", case.name());
        }
    }
    say!(
        "pvmm-hostile case {} ends: {} rounds; #DB {} NMI {} #BP {} #UD {} #DF {} #SS {} #GP {} #PF {} interrupts {}",
        case.name(),
        options.rounds,
        ends[1],
        ends[2],
        ends[3],
        ends[6],
        ends[8],
        ends[12],
        ends[13],
        ends[14],
        ends[EXCEPTIONS]
    );
    options.rounds
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    say!("pvmm-hostile FAIL: {info}");
    hardware::power_off()
}
