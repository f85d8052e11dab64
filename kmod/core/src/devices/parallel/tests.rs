// SPDX-License-Identifier: GPL-2.0
//! Ports that move while they print.

use super::super::testing::{assert_done, capture, planned, restore};
use super::super::{CaptureError, PlanError, RecorderState, Sink};
use super::testbed::{Chip, Clock};
use super::*;
use crate::iospace::{Location, Width};
use crate::record::Recorder as _;
use crate::replay::{Backend, Outcome};
use proptest::prelude::*;
use pvmm_uapi::{PlanStep, StateRecord, KIND_PARALLEL, ORIGIN_LOG, ORIGIN_READ_BACK, OUTCOME_DONE};
use std::vec;
use std::vec::Vec;

const DATA: u64 = 0;
const STATUS: u64 = 1;
const CONTROL: u64 = 2;

/// A port as a guest has it: what traps goes to the recorder, the rest past it.
struct Device {
    chip: Chip,
    recorder: RecorderState,
    clock: Clock,
}

impl Device {
    fn new(clock: &Clock) -> Self {
        let mut device = Self {
            chip: Chip::new(clock),
            recorder: RecorderState::Parallel(Recorder::new()),
            clock: clock.clone(),
        };
        let outcome = device.reset();
        assert_eq!(outcome.outcome, OUTCOME_DONE);
        device.recorder = RecorderState::Parallel(Recorder::new());
        // The chip came out of power-on with INIT active.
        device.chip.inits = 0;
        device
    }

    fn reset(&mut self) -> Outcome {
        let mut storage = vec![PlanStep::default(); 64];
        let mut sink = Sink::new(&mut storage);
        assert_eq!(reset(&mut sink), Ok(()));
        let steps = sink.as_slice().to_vec();
        self.run(&steps)
    }

    fn run(&mut self, steps: &[PlanStep]) -> Outcome {
        let mut clock = self.clock.clone();
        restore(&mut self.recorder, &mut self.chip, &mut clock, steps)
    }

    fn execute(&mut self, steps: &[PlanStep]) {
        let outcome = self.run(steps);
        assert_done(KIND_PARALLEL, steps, outcome);
    }

    fn traps(&self, offset: u64) -> bool {
        self.recorder.traps(0) >> offset & 1 != 0
    }

    fn write(&mut self, offset: u64, value: u8) {
        let at = Location::new(0, offset);
        let traps = self.traps(offset);
        self.chip.write(at, Width::W1, value.into());
        if traps {
            self.recorder
                .after(&Access::write(at, Width::W1, value.into()));
        }
    }

    fn read(&mut self, offset: u64) -> u8 {
        let at = Location::new(0, offset);
        let traps = self.traps(offset);
        let value = self.chip.read(at, Width::W1);
        if traps {
            self.recorder.after(&Access::read(at, Width::W1, value));
        }
        value as u8
    }

    fn capture(&mut self) -> Result<Vec<StateRecord>, CaptureError> {
        capture(&mut self.recorder, &mut self.chip, &mut self.clock.clone())
    }

    /// Sends a byte as a driver does, the first `steps` of three accesses.
    fn send(&mut self, byte: u8, steps: usize) {
        let control = 0x0c | if self.traps_irq() { 0x10 } else { 0 };
        if steps > 0 {
            self.write(DATA, byte);
        }
        if steps > 1 {
            self.write(CONTROL, control | 0x01);
        }
        if steps > 2 {
            self.write(CONTROL, control);
        }
    }

    fn traps_irq(&self) -> bool {
        match &self.recorder {
            RecorderState::Parallel(recorder) => recorder.control() & CTR_IRQ != 0,
            _ => false,
        }
    }

    fn settle(&mut self) {
        self.clock.pass(1_000_000);
        self.chip.advance();
    }
}

/// A port at the peer that somebody has used before.
fn used(clock: &Clock) -> Device {
    let mut device = Device::new(clock);
    device.write(DATA, 0xee);
    device.write(CONTROL, 0x1e);
    assert_eq!(device.reset().outcome, OUTCOME_DONE);
    device.recorder = RecorderState::Parallel(Recorder::new());
    device
}

fn plan_of(records: &[StateRecord]) -> Vec<PlanStep> {
    planned(KIND_PARALLEL, records).expect("a captured state")
}

#[test]
fn data_passes_without_an_exit_while_it_can_be_read_back_and_status_always() {
    let mut device = Device::new(&Clock::default());
    assert_eq!(device.recorder.traps(0), 0b100);
    assert_eq!(device.recorder.traps(1), 0);
    device.write(CONTROL, 0x2c);
    assert_eq!(device.recorder.traps(0), 0b101);
    device.write(CONTROL, 0x0c);
    assert_eq!(device.recorder.traps(0), 0b100);
}

