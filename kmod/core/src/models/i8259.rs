// SPDX-License-Identifier: GPL-2.0
//! The pair of 8259A interrupt controllers of a PC, with the edge/level control registers of its chipset.
//!
//! On the path this is a *modelled* backend: the chipset gives it the guest's accesses to 20h-21h, A0h-A1h and
//! 4D0h-4D1h, and the vCPU asks it for interrupts. Capture reads through [`Backend`] like from hardware, and takes what
//! no access shows (request latches, in-service bits, priority) through [`Hidden`].
//!
//! Follows Intel's 8259A data sheet (231468), and for ELCR and the trigger mode the PIIX and ICH data sheets: ELCR
//! replaces ICW1.LTIM, which is ignored. The slave is wired to IR2; ICW3 is taken and has no effect, as in those
//! chipsets. Only the 8086 mode exists.
#![forbid(unsafe_code)]

use crate::devices::i8259 as regs;
use crate::iospace::{Location, Width};
use crate::replay::{Backend, Hidden, NotAccepted};

/// The master's input to which the slave is wired.
pub const CASCADE: u8 = 2;
/// Bits of ELCR1 that can be set: IRQ0 to IRQ2 are always edge-triggered.
pub const ELCR1_MASK: u8 = 0xf8;
/// Bits of ELCR2 that can be set: IRQ8 and IRQ13 are always edge-triggered.
pub const ELCR2_MASK: u8 = 0xde;

/// Which initialization command word the chip waits for at its odd port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Init {
    /// None: the odd port is the interrupt mask.
    Done,
    /// ICW2.
    Icw2,
    /// ICW3.
    Icw3,
    /// ICW4.
    Icw4,
}

/// One 8259A.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Chip {
    /// Requests latched by the edge-sense circuit.
    latch: u8,
    /// Level of the inputs as devices drive them.
    lines: u8,
    /// Inputs that are held high until they are acknowledged, see [`I8259Pair::pulse`].
    held: u8,
    /// Edge/level control: a set bit is level-triggered.
    elcr: u8,
    isr: u8,
    imr: u8,
    /// The input that has the lowest priority; the next one (modulo 8) has the highest.
    lowest: u8,
    /// Upper five bits of the vector (ICW2).
    base: u8,
    init: Init,
    /// ICW1.IC4 and ICW1.SNGL of the running initialization.
    needs_icw4: bool,
    single: bool,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    special_fully_nested: bool,
    special_mask: bool,
    read_isr: bool,
    poll: bool,
}

impl Chip {
    const fn new() -> Self {
        Self {
            latch: 0,
            lines: 0,
            held: 0,
            elcr: 0,
            isr: 0,
            imr: 0,
            lowest: 7,
            base: 0,
            init: Init::Done,
            needs_icw4: false,
            single: false,
            auto_eoi: false,
            rotate_on_auto_eoi: false,
            special_fully_nested: false,
            special_mask: false,
            read_isr: false,
            poll: false,
        }
    }

    /// Level of the inputs as the chip sees them.
    const fn inputs(&self) -> u8 {
        self.lines | self.held
    }

    /// The interrupt request register: latched edges, and the inputs themselves where level-triggered.
    const fn irr(&self) -> u8 {
        (self.latch & !self.elcr) | (self.inputs() & self.elcr)
    }

    /// Changes the levels of the inputs. A rising edge is latched; a request whose input falls before it is
    /// acknowledged is gone, which is where spurious interrupts come from.
    fn drive(&mut self, lines: u8, held: u8) {
        let before = self.inputs();
        self.lines = lines;
        self.held = held;
        let now = self.inputs();
        self.latch = (self.latch | (now & !before)) & now;
    }

    fn set_line(&mut self, bit: u8, level: bool) {
        let lines = if level {
            self.lines | bit
        } else {
            self.lines & !bit
        };
        let held = if level { self.held } else { self.held & !bit };
        self.drive(lines, held);
    }

    fn pulse(&mut self, bit: u8) {
        self.drive(self.lines & !bit, self.held & !bit);
        self.drive(self.lines, self.held | bit);
    }

