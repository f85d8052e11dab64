// SPDX-License-Identifier: GPL-2.0
//! The chipset as a guest sees it: whole ways of an interrupt, from the line to the acknowledge.

use super::*;
use crate::devices::{self, RecorderState, Sink};
use crate::iospace::{Access, Location, Width};
use crate::models::i8254;
use crate::record::Recorder;
use crate::replay::execute::execute;
use crate::replay::Timing;
use proptest::prelude::*;
use pvmm_uapi::{
    ChipsetState, Clock, LocalApicState, PlanStep, StateRecord, KIND_I8254, KIND_I8259,
    MAX_PLAN_STEPS, MAX_STATE_RECORDS, OUTCOME_DONE,
};
use std::string::String;
use std::vec;
use std::vec::Vec;

const FEATURES: ApicFeatures = ApicFeatures {
    x2apic: true,
    tsc_deadline: true,
    physical_address_bits: 40,
};
const LOCAL: u64 = 0xfee0_0000;
const IO: u64 = 0xfec0_0000;

fn clock() -> GuestClock {
    GuestClock::new(&Clock {
        tsc_khz: 2_000_000,
        ..Clock::default()
    })
    .expect("the rate is not zero")
}

fn without_apics() -> Chipset {
    Chipset::new(None, clock())
}

fn with_apics() -> Chipset {
    let mut chipset = Chipset::new(Some(FEATURES), clock());
    chipset.enter_virtual_wire();
    chipset
}

fn outb(chipset: &mut Chipset, port: u16, value: u8, now: u64) {
    chipset
        .port_write(port, Width::W1, value.into(), now)
        .expect("a port of the chipset");
}

fn inb(chipset: &mut Chipset, port: u16, now: u64) -> u8 {
    chipset
        .port_read(port, Width::W1, now)
        .expect("a port of the chipset") as u8
}

fn write(chipset: &mut Chipset, gpa: u64, value: u32) {
    chipset
        .mmio_write(gpa, Width::W4, value.into(), 0)
        .expect("device memory of the chipset");
}

fn write_ioapic(chipset: &mut Chipset, index: u32, value: u32) {
    write(chipset, IO, index);
    write(chipset, IO + 0x10, value);
}

/// Initializes the pair as a PC's firmware does: vectors 30h and 38h, the given masks.
fn initialize_8259(chipset: &mut Chipset, master_mask: u8, slave_mask: u8) {
    for (port, value) in [
        (0x20, 0x11),
        (0x21, 0x30),
        (0x21, 4),
        (0x21, 1),
        (0xa0, 0x11),
        (0xa1, 0x38),
        (0xa1, 2),
        (0xa1, 1),
        (0x21, master_mask),
        (0xa1, slave_mask),
    ] {
        outb(chipset, port, value, 0);
    }
}

/// Programs counter 0 as a rate generator with a period of `count` ticks. OUT0 rises with the control word, so a later
/// initialization of the 8259 pair is what starts without a request.
fn start_8254(chipset: &mut Chipset, count: u16, now: u64) {
    outb(chipset, 0x43, 0x34, now);
    outb(chipset, 0x40, count as u8, now);
    outb(chipset, 0x40, (count >> 8) as u8, now);
}

#[test]
fn an_isa_line_reaches_the_processor_through_the_8259_pair() {
    for mut chipset in [without_apics(), with_apics()] {
        initialize_8259(&mut chipset, 0xfb, 0xef);
        chipset.set_isa_line(12, true);
        assert!(chipset.pending_interrupt());
        assert_eq!(chipset.acknowledge_interrupt(), Some(0x3c));
        assert!(!chipset.pending_interrupt());
    }
}

#[test]
fn with_lint0_masked_the_8259_pair_is_not_heard() {
    let mut chipset = with_apics();
    initialize_8259(&mut chipset, 0, 0);
    write(&mut chipset, LOCAL + 0x350, 0x10700);
    chipset.set_isa_line(4, true);
    assert!(!chipset.pending_interrupt());
    assert_eq!(chipset.acknowledge_interrupt(), None);
    write(&mut chipset, LOCAL + 0x350, 0x700);
    assert_eq!(chipset.acknowledge_interrupt(), Some(0x34));
}

