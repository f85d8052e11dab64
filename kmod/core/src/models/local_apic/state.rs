// SPDX-License-Identifier: GPL-2.0
//! A local APIC's state on its way to the peer and back (`pvmm_uapi::LocalApicState`).
#![forbid(unsafe_code)]

use super::access::is_valid_base;
use super::registers::{self, *};
use super::{LocalApic, BASE_BSP, BASE_EN};
use crate::models::InvalidState;
use pvmm_uapi::LocalApicState;

impl LocalApic {
    /// The state at `now`, `tsc` being the guest's TSC then. Take the signals ([`LocalApic::take_signals`]) and keep them
    /// with the vCPU: they are not part of it. The levels of the local interrupt pins come from what drives them.
    pub fn save(&mut self, now: u64, tsc: u64) -> LocalApicState {
        self.advance(now, tsc);
        let mut registers = self.registers;
        registers[PPR] = u32::from(self.processor_priority());
        registers[PENDING_ERRORS] = self.errors;
        LocalApicState {
            apic_base: self.base,
            tsc_deadline: self.tsc_deadline,
            timer_start_ns: self.timer_start,
            registers,
        }
    }

    /// Takes a state that [`Self::save`] made on another host.
    ///
    /// # Errors
    /// Names the first register with a value that this APIC can never have; then nothing has changed.
    pub fn restore(&mut self, state: &LocalApicState) -> Result<(), InvalidState> {
        let same_bsp = (state.apic_base ^ self.base) & BASE_BSP == 0;
        if !is_valid_base(state.apic_base, self.features) || !same_bsp {
            return Err(InvalidState::new("IA32_APIC_BASE", state.apic_base));
        }
        if state.tsc_deadline != 0 && !self.features.tsc_deadline {
            return Err(InvalidState::new("IA32_TSC_DEADLINE", state.tsc_deadline));
        }
        let mut new = Self {
            base: state.apic_base,
            registers: state.registers,
            errors: state.registers[PENDING_ERRORS],
            timer_start: state.timer_start_ns,
            tsc_deadline: state.tsc_deadline,
            lint: [None; 2],
            ..self.clone()
        };
        new.check()?;
        new.registers[PENDING_ERRORS] = 0;
        new.registers[PPR] = 0;
        *self = new;
        Ok(())
    }

    /// Finds the first register that this APIC can never have with this value.
    fn check(&self) -> Result<(), InvalidState> {
        let refuse = |register: usize| {
            InvalidState::indexed(
                registers::name(register),
                register as u32,
                u64::from(self.registers[register]),
            )
        };
        if let Some(register) = (0..64).find(|register| !self.can_hold(*register)) {
            return Err(refuse(register));
        }
        if self.base & BASE_EN == 0 {
            let mut reset = self.clone();
            reset.reset_registers();
            let differs = |register: &usize| {
                // CR8, and with it the priorities, works without the APIC.
                !matches!(*register, PPR | TPR)
                    && reset.registers[*register] != self.registers[*register]
            };
            if let Some(register) = (0..64).find(differs) {
                return Err(refuse(register));
            }
        }
        Self::check_timer(&self.registers, self.tsc_deadline).map_err(refuse)
    }

    /// Whether a register can have the value that it has here.
    fn can_hold(&self, register: usize) -> bool {
        let value = self.registers[register];
        let x2apic = self.is_x2apic();
        let writable = registers::writable(register, self.features.tsc_deadline);
        match register {
            ID => value == if x2apic { self.id } else { self.id << 24 },
            VERSION => value == VERSION_VALUE,
            PPR => value == u32::from(self.processor_priority()),
            LDR if x2apic => value == (self.id >> 4) << 16 | 1 << (self.id & 15),
            DFR => value & !writable == !writable && (!x2apic || value == u32::MAX),
            // No vector below 16 is ever requested.
            ISR | TMR | IRR => value & 0xffff == 0,
            ISR..=0x27 => true,
            ESR | PENDING_ERRORS => value & !ERRORS == 0,
            ICR_HIGH if x2apic => true,
            LVT_TIMER..=LVT_ERROR => {
                let bits = writable | registers::ignored(register) & LVT_REMOTE_IRR;
                let masked = self.software_enabled() || value & LVT_MASKED != 0;
                value & !bits == 0 && masked
            }
            // Bounded by the initial count, which is checked with the timer.
            CURRENT_COUNT => true,
            // Commands, which hold nothing.
            EOI | SELF_IPI => value == 0,
            _ => value & !writable == 0,
        }
    }
}
