// SPDX-License-Identifier: GPL-2.0
//! The 8254 against its data sheet, and against a counter that is stepped pulse by pulse.

use super::reference::Stepped;
use super::*;
use proptest::prelude::*;
use std::vec::Vec;

const CONTROL: Location = Location::new(0, 3);
const PORT61: Location = Location::new(1, 0);

fn counter(index: u64) -> Location {
    Location::new(0, index)
}

/// A timer with counter `index` programmed at tick 0, low byte then high byte.
fn programmed(index: u8, mode: u8, count: u16) -> I8254 {
    let mut timer = I8254::new();
    timer.write(CONTROL, index << 6 | 0x30 | mode << 1, 0);
    let [low, high] = count.to_le_bytes();
    timer.write(counter(index.into()), low, 0);
    timer.write(counter(index.into()), high, 0);
    timer
}

#[test]
fn ticks_are_exact_over_centuries() {
    // 105 ticks in 88 us, from the 14.31818 MHz crystal: 315/22 MHz divided by 12.
    assert_eq!(tick_at(88_000), 105);
    assert_eq!(tick_at(1_000_000_000), 1_193_181);
    assert_eq!(tick_at(11_000_000_000), 13_125_000);
    let century = 100 * 365 * 86_400 * 1_000_000_000_u64;
    let exact = u128::from(century) * 105 / 88_000;
    assert_eq!(u128::from(tick_at(century)), exact);
    assert_eq!(ns_of(u64::MAX), u64::MAX);
}

proptest! {
    #[test]
    fn the_first_nanosecond_of_a_tick_is_the_first_nanosecond_of_that_tick(tick in 1..tick_at(u64::MAX)) {
        let ns = ns_of(tick);
        prop_assert_eq!(tick_at(ns), tick);
        prop_assert_eq!(tick_at(ns - 1), tick - 1);
    }
}

#[test]
fn mode_0_raises_out_n_plus_1_pulses_after_the_count() {
    let mut timer = programmed(0, 0, 4);
    assert_eq!(timer.next_edge(0), Some(ns_of(5)));
    timer.advance(ns_of(4));
    assert!(!timer.out(0));
    timer.advance(ns_of(5));
    assert!(timer.out(0));
    assert!(timer.take_edge());
    assert_eq!(timer.next_edge(ns_of(100_000)), None);
    assert!(timer.out(0));
}

#[test]
fn mode_2_lowers_out_for_the_last_of_n_pulses() {
    let mut timer = programmed(0, 2, 3);
    let levels: Vec<bool> = (1..=7)
        .map(|tick| {
            timer.advance(ns_of(tick));
            timer.out(0)
        })
        .collect();
    assert_eq!(levels, [true, true, false, true, true, false, true]);
}

#[test]
fn mode_3_with_an_odd_count_is_high_for_one_pulse_more_than_low() {
    let mut timer = programmed(0, 3, 5);
    let levels: Vec<bool> = (1..=10)
        .map(|tick| {
            timer.advance(ns_of(tick));
            timer.out(0)
        })
        .collect();
    assert_eq!(
        levels,
        [true, true, true, false, false, true, true, true, false, false]
    );
}

#[test]
fn a_count_of_0_is_the_highest() {
    assert_eq!(programmed(0, 2, 0).next_edge(0), Some(ns_of(1 + 0x1_0000)));
    let mut timer = I8254::new();
    timer.write(CONTROL, 0x31, 0);
    timer.write(counter(0), 0, 0);
    timer.write(counter(0), 0, 0);
    assert_eq!(timer.next_edge(0), Some(ns_of(1 + 10_000)));
}

#[test]
fn a_count_of_1_which_is_illegal_in_modes_2_and_3_makes_no_edge() {
    for mode in [2, 3] {
        let mut timer = programmed(0, mode, 1);
        timer.advance(ns_of(1));
        while timer.take_edge() {}
        assert_eq!(timer.next_edge(ns_of(1)), None);
        assert_eq!(timer.advance(1_000_000_000), 0);
    }
}

#[test]
fn a_bcd_counter_counts_in_decimal() {
    let mut timer = I8254::new();
    timer.write(CONTROL, 0x31 | 2 << 1, 0);
    timer.write(counter(0), 0x00, 0);
    timer.write(counter(0), 0x10, 0);
    timer.advance(ns_of(2));
    timer.write(CONTROL, 0x00, ns_of(2));
    assert_eq!(timer.read(counter(0), ns_of(2)), 0x99);
    assert_eq!(timer.read(counter(0), ns_of(2)), 0x09);
}