    /// Position of an input in the present order of priorities: 0 is the highest.
    const fn rank(&self, input: u8) -> u8 {
        input.wrapping_sub(self.lowest).wrapping_sub(1) & 7
    }

    /// The input of highest priority in `bits`.
    fn highest(&self, bits: u8) -> Option<u8> {
        (0..8u8)
            .map(|rank| self.lowest.wrapping_add(1).wrapping_add(rank) & 7)
            .find(|&input| bits & (1 << input) != 0)
    }

    /// The request that the priority resolver puts through to INT.
    fn request(&self) -> Option<u8> {
        let input = self.highest(self.irr() & !self.imr)?;
        // Special mask mode: a level that is masked does not hold others back although it is in service.
        let blocking = if self.special_mask {
            self.isr & !self.imr
        } else {
            self.isr
        };
        match self.highest(blocking) {
            None => Some(input),
            Some(served) if self.rank(input) < self.rank(served) => Some(input),
            // Special fully nested mode: further requests of the slave in service come through.
            Some(served) if self.special_fully_nested && input == served && input == CASCADE => {
                Some(input)
            }
            Some(_) => None,
        }
    }

    /// What the INTA sequence (or a poll) does for `input`.
    fn acknowledge(&mut self, input: u8) {
        let bit = 1 << (input & 7);
        self.latch &= !bit;
        // The held line of a pulse has done its duty. Its fall is not the loss of a request.
        self.held &= !bit;
        if self.auto_eoi {
            if self.rotate_on_auto_eoi {
                self.lowest = input & 7;
            }
        } else {
            self.isr |= bit;
        }
    }

    /// The bits in service that a non-specific EOI looks at: not those masked in special mask mode.
    const fn eoi_candidates(&self) -> u8 {
        if self.special_mask {
            self.isr & !self.imr
        } else {
            self.isr
        }
    }

    fn write_even(&mut self, value: u8) {
        if value & 0x10 != 0 {
            self.write_icw1(value);
        } else if value & 0x08 != 0 {
            self.write_ocw3(value);
        } else {
            self.write_ocw2(value);
        }
    }

    fn write_icw1(&mut self, value: u8) {
        // The edge-sense circuit is reset: an input that is high now must fall and rise again. The mask is cleared,
        // IR7 has the lowest priority, special mask mode is off, the status read is IRR. What the vector is until ICW2
        // comes is not said; here it is that of a fresh chip, so that the log needs nothing from before ICW1.
        *self = Self {
            lines: self.lines,
            elcr: self.elcr,
            init: Init::Icw2,
            needs_icw4: value & 0x01 != 0,
            single: value & 0x02 != 0,
            ..Self::new()
        };
    }

    fn write_ocw2(&mut self, value: u8) {
        let level = value & 7;
        match value >> 5 {
            // Rotate in automatic EOI mode: clear, set.
            0b000 => self.rotate_on_auto_eoi = false,
            0b100 => self.rotate_on_auto_eoi = true,
            // Non-specific EOI, without and with rotation.
            0b001 | 0b101 => {
                if let Some(served) = self.highest(self.eoi_candidates()) {
                    self.isr &= !(1 << served);
                    if value >> 5 == 0b101 {
                        self.lowest = served;
                    }
                }
            }
            // Specific EOI, without and with rotation.
            0b011 => self.isr &= !(1 << level),
            0b111 => {
                self.isr &= !(1 << level);
                self.lowest = level;
            }
            // Set priority.
            0b110 => self.lowest = level,
            // No operation.
            _ => {}
        }
    }

    fn write_ocw3(&mut self, value: u8) {
        if value & 0x40 != 0 {
            self.special_mask = value & 0x20 != 0;
        }
        if value & 0x02 != 0 {
            self.read_isr = value & 0x01 != 0;
        }
        if value & 0x04 != 0 {
            self.poll = true;
        }
    }

    fn write_odd(&mut self, value: u8) {
        let after_icw3 = if self.needs_icw4 {
            Init::Icw4
        } else {
            Init::Done
        };
        match self.init {
            Init::Done => self.imr = value,
            Init::Icw2 => {
                self.base = value & 0xf8;
                self.init = if self.single { after_icw3 } else { Init::Icw3 };
            }
            Init::Icw3 => self.init = after_icw3,
            Init::Icw4 => {
                self.special_fully_nested = value & 0x10 != 0;
                self.auto_eoi = value & 0x02 != 0;
                self.init = Init::Done;
            }
        }
    }

