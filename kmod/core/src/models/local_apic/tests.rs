// SPDX-License-Identifier: GPL-2.0
//! The local APIC against the SDM, and its state against itself.

mod properties;

use super::*;
use crate::clock::GuestClock;
use crate::iospace::Width;
use pvmm_uapi::{Clock, LocalApicState};

const FEATURES: ApicFeatures = ApicFeatures {
    x2apic: true,
    tsc_deadline: true,
    physical_address_bits: 40,
};

const TPR: u64 = 0x80;
const PPR: u64 = 0xa0;
const EOI: u64 = 0xb0;
const LDR: u64 = 0xd0;
const DFR: u64 = 0xe0;
const SVR: u64 = 0xf0;
const ESR: u64 = 0x280;
const ICR_LOW: u64 = 0x300;
const ICR_HIGH: u64 = 0x310;
const LVT_TIMER: u64 = 0x320;
const LVT_LINT0: u64 = 0x350;
const LVT_LINT1: u64 = 0x360;
const LVT_ERROR: u64 = 0x370;
const INITIAL_COUNT: u64 = 0x380;
const CURRENT_COUNT: u64 = 0x390;
const DIVIDE: u64 = 0x3e0;

/// TSC of the tests: two ticks a nanosecond.
const fn tsc(now: u64) -> u64 {
    2 * now
}

fn clock() -> GuestClock {
    GuestClock::new(&Clock {
        tsc_khz: 2_000_000,
        ..Clock::default()
    })
    .expect("the rate is not zero")
}

fn read(apic: &mut LocalApic, offset: u64, now: u64) -> u32 {
    apic.mmio_read(offset, Width::W4, now, tsc(now)) as u32
}

fn write(apic: &mut LocalApic, offset: u64, value: u32, now: u64) -> Effect {
    apic.mmio_write(offset, Width::W4, u64::from(value), now, tsc(now))
}

fn rdmsr(apic: &mut LocalApic, index: u32) -> Result<u64, GeneralProtection> {
    apic.msr_read(index, 0, 0)
}

fn wrmsr(apic: &mut LocalApic, index: u32, value: u64) -> Result<Effect, GeneralProtection> {
    apic.msr_write(index, value, 0, 0)
}

fn reset() -> LocalApic {
    LocalApic::new(0, FEATURES)
}

/// Software-enabled, in xAPIC mode.
fn enabled() -> LocalApic {
    let mut apic = reset();
    assert_eq!(write(&mut apic, SVR, 0x1ff, 0), Effect::None);
    apic
}

fn x2apic() -> LocalApic {
    let mut apic = enabled();
    let _ = wrmsr(&mut apic, IA32_APIC_BASE, DEFAULT_BASE | 0xd00).expect("a legal transition");
    apic
}

const fn fixed(vector: u8, trigger: Trigger) -> InterruptMessage {
    InterruptMessage {
        vector,
        delivery: DeliveryMode::Fixed,
        trigger,
        destination: Destination::Physical(0),
    }
}

#[test]
fn the_registers_after_reset_are_those_of_the_manual() {
    let mut apic = reset();
    assert_eq!(rdmsr(&mut apic, IA32_APIC_BASE), Ok(0xfee0_0900));
    for offset in (0x100..0x280).step_by(16) {
        assert_eq!(read(&mut apic, offset, 0), 0, "ISR, TMR, IRR");
    }
    for offset in [ICR_LOW, ICR_HIGH, LDR, TPR, INITIAL_COUNT, CURRENT_COUNT] {
        assert_eq!(read(&mut apic, offset, 0), 0);
    }
    assert_eq!(read(&mut apic, DIVIDE, 0), 0);
    assert_eq!(read(&mut apic, DFR, 0), u32::MAX);
    assert_eq!(read(&mut apic, SVR, 0), 0xff);
    for lvt in (LVT_TIMER..=LVT_ERROR).step_by(16) {
        assert_eq!(read(&mut apic, lvt, 0), 0x10000);
    }
    assert_eq!(read(&mut apic, 0x30, 0) & 0xff, 0x14);
    assert_eq!(read(&mut apic, 0x30, 0) >> 16 & 0xff, 5, "six LVT entries");
}

