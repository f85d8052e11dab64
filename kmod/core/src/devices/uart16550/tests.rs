// SPDX-License-Identifier: GPL-2.0
//! UARTs that move while they send and receive.

use super::super::testing::{assert_done, capture, planned, restore};
use super::super::{CaptureError, PlanError, RecorderState};
use super::testbed::{Chip, Clock};
use super::*;
use crate::iospace::{Location, Width};
use crate::record::Recorder as _;
use crate::replay::Backend;
use proptest::prelude::*;
use pvmm_uapi::{PlanStep, StateRecord, KIND_UART16550};
use std::vec;
use std::vec::Vec;

/// A UART as a guest has it: what traps goes to the recorder, the rest past it.
struct Device {
    chip: Chip,
    recorder: RecorderState,
    clock: Clock,
}

impl Device {
    fn new(clock: &Clock) -> Self {
        let mut device = Self {
            chip: Chip::new(clock),
            recorder: RecorderState::Uart16550(Recorder::new()),
            clock: clock.clone(),
        };
        device.reset();
        device
    }

    fn reset(&mut self) {
        let mut storage = vec![PlanStep::default(); 256];
        let mut sink = crate::devices::Sink::new(&mut storage);
        assert_eq!(reset(&mut sink), Ok(()));
        let steps = sink.as_slice().to_vec();
        self.execute(&steps);
    }

