// SPDX-License-Identifier: GPL-2.0
//! What is watched is told in order and with the register that the recorder finds; what is not watched is not.

use super::*;
use crate::devices::{i8254, i8259, uart16550, KINDS};
use crate::iospace::{Location, Width};
use proptest::prelude::*;
use pvmm_hostabi::sim::{Machine, SimHost};
use pvmm_uapi::{KIND_I8254, KIND_I8259, KIND_UART16550};
use std::vec;
use std::vec::Vec;

fn tap() -> Tap<SimHost> {
    Tap::new().expect("memory")
}

fn entry(value: u64) -> TraceEntry {
    TraceEntry {
        value,
        ..TraceEntry::default()
    }
}

/// Takes at most `room` entries: their values, and how many were lost.
fn fetch(tap: &Tap<SimHost>, number: u32, room: usize) -> Option<(Vec<u64>, u64)> {
    let mut entries = vec![TraceEntry::default(); room];
    let (count, lost) = tap.fetch(number, &mut entries)?;
    let values = entries
        .iter()
        .take(count)
        .map(|entry| entry.value)
        .collect();
    Some((values, lost))
}

#[test]
fn entries_come_out_in_order_and_what_finds_no_room_is_counted() {
    let machine = Machine::new(1);
    let _entered = machine.enter();
    let tap = tap();
    tap.start(2).expect("nobody else watches");
    let room = u64::from(MAX_TRACE_ENTRIES);
    for value in 0..room + 5 {
        tap.note(entry(value));
    }
    assert_eq!(fetch(&tap, 2, 3), Some((vec![0, 1, 2], 5)));
    // Round the ring's end.
    tap.note(entry(1000));
    let (values, lost) = fetch(&tap, 2, usize::from(u16::MAX)).expect("it is watched");
    assert_eq!(lost, 5);
    let expected: Vec<u64> = (3..room).chain([1000]).collect();
    assert_eq!(values, expected);
    assert_eq!(fetch(&tap, 2, 8), Some((vec![], 5)));
}

#[test]
fn one_device_is_watched_at_a_time_and_only_while_it_is() {
    let machine = Machine::new(1);
    let _entered = machine.enter();
    let before = machine.live();
    let tap = tap();
    assert!(!tap.is_on(0) && !tap.is_on(u32::MAX - 1));
    assert_eq!(fetch(&tap, 0, 8), None);
    assert!(!tap.stop(0));
    tap.note(entry(1));
    tap.start(0).expect("nobody else watches");
    assert!(tap.is_on(0) && !tap.is_on(1));
    assert_eq!(tap.start(1), Err(TraceError::Taken));
    assert_eq!(fetch(&tap, 1, 8), None);
    assert!(!tap.stop(1));
    tap.note(entry(2));
    assert!(tap.stop(0));
    assert!(!tap.is_on(0));
    tap.start(1).expect("nobody watches any more");
    assert_eq!(fetch(&tap, 1, 8), Some((vec![], 0)));
    drop(tap);
    assert_eq!(machine.live(), before, "the ring is given back");
}

/// Shows accesses to a recorder; which registers they are taken for, and whether they are kept.
fn seen(number: u32, accesses: &[Access]) -> Vec<(u16, bool, u16)> {
    let mut recorder = RecorderState::new(number).expect("a kind");
    accesses
        .iter()
        .map(|access| {
            let seen = Seen::before(&recorder, true, access);
            recorder.after(access);
            let entry = seen.after(&recorder, access, 7);
            assert_eq!((entry.vm_ns, entry.value), (7, access.value));
            let logged = entry.flags & TRACE_ENTRY_LOGGED != 0;
            (entry.register, logged, entry.log_length)
        })
        .collect()
}

fn write(range: u8, offset: u64, value: u64) -> Access {
    Access::write(Location::new(range, offset), Width::W1, value)
}

fn read(range: u8, offset: u64) -> Access {
    Access::read(Location::new(range, offset), Width::W1, 0)
}

