// SPDX-License-Identifier: GPL-2.0
//! The platform looks at its chipset only when something can have changed; a chipset that is looked at all the time says
//! what the guest must see.

use super::*;
use proptest::prelude::*;
use pvmm_hostabi::sim::{Machine, SimHost};
use pvmm_hostabi::HostMem;
use pvmm_uapi::Clock;
use std::vec::Vec;

const FEATURES: ApicFeatures = ApicFeatures {
    x2apic: true,
    tsc_deadline: true,
    physical_address_bits: 39,
};
/// Ports of the chipset that have something to do with interrupts and time.
const PORTS: [u16; 13] = [
    0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x40, 0x42, 0x43, 0x61, 0x600, 0x602, 0x604, 0x608,
];
const IA32_TSC_DEADLINE: u32 = 0x6e0;
const IA32_X2APIC_EOI: u32 = 0x80b;

/// What happens to the machine.
#[derive(Debug, Clone, Copy)]
enum Event {
    Read(u16),
    Write(u16, u8),
    Line(u8, bool),
    Acknowledge,
    EndOfInterrupt,
    Deadline(u64),
}

fn event() -> impl Strategy<Value = Event> {
    let port = proptest::sample::select(&PORTS[..]);
    prop_oneof![
        4 => port.clone().prop_map(Event::Read),
        4 => (port, any::<u8>()).prop_map(|(port, value)| Event::Write(port, value)),
        2 => (3..16u8, any::<bool>()).prop_map(|(irq, level)| Event::Line(irq, level)),
        3 => Just(Event::Acknowledge),
        2 => Just(Event::EndOfInterrupt),
        1 => (1..3_000_000u64).prop_map(Event::Deadline),
    ]
}

pub(super) fn clock() -> VmClock {
    let point = Clock {
        vm_ns: 0,
        tsc: 0,
        tsc_khz: 1_000_000,
        flags: 0,
    };
    VmClock::new(point, 0, 1_000_000).expect("the rates are not 0")
}

/// Programs both timers and controllers as an operating system does, so that random events find them at work.
fn start() -> Vec<(u16, u8)> {
    let pic = [(0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 1), (0x21, 0)];
    let slave = [(0xa0, 0x11), (0xa1, 0x38), (0xa1, 2), (0xa1, 1), (0xa1, 0)];
    let pit = [(0x43, 0x34), (0x40, 0xa9), (0x40, 0x04)];
    pic.into_iter().chain(slave).chain(pit).collect()
}

proptest! {
    #[test]
    fn interrupts_come_as_if_the_chipset_was_looked_at_all_the_time(
        apic in any::<bool>(),
        events in proptest::collection::vec((0..400_000u64, event()), 1..200),
    ) {
        let machine = Machine::new(1);
        let _entered = machine.enter();
        let features = apic.then_some(FEATURES);
            let control = SimHost::shared(Control::new().expect("memory")).expect("memory");
            let mut lazy = Platform::<SimHost>::new(features, clock(), control.clone()).expect("memory");
            let mut eager = Chipset::new(features, clock().guest_clock(0));
            lazy.chipset_mut().enter_virtual_wire();
            eager.enter_virtual_wire();
            for (port, value) in start() {
                lazy.port(port, Width::W1, Direction::Write, value.into(), 0);
                eager.port_write(port, Width::W1, value.into(), 0);
            }
            let mut now = 0;
            for (wait, event) in events {
                now += wait;
                // The CPU comes back at a deadline.
                lazy.advance(now);
                eager.advance(now);
                match event {
                    Event::Read(port) => {
                        let seen = lazy.port(port, Width::W1, Direction::Read, 0, now);
                        let value = eager.port_read(port, Width::W1, now).expect("it is the chipset's");
                        assert_eq!(seen, PortOutcome::Done(value), "port {port:#x}");
                    }
                    Event::Write(port, value) => {
                        lazy.port(port, Width::W1, Direction::Write, value.into(), now);
                        eager.port_write(port, Width::W1, value.into(), now);
                    }
                    Event::Line(irq, level) => {
                        control.set_line(irq.into(), level);
                        lazy.drain_interrupts();
                        eager.set_isa_line(irq, level);
                    }
                    Event::Acknowledge if eager.pending_interrupt() => {
                        let taken = lazy.chipset_mut().acknowledge_interrupt();
                        assert_eq!(taken, eager.acknowledge_interrupt());
                    }
                    Event::Acknowledge => {}
                    Event::EndOfInterrupt => {
                        let seen = lazy.chipset_at(now).msr_write(IA32_X2APIC_EOI, 0, now);
                        assert_eq!(seen, eager.msr_write(IA32_X2APIC_EOI, 0, now));
                    }
                    Event::Deadline(ticks) => {
                        let seen = lazy.chipset_at(now).msr_write(IA32_TSC_DEADLINE, now + ticks, now);
                        assert_eq!(seen, eager.msr_write(IA32_TSC_DEADLINE, now + ticks, now));
                    }
                }
                lazy.advance(now);
                eager.advance(now);
                assert_eq!(lazy.chipset().pending_interrupt(), eager.pending_interrupt(), "{event:?} at {now}");
                // An earlier look than needed does no harm; a later one loses time.
                let needed = eager.next_deadline(now);
                let planned = lazy.next_deadline(now);
                assert!(
                    needed.is_none() || planned.is_some_and(|planned| Some(planned) <= needed),
                    "{event:?} at {now}: {planned:?} {needed:?}"
                );
            }
    }
}

#[test]
fn a_poll_of_the_8259_is_seen_as_a_change_and_a_look_at_its_mask_is_not() {
    let machine = Machine::new(1);
    let _entered = machine.enter();
    let control = SimHost::shared(Control::new().expect("memory")).expect("memory");
    let mut platform = Platform::<SimHost>::new(None, clock(), control).expect("memory");
    for (port, value) in start() {
        platform.port(port, Width::W1, Direction::Write, value.into(), 0);
    }
    platform.advance(0);
    platform.next_deadline(0);
    platform.port(0x21, Width::W1, Direction::Read, 0, 1);
    assert!(!platform.is_touched());
    // OCW3 with the poll command.
    platform.port(0x20, Width::W1, Direction::Write, 0x0c, 1);
    platform.advance(1);
    platform.next_deadline(1);
    assert!(!platform.is_touched());
    platform.port(0x21, Width::W1, Direction::Read, 0, 1);
    assert!(platform.is_touched());
}