#[test]
fn a_disabled_local_apic_lets_the_8259_pair_through() {
    let mut chipset = with_apics();
    initialize_8259(&mut chipset, 0, 0);
    write(&mut chipset, LOCAL + 0x350, 0x10700);
    assert_eq!(chipset.msr_write(0x1b, 0xfee0_0000, 0), Some(Ok(())));
    assert!(!chipset.has_enabled_apic());
    chipset.set_isa_line(4, true);
    assert_eq!(chipset.acknowledge_interrupt(), Some(0x34));
}

#[test]
fn an_isa_line_reaches_the_processor_through_the_io_apic() {
    let mut chipset = with_apics();
    initialize_8259(&mut chipset, 0xff, 0xff);
    write_ioapic(&mut chipset, 0x18, 0x44);
    chipset.set_isa_line(4, true);
    assert_eq!(chipset.acknowledge_interrupt(), Some(0x44));
    chipset.set_isa_line(4, true);
    assert!(!chipset.pending_interrupt(), "no new edge");
    chipset.pulse_isa_line(4);
    assert_eq!(
        chipset.acknowledge_interrupt(),
        None,
        "44h is still in service"
    );
    write(&mut chipset, LOCAL + 0xb0, 0);
    assert_eq!(chipset.acknowledge_interrupt(), Some(0x44));
}

#[test]
fn a_pulse_stays_requested_when_its_line_is_told_to_be_low() {
    let mut chipset = without_apics();
    initialize_8259(&mut chipset, 0, 0);
    chipset.pulse_isa_line(4);
    chipset.set_isa_line(4, false);
    chipset.advance(1000);
    assert_eq!(chipset.acknowledge_interrupt(), Some(0x34));
}

#[test]
fn the_lines_of_the_timer_and_the_cascade_cannot_be_driven() {
    let mut chipset = with_apics();
    initialize_8259(&mut chipset, 0, 0);
    for irq in [0, 2, 16, 255] {
        chipset.set_isa_line(irq, true);
        chipset.pulse_isa_line(irq);
    }
    assert!(!chipset.pending_interrupt());
}

#[test]
fn the_timer_is_isa_interrupt_0_and_pin_2_of_the_io_apic() {
    let mut chipset = without_apics();
    start_8254(&mut chipset, 1193, 0);
    initialize_8259(&mut chipset, 0xfe, 0xff);
    let deadline = chipset.next_deadline(0).expect("the timer runs");
    chipset.advance(deadline - 1);
    assert!(!chipset.pending_interrupt());
    chipset.advance(deadline);
    assert_eq!(chipset.acknowledge_interrupt(), Some(0x30));

    let mut chipset = with_apics();
    start_8254(&mut chipset, 1193, 0);
    initialize_8259(&mut chipset, 0xff, 0xff);
    assert_eq!(chipset.next_deadline(0), None, "nobody hears it");
    write_ioapic(&mut chipset, 0x14, 0x40);
    assert_eq!(chipset.next_deadline(0), Some(deadline));
    chipset.advance(deadline);
    assert_eq!(chipset.acknowledge_interrupt(), Some(0x40));
}

#[test]
fn ticks_that_the_host_was_late_for_come_one_per_acknowledge() {
    for by_ioapic in [false, true] {
        let mut chipset = with_apics();
        start_8254(&mut chipset, 1193, 0);
        initialize_8259(&mut chipset, if by_ioapic { 0xff } else { 0xfe }, 0xff);
        if by_ioapic {
            write_ioapic(&mut chipset, 0x14, 0x40);
        }
        // The first period starts one tick after the count is written.
        chipset.advance(i8254::ns_of(5 * 1193 + 1));
        let mut ticks = 0;
        while chipset.acknowledge_interrupt().is_some() {
            ticks += 1;
            if by_ioapic {
                write(&mut chipset, LOCAL + 0xb0, 0);
            } else {
                outb(&mut chipset, 0x20, 0x20, 0);
            }
        }
        assert_eq!(ticks, 5, "through the I/O APIC: {by_ioapic}");
    }
}

