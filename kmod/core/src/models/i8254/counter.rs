// SPDX-License-Identifier: GPL-2.0
//! One counter of the 8254.
//!
//! The model of time: an access at tick `t` comes after the `t`-th pulse of CLK. What the data sheet says to happen "on
//! the next CLK pulse" happens at `t + 1`. The counting element is not stepped; its value at `t` follows from the count
//! that was loaded and the pulses since then. At most one load is planned at a time.
#![forbid(unsafe_code)]

/// Level that OUT has whatever the counting element says, until the next load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Force {
    /// The counting element decides.
    None,
    /// Mode 0: a new count is being written.
    Low,
    /// Modes 2 and 3: the gate went low.
    High,
}

/// One counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counter {
    /// Bits 0 to 5 of the last control word: BCD, mode, read/write format.
    pub(super) control: u8,
    /// The count register as written.
    pub(super) cr: u16,
    /// A count was written after the last control word.
    pub(super) cr_valid: bool,
    /// The count register holds what the counting element was not yet loaded with.
    pub(super) null_count: bool,
    /// The counting element was loaded after the last control word.
    pub(super) loaded: bool,
    /// What it was loaded with: 1 to 65536, or to 10000 in BCD.
    pub(super) count: u32,
    /// While counting: the tick of the load (or what it would be had the counter never stopped). While stopped: the
    /// pulses counted since the load.
    pub(super) phase: u64,
    pub(super) stopped: bool,
    /// What the counting element shows while it is not loaded.
    pub(super) idle: u16,
    /// Tick of the next load, and whether it is the one at the end of a (half) period rather than one that starts the
    /// count anew.
    pub(super) load_at: Option<u64>,
    pub(super) load_is_reload: bool,
    pub(super) force: Force,
    pub(super) gate: bool,
    /// First byte of a two-byte count, waiting for the second.
    pub(super) staged: Option<u8>,
    /// The next byte read in the two-byte format is the high one.
    pub(super) read_high: bool,
    pub(super) latched_count: Option<u16>,
    pub(super) latched_status: Option<u8>,
}

impl Counter {
    /// A counter after power-on, which the data sheet leaves undefined: set to mode 3, as the firmware of a PC leaves
    /// it, but without a count.
    pub(super) const fn new(gate: bool) -> Self {
        Self {
            control: 0x36,
            cr: 0,
            cr_valid: false,
            null_count: true,
            loaded: false,
            count: 0x1_0000,
            phase: 0,
            stopped: true,
            idle: 0,
            load_at: None,
            load_is_reload: false,
            force: Force::None,
            gate,
            staged: None,
            read_high: false,
            latched_count: None,
            latched_status: None,
        }
    }

    /// The mode, 0 to 5: the data sheet doesn't care about the highest bit of modes 2 and 3.
    const fn mode(&self) -> u8 {
        match self.control >> 1 & 7 {
            mode @ 0..=5 => mode,
            mode => mode & 3,
        }
    }

    const fn is_bcd(&self) -> bool {
        self.control & 1 != 0
    }

    /// Read/write format: 1 low byte only, 2 high byte only, 3 low then high.
    const fn format(&self) -> u8 {
        self.control >> 4 & 3
    }

    const fn modulus(&self) -> u32 {
        if self.is_bcd() {
            10_000
        } else {
            0x1_0000
        }
    }

    /// The count that the count register stands for. Digits above 9, which the data sheet doesn't define, count with
    /// their binary value.
    fn decoded(&self) -> u32 {
        let raw = u32::from(self.cr);
        let value = if self.is_bcd() {
            let digit = |shift: u32| raw >> shift & 15;
            (digit(12) * 1000 + digit(8) * 100 + digit(4) * 10 + digit(0)) % 10_000
        } else {
            raw
        };
        if value == 0 {
            self.modulus()
        } else {
            value
        }
    }

    /// The value of the counting element as it is read.
    fn encoded(&self, value: u32) -> u16 {
        let value = value % self.modulus();
        let shown = if self.is_bcd() {
            ((value / 1000) << 12)
                | ((value / 100 % 10) << 8)
                | ((value / 10 % 10) << 4)
                | (value % 10)
        } else {
            value
        };
        shown as u16
    }

    /// Pulses counted since the load, at `tick`.
    const fn elapsed_at(&self, tick: u64) -> u64 {
        if self.stopped {
            self.phase
        } else {
            tick.wrapping_sub(self.phase)
        }
    }

    /// Pulses for which OUT is high in a period of mode 3.
    fn high_half(&self) -> u64 {
        u64::from(self.count).div_ceil(2)
    }

    /// Position in the period of modes 2 and 3.
    fn position(&self, tick: u64) -> u64 {
        // A load gives a count of at least 1; restored state is checked for it.
        self.elapsed_at(tick) % u64::from(self.count.max(1))
    }

