// SPDX-License-Identifier: GPL-2.0
//! A look changes nothing, whatever the guest has done before.

use super::super::register::Fate;
use super::super::testing::Still;
use super::super::{i8254, i8259, kind, uart16550, RecorderState, KINDS};
use super::*;
use crate::iospace::{self, Location, Width};
use crate::models::{I8259Pair, I8254};
use crate::record::{Recorded, Recorder};
use proptest::prelude::*;
use pvmm_uapi::{KIND_I8254, KIND_I8259, KIND_UART16550, MAX_STATE_RECORDS};
use std::collections::BTreeMap;
use std::vec;
use std::vec::Vec;

fn recorder(number: u32) -> RecorderState {
    RecorderState::new(number).expect("a kind of the table")
}

fn look(recorder: &RecorderState, backend: &mut dyn Backend) -> Vec<StateRecord> {
    look_if(true, recorder, backend)
}

fn look_if(seen: bool, recorder: &RecorderState, backend: &mut dyn Backend) -> Vec<StateRecord> {
    let mut storage = vec![StateRecord::default(); MAX_STATE_RECORDS as usize];
    let mut sink = Sink::new(&mut storage);
    recorder
        .peek(seen, backend, &mut sink)
        .expect("the ABI has room");
    sink.as_slice().to_vec()
}

fn value_of(records: &[StateRecord], register: u16, origin: u8) -> Option<u64> {
    let mut found = records
        .iter()
        .filter(|record| (record.register, record.origin) == (register, origin));
    Some(found.next()?.value)
}

fn read_back(records: &[StateRecord], register: u16) -> Option<u64> {
    value_of(records, register, ORIGIN_READ_BACK)
}

/// Bytes that nobody may write, and which places were read.
#[derive(Default)]
struct Glass {
    bytes: BTreeMap<Location, u8>,
    reads: Vec<Location>,
}

impl Backend for Glass {
    fn read(&mut self, at: Location, _: Width) -> u64 {
        self.reads.push(at);
        self.bytes.get(&at).copied().unwrap_or(0).into()
    }

    fn write(&mut self, at: Location, _: Width, _: u64) {
        panic!("{at:?} was written");
    }
}

fn any_access() -> impl Strategy<Value = iospace::Access> {
    (any::<bool>(), 0..3u8, 0..8u64, any::<u8>()).prop_map(|(read, range, offset, value)| {
        let at = Location::new(range, offset);
        if read {
            iospace::Access::read(at, Width::W1, value.into())
        } else {
            iospace::Access::write(at, Width::W1, value.into())
        }
    })
}

/// Whether a read at a place may do something else than show a register.
fn is_dangerous(table: &[Register], at: Location) -> bool {
    table
        .iter()
        .any(|register| register.at == at && register.access == Access::ReadSideEffect)
}

proptest! {
    #[test]
    fn only_what_the_table_lets_be_read_is_read_and_nothing_is_written(
        which in 0..KINDS.len(),
        accesses in proptest::collection::vec(any_access(), 0..100),
        bytes in proptest::collection::vec(((0..3u8, 0..8u64), any::<u8>()), 40),
        seen in any::<bool>(),
    ) {
        let kind = &KINDS[which];
        let mut recorder = recorder(kind.number);
        for access in &accesses {
            recorder.after(access);
        }
        let bytes = bytes
            .into_iter()
            .map(|((range, offset), byte)| (Location::new(range, offset), byte))
            .collect();
        let mut glass = Glass { bytes, reads: Vec::new() };
        let records = look_if(seen, &recorder, &mut glass);
        for at in &glass.reads {
            let register = kind.registers.iter().find(|register| {
                register.at == *at && matches!(register.access, Access::ReadWrite | Access::ReadOnly)
            });
            prop_assert!(register.is_some(), "{at:?}");
            if is_dangerous(kind.registers, *at) {
                // Only by the kind's own rule, such as that the divisor latch stands before the receiver.
                prop_assert!(register.is_some_and(|register| register.shown != Shown::Alone));
            }
        }
        let log = recorder.log();
        let told = records.iter().filter(|record| record.origin == ORIGIN_LOG).count();
        prop_assert_eq!(told, log.entries.len());
        for record in &records {
            prop_assert!(kind.registers.iter().any(|register| register.id == record.register));
        }
    }

    #[test]
    fn a_8259_pair_that_is_looked_at_stays_as_it_is(
        accesses in proptest::collection::vec((any_access(), any::<bool>(), 0..16u8), 0..120),
    ) {
        let mut pair = I8259Pair::new();
        let mut recorder = recorder(KIND_I8259);
        for (access, look_now, irq) in accesses {
            let mut recorded = Recorded { backend: &mut pair, recorder: &mut recorder };
            match access.direction {
                iospace::Direction::Read => drop(recorded.read(access.at, Width::W1)),
                iospace::Direction::Write => recorded.write(access.at, Width::W1, access.value),
            }
            pair.pulse(irq);
            if look_now {
                let before = pair;
                let records = look(&recorder, &mut pair);
                prop_assert_eq!(before, pair);
                for (base, hidden) in [(0, i8259::MASTER_ISR), (i8259::SLAVE, i8259::SLAVE_ISR)] {
                    let polled = value_of(&records, i8259::OCW3_POLL + base, ORIGIN_LOG).is_some();
                    prop_assert_eq!(read_back(&records, i8259::STATUS + base).is_none(), polled);
                    prop_assert_eq!(read_back(&records, i8259::OCW1 + base).is_none(), polled);
                    prop_assert!(value_of(&records, hidden, ORIGIN_INFERRED).is_some());
                }
            }
        }
    }

    #[test]
    fn a_8254_that_is_looked_at_goes_on_as_if_it_was_not(
        accesses in proptest::collection::vec((any_access(), any::<bool>(), 0..3_000_000u64), 0..120),
    ) {
        let (mut one, mut other) = (I8254::new(), I8254::new());
        let (mut recorder, mut now) = (recorder(KIND_I8254), 0);
        for (access, look_now, wait) in accesses {
            let mut answers = Vec::new();
            for timer in [&mut one, &mut other] {
                let mut at = timer.at(now);
                match access.direction {
                    iospace::Direction::Read => answers.push(at.read(access.at, Width::W1)),
                    iospace::Direction::Write => at.write(access.at, Width::W1, access.value),
                }
            }
            recorder.after(&access);
            if look_now {
                let records = look(&recorder, &mut one.at(now + wait / 2));
                prop_assert!(read_back(&records, i8254::PORT61).is_some());
            }
            now += wait;
            one.advance(now);
            other.advance(now);
            prop_assert_eq!(one, other);
            prop_assert!(answers.windows(2).all(|pair| pair[0] == pair[1]));
        }
    }
}

