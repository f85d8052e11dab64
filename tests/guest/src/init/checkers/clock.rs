//! Reads all clocks at every tick of a timer, and checks both.
//!
//! On the path this checks the record of time in the stream, and the timer devices.
#![forbid(unsafe_code)]

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use pvmm_guest::clocks::{Clock, ClockChecker, ClockFault, Sample};
use pvmm_guest::message::{Message, Stat};
use pvmm_guest::timers::{check_sleep, PeriodicCheck, TimerFault};
use pvmm_guest::Config;
use rustix::event::{poll, PollFd, PollFlags};
use rustix::time::{
    clock_gettime, timerfd_create, timerfd_settime, ClockId, Itimerspec, TimerfdClockId,
    TimerfdFlags, TimerfdTimerFlags,
};

use crate::arch;
use crate::boot;
use crate::report::{timespec, Ended, Reporter};

fn now_ns(clock: ClockId) -> i64 {
    let time = clock_gettime(clock);
    time.tv_sec
        .saturating_mul(1_000_000_000)
        .saturating_add(time.tv_nsec)
}

fn sample() -> Sample {
    Sample {
        before_ns: now_ns(ClockId::Monotonic),
        realtime_ns: now_ns(ClockId::Realtime),
        boottime_ns: now_ns(ClockId::Boottime),
        tsc: arch::tsc(),
        after_ns: now_ns(ClockId::Monotonic),
    }
}

