// SPDX-License-Identifier: GPL-2.0
//! The 8259A pair against its data sheet, and against a pair written in another way.

use super::*;
use proptest::prelude::*;
use std::vec::Vec;

const MASTER: Location = Location::new(0, 0);
const MASTER_DATA: Location = Location::new(0, 1);
const SLAVE: Location = Location::new(1, 0);
const SLAVE_DATA: Location = Location::new(1, 1);

/// A pair set up as a PC does it: vectors 30h and 38h, nothing masked, with this ICW4.
fn pair_with(icw4: u8) -> I8259Pair {
    let mut pair = I8259Pair::new();
    for (even, odd, base, icw3) in [
        (MASTER, MASTER_DATA, 0x30, 0x04),
        (SLAVE, SLAVE_DATA, 0x38, 0x02),
    ] {
        pair.write(even, 0x11);
        pair.write(odd, base);
        pair.write(odd, icw3);
        pair.write(odd, icw4);
    }
    pair
}

fn pair() -> I8259Pair {
    pair_with(0x01)
}

/// Non-specific EOI to both.
fn eoi(pair: &mut I8259Pair) {
    pair.write(SLAVE, 0x20);
    pair.write(MASTER, 0x20);
}

#[test]
fn the_vector_is_icw2_and_the_input() {
    for irq in (0..16).filter(|&irq| irq != CASCADE) {
        let mut pair = pair();
        pair.set_line(irq, true);
        assert!(pair.pending());
        assert_eq!(pair.acknowledge(), 0x30 + irq);
        assert!(!pair.pending());
    }
}

#[test]
fn irq_0_has_the_highest_priority_and_the_slave_comes_between_1_and_3() {
    let mut pair = pair();
    for irq in (0..16).rev() {
        pair.set_line(irq, true);
    }
    let mut order = Vec::new();
    while pair.pending() {
        order.push(pair.acknowledge() - 0x30);
        eoi(&mut pair);
    }
    assert_eq!(order, [0, 1, 8, 9, 10, 11, 12, 13, 14, 15, 3, 4, 5, 6, 7]);
}

#[test]
fn an_edge_is_delivered_once_and_a_level_until_it_falls() {
    let mut pair = pair();
    pair.write(Location::new(2, 0), 0xff);
    assert_eq!(pair.read(Location::new(2, 0)), ELCR1_MASK);
    pair.set_line(1, true);
    pair.set_line(5, true);
    assert_eq!(pair.acknowledge(), 0x31);
    eoi(&mut pair);
    assert_eq!(pair.acknowledge(), 0x35);
    eoi(&mut pair);
    assert_eq!(pair.acknowledge(), 0x35);
    pair.set_line(5, false);
    eoi(&mut pair);
    assert!(!pair.pending());
}

#[test]
fn a_lower_priority_waits_for_the_eoi_and_a_higher_one_does_not() {
    let mut pair = pair();
    pair.set_line(4, true);
    assert_eq!(pair.acknowledge(), 0x34);
    pair.set_line(6, true);
    assert!(!pair.pending());
    pair.set_line(3, true);
    assert_eq!(pair.acknowledge(), 0x33);
    eoi(&mut pair);
    assert!(!pair.pending());
    eoi(&mut pair);
    assert_eq!(pair.acknowledge(), 0x36);
}

#[test]
fn a_request_that_goes_before_its_acknowledge_gives_the_spurious_vector_and_no_service() {
    let mut pair = pair();
    pair.set_line(3, true);
    pair.set_line(3, false);
    assert!(!pair.pending());
    assert_eq!(pair.acknowledge(), 0x37);
    pair.set_line(12, true);
    pair.set_line(12, false);
    assert_eq!(pair.acknowledge(), 0x37);
    pair.write(MASTER, 0x0b);
    assert_eq!(pair.read(MASTER), 0);
}

#[test]
fn a_slave_whose_request_is_masked_after_the_master_latched_it_gives_irq_15() {
    let mut pair = pair();
    // Restored state in which the slave's request has gone while the master's is latched.
    assert_eq!(pair.set(regs::MASTER_IRR, 1 << CASCADE), Ok(()));
    assert_eq!(pair.acknowledge(), 0x3f);
    pair.write(MASTER, 0x0b);
    pair.write(SLAVE, 0x0b);
    assert_eq!((pair.read(MASTER), pair.read(SLAVE)), (1 << CASCADE, 0));
}

