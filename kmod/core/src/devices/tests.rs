// SPDX-License-Identifier: GPL-2.0
//! What holds of every kind.

use super::testing::{capture, planned, restore, Still};
use super::*;
use crate::iospace::{Direction, Location, Width};
use proptest::prelude::*;
use pvmm_uapi::{MAX_PLAN_STEPS, MAX_STATE_RECORDS};
use std::collections::BTreeSet;
use std::string::ToString;
use std::vec;
use std::vec::Vec;

fn recorder(number: u32) -> RecorderState {
    RecorderState::new(number).expect("a kind of the table")
}

#[test]
fn every_kind_has_a_recorder_a_name_and_a_table_without_doubles() {
    assert!(!KINDS.is_empty());
    let numbers: BTreeSet<u32> = KINDS.iter().map(|kind| kind.number).collect();
    let names: BTreeSet<&str> = KINDS.iter().map(|kind| kind.name).collect();
    assert_eq!((numbers.len(), names.len()), (KINDS.len(), KINDS.len()));
    for kind in KINDS {
        assert_eq!(recorder(kind.number).number(), kind.number);
        assert!(!kind.registers.is_empty());
        // 0 stands for no register in `DeviceCapture`.
        assert!(kind.registers.iter().all(|register| register.id != 0));
        assert!(kind.ranges.len() <= pvmm_uapi::MAX_PORT_RANGES);
        let ids: BTreeSet<u16> = kind.registers.iter().map(|register| register.id).collect();
        let names: BTreeSet<&str> = kind
            .registers
            .iter()
            .map(|register| register.name)
            .collect();
        assert_eq!(ids.len(), kind.registers.len(), "{}", kind.name);
        assert_eq!(names.len(), kind.registers.len(), "{}", kind.name);
        for register in kind
            .registers
            .iter()
            .filter(|r| r.access != register::Access::Hidden)
        {
            let length = kind.ranges[usize::from(register.at.range)];
            assert!(register.at.offset + u64::from(register.width.bytes()) <= length);
            assert_eq!(register_name(kind.number, register.id), Some(register.name));
        }
    }
}

#[test]
fn an_unknown_kind_version_or_register_is_refused_by_name() {
    let mut storage = [PlanStep::default(); 4];
    let refusal = |number, version, records: &[StateRecord], storage: &mut [PlanStep]| {
        plan(number, version, records, &mut Sink::new(storage)).map_err(|error| error.to_string())
    };
    assert!(RecorderState::new(99).is_none());
    assert_eq!(
        refusal(99, 1, &[], &mut storage),
        Err("unknown device kind 99".to_string())
    );
    for kind in KINDS {
        assert_eq!(
            refusal(kind.number, kind.state_version + 1, &[], &mut storage),
            Err(std::format!(
                "{}: state version {} is unknown, this monitor has {}",
                kind.name,
                kind.state_version + 1,
                kind.state_version
            ))
        );
        let record = StateRecord {
            register: 999,
            ..StateRecord::default()
        };
        assert_eq!(
            refusal(kind.number, kind.state_version, &[record], &mut storage),
            Err(std::format!("{}: unknown register 999", kind.name))
        );
    }
}

#[test]
fn a_record_is_refused_if_place_width_origin_or_reserved_bytes_are_not_those_of_its_register() {
    let good = StateRecord {
        register: i8259::ELCR1,
        origin: pvmm_uapi::ORIGIN_READ_BACK,
        range: 2,
        width: 1,
        reserved: [0; 3],
        offset: 0,
        value: 0,
    };
    let complete = |record: StateRecord| {
        let second = StateRecord {
            register: i8259::ELCR2,
            offset: 1,
            ..good
        };
        planned(pvmm_uapi::KIND_I8259, &[record, second])
    };
    assert!(complete(good).is_ok());
    let malformed = Err(PlanError::Malformed { register: "ELCR1" });
    for bad in [
        StateRecord { range: 1, ..good },
        StateRecord { offset: 1, ..good },
        StateRecord { width: 2, ..good },
        StateRecord { width: 0, ..good },
        StateRecord { origin: 0, ..good },
        StateRecord { origin: 9, ..good },
        StateRecord {
            reserved: [0, 0, 1],
            ..good
        },
    ] {
        assert_eq!(complete(bad), malformed, "{bad:?}");
    }
    assert_eq!(
        complete(StateRecord {
            value: 0x100,
            ..good
        }),
        Err(PlanError::Value {
            register: "ELCR1",
            value: 0x100
        })
    );
}