#[test]
fn lvt_entries_stay_masked_while_software_disabled() {
    let mut apic = reset();
    let _ = write(&mut apic, LVT_TIMER, 0x30, 0);
    assert_eq!(read(&mut apic, LVT_TIMER, 0), 0x10030);
    let _ = write(&mut apic, SVR, 0x1ff, 0);
    let _ = write(&mut apic, LVT_TIMER, 0x30, 0);
    assert_eq!(read(&mut apic, LVT_TIMER, 0), 0x30);
    let _ = write(&mut apic, SVR, 0xff, 0);
    assert_eq!(read(&mut apic, LVT_TIMER, 0), 0x10030);
}

#[test]
fn a_software_disabled_apic_takes_nmi_but_no_fixed_interrupt() {
    let mut apic = reset();
    assert!(!apic.receive(&fixed(0x40, Trigger::Edge)));
    assert_eq!(apic.highest_request(), None);
    let nmi = InterruptMessage {
        delivery: DeliveryMode::Nmi,
        ..fixed(0, Trigger::Edge)
    };
    assert!(apic.receive(&nmi));
    assert!(apic.take_signals().nmi);
    assert!(!apic.take_signals().nmi, "it was taken");
}

#[test]
fn interrupts_come_by_class_above_the_task_priority() {
    let mut apic = enabled();
    assert!(apic.receive(&fixed(0x31, Trigger::Edge)));
    assert!(apic.receive(&fixed(0x45, Trigger::Edge)));
    assert_eq!(apic.pending_vector(), Some(0x45));
    let _ = write(&mut apic, TPR, 0x40, 0);
    assert_eq!(apic.pending_vector(), None, "class 4 is not above class 4");
    assert_eq!(apic.highest_request(), Some(0x45));
    assert_eq!(apic.cr8(), 4);
    apic.set_cr8(3);
    assert_eq!(read(&mut apic, TPR, 0), 0x30);
    assert_eq!(apic.acknowledge(), Some(0x45));
    assert_eq!(read(&mut apic, PPR, 0), 0x40);
    assert_eq!(
        apic.pending_vector(),
        None,
        "31h waits for the end of class 4"
    );
    let _ = write(&mut apic, EOI, 0, 0);
    assert_eq!(apic.pending_vector(), None, "TPR is still 30h");
    apic.set_cr8(0);
    assert_eq!(apic.acknowledge(), Some(0x31));
}

#[test]
fn the_processor_priority_is_the_task_priority_when_that_is_not_lower() {
    let mut apic = enabled();
    assert!(apic.receive(&fixed(0x45, Trigger::Edge)));
    assert_eq!(apic.acknowledge(), Some(0x45));
    let _ = write(&mut apic, TPR, 0x47, 0);
    assert_eq!(read(&mut apic, PPR, 0), 0x47);
    // With equal classes the low half is TPR's or 0 by model; here it is TPR's.
    let _ = write(&mut apic, TPR, 0x41, 0);
    assert_eq!(read(&mut apic, PPR, 0), 0x41);
    let _ = write(&mut apic, TPR, 0x37, 0);
    assert_eq!(read(&mut apic, PPR, 0), 0x40);
}

#[test]
fn only_the_end_of_a_level_triggered_interrupt_is_broadcast() {
    let mut apic = enabled();
    assert!(apic.receive(&fixed(0x50, Trigger::Level)));
    assert_eq!(apic.acknowledge(), Some(0x50));
    assert!(apic.receive(&fixed(0x60, Trigger::Edge)));
    assert_eq!(apic.acknowledge(), Some(0x60));
    assert_eq!(write(&mut apic, EOI, 0, 0), Effect::None);
    assert_eq!(write(&mut apic, EOI, 0, 0), Effect::EndOfInterrupt(0x50));
    assert_eq!(
        write(&mut apic, EOI, 0, 0),
        Effect::None,
        "nothing in service"
    );
}