#[test]
fn a_pulse_is_held_until_it_is_acknowledged_and_each_pulse_counts() {
    let mut pair = pair();
    pair.pulse(4);
    assert!(pair.requested(4));
    assert_eq!(pair.acknowledge(), 0x34);
    assert!(!pair.requested(4));
    eoi(&mut pair);
    assert!(!pair.pending());
    pair.pulse(4);
    assert!(pair.pending());
    pair.set_line(4, false);
    assert!(!pair.pending());
}

#[test]
fn icw1_clears_mask_service_and_latched_edges_and_a_high_input_must_rise_again() {
    let mut pair = pair();
    pair.set_line(1, true);
    pair.set_line(3, true);
    pair.acknowledge();
    pair.write(MASTER_DATA, 0xff);
    pair.write(MASTER, 0x11);
    for value in [0x40, 0x04, 0x01] {
        pair.write(MASTER_DATA, value);
    }
    assert_eq!(pair.read(MASTER_DATA), 0);
    assert_eq!(pair.read(MASTER), 0);
    pair.write(MASTER, 0x0b);
    assert_eq!(pair.read(MASTER), 0);
    assert!(!pair.pending());
    pair.set_line(3, false);
    pair.set_line(3, true);
    assert_eq!(pair.acknowledge(), 0x43);
}

#[test]
fn icw3_and_icw4_come_only_if_icw1_says_so() {
    let mut pair = I8259Pair::new();
    pair.write(MASTER, 0x12);
    pair.write(MASTER_DATA, 0x50);
    pair.write(MASTER_DATA, 0xaa);
    assert_eq!(pair.read(MASTER_DATA), 0xaa);
    pair.write(MASTER, 0x10);
    pair.write(MASTER_DATA, 0x50);
    pair.write(MASTER_DATA, 0x04);
    pair.write(MASTER_DATA, 0x55);
    assert_eq!(pair.read(MASTER_DATA), 0x55);
}

#[test]
fn rotation_gives_the_served_input_the_lowest_priority() {
    let mut pair = pair();
    pair.set_line(4, true);
    pair.acknowledge();
    pair.write(MASTER, 0xa0);
    pair.pulse(4);
    pair.pulse(5);
    pair.pulse(0);
    let mut order = Vec::new();
    while pair.pending() {
        order.push(pair.acknowledge() & 7);
        pair.write(MASTER, 0x20);
    }
    assert_eq!(order, [5, 0, 4]);
}

#[test]
fn set_priority_and_specific_eoi_use_the_level_in_the_command() {
    let mut pair = pair();
    pair.write(MASTER, 0xc0 | 5);
    pair.pulse(5);
    pair.pulse(6);
    assert_eq!(pair.acknowledge(), 0x36);
    pair.write(MASTER, 0x60 | 5);
    assert!(!pair.pending());
    pair.write(MASTER, 0xe0 | 6);
    assert_eq!(pair.acknowledge(), 0x35);
}

#[test]
fn automatic_eoi_leaves_nothing_in_service_and_can_rotate() {
    let mut pair = pair_with(0x03);
    pair.write(MASTER, 0x80);
    pair.pulse(3);
    pair.pulse(4);
    assert_eq!(pair.acknowledge(), 0x33);
    pair.pulse(3);
    assert_eq!(pair.acknowledge(), 0x34);
    assert_eq!(pair.acknowledge(), 0x33);
    pair.write(MASTER, 0x0b);
    assert_eq!(pair.read(MASTER), 0);
}

#[test]
fn special_mask_mode_lets_lower_priorities_pass_a_masked_level_in_service() {
    let mut pair = pair();
    pair.pulse(4);
    pair.acknowledge();
    pair.pulse(6);
    pair.write(MASTER_DATA, 1 << 4);
    assert!(!pair.pending());
    pair.write(MASTER, 0x68);
    assert!(pair.pending());
    assert_eq!(pair.acknowledge(), 0x36);
    // A non-specific EOI doesn't clear a masked level in special mask mode.
    pair.write(MASTER, 0x20);
    pair.write(MASTER, 0x20);
    pair.write(MASTER, 0x0b);
    assert_eq!(pair.read(MASTER), 1 << 4);
    pair.write(MASTER, 0x48);
    pair.write(MASTER, 0x20);
    assert_eq!(pair.read(MASTER), 0);
}