#[test]
fn the_sci_is_a_level_on_interrupt_9_that_its_status_holds() {
    let mut chipset = with_apics();
    initialize_8259(&mut chipset, 0xff, 0xff);
    write_ioapic(&mut chipset, 0x22, 0x8049);
    chipset
        .port_write(0x602, Width::W2, 1 << 8, 0)
        .expect("PM1_EN");
    chipset.press_power_button();
    assert_eq!(chipset.acknowledge_interrupt(), Some(0x49));
    write(&mut chipset, LOCAL + 0xb0, 0);
    assert_eq!(
        chipset.acknowledge_interrupt(),
        Some(0x49),
        "the status is still set"
    );
    chipset
        .port_write(0x600, Width::W2, 1 << 8, 0)
        .expect("PM1_STS");
    write(&mut chipset, LOCAL + 0xb0, 0);
    assert!(!chipset.pending_interrupt());
}

#[test]
fn a_device_and_the_sci_share_line_9() {
    let mut chipset = with_apics();
    initialize_8259(&mut chipset, 0xff, 0xff);
    write_ioapic(&mut chipset, 0x22, 0x8049);
    chipset
        .port_write(0x602, Width::W2, 1 << 8, 0)
        .expect("PM1_EN");
    chipset.press_power_button();
    chipset.set_isa_line(9, true);
    assert_eq!(chipset.acknowledge_interrupt(), Some(0x49));
    chipset
        .port_write(0x600, Width::W2, 1 << 8, 0)
        .expect("PM1_STS");
    write(&mut chipset, LOCAL + 0xb0, 0);
    assert_eq!(
        chipset.acknowledge_interrupt(),
        Some(0x49),
        "the device asks on"
    );
}

#[test]
fn an_ipi_to_itself_arrives_and_one_to_others_does_not() {
    let mut chipset = with_apics();
    write(&mut chipset, LOCAL + 0x300, 0x000c_4055);
    assert!(!chipset.pending_interrupt());
    write(&mut chipset, LOCAL + 0x310, 0x0100_0000);
    write(&mut chipset, LOCAL + 0x300, 0x0000_4056);
    assert!(!chipset.pending_interrupt(), "there is no APIC 1");
    write(&mut chipset, LOCAL + 0x300, 0x0004_4057);
    assert_eq!(chipset.acknowledge_interrupt(), Some(0x57));
    write(&mut chipset, LOCAL + 0x310, 0);
    write(&mut chipset, LOCAL + 0x300, 0x0000_4400);
    assert!(chipset.take_signals().nmi);
}

#[test]
fn the_tsc_deadline_follows_the_guest_s_tsc() {
    let mut chipset = with_apics();
    write(&mut chipset, LOCAL + 0x320, 0x400ec);
    assert_eq!(chipset.msr_write(0x6e0, 2001, 0), Some(Ok(())));
    assert_eq!(chipset.next_deadline(0), Some(1001));
    chipset.set_clock(clock().adjusted(1000));
    assert_eq!(chipset.next_deadline(0), Some(501));
    chipset.advance(500);
    assert!(!chipset.pending_interrupt());
    chipset.advance(501);
    assert_eq!(chipset.acknowledge_interrupt(), Some(0xec));
}

#[test]
fn soft_off_and_reset_are_requested_once() {
    let mut chipset = without_apics();
    chipset
        .port_write(0x604, Width::W2, 5 << 10 | 1 << 13, 0)
        .expect("PM1_CNT");
    outb(&mut chipset, 0xcf9, 0x06, 0);
    let requests = Requests {
        soft_off: true,
        reset: true,
    };
    assert_eq!(chipset.take_requests(), requests);
    assert_eq!(chipset.take_requests(), Requests::default());
    outb(&mut chipset, 0xcf9, 0x02, 0);
    assert_eq!(
        chipset.take_requests(),
        Requests::default(),
        "only RST_CPU resets"
    );
}

