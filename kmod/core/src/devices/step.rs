// SPDX-License-Identifier: GPL-2.0
//! The bricks of every kind: records as capture makes them and a plan reads them, and the steps of a plan.
#![forbid(unsafe_code)]

use super::error::PlanError;
use super::register::{find, Access, Fate, Register};
use super::sink::{Full, Sink};
use crate::iospace::{self, Direction, Location, Width};
use crate::record::{Entry, Recorder};
use pvmm_uapi::{
    PlanStep, StateRecord, ORIGIN_INFERRED, ORIGIN_LOG, ORIGIN_READ_BACK, STEP_CHECK, STEP_DELAY,
    STEP_POLL, STEP_READ, STEP_SET, STEP_WRITE,
};

/// A record of `register` with the place and origin that its table says.
pub(super) fn record(register: &Register, value: u64) -> StateRecord {
    StateRecord {
        register: register.id,
        origin: origin(register.fate),
        range: register.at.range,
        width: register.width.bytes(),
        reserved: [0; 3],
        offset: register.at.offset,
        value,
    }
}

const fn origin(fate: Fate) -> u8 {
    match fate {
        Fate::Recorded => ORIGIN_LOG,
        Fate::ReadBack => ORIGIN_READ_BACK,
        Fate::Inferred | Fate::Irrelevant => ORIGIN_INFERRED,
    }
}

/// Puts a log into the captured state, oldest access first. The value of a read is not state.
pub(super) fn put_log(
    table: &'static [Register],
    entries: &[Entry],
    sink: &mut Sink<'_, StateRecord>,
) -> Result<(), Full> {
    for entry in entries {
        if let Some(register) = find(table, entry.register) {
            let value = match entry.access.direction {
                Direction::Write => entry.access.value,
                Direction::Read => 0,
            };
            sink.push(record(register, value))?;
        }
    }
    Ok(())
}

/// Finds the register of a peer's record and checks everything about it but the value's meaning.
pub(super) fn known(
    kind: &'static str,
    table: &'static [Register],
    record: &StateRecord,
) -> Result<&'static Register, PlanError> {
    let register = find(table, record.register)
        .filter(|register| register.fate != Fate::Irrelevant)
        .ok_or(PlanError::UnknownRegister {
            kind,
            register: record.register,
        })?;
    // What the guest never wrote is read back, where that is possible.
    let read_back = register.fate == Fate::Recorded
        && register.access == Access::ReadWrite
        && record.origin == ORIGIN_READ_BACK;
    let well_formed = (record.origin == origin(register.fate) || read_back)
        && record.range == register.at.range
        && record.offset == register.at.offset
        && record.width == register.width.bytes()
        && record.reserved == [0; 3];
    if !well_formed {
        return Err(PlanError::Malformed {
            register: register.name,
        });
    }
    if record.value & !register.width.mask() != 0 {
        return Err(impossible(register, record));
    }
    Ok(register)
}

pub(super) fn impossible(register: &Register, record: &StateRecord) -> PlanError {
    PlanError::Value {
        register: register.name,
        value: record.value,
    }
}

/// Shows `recorder` the access of a peer's record and checks, with `newest`, that the classifier takes it for the
/// register that the peer says. So a sequence is accepted exactly if a guest could have made it.
pub(super) fn retrace<R: Recorder>(
    recorder: &mut R,
    newest: impl Fn(&R) -> Option<u16>,
    register: &Register,
    access: &iospace::Access,
) -> Result<(), PlanError> {
    recorder.after(access);
    if newest(recorder) == Some(register.id) {
        Ok(())
    } else {
        Err(PlanError::Sequence {
            register: register.name,
        })
    }
}

/// A restore plan in the making.
pub(super) struct Plan<'a, 'b> {
    table: &'static [Register],
    steps: &'a mut Sink<'b, PlanStep>,
}

impl<'a, 'b> Plan<'a, 'b> {
    pub(super) fn new(table: &'static [Register], steps: &'a mut Sink<'b, PlanStep>) -> Self {
        Self { table, steps }
    }

    /// A step about the register numbered `id`, which the kind takes from its own constants.
    fn step(
        &mut self,
        operation: u32,
        id: u16,
        value: u64,
        mask: u64,
        limit_ns: u64,
    ) -> Result<(), PlanError> {
        let (at, width) =
            find(self.table, id).map_or((Location::new(0, 0), Width::W1), |r| (r.at, r.width));
        self.steps.push(PlanStep {
            operation,
            register: id,
            range: at.range,
            width: width.bytes(),
            offset: at.offset,
            value,
            mask,
            limit_ns,
        })?;
        Ok(())
    }

    pub(super) fn write(&mut self, id: u16, value: u64) -> Result<(), PlanError> {
        self.step(STEP_WRITE, id, value, 0, 0)
    }

    pub(super) fn read(&mut self, id: u16) -> Result<(), PlanError> {
        self.step(STEP_READ, id, 0, 0, 0)
    }

    pub(super) fn check(&mut self, id: u16, value: u64, mask: u64) -> Result<(), PlanError> {
        self.step(STEP_CHECK, id, value & mask, mask, 0)
    }

    /// A check of the register numbered `id` that is made at another place than its own: what answers there.
    pub(super) fn check_at(
        &mut self,
        id: u16,
        at: Location,
        value: u64,
        mask: u64,
    ) -> Result<(), PlanError> {
        self.steps.push(PlanStep {
            operation: STEP_CHECK,
            register: id,
            range: at.range,
            width: Width::W1.bytes(),
            offset: at.offset,
            value: value & mask,
            mask,
            limit_ns: 0,
        })?;
        Ok(())
    }

    pub(super) fn poll(
        &mut self,
        id: u16,
        value: u64,
        mask: u64,
        limit_ns: u64,
    ) -> Result<(), PlanError> {
        self.step(STEP_POLL, id, value & mask, mask, limit_ns)
    }

    pub(super) fn delay(&mut self, id: u16, ns: u64) -> Result<(), PlanError> {
        self.step(STEP_DELAY, id, 0, 0, ns)
    }

    pub(super) fn set(&mut self, id: u16, value: u64) -> Result<(), PlanError> {
        self.step(STEP_SET, id, value, 0, 0)
    }
}
