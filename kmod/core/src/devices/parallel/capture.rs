// SPDX-License-Identifier: GPL-2.0
//! Capture of a parallel port: no byte may be between guest and printer.
//!
//! A byte belongs to the printer that saw its strobe. What follows the strobe cannot be made again at the peer without a
//! second byte there, and an interrupt that tells of the source's printer would be lost, so capture waits for both, and
//! fails with [`CaptureError::Busy`] if they don't come: the caller lets the guest run on and tries again. Nothing is taken
//! out of the port.
#![forbid(unsafe_code)]

use super::super::error::CaptureError;
use super::super::register::find;
use super::super::sink::Sink;
use super::super::step::{put_log, record};
use super::*;
use crate::iospace::{Location, Width};
use crate::replay::{Backend, Timing};
use pvmm_uapi::{StateRecord, ORIGIN_READ_BACK};

/// How long capture waits for the printer to acknowledge. IEEE 1284 gives a byte no limit; this is some hundred times what a
/// printer that is ready takes.
const QUIESCE_LIMIT_NS: u64 = 50_000_000;
/// How often it looks.
const QUIESCE_INTERVAL_NS: u64 = 50_000;

impl Recorder {
    /// Captures the port; the guest must be paused. The port is as it was, but for the flags that a read of STR clears.
    ///
    /// # Errors
    ///
    /// [`CaptureError::Busy`] with CTR while the strobe is active; with STR if the guest waits for the interrupt of a byte
    /// that the printer has not acknowledged; with DTR if the port is turned to input and what its latch holds is not known:
    /// it is once the guest writes to it or turns the port back. The others come before anything is touched.
    pub fn capture(
        &mut self,
        backend: &mut dyn Backend,
        timing: &mut dyn Timing,
        sink: &mut Sink<'_, StateRecord>,
    ) -> Result<(), CaptureError> {
        if self.log.overflowed() {
            return Err(CaptureError::LogOverflow);
        }
        if sink.room() < REGISTERS.len() {
            return Err(CaptureError::Full);
        }
        let control = self.control();
        if control & CTR_STROBE != 0 {
            return Err(CaptureError::Busy { register: CTR });
        }
        let input = control & CTR_INPUT != 0;
        if input && self.log.last_of(DTR).is_none() {
            return Err(CaptureError::Busy { register: DTR });
        }
        if self.sent && control & CTR_IRQ != 0 && !printer_rests(backend, timing) {
            return Err(CaptureError::Busy { register: STR });
        }
        self.sent = false;
        put_log(REGISTERS, self.log.entries(), sink)?;
        if let Some(data) = find(REGISTERS, DTR).filter(|_| !input) {
            let value = backend.read(data.at, Width::W1) & 0xff;
            sink.push(StateRecord {
                origin: ORIGIN_READ_BACK,
                ..record(data, value)
            })?;
        }
        Ok(())
    }
}

/// Waits until the printer has taken the byte and ACK has ended, which is the edge that interrupts.
fn printer_rests(backend: &mut dyn Backend, timing: &mut dyn Timing) -> bool {
    let status = find(REGISTERS, STR).map_or(Location::new(0, 1), |register| register.at);
    let start = timing.now_ns();
    loop {
        // In this order, so that a long sleep is not taken for a slow printer.
        let late = timing.now_ns().saturating_sub(start) >= QUIESCE_LIMIT_NS;
        if backend.read(status, Width::W1) & STR_REST == STR_REST {
            return true;
        }
        if late {
            return false;
        }
        timing.delay_ns(QUIESCE_INTERVAL_NS);
    }
}