#[test]
fn what_is_not_the_chipset_s_is_left_to_others() {
    let mut chipset = without_apics();
    assert_eq!(chipset.port_read(0x60, Width::W1, 0), None);
    assert_eq!(chipset.port_write(0x60c, Width::W1, 0, 0), None);
    assert_eq!(chipset.mmio_read(LOCAL, Width::W4, 0), None);
    assert_eq!(chipset.mmio_read(IO, Width::W4, 0), None);
    assert_eq!(chipset.msr_read(0x1b, 0), None);
    let mut chipset = with_apics();
    assert_eq!(chipset.mmio_read(LOCAL + 0x1000, Width::W4, 0), None);
    assert_eq!(chipset.msr_read(0x10, 0), None);
    assert_eq!(chipset.msr_read(0x802, 0), Some(Err(GeneralProtection)));
}

#[test]
fn a_wide_access_to_byte_devices_is_split() {
    let mut chipset = without_apics();
    initialize_8259(&mut chipset, 0xff, 0xff);
    chipset
        .port_write(0x20, Width::W2, 0xa50b, 0)
        .expect("OCW3 and OCW1");
    assert_eq!(inb(&mut chipset, 0x21, 0), 0xa5);
    assert_eq!(chipset.port_read(0x20, Width::W2, 0), Some(0xa500));
    assert_eq!(
        chipset.port_read(0x21, Width::W4, 0),
        Some(0xffff_ffa5),
        "the rest is absent"
    );
}

#[test]
fn an_impossible_state_is_refused_and_changes_nothing() {
    let good = with_apics().save(0);
    let mut hostile = vec![ChipsetState::default()];
    for change in [
        |state: &mut ChipsetState| state.isa_levels = 1,
        |state: &mut ChipsetState| state.isa_levels = 1 << 16,
        |state: &mut ChipsetState| state.reserved = 1,
        |state: &mut ChipsetState| state.pm1_control = 0,
        |state: &mut ChipsetState| state.pm1_event = 2,
        |state: &mut ChipsetState| state.ioapic.levels = 1 << 31,
    ] {
        let mut state = good;
        change(&mut state);
        hostile.push(state);
    }
    for state in hostile {
        let mut chipset = with_apics();
        let before = chipset.clone();
        assert!(chipset.restore(&state, 0).is_err(), "{state:x?}");
        assert_eq!(chipset, before);
    }
    assert!(
        without_apics().restore(&good, 0).is_err(),
        "it has no I/O APIC"
    );
    let local = with_apics().save_local_apic(0);
    assert!(without_apics().restore_local_apic(&local).is_err());
    assert!(with_apics()
        .restore_local_apic(&LocalApicState::default())
        .is_err());
}

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

/// Something that a guest, or its host, can do to the chipset at any time.
#[derive(Debug, Clone)]
enum Assault {
    PortWrite(u16, Width, u64),
    PortRead(u16, Width),
    MmioWrite(u64, Width, u64),
    MmioRead(u64, Width),
    MsrWrite(u32, u64),
    MsrRead(u32),
    TscAdjust(u64),
    Cr8(u64),
    Line(u8, bool),
    Acknowledge,
    Wait(u64),
}

/// Numbers at the borders where arithmetic goes wrong, beside any.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0..16u64,
        (0..64u32).prop_map(|bit| 1 << bit),
        (0..64u32).prop_map(|bit| (1u64 << bit).wrapping_neg()),
        any::<u32>().prop_map(u64::from),
    ]
}

