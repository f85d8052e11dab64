// SPDX-License-Identifier: GPL-2.0
//! A chipset under a guest that means no good.

use super::*;

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
