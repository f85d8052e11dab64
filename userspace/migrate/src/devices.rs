// SPDX-License-Identifier: GPL-2.0
//! The bridge to the device kinds of the core: their names, state versions and restore plans, and what the outcome of a
//! plan means in words.
//!
//! Place on the path: on the target, where captured records become a plan. The plan names ranges and offsets of one device,
//! and the module executes it on the device that its own operator gave to the guest: a peer cannot reach anything else.

use crate::vm::{CapturedDevice, Executed};
use pvmm_core::devices::field::Decoded;
pub use pvmm_core::devices::uart16550;
use pvmm_core::devices::{self, register, Sink};
use pvmm_uapi::{
    PlanStep, MAX_PLAN_STEPS, OUTCOME_DONE, OUTCOME_MISMATCH, OUTCOME_REFUSED, OUTCOME_TIMEOUT,
};

/// Why a device could not be brought into its state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// No such kind.
    #[error("device {device} is of kind {kind}, which this version of pvmm does not know")]
    Kind {
        /// Its number.
        device: u32,
        /// `KIND_*`.
        kind: u32,
    },
    /// The captured state makes no plan.
    #[error("the state of {kind} (device {device}) cannot be restored: {reason}")]
    Plan {
        /// Its number.
        device: u32,
        /// The kind's name.
        kind: &'static str,
        /// Why not.
        reason: String,
    },
    /// A register does not hold what it should.
    #[error("{kind} (device {device}): register {register} reads {found:#x} where {expected:#x} was restored (mask {mask:#x}); the device here differs from the source's")]
    Mismatch {
        /// Its number.
        device: u32,
        /// The kind's name.
        kind: &'static str,
        /// The register's name.
        register: String,
        /// What it should hold.
        expected: u64,
        /// What it holds.
        found: u64,
        /// The bits that matter.
        mask: u64,
    },
    /// A register did not get ready.
    #[error("{kind} (device {device}): register {register} did not become {expected:#x} (mask {mask:#x}) in time, it reads {found:#x}")]
    Timeout {
        /// Its number.
        device: u32,
        /// The kind's name.
        kind: &'static str,
        /// The register's name.
        register: String,
        /// What it should hold.
        expected: u64,
        /// What it holds.
        found: u64,
        /// The bits that matter.
        mask: u64,
    },
    /// The module did not take the plan.
    #[error("{kind} (device {device}): the module refused step {step} of the restore plan (register {register}); the device here has other ranges than the source's")]
    Refused {
        /// Its number.
        device: u32,
        /// The kind's name.
        kind: &'static str,
        /// The register's name.
        register: String,
        /// Index of the step.
        step: u32,
    },
    /// The module answered what it cannot answer.
    #[error("{kind} (device {device}): the module reports outcome {outcome} at step {step}, which means nothing")]
    Outcome {
        /// Its number.
        device: u32,
        /// The kind's name.
        kind: &'static str,
        /// As reported.
        outcome: u32,
        /// As reported.
        step: u32,
    },
}

/// Name of a kind, as in `--grant` and in errors.
pub fn kind_name(kind: u32) -> Option<&'static str> {
    devices::kind(kind).map(|kind| kind.name)
}

/// Version of a kind's state layout that this build captures and restores.
pub fn state_version(kind: u32) -> Option<u32> {
    devices::kind(kind).map(|kind| kind.state_version)
}

/// Name of a register of a kind.
pub(crate) fn register_name(kind: u32, register: u16) -> String {
    match devices::register_name(kind, register) {
        Some(name) => name.to_owned(),
        None => format!("number {register}"),
    }
}

/// The kind of this name.
pub fn kind_number(name: &str) -> Option<u32> {
    let mut kinds = devices::KINDS.iter();
    Some(kinds.find(|kind| kind.name == name)?.number)
}

/// A register's name, and a value of it in the words of the kind's data sheet, empty if there are none. `None` for a register
/// that the kind does not have.
pub fn describe(kind: u32, register: u16, value: u64) -> Option<(&'static str, String)> {
    let register = register::find(devices::kind(kind)?.registers, register)?;
    Some((register.name, Decoded(register, value).to_string()))
}

/// The plan that brings a device of the kind into a captured state. Pure.
///
/// # Errors
///
/// The records come from a peer: an unknown kind, version or register, or an impossible value, is refused by name.
pub fn plan(device: u32, captured: &CapturedDevice) -> Result<Vec<PlanStep>, DeviceError> {
    let CapturedDevice {
        kind,
        version,
        ref records,
    } = *captured;
    let name = kind_name(kind).ok_or(DeviceError::Kind { device, kind })?;
    let mut storage = vec![PlanStep::default(); MAX_PLAN_STEPS as usize];
    let mut sink = Sink::new(&mut storage);
    devices::plan(kind, version, records, &mut sink).map_err(|error| DeviceError::Plan {
        device,
        kind: name,
        reason: error.to_string(),
    })?;
    let steps = sink.len();
    storage.truncate(steps);
    Ok(storage)
}

/// What an executed plan means.
///
/// # Errors
///
/// Everything but [`OUTCOME_DONE`].
pub fn check(
    device: u32,
    kind: u32,
    steps: &[PlanStep],
    executed: Executed,
) -> Result<(), DeviceError> {
    let name = kind_name(kind).ok_or(DeviceError::Kind { device, kind })?;
    let Executed {
        outcome,
        step,
        found,
    } = executed;
    if outcome == OUTCOME_DONE {
        return Ok(());
    }
    let at = usize::try_from(step).ok().and_then(|step| steps.get(step));
    let Some(at) = at else {
        return Err(DeviceError::Outcome {
            device,
            kind: name,
            outcome,
            step,
        });
    };
    let register = register_name(kind, at.register);
    Err(match outcome {
        OUTCOME_MISMATCH => DeviceError::Mismatch {
            device,
            kind: name,
            register,
            expected: at.value,
            found: found & at.mask,
            mask: at.mask,
        },
        OUTCOME_TIMEOUT => DeviceError::Timeout {
            device,
            kind: name,
            register,
            expected: at.value,
            found: found & at.mask,
            mask: at.mask,
        },
        OUTCOME_REFUSED => DeviceError::Refused {
            device,
            kind: name,
            register,
            step,
        },
        _ => DeviceError::Outcome {
            device,
            kind: name,
            outcome,
            step,
        },
    })
}
