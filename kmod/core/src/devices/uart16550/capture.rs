// SPDX-License-Identifier: GPL-2.0
//! Capture of a UART: it comes to rest, and what waits in it is taken out.
//!
//! A UART can't be read without changing it: characters leave the FIFO, status bits clear. So what is taken is also
//! kept in the recorder, and a capture that is repeated returns it again. **After a capture, execute the plan of its
//! newest records on this UART before the guest runs on**, or let the device go: the same plan that restores the peer
//! puts everything back here. The plan's clearing of the receiver FIFO is what makes the recorder forget.
#![forbid(unsafe_code)]

use super::super::error::CaptureError;
use super::super::register::find;
use super::super::sink::Sink;
use super::super::step::{put_log, record};
use super::*;
use crate::iospace::{Location, Width};
use crate::replay::{Backend, Timing};
use pvmm_uapi::{StateRecord, ORIGIN_READ_BACK};

/// How long capture waits for the transmitter: sixteen characters at 1600 baud. A slower one fails the move.
const QUIESCE_LIMIT_NS: u64 = 100_000_000;
/// How often it looks.
const QUIESCE_INTERVAL_NS: u64 = 50_000;
/// Highest number of records of a UART: each register once, and a full FIFO.
const MAX_RECORDS: usize = 10 + FIFO;

/// What captures have taken out of the UART and no plan has put back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Taken {
    /// Characters with their error bits, as in [`RECEIVED`].
    characters: [u16; FIFO],
    count: usize,
    /// Error bits that were read without their character.
    errors: u64,
    /// MSR delta bits.
    deltas: u64,
    /// The THR-empty interrupt was pending.
    thre: bool,
    /// MCR before capture dropped RTS.
    mcr: Option<u64>,
}

impl Taken {
    pub(super) const NOTHING: Self = Self {
        characters: [0; FIFO],
        count: 0,
        errors: 0,
        deltas: 0,
        thre: false,
        mcr: None,
    };
}

impl Default for Taken {
    fn default() -> Self {
        Self::NOTHING
    }
}

/// The UART's registers.
struct Uart<'a>(&'a mut dyn Backend);

impl Uart<'_> {
    fn place(id: u16) -> Location {
        find(REGISTERS, id).map_or(Location::new(0, 7), |register| register.at)
    }

    fn read(&mut self, id: u16) -> u64 {
        self.0.read(Self::place(id), Width::W1) & 0xff
    }

    fn write(&mut self, id: u16, value: u64) {
        self.0.write(Self::place(id), Width::W1, value);
    }
}

