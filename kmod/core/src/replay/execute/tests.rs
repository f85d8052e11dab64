// SPDX-License-Identifier: GPL-2.0
//! Plans from anybody.

use super::*;
use crate::replay::{Hidden, NotAccepted};
use proptest::prelude::*;
use pvmm_uapi::OUTCOME_DONE;
use std::vec;
use std::vec::Vec;

const RANGES: [u64; 2] = [4, 8];

/// Registers that hold what is written, and one number that only a model has.
#[derive(Default)]
struct Device {
    registers: [[u8; 8]; 2],
    accesses: u32,
    only_model: Option<u64>,
    now_ns: u64,
    /// After so many reads, register 0 of range 0 becomes this.
    turns: Option<(u64, u8)>,
}

impl Device {
    fn run(&mut self, steps: &[PlanStep]) -> Outcome {
        let mut time = Time(self.now_ns);
        let outcome = execute(steps, &RANGES, &mut Shared(self, &mut 0), &mut time);
        self.now_ns = time.0;
        outcome
    }
}

/// Time that passes in delays, and a little with each look at it.
struct Time(u64);

impl Timing for Time {
    fn now_ns(&mut self) -> u64 {
        self.0 += 100;
        self.0
    }

    fn delay_ns(&mut self, ns: u64) {
        self.0 += ns;
    }
}

struct Shared<'a>(&'a mut Device, &'a mut u32);

impl Backend for Shared<'_> {
    fn read(&mut self, at: Location, width: Width) -> u64 {
        self.0.accesses += 1;
        *self.1 += 1;
        if let Some((reads, value)) = self.0.turns {
            if u64::from(*self.1) > reads {
                self.0.registers[0][0] = value;
            }
        }
        let mut bytes = [0; 8];
        for index in 0..usize::from(width.bytes()) {
            bytes[index] = self.0.registers[usize::from(at.range)][at.offset as usize + index];
        }
        u64::from_le_bytes(bytes)
    }

    fn write(&mut self, at: Location, width: Width, value: u64) {
        self.0.accesses += 1;
        for (index, byte) in (0..usize::from(width.bytes())).zip(value.to_le_bytes()) {
            self.0.registers[usize::from(at.range)][at.offset as usize + index] = byte;
        }
    }

    fn hidden(&mut self) -> Option<&mut dyn Hidden> {
        self.0
            .only_model
            .is_some()
            .then_some(self as &mut dyn Hidden)
    }
}

impl Hidden for Shared<'_> {
    fn get(&self, register: u16) -> u64 {
        if register == 7 {
            self.0.only_model.unwrap_or(0)
        } else {
            0
        }
    }

    fn accepts(&self, register: u16, value: u64) -> bool {
        register == 7 && value < 1000
    }

    fn set(&mut self, register: u16, value: u64) -> Result<(), NotAccepted> {
        if !self.accepts(register, value) {
            return Err(NotAccepted);
        }
        self.0.only_model = Some(value);
        Ok(())
    }
}

fn step(operation: u32, range: u8, offset: u64, value: u64) -> PlanStep {
    PlanStep {
        operation,
        range,
        width: 1,
        offset,
        value,
        ..PlanStep::default()
    }
}

fn check_step(range: u8, offset: u64, value: u64, mask: u64) -> PlanStep {
    PlanStep {
        mask,
        ..step(STEP_CHECK, range, offset, value)
    }
}

fn poll_step(value: u64, limit_ns: u64) -> PlanStep {
    PlanStep {
        mask: 0xff,
        limit_ns,
        ..step(STEP_POLL, 0, 0, value)
    }
}

#[test]
fn steps_are_executed_in_order_and_checked_at_the_end() {
    let mut device = Device::default();
    let wide = PlanStep {
        width: 4,
        ..step(STEP_WRITE, 1, 4, 0x1234_5678)
    };
    let steps = [
        step(STEP_WRITE, 0, 1, 0x11),
        step(STEP_WRITE, 0, 1, 0x22),
        wide,
        check_step(0, 1, 0x02, 0x0f),
        check_step(1, 5, 0x56, 0xff),
        step(STEP_READ, 0, 0, 0),
    ];
    let done = Outcome {
        outcome: OUTCOME_DONE,
        step: 6,
        found: 0,
    };
    assert_eq!(device.run(&steps), done);
    assert_eq!(device.registers[0][1], 0x22);
}

#[test]
fn a_mismatch_stops_at_its_step_and_tells_what_was_found() {
    let mut device = Device::default();
    let steps = [
        step(STEP_WRITE, 0, 0, 0xa5),
        check_step(0, 0, 0x05, 0x0f),
        check_step(0, 0, 0x50, 0xf0),
        step(STEP_WRITE, 0, 0, 0xff),
    ];
    let mismatch = Outcome {
        outcome: OUTCOME_MISMATCH,
        step: 2,
        found: 0xa5,
    };
    assert_eq!(device.run(&steps), mismatch);
    assert_eq!(device.registers[0][0], 0xa5);
}

#[test]
fn a_poll_waits_for_the_value_and_at_its_limit_gives_up() {
    let mut device = Device {
        turns: Some((3, 0x60)),
        ..Device::default()
    };
    assert_eq!(
        device.run(&[poll_step(0x60, 1_000_000)]).outcome,
        OUTCOME_DONE
    );
    assert!((3 * POLL_INTERVAL_NS..1_000_000).contains(&device.now_ns));
    let mut device = Device::default();
    let timeout = Outcome {
        outcome: OUTCOME_TIMEOUT,
        step: 0,
        found: 0,
    };
    assert_eq!(device.run(&[poll_step(0x60, 1_000_000)]), timeout);
    assert!((1_000_000..1_100_000).contains(&device.now_ns));
}