#[test]
fn a_byte_is_printed_once_whichever_of_its_accesses_a_move_comes_before() {
    for steps in 0..=3 {
        let clock = Clock::default();
        let mut here = Device::new(&clock);
        here.send(b'A', 3);
        here.settle();
        here.send(b'B', steps);
        let captured = here.capture();
        if steps == 2 {
            assert_eq!(captured, Err(CaptureError::Busy { register: CTR }));
            continue;
        }
        let mut there = used(&clock);
        there.execute(&plan_of(&captured.expect("no strobe")));
        // The guest goes on with the next access.
        for next in steps.max(1)..4 {
            match next {
                1 if steps == 0 => there.write(DATA, b'B'),
                2 if steps < 2 => there.write(CONTROL, 0x0d),
                3 if steps < 3 => there.write(CONTROL, 0x0c),
                _ => {}
            }
        }
        if steps == 1 {
            there.write(CONTROL, 0x0d);
            there.write(CONTROL, 0x0c);
        }
        let printed = [&here.chip.printed[..], &there.chip.printed[..]].concat();
        let mut once = printed.clone();
        once.dedup();
        assert_eq!(once, b"AB", "{steps}: {printed:?}");
    }
}

#[test]
fn what_the_printer_has_is_not_taken_from_it_when_the_port_is_taken_back() {
    let mut device = Device::new(&Clock::default());
    device.send(b'A', 3);
    assert_eq!(device.reset().outcome, OUTCOME_DONE);
    assert_eq!(device.chip.inits, 0);
    device.settle();
    assert_eq!(device.chip.printed, b"A");
}

#[test]
fn an_acknowledgement_that_interrupts_is_waited_for_and_no_other() {
    for (irq, expected) in [(0x10, 1), (0, 0)] {
        let clock = Clock::default();
        let mut here = Device::new(&clock);
        here.write(CONTROL, 0x0c | irq);
        here.send(b'A', 3);
        let begin = clock.0.get();
        here.capture().expect("the printer is fast");
        assert_eq!(clock.0.get() - begin > 20_000, irq != 0);
        assert_eq!(here.chip.interrupts, expected);
    }
}

#[test]
fn a_printer_that_does_not_acknowledge_fails_the_capture_by_the_name_of_the_status_register() {
    let clock = Clock::default();
    let mut here = Device::new(&clock);
    here.write(CONTROL, 0x1c);
    here.chip.speed_ns = Some(1_000_000_000);
    here.send(b'A', 3);
    assert_eq!(here.capture(), Err(CaptureError::Busy { register: STR }));
    assert_eq!(here.read(CONTROL) & 0x1f, 0x1c, "nothing was touched");
    here.clock.pass(1_000_000_000);
    here.chip.advance();
    assert!(here.capture().is_ok());
    // Nobody waits for one that was never strobed to.
    here.chip.speed_ns = None;
    assert!(here.capture().is_ok());
}

#[test]
fn a_port_that_is_turned_to_input_moves_once_its_latch_is_known() {
    let clock = Clock::default();
    let mut here = Device::new(&clock);
    here.write(DATA, 0x11);
    here.write(CONTROL, 0x2c);
    assert_eq!(here.capture(), Err(CaptureError::Busy { register: DTR }));
    here.write(DATA, 0x22);
    let records = here.capture().expect("it was written to");
    let mut there = used(&clock);
    there.execute(&plan_of(&records));
    assert_eq!(there.read(DATA), 0x3c, "the lines");
    let again = there.capture().expect("it can move on");
    let sorted = |mut records: Vec<StateRecord>| {
        records.sort_by_key(|record| record.register);
        records
    };
    assert_eq!(sorted(again), sorted(records));
    there.write(CONTROL, 0x0c);
    assert_eq!(there.read(DATA), 0x22, "the latch");
}

#[test]
fn nothing_at_the_ports_is_not_taken_for_a_port() {
    struct Nothing;
    impl Backend for Nothing {
        fn read(&mut self, _: Location, width: Width) -> u64 {
            width.mask()
        }
        fn write(&mut self, _: Location, _: Width, _: u64) {}
    }
    let mut storage = vec![PlanStep::default(); 64];
    let mut sink = Sink::new(&mut storage);
    reset(&mut sink).expect("there is room");
    let mut recorder = RecorderState::Parallel(Recorder::new());
    let outcome = restore(
        &mut recorder,
        &mut Nothing,
        &mut Clock::default(),
        sink.as_slice(),
    );
    assert_ne!(outcome.outcome, OUTCOME_DONE);
}