    /// What the counting element holds at `tick`, as it is read.
    fn counting_element(&self, tick: u64) -> u16 {
        if !self.loaded {
            return self.idle;
        }
        let count = u64::from(self.count);
        let value = match self.mode() {
            2 => count - self.position(tick),
            3 => {
                let phase = self.position(tick);
                let half = self.high_half();
                let steps = if phase < half { phase } else { phase - half };
                (count & !1) - 2 * steps
            }
            _ => {
                let modulus = u64::from(self.modulus());
                count + modulus - self.elapsed_at(tick) % modulus
            }
        };
        // Below twice the modulus.
        self.encoded(value as u32)
    }

    /// Level of OUT at `tick`, to which the counter must have advanced.
    pub(super) fn out(&self, tick: u64) -> bool {
        match self.force {
            Force::Low => return false,
            Force::High => return true,
            Force::None => {}
        }
        if !self.loaded {
            return self.mode() != 0;
        }
        let count = u64::from(self.count);
        match self.mode() {
            0 | 1 => self.elapsed_at(tick) >= count,
            2 => self.position(tick) != count - 1,
            3 => self.position(tick) < self.high_half(),
            _ => self.elapsed_at(tick) != count,
        }
    }

    /// Pulses after the load at which OUT rises: the first, and the period if it rises again.
    fn rises(&self) -> Option<(u64, Option<u64>)> {
        if !self.loaded || self.stopped || self.force != Force::None {
            return None;
        }
        let count = u64::from(self.count);
        match self.mode() {
            0 | 1 => Some((count, None)),
            // A count of 1 is illegal in modes 2 and 3; OUT doesn't change with it.
            2 | 3 if count < 2 => None,
            2 | 3 => Some((count, Some(count))),
            _ => Some((count + 1, None)),
        }
    }

    /// Rising edges of OUT after tick `from` up to and including `to`, without a load in between.
    fn edges(&self, from: u64, to: u64) -> u64 {
        let Some((first, period)) = self.rises() else {
            return 0;
        };
        let (from, to) = (self.elapsed_at(from), self.elapsed_at(to));
        let until = |elapsed: u64| match period {
            _ if elapsed < first => 0,
            None => 1,
            // A period is at least 1; `checked_div` spares a panic that could never come.
            Some(period) => 1 + (elapsed - first).checked_div(period).unwrap_or(0),
        };
        // Restored state may place the load in the future, where the subtraction wraps.
        until(to).saturating_sub(until(from))
    }

    /// Lets time pass from tick `from` to `to`, and returns how often OUT has risen after `from`.
    pub(super) fn advance(&mut self, from: u64, to: u64) -> u64 {
        let Some(load_at) = self.load_at.filter(|&load_at| load_at <= to) else {
            return self.edges(from, to);
        };
        // A load in the past can only come from a peer; it happens now.
        let load_at = load_at.max(from.saturating_add(1)).min(to);
        let before = load_at.saturating_sub(1).max(from);
        let mut edges = self.edges(from, before);
        let was_high = self.out(before);
        self.load(load_at);
        if !was_high && self.out(load_at) {
            edges += 1;
        }
        edges.saturating_add(self.edges(load_at, to))
    }

    /// Tick of the next rising edge of OUT after `tick`, to which the counter has advanced.
    pub(super) fn next_edge(&self, tick: u64) -> Option<u64> {
        let own = self.rises().and_then(|(first, period)| {
            let elapsed = self.elapsed_at(tick);
            let next = if elapsed < first {
                first
            } else {
                let period = period?;
                let passed = (elapsed - first).checked_div(period)?;
                first.checked_add((passed + 1).checked_mul(period)?)?
            };
            tick.checked_add(next - elapsed)
        });
        let Some(load_at) = self.load_at else {
            return own;
        };
        if let Some(own) = own.filter(|&own| own < load_at) {
            return Some(own);
        }
        let mut loaded = *self;
        let load_at = load_at.max(tick.saturating_add(1));
        if loaded.advance(tick, load_at) > 0 {
            return Some(load_at);
        }
        loaded.next_edge(load_at)
    }

    /// Loads the counting element from the count register on the pulse `tick`.
    fn load(&mut self, tick: u64) {
        // A reload of mode 3 in the middle of the square wave goes on with the low half.
        let low_half = self.load_is_reload
            && self.mode() == 3
            && self.loaded
            && self.position(tick) == self.high_half();
        self.load_at = None;
        self.load_is_reload = false;
        self.count = self.decoded();
        self.null_count = false;
        self.loaded = true;
        self.force = Force::None;
        let elapsed = if low_half { self.high_half() } else { 0 };
        self.stopped = !self.may_count();
        self.phase = if self.stopped {
            elapsed
        } else {
            tick.wrapping_sub(elapsed)
        };
        if self.stopped && matches!(self.mode(), 2 | 3) {
            self.force = Force::High;
        }
    }