#[test]
fn an_ipi_is_returned_as_a_message_with_its_destination() {
    let mut apic = enabled();
    let _ = write(&mut apic, ICR_HIGH, 0x0300_0000, 0);
    let sent = write(&mut apic, ICR_LOW, 0x0000_4041, 0);
    let message = InterruptMessage {
        destination: Destination::Physical(3),
        ..fixed(0x41, Trigger::Edge)
    };
    assert_eq!(sent, Effect::Send(message));
    let sent = write(&mut apic, ICR_LOW, 0x000c_4500, 0);
    let init = InterruptMessage {
        vector: 0,
        delivery: DeliveryMode::Init,
        destination: Destination::Others,
        trigger: Trigger::Edge,
    };
    assert_eq!(sent, Effect::Send(init));
    assert_eq!(
        write(&mut apic, ICR_LOW, 0x0008_8500, 0),
        Effect::None,
        "INIT level de-assert does nothing"
    );
    assert_eq!(
        read(&mut apic, ICR_LOW, 0) & 1 << 12,
        0,
        "delivery is never pending"
    );
}

#[test]
fn logical_destinations_match_in_the_flat_and_the_cluster_model() {
    let mut apic = enabled();
    let logical = |id| Destination::from_8_bits(id, true);
    assert!(
        !apic.is_destination(logical(1), false),
        "LDR is 0 after reset"
    );
    let _ = write(&mut apic, LDR, 0x0500_0000, 0);
    assert!(apic.is_destination(logical(0x04), false));
    assert!(!apic.is_destination(logical(0x0a), false));
    assert!(apic.is_destination(logical(0xff), false));
    let _ = write(&mut apic, DFR, 0x0fff_ffff, 0);
    let _ = write(&mut apic, LDR, 0x2500_0000, 0);
    assert!(apic.is_destination(logical(0x24), false));
    assert!(
        !apic.is_destination(logical(0x34), false),
        "another cluster"
    );
    assert!(
        apic.is_destination(logical(0xf1), false),
        "cluster 15 is all clusters"
    );
    assert!(apic.is_destination(Destination::from_8_bits(0xff, false), false));
    assert!(!apic.is_destination(Destination::Others, true));
}

#[test]
fn a_one_shot_timer_fires_once_and_reads_as_it_counts() {
    let mut apic = enabled();
    let _ = write(&mut apic, DIVIDE, 0b0011, 0);
    let _ = write(&mut apic, LVT_TIMER, 0xec, 0);
    let _ = write(&mut apic, INITIAL_COUNT, 100, 1000);
    assert_eq!(
        apic.next_deadline(&clock()),
        Some(65_000),
        "100 counts of 16 clocks of 40 ns"
    );
    assert_eq!(read(&mut apic, CURRENT_COUNT, 1000 + 40 * 640), 60);
    apic.advance(64_999, tsc(64_999));
    assert_eq!(apic.pending_vector(), None);
    apic.advance(65_000, tsc(65_000));
    assert_eq!(apic.acknowledge(), Some(0xec));
    assert_eq!(read(&mut apic, CURRENT_COUNT, 65_000), 0);
    assert_eq!(read(&mut apic, INITIAL_COUNT, 65_000), 100);
    assert_eq!(apic.next_deadline(&clock()), None);
    apic.advance(1 << 40, tsc(1 << 40));
    assert_eq!(apic.highest_request(), None);
}

#[test]
fn a_periodic_timer_keeps_its_phase_however_late_it_is_looked_at() {
    let mut apic = enabled();
    let _ = write(&mut apic, DIVIDE, 0b1011, 0);
    let _ = write(&mut apic, LVT_TIMER, 0x200ec, 0);
    let _ = write(&mut apic, INITIAL_COUNT, 25_000, 500);
    for (late, next) in [
        (1_000_500, 2_000_500),
        (7_400_000, 8_000_500),
        (8_000_500, 9_000_500),
    ] {
        apic.advance(late, tsc(late));
        assert_eq!(apic.acknowledge(), Some(0xec));
        let _ = write(&mut apic, EOI, 0, late);
        assert_eq!(apic.next_deadline(&clock()), Some(next));
    }
    assert_eq!(read(&mut apic, CURRENT_COUNT, 8_000_580), 24_998);
    let _ = write(&mut apic, INITIAL_COUNT, 0, 8_000_600);
    assert_eq!(apic.next_deadline(&clock()), None, "0 stops the timer");
}