#[test]
fn special_fully_nested_mode_lets_the_slave_interrupt_itself() {
    for (icw4, nested) in [(0x01, false), (0x11, true)] {
        let mut pair = pair_with(icw4);
        pair.pulse(12);
        assert_eq!(pair.acknowledge(), 0x3c);
        pair.pulse(9);
        assert_eq!(pair.pending(), nested);
        pair.pulse(5);
        assert_eq!(
            pair.pending(),
            nested,
            "a lower priority of the master stays out"
        );
        pair.pulse(1);
        assert_eq!(pair.acknowledge(), 0x31);
    }
}

#[test]
fn a_higher_request_of_the_slave_makes_a_new_edge_at_the_master() {
    let mut pair = pair();
    pair.pulse(12);
    pair.pulse(9);
    assert_eq!(pair.acknowledge(), 0x39);
    eoi(&mut pair);
    assert_eq!(pair.acknowledge(), 0x3c);
    pair.pulse(8);
    eoi(&mut pair);
    assert_eq!(pair.acknowledge(), 0x38);
}

#[test]
fn a_poll_acknowledges_with_the_next_read_of_either_port() {
    let mut pair = pair();
    pair.pulse(6);
    pair.write(MASTER, 0x0c);
    assert_eq!(pair.read(MASTER_DATA), 0x86);
    assert!(!pair.pending());
    pair.write(MASTER, 0x0b);
    assert_eq!(pair.read(MASTER), 1 << 6);
    pair.write(MASTER, 0x0c);
    assert_eq!(pair.read(MASTER), 0);
    pair.pulse(13);
    pair.write(SLAVE, 0x0c);
    assert_eq!(pair.read(SLAVE), 0x85);
    assert!(!pair.requested(13));
}

#[test]
fn unmapped_places_read_all_ones_and_ignore_writes() {
    let mut pair = pair();
    let before = pair;
    for at in [
        Location::new(0, 2),
        Location::new(2, 2),
        Location::new(3, 0),
        Location::new(1, u64::MAX),
    ] {
        pair.write(at, 0x11);
        assert_eq!(pair.read(at), 0xff);
    }
    assert_eq!(pair, before);
}

/// An 8259A as lists: the inputs in the order of their priority, and flags by input.
#[derive(Debug, Clone)]
struct Listed {
    order: Vec<usize>,
    lines: [bool; 8],
    latched: [bool; 8],
    level: [bool; 8],
    served: [bool; 8],
    masked: [bool; 8],
    special_mask: bool,
    nested: bool,
    auto_eoi: bool,
    rotate_auto: bool,
}

impl Listed {
    fn new(nested: bool, auto_eoi: bool) -> Self {
        Self {
            order: (0..8).collect(),
            lines: [false; 8],
            latched: [false; 8],
            level: [false; 8],
            served: [false; 8],
            masked: [false; 8],
            special_mask: false,
            nested,
            auto_eoi,
            rotate_auto: false,
        }
    }

    fn line(&mut self, input: usize, level: bool) {
        if level && !self.lines[input] {
            self.latched[input] = true;
        }
        if !level {
            self.latched[input] = false;
        }
        self.lines[input] = level;
    }

    fn requests(&self, input: usize) -> bool {
        let asked = if self.level[input] {
            self.lines[input]
        } else {
            self.latched[input]
        };
        asked && !self.masked[input]
    }

    fn interrupt(&self) -> Option<usize> {
        for &input in &self.order {
            let in_service = self.served[input] && !(self.special_mask && self.masked[input]);
            if self.requests(input) && (!in_service || self.nested && input == 2) {
                return Some(input);
            }
            if in_service {
                return None;
            }
        }
        None
    }

    fn lowest(&mut self, input: usize) {
        self.order = (1..=8).map(|distance| (input + distance) % 8).collect();
    }

    fn serve(&mut self, input: usize) {
        self.latched[input] = false;
        if !self.auto_eoi {
            self.served[input] = true;
        } else if self.rotate_auto {
            self.lowest(input);
        }
    }

    fn ocw2(&mut self, value: u8) {
        let level = usize::from(value & 7);
        let rotate = value & 0x80 != 0;
        match (value & 0x40 != 0, value & 0x20 != 0) {
            (false, false) => self.rotate_auto = rotate,
            (true, false) if rotate => self.lowest(level),
            (true, false) => {}
            (specific, true) => {
                let target = if specific {
                    Some(level)
                } else {
                    self.order.iter().copied().find(|&input| {
                        self.served[input] && !(self.special_mask && self.masked[input])
                    })
                };
                if let Some(target) = target {
                    self.served[target] = false;
                    if rotate {
                        self.lowest(target);
                    }
                }
            }
        }
    }