#[test]
fn a_latched_count_stays_until_it_is_read_and_a_second_latch_is_ignored() {
    let mut timer = programmed(0, 2, 0x2000);
    let at = |tick: u64| ns_of(tick);
    timer.write(CONTROL, 0x00, at(0x101));
    timer.write(CONTROL, 0x00, at(0x500));
    assert_eq!(timer.read(counter(0), at(0x600)), 0x00);
    assert_eq!(timer.read(counter(0), at(0x700)), 0x1f);
    assert_eq!(timer.read(counter(0), at(0x801)), 0x00);
    assert_eq!(timer.read(counter(0), at(0x801)), 0x18);
}

#[test]
fn the_read_back_command_latches_status_and_count_and_status_is_read_first() {
    let mut timer = programmed(2, 3, 0x1234);
    // The gate of counter 2 is low: loaded, but not counting.
    timer.write(CONTROL, 0xc8, ns_of(10));
    assert_eq!(timer.read(counter(2), ns_of(10)), 0x80 | 0x36);
    assert_eq!(timer.read(counter(2), ns_of(10)), 0x34);
    assert_eq!(timer.read(counter(2), ns_of(10)), 0x12);
}

#[test]
fn null_count_is_shown_until_the_count_is_loaded() {
    let mut timer = programmed(0, 2, 100);
    let status = |timer: &mut I8254, tick: u64| {
        timer.write(CONTROL, 0xe2, ns_of(tick));
        timer.read(counter(0), ns_of(tick))
    };
    assert_eq!(status(&mut timer, 0) & 0x40, 0x40);
    assert_eq!(status(&mut timer, 1) & 0x40, 0);
    timer.write(counter(0), 50, ns_of(10));
    timer.write(counter(0), 0, ns_of(10));
    assert_eq!(status(&mut timer, 100) & 0x40, 0x40);
    assert_eq!(status(&mut timer, 101) & 0x40, 0);
    assert_eq!(timer.next_edge(ns_of(101)), Some(ns_of(151)));
}

#[test]
fn port_61_gates_counter_2_and_shows_its_output() {
    let mut timer = programmed(2, 0, 100);
    assert_eq!(timer.read(PORT61, ns_of(500)) & 0x2f, 0);
    timer.write(PORT61, 0xff, ns_of(500));
    assert_eq!(timer.read(PORT61, ns_of(599)) & 0xef, 0x0f);
    assert_eq!(timer.read(PORT61, ns_of(600)) & 0xef, 0x2f);
}

#[test]
fn the_refresh_bit_of_port_61_toggles_every_15_microseconds() {
    let mut timer = I8254::new();
    let mut toggles = 0;
    let mut last = 0;
    for us in 0..1000 {
        let bit = timer.read(PORT61, us * 1000) & 0x10;
        toggles += usize::from(bit != last);
        last = bit;
    }
    assert!((65..=67).contains(&toggles), "{toggles}");
}

#[test]
fn a_late_host_owes_the_guest_its_ticks_up_to_the_bound() {
    let mut timer = programmed(0, 2, 1193);
    assert_eq!(timer.advance(ns_of(1 + 10 * 1193)), 10);
    assert!(timer.take_edge());
    assert_eq!(timer.backlog(), 9);
    assert_eq!(timer.advance(3_600_000_000_000), MAX_BACKLOG);
    // A new control word ends what the old one owed.
    timer.write(CONTROL, 0x34, 3_600_000_000_000);
    assert!(!timer.take_edge());
}

#[test]
fn time_that_goes_back_counts_as_the_last() {
    let mut timer = programmed(0, 2, 100);
    timer.advance(ns_of(500));
    let before = timer;
    timer.advance(ns_of(20));
    assert_eq!(timer, before);
}