impl Recorder {
    /// Captures the UART; the guest must be paused. See the [module](self) for what must follow.
    ///
    /// RTS is dropped first, so that a sender with flow control keeps what it has. Characters that arrive nevertheless
    /// while sixteen wait are lost, as they would be if the guest itself did not read for so long.
    ///
    /// # Errors
    ///
    /// [`CaptureError::Busy`] with LSR if the transmitter does not get empty; then the UART is as it was, but for
    /// error bits of a character that waits. The other errors come before anything is touched.
    pub fn capture(
        &mut self,
        backend: &mut dyn Backend,
        timing: &mut dyn Timing,
        sink: &mut Sink<'_, StateRecord>,
    ) -> Result<(), CaptureError> {
        if self.log.overflowed() {
            return Err(CaptureError::LogOverflow);
        }
        if sink.room() < MAX_RECORDS {
            return Err(CaptureError::Full);
        }
        let mut uart = Uart(backend);
        let lcr = uart.read(LCR);
        if lcr & LCR_DLAB != 0 {
            uart.write(LCR, lcr & !LCR_DLAB);
        }
        let mcr = uart.read(MCR) & MCR_MASK;
        let stop_sender = mcr & (MCR_RTS | MCR_LOOP) == MCR_RTS;
        if stop_sender {
            uart.write(MCR, mcr & !MCR_RTS);
        }
        if !self.transmitter_gets_empty(&mut uart, timing) {
            if stop_sender {
                uart.write(MCR, mcr);
            }
            uart.write(LCR, lcr);
            return Err(CaptureError::Busy { register: LSR });
        }
        let mcr = *self.taken.mcr.get_or_insert(mcr);
        self.take_characters(&mut uart);
        let ier = uart.read(IER) & IER_MASK;
        // With no character and no error left, IIR shows THRE if it is pending (table IV). Should a character have come
        // just now, pending is the safe answer: a driver that sends expects the interrupt, another doesn't enable it.
        let identification = uart.read(IIR) & 0x0f;
        self.taken.thre |= ier & IER_ETBEI != 0 && !matches!(identification, 0x01 | 0x00);
        let msr = uart.read(MSR);
        self.taken.deltas |= msr & 0x0f;
        let scr = uart.read(SCR);

        let divisor_known = [DLL, DLM].iter().all(|&id| self.log.last_of(id).is_some());
        let divisor = if divisor_known {
            None
        } else {
            uart.write(LCR, lcr | LCR_DLAB);
            Some((uart.read(DLL), uart.read(DLM)))
        };
        if divisor.is_some() || lcr & LCR_DLAB != 0 {
            uart.write(LCR, lcr);
        }

        put_log(REGISTERS, self.log.entries(), sink)?;
        let mut put = |id: u16, value: u64| match find(REGISTERS, id) {
            Some(register) => {
                let mut record = record(register, value);
                if register.fate == F::Recorded {
                    record.origin = ORIGIN_READ_BACK;
                }
                sink.push(record)
            }
            None => Ok(()),
        };
        if let Some((dll, dlm)) = divisor {
            for (id, value) in [(DLL, dll), (DLM, dlm)] {
                if self.log.last_of(id).is_none() {
                    put(id, value)?;
                }
            }
        }
        if self.log.last_of(LCR).is_none() {
            put(LCR, lcr)?;
        }
        put(SCR, scr)?;
        put(MCR, mcr)?;
        put(IER, ier)?;
        put(IIR, if self.taken.thre { 0x02 } else { 0x01 })?;
        put(MSR, msr & 0xf0 | self.taken.deltas)?;
        for &character in self.taken.characters.iter().take(self.taken.count) {
            put(RECEIVED, character.into())?;
        }
        Ok(())
    }

    /// Waits until every character has left. Reading LSR clears error bits (8.6), so they are noted.
    fn transmitter_gets_empty(&mut self, uart: &mut Uart<'_>, timing: &mut dyn Timing) -> bool {
        let start = timing.now_ns();
        loop {
            // In this order, so that a long sleep is not taken for a slow transmitter.
            let late = timing.now_ns().saturating_sub(start) >= QUIESCE_LIMIT_NS;
            let lsr = uart.read(LSR);
            self.taken.errors |= lsr & LSR_ERRORS;
            if lsr & LSR_TEMT != 0 {
                return true;
            }
            if late {
                return false;
            }
            timing.delay_ns(QUIESCE_INTERVAL_NS);
        }
    }

    fn take_characters(&mut self, uart: &mut Uart<'_>) {
        let fifo = self
            .log
            .last_of(FCR)
            .is_some_and(|entry| entry.access.value & FCR_ENABLE != 0);
        let depth = if fifo { FIFO } else { 1 };
        while let Some(place) = self
            .taken
            .characters
            .get_mut(self.taken.count)
            .filter(|_| self.taken.count < depth)
        {
            let lsr = uart.read(LSR);
            self.taken.errors |= lsr & LSR_ERRORS;
            if lsr & LSR_DR == 0 {
                break;
            }
            // Both are bytes.
            *place = (uart.read(RBR) | self.taken.errors << 8) as u16;
            self.taken.errors = 0;
            self.taken.count += 1;
        }
    }
}
