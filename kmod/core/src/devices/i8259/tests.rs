// SPDX-License-Identifier: GPL-2.0
//! The recorder of the 8259A pair, and pairs that move.

use super::super::testing::{assert_done, capture, planned, restore, Hardware, Still};
use super::super::{CaptureError, PlanError, RecorderState};
use super::*;
use crate::models::I8259Pair;
use crate::record::Recorder as _;
use proptest::prelude::*;
use pvmm_uapi::{KIND_I8259, ORIGIN_LOG};
use std::vec::Vec;

/// A pair with its recorder, as a VM has it.
#[derive(Clone)]
struct Device {
    pair: I8259Pair,
    recorder: RecorderState,
}

impl Device {
    fn new() -> Self {
        Self {
            pair: I8259Pair::new(),
            recorder: RecorderState::I8259(Recorder::new()),
        }
    }

    fn write(&mut self, range: u8, offset: u64, value: u8) {
        let at = Location::new(range, offset);
        self.pair.write(at, value);
        self.recorder
            .after(&Access::write(at, Width::W1, value.into()));
    }

    fn read(&mut self, range: u8, offset: u64) -> u8 {
        let at = Location::new(range, offset);
        let value = self.pair.read(at);
        self.recorder
            .after(&Access::read(at, Width::W1, value.into()));
        value
    }

    fn capture(&mut self) -> Vec<StateRecord> {
        capture(&mut self.recorder, &mut self.pair, &mut Still::default())
            .expect("a model is always at rest")
    }

    /// Puts the captured state back where it came from, as after a move that failed.
    fn put_back(&mut self) {
        let records = self.capture();
        let steps = planned(KIND_I8259, &records).expect("a captured state");
        let outcome = restore(
            &mut self.recorder,
            &mut self.pair,
            &mut Still::default(),
            &steps,
        );
        assert_done(KIND_I8259, &steps, outcome);
    }

    fn moved(&mut self) -> Self {
        let records = self.capture();
        let steps = planned(KIND_I8259, &records).expect("a captured state");
        let mut there = Self::new();
        let outcome = restore(
            &mut there.recorder,
            &mut there.pair,
            &mut Still::default(),
            &steps,
        );
        assert_done(KIND_I8259, &steps, outcome);
        there
    }
}

/// The log as a list of register and value.
fn log(records: &[StateRecord]) -> Vec<(u16, u64)> {
    records
        .iter()
        .filter(|record| record.origin == ORIGIN_LOG)
        .map(|record| (record.register, record.value))
        .collect()
}

#[test]
fn a_new_initialization_replaces_the_one_before_and_its_commands() {
    let mut device = Device::new();
    for base in [0x08, 0x30] {
        device.write(0, 0, 0x11);
        device.write(0, 1, base);
        device.write(0, 1, 0x04);
        device.write(0, 1, 0x01);
        device.write(0, 1, 0xfb);
        device.write(0, 0, 0xc3);
        device.write(0, 0, 0x0b);
    }
    device.write(0, 1, 0xfa);
    for _ in 0..100 {
        device.write(0, 0, 0x20);
    }
    assert_eq!(
        log(&device.capture()),
        [
            (ICW1, 0x11),
            (ICW2, 0x30),
            (ICW3, 0x04),
            (ICW4, 0x01),
            (OCW2_PRIORITY, 0xc3),
            (OCW3_READ, 0x0b),
            (OCW1, 0xfa),
        ]
    );
}

#[test]
fn one_ocw3_is_logged_as_the_commands_that_it_carries() {
    let mut device = Device::new();
    device.write(1, 0, 0x6f);
    assert_eq!(
        log(&device.capture()),
        [
            (OCW3_MASK + SLAVE, 0x68),
            (OCW3_READ + SLAVE, 0x0b),
            (OCW3_POLL + SLAVE, 0x0c),
        ]
    );
    device.read(1, 1);
    device.write(1, 0, 0x48);
    assert_eq!(
        log(&device.capture()),
        [(OCW3_READ + SLAVE, 0x0b), (OCW3_MASK + SLAVE, 0x48)]
    );
}

#[test]
fn an_initialization_that_is_under_way_goes_on_after_the_move() {
    let mut device = Device::new();
    device.write(0, 0, 0x11);
    device.write(0, 1, 0x40);
    let mut there = device.moved();
    there.write(0, 1, 0x04);
    there.write(0, 1, 0x03);
    there.write(0, 1, 0x5a);
    assert_eq!(there.read(0, 1), 0x5a);
    there.pair.pulse(0);
    assert_eq!(there.pair.acknowledge(), 0x40);
}