/// What a guest does to the timer.
#[derive(Debug, Clone, Copy)]
enum Op {
    Control(u8),
    ReadBack(u8),
    Count(u8, u8),
    Read(u8),
    Port61(u8),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (0..3u8, 1..4u8, 0..16u8).prop_map(|(counter, format, mode)| {
            Op::Control(counter << 6 | format << 4 | mode)
        }),
        2 => (0..3u8).prop_map(|counter| Op::Control(counter << 6)),
        2 => (0..64u8).prop_map(|select| Op::ReadBack(0xc0 | select & 0x3e)),
        // Small counts, so that much happens; not 1, which is illegal in modes 2 and 3.
        8 => (0..3u8, prop_oneof![6 => 2..20u8, 1 => Just(0)]).prop_map(|(counter, value)| Op::Count(counter, value)),
        4 => (0..3u8).prop_map(Op::Read),
        4 => (0..16u8).prop_map(Op::Port61),
    ]
}

fn pause() -> impl Strategy<Value = u64> {
    prop_oneof![24 => Just(0u64), 48 => 1..40u64, 10 => 40..2000u64, 1 => 60_000..140_000u64]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn the_model_is_the_counter_stepped_pulse_by_pulse(
        ops in proptest::collection::vec((pause(), op()), 1..60),
    ) {
        let mut timer = I8254::new();
        let mut stepped = [Stepped::new(true), Stepped::new(true), Stepped::new(false)];
        let mut tick = 0;
        for (pause, op) in ops {
            let mut edges = 0u32;
            let predicted = timer.next_edge(ns_of(tick));
            let mut first = None;
            for pulse in tick + 1..=tick + pause {
                for (index, counter) in stepped.iter_mut().enumerate() {
                    let before = counter.out;
                    counter.clk();
                    if index == 0 && counter.out && !before {
                        edges += 1;
                        first = first.or(Some(pulse));
                    }
                }
            }
            tick += pause;
            let now = ns_of(tick);
            if first.is_some() {
                prop_assert_eq!(predicted, first.map(ns_of));
            } else {
                prop_assert!(predicted.is_none_or(|edge| edge > now), "{predicted:?} by {now}");
            }
            prop_assert_eq!(timer.advance(now), edges.min(MAX_BACKLOG));
            while timer.take_edge() {}

            let out0 = stepped[0].out;
            match op {
                Op::Control(value) => {
                    timer.write(CONTROL, value, now);
                    let counter = &mut stepped[usize::from(value >> 6)];
                    if value & 0x30 == 0 {
                        counter.latch(true, false);
                    } else {
                        counter.write_control(value & 0x3f);
                    }
                }
                Op::ReadBack(value) => {
                    timer.write(CONTROL, value, now);
                    for (index, counter) in stepped.iter_mut().enumerate() {
                        if value >> (index + 1) & 1 == 1 {
                            counter.latch(value & 0x20 == 0, value & 0x10 == 0);
                        }
                    }
                }
                Op::Count(index, value) => {
                    timer.write(counter(index.into()), value, now);
                    stepped[usize::from(index)].write(value);
                }
                Op::Read(index) => {
                    prop_assert_eq!(timer.read(counter(index.into()), now), stepped[usize::from(index)].read());
                }
                Op::Port61(value) => {
                    timer.write(PORT61, value, now);
                    stepped[2].set_gate(value & 1 == 1);
                }
            }
            prop_assert_eq!(timer.take_edge(), stepped[0].out && !out0);
            for index in 0..3 {
                prop_assert_eq!(timer.out(index), stepped[usize::from(index)].out, "OUT of counter {}", index);
            }
        }
    }

    #[test]
    fn any_accepted_state_of_a_peer_is_harmless(
        sets in proptest::collection::vec((0..60u16, any::<u64>()), 1..20),
        small in proptest::collection::vec((0..60u16, 0..100_000u64), 1..20),
        ops in proptest::collection::vec((any::<u64>(), op()), 1..20),
    ) {
        let mut timer = I8254::new();
        for (register, value) in sets.into_iter().chain(small) {
            let accepted = timer.accepts(register, value);
            let before = timer;
            prop_assert_eq!(timer.set(register, value).is_ok(), accepted);
            prop_assert!(accepted || timer == before);
        }
        for (now, op) in ops {
            timer.next_edge(now);
            match op {
                Op::Control(value) | Op::ReadBack(value) => timer.write(CONTROL, value, now),
                Op::Count(index, value) => timer.write(counter(index.into()), value, now),
                Op::Read(index) => { timer.read(counter(index.into()), now); }
                Op::Port61(value) => timer.write(PORT61, value, now),
            }
        }
    }
}
