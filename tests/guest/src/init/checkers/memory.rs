//! Rewrites and verifies a share of the guest's memory.
//!
//! On the path this makes the dirty pages that pre-copy chases, and finds what it left behind.
#![forbid(unsafe_code)]

use std::convert::Infallible;
use std::time::{Duration, Instant};

use pvmm_guest::config::Load;
use pvmm_guest::memory::{Checked, PatternMemory};
use pvmm_guest::message::{Message, Order, Stat};
use pvmm_guest::Config;
use rustix::process::setpriority_process;

use crate::report::{Ended, Reporter};

/// Pages read per second without load: a check now and then that hardly costs anything.
const IDLE_PAGES: usize = 64;
/// Turns per second with the load `slow`: an even stream of dirty pages.
const SLOW_TURNS: u32 = 20;
/// Pages per turn with the load `fast`, some ms in an emulated CPU: orders are heard in between.
const FAST_PAGES: usize = 256;

/// Checks until PID 1 has enough.
pub fn run(
    reporter: &mut Reporter,
    config: &Config,
    number: u32,
    pages: u32,
) -> Result<Infallible, Ended> {
    // The load is there to disturb the move, not the other checks.
    if let Err(error) = setpriority_process(None, 19) {
        reporter.note("memory", format_args!("priority stays: {error}"))?;
    }
    let seed = u64::from(number).wrapping_add(1) << 56;
    let mut memory = match PatternMemory::new(pages, seed) {
        Ok(memory) => memory,
        Err(error) => {
            reporter.fail("memory", format_args!("{pages} pages: {error}"))?;
            return Err(Ended);
        }
    };
    reporter.send(&Message::Ready)?;
    let mut worker = Worker {
        name: format!("memory{number}"),
        checks: 0,
    };
    let (mut load, mut rate) = (config.load, config.rate / config.workers.max(1));
    loop {
        let begin = Instant::now();
        let (checked, turn) = match load {
            Load::Idle => (memory.verify(IDLE_PAGES), Duration::from_secs(1)),
            Load::Slow => {
                let pages = rate.div_ceil(SLOW_TURNS);
                // As many turns as this takes, to the page: 1 page per second is 1 per second.
                let turn = Duration::from_secs(1) * pages / rate.max(1);
                (memory.rewrite(pages as usize), turn)
            }
            Load::Fast => (memory.rewrite(FAST_PAGES), Duration::ZERO),
        };
        worker.tell(reporter, checked)?;
        reporter.stat(Stat {
            checks: worker.checks,
            passes: memory.passes(),
            ..Stat::default()
        })?;
        for order in reporter.wait(turn.saturating_sub(begin.elapsed()))? {
            match order {
                Order::Load(new, new_rate) => (load, rate) = (new, new_rate),
                Order::Verify => {
                    let checked = memory.verify_all();
                    let verified = Message::Verified(checked.pages, checked.bad);
                    worker.tell(reporter, checked)?;
                    reporter.send(&verified)?;
                }
            }
        }
    }
}

struct Worker {
    name: String,
    checks: u64,
}

impl Worker {
    fn tell(&mut self, reporter: &mut Reporter, checked: Checked) -> Result<(), Ended> {
        self.checks += checked.pages;
        let name = &self.name;
        for mismatch in &checked.examples {
            reporter.fail("memory", format_args!("{name} {mismatch}"))?;
        }
        let untold = checked.bad.saturating_sub(Checked::KEEP as u64);
        if untold > 0 {
            reporter.fail("memory", format_args!("{name} {untold} more pages wrong"))?;
        }
        Ok(())
    }
}