#[test]
fn a_period_shorter_than_the_limit_is_served_at_the_limit() {
    let mut apic = enabled();
    let _ = write(&mut apic, DIVIDE, 0b1011, 0);
    let _ = write(&mut apic, LVT_TIMER, 0x200ec, 0);
    let _ = write(&mut apic, INITIAL_COUNT, 1, 0);
    assert_eq!(apic.next_deadline(&clock()), Some(MIN_PERIOD_NS));
}

#[test]
fn every_divide_configuration_divides_as_the_manual_says() {
    let table = [
        (0b0000, 2),
        (0b0001, 4),
        (0b0010, 8),
        (0b0011, 16),
        (0b1000, 32),
        (0b1001, 64),
        (0b1010, 128),
        (0b1011, 1),
    ];
    for (field, divisor) in table {
        let mut apic = enabled();
        let _ = write(&mut apic, DIVIDE, field, 0);
        let _ = write(&mut apic, LVT_TIMER, 0x40, 0);
        let _ = write(&mut apic, INITIAL_COUNT, 10, 0);
        assert_eq!(apic.next_deadline(&clock()), Some(10 * 40 * divisor));
    }
}

#[test]
fn a_masked_timer_counts_silently() {
    let mut apic = enabled();
    let _ = write(&mut apic, DIVIDE, 0b1011, 0);
    let _ = write(&mut apic, LVT_TIMER, 0x100ec, 0);
    let _ = write(&mut apic, INITIAL_COUNT, 1000, 0);
    assert_eq!(apic.next_deadline(&clock()), None);
    assert_eq!(read(&mut apic, CURRENT_COUNT, 16_000), 600);
    let _ = write(&mut apic, LVT_TIMER, 0xec, 80_000);
    assert_eq!(
        apic.highest_request(),
        None,
        "it ran out while it was masked"
    );
}

#[test]
fn a_tsc_deadline_fires_when_the_tsc_is_reached_and_disarms_itself() {
    let mut apic = enabled();
    assert_eq!(apic.msr_write(IA32_TSC_DEADLINE, 5000, 0, 0), Ok(NOTHING));
    assert_eq!(
        apic.msr_read(IA32_TSC_DEADLINE, 0, 0),
        Ok(0),
        "ignored in one-shot mode"
    );
    let _ = write(&mut apic, LVT_TIMER, 0x400ec, 0);
    assert_eq!(apic.msr_write(IA32_TSC_DEADLINE, 5001, 0, 0), Ok(NOTHING));
    assert_eq!(apic.next_deadline(&clock()), Some(2501));
    apic.advance(2500, tsc(2500));
    assert_eq!(apic.pending_vector(), None);
    assert_eq!(apic.msr_read(IA32_TSC_DEADLINE, 2500, 5000), Ok(5001));
    apic.advance(2501, tsc(2501));
    assert_eq!(apic.acknowledge(), Some(0xec));
    assert_eq!(apic.msr_read(IA32_TSC_DEADLINE, 2501, 5002), Ok(0));
    assert_eq!(
        apic.msr_write(IA32_TSC_DEADLINE, 7, 3000, 6000),
        Ok(NOTHING)
    );
    assert_eq!(
        apic.highest_request(),
        Some(0xec),
        "a deadline in the past fires at once"
    );
}

const NOTHING: Effect = Effect::None;

#[test]
fn leaving_tsc_deadline_mode_disarms_the_timer() {
    let mut apic = enabled();
    let _ = write(&mut apic, LVT_TIMER, 0x400ec, 0);
    assert_eq!(apic.msr_write(IA32_TSC_DEADLINE, 5001, 0, 0), Ok(NOTHING));
    let _ = write(&mut apic, LVT_TIMER, 0xec, 0);
    let _ = write(&mut apic, LVT_TIMER, 0x400ec, 0);
    assert_eq!(apic.next_deadline(&clock()), None);
    assert_eq!(
        write(&mut apic, INITIAL_COUNT, 5, 0),
        NOTHING,
        "ignored in this mode"
    );
    assert_eq!(read(&mut apic, INITIAL_COUNT, 0), 0);
}

