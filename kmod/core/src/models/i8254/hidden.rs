// SPDX-License-Identifier: GPL-2.0
//! What no access to the 8254 shows or sets: where its counters stand.
//!
//! Each counter packs its state into four numbers, laid out as the functions below say; the layout is part of the
//! state version of the kind ([`crate::devices::i8254::STATE_VERSION`]). Phases are ticks of VM time, so they stay
//! right when the VM's clock moves with it.
#![forbid(unsafe_code)]

use super::counter::{Counter, Force};
use super::{tick_at, I8254, MAX_BACKLOG};
use crate::devices::i8254 as regs;
use crate::replay::{Hidden, NotAccepted};

/// [`regs::COUNTER_LOAD`]: no load is planned.
const NO_LOAD: u64 = u64::MAX;
/// Bits that the control state uses.
const CONTROL_BITS: u64 = (1 << 50) - 1;

/// Control state: 0-5 control word, 6 a count was written, 7 null count, 8 loaded, 9 stopped, 10 the planned load is a
/// reload, 11 OUT is forced low, 12 OUT is forced high, 13 gate, 14 high byte is read next, 15 a first byte waits,
/// 16-23 that byte, 24 a count is latched, 25 a status is latched, 26-33 the status, 34-49 the count.
fn control(counter: &Counter) -> u64 {
    let flag = |set: bool, bit: u32| u64::from(set) << bit;
    u64::from(counter.control)
        | flag(counter.cr_valid, 6)
        | flag(counter.null_count, 7)
        | flag(counter.loaded, 8)
        | flag(counter.stopped, 9)
        | flag(counter.load_is_reload, 10)
        | flag(counter.force == Force::Low, 11)
        | flag(counter.force == Force::High, 12)
        | flag(counter.gate, 13)
        | flag(counter.read_high, 14)
        | flag(counter.staged.is_some(), 15)
        | u64::from(counter.staged.unwrap_or(0)) << 16
        | flag(counter.latched_count.is_some(), 24)
        | flag(counter.latched_status.is_some(), 25)
        | u64::from(counter.latched_status.unwrap_or(0)) << 26
        | u64::from(counter.latched_count.unwrap_or(0)) << 34
}

fn set_control(counter: &mut Counter, value: u64) {
    let flag = |bit: u32| value >> bit & 1 != 0;
    counter.control = (value & 0x3f) as u8;
    counter.cr_valid = flag(6);
    counter.null_count = flag(7);
    counter.loaded = flag(8);
    counter.stopped = flag(9);
    counter.load_is_reload = flag(10);
    counter.force = match (flag(11), flag(12)) {
        (true, _) => Force::Low,
        (false, true) => Force::High,
        (false, false) => Force::None,
    };
    counter.gate = flag(13);
    counter.read_high = flag(14);
    counter.staged = flag(15).then_some((value >> 16) as u8);
    counter.latched_count = flag(24).then_some((value >> 34) as u16);
    counter.latched_status = flag(25).then_some((value >> 26) as u8);
}

/// Counting element: 0-31 the count that it was loaded with, 32-47 what it shows while not loaded, 48-63 the count
/// register.
fn element(counter: &Counter) -> u64 {
    u64::from(counter.count) | u64::from(counter.idle) << 32 | u64::from(counter.cr) << 48
}

fn set_element(counter: &mut Counter, value: u64) {
    counter.count = value as u32;
    counter.idle = (value >> 32) as u16;
    counter.cr = (value >> 48) as u16;
}

impl Hidden for I8254 {
    fn get(&self, register: u16) -> u64 {
        match register {
            regs::TICK => return self.tick,
            regs::BACKLOG => return self.backlog.into(),
            _ => {}
        }
        let Some((index, item)) = regs::hidden_item(register) else {
            return 0;
        };
        let Some(counter) = self.counters.get(index) else {
            return 0;
        };
        match item {
            regs::COUNTER_CONTROL => control(counter),
            regs::COUNTER_ELEMENT => element(counter),
            regs::COUNTER_LOAD => counter.load_at.unwrap_or(NO_LOAD),
            _ => counter.phase,
        }
    }

    fn accepts(&self, register: u16, value: u64) -> bool {
        match register {
            // A later tick than VM time can reach would stop the timer for good.
            regs::TICK => return value <= tick_at(u64::MAX),
            regs::BACKLOG => return value <= MAX_BACKLOG.into(),
            _ => {}
        }
        let Some((index, item)) = regs::hidden_item(register) else {
            return false;
        };
        match item {
            regs::COUNTER_CONTROL => {
                let gate_is_wired_high = index < 2;
                value & !CONTROL_BITS == 0
                    && value & 0x30 != 0
                    && value >> 11 & 3 != 3
                    && (!gate_is_wired_high || value >> 13 & 1 == 1)
            }
            regs::COUNTER_ELEMENT => matches!(value as u32, 1..=0x1_0000),
            _ => true,
        }
    }

    fn set(&mut self, register: u16, value: u64) -> Result<(), NotAccepted> {
        if !self.accepts(register, value) {
            return Err(NotAccepted);
        }
        match register {
            regs::TICK => self.tick = value,
            // Bounded by `accepts`.
            regs::BACKLOG => self.backlog = value as u32,
            _ => {
                let (index, item) = regs::hidden_item(register).ok_or(NotAccepted)?;
                let counter = self.counters.get_mut(index).ok_or(NotAccepted)?;
                match item {
                    regs::COUNTER_CONTROL => set_control(counter, value),
                    regs::COUNTER_ELEMENT => set_element(counter, value),
                    regs::COUNTER_LOAD => counter.load_at = Some(value).filter(|&at| at != NO_LOAD),
                    _ => counter.phase = value,
                }
            }
        }
        Ok(())
    }
}
