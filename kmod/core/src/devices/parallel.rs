// SPDX-License-Identifier: GPL-2.0
//! Kind "parallel": a PC's parallel port. One range of 3 ports.
//!
//! On the path: the guest has the port itself. Only the control register exits, and the data register while the port is
//! turned to input, so a driver's waiting for the printer, which is most of what it does, costs nothing. The recorder below
//! keeps the control register; [`capture`](Recorder::capture) waits until no byte is between guest and printer, and reads
//! the data lines; [`plan`] brings another port there. Follows National's PC87332 data sheet (chapter 4, "Parallel Port") in
//! its compatible and extended (PS/2) modes, and IEEE 1284-1994 for the handshake.
//!
//! The EPP registers at offsets 3 to 7 are not part of the kind: every access to them makes a bus cycle whose half is in the
//! peripheral, and a port at 3BCh does not have them. A guest that looks for them finds nothing, as on a port without EPP.
//!
//! Classified by port, direction, and CTR.DIR, which decides whether the data register can be read back.
#![forbid(unsafe_code)]

mod capture;
mod plan;
#[cfg(test)]
mod testbed;
#[cfg(test)]
mod tests;

pub use plan::{plan, reset};

use super::register::{Access as A, Fate as F, Register};
use crate::iospace::{Access, Direction};
use crate::record::{each_byte, Log};

/// Name of the kind.
pub const NAME: &str = "parallel";
/// Version of the state's layout.
pub const STATE_VERSION: u32 = 1;
/// Lengths of the kind's ranges in bytes.
pub const RANGES: &[u64] = &[3];

/// Data register.
pub const DTR: u16 = 1;
/// Status register.
pub const STR: u16 = 2;
/// Control register.
pub const CTR: u16 = 3;

/// The register table.
#[rustfmt::skip]
pub const REGISTERS: &[Register] = &[
    Register::byte(DTR, "DTR", (0, 0), A::ReadWrite, F::Recorded, "read back while it drives the lines; recorded while the port is turned to input, since reads return the lines then"),
    Register::byte(STR, "STR", (0, 1), A::ReadSideEffect, F::Irrelevant, "the lines of the peer's printer. Capture waits for the source's to have acknowledged what it was sent, if the guest is to be told by interrupt; EPP time-out and interrupt flag (bits 0 and 2) are left behind"),
    Register::byte(CTR, "CTR", (0, 2), A::ReadWrite, F::Recorded, "the order of its writes is the handshake; reads return the lines, and not DIR on every port. A strobe is not carried: capture waits for its end, so that the printer that saw its begin has the byte and no other"),
];

/// CTR.STB: a byte is on the lines.
pub const CTR_STROBE: u64 = 0x01;
/// CTR.INIT: 0 resets the printer.
const CTR_INIT: u64 = 0x04;
/// CTR.SLIN: the printer is selected.
const CTR_SELECT: u64 = 0x08;
/// CTR.IRQE: the end of ACK interrupts.
const CTR_IRQ: u64 = 0x10;
/// CTR.DIR: the data lines are inputs.
pub const CTR_INPUT: u64 = 0x20;
/// Bits of CTR that exist.
const CTR_MASK: u64 = 0x3f;
/// Bits of CTR that every port reads back.
const CTR_READABLE: u64 = 0x1f;
/// CTR as firmware leaves it, which is what the kind's [`reset`] does: nothing is strobed, the printer is selected and *not*
/// reset, since it may still print what it was sent.
const CTR_IDLE: u64 = CTR_INIT | CTR_SELECT;

/// STR: not busy and not acknowledging. BUSY reads inverted, ACK is low when active.
const STR_REST: u64 = 0xc0;

/// Bound of the log: CTR and DTR, each at most once.
pub const LOG_BOUND: usize = 2;

/// The recorder of a parallel port.
#[derive(Debug, Clone, Copy, Default)]
pub struct Recorder {
    log: Log<LOG_BOUND>,
    /// A byte was strobed out, and the printer has not been seen at rest since.
    sent: bool,
}

impl Recorder {
    /// A recorder for a port that is in the state of [`reset`].
    pub const fn new() -> Self {
        Self {
            log: Log::new(),
            sent: false,
        }
    }

    /// The log.
    pub const fn log(&self) -> &Log<LOG_BOUND> {
        &self.log
    }

    /// CTR as it was last written.
    fn control(&self) -> u64 {
        let last = self.log.last_of(CTR);
        last.map_or(CTR_IDLE, |entry| entry.access.value)
    }

    /// Offsets of `range` that must exit to the recorder now: CTR always, DTR while it cannot be read back. Ask again after
    /// each access that was recorded.
    pub fn traps(&self, range: u8) -> u64 {
        match range {
            0 if self.control() & CTR_INPUT != 0 => 0b101,
            0 => 0b100,
            _ => 0,
        }
    }

    fn after_byte(&mut self, access: Access) {
        if access.direction == Direction::Read || access.at.range != 0 {
            return;
        }
        let input = self.control() & CTR_INPUT != 0;
        match access.at.offset {
            0 if input => self.log.replace(DTR, access),
            2 => {
                let value = access.value & CTR_MASK;
                self.sent |= value & CTR_STROBE != 0;
                self.log.replace(CTR, Access { value, ..access });
                if value & CTR_INPUT == 0 {
                    // It can be read again.
                    self.log.drop_where(|entry| entry.register == DTR);
                }
            }
            _ => {}
        }
    }
}

impl crate::record::Recorder for Recorder {
    fn after(&mut self, access: &Access) {
        each_byte(access, |byte| self.after_byte(byte));
    }
}
