// SPDX-License-Identifier: GPL-2.0
//! The recorder of the 8254, and timers that move.

use super::super::testing::{assert_done, capture, planned, restore, Hardware, Still};
use super::super::{PlanError, RecorderState};
use super::*;
use crate::models::i8254::{ns_of, I8254};
use crate::record::Recorder as _;
use proptest::prelude::*;
use pvmm_uapi::{KIND_I8254, ORIGIN_INFERRED, ORIGIN_LOG};
use std::vec::Vec;

/// A timer with its recorder, as a VM has it.
#[derive(Clone)]
struct Device {
    timer: I8254,
    recorder: RecorderState,
    now: u64,
}

impl Device {
    fn new() -> Self {
        Self {
            timer: I8254::new(),
            recorder: RecorderState::I8254(Recorder::new()),
            now: 0,
        }
    }

    fn write(&mut self, range: u8, offset: u64, value: u8) {
        let at = Location::new(range, offset);
        self.timer.write(at, value, self.now);
        self.recorder
            .after(&Access::write(at, Width::W1, value.into()));
    }

    fn read(&mut self, range: u8, offset: u64) -> u8 {
        let at = Location::new(range, offset);
        let value = self.timer.read(at, self.now);
        self.recorder
            .after(&Access::read(at, Width::W1, value.into()));
        value
    }

    fn capture(&mut self) -> Vec<StateRecord> {
        let mut backend = self.timer.at(self.now);
        capture(&mut self.recorder, &mut backend, &mut Still::default())
            .expect("a model is always at rest")
    }

    /// The same device on a host that takes `late` nanoseconds of VM time until it executes the plan.
    fn moved(&mut self, late: u64) -> Self {
        let records = self.capture();
        let steps = planned(KIND_I8254, &records).expect("a captured state");
        let mut there = Self::new();
        there.now = self.now + late;
        let outcome = restore(
            &mut there.recorder,
            &mut there.timer.at(self.now + late),
            &mut Still::default(),
            &steps,
        );
        assert_done(KIND_I8254, &steps, outcome);
        there
    }
}

fn log(records: &[StateRecord]) -> Vec<(u16, u64)> {
    records
        .iter()
        .filter(|record| record.origin == ORIGIN_LOG || record.register % COUNTER == LOW_READ)
        .map(|record| (record.register, record.value))
        .collect()
}

#[test]
fn a_new_count_replaces_the_one_before_and_a_new_control_word_both() {
    let mut device = Device::new();
    device.write(0, 3, 0x34);
    for count in 0..50u8 {
        device.write(0, 0, count);
        device.write(0, 0, 0x10);
    }
    assert_eq!(
        log(&device.capture()),
        [(CONTROL, 0x34), (LOW, 49), (HIGH, 0x10)]
    );
    device.write(0, 0, 0x77);
    assert_eq!(
        log(&device.capture()),
        [(CONTROL, 0x34), (LOW, 49), (HIGH, 0x10), (LOW, 0x77)]
    );
    device.write(0, 3, 0x10);
    assert_eq!(log(&device.capture()), [(CONTROL, 0x10)]);
}

#[test]
fn a_latch_is_part_of_the_state_until_it_is_read() {
    let mut device = Device::new();
    device.write(0, 3, 0xb4);
    device.write(0, 3, 0x80);
    device.write(0, 3, 0xc8);
    let base = 2 * COUNTER;
    assert_eq!(
        log(&device.capture()),
        [
            (CONTROL + base, 0xb4),
            (LATCH + base, 0x80),
            (STATUS_LATCH + base, 0xe8)
        ]
    );
    device.read(0, 2);
    device.read(0, 2);
    assert_eq!(
        log(&device.capture()),
        [
            (CONTROL + base, 0xb4),
            (LATCH + base, 0x80),
            (LOW_READ + base, 0)
        ]
    );
    device.read(0, 2);
    assert_eq!(log(&device.capture()), [(CONTROL + base, 0xb4)]);
}

#[test]
fn hardware_comes_up_programmed_and_half_read_as_at_the_source() {
    let mut device = Device::new();
    device.write(0, 3, 0x34);
    device.write(0, 0, 0x34);
    device.write(0, 0, 0x12);
    device.write(1, 0, 0x03);
    device.write(0, 3, 0xb6);
    device.write(0, 2, 0x99);
    device.now = ns_of(10);
    device.read(0, 0);
    let records = capture(
        &mut device.recorder,
        &mut Hardware(&mut device.timer.at(device.now)),
        &mut Still::default(),
    )
    .expect("at rest");
    assert!(records
        .iter()
        .all(|record| record.origin != ORIGIN_INFERRED || record.register == LOW_READ));
    let steps = planned(KIND_I8254, &records).expect("a captured state");
    let mut there = Device::new();
    let outcome = restore(
        &mut there.recorder,
        &mut Hardware(&mut there.timer.at(0)),
        &mut Still::default(),
        &steps,
    );
    assert_done(KIND_I8254, &steps, outcome);
    there.now = ns_of(0x34 + 1);
    assert_eq!(there.read(0, 0), 0x12, "the high byte is next");
    assert_eq!(there.timer.next_edge(there.now), Some(ns_of(0x1234 + 1)));
    there.write(0, 2, 0x01);
    there.now = ns_of(0x40);
    there.write(0, 3, 0xc8);
    assert_eq!(
        there.read(0, 2),
        0xb6,
        "status: OUT, loaded, low then high, mode 3"
    );
    assert_eq!(there.read(1, 0) & 0x0f, 0x03);
}