/// A device that answers anything and remembers what was done to it.
#[derive(Default)]
struct Witness {
    accesses: Vec<(Direction, Location, u64)>,
    seed: u64,
}

impl Backend for Witness {
    fn read(&mut self, at: Location, _: Width) -> u64 {
        self.seed = self
            .seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let value = self.seed >> 40 & 0xff;
        self.accesses.push((Direction::Read, at, value));
        value
    }

    fn write(&mut self, at: Location, _: Width, value: u64) {
        self.accesses.push((Direction::Write, at, value));
    }
}

fn any_record() -> impl Strategy<Value = StateRecord> {
    (
        0..80u16,
        0..4u8,
        0..4u8,
        prop_oneof![9 => Just(1u8), 1 => any::<u8>()],
        0..10u64,
        prop_oneof![8 => 0..0x100u64, 1 => any::<u64>()],
    )
        .prop_map(
            |(register, origin, range, width, offset, value)| StateRecord {
                register,
                origin,
                range,
                width,
                reserved: [0; 3],
                offset,
                value,
            },
        )
}

/// A record that looks like one of the kind.
fn likely_record(number: u32) -> impl Strategy<Value = StateRecord> {
    let table = kind(number).map_or(&[][..], |kind| kind.registers);
    (0..table.len(), 0..0x100u64, 0..3u8).prop_map(move |(index, value, origin)| {
        let register = &table[index];
        StateRecord {
            register: register.id,
            origin,
            range: register.at.range,
            width: register.width.bytes(),
            reserved: [0; 3],
            offset: register.at.offset,
            value,
        }
    })
}

/// A width and a place that a guest can use.
fn any_access() -> impl Strategy<Value = Access> {
    (any::<bool>(), 0..3u8, 0..8u64, any::<u8>(), 0..12u8).prop_map(
        |(read, range, offset, value, wide)| {
            let width = if wide == 0 { Width::W2 } else { Width::W1 };
            let at = Location::new(range, offset);
            if read {
                Access::read(at, width, value.into())
            } else {
                Access::write(at, width, u64::from(value) * 0x0101)
            }
        },
    )
}

proptest! {
    #[test]
    fn hostile_records_make_no_plan_or_one_that_stays_in_the_device(
        which in 0..KINDS.len(),
        records in proptest::collection::vec(any_record(), 0..12),
        seed in any::<u64>(),
    ) {
        stays_inside(&KINDS[which], &records, seed);
    }

    #[test]
    fn likely_records_make_no_plan_or_one_that_stays_in_the_device(
        (which, records) in (0..KINDS.len()).prop_flat_map(|which| {
            (Just(which), proptest::collection::vec(likely_record(KINDS[which].number), 0..40))
        }),
        seed in any::<u64>(),
    ) {
        stays_inside(&KINDS[which], &records, seed);
    }

    #[test]
    fn a_captured_state_is_always_accepted_by_the_plan(
        which in 0..KINDS.len(),
        accesses in proptest::collection::vec(any_access(), 0..200),
        seed in any::<u64>(),
    ) {
        let number = KINDS[which].number;
        let mut recorder = recorder(number);
        for access in &accesses {
            recorder.after(access);
        }
        let mut witness = Witness { seed, ..Witness::default() };
        match capture(&mut recorder, &mut witness, &mut Still::default()) {
            Ok(records) => prop_assert!(planned(number, &records).is_ok(), "{:?} of {records:?}", planned(number, &records)),
            // What the witness showed was not at rest.
            Err(error) => prop_assert!(
                matches!(error, CaptureError::Busy { .. } | CaptureError::Unknowable { .. }),
                "{error}"
            ),
        }
    }
}