#[test]
fn tsc_deadline_is_refused_when_cpuid_does_not_tell_of_it() {
    let mut apic = LocalApic::new(
        0,
        ApicFeatures {
            tsc_deadline: false,
            ..FEATURES
        },
    );
    assert_eq!(rdmsr(&mut apic, IA32_TSC_DEADLINE), Err(GeneralProtection));
    assert_eq!(
        wrmsr(&mut apic, IA32_TSC_DEADLINE, 1),
        Err(GeneralProtection)
    );
}

#[test]
fn the_base_register_makes_only_the_transitions_of_the_manual() {
    const DISABLED: u64 = DEFAULT_BASE | 0x100;
    const XAPIC: u64 = DEFAULT_BASE | 0x900;
    const INVALID: u64 = DEFAULT_BASE | 0x500;
    const X2APIC: u64 = DEFAULT_BASE | 0xd00;
    let legal = [
        (XAPIC, DISABLED),
        (XAPIC, X2APIC),
        (XAPIC, XAPIC),
        (X2APIC, DISABLED),
        (X2APIC, X2APIC),
        (DISABLED, XAPIC),
        (DISABLED, DISABLED),
    ];
    for from in [DISABLED, XAPIC, X2APIC] {
        for to in [DISABLED, XAPIC, INVALID, X2APIC] {
            let mut apic = reset();
            let _ = wrmsr(&mut apic, IA32_APIC_BASE, from).expect("reachable from reset");
            let done = wrmsr(&mut apic, IA32_APIC_BASE, to);
            assert_eq!(
                done.is_ok(),
                legal.contains(&(from, to)),
                "{from:x} to {to:x}"
            );
        }
    }
    let mut apic = reset();
    assert_eq!(
        wrmsr(&mut apic, IA32_APIC_BASE, XAPIC | 1 << 40),
        Err(GeneralProtection)
    );
    assert_eq!(
        wrmsr(&mut apic, IA32_APIC_BASE, XAPIC | 1 << 9),
        Err(GeneralProtection)
    );
}

#[test]
fn x2apic_registers_exist_only_in_x2apic_mode_and_the_page_only_in_xapic_mode() {
    let mut apic = enabled();
    assert_eq!(rdmsr(&mut apic, 0x802), Err(GeneralProtection));
    assert!(apic.claims(DEFAULT_BASE + 0xf0));
    let mut apic = x2apic();
    assert_eq!(rdmsr(&mut apic, 0x802), Ok(0));
    assert!(!apic.claims(DEFAULT_BASE + 0xf0));
    assert_eq!(
        rdmsr(&mut apic, 0x80f),
        Ok(0x1ff),
        "the state goes along into x2APIC mode"
    );
}

#[test]
fn x2apic_mode_has_a_derived_logical_id() {
    let mut apic = LocalApic::new(0x25, FEATURES);
    let _ = wrmsr(&mut apic, IA32_APIC_BASE, DEFAULT_BASE | 0xc00).expect("a legal transition");
    assert_eq!(rdmsr(&mut apic, 0x802), Ok(0x25));
    assert_eq!(rdmsr(&mut apic, 0x80d), Ok(0x0002_0020));
    assert!(apic.is_destination(Destination::Logical(0x0002_0021), false));
    assert!(!apic.is_destination(Destination::Logical(0x0003_0020), false));
}

#[test]
fn illegal_x2apic_accesses_raise_a_general_protection_fault() {
    let mut apic = x2apic();
    let reads = [0x80b, 0x83f, 0x80e, 0x831, 0x800, 0x82f, 0x840, 0x8ff];
    for index in reads {
        assert_eq!(
            rdmsr(&mut apic, index),
            Err(GeneralProtection),
            "RDMSR {index:x}"
        );
    }
    let writes = [
        (0x802, 0),
        (0x803, 0),
        (0x80a, 0),
        (0x80d, 0),
        (0x810, 0),
        (0x839, 0),
        (0x808, 0x100),
        (0x80b, 1),
        (0x80f, 0x400),
        (0x828, 1),
        (0x832, 1 << 19),
        (0x83e, 4),
        (0x83f, 0x100),
        (0x838, 1 << 32),
        (0x830, 1 << 20),
    ];
    for (index, value) in writes {
        assert_eq!(
            wrmsr(&mut apic, index, value),
            Err(GeneralProtection),
            "WRMSR {index:x}"
        );
    }
}

