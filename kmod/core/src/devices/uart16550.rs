// SPDX-License-Identifier: GPL-2.0
//! Kind "serial": a 16550A UART. One range of 8 ports.
//!
//! On the path: the guest has the UART itself. Only LCR and FCR exit, and the divisor latch while LCR.DLAB shows it, so
//! sending and receiving cost nothing. The recorder below keeps what can't be read back; [`capture`](Recorder::capture)
//! takes the rest from the UART; [`plan`] brings another one there. Follows National's PC16550D data sheet; section
//! numbers in comments are its.
//!
//! Classified by port, direction, and LCR.DLAB, which decides whether offsets 0 and 1 are the divisor latch.
#![forbid(unsafe_code)]

mod capture;
mod plan;
#[cfg(test)]
mod testbed;
#[cfg(test)]
mod tests;

pub use plan::{plan, reset};

use super::field::Field;
use super::register::{Access as A, Fate as F, Register, Shown};
use crate::iospace::{Access, Direction};
use crate::record::{each_byte, Log};
use capture::Taken;

/// Name of the kind.
pub const NAME: &str = "serial";
/// Version of the state's layout.
pub const STATE_VERSION: u32 = 1;
/// Lengths of the kind's ranges in bytes.
pub const RANGES: &[u64] = &[8];

/// Receiver buffer.
pub const RBR: u16 = 1;
/// Transmitter holding register.
pub const THR: u16 = 2;
/// Divisor latch, low byte.
pub const DLL: u16 = 3;
/// Divisor latch, high byte.
pub const DLM: u16 = 4;
/// Interrupt enable register.
pub const IER: u16 = 5;
/// Interrupt identification register.
pub const IIR: u16 = 6;
/// FIFO control register.
pub const FCR: u16 = 7;
/// Line control register.
pub const LCR: u16 = 8;
/// MODEM control register.
pub const MCR: u16 = 9;
/// Line status register.
pub const LSR: u16 = 10;
/// MODEM status register.
pub const MSR: u16 = 11;
/// Scratch register.
pub const SCR: u16 = 12;
/// A character that waits in the receiver: the character, and in bits 8 to 15 its LSR error bits.
pub const RECEIVED: u16 = 13;

/// Offsets 0 and 1 are the divisor latch.
const LATCH: Shown = Shown::While {
    register: LCR,
    mask: LCR_DLAB,
    value: LCR_DLAB,
};
/// They are not.
const NO_LATCH: Shown = Shown::While {
    register: LCR,
    mask: LCR_DLAB,
    value: 0,
};

const IER_FIELDS: &[Field] = &[
    Field::flag("ERBFI", 0),
    Field::flag("ETBEI", 1),
    Field::flag("ELSI", 2),
    Field::flag("EDSSI", 3),
];
#[rustfmt::skip]
const IIR_FIELDS: &[Field] = &[
    Field::names("pending", 0, 4, &[
        "MODEM status", "none", "THR empty", "", "received data", "", "line status", "", "", "", "", "", "character timeout", "", "", "",
    ]),
    Field::names("FIFOs", 6, 2, &["off", "", "", "on"]),
];
const FCR_FIELDS: &[Field] = &[
    Field::bit("FIFOs", 0),
    Field::flag("RCVR reset", 1),
    Field::flag("XMIT reset", 2),
    Field::flag("DMA mode", 3),
    Field::names("trigger", 6, 2, &["1", "4", "8", "14"]),
];
/// Word length, parity and stop bits as people write them: how many stop bits there are depends on the word's length.
const LCR_FIELDS: &[Field] = &[
    Field::names("", 0, 2, &["5", "6", "7", "8"]),
    Field::names("", 3, 3, &["n", "o", "n", "e", "n", "m", "n", "s"]),
    Field::names("", 0, 3, &["1", "1", "1", "1", "1.5", "2", "2", "2"]),
    Field::flag("break", 6),
    Field::bit("DLAB", 7),
];
const MCR_FIELDS: &[Field] = &[
    Field::flag("DTR", 0),
    Field::flag("RTS", 1),
    Field::flag("OUT1", 2),
    Field::flag("OUT2", 3),
    Field::flag("LOOP", 4),
];
const LSR_FIELDS: &[Field] = &[
    Field::flag("DR", 0),
    Field::flag("OE", 1),
    Field::flag("PE", 2),
    Field::flag("FE", 3),
    Field::flag("BI", 4),
    Field::flag("THRE", 5),
    Field::flag("TEMT", 6),
    Field::flag("error in FIFO", 7),
];
const MSR_FIELDS: &[Field] = &[
    Field::flag("DCTS", 0),
    Field::flag("DDSR", 1),
    Field::flag("TERI", 2),
    Field::flag("DDCD", 3),
    Field::flag("CTS", 4),
    Field::flag("DSR", 5),
    Field::flag("RI", 6),
    Field::flag("DCD", 7),
];
const RECEIVED_FIELDS: &[Field] = &[
    Field::hex("character", 0, 8),
    Field::flag("OE", 9),
    Field::flag("PE", 10),
    Field::flag("FE", 11),
    Field::flag("BI", 12),
];