#[test]
fn the_tick_goes_on_through_a_move() {
    let mut here = Device::new();
    here.write(0, 3, 0x34);
    here.write(0, 0, 0xa9);
    here.write(0, 0, 0x04);
    here.now = 1_234_567_890;
    let mut there = here.moved(0);
    assert_eq!(
        there.timer.next_edge(there.now),
        here.timer.next_edge(here.now)
    );
    assert_eq!(there.timer, here.timer);
}

#[test]
fn ticks_that_fall_into_the_restore_are_not_lost() {
    let mut here = Device::new();
    here.write(0, 3, 0x34);
    here.write(0, 0, 0xa9);
    here.write(0, 0, 0x04);
    here.now = 50_000_000;
    here.timer.advance(here.now);
    while here.timer.take_edge() {}
    let mut there = here.moved(10_000_000);
    assert_eq!(
        there.timer.advance(60_000_000),
        here.timer.advance(60_000_000)
    );
    assert_eq!(there.timer.backlog(), 10);
}

#[test]
fn a_sequence_that_no_guest_can_make_is_refused_by_the_registers_name() {
    let mut device = Device::new();
    device.write(0, 3, 0x14);
    device.write(0, 0, 0x55);
    device.write(0, 3, 0x00);
    let good = device.capture();
    assert!(planned(KIND_I8254, &good).is_ok());
    let refused = |change: &dyn Fn(&mut Vec<StateRecord>)| {
        let mut records = good.clone();
        change(&mut records);
        planned(KIND_I8254, &records)
    };
    assert_eq!(
        refused(&|records| records[0].value = 0x54),
        Err(PlanError::Value {
            register: "control word 0",
            value: 0x54
        })
    );
    assert_eq!(
        refused(&|records| (records[1].register, records[1].value) = (HIGH, 1)),
        Err(PlanError::Sequence {
            register: "count 0 (high byte)"
        })
    );
    assert_eq!(
        refused(&|records| records.push(records[2])),
        Err(PlanError::Sequence {
            register: "counter latch command 0"
        })
    );
    assert_eq!(
        refused(&|records| records.retain(|record| record.register != PORT61)),
        Err(PlanError::Missing {
            register: "port 61h"
        })
    );
    assert_eq!(
        refused(&|records| {
            let tick = records
                .iter()
                .find(|record| record.register == TICK)
                .copied();
            records.extend(tick);
        }),
        Err(PlanError::Repeated { register: "tick" })
    );
}

#[derive(Debug, Clone, Copy)]
enum Op {
    Write(u8, u64, u8),
    Read(u8, u64),
    Pause(u64),
    TakeEdge,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (0..3u8, 1..4u8, 0..16u8).prop_map(|(counter, format, mode)| Op::Write(0, 3, counter << 6 | format << 4 | mode)),
        3 => (0..3u8).prop_map(|counter| Op::Write(0, 3, counter << 6)),
        2 => any::<u8>().prop_map(|select| Op::Write(0, 3, 0xc0 | select)),
        8 => (0..3u64, prop_oneof![3 => 0..20u8, 1 => any::<u8>()]).prop_map(|(counter, value)| Op::Write(0, counter, value)),
        5 => (0..4u64).prop_map(|offset| Op::Read(0, offset)),
        3 => any::<u8>().prop_map(|value| Op::Write(1, 0, value)),
        1 => Just(Op::Read(1, 0)),
        6 => prop_oneof![0..50_000u64, 0..100_000_000u64].prop_map(Op::Pause),
        2 => Just(Op::TakeEdge),
    ]
}

fn apply(device: &mut Device, op: Op) -> u8 {
    match op {
        Op::Write(range, offset, value) => device.write(range, offset, value),
        Op::Read(range, offset) => return device.read(range, offset),
        Op::Pause(ns) => {
            device.now += ns;
            device.timer.advance(device.now);
        }
        Op::TakeEdge => return device.timer.take_edge().into(),
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
    fn a_timer_that_has_moved_answers_as_if_it_had_not(
        before in proptest::collection::vec(op(), 0..80),
        late in prop_oneof![2 => Just(0u64), 1 => 0..5_000_000u64],
        after in proptest::collection::vec(op(), 0..40),
    ) {
        let mut here = Device::new();
        for op in before {
            apply(&mut here, op);
        }
        let mut there = here.moved(late);
        here.now += late;
        prop_assert_eq!(there.timer.advance(there.now), here.timer.advance(here.now));
        prop_assert_eq!(there.timer, here.timer);
        prop_assert_eq!(by_register(there.capture()), by_register(here.capture()), "and can be captured again");
        for op in after {
            prop_assert_eq!(apply(&mut there, op), apply(&mut here, op), "{:?}", op);
            prop_assert_eq!(there.timer.next_edge(there.now), here.timer.next_edge(here.now));
            prop_assert_eq!((0..3).map(|i| there.timer.out(i)).collect::<Vec<_>>(), (0..3).map(|i| here.timer.out(i)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_timer_that_gets_its_own_state_back_is_as_it_was(
        before in proptest::collection::vec(op(), 0..80),
    ) {
        let mut here = Device::new();
        for op in before {
            apply(&mut here, op);
        }
        here.timer.advance(here.now);
        let (timer, records) = (here.timer, here.capture());
        let steps = planned(KIND_I8254, &records).expect("a captured state");
        let outcome = restore(&mut here.recorder, &mut here.timer.at(here.now), &mut Still::default(), &steps);
        assert_done(KIND_I8254, &steps, outcome);
        prop_assert_eq!(here.timer, timer);
        prop_assert_eq!(by_register(here.capture()), by_register(records));
    }
}
