// SPDX-License-Identifier: GPL-2.0
//! A parallel port with a printer, for the tests. Written from the PC87332 data sheet and IEEE 1284's compatibility mode,
//! without a look at capture or plan.

use crate::iospace::{Location, Width};
use crate::replay::{Backend, Timing};
use std::cell::Cell;
use std::rc::Rc;
use std::vec::Vec;

/// Time that a test shares between its ports.
#[derive(Debug, Clone, Default)]
pub(super) struct Clock(pub(super) Rc<Cell<u64>>);

impl Clock {
    pub(super) fn pass(&self, ns: u64) {
        self.0.set(self.0.get() + ns);
    }
}

impl Timing for Clock {
    fn now_ns(&mut self) -> u64 {
        self.0.get()
    }

    fn delay_ns(&mut self, ns: u64) {
        self.pass(ns);
    }
}

/// How long an access takes: a cycle of the ISA bus.
pub(super) const ACCESS_NS: u64 = 1_000;
/// How long ACK is active.
const ACK_NS: u64 = 5_000;

/// The port and the printer.
#[derive(Debug, Clone)]
pub(super) struct Chip {
    clock: Clock,
    latch: u8,
    control: u8,
    /// What somebody else drives the data lines to.
    pub(super) lines: u8,
    /// How long the printer takes for a byte. `None`: it has no paper, and stays busy.
    pub(super) speed_ns: Option<u64>,
    /// When the byte that the printer has is acknowledged.
    busy_until: Option<u64>,
    /// When ACK ends.
    ack_until: Option<u64>,
    /// Bytes that the printer has taken.
    pub(super) printed: Vec<u8>,
    /// How often the printer was reset.
    pub(super) inits: usize,
    /// Interrupts that the port has raised.
    pub(super) interrupts: usize,
}

impl Chip {
    pub(super) fn new(clock: &Clock) -> Self {
        Self {
            clock: clock.clone(),
            latch: 0,
            control: 0,
            lines: 0x3c,
            speed_ns: Some(20_000),
            busy_until: None,
            ack_until: None,
            printed: Vec::new(),
            inits: 0,
            interrupts: 0,
        }
    }

    /// The same port and printer on another clock, which shows the same time.
    pub(super) fn on(&self, clock: &Clock) -> Self {
        Self {
            clock: clock.clone(),
            ..self.clone()
        }
    }

    /// Lets happen what has happened by now.
    pub(super) fn advance(&mut self) {
        let now = self.clock.0.get();
        if self.busy_until.is_some_and(|until| until <= now) {
            self.ack_until = self.busy_until.take().map(|until| until + ACK_NS);
        }
        if self.ack_until.is_some_and(|until| until <= now) {
            self.ack_until = None;
            // IRQ follows the trailing edge of ACK while IRQE is set.
            self.interrupts += usize::from(self.control & 0x10 != 0);
        }
    }

    fn status(&self) -> u8 {
        let busy = self.busy_until.is_some() || self.speed_ns.is_none();
        let ack = self.ack_until.is_some();
        // BUSY is inverted; selected, no error; the reserved bits read as 1.
        u8::from(!busy) << 7 | u8::from(!ack) << 6 | 0x1b
    }

    fn write_control(&mut self, value: u8) {
        let rises = |bit: u8| value & !self.control & bit != 0;
        let falls = |bit: u8| !value & self.control & bit != 0;
        let (strobe, init) = (rises(0x01), falls(0x04));
        self.control = value & 0x3f;
        if init {
            self.inits += 1;
            self.busy_until = None;
            self.ack_until = None;
        }
        // A busy printer does not look.
        if strobe && self.busy_until.is_none() {
            if let Some(speed) = self.speed_ns {
                self.printed.push(self.data());
                self.busy_until = Some(self.clock.0.get() + speed);
            }
        }
    }

    /// The level of the data lines.
    fn data(&self) -> u8 {
        if self.control & 0x20 != 0 {
            self.lines
        } else {
            self.latch
        }
    }
}

impl Backend for Chip {
    fn read(&mut self, at: Location, _: Width) -> u64 {
        self.clock.pass(ACCESS_NS);
        self.advance();
        u64::from(match at.offset {
            0 => self.data(),
            1 => self.status(),
            // Bits 6 and 7 read as 1, and so does DIR, which is write-only.
            _ => self.control | 0xe0,
        })
    }

    fn write(&mut self, at: Location, _: Width, value: u64) {
        self.clock.pass(ACCESS_NS);
        self.advance();
        match at.offset {
            0 => self.latch = value as u8,
            2 => self.write_control(value as u8),
            _ => {}
        }
    }
}