/// The register table.
#[rustfmt::skip]
pub const REGISTERS: &[Register] = &[
    Register::byte(RBR, "RBR", (0, 0), A::ReadSideEffect, F::Irrelevant, "what waits in it is carried as received characters"),
    Register::byte(THR, "THR", (0, 0), A::WriteOnly, F::Irrelevant, "what waits in it leaves at the source before capture"),
    Register::byte(DLL, "DLL", (0, 0), A::ReadWrite, F::Recorded, "recorded, since reading it needs DLAB; read back if the guest never wrote it").shown(LATCH),
    Register::byte(DLM, "DLM", (0, 1), A::ReadWrite, F::Recorded, "as DLL").shown(LATCH),
    Register::byte(IER, "IER", (0, 1), A::ReadWrite, F::ReadBack, "readable").shown(NO_LATCH).fields(IER_FIELDS),
    Register::byte(IIR, "IIR", (0, 2), A::ReadSideEffect, F::Inferred, "tells whether the guest still has to be told that THR is empty").fields(IIR_FIELDS),
    Register::byte(FCR, "FCR", (0, 2), A::WriteOnly, F::Recorded, "reads return IIR").fields(FCR_FIELDS),
    Register::byte(LCR, "LCR", (0, 3), A::ReadWrite, F::Recorded, "exits anyway, since DLAB decides what exits; read back if the guest never wrote it").fields(LCR_FIELDS),
    Register::byte(MCR, "MCR", (0, 4), A::ReadWrite, F::ReadBack, "readable").fields(MCR_FIELDS),
    Register::byte(LSR, "LSR", (0, 5), A::ReadSideEffect, F::Irrelevant, "error bits are carried with their characters; the rest follows").fields(LSR_FIELDS),
    Register::byte(MSR, "MSR", (0, 6), A::ReadSideEffect, F::Inferred, "the lines are the peer's; changes that the guest has not seen are carried, and the difference is a change").fields(MSR_FIELDS),
    Register::byte(SCR, "SCR", (0, 7), A::ReadWrite, F::ReadBack, "readable"),
    Register::hidden(RECEIVED, "received character", "read out of the FIFO at capture; put back through loopback. BI is made again, PE, FE and OE cannot be").fields(RECEIVED_FIELDS),
];

/// Depth of the receiver FIFO.
pub const FIFO: usize = 16;

