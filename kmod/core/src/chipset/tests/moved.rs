// SPDX-License-Identifier: GPL-2.0
//! A chipset whose state is captured, carried over and restored, whatever the guest did before and does after.

use super::*;
use crate::devices::{self, RecorderState, Sink};
use crate::iospace::{Access, Location};
use crate::record::Recorder;
use crate::replay::execute::execute;
use crate::replay::Timing;
use pvmm_uapi::{
    PlanStep, StateRecord, KIND_I8254, KIND_I8259, MAX_PLAN_STEPS, MAX_STATE_RECORDS, OUTCOME_DONE,
};
use std::string::String;

/// What a guest, its devices or time may do.
#[derive(Debug, Clone)]
enum Event {
    Out(u16, u8, u32),
    In(u16, u8),
    Mmio(u64, u32),
    ReadMmio(u64),
    Msr(u32, u64),
    Line(u8, bool),
    Pulse(u8),
    Button,
    Acknowledge,
    Time(u64),
}

fn events(longest: usize) -> impl Strategy<Value = Vec<Event>> {
    let port = prop::sample::select(vec![
        0x20u16, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1, 0x40, 0x41, 0x42, 0x43, 0x61, 0x600, 0x602, 0x604,
        0x608, 0xcf9,
    ]);
    let byte = prop_oneof![
        any::<u8>(),
        prop::sample::select(vec![0x11u8, 0x20, 0x34, 0x30, 1, 0xb, 0xc])
    ];
    let gpa = prop_oneof![
        (0..64u64).prop_map(|register| LOCAL + 16 * register),
        Just(LOCAL + 0xb0),
        Just(IO),
        Just(IO + 0x10),
    ];
    let value = prop_oneof![
        any::<u32>(),
        0x10..0x40u32,
        prop::sample::select(vec![0x8049u32, 0x40, 0x1ff, 0x700, 0x400ec, 0x200ec])
    ];
    let event = prop_oneof![
        6 => (port.clone(), 0..3u8, byte.prop_map(u32::from)).prop_map(|(port, width, value)| Event::Out(port, width, value)),
        3 => (port, 0..3u8).prop_map(|(port, width)| Event::In(port, width)),
        4 => (gpa.clone(), value).prop_map(|(gpa, value)| Event::Mmio(gpa, value)),
        1 => gpa.prop_map(Event::ReadMmio),
        1 => prop::sample::select(vec![(0x6e0u32, 3_000_000u64), (0x1b, LOCAL | 0x900), (0x1b, LOCAL | 0xd00),
            (0x80b, 0), (0x83f, 0x51), (0x835, 0x700)]).prop_map(|(index, value)| Event::Msr(index, value)),
        2 => (0..16u8, any::<bool>()).prop_map(|(irq, level)| Event::Line(irq, level)),
        1 => (0..16u8).prop_map(Event::Pulse),
        1 => Just(Event::Button),
        3 => Just(Event::Acknowledge),
        2 => (0..2_000_000u64).prop_map(Event::Time),
    ];
    prop::collection::vec(event, 0..longest)
}

/// Lets an event happen and returns all that can be seen of it.
fn happen(chipset: &mut Chipset, event: &Event, now: &mut u64) -> String {
    let widths = [Width::W1, Width::W2, Width::W4];
    let answer = match *event {
        Event::Out(port, width, value) => {
            let width = widths[usize::from(width)];
            std::format!("{:?}", chipset.port_write(port, width, value.into(), *now))
        }
        Event::In(port, width) => {
            std::format!(
                "{:x?}",
                chipset.port_read(port, widths[usize::from(width)], *now)
            )
        }
        Event::Mmio(gpa, value) => std::format!(
            "{:?}",
            chipset.mmio_write(gpa, Width::W4, value.into(), *now)
        ),
        Event::ReadMmio(gpa) => std::format!("{:x?}", chipset.mmio_read(gpa, Width::W4, *now)),
        Event::Msr(index, value) => std::format!("{:?}", chipset.msr_write(index, value, *now)),
        Event::Line(irq, level) => {
            chipset.set_isa_line(irq, level);
            String::new()
        }
        Event::Pulse(irq) => {
            chipset.pulse_isa_line(irq);
            String::new()
        }
        Event::Button => {
            chipset.press_power_button();
            String::new()
        }
        Event::Acknowledge => std::format!("{:?}", chipset.acknowledge_interrupt()),
        Event::Time(ns) => {
            *now += ns;
            chipset.advance(*now);
            String::new()
        }
    };
    std::format!("{answer} {}", seen(chipset, *now))
}

/// What the processor sees of a chipset.
fn seen(chipset: &mut Chipset, now: u64) -> String {
    std::format!(
        "{:?} {:?} {:?} {:?}",
        chipset.pending_interrupt(),
        chipset.next_deadline(now),
        chipset.take_requests(),
        chipset.take_signals()
    )
}

/// A chipset with the recorders of its recorded devices, as the monitor has them.
struct Machine {
    chipset: Chipset,
    i8259: RecorderState,
    i8254: RecorderState,
}

/// The models need no time.
struct NoTime;

impl Timing for NoTime {
    fn now_ns(&mut self) -> u64 {
        0
    }
    fn delay_ns(&mut self, _ns: u64) {}
}

