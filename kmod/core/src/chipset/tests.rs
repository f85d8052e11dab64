// SPDX-License-Identifier: GPL-2.0
//! The chipset as a guest sees it: whole ways of an interrupt, from the line to the acknowledge.

mod assault;
mod moved;

use super::*;
use crate::iospace::Width;
use crate::models::i8254;
use proptest::prelude::*;
use pvmm_uapi::{ChipsetState, Clock, LocalApicState};
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