    /// Whether pulses are counted: the gate stops modes 0, 2, 3 and 4, half a count stops mode 0.
    const fn may_count(&self) -> bool {
        match self.mode() {
            0 => self.gate && self.staged.is_none(),
            2..=4 => self.gate,
            _ => true,
        }
    }

    /// Starts or stops counting at `tick` as [`Counter::may_count`] says.
    fn follow_gate(&mut self, tick: u64) {
        if self.stopped == self.may_count() {
            // From ticks to pulses and back is the same subtraction.
            self.phase = tick.wrapping_sub(self.phase);
            self.stopped = !self.stopped;
        }
    }

    pub(super) fn set_gate(&mut self, gate: bool, tick: u64) {
        if gate == self.gate {
            return;
        }
        self.gate = gate;
        match self.mode() {
            // A rising edge triggers.
            1 | 5 if gate && self.cr_valid => self.plan_load(tick.saturating_add(1), false),
            2 | 3 if gate => {
                if self.cr_valid {
                    self.plan_load(tick.saturating_add(1), false);
                } else {
                    self.follow_gate(tick);
                }
            }
            2 | 3 => {
                self.follow_gate(tick);
                if self.loaded {
                    self.force = Force::High;
                }
                if self.load_is_reload {
                    self.load_at = None;
                    self.load_is_reload = false;
                }
            }
            0 | 4 => self.follow_gate(tick),
            _ => {}
        }
    }

    fn plan_load(&mut self, at: u64, is_reload: bool) {
        self.load_at = Some(at);
        self.load_is_reload = is_reload;
    }

    /// A control word that is not a latch command; `control` are its bits 0 to 5.
    pub(super) fn write_control(&mut self, control: u8, tick: u64) {
        *self = Self {
            control,
            cr: self.cr,
            idle: self.counting_element(tick),
            ..Self::new(self.gate)
        };
    }

    /// A byte written to the counter's port.
    pub(super) fn write(&mut self, value: u8, tick: u64) {
        match (self.format(), self.staged) {
            (1, _) => self.write_count(value.into(), tick),
            (2, _) => self.write_count(u16::from(value) << 8, tick),
            (_, None) => {
                self.staged = Some(value);
                if self.mode() == 0 {
                    self.load_at = None;
                    self.force = Force::Low;
                    self.follow_gate(tick);
                }
            }
            (_, Some(low)) => {
                self.staged = None;
                self.write_count(u16::from_le_bytes([low, value]), tick);
            }
        }
    }

    /// A complete new count.
    fn write_count(&mut self, cr: u16, tick: u64) {
        self.cr = cr;
        self.cr_valid = true;
        self.null_count = true;
        let next = tick.saturating_add(1);
        match self.mode() {
            0 => {
                self.force = Force::Low;
                self.plan_load(next, false);
            }
            4 => self.plan_load(next, false),
            // Loaded by a trigger only.
            1 | 5 => {}
            _ if !self.loaded => self.plan_load(next, false),
            // A load that starts anew is on its way and takes the new count.
            _ if self.load_at.is_some() && !self.load_is_reload => {}
            // The gate is low: a trigger will load it.
            _ if self.stopped => {}
            mode => {
                let (phase, half) = (self.position(tick), self.high_half());
                let left = if mode == 3 && phase < half {
                    half - phase
                } else {
                    u64::from(self.count) - phase
                };
                self.plan_load(tick.saturating_add(left), true);
            }
        }
    }

    /// Latches the count, unless a latched one waits to be read.
    pub(super) fn latch_count(&mut self, tick: u64) {
        if self.latched_count.is_none() {
            self.latched_count = Some(self.counting_element(tick));
        }
    }

    /// Latches the status byte, unless a latched one waits to be read.
    pub(super) fn latch_status(&mut self, tick: u64) {
        if self.latched_status.is_none() {
            let status =
                self.control | u8::from(self.null_count) << 6 | u8::from(self.out(tick)) << 7;
            self.latched_status = Some(status);
        }
    }

    /// A byte read from the counter's port: a latched status first, then a latched count, else the counting element.
    pub(super) fn read(&mut self, tick: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let [low, high] = self
            .latched_count
            .unwrap_or_else(|| self.counting_element(tick))
            .to_le_bytes();
        let (value, last) = match (self.format(), self.read_high) {
            (1, _) => (low, true),
            (2, _) => (high, true),
            (_, false) => (low, false),
            (_, true) => (high, true),
        };
        self.read_high = !last;
        if last {
            self.latched_count = None;
        }
        value
    }
}