    fn execute(&mut self, steps: &[PlanStep]) {
        let outcome = restore(
            &mut self.recorder,
            &mut self.chip,
            &mut self.clock.clone(),
            steps,
        );
        assert_done(KIND_UART16550, steps, outcome);
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

    /// Sets up 115200 8N1, FIFOs with trigger level 8, DTR, RTS and OUT2.
    fn set_up(&mut self, divisor: u16) {
        let [low, high] = divisor.to_le_bytes();
        self.write(3, 0x83);
        self.write(0, low);
        self.write(1, high);
        self.write(3, 0x03);
        self.write(2, 0x87);
        self.write(4, 0x0b);
    }

    /// Everything that waits in the receiver, with LSR's error bits.
    fn received(&mut self) -> Vec<(u8, u8)> {
        self.write(3, 0x03);
        let mut received = Vec::new();
        loop {
            let lsr = self.read(5);
            if lsr & 1 == 0 {
                return received;
            }
            received.push((self.read(0), lsr & 0x1e));
        }
    }
}

/// A UART at the peer that somebody has used before, with junk in it.
fn used(clock: &Clock) -> Device {
    let mut device = Device::new(clock);
    device.set_up(1);
    device.write(7, 0xee);
    device.write(1, 0x05);
    for _ in 0..5 {
        device.chip.arrives(0xde, 0x04);
    }
    device.recorder = RecorderState::Uart16550(Recorder::new());
    device
}

fn plan_of(records: &[StateRecord]) -> Vec<PlanStep> {
    planned(KIND_UART16550, records).expect("a captured state")
}

fn recorded(records: &[StateRecord], id: u16) -> Option<u64> {
    records
        .iter()
        .find(|record| record.register == id)
        .map(|record| record.value)
}

#[test]
fn only_fcr_and_lcr_trap_and_the_divisor_latch_while_it_is_there() {
    let clock = Clock::default();
    let mut device = Device::new(&clock);
    assert_eq!(device.recorder.traps(0), 0b1100);
    device.write(3, 0x83);
    assert_eq!(device.recorder.traps(0), 0b1111);
    device.write(3, 0x03);
    assert_eq!(device.recorder.traps(0), 0b1100);
    assert_eq!(device.recorder.traps(1), 0);
}

#[test]
fn fcr_is_kept_without_the_bits_that_clear_themselves_or_are_not_programmed() {
    let clock = Clock::default();
    for (written, kept) in [(0xc7, 0xc1), (0x8f, 0x89), (0xc6, 0x00), (0x01, 0x01)] {
        let mut device = Device::new(&clock);
        device.write(2, written);
        let records = device.capture().expect("at rest");
        assert_eq!(recorded(&records, FCR), Some(kept));
    }
}

#[test]
fn what_the_guest_sends_leaves_at_the_source_and_only_there() {
    let clock = Clock::default();
    let mut here = Device::new(&clock);
    here.set_up(12);
    for character in b"0123456789abcdef" {
        here.write(0, *character);
    }
    let records = here.capture().expect("17 ms at 9600 baud");
    assert_eq!(here.chip.sent, b"0123456789abcdef");
    let mut there = used(&clock);
    there.execute(&plan_of(&records));
    clock.pass(100_000_000);
    there.chip.advance();
    assert!(there.chip.sent.is_empty());
    there.write(0, b'g');
    clock.pass(100_000_000);
    there.chip.advance();
    assert_eq!(there.chip.sent, b"g");
}

#[test]
fn what_was_received_and_not_read_is_read_at_the_peer_in_order() {
    let clock = Clock::default();
    let mut here = Device::new(&clock);
    here.set_up(1);
    let line: Vec<u8> = (0xf0..=0xff).collect();
    for &character in &line {
        here.chip.arrives(character, 0);
    }
    let records = here.capture().expect("at rest");
    let mut there = used(&clock);
    there.execute(&plan_of(&records));
    let expected: Vec<(u8, u8)> = line.iter().map(|&character| (character, 0)).collect();
    assert_eq!(there.received(), expected);
    assert!(
        there.chip.sent.is_empty(),
        "loopback must not reach the line"
    );
}

#[test]
fn a_break_that_waits_is_a_break_at_the_peer() {
    let clock = Clock::default();
    let mut here = Device::new(&clock);
    here.set_up(1);
    here.chip.arrives(b'a', 0);
    here.chip.arrives(0, 0x18);
    here.chip.arrives(b'b', 0);
    let records = here.capture().expect("at rest");
    let mut there = used(&clock);
    there.execute(&plan_of(&records));
    assert_eq!(there.received(), [(b'a', 0), (0, 0x18), (b'b', 0)]);
}

#[test]
fn a_transmitter_that_stays_busy_fails_the_capture_and_the_guest_notices_nothing() {
    let clock = Clock::default();
    let mut here = Device::new(&clock);
    here.set_up(1047);
    here.write(1, 0x02);
    for character in b"slow, at 110 baud" {
        here.write(0, *character);
    }
    here.chip.arrives(b'x', 0);
    assert_eq!(here.capture(), Err(CaptureError::Busy { register: LSR }));
    assert_eq!((here.read(3), here.read(4)), (0x03, 0x0b));
    assert_eq!(here.received(), [(b'x', 0)]);
    clock.pass(10_000_000_000);
    here.chip.advance();
    assert_eq!(here.chip.sent.len(), 17);
    assert_eq!(here.read(2) & 0x0f, 0x02, "and is told that THR is empty");
}

#[test]
fn a_capture_that_is_repeated_gives_everything_again_and_what_came_since() {
    let clock = Clock::default();
    let mut here = Device::new(&clock);
    here.set_up(1);
    here.chip.set_pins(0x10);
    here.chip.arrives(b'1', 0);
    assert!(here.capture().is_ok());
    here.chip.arrives(b'2', 0);
    assert!(here.capture().is_ok());
    let records = here.capture().expect("at rest");
    assert_eq!(
        recorded(&records, MCR),
        Some(0x0b),
        "RTS is still the guest's"
    );
    assert_eq!(recorded(&records, MSR), Some(0x11));
    here.execute(&plan_of(&records));
    assert_eq!(here.received(), [(b'1', 0), (b'2', 0)]);
    assert_eq!(here.read(6), 0x11);
    let again = here.capture().expect("at rest");
    assert_eq!(
        recorded(&again, RECEIVED),
        None,
        "what is back is not taken twice"
    );
}

#[test]
fn rts_is_dropped_from_capture_to_restore() {
    let clock = Clock::default();
    let mut here = Device::new(&clock);
    here.set_up(1);
    let records = here.capture().expect("at rest");
    assert_eq!(here.read(4), 0x09);
    here.execute(&plan_of(&records));
    assert_eq!(here.read(4), 0x0b);
}

#[test]
fn more_characters_than_the_fifo_holds_are_an_overrun_and_nothing_worse() {
    let clock = Clock::default();
    let mut here = Device::new(&clock);
    here.set_up(1);
    for character in 0..16 {
        here.chip.arrives(character, 0);
    }
    assert!(here.capture().is_ok());
    here.chip.arrives(99, 0);
    let records = here.capture().expect("at rest");
    let received = records.iter().filter(|record| record.register == RECEIVED);
    assert!(received.map(|record| record.value).eq(0..16));
}

#[test]
fn a_modem_line_that_is_different_at_the_peer_is_a_change_there() {
    let clock = Clock::default();
    let mut here = Device::new(&clock);
    here.set_up(1);
    here.chip.set_pins(0xb0);
    here.read(6);
    let records = here.capture().expect("at rest");
    for (pins, msr) in [(0xb0, 0xb0), (0xa0, 0xa1), (0x30, 0x38), (0xf0, 0xf0)] {
        let mut there = used(&clock);
        there.chip.set_pins(pins);
        there.execute(&plan_of(&records));
        assert_eq!(there.read(6), msr);
    }
    // Ring ended while nobody looked, and all the others have changed too.
    here.chip.set_pins(0x40);
    here.chip.set_pins(0x00);
    let records = here.capture().expect("at rest");
    let mut there = used(&clock);
    there.chip.set_pins(0x00);
    there.execute(&plan_of(&records));
    assert_eq!(there.read(6), 0x0f);
}

#[test]
fn the_thr_empty_interrupt_is_pending_at_the_peer_exactly_if_it_was() {
    for consumed in [false, true] {
        let clock = Clock::default();
        let mut here = Device::new(&clock);
        here.set_up(1);
        here.write(1, 0x02);
        if consumed {
            assert_eq!(here.read(2) & 0x0f, 0x02);
        }
        let records = here.capture().expect("at rest");
        let mut there = Device::new(&clock);
        there.execute(&plan_of(&records));
        assert_eq!(there.chip.interrupted, !consumed);
        assert_eq!(there.read(2) & 0x0f, if consumed { 0x01 } else { 0x02 });
    }
}

#[test]
fn a_capture_without_room_touches_nothing() {
    let clock = Clock::default();
    let mut here = Device::new(&clock);
    here.set_up(1);
    here.chip.arrives(b'x', 0);
    let mut storage = [StateRecord::default(); 20];
    let mut sink = crate::devices::Sink::new(&mut storage);
    let full = here
        .recorder
        .capture(&mut here.chip, &mut clock.clone(), &mut sink);
    assert_eq!(full, Err(CaptureError::Full));
    assert_eq!(here.received(), [(b'x', 0)]);
}

#[test]
fn an_impossible_state_is_refused_by_the_registers_name() {
    let clock = Clock::default();
    let mut here = Device::new(&clock);
    here.set_up(1);
    here.chip.arrives(b'x', 0);
    let good = here.capture().expect("at rest");
    let refused = |id: u16, value: u64| {
        let mut records = good.clone();
        for record in records.iter_mut().filter(|record| record.register == id) {
            record.value = value;
        }
        planned(KIND_UART16550, &records)
    };
    for (id, register, value) in [
        (IER, "IER", 0x10),
        (IIR, "IIR", 0x04),
        (FCR, "FCR", 0x80),
        (FCR, "FCR", 0x07),
        (MCR, "MCR", 0x20),
        (RECEIVED, "received character", 0x0100),
    ] {
        assert_eq!(
            refused(id, value),
            Err(PlanError::Value { register, value })
        );
    }
    assert_eq!(
        refused(FCR, 0),
        Ok(plan_of(&good)).and(planned(KIND_UART16550, &without_fifo(&good)))
    );
    for (id, register) in [
        (DLL, "DLL"),
        (DLM, "DLM"),
        (IER, "IER"),
        (IIR, "IIR"),
        (LCR, "LCR"),
        (MCR, "MCR"),
        (MSR, "MSR"),
        (SCR, "SCR"),
    ] {
        let mut records = good.clone();
        records.retain(|record| record.register != id);
        assert_eq!(
            planned(KIND_UART16550, &records),
            Err(PlanError::Missing { register })
        );
        let mut records = good.clone();
        records.extend(good.iter().find(|record| record.register == id));
        assert_eq!(
            planned(KIND_UART16550, &records),
            Err(PlanError::Repeated { register })
        );
    }
    let mut records = good.clone();
    let character = good
        .iter()
        .find(|record| record.register == RECEIVED)
        .copied();
    records.extend(std::iter::repeat_n(character, 16).flatten());
    let repeated = Err(PlanError::Repeated {
        register: "received character",
    });
    assert_eq!(planned(KIND_UART16550, &records), repeated);
    let mut records = without_fifo(&good);
    records.extend(character);
    assert_eq!(planned(KIND_UART16550, &records), repeated);
}

fn without_fifo(records: &[StateRecord]) -> Vec<StateRecord> {
    let mut records = records.to_vec();
    for record in records.iter_mut().filter(|record| record.register == FCR) {
        record.value = 0;
    }
    records
}

#[derive(Debug, Clone, Copy)]
enum Op {
    Write(u64, u8),
    Read(u64),
    Divisor(u8),
    Arrives(u8),
    Break,
    Pins(u8),
    Pause(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => any::<u8>().prop_map(|character| Op::Write(0, character)),
        2 => any::<u8>().prop_map(|bits| Op::Write(1, bits)),
        1 => any::<u8>().prop_map(|bits| Op::Write(2, bits)),
        // No break: its length at both places would be another.
        1 => any::<u8>().prop_map(|bits| Op::Write(3, bits & 0xbf)),
        2 => prop_oneof![3 => 0..16u8, 1 => any::<u8>()].prop_map(|bits| Op::Write(4, bits)),
        1 => any::<u8>().prop_map(|bits| Op::Write(7, bits)),
        8 => (0..8u64).prop_map(Op::Read),
        2 => (1..25u8).prop_map(Op::Divisor),
        6 => any::<u8>().prop_map(Op::Arrives),
        1 => Just(Op::Break),
        2 => any::<u8>().prop_map(Op::Pins),
        4 => prop_oneof![0..200_000u64, 0..5_000_000u64].prop_map(Op::Pause),
    ]
}

fn apply(device: &mut Device, op: Op) -> u8 {
    match op {
        // Kept at a rate at which capture waits for the transmitter: DLM stays 0, DLL goes by Divisor.
        Op::Write(0 | 1, _) if device.chip.lcr & 0x80 != 0 => {}
        Op::Write(offset, value) => device.write(offset, value),
        Op::Read(offset) => return device.read(offset),
        Op::Divisor(divisor) => {
            let lcr = device.read(3);
            device.write(3, 0x80 | lcr);
            device.write(0, divisor);
            device.write(1, 0);
            device.write(3, lcr);
        }
        // An overrun is not made again at the peer, so there is none.
        Op::Arrives(character) => {
            device.chip.advance();
            if device.chip.room() > 0 {
                device.chip.arrives(character, 0);
            }
        }
        Op::Break => {
            device.chip.advance();
            if device.chip.room() > 0 {
                device.chip.arrives(0, 0x18);
            }
        }
        Op::Pins(pins) => device.chip.set_pins(pins & 0xf0),
        Op::Pause(ns) => device.clock.pass(ns),
    }
    device.chip.advance();
    0
}

/// Whether two devices answer the same from now on, and send the same.
fn same_from_now(one: &mut Device, other: &mut Device, ops: &[Op]) -> Result<(), TestCaseError> {
    let (sent_one, sent_other) = (one.chip.sent.len(), other.chip.sent.len());
    for &op in ops {
        prop_assert_eq!(apply(one, op), apply(other, op), "{:?}", op);
    }
    prop_assert_eq!(one.received(), other.received());
    for device in [&mut *one, &mut *other] {
        device.clock.pass(10_000_000_000);
        device.chip.advance();
    }
    prop_assert_eq!(&one.chip.sent[sent_one..], &other.chip.sent[sent_other..]);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_uart_that_has_moved_answers_as_one_that_has_only_come_to_rest(
        before in proptest::collection::vec(op(), 0..60),
        after in proptest::collection::vec(op(), 0..40),
        aborted in any::<bool>(),
    ) {
        let clock = Clock::default();
        let mut here = Device::new(&clock);
        for op in before {
            apply(&mut here, op);
        }
        // One that stays, and only has had the time to send what it had.
        let other_clock = Clock::default();
        other_clock.pass(clock.0.get());
        let mut stays = Device {
            chip: here.chip.on(&other_clock),
            recorder: here.recorder,
            clock: other_clock.clone(),
        };
        other_clock.pass(10_000_000_000);
        stays.chip.advance();
        // Guest loopback can fill the receiver to an overrun, which the peer can't have.
        prop_assume!(!stays.chip.overran());

        let records = here.capture().expect("at 4800 baud and above it comes to rest");
        prop_assert_eq!(&here.chip.sent, &stays.chip.sent);
        let steps = plan_of(&records);
        let mut moved = if aborted {
            here.execute(&steps);
            here
        } else {
            let mut there = used(&clock);
            there.chip.set_pins(stays.chip.pins());
            there.execute(&steps);
            prop_assert!(there.chip.sent.is_empty());
            there
        };
        prop_assert_eq!(moved.recorder.traps(0), stays.recorder.traps(0));
        same_from_now(&mut moved, &mut stays, &after)?;
    }
}
