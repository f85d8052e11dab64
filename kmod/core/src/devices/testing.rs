// SPDX-License-Identifier: GPL-2.0
//! Moving a device from one place to another, for the tests of the kinds.

use super::*;
use crate::replay::{execute, Outcome};
use pvmm_uapi::{MAX_PLAN_STEPS, MAX_STATE_RECORDS, OUTCOME_DONE};
use std::vec;
use std::vec::Vec;

/// Time that passes only in delays.
#[derive(Debug, Default)]
pub(crate) struct Still {
    pub(crate) now_ns: u64,
}

impl Timing for Still {
    fn now_ns(&mut self) -> u64 {
        self.now_ns
    }

    fn delay_ns(&mut self, ns: u64) {
        self.now_ns += ns;
    }
}

/// A backend that hides that it is a model.
pub(crate) struct Hardware<'a>(pub(crate) &'a mut dyn Backend);

impl Backend for Hardware<'_> {
    fn read(&mut self, at: crate::iospace::Location, width: crate::iospace::Width) -> u64 {
        self.0.read(at, width)
    }

    fn write(&mut self, at: crate::iospace::Location, width: crate::iospace::Width, value: u64) {
        self.0.write(at, width, value);
    }
}

/// The captured state, in as much room as the ABI gives.
pub(crate) fn capture(
    recorder: &mut RecorderState,
    backend: &mut dyn Backend,
    timing: &mut dyn Timing,
) -> Result<Vec<StateRecord>, CaptureError> {
    let mut storage = vec![StateRecord::default(); MAX_STATE_RECORDS as usize];
    let mut sink = Sink::new(&mut storage);
    recorder.capture(backend, timing, &mut sink)?;
    Ok(sink.as_slice().to_vec())
}

/// The plan of a kind, in as much room as the ABI gives.
pub(crate) fn planned(number: u32, records: &[StateRecord]) -> Result<Vec<PlanStep>, PlanError> {
    let mut storage = vec![PlanStep::default(); MAX_PLAN_STEPS as usize];
    let mut sink = Sink::new(&mut storage);
    let version = kind(number).map_or(0, |kind| kind.state_version);
    plan(number, version, records, &mut sink)?;
    Ok(sink.as_slice().to_vec())
}

/// Executes a plan with the recorder looking on.
pub(crate) fn restore(
    recorder: &mut RecorderState,
    backend: &mut dyn Backend,
    timing: &mut dyn Timing,
    steps: &[PlanStep],
) -> Outcome {
    let ranges = kind(recorder.number()).map_or(&[][..], |kind| kind.ranges);
    execute(
        steps,
        ranges,
        &mut crate::record::Recorded { backend, recorder },
        timing,
    )
}

/// Whether every step of a plan was executed; says which step it was otherwise.
#[track_caller]
pub(crate) fn assert_done(number: u32, steps: &[PlanStep], outcome: Outcome) {
    let step = steps.get(outcome.step as usize);
    let name = step.and_then(|step| register_name(number, step.register));
    assert_eq!(
        outcome.outcome, OUTCOME_DONE,
        "{outcome:?} at {step:?} ({name:?})"
    );
}
