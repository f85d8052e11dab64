// SPDX-License-Identifier: GPL-2.0
//! Execution of a restore plan on whatever stands behind a device, with verification.
//!
//! On the path this is the end. A plan comes from userspace, which may have been told by a peer, so every step is
//! checked against the device's ranges and the limits before the first is executed.
#![forbid(unsafe_code)]

use super::{Backend, Timing};
use crate::iospace::{Location, Width};
use pvmm_uapi::{
    PlanStep, MAX_PLAN_STEPS, MAX_STEP_NS, OUTCOME_DONE, OUTCOME_MISMATCH, OUTCOME_REFUSED,
    OUTCOME_TIMEOUT, STEP_CHECK, STEP_DELAY, STEP_POLL, STEP_READ, STEP_SET, STEP_WRITE,
};

/// Longest sum of all polls and delays of a plan: the caller holds the device all that time.
pub const MAX_PLAN_NS: u64 = 1_000_000_000;

/// Pause between two reads of a poll.
const POLL_INTERVAL_NS: u64 = 20_000;

/// How a plan ended, as [`pvmm_uapi::DeviceExecute`] says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// `OUTCOME_*`.
    pub outcome: u32,
    /// The step that it is about; the number of steps if all were executed.
    pub step: u32,
    /// The value that was read there.
    pub found: u64,
}

/// A step whose place and limits were checked.
#[derive(Clone, Copy)]
struct Checked {
    at: Location,
    width: Width,
}

/// Executes `steps` in order on the device behind `backend`, whose ranges have the lengths `ranges`.
///
/// May sleep in `timing`. The guest is paused and nobody else accesses the device.
///
/// The outcome is `OUTCOME_REFUSED` if any step is malformed, outside the device, or sets state that the device does not
/// have: then nothing was executed. `OUTCOME_MISMATCH` and `OUTCOME_TIMEOUT` stop at their step.
pub fn execute(
    steps: &[PlanStep],
    ranges: &[u64],
    backend: &mut dyn Backend,
    timing: &mut dyn Timing,
) -> Outcome {
    if let Some(refused) = first_refused(steps, ranges, backend) {
        return refused;
    }
    for (number, step) in (0u32..).zip(steps) {
        // Checked above; the steps have not changed.
        let Some(Checked { at, width }) = check(step, ranges) else {
            return outcome(OUTCOME_REFUSED, number, 0);
        };
        match step.operation {
            STEP_WRITE => backend.write(at, width, step.value),
            STEP_READ => {
                backend.read(at, width);
            }
            STEP_CHECK => {
                let found = backend.read(at, width) & width.mask();
                if found & step.mask != step.value {
                    return outcome(OUTCOME_MISMATCH, number, found);
                }
            }
            STEP_POLL => {
                if let Err(found) = poll(step, at, width, backend, timing) {
                    return outcome(OUTCOME_TIMEOUT, number, found);
                }
            }
            STEP_DELAY => timing.delay_ns(step.limit_ns),
            _ => {
                let set = backend
                    .hidden()
                    .is_some_and(|hidden| hidden.set(step.register, step.value).is_ok());
                if !set {
                    return outcome(OUTCOME_MISMATCH, number, 0);
                }
            }
        }
    }
    outcome(OUTCOME_DONE, steps.len() as u32, 0)
}

const fn outcome(outcome: u32, step: u32, found: u64) -> Outcome {
    Outcome {
        outcome,
        step,
        found,
    }
}

/// Reads until the value is there; the last value read if it does not come.
fn poll(
    step: &PlanStep,
    at: Location,
    width: Width,
    backend: &mut dyn Backend,
    timing: &mut dyn Timing,
) -> Result<(), u64> {
    let start = timing.now_ns();
    loop {
        // Looked at before the read, so that the last read comes after the limit, however long a delay really took.
        let late = timing.now_ns().saturating_sub(start) >= step.limit_ns;
        let found = backend.read(at, width) & width.mask();
        if found & step.mask == step.value {
            return Ok(());
        }
        if late {
            return Err(found);
        }
        timing.delay_ns(POLL_INTERVAL_NS);
    }
}

/// The first step that must not be executed, if there is one.
fn first_refused(steps: &[PlanStep], ranges: &[u64], backend: &mut dyn Backend) -> Option<Outcome> {
    if steps.len() > MAX_PLAN_STEPS as usize {
        return Some(outcome(OUTCOME_REFUSED, MAX_PLAN_STEPS, 0));
    }
    let mut total_ns = 0u64;
    for (number, step) in (0u32..).zip(steps) {
        total_ns = total_ns.saturating_add(step.limit_ns);
        let settable = step.operation != STEP_SET
            || backend
                .hidden()
                .is_some_and(|hidden| hidden.accepts(step.register, step.value));
        if total_ns > MAX_PLAN_NS || !settable || check(step, ranges).is_none() {
            return Some(outcome(OUTCOME_REFUSED, number, 0));
        }
    }
    None
}

/// Place and width of a step, if it is well-formed and inside the device. Fields that an operation does not use must be
/// zero, except for the place of a delay or of hidden state, which is not used at all.
fn check(step: &PlanStep, ranges: &[u64]) -> Option<Checked> {
    let width = Width::from_bytes(step.width)?;
    let at = Location::new(step.range, step.offset);
    let checked = Checked { at, width };
    if step.limit_ns > MAX_STEP_NS {
        return None;
    }
    let unlimited = step.limit_ns == 0;
    let fits = step.value & !width.mask() == 0;
    let expects = step.mask & !width.mask() == 0 && step.mask != 0 && step.value & !step.mask == 0;
    let well_formed = match step.operation {
        STEP_WRITE => fits && step.mask == 0 && unlimited,
        STEP_READ => step.value == 0 && step.mask == 0 && unlimited,
        STEP_CHECK => expects && unlimited,
        STEP_POLL => expects && !unlimited,
        STEP_DELAY => return (step.value == 0 && step.mask == 0).then_some(checked),
        STEP_SET => return (step.mask == 0 && unlimited).then_some(checked),
        _ => false,
    };
    let length = *ranges.get(usize::from(step.range))?;
    let inside = step.offset.checked_add(step.width.into())? <= length;
    (well_formed && inside).then_some(checked)
}

#[cfg(test)]
mod tests;
