//! Holds known values in the registers, all the time.
//!
//! On the path this checks the CPU state in the stream: general registers, x87, SSE, AVX, AVX-512,
//! control words, FS and GS base.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::convert::Infallible;
use std::time::Duration;

use pvmm_guest::message::{Message, Stat};

use crate::arch::{self, Hold, Image, Vectors};
use crate::report::{Ended, Reporter};

/// Each sleep, in ns; nearly all of the time is spent in one.
const SLEEP_NS: u32 = 100_000_000;
/// Turns of the loop in between, about a ms of an emulated CPU.
const SPIN: u32 = 25_000;

thread_local! {
    /// Found through the FS base.
    static THREAD_WORD: Cell<u64> = const { Cell::new(0) };
}

/// Checks until PID 1 has enough.
pub fn run(reporter: &mut Reporter) -> Result<Infallible, Ended> {
    if let Err(error) = arch::set_gs_base() {
        reporter.fail(
            "registers",
            format_args!("arch_prctl failed with errno {error}"),
        )?;
        return Err(Ended);
    }
    let vectors = Vectors::detect();
    reporter.send(&Message::Ready)?;
    let address = THREAD_WORD.with(Cell::as_ptr).addr();
    let mut checks = 0;
    loop {
        for how in [Hold::Sleep(SLEEP_NS), Hold::Spin(SPIN)] {
            THREAD_WORD.set(checks);
            let image = Image::new(vectors, checks);
            let stored = arch::hold(vectors, &image, how);
            for difference in image.differences(&stored) {
                reporter.fail("registers", format_args!("{difference} after {how:?}"))?;
            }
            if !arch::gs_base_holds() {
                reporter.fail("registers", format_args!("GS base changed after {how:?}"))?;
            }
            let (word, at) = (THREAD_WORD.get(), THREAD_WORD.with(Cell::as_ptr).addr());
            if word != checks || at != address {
                reporter.fail("registers", format_args!("FS base changed after {how:?}"))?;
            }
            checks += 1;
        }
        reporter.stat(Stat {
            checks,
            ..Stat::default()
        })?;
        // Orders are none of this checker's business, but the end of the pipe is.
        reporter.wait(Duration::ZERO)?;
    }
}
