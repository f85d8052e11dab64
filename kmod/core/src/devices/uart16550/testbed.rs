// SPDX-License-Identifier: GPL-2.0
//! A 16550A with a line, for the tests: both FIFOs, loopback, and characters that take their time. Written from the
//! PC16550D data sheet, without a look at capture or plan.

use crate::iospace::{Location, Width};
use crate::replay::{Backend, Timing};
use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::vec::Vec;

/// Time that a test shares between its UARTs.
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

/// How long an access takes.
pub(super) const ACCESS_NS: u64 = 1_000;

/// The UART.
#[derive(Debug, Clone)]
pub(super) struct Chip {
    clock: Clock,
    ier: u8,
    fcr: u8,
    pub(super) lcr: u8,
    mcr: u8,
    scr: u8,
    divisor: u16,
    /// What waits to be sent, and the character on its way with the time at which it is out.
    transmit: VecDeque<u8>,
    shift: Option<(u8, u64)>,
    /// Characters with their error bits.
    receive: VecDeque<(u8, u8)>,
    overrun: bool,
    thre_interrupt: bool,
    deltas: u8,
    /// Levels of CTS, DSR, RI and DCD on the connector, as MSR bits 4 to 7.
    pins: u8,
    /// When the break that is being sent through loopback is long enough to be received.
    break_at: Option<u64>,
    /// What has gone out on the line.
    pub(super) sent: Vec<u8>,
    /// Whether the interrupt was ever asserted at the bus, which OUT2 gates on a PC.
    pub(super) interrupted: bool,
}

impl Chip {
    pub(super) fn new(clock: &Clock) -> Self {
        Self {
            clock: clock.clone(),
            ier: 0,
            fcr: 0,
            lcr: 0,
            mcr: 0,
            scr: 0,
            divisor: 1,
            transmit: VecDeque::new(),
            shift: None,
            receive: VecDeque::new(),
            overrun: false,
            thre_interrupt: false,
            deltas: 0,
            pins: 0,
            break_at: None,
            sent: Vec::new(),
            interrupted: false,
        }
    }

    /// The same chip on another clock, which shows the same time.
    pub(super) fn on(&self, clock: &Clock) -> Self {
        Self {
            clock: clock.clone(),
            ..self.clone()
        }
    }

    fn fifo(&self) -> bool {
        self.fcr & 1 != 0
    }

    fn depth(&self) -> usize {
        if self.fifo() {
            16
        } else {
            1
        }
    }

    pub(super) fn looped(&self) -> bool {
        self.mcr & 0x10 != 0
    }

    /// Start bit, data, parity, stop bits, at 16 clocks of 1.8432 MHz and the divisor each.
    fn character_ns(&self) -> u64 {
        let data = 5 + u64::from(self.lcr & 3);
        let parity = u64::from(self.lcr >> 3 & 1);
        let stop = 1 + u64::from(self.lcr >> 2 & 1);
        let divisor = u64::from(self.divisor.max(1));
        (1 + data + parity + stop) * divisor * 16 * 1_000_000 / 1843
    }

    fn levels(&self) -> u8 {
        if !self.looped() {
            return self.pins;
        }
        (self.mcr >> 1 & 1) << 4
            | (self.mcr & 1) << 5
            | (self.mcr >> 2 & 1) << 6
            | (self.mcr >> 3 & 1) << 7
    }

    fn with_levels(&mut self, change: impl FnOnce(&mut Self)) {
        let before = self.levels();
        change(self);
        let changed = before ^ self.levels();
        self.deltas |= changed >> 4 & 0b1011;
        if before & changed & 0x40 != 0 {
            self.deltas |= 4;
        }
    }

    pub(super) fn set_pins(&mut self, pins: u8) {
        self.with_levels(|chip| chip.pins = pins);
    }

    pub(super) fn pins(&self) -> u8 {
        self.pins
    }

    pub(super) fn overran(&self) -> bool {
        self.overrun
    }

    /// A character arrives from the line.
    pub(super) fn arrives(&mut self, character: u8, errors: u8) {
        self.advance();
        if !self.looped() {
            self.take_in(character, errors);
        }
    }

    /// How many more characters can arrive without an overrun.
    pub(super) fn room(&self) -> usize {
        self.depth() - self.receive.len()
    }

    fn take_in(&mut self, character: u8, errors: u8) {
        if self.receive.len() < self.depth() {
            self.receive.push_back((character, errors));
        } else {
            self.overrun = true;
        }
    }

    /// Lets the transmitter catch up with the clock.
    pub(super) fn advance(&mut self) {
        let now = self.clock.0.get();
        if self.break_at.is_some_and(|at| at <= now) {
            self.break_at = None;
            self.take_in(0, 0x18);
        }
        while let Some((character, at)) = self.shift.filter(|&(_, at)| at <= now) {
            self.shift = None;
            if self.looped() {
                self.take_in(character, 0);
            } else {
                self.sent.push(character);
            }
            self.start(at);
        }
        self.interrupted |= self.identification() & 1 == 0 && self.mcr & 0x18 == 0x08;
    }