    fn bits(flags: impl Fn(usize) -> bool) -> u8 {
        (0..8).map(|input| u8::from(flags(input)) << input).sum()
    }
}

#[derive(Debug, Clone, Copy)]
enum Op {
    Line(u8, bool),
    Ocw1(bool, u8),
    Ocw2(bool, u8),
    SpecialMask(bool, bool),
    Elcr(bool, u8),
    Acknowledge,
    Poll(bool),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0..16u8, any::<bool>()).prop_map(|(irq, level)| Op::Line(irq, level)),
        1 => (any::<bool>(), any::<u8>()).prop_map(|(slave, mask)| Op::Ocw1(slave, mask)),
        4 => (any::<bool>(), 0..8u8, 0..8u8).prop_map(|(slave, command, level)| Op::Ocw2(slave, command << 5 | level)),
        1 => (any::<bool>(), any::<bool>()).prop_map(|(slave, on)| Op::SpecialMask(slave, on)),
        1 => (any::<bool>(), any::<u8>()).prop_map(|(slave, bits)| Op::Elcr(slave, bits)),
        4 => Just(Op::Acknowledge),
        1 => any::<bool>().prop_map(Op::Poll),
    ]
}

proptest! {
    #[test]
    fn the_pair_is_the_pair_written_as_lists(
        icw4 in prop_oneof![Just(0x01u8), Just(0x03), Just(0x11), Just(0x13)],
        ops in proptest::collection::vec(op(), 1..120),
    ) {
        let mut pair = pair_with(icw4);
        let new = || Listed::new(icw4 & 0x10 != 0, icw4 & 2 != 0);
        let mut listed = [new(), new()];
        let place = |slave: bool, offset: u64| Location::new(slave.into(), offset);
        for op in ops {
            match op {
                Op::Line(irq, level) => {
                    pair.set_line(irq, level);
                    if irq != 2 {
                        listed[usize::from(irq / 8)].line(usize::from(irq % 8), level);
                    }
                }
                Op::Ocw1(slave, mask) => {
                    pair.write(place(slave, 1), mask);
                    listed[usize::from(slave)].masked = std::array::from_fn(|input| mask >> input & 1 == 1);
                }
                Op::Ocw2(slave, value) => {
                    pair.write(place(slave, 0), value);
                    listed[usize::from(slave)].ocw2(value);
                }
                Op::SpecialMask(slave, on) => {
                    pair.write(place(slave, 0), 0x48 | u8::from(on) << 5);
                    listed[usize::from(slave)].special_mask = on;
                }
                Op::Elcr(slave, bits) => {
                    pair.write(Location::new(2, slave.into()), bits);
                    let bits = bits & if slave { ELCR2_MASK } else { ELCR1_MASK };
                    listed[usize::from(slave)].level = std::array::from_fn(|input| bits >> input & 1 == 1);
                }
                Op::Acknowledge => {
                    let vector = match listed[0].interrupt() {
                        None => 0x37,
                        Some(2) => {
                            listed[0].serve(2);
                            let input = listed[1].interrupt().expect("the slave drives the cascade");
                            listed[1].serve(input);
                            listed[0].line(2, false);
                            0x38 + input
                        }
                        Some(input) => {
                            listed[0].serve(input);
                            0x30 + input
                        }
                    };
                    prop_assert_eq!(usize::from(pair.acknowledge()), vector);
                }
                Op::Poll(slave) => {
                    pair.write(place(slave, 0), 0x0c);
                    let polled = listed[usize::from(slave)].interrupt();
                    if let Some(input) = polled {
                        listed[usize::from(slave)].serve(input);
                        if slave {
                            listed[0].line(2, false);
                        }
                    }
                    prop_assert_eq!(pair.read(place(slave, 0)), polled.map_or(0, |input| 0x80 | input as u8));
                }
            }
            let slave_interrupts = listed[1].interrupt().is_some();
            listed[0].line(2, slave_interrupts);
            prop_assert_eq!(pair.pending(), listed[0].interrupt().is_some());
            for slave in [false, true] {
                let chip = &listed[usize::from(slave)];
                pair.write(place(slave, 0), 0x0a);
                let irr = Listed::bits(|input| if chip.level[input] { chip.lines[input] } else { chip.latched[input] });
                prop_assert_eq!(pair.read(place(slave, 0)), irr);
                pair.write(place(slave, 0), 0x0b);
                prop_assert_eq!(pair.read(place(slave, 0)), Listed::bits(|input| chip.served[input]));
            }
        }
    }
}
