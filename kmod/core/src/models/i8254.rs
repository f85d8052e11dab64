// SPDX-License-Identifier: GPL-2.0
//! The 8254 interval timer of a PC, with the gate and read-back of counter 2 in port 61h.
//!
//! On the path this is a *modelled* backend: the chipset gives it the guest's accesses to 40h-43h and 61h, asks it when
//! the next edge of OUT0 is due, and turns edges into IRQ0. Nothing runs in between: what a counter shows is computed
//! from the clock ticks since it was loaded, and ticks are computed from absolute VM nanoseconds, so that no error adds
//! up however long the guest runs and wherever it moves.
//!
//! Follows Intel's 8254 data sheet (231164) for the timer and the PIIX data sheet (290562, NMI status and control) for
//! port 61h.
#![forbid(unsafe_code)]

mod counter;
mod hidden;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use crate::iospace::{Location, Width};
use crate::replay::{Backend, Hidden};
use counter::Counter;

/// Ticks of the 1.193182 MHz clock in [`RATE_NS`] nanoseconds: the clock is 105/88 MHz, exactly.
pub const RATE_TICKS: u64 = 105;
/// See [`RATE_TICKS`].
pub const RATE_NS: u64 = 88_000;

/// Highest number of edges of OUT0 that are kept for a guest that was not running when they came. A guest at 1000 Hz
/// makes up 64 ms this way, one at 100 Hz 640 ms; what is beyond that is lost, as it would be on a machine whose
/// interrupts were off that long.
pub const MAX_BACKLOG: u32 = 64;

/// Length of the half period of the refresh toggle (port 61h bit 4) in ticks: 15.085 us.
const REFRESH_TICKS: u64 = 18;

/// The tick that has last passed at VM nanosecond `ns`.
pub const fn tick_at(ns: u64) -> u64 {
    ns / RATE_NS * RATE_TICKS + ns % RATE_NS * RATE_TICKS / RATE_NS
}

/// The first VM nanosecond at which `tick` has passed; `u64::MAX` if that is further than VM time reaches.
pub const fn ns_of(tick: u64) -> u64 {
    let whole = (tick / RATE_TICKS).saturating_mul(RATE_NS);
    whole.saturating_add((tick % RATE_TICKS * RATE_NS).div_ceil(RATE_TICKS))
}

/// The 8254 and port 61h.
///
/// Time is given with every call, in VM nanoseconds; it must not go back (a smaller value counts as the last one). The
/// caller serializes accesses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct I8254 {
    counters: [Counter; 3],
    /// Bits 0 to 3 of port 61h: gate of counter 2, speaker data, and the two check enables.
    port61: u8,
    /// Tick up to which everything is accounted for.
    tick: u64,
    /// Rising edges of OUT0 that nobody has taken.
    backlog: u32,
}

impl Default for I8254 {
    fn default() -> Self {
        Self::new()
    }
}

impl I8254 {
    /// The timer after power-on, at VM nanosecond 0. No counter counts before it is programmed. The gates of counters
    /// 0 and 1 are wired high.
    pub const fn new() -> Self {
        Self {
            counters: [Counter::new(true), Counter::new(true), Counter::new(false)],
            port61: 0,
            tick: 0,
            backlog: 0,
        }
    }

    /// Catches up with `now`: the edges of OUT0 since the last call join the backlog. Returns the backlog.
    ///
    /// Take edges with [`I8254::take_edge`], one whenever the interrupt controller has no IRQ0 waiting: so a guest
    /// whose host was late gets each tick that it would have counted, up to [`MAX_BACKLOG`].
    pub fn advance(&mut self, now: u64) -> u32 {
        let tick = tick_at(now).max(self.tick);
        for (index, counter) in self.counters.iter_mut().enumerate() {
            let edges = counter.advance(self.tick, tick);
            if index == 0 {
                let edges = u32::try_from(edges).unwrap_or(u32::MAX);
                self.backlog = self.backlog.saturating_add(edges).min(MAX_BACKLOG);
            }
        }
        self.tick = tick;
        self.backlog
    }