    fn start(&mut self, at: u64) {
        if self.shift.is_none() {
            if let Some(next) = self.transmit.pop_front() {
                self.shift = Some((next, at + self.character_ns()));
                if self.transmit.is_empty() {
                    self.thre_interrupt = true;
                }
            }
        }
    }

    fn line_status(&self) -> u8 {
        let errors = self.receive.front().map_or(0, |&(_, errors)| errors);
        let thre = self.transmit.is_empty();
        u8::from(!self.receive.is_empty())
            | u8::from(self.overrun) << 1
            | errors
            | u8::from(thre) << 5
            | u8::from(thre && self.shift.is_none()) << 6
    }

    fn identification(&self) -> u8 {
        let trigger = [1, 4, 8, 14][usize::from(self.fcr >> 6)];
        let fifo = if self.fifo() { 0xc0 } else { 0 };
        let source = if self.ier & 4 != 0 && self.line_status() & 0x1e != 0 {
            0x06
        } else if self.ier & 1 != 0 && !self.receive.is_empty() {
            // A FIFO below its trigger level: the character time-out, without its wait.
            if self.fifo() && self.receive.len() < trigger {
                0x0c
            } else {
                0x04
            }
        } else if self.ier & 2 != 0 && self.thre_interrupt {
            0x02
        } else if self.ier & 8 != 0 && self.deltas != 0 {
            0x00
        } else {
            0x01
        };
        source | fifo
    }

    fn read_register(&mut self, offset: u64) -> u8 {
        self.advance();
        match (offset, self.lcr & 0x80 != 0) {
            (0, true) => self.divisor as u8,
            (1, true) => (self.divisor >> 8) as u8,
            (0, false) => self
                .receive
                .pop_front()
                .map_or(0, |(character, _)| character),
            (1, false) => self.ier,
            (2, _) => {
                let value = self.identification();
                if value & 0x0f == 0x02 {
                    self.thre_interrupt = false;
                }
                value
            }
            (3, _) => self.lcr,
            (4, _) => self.mcr,
            (5, _) => {
                let value = self.line_status();
                self.overrun = false;
                if let Some((_, errors)) = self.receive.front_mut() {
                    *errors = 0;
                }
                value
            }
            (6, _) => self.levels() | std::mem::take(&mut self.deltas),
            (7, _) => self.scr,
            _ => 0xff,
        }
    }

    fn write_register(&mut self, offset: u64, value: u8) {
        self.advance();
        let now = self.clock.0.get();
        match (offset, self.lcr & 0x80 != 0) {
            (0, true) => self.divisor = self.divisor & 0xff00 | u16::from(value),
            (1, true) => self.divisor = self.divisor & 0x00ff | u16::from(value) << 8,
            (0, false) => {
                self.thre_interrupt = false;
                if self.transmit.len() < self.depth() {
                    self.transmit.push_back(value);
                }
                self.start(now);
            }
            (1, false) => {
                if value & !self.ier & 2 != 0 && self.transmit.is_empty() {
                    self.thre_interrupt = true;
                }
                self.ier = value & 0x0f;
            }
            (2, _) => {
                if (value ^ self.fcr) & 1 != 0 || value & 2 != 0 {
                    self.receive.clear();
                }
                if (value ^ self.fcr) & 1 != 0 || value & 4 != 0 {
                    if !self.transmit.is_empty() {
                        self.thre_interrupt = true;
                    }
                    self.transmit.clear();
                }
                self.fcr = if value & 1 != 0 { value & 0xc9 } else { 0 };
            }
            (3, _) => {
                let break_starts = value & !self.lcr & 0x40 != 0;
                self.lcr = value;
                if value & 0x40 == 0 {
                    self.break_at = None;
                } else if break_starts && self.looped() {
                    self.break_at = Some(now + self.character_ns());
                }
            }
            (4, _) => self.with_levels(|chip| chip.mcr = value & 0x1f),
            (7, _) => self.scr = value,
            _ => {}
        }
        self.advance();
    }
}

impl Backend for Chip {
    fn read(&mut self, at: Location, width: Width) -> u64 {
        assert_eq!((at.range, width), (0, Width::W1));
        self.clock.pass(ACCESS_NS);
        self.read_register(at.offset).into()
    }

    fn write(&mut self, at: Location, width: Width, value: u64) {
        assert_eq!((at.range, width), (0, Width::W1));
        self.clock.pass(ACCESS_NS);
        self.write_register(at.offset, value as u8);
    }
}