    fn read(&mut self, odd: bool) -> u8 {
        if self.poll {
            self.poll = false;
            return match self.request() {
                Some(input) => {
                    self.acknowledge(input);
                    0x80 | input
                }
                None => 0,
            };
        }
        match (odd, self.read_isr) {
            (true, _) => self.imr,
            (false, true) => self.isr,
            (false, false) => self.irr(),
        }
    }
}

/// The 8259A pair and its ELCR: 16 inputs, of which IRQ2 is the cascade.
///
/// The caller serializes accesses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct I8259Pair {
    master: Chip,
    slave: Chip,
}

impl Default for I8259Pair {
    fn default() -> Self {
        Self::new()
    }
}

impl I8259Pair {
    /// The pair after power-on. Its vectors mean nothing before software has initialized it.
    pub const fn new() -> Self {
        Self {
            master: Chip::new(),
            slave: Chip::new(),
        }
    }

    fn chip(&mut self, irq: u8) -> (&mut Chip, u8) {
        let bit = 1 << (irq & 7);
        if irq & 8 == 0 {
            (&mut self.master, bit)
        } else {
            (&mut self.slave, bit)
        }
    }

    /// Carries the slave's INT to the master's IR2.
    fn cascade(&mut self) {
        let level = self.slave.request().is_some();
        self.master.set_line(1 << CASCADE, level);
    }

    /// As [`I8259Pair::cascade`] after the slave was acknowledged: its INT falls with that, so a request that is still
    /// there makes a new edge.
    fn cascade_again(&mut self) {
        self.master.set_line(1 << CASCADE, false);
        self.cascade();
    }

    /// Drives ISA interrupt `irq` (0 to 15; higher bits are ignored; 2 is the cascade and is ignored). Low also ends a
    /// [`I8259Pair::pulse`] that has not been acknowledged.
    pub fn set_line(&mut self, irq: u8, level: bool) {
        if irq & 15 == CASCADE {
            return;
        }
        let (chip, bit) = self.chip(irq);
        chip.set_line(bit, level);
        self.cascade();
    }

    /// Makes one edge on `irq`, for a source of which only edges are seen (a forwarded interrupt of the host, a tick):
    /// the input falls if it was high, rises, and is held until it is acknowledged. A level-triggered input sees one
    /// interrupt.
    pub fn pulse(&mut self, irq: u8) {
        if irq & 15 == CASCADE {
            return;
        }
        let (chip, bit) = self.chip(irq);
        chip.pulse(bit);
        self.cascade();
    }

    /// Whether `irq` is requested and not yet acknowledged (its IRR bit).
    pub fn requested(&self, irq: u8) -> bool {
        let chip = if irq & 8 == 0 {
            &self.master
        } else {
            &self.slave
        };
        chip.irr() & (1 << (irq & 7)) != 0
    }

    /// Whether `irq` is masked in its chip (its IMR bit; 0 to 15, higher bits are ignored).
    pub const fn masked(&self, irq: u8) -> bool {
        let chip = if irq & 8 == 0 {
            &self.master
        } else {
            &self.slave
        };
        chip.imr & (1 << (irq & 7)) != 0
    }

    /// The INTR output of the master.
    pub fn pending(&self) -> bool {
        self.master.request().is_some()
    }

    /// The INTA sequence: acknowledges the request of highest priority and returns its vector. Without one (it went away
    /// between INTR and INTA) the vector is the spurious one of IR7, and nothing is in service.
    pub fn acknowledge(&mut self) -> u8 {
        let Some(input) = self.master.request() else {
            return self.master.base | 7;
        };
        self.master.acknowledge(input);
        if input != CASCADE {
            return self.master.base | input;
        }
        let vector = match self.slave.request() {
            Some(input) => {
                self.slave.acknowledge(input);
                self.slave.base | input
            }
            None => self.slave.base | 7,
        };
        self.cascade_again();
        vector
    }