#[test]
fn accesses_are_told_by_the_register_that_they_reach() {
    use {i8254 as pit, i8259 as pic, uart16550 as uart};
    assert_eq!(
        seen(
            KIND_UART16550,
            &[
                write(0, 3, 0x83),
                write(0, 0, 12),
                read(0, 0),
                write(0, 3, 3),
                write(0, 2, 7),
                read(0, 2)
            ],
        ),
        [
            (uart::LCR, true, 1),
            (uart::DLL, true, 2),
            (uart::DLL, false, 2),
            (uart::LCR, true, 2),
            (uart::FCR, true, 3),
            (uart::IIR, false, 3),
        ]
    );
    assert_eq!(
        seen(
            KIND_I8259,
            &[
                write(0, 0, 0x11),
                write(0, 1, 0x20),
                write(0, 1, 4),
                write(0, 1, 1),
                write(0, 1, 0xee),
                write(0, 0, 0x20),
                write(1, 0, 0x0c),
                read(1, 1),
                read(1, 0),
                write(2, 1, 0x0c),
                read(3, 0),
            ],
        ),
        [
            (pic::ICW1, true, 1),
            (pic::ICW2, true, 2),
            (pic::ICW3, true, 3),
            (pic::ICW4, true, 4),
            (pic::OCW1, true, 5),
            (pic::OCW2_EOI, false, 5),
            (pic::OCW3_POLL + pic::SLAVE, true, 6),
            (pic::OCW3_POLL + pic::SLAVE, false, 5),
            (pic::STATUS + pic::SLAVE, false, 5),
            (pic::ELCR2, false, 5),
            (TRACE_NO_REGISTER, false, 5),
        ]
    );
    assert_eq!(
        seen(
            KIND_I8254,
            &[
                write(0, 3, 0x34),
                write(0, 0, 1),
                write(0, 0, 2),
                write(0, 3, 0xe2),
                read(0, 0),
                read(0, 0),
                read(0, 0),
                write(1, 0, 1),
            ],
        ),
        [
            (pit::CONTROL, true, 1),
            (pit::LOW, true, 2),
            (pit::HIGH, true, 3),
            (pit::STATUS_LATCH, true, 4),
            (pit::STATUS_READ, false, 3),
            (pit::LOW_READ, true, 4),
            (pit::HIGH_READ, false, 3),
            (pit::PORT61, false, 3),
        ]
    );
}

#[test]
fn of_a_device_without_a_recorder_only_the_table_is_asked() {
    let recorder = RecorderState::new(KIND_UART16550).expect("a kind");
    let register = |access| Seen::before(&recorder, false, &access).register;
    // Whether DLAB is set is not known.
    assert_eq!(register(read(0, 0)), None);
    assert_eq!(register(write(0, 1, 0)), None);
    assert_eq!(register(write(0, 2, 0)), Some(uart16550::FCR));
    assert_eq!(register(read(0, 2)), Some(uart16550::IIR));
    assert_eq!(register(write(0, 3, 0)), Some(uart16550::LCR));
}

proptest! {
    #[test]
    fn what_is_kept_is_kept_as_the_register_that_is_told(
        which in 0..KINDS.len(),
        accesses in proptest::collection::vec(
            (any::<bool>(), 0..3u8, 0..8u64, any::<u8>()), 0..200,
        ),
    ) {
        let mut recorder = RecorderState::new(KINDS[which].number).expect("a kind");
        for (reads, range, offset, value) in accesses {
            let access = if reads { read(range, offset) } else { write(range, offset, value.into()) };
            let told = recorder.classify(&access);
            let before = recorder.log().appended;
            recorder.after(&access);
            let log = recorder.log();
            let new = log.appended.wrapping_sub(before) as usize;
            let kept = log.entries.iter().rev().take(new).map(|entry| entry.register);
            if let (Some(told), true) = (told, new > 0) {
                let kept: Vec<u16> = kept.collect();
                prop_assert!(kept.contains(&told), "{access:?}: {told} is not in {kept:?}");
            }
        }
    }
}