/// LCR.DLAB: offsets 0 and 1 are the divisor latch.
pub const LCR_DLAB: u64 = 0x80;
/// LCR.SB: send a break.
const LCR_SET_BREAK: u64 = 0x40;
/// 8 data bits, no parity, 1 stop bit.
const LCR_8N1: u64 = 0x03;
/// IER.ETBEI: interrupt when THR is empty.
const IER_ETBEI: u64 = 0x02;
/// Bits of IER that exist.
const IER_MASK: u64 = 0x0f;
/// MCR.RTS.
const MCR_RTS: u64 = 0x02;
/// MCR.LOOP.
const MCR_LOOP: u64 = 0x10;
/// Bits of MCR that exist.
const MCR_MASK: u64 = 0x1f;
/// FCR: FIFOs on.
const FCR_ENABLE: u64 = 0x01;
/// FCR: clear the receiver FIFO; clears itself.
const FCR_CLEAR_RX: u64 = 0x02;
/// FCR: clear the transmitter FIFO; clears itself.
const FCR_CLEAR_TX: u64 = 0x04;
/// Bits of FCR that last: enable, DMA mode, trigger level.
const FCR_LASTING: u64 = 0xc9;
/// LSR.DR: a character waits.
const LSR_DR: u64 = 0x01;
/// LSR.BI: the character is a break.
const LSR_BI: u64 = 0x10;
/// LSR.OE, PE, FE and BI.
const LSR_ERRORS: u64 = 0x1e;
/// LSR.THRE: THR is empty.
const LSR_THRE: u64 = 0x20;
/// LSR.TEMT: THR and the shift register are empty.
const LSR_TEMT: u64 = 0x40;

/// Bound of the log: DLL, DLM, FCR and LCR, each at most once.
pub const LOG_BOUND: usize = 4;

/// The recorder of a UART.
#[derive(Debug, Clone, Copy, Default)]
pub struct Recorder {
    log: Log<LOG_BOUND>,
    taken: Taken,
}

impl Recorder {
    /// A recorder for a UART that is in the state of [`reset`].
    pub const fn new() -> Self {
        Self {
            log: Log::new(),
            taken: Taken::NOTHING,
        }
    }

    /// The log.
    pub const fn log(&self) -> &Log<LOG_BOUND> {
        &self.log
    }

    fn dlab(&self) -> bool {
        self.log
            .last_of(LCR)
            .is_some_and(|entry| entry.access.value & LCR_DLAB != 0)
    }

    /// Offsets of `range` that must exit to the recorder now: FCR (and IIR with it) and LCR always, the divisor latch
    /// while it is there. Ask again after each access that was recorded.
    pub fn traps(&self, range: u8) -> u64 {
        match range {
            0 if self.dlab() => 0b1111,
            0 => 0b1100,
            _ => 0,
        }
    }

    fn after_byte(&mut self, access: Access) {
        if access.direction == Direction::Read || access.at.range != 0 {
            return;
        }
        match access.at.offset {
            0 if self.dlab() => self.log.replace(DLL, access),
            1 if self.dlab() => self.log.replace(DLM, access),
            2 => {
                // The other bits are not programmed unless FCR0 is set (8.4), and two bits clear themselves.
                let value = if access.value & FCR_ENABLE != 0 {
                    access.value & FCR_LASTING
                } else {
                    0
                };
                self.log.replace(FCR, Access { value, ..access });
                // What capture took is back, or was given up.
                if access.value & FCR_CLEAR_RX != 0 {
                    self.taken = Taken::NOTHING;
                }
            }
            3 => self.log.replace(LCR, access),
            _ => {}
        }
    }
}

impl crate::record::Recorder for Recorder {
    fn after(&mut self, access: &Access) {
        each_byte(access, |byte| self.after_byte(byte));
    }

    fn classify(&self, access: &Access) -> Option<u16> {
        Some(match (access.at.offset, access.direction) {
            (0, _) if self.dlab() => DLL,
            (1, _) if self.dlab() => DLM,
            (0, Direction::Read) => RBR,
            (0, Direction::Write) => THR,
            (1, _) => IER,
            (2, Direction::Read) => IIR,
            (2, Direction::Write) => FCR,
            _ => return None,
        })
    }
}
