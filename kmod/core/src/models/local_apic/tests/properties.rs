// SPDX-License-Identifier: GPL-2.0
//! What holds for every sequence of accesses to a local APIC.

use super::*;
use proptest::prelude::*;
use std::vec;
use std::vec::Vec;

/// Something that happens to a local APIC.
#[derive(Debug, Clone)]
enum Event {
    Mmio(u64, u32),
    Read(u64),
    Msr(u32, u64),
    ReadMsr(u32),
    Receive(u8, bool),
    Acknowledge,
    Lint(bool, bool),
    Cr8(u64),
    Time(u64),
}

fn events(longest: usize) -> impl Strategy<Value = Vec<Event>> {
    let offset = (0..64u64).prop_map(|register| 16 * register);
    let value = prop_oneof![
        any::<u32>(),
        0..0x800u32,
        (0..8u32).prop_map(|v| v << 17 | 0x51),
        Just(0x1ffu32)
    ];
    let base = prop::sample::select(std::vec![
        0x800u64, 0x900, 0xd00, 0xc00, 0x100, 0, 0x900, 0xd00
    ])
    .prop_map(|bits| DEFAULT_BASE | bits);
    let event = prop_oneof![
        4 => (offset.clone(), value.clone()).prop_map(|(offset, value)| Event::Mmio(offset, value)),
        2 => offset.prop_map(Event::Read),
        3 => (0x800..0x840u32, value.prop_map(u64::from)).prop_map(|(index, value)| Event::Msr(index, value)),
        2 => (0x800..0x840u32).prop_map(Event::ReadMsr),
        1 => base.prop_map(|value| Event::Msr(IA32_APIC_BASE, value)),
        1 => (0..100_000u64).prop_map(|value| Event::Msr(IA32_TSC_DEADLINE, value)),
        3 => (any::<u8>(), any::<bool>()).prop_map(|(vector, level)| Event::Receive(vector, level)),
        2 => Just(Event::Acknowledge),
        1 => (any::<bool>(), any::<bool>()).prop_map(|(pin, level)| Event::Lint(pin, level)),
        1 => (0..16u64).prop_map(Event::Cr8),
        2 => (0..5000u64).prop_map(Event::Time),
    ];
    prop::collection::vec(event, 0..longest)
}

/// Lets an event happen and returns all that can be seen of it.
fn happen(apic: &mut LocalApic, event: &Event, now: &mut u64) -> std::string::String {
    let answer = match *event {
        Event::Mmio(offset, value) if apic.claims(apic.page()) => {
            std::format!("{:?}", write(apic, offset, value, *now))
        }
        Event::Read(offset) if apic.claims(apic.page()) => {
            std::format!("{:x}", read(apic, offset, *now))
        }
        Event::Mmio(..) | Event::Read(_) => std::string::String::new(),
        Event::Msr(index, value) => {
            std::format!("{:?}", apic.msr_write(index, value, *now, tsc(*now)))
        }
        Event::ReadMsr(index) => std::format!("{:?}", apic.msr_read(index, *now, tsc(*now))),
        Event::Receive(vector, level) => {
            let trigger = if level { Trigger::Level } else { Trigger::Edge };
            std::format!("{}", apic.receive(&fixed(vector, trigger)))
        }
        Event::Acknowledge => std::format!("{:?}", apic.acknowledge()),
        Event::Lint(pin, level) => {
            apic.set_lint(if pin { Lint::Lint1 } else { Lint::Lint0 }, level);
            std::string::String::new()
        }
        Event::Cr8(value) => {
            apic.set_cr8(value);
            std::string::String::new()
        }
        Event::Time(ns) => {
            *now += ns;
            apic.advance(*now, tsc(*now));
            std::string::String::new()
        }
    };
    std::format!(
        "{answer} {:?} {:?} {:?} {:?}",
        apic.pending_vector(),
        apic.next_deadline(&clock()),
        apic.passes_extint(),
        apic.take_signals()
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_restored_apic_answers_as_the_saved_one(before in events(60), after in events(60), start in 0..1u64 << 50) {
        let mut now = start;
        let mut original = enabled();
        for event in &before {
            happen(&mut original, event, &mut now);
        }
        let state = original.save(now, tsc(now));
        let mut copy = reset();
        prop_assert_eq!(copy.restore(&state), Ok(()));
        // The pins are driven from outside.
        for pin in [Lint::Lint0, Lint::Lint1] {
            copy.lint[pin as usize] = original.lint[pin as usize];
        }
        prop_assert_eq!(copy.save(now, tsc(now)), state);
        let mut copy_now = now;
        for event in &after {
            let expected = happen(&mut original, event, &mut now);
            prop_assert_eq!(happen(&mut copy, event, &mut copy_now), expected, "{:?}", event);
        }
    }

    #[test]
    fn a_hostile_state_is_refused_or_holds_only_what_a_guest_could_have_written(
        before in events(20), register in 0..64usize, value in any::<u32>(), after in events(20),
    ) {
        let mut now = 0;
        let mut apic = enabled();
        for event in &before {
            happen(&mut apic, event, &mut now);
        }
        let mut state = apic.save(now, tsc(now));
        state.registers[register] = value;
        let mut copy = reset();
        let untouched = copy.clone();
        match copy.restore(&state) {
            Ok(()) => {
                prop_assert_eq!(copy.restore(&copy.clone().save(now, tsc(now))), Ok(()));
                for event in &after {
                    happen(&mut copy, event, &mut now);
                }
            }
            Err(_) => prop_assert_eq!(copy, untouched),
        }
    }

    #[test]
    fn a_timer_never_fires_before_its_deadline_and_always_at_it(
        divide in 0..16u32, mode in 0..2u32, count in 1u32.., start in 0..1u64 << 40,
    ) {
        let mut apic = enabled();
        let _ = write(&mut apic, DIVIDE, divide, start);
        let _ = write(&mut apic, LVT_TIMER, mode << 17 | 0x61, start);
        let _ = write(&mut apic, INITIAL_COUNT, count, start);
        let deadline = apic.next_deadline(&clock()).expect("the timer is running");
        if deadline >= start + MIN_PERIOD_NS {
            let mut early = apic.clone();
            early.advance(deadline - MIN_PERIOD_NS.min(u64::from(count)), 0);
            prop_assert!(mode == 1 || early.highest_request().is_none());
        }
        apic.advance(deadline, 0);
        prop_assert_eq!(apic.highest_request(), Some(0x61));
    }
}