#[test]
fn hardware_with_an_interrupt_in_service_is_not_captured() {
    let mut device = Device::new();
    device.write(0, 0, 0x13);
    device.write(0, 1, 0x30);
    device.write(0, 1, 0x01);
    device.pair.pulse(4);
    device.pair.acknowledge();
    let busy = capture(
        &mut device.recorder,
        &mut Hardware(&mut device.pair),
        &mut Still::default(),
    );
    assert_eq!(
        busy,
        Err(CaptureError::Busy {
            register: MASTER_ISR
        })
    );
    device.write(0, 0, 0xa0);
    let rotated = capture(
        &mut device.recorder,
        &mut Hardware(&mut device.pair),
        &mut Still::default(),
    );
    assert_eq!(
        rotated,
        Err(CaptureError::Unknowable {
            register: MASTER_LOWEST
        })
    );
    device.write(0, 0, 0xc7);
    let before = device.pair;
    let at_rest = capture(
        &mut device.recorder,
        &mut Hardware(&mut device.pair),
        &mut Still::default(),
    );
    assert!(at_rest.is_ok());
    assert_eq!(device.pair, before, "capture leaves the pair as it was");
}

#[test]
fn a_sequence_that_no_guest_can_make_is_refused_by_the_registers_name() {
    let mut device = Device::new();
    device.write(0, 0, 0x12);
    device.write(0, 1, 0x30);
    device.write(0, 1, 0xff);
    let good = device.capture();
    assert!(planned(KIND_I8259, &good).is_ok());
    let refused = |change: &dyn Fn(&mut Vec<StateRecord>)| {
        let mut records = good.clone();
        change(&mut records);
        planned(KIND_I8259, &records)
    };
    // ICW2 without ICW1 is a mask.
    assert_eq!(
        refused(&|records| {
            records.remove(0);
        }),
        Err(PlanError::Sequence {
            register: "master ICW2"
        })
    );
    // ICW1 said that ICW4 does not come.
    assert_eq!(
        refused(&|records| records[2].register = ICW4),
        Err(PlanError::Sequence {
            register: "master ICW4"
        })
    );
    assert_eq!(
        refused(&|records| records[0].value = 0x02),
        Err(PlanError::Sequence {
            register: "master ICW1"
        })
    );
    assert_eq!(
        refused(&|records| records.push(good[2])),
        Err(PlanError::Repeated {
            register: "master OCW1"
        })
    );
    assert_eq!(
        refused(&|records| records.retain(|record| record.register != ELCR2)),
        Err(PlanError::Missing { register: "ELCR2" })
    );
}

#[derive(Debug, Clone, Copy)]
enum Op {
    Write(u8, u64, u8),
    Read(u8, u64),
    Line(u8, bool),
    Pulse(u8),
    Acknowledge,
}

fn op() -> impl Strategy<Value = Op> {
    // Mostly commands that do something, and initializations now and then.
    let command = prop_oneof![
        1 => prop_oneof![Just(0x11u8), Just(0x13), Just(0x10), Just(0x12)],
        4 => (0..8u8, 0..8u8).prop_map(|(command, level)| command << 5 | level),
        2 => (0..128u8).prop_map(|bits| bits & 0x67 | 0x08),
    ];
    prop_oneof![
        4 => (0..2u8, command).prop_map(|(range, value)| Op::Write(range, 0, value)),
        4 => (0..2u8, any::<u8>()).prop_map(|(range, value)| Op::Write(range, 1, value)),
        1 => (0..2u64, any::<u8>()).prop_map(|(offset, value)| Op::Write(2, offset, value)),
        3 => (0..3u8, 0..2u64).prop_map(|(range, offset)| Op::Read(range, offset)),
        4 => (0..16u8, any::<bool>()).prop_map(|(irq, level)| Op::Line(irq, level)),
        2 => (0..16u8).prop_map(Op::Pulse),
        3 => Just(Op::Acknowledge),
    ]
}

fn apply(device: &mut Device, op: Op) -> u8 {
    match op {
        Op::Write(range, offset, value) => device.write(range, offset, value),
        Op::Read(range, offset) => return device.read(range, offset),
        Op::Line(irq, level) => device.pair.set_line(irq, level),
        Op::Pulse(irq) => device.pair.pulse(irq),
        Op::Acknowledge => return device.pair.acknowledge(),
    }
    0
}

/// The records by register: a plan may bring registers that don't depend on each other in another order.
fn by_register(mut records: Vec<StateRecord>) -> Vec<StateRecord> {
    records.sort_by_key(|record| record.register);
    records
}

proptest! {
    #[test]
    fn a_pair_that_has_moved_answers_as_if_it_had_not(
        before in proptest::collection::vec(op(), 0..80),
        after in proptest::collection::vec(op(), 0..40),
    ) {
        let mut here = Device::new();
        for op in before {
            apply(&mut here, op);
        }
        let mut there = here.moved();
        prop_assert_eq!(by_register(there.capture()), by_register(here.capture()), "and can be captured again");
        for op in after {
            prop_assert_eq!(apply(&mut there, op), apply(&mut here, op), "{:?}", op);
            prop_assert_eq!(there.pair.pending(), here.pair.pending());
        }
    }

    #[test]
    fn a_pair_that_gets_its_own_state_back_is_as_it_was(
        before in proptest::collection::vec(op(), 0..80),
    ) {
        let mut here = Device::new();
        for op in before {
            apply(&mut here, op);
        }
        let (pair, records) = (here.pair, here.capture());
        here.put_back();
        prop_assert_eq!(here.pair, pair);
        prop_assert_eq!(by_register(here.capture()), by_register(records));
    }
}