fn assault() -> impl Strategy<Value = Assault> {
    let width = || prop_oneof![Just(Width::W1), Just(Width::W2), Just(Width::W4)];
    let wide = || prop_oneof![Just(Width::W4), width(), Just(Width::W8)];
    let port = || {
        prop_oneof![
            0x20..0x22u16,
            0xa0..0xa2u16,
            0x40..0x44u16,
            Just(0x61),
            0x4d0..0x4d2u16,
            0x600..0x60cu16,
            Just(0xcf9),
            any::<u16>()
        ]
    };
    let register = prop_oneof![
        (0..0x40u64).prop_map(|register| LOCAL + (register << 4)),
        prop_oneof![Just(IO), Just(IO + 0x10)],
        (0..0x1000u64).prop_map(|offset| LOCAL + offset),
        (0..0x1000u64).prop_map(|offset| IO + offset),
    ];
    let register = move || register.clone();
    let msr = || prop_oneof![Just(0x1b), Just(0x6e0), 0x800..0x900u32];
    prop_oneof![
        4 => (port(), width(), number()).prop_map(|(p, w, v)| Assault::PortWrite(p, w, v)),
        2 => prop::sample::select(&[0x0030u64, 0x2_0030, 0x4_0030][..]).prop_map(|mode| {
            Assault::MmioWrite(LOCAL + 0x320, Width::W4, mode)
        }),
        2 => number().prop_map(|deadline| Assault::MsrWrite(0x6e0, deadline)),
        1 => (port(), width()).prop_map(|(p, w)| Assault::PortRead(p, w)),
        4 => (register(), wide(), number()).prop_map(|(a, w, v)| Assault::MmioWrite(a, w, v)),
        1 => (register(), wide()).prop_map(|(a, w)| Assault::MmioRead(a, w)),
        3 => (msr(), number()).prop_map(|(m, v)| Assault::MsrWrite(m, v)),
        1 => msr().prop_map(Assault::MsrRead),
        1 => number().prop_map(Assault::TscAdjust),
        1 => (0..16u64).prop_map(Assault::Cr8),
        1 => (0..16u8, any::<bool>()).prop_map(|(irq, level)| Assault::Line(irq, level)),
        2 => Just(Assault::Acknowledge),
        2 => prop_oneof![0..10_000u64, 0..10_000_000_000u64].prop_map(Assault::Wait),
    ]
}

fn suffer(chipset: &mut Chipset, assault: &Assault, now: &mut u64) {
    match *assault {
        Assault::PortWrite(port, width, value) => {
            chipset.port_write(port, width, value & width.mask(), *now);
        }
        Assault::PortRead(port, width) => {
            let read = chipset.port_read(port, width, *now);
            assert!(read.is_none_or(|value| value <= width.mask()));
        }
        Assault::MmioWrite(gpa, width, value) => {
            chipset.mmio_write(gpa, width, value & width.mask(), *now);
        }
        Assault::MmioRead(gpa, width) => {
            chipset.mmio_read(gpa, width, *now);
        }
        Assault::MsrWrite(index, value) => {
            // #GP is the guest's affair.
            let _ = chipset.msr_write(index, value, *now);
        }
        Assault::MsrRead(index) => {
            let _ = chipset.msr_read(index, *now);
        }
        Assault::TscAdjust(adjust) => chipset.set_clock(clock().adjusted(adjust)),
        Assault::Cr8(value) => chipset.set_cr8(value),
        Assault::Line(irq, level) => chipset.set_isa_line(irq, level),
        Assault::Acknowledge => {
            let pending = chipset.pending_interrupt();
            let vector = chipset.acknowledge_interrupt();
            assert_eq!(
                vector.is_some(),
                pending,
                "INTR and the acknowledge disagree"
            );
        }
        Assault::Wait(ns) => *now += ns,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn nothing_that_a_guest_does_breaks_the_chipset_or_makes_it_be_due_for_ever(
        apics: bool, assaults in prop::collection::vec(assault(), 1..150),
    ) {
        let mut chipset = if apics { with_apics() } else { without_apics() };
        let mut now = 1_000_000_000;
        for assault in &assaults {
            suffer(&mut chipset, assault, &mut now);
            chipset.advance(now);
            chipset.take_signals();
            let deadline = chipset.next_deadline(now);
            prop_assert!(
                deadline.is_none_or(|deadline| deadline > now),
                "{:?} at {} is still due after {:?}", deadline, now, assault
            );
        }
    }
}