    /// Edges of OUT0 that have passed and were not taken.
    pub const fn backlog(&self) -> u32 {
        self.backlog
    }

    /// Takes one edge of OUT0 from the backlog, to be delivered as IRQ0. `false` if there is none.
    pub fn take_edge(&mut self) -> bool {
        let due = self.backlog > 0;
        self.backlog = self.backlog.saturating_sub(1);
        due
    }

    /// VM nanosecond of the next rising edge of OUT0 after `now`, if the counters are left alone; `None` if it does not
    /// come. What is in the backlog is due already and not looked at.
    pub fn next_edge(&mut self, now: u64) -> Option<u64> {
        self.advance(now);
        Some(ns_of(self.counters[0].next_edge(self.tick)?))
    }

    /// Level of OUT of `counter` (0 to 2) at the time last given.
    pub fn out(&self, counter: u8) -> bool {
        self.counters
            .get(usize::from(counter))
            .is_some_and(|counter| counter.out(self.tick))
    }

    /// Reads the byte at `at`: range 0 is 40h-43h, range 1 is 61h. All ones elsewhere; 43h cannot be read.
    pub fn read(&mut self, at: Location, now: u64) -> u8 {
        self.advance(now);
        match (at.range, at.offset) {
            (0, index @ 0..=2) => self.counters[index as usize].read(self.tick),
            (1, 0) => {
                let refresh = u8::from(self.tick / REFRESH_TICKS % 2 != 0) << 4;
                self.port61 | refresh | u8::from(self.out(2)) << 5
            }
            _ => 0xff,
        }
    }

    /// Writes the byte at `at`; see [`I8254::read`] for the ranges. Ignored elsewhere.
    pub fn write(&mut self, at: Location, value: u8, now: u64) {
        self.advance(now);
        let out0 = self.out(0);
        match (at.range, at.offset) {
            (0, index @ 0..=2) => self.counters[index as usize].write(value, self.tick),
            (0, 3) => self.write_control(value),
            (1, 0) => {
                self.port61 = value & 0x0f;
                self.counters[2].set_gate(value & 1 != 0, self.tick);
            }
            _ => {}
        }
        if !out0 && self.out(0) {
            self.backlog = self.backlog.saturating_add(1).min(MAX_BACKLOG);
        }
    }

    fn write_control(&mut self, value: u8) {
        match value >> 6 {
            // Read-back command: for each counter selected, latch what is selected (active low).
            3 => {
                for (index, counter) in self.counters.iter_mut().enumerate() {
                    if value & (2 << index) == 0 {
                        continue;
                    }
                    if value & 0x20 == 0 {
                        counter.latch_count(self.tick);
                    }
                    if value & 0x10 == 0 {
                        counter.latch_status(self.tick);
                    }
                }
            }
            index => {
                let counter = &mut self.counters[usize::from(index)];
                if value & 0x30 == 0 {
                    counter.latch_count(self.tick);
                } else {
                    counter.write_control(value & 0x3f, self.tick);
                    // Ticks of the old programming mean nothing under the new one.
                    if index == 0 {
                        self.backlog = 0;
                    }
                }
            }
        }
    }

    /// The timer as a backend at one instant.
    pub fn at(&mut self, now: u64) -> I8254At<'_> {
        self.advance(now);
        I8254At { timer: self, now }
    }
}

/// An [`I8254`] at one instant of VM time: the handle through which capture and restore reach it.
#[derive(Debug)]
pub struct I8254At<'a> {
    timer: &'a mut I8254,
    now: u64,
}

impl Backend for I8254At<'_> {
    fn read(&mut self, at: Location, width: Width) -> u64 {
        crate::models::read_bytes(at, width, |at| self.timer.read(at, self.now))
    }

    fn write(&mut self, at: Location, width: Width, value: u64) {
        crate::models::write_bytes(at, width, value, |at, byte| {
            self.timer.write(at, byte, self.now)
        });
    }

    fn hidden(&mut self) -> Option<&mut dyn Hidden> {
        Some(self.timer)
    }
}