fn nanoseconds(duration: Duration) -> i64 {
    // Periods are seconds at most.
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

/// A periodic timer of the kernel and its check.
struct Timer {
    fd: OwnedFd,
    clock: ClockId,
    name: &'static str,
    check: PeriodicCheck,
}

impl Timer {
    fn start(
        (clock, id, name): (ClockId, TimerfdClockId, &'static str),
        period: Duration,
        limit_ms: u32,
    ) -> io::Result<Self> {
        let fd = timerfd_create(id, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        let first_ns = now_ns(clock).saturating_add(nanoseconds(period));
        let first = Duration::from_nanos(first_ns.max(1).unsigned_abs());
        let times = Itimerspec {
            it_interval: timespec(period),
            it_value: timespec(first),
        };
        timerfd_settime(&fd, TimerfdTimerFlags::ABSTIME, &times)?;
        let check = PeriodicCheck::new(first_ns, nanoseconds(period), limit_ms);
        Ok(Timer {
            fd,
            clock,
            name,
            check,
        })
    }

    /// Reads the expirations; to be called when there are some.
    fn read(&mut self) -> io::Result<Result<(), TimerFault>> {
        let mut count = [0; 8];
        let before = now_ns(self.clock);
        match rustix::io::read(&self.fd, &mut count) {
            Ok(_) => {}
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(Ok(())),
            Err(error) => return Err(error.into()),
        }
        let after = now_ns(self.clock);
        let expirations = u64::from_ne_bytes(count);
        Ok(self.check.observe(before, expirations, after))
    }
}

/// Checks until PID 1 has enough.
pub fn run(reporter: &mut Reporter, config: &Config) -> Result<Infallible, Ended> {
    match Clocks::start(config) {
        Ok(mut clocks) => clocks.run(reporter),
        Err(error) => {
            reporter.fail("timer", format_args!("timerfd: {error}"))?;
            Err(Ended)
        }
    }
}

struct Clocks {
    timers: [Timer; 2],
    clocks: ClockChecker,
    limit_ms: u32,
    sleeps: u64,
    samples: u64,
    late_us: u64,
}

impl Clocks {
    fn start(config: &Config) -> io::Result<Self> {
        let monotonic = (
            ClockId::Monotonic,
            TimerfdClockId::Monotonic,
            "monotonic timer",
        );
        let realtime = (
            ClockId::Realtime,
            TimerfdClockId::Realtime,
            "realtime timer",
        );
        let limit = config.gap_ms;
        Ok(Clocks {
            timers: [
                Timer::start(monotonic, config.tick, limit)?,
                // Another period, so that they don't always expire together.
                Timer::start(realtime, config.tick * 7, limit)?,
            ],
            clocks: ClockChecker::new(limit),
            limit_ms: limit,
            sleeps: 0,
            samples: 0,
            late_us: 0,
        })
    }

    fn run(&mut self, reporter: &mut Reporter) -> Result<Infallible, Ended> {
        reporter.send(&Message::Ready)?;
        loop {
            let input = reporter.input();
            let [monotonic, realtime] = &self.timers;
            let mut fds = [
                PollFd::from_borrowed_fd(monotonic.fd.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(realtime.fd.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(input.fd(), PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    reporter.fail("timer", format_args!("poll: {error}"))?;
                    return Err(Ended);
                }
            }
            let ready = fds.map(|fd| !fd.revents().is_empty());
            self.clocks(reporter)?;
            for (timer, _) in self
                .timers
                .iter_mut()
                .zip(ready)
                .filter(|(_, ready)| *ready)
            {
                let name = timer.name;
                match timer.read() {
                    Ok(Ok(())) => {}
                    Ok(Err(fault)) => reporter.fail("timer", format_args!("{name}: {fault}"))?,
                    Err(error) => {
                        reporter.fail("timer", format_args!("{name}: {error}"))?;
                        return Err(Ended);
                    }
                }
            }
            if ready[1] {
                self.sleep(reporter)?;
            }
            if ready[2] {
                reporter.orders()?;
            }
            self.stat(reporter)?;
        }
    }

    fn clocks(&mut self, reporter: &mut Reporter) -> Result<(), Ended> {
        self.samples += 1;
        for fault in self.clocks.observe(sample()) {
            let tsc_disagrees = matches!(
                fault,
                ClockFault::Disagrees {
                    clock: Clock::Tsc,
                    ..
                }
            );
            // A kernel that counts ticks of the 8254 loses those that come too late, on any
            // machine; then it is its clock that went less, and nothing is wrong with the TSC.
            if tsc_disagrees && !boot::clocksource().starts_with("tsc") {
                reporter.note("clock", fault)?;
            } else {
                reporter.fail("clock", fault)?;
            }
        }
        Ok(())
    }

    /// A sleep, alternately by nanosleep(2) and by the time limit of poll(2).
    fn sleep(&mut self, reporter: &mut Reporter) -> Result<(), Ended> {
        let wanted = Duration::from_millis(3);
        self.sleeps += 1;
        let (name, begin) = if self.sleeps % 2 == 0 {
            let begin = now_ns(ClockId::Monotonic);
            std::thread::sleep(wanted);
            ("nanosleep", begin)
        } else {
            let begin = now_ns(ClockId::Monotonic);
            if poll(&mut [], Some(&timespec(wanted))).is_err() {
                return Ok(());
            }
            ("poll", begin)
        };
        let slept = now_ns(ClockId::Monotonic).saturating_sub(begin);
        match check_sleep(nanoseconds(wanted), slept, self.limit_ms) {
            Ok(late_us) => self.late_us = self.late_us.max(late_us),
            Err(fault) => reporter.fail("timer", format_args!("{name}: {fault}"))?,
        }
        Ok(())
    }

    fn stat(&mut self, reporter: &mut Reporter) -> Result<(), Ended> {
        let timers = self.timers.iter();
        let expirations: u64 = timers.clone().map(|timer| timer.check.total()).sum();
        let timer_late = timers.map(|timer| timer.check.max_late_us()).max();
        reporter.stat(Stat {
            checks: self.samples + expirations + self.sleeps,
            passes: 0,
            gap_us: self.clocks.max_gap_us(),
            late_us: self.late_us.max(timer_late.unwrap_or(0)),
            tsc_khz: self.clocks.tsc_khz().unwrap_or(0),
        })
    }
}
