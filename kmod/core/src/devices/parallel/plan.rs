// SPDX-License-Identifier: GPL-2.0
//! The restore plan of a parallel port.
//!
//! The interrupt is off until the last write. No step strobes, so the peer's printer gets nothing, and none drives lines that
//! the guest has left to somebody else: DTR is verified only if the port drives them.
#![forbid(unsafe_code)]

use super::super::error::PlanError;
use super::super::sink::Sink;
use super::super::step::{impossible, known, Plan};
use super::*;
use pvmm_uapi::{PlanStep, StateRecord, ORIGIN_LOG};

/// What a port must hold to be one: no bus floats to both.
const PATTERNS: [u64; 2] = [0xaa, 0x55];

/// Makes the plan that brings a port into the state of `records`, which a peer has sent.
///
/// # Errors
///
/// [`PlanError`] names the register of the first record that no port at rest can have, or that is missing.
pub fn plan(records: &[StateRecord], sink: &mut Sink<'_, PlanStep>) -> Result<(), PlanError> {
    let (mut data, mut control) = (None, None);
    for record in records {
        let register = known(NAME, REGISTERS, record)?;
        let place = match register.id {
            CTR if record.origin != ORIGIN_LOG => {
                return Err(PlanError::Malformed {
                    register: register.name,
                })
            }
            CTR if record.value & (!CTR_MASK | CTR_STROBE) != 0 => {
                return Err(impossible(register, record))
            }
            CTR => &mut control,
            _ => &mut data,
        };
        if place.replace(*record).is_some() {
            return Err(PlanError::Repeated {
                register: register.name,
            });
        }
    }
    let data = data.ok_or(PlanError::Missing { register: "DTR" })?;
    // Not recorded: the guest never wrote it, and it is as after the reset.
    let control = control.map_or(CTR_IDLE, |record| record.value);
    // Each way to know the latch has its direction.
    if (data.origin == ORIGIN_LOG) != (control & CTR_INPUT != 0) {
        return Err(PlanError::Sequence { register: "DTR" });
    }
    restore(data.value, control, sink)
}

/// Makes the plan that brings a port into the state that firmware leaves, and finds out whether there is one. For a device
/// that is given to a guest, and taken back.
///
/// # Errors
///
/// [`PlanError::Full`] only.
pub fn reset(sink: &mut Sink<'_, PlanStep>) -> Result<(), PlanError> {
    let mut plan = Plan::new(REGISTERS, sink);
    plan.write(CTR, CTR_IDLE)?;
    plan.check(CTR, CTR_IDLE, CTR_READABLE)?;
    for pattern in PATTERNS {
        plan.write(DTR, pattern)?;
        plan.check(DTR, pattern, 0xff)?;
    }
    restore(0, CTR_IDLE, sink)
}

fn restore(data: u64, control: u64, sink: &mut Sink<'_, PlanStep>) -> Result<(), PlanError> {
    let mut plan = Plan::new(REGISTERS, sink);
    let input = control & CTR_INPUT != 0;
    plan.write(CTR, control & !CTR_IRQ)?;
    // After CTR, so that the recorder notes it if the port is turned to input, for the next move.
    plan.write(DTR, data)?;
    if !input {
        plan.check(DTR, data, 0xff)?;
    }
    plan.write(CTR, control)?;
    plan.check(CTR, control, CTR_READABLE)
}