#[test]
fn an_impossible_state_is_refused_by_the_registers_name() {
    let record = |register, offset, origin, value| StateRecord {
        register,
        origin,
        range: 0,
        width: 1,
        reserved: [0; 3],
        offset,
        value,
    };
    let data = record(DTR, 0, ORIGIN_READ_BACK, 0x41);
    let latch = record(DTR, 0, ORIGIN_LOG, 0x41);
    let control = |value| record(CTR, 2, ORIGIN_LOG, value);
    let refused = |records: &[StateRecord]| planned(KIND_PARALLEL, records).map(drop);
    assert_eq!(refused(&[data]), Ok(()));
    assert_eq!(refused(&[control(0x1c), data]), Ok(()));
    assert_eq!(refused(&[latch, control(0x2c)]), Ok(()));
    for (records, error) in [
        (&[control(0x0c)][..], PlanError::Missing { register: "DTR" }),
        (
            &[control(0x0d), data],
            PlanError::Value {
                register: "CTR",
                value: 0x0d,
            },
        ),
        (
            &[control(0x4c), data],
            PlanError::Value {
                register: "CTR",
                value: 0x4c,
            },
        ),
        (
            &[control(0x2c), data],
            PlanError::Sequence { register: "DTR" },
        ),
        (
            &[control(0x0c), latch],
            PlanError::Sequence { register: "DTR" },
        ),
        (&[latch], PlanError::Sequence { register: "DTR" }),
        (&[data, data], PlanError::Repeated { register: "DTR" }),
        (
            &[control(0x0c), control(0x0c), data],
            PlanError::Repeated { register: "CTR" },
        ),
        (
            &[record(CTR, 2, ORIGIN_READ_BACK, 0x0c), data],
            PlanError::Malformed { register: "CTR" },
        ),
    ] {
        assert_eq!(refused(records), Err(error), "{records:?}");
    }
}

#[derive(Debug, Clone, Copy)]
enum Op {
    Write(u64, u8),
    Read(u64),
    Send(u8),
    Lines(u8),
    Pause(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => any::<u8>().prop_map(|value| Op::Write(DATA, value)),
        1 => any::<u8>().prop_map(|value| Op::Write(STATUS, value)),
        3 => any::<u8>().prop_map(|value| Op::Write(CONTROL, value)),
        4 => (0..3u64).prop_map(Op::Read),
        6 => any::<u8>().prop_map(Op::Send),
        1 => any::<u8>().prop_map(Op::Lines),
        3 => (0..60_000u64).prop_map(Op::Pause),
    ]
}

fn apply(device: &mut Device, op: Op) -> u8 {
    match op {
        Op::Write(offset, value) => device.write(offset, value),
        Op::Read(offset) => return device.read(offset),
        Op::Send(byte) => device.send(byte, 3),
        Op::Lines(level) => device.chip.lines = level,
        Op::Pause(ns) => device.clock.pass(ns),
    }
    device.chip.advance();
    0
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_port_that_has_moved_answers_as_one_that_has_stayed_and_no_byte_is_printed_twice_or_not_at_all(
        before in proptest::collection::vec(op(), 0..60),
        after in proptest::collection::vec(op(), 0..40),
        aborted in any::<bool>(),
    ) {
        let clock = Clock::default();
        let mut here = Device::new(&clock);
        for op in before {
            apply(&mut here, op);
        }
        let mut captured = here.capture();
        if let Err(CaptureError::Busy { register }) = captured {
            // The guest runs on, to where the kind says that it can move.
            match register {
                CTR => here.write(CONTROL, 0x0c),
                DTR => here.write(DATA, 0x77),
                _ => here.settle(),
            }
            captured = here.capture();
        }
        if captured == Err(CaptureError::Busy { register: STR }) || captured == Err(CaptureError::Busy { register: DTR }) {
            here.write(DATA, 0x77);
            here.settle();
            captured = here.capture();
        }
        let records = captured.expect("it has come to rest");
        // What the move does not carry is the printer's own; let it have finished at both places.
        here.settle();
        let other_clock = Clock::default();
        other_clock.pass(clock.0.get());
        let mut stays = Device {
            chip: here.chip.on(&other_clock),
            recorder: here.recorder,
            clock: other_clock,
        };
        let (printed, interrupts) = (here.chip.printed.clone(), here.chip.interrupts);
        let steps = plan_of(&records);
        let mut moved = if aborted {
            let inits = here.chip.inits;
            here.execute(&steps);
            prop_assert_eq!(here.chip.inits, inits);
            prop_assert_eq!(&here.chip.printed, &printed);
            here.chip.printed.clear();
            here
        } else {
            let mut there = used(&clock);
            there.chip.lines = stays.chip.lines;
            there.execute(&steps);
            prop_assert!(there.chip.printed.is_empty());
            there
        };
        prop_assert_eq!(moved.recorder.traps(0), stays.recorder.traps(0));
        stays.chip.interrupts = 0;
        moved.chip.interrupts = 0;
        let _ = interrupts;
        for op in after {
            prop_assert_eq!(apply(&mut moved, op), apply(&mut stays, op), "{:?}", op);
        }
        moved.settle();
        stays.settle();
        prop_assert_eq!([printed, moved.chip.printed].concat(), stays.chip.printed);
        prop_assert_eq!(moved.chip.interrupts, stays.chip.interrupts);
    }
}