/// Executes what comes of the records and looks at what was touched.
fn stays_inside(kind: &Kind, records: &[StateRecord], seed: u64) {
    let Ok(steps) = planned(kind.number, records) else {
        return;
    };
    let mut witness = Witness {
        seed,
        ..Witness::default()
    };
    let outcome = restore(
        &mut recorder(kind.number),
        &mut witness,
        &mut Still::default(),
        &steps,
    );
    if outcome.outcome == pvmm_uapi::OUTCOME_REFUSED {
        // Only because this hardware has no hidden state.
        assert_eq!(steps[outcome.step as usize].operation, pvmm_uapi::STEP_SET);
        assert!(witness.accesses.is_empty());
    }
    for (_, at, _) in &witness.accesses {
        assert!(at.offset < kind.ranges[usize::from(at.range)], "{at:?}");
    }
}

#[test]
fn the_logs_stay_in_their_bounds_under_a_million_accesses() {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for kind in KINDS {
        let mut recorder = recorder(kind.number);
        let mut longest = 0;
        for _ in 0..1_000_000 {
            let number = random();
            let range = (number % kind.ranges.len() as u64) as u8;
            let at = Location::new(range, number >> 8 & 7);
            let value = number >> 16 & 0xff;
            recorder.after(&if number >> 32 & 3 == 0 {
                Access::read(at, Width::W1, value)
            } else {
                Access::write(at, Width::W1, value)
            });
            let log = recorder.log();
            assert!(!log.overflowed, "{}", kind.name);
            longest = longest.max(log.entries.len());
        }
        assert!(longest > 1, "{} logged nothing", kind.name);
    }
}

#[test]
fn the_largest_states_and_plans_fit_the_abi() {
    for kind in KINDS {
        let log = recorder(kind.number).log().bound;
        // Beside the log, each other register at most once, and a full FIFO.
        let records = log + kind.registers.len() + uart16550::FIFO;
        assert!(records <= MAX_STATE_RECORDS as usize, "{}", kind.name);
    }
    // The longest plans: each entry of the log and what it is checked with, each hidden number; four steps for each
    // character of a FIFO of breaks, and some fifty for a UART's registers.
    const { assert!(MAX_PLAN_STEPS as usize >= 3 * i8254::LOG_BOUND + 64) };
    const { assert!(MAX_PLAN_STEPS as usize >= 4 * uart16550::FIFO + 64) };
}

#[test]
fn a_device_that_is_given_to_a_guest_can_be_reset_if_its_kind_needs_it() {
    for kind in KINDS {
        let mut storage = vec![PlanStep::default(); MAX_PLAN_STEPS as usize];
        let mut sink = Sink::new(&mut storage);
        assert_eq!(reset(kind.number, &mut sink), Ok(()));
        assert_eq!(sink.is_empty(), !is_attachable(kind.number));
    }
    let unknown = Err(PlanError::UnknownKind { kind: 0 });
    assert_eq!(reset(0, &mut Sink::new(&mut [])), unknown);
}

#[test]
fn a_sink_takes_as_much_as_it_has_room_for() {
    let mut storage = vec![0; 2];
    let mut sink = Sink::new(&mut storage);
    assert!(sink.is_empty());
    assert_eq!(
        (sink.push(1), sink.push(2), sink.push(3)),
        (Ok(()), Ok(()), Err(Full))
    );
    assert_eq!(
        (sink.len(), sink.room(), sink.as_slice()),
        (2, 0, &[1, 2][..])
    );
}