    /// Reads the byte at `at`: range 0 is 20h-21h, range 1 A0h-A1h, range 2 4D0h-4D1h. All ones elsewhere.
    pub fn read(&mut self, at: Location) -> u8 {
        match (at.range, at.offset) {
            (0, offset @ 0..=1) => self.master.read(offset == 1),
            (1, offset @ 0..=1) => {
                let poll = self.slave.poll;
                let value = self.slave.read(offset == 1);
                if poll && value & 0x80 != 0 {
                    self.cascade_again();
                }
                value
            }
            (2, 0) => self.master.elcr,
            (2, 1) => self.slave.elcr,
            _ => 0xff,
        }
    }

    /// Whether the next read of one of the two is a poll, which acknowledges an interrupt.
    pub const fn is_polled(&self) -> bool {
        self.master.poll || self.slave.poll
    }

    /// Writes the byte at `at`; see [`I8259Pair::read`] for the ranges. Ignored elsewhere.
    pub fn write(&mut self, at: Location, value: u8) {
        match (at.range, at.offset) {
            (0, 0) => self.master.write_even(value),
            (0, 1) => self.master.write_odd(value),
            (1, 0) => self.slave.write_even(value),
            (1, 1) => self.slave.write_odd(value),
            (2, 0) => self.master.elcr = value & ELCR1_MASK,
            (2, 1) => self.slave.elcr = value & ELCR2_MASK,
            _ => return,
        }
        self.cascade();
    }
}

impl Backend for I8259Pair {
    fn read(&mut self, at: Location, width: Width) -> u64 {
        crate::models::read_bytes(at, width, |at| I8259Pair::read(self, at))
    }

    fn write(&mut self, at: Location, width: Width, value: u64) {
        crate::models::write_bytes(at, width, value, |at, byte| {
            I8259Pair::write(self, at, byte)
        });
    }

    fn hidden(&mut self) -> Option<&mut dyn Hidden> {
        Some(self)
    }
}

impl Hidden for I8259Pair {
    fn get(&self, register: u16) -> u64 {
        match register {
            regs::MASTER_INPUTS => inputs(&self.master),
            regs::MASTER_IRR => self.master.latch.into(),
            regs::MASTER_ISR => self.master.isr.into(),
            regs::MASTER_LOWEST => self.master.lowest.into(),
            regs::SLAVE_INPUTS => inputs(&self.slave),
            regs::SLAVE_IRR => self.slave.latch.into(),
            regs::SLAVE_ISR => self.slave.isr.into(),
            regs::SLAVE_LOWEST => self.slave.lowest.into(),
            _ => 0,
        }
    }

    fn accepts(&self, register: u16, value: u64) -> bool {
        match register {
            regs::MASTER_INPUTS | regs::SLAVE_INPUTS => value <= 0xffff,
            regs::MASTER_IRR | regs::MASTER_ISR | regs::SLAVE_IRR | regs::SLAVE_ISR => {
                value <= 0xff
            }
            regs::MASTER_LOWEST | regs::SLAVE_LOWEST => value <= 7,
            _ => false,
        }
    }

    fn set(&mut self, register: u16, value: u64) -> Result<(), NotAccepted> {
        if !self.accepts(register, value) {
            return Err(NotAccepted);
        }
        let [byte, high, ..] = value.to_le_bytes();
        match register {
            regs::MASTER_INPUTS => (self.master.lines, self.master.held) = (byte, high),
            regs::MASTER_IRR => self.master.latch = byte,
            regs::MASTER_ISR => self.master.isr = byte,
            regs::MASTER_LOWEST => self.master.lowest = byte & 7,
            regs::SLAVE_INPUTS => (self.slave.lines, self.slave.held) = (byte, high),
            regs::SLAVE_IRR => self.slave.latch = byte,
            regs::SLAVE_ISR => self.slave.isr = byte,
            // `accepts` has left only this one.
            _ => self.slave.lowest = byte & 7,
        }
        Ok(())
    }
}

/// The inputs as one number: driven levels in the low byte, held pulses above.
fn inputs(chip: &Chip) -> u64 {
    u64::from(chip.lines) | u64::from(chip.held) << 8
}

#[cfg(test)]
mod tests;