#[test]
fn a_delay_takes_its_time() {
    let mut device = Device::default();
    let delay = PlanStep {
        limit_ns: MAX_STEP_NS,
        ..step(STEP_DELAY, 0, 0, 0)
    };
    assert_eq!(device.run(&[delay]).outcome, OUTCOME_DONE);
    assert_eq!(device.now_ns, MAX_STEP_NS);
}

#[test]
fn hidden_state_is_set_in_a_model_and_refused_by_hardware() {
    let set = PlanStep {
        register: 7,
        ..step(STEP_SET, 0, 0, 999)
    };
    let mut model = Device {
        only_model: Some(0),
        ..Device::default()
    };
    assert_eq!(model.run(&[set]).outcome, OUTCOME_DONE);
    assert_eq!(model.only_model, Some(999));
    let steps = [step(STEP_WRITE, 0, 0, 1), set];
    let refused = Outcome {
        outcome: OUTCOME_REFUSED,
        step: 1,
        found: 0,
    };
    let mut hardware = Device::default();
    assert_eq!((hardware.run(&steps), hardware.accesses), (refused, 0));
    for bad in [
        PlanStep { value: 1000, ..set },
        PlanStep { register: 8, ..set },
    ] {
        let steps = [step(STEP_WRITE, 0, 0, 1), bad];
        assert_eq!((model.run(&steps), model.accesses), (refused, 0));
    }
}

#[test]
fn nothing_is_executed_if_any_step_is_malformed_or_outside() {
    let write = step(STEP_WRITE, 0, 0, 1);
    let check = check_step(0, 0, 1, 1);
    let poll = poll_step(1, 1000);
    let bad = [
        step(0, 0, 0, 0),
        step(7, 0, 0, 0),
        PlanStep { range: 2, ..write },
        PlanStep { offset: 4, ..write },
        PlanStep {
            offset: 3,
            width: 2,
            ..write
        },
        PlanStep {
            offset: u64::MAX,
            ..write
        },
        PlanStep { width: 0, ..write },
        PlanStep { width: 3, ..write },
        PlanStep { width: 16, ..write },
        PlanStep {
            value: 0x100,
            ..write
        },
        PlanStep { mask: 1, ..write },
        PlanStep {
            limit_ns: 1,
            ..write
        },
        step(STEP_READ, 0, 0, 1),
        PlanStep { mask: 0, ..check },
        PlanStep { value: 2, ..check },
        PlanStep {
            mask: 0x101,
            ..check
        },
        PlanStep {
            limit_ns: 1,
            ..check
        },
        PlanStep {
            limit_ns: 0,
            ..poll
        },
        PlanStep {
            limit_ns: MAX_STEP_NS + 1,
            ..poll
        },
        PlanStep {
            limit_ns: u64::MAX,
            ..poll
        },
    ];
    for bad in bad {
        let mut device = Device::default();
        let refused = Outcome {
            outcome: OUTCOME_REFUSED,
            step: 1,
            found: 0,
        };
        assert_eq!(device.run(&[write, bad, write]), refused, "{bad:?}");
        assert_eq!(device.accesses, 0, "{bad:?}");
    }
}

#[test]
fn a_plan_that_is_too_long_in_steps_or_time_is_refused() {
    let mut device = Device::default();
    let most = vec![step(STEP_WRITE, 0, 0, 1); MAX_PLAN_STEPS as usize];
    assert_eq!(device.run(&most).outcome, OUTCOME_DONE);
    let mut device = Device::default();
    let more = vec![step(STEP_WRITE, 0, 0, 1); MAX_PLAN_STEPS as usize + 1];
    assert_eq!(
        (device.run(&more).outcome, device.accesses),
        (OUTCOME_REFUSED, 0)
    );
    let polls = vec![poll_step(0, MAX_STEP_NS); 11];
    assert_eq!(
        (device.run(&polls).outcome, device.accesses),
        (OUTCOME_REFUSED, 0)
    );
}

fn any_step() -> impl Strategy<Value = PlanStep> {
    let number = || prop_oneof![6 => 0..9u64, 2 => 0..0x200u64, 1 => any::<u64>()];
    (
        (0..8u32, 0..9u16, 0..4u8, 0..10u8),
        (
            number(),
            number(),
            number(),
            prop_oneof![3 => Just(0), 1 => number()],
        ),
    )
        .prop_map(
            |((operation, register, range, width), (offset, value, mask, limit_ns))| PlanStep {
                operation,
                register,
                range,
                width,
                offset,
                value,
                mask,
                limit_ns,
            },
        )
}

proptest! {
    #[test]
    fn any_plan_is_executed_inside_the_ranges_or_not_at_all(
        steps in proptest::collection::vec(any_step(), 0..4),
        model in any::<bool>(),
    ) {
        // The device's arrays are longer than its ranges, so an access outside would be seen there.
        let mut device = Device { only_model: model.then_some(0), ..Device::default() };
        let outcome = device.run(&steps);
        if outcome.outcome == OUTCOME_REFUSED {
            prop_assert_eq!(device.accesses, 0);
            prop_assert_eq!(device.only_model, model.then_some(0));
        }
        prop_assert_eq!(&device.registers[0][4..], &[0; 4]);
        let writes: Vec<_> = steps.iter().filter(|step| step.operation == STEP_WRITE).collect();
        prop_assert!(outcome.outcome != OUTCOME_DONE || writes.iter().all(|step| step.range < 2));
    }
}