impl Machine {
    fn new(chipset: Chipset) -> Self {
        Self {
            chipset,
            i8259: RecorderState::new(KIND_I8259).expect("a known kind"),
            i8254: RecorderState::new(KIND_I8254).expect("a known kind"),
        }
    }

    /// Lets an event happen and shows the recorders each byte of it.
    fn happen(&mut self, event: &Event, now: &mut u64) -> String {
        let (port, bytes, value) = match *event {
            Event::Out(port, width, value) => (port, 1 << width, Some(value)),
            Event::In(port, width) => (port, 1 << width, None),
            _ => (0, 0, None),
        };
        // Byte by byte, as the monitor does it.
        if bytes > 0 && !(0x600..0x60c).contains(&port) {
            let mut answers = String::new();
            for (index, at) in (port..port + bytes).enumerate() {
                let written = value.map(|value| value >> (8 * index) & 0xff);
                let read = match written {
                    Some(written) => self
                        .chipset
                        .port_write(at, Width::W1, written.into(), *now)
                        .map(|()| 0),
                    None => self.chipset.port_read(at, Width::W1, *now),
                };
                answers = std::format!("{answers} {read:x?}");
                let location = match at {
                    0x20..=0x21 => Some((true, Location::new(0, u64::from(at - 0x20)))),
                    0xa0..=0xa1 => Some((true, Location::new(1, u64::from(at - 0xa0)))),
                    0x4d0..=0x4d1 => Some((true, Location::new(2, u64::from(at - 0x4d0)))),
                    0x40..=0x43 => Some((false, Location::new(0, u64::from(at - 0x40)))),
                    0x61 => Some((false, Location::new(1, 0))),
                    _ => None,
                };
                let Some((is_i8259, place)) = location else {
                    continue;
                };
                let access = match written {
                    Some(written) => Access::write(place, Width::W1, written.into()),
                    None => Access::read(place, Width::W1, read.unwrap_or(0)),
                };
                if is_i8259 {
                    self.i8259.after(&access);
                } else {
                    self.i8254.after(&access);
                }
            }
            return std::format!("{answers} {}", seen(&mut self.chipset, *now));
        }
        happen(&mut self.chipset, event, now)
    }

    /// Captures a recorded device and makes its plan.
    fn plan(&mut self, kind: u32, now: u64) -> Vec<PlanStep> {
        let mut records = vec![StateRecord::default(); MAX_STATE_RECORDS as usize];
        let mut sink = Sink::new(&mut records);
        let captured = if kind == KIND_I8259 {
            let backend = self.chipset.i8259_mut();
            self.i8259.capture(backend, &mut NoTime, &mut sink)
        } else {
            let mut backend = self.chipset.i8254_at(now);
            self.i8254.capture(&mut backend, &mut NoTime, &mut sink)
        };
        captured.expect("a model can be captured");
        let mut steps = vec![PlanStep::default(); MAX_PLAN_STEPS as usize];
        let mut plan = Sink::new(&mut steps);
        let version = devices::kind(kind).expect("a known kind").state_version;
        devices::plan(kind, version, sink.as_slice(), &mut plan).expect("own records are good");
        plan.as_slice().to_vec()
    }

    fn execute(&mut self, kind: u32, steps: &[PlanStep], now: u64) {
        let ranges = devices::kind(kind).expect("a known kind").ranges;
        let outcome = if kind == KIND_I8259 {
            execute(steps, ranges, self.chipset.i8259_mut(), &mut NoTime)
        } else {
            execute(steps, ranges, &mut self.chipset.i8254_at(now), &mut NoTime)
        };
        assert_eq!(outcome.outcome, OUTCOME_DONE, "{outcome:?} of {steps:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_moved_chipset_goes_on_as_if_it_had_stayed(
        apics: bool, before in events(80), after in events(40), order in 0..6usize, late in 0..5_000_000u64,
    ) {
        let fresh = || {
            if apics { Chipset::new(Some(FEATURES), clock()) } else { without_apics() }
        };
        let mut now = 1_000_000_000;
        let mut source = Machine::new(fresh());
        source.chipset.enter_virtual_wire();
        source.chipset.advance(now);
        for event in &before {
            source.happen(event, &mut now);
        }
        // Time goes on between the parts, as on a host that takes them one by one.
        let local = source.chipset.save_local_apic(now);
        let state = source.chipset.save(now);
        now += late;
        let i8259 = source.plan(KIND_I8259, now);
        now += late;
        let i8254 = source.plan(KIND_I8254, now);

        // The parts may come in any order.
        let mut target = Machine::new(fresh());
        for step in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]][order] {
            match step {
                0 => {
                    target.execute(KIND_I8259, &i8259, now);
                    target.execute(KIND_I8254, &i8254, now);
                }
                1 => prop_assert_eq!(target.chipset.restore(&state, now), Ok(())),
                _ => prop_assert_eq!(target.chipset.restore_local_apic(&local), Ok(())),
            }
        }
        source.chipset.advance(now);
        target.chipset.advance(now);
        prop_assert_eq!(target.chipset.save(now), source.chipset.save(now));
        prop_assert_eq!(target.chipset.save_local_apic(now), source.chipset.save_local_apic(now));
        let mut target_now = now;
        for (index, event) in after.iter().enumerate() {
            let expected = source.happen(event, &mut now);
            prop_assert_eq!(target.happen(event, &mut target_now), expected, "event {} {:?}", index, event);
        }
    }
}