#[test]
fn an_x2apic_ipi_has_a_32_bit_destination() {
    let mut apic = x2apic();
    let sent = wrmsr(&mut apic, 0x830, 0x0001_0002_0000_0845);
    let message = InterruptMessage {
        destination: Destination::Logical(0x10002),
        ..fixed(0x45, Trigger::Edge)
    };
    assert_eq!(sent, Ok(Effect::Send(message)));
    assert_eq!(rdmsr(&mut apic, 0x830), Ok(0x0001_0002_0000_0845));
    assert_eq!(wrmsr(&mut apic, 0x83f, 0x99), Ok(Effect::None));
    assert_eq!(apic.pending_vector(), Some(0x99), "self IPI");
}

#[test]
fn errors_show_after_a_write_of_esr_and_raise_their_interrupt() {
    let mut apic = enabled();
    let _ = write(&mut apic, LVT_ERROR, 0xfe, 0);
    assert_eq!(write(&mut apic, ICR_LOW, 0x0000_000f, 0), Effect::None);
    assert_eq!(apic.pending_vector(), Some(0xfe));
    assert_eq!(read(&mut apic, ESR, 0), 0);
    let _ = write(&mut apic, ESR, 0, 0);
    assert_eq!(read(&mut apic, ESR, 0), 1 << 5);
    let _ = read(&mut apic, 0x40, 0);
    assert!(apic.receive(&fixed(3, Trigger::Edge)));
    let _ = write(&mut apic, ESR, 0, 0);
    assert_eq!(read(&mut apic, ESR, 0), 1 << 7 | 1 << 6);
}

#[test]
fn lint0_passes_the_8259_only_in_extint_mode() {
    let mut apic = reset();
    assert!(!apic.passes_extint());
    apic.enter_virtual_wire();
    assert!(apic.passes_extint());
    let _ = write(&mut apic, LVT_LINT0, 0x10700, 0);
    assert!(!apic.passes_extint());
    let _ = wrmsr(&mut apic, IA32_APIC_BASE, DEFAULT_BASE).expect("a legal transition");
    assert!(apic.passes_extint(), "a disabled APIC's LINT0 is INTR");
}

#[test]
fn a_level_lint_asks_again_after_its_eoi_while_it_is_high() {
    let mut apic = enabled();
    let _ = write(&mut apic, LVT_LINT0, 0x8040, 0);
    apic.set_lint(Lint::Lint0, true);
    assert_eq!(apic.acknowledge(), Some(0x40));
    assert_eq!(
        read(&mut apic, LVT_LINT0, 0) & 1 << 14,
        1 << 14,
        "remote IRR"
    );
    assert_eq!(apic.pending_vector(), None);
    let _ = write(&mut apic, EOI, 0, 0);
    assert_eq!(apic.acknowledge(), Some(0x40));
    apic.set_lint(Lint::Lint0, false);
    let _ = write(&mut apic, EOI, 0, 0);
    assert_eq!(apic.pending_vector(), None);
}

#[test]
fn an_edge_of_lint1_is_an_nmi() {
    let mut apic = reset();
    apic.enter_virtual_wire();
    apic.set_lint(Lint::Lint1, true);
    apic.set_lint(Lint::Lint1, true);
    assert!(apic.take_signals().nmi);
    apic.set_lint(Lint::Lint1, true);
    assert!(!apic.take_signals().nmi);
    let _ = write(&mut apic, LVT_LINT1, 0x10400, 0);
}

#[test]
fn narrow_reads_return_the_bytes_of_a_register_and_narrow_writes_are_lost() {
    let mut apic = enabled();
    assert_eq!(apic.mmio_read(SVR + 1, Width::W1, 0, 0), 1);
    assert_eq!(apic.mmio_read(SVR + 4, Width::W4, 0, 0), 0);
    assert_eq!(apic.mmio_read(SVR, Width::W8, 0, 0), 0x1ff);
    assert_eq!(apic.mmio_write(TPR, Width::W1, 0x40, 0, 0), Effect::None);
    assert_eq!(read(&mut apic, TPR, 0), 0);
}

#[test]
fn the_state_of_a_machine_without_an_apic_is_refused() {
    assert!(reset().restore(&LocalApicState::default()).is_err());
}