#[test]
fn what_a_uart_shows_depends_on_the_divisor_latch_and_a_character_that_waits_stays() {
    let recorder = recorder(KIND_UART16550);
    let bytes = |lcr| {
        let mut bytes: BTreeMap<Location, u8> = (0..8)
            .map(|at| (Location::new(0, at), 0x10 + at as u8))
            .collect();
        bytes.insert(Location::new(0, 3), lcr);
        bytes
    };
    for (lcr, shown) in [
        (0x03, &[uart16550::IER][..]),
        (0x83, &[uart16550::DLL, uart16550::DLM]),
    ] {
        for seen in [true, false] {
            // The receiver is at a place that is read only while the latch is there.
            let mut glass = Glass {
                bytes: bytes(lcr),
                reads: Vec::new(),
            };
            let records = look_if(seen, &recorder, &mut glass);
            let mut expected = shown.to_vec();
            expected.extend([uart16550::LCR, uart16550::MCR, uart16550::SCR]);
            let mut found: Vec<u16> = records.iter().map(|record| record.register).collect();
            found.sort_unstable();
            assert_eq!(found, expected, "LCR {lcr:#x}");
            assert_eq!(read_back(&records, uart16550::LCR), Some(lcr.into()));
            let receiver = Location::new(0, 0);
            assert_eq!(glass.reads.contains(&receiver), lcr & 0x80 != 0);
        }
    }
}

#[test]
fn without_a_recorder_nothing_is_read_that_only_its_log_allows() {
    let mut pair = I8259Pair::new();
    let recorder = recorder(KIND_I8259);
    let records = look_if(false, &recorder, &mut pair);
    assert_eq!(read_back(&records, i8259::OCW1), None);
    assert_eq!(read_back(&records, i8259::ELCR1), Some(0));
    let records = look_if(true, &recorder, &mut pair);
    assert!(read_back(&records, i8259::OCW1).is_some());
}

#[test]
fn the_rules_and_words_of_every_table_fit_it() {
    for kind in KINDS {
        for register in kind.registers {
            let name = (kind.name, register.name);
            match register.shown {
                Shown::Alone => {}
                Shown::While { register: id, .. } | Shown::Unlogged(id) => {
                    assert!(find(kind.registers, id).is_some(), "{name:?}");
                    assert!(
                        matches!(register.access, Access::ReadWrite | Access::ReadOnly),
                        "{name:?} can't be looked at at all"
                    );
                }
            }
            if let Shown::Unlogged(id) = register.shown {
                let other = find(kind.registers, id).expect("asserted above");
                assert_eq!(other.fate, Fate::Recorded, "{name:?}");
            }
            let bits = 8 * u32::from(register.width.bytes());
            for field in register.fields {
                let (low, length) = (u32::from(field.low), u32::from(field.bits));
                assert!(
                    length > 0 && low + length <= bits,
                    "{name:?} {}",
                    field.name
                );
                if let super::super::field::Show::Names(names) = field.show {
                    assert!(names.len() <= 1 << length, "{name:?} {}", field.name);
                }
            }
        }
    }
}

#[test]
fn what_can_be_seen_of_any_kind_fits_the_abi() {
    for kind in KINDS {
        let bound = recorder(kind.number).log().bound;
        let most = bound + kind.registers.len();
        assert!(most <= MAX_STATE_RECORDS as usize, "{}", kind.name);
    }
    let recorder = recorder(KIND_I8254);
    let mut timer = I8254::new();
    let mut storage = [StateRecord::default(); 3];
    let mut sink = Sink::new(&mut storage);
    assert_eq!(recorder.peek(true, &mut timer.at(0), &mut sink), Err(Full));
}

#[test]
fn a_look_is_no_capture_and_both_agree() {
    let mut timer = I8254::new();
    let mut recorder = recorder(KIND_I8254);
    for (offset, value) in [(3, 0x34), (0, 0x9c), (0, 0x2e)] {
        Recorded {
            backend: &mut timer.at(5),
            recorder: &mut recorder,
        }
        .write(Location::new(0, offset), Width::W1, value);
    }
    let seen = look(&recorder, &mut timer.at(100_000));
    let captured = super::super::testing::capture(
        &mut recorder,
        &mut timer.at(100_000),
        &mut Still::default(),
    )
    .expect("a model can always be captured");
    let table = kind(KIND_I8254).expect("a kind").registers;
    for record in captured {
        let same = value_of(&seen, record.register, record.origin).expect("it is seen too");
        // Capture leaves out the bits that software doesn't set.
        let mask = if record.register == i8254::PORT61 {
            0x0f
        } else {
            u64::MAX
        };
        let name = find(table, record.register).map(|register| register.name);
        assert_eq!(same & mask, record.value, "{name:?}");
    }
}
