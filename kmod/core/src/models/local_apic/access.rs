// SPDX-License-Identifier: GPL-2.0
//! The guest's accesses to a local APIC: the register page, the MSRs of x2APIC mode, IA32_APIC_BASE and
//! IA32_TSC_DEADLINE (SDM volume 3, 12.4 and 12.12).
#![forbid(unsafe_code)]

use super::registers::{self, *};
use super::{ApicFeatures, Effect, GeneralProtection, LocalApic, BASE_BSP, BASE_EN, BASE_EXTD};
use crate::iospace::Width;
use crate::models::apic_message::{DeliveryMode, Destination, InterruptMessage, Trigger};

/// IA32_APIC_BASE.
pub const IA32_APIC_BASE: u32 = 0x1b;
/// IA32_TSC_DEADLINE.
pub const IA32_TSC_DEADLINE: u32 = 0x6e0;
/// The first MSR of x2APIC mode.
pub const X2APIC_FIRST: u32 = 0x800;
/// The last MSR reserved for x2APIC mode.
pub const X2APIC_LAST: u32 = 0x8ff;

/// The bits of IA32_APIC_BASE that exist.
const fn base_bits(features: ApicFeatures) -> u64 {
    let bits = match features.physical_address_bits {
        0..=35 => 36,
        bits @ 36..=52 => bits,
        _ => 52,
    };
    let page = ((1u64 << bits) - 1) & !0xfff;
    let extd = if features.x2apic { BASE_EXTD } else { 0 };
    page | BASE_BSP | BASE_EN | extd
}

/// Whether IA32_APIC_BASE can have this value: no bit that does not exist, and x2APIC mode only when enabled.
pub(super) const fn is_valid_base(value: u64, features: ApicFeatures) -> bool {
    value & !base_bits(features) == 0 && value & (BASE_EN | BASE_EXTD) != BASE_EXTD
}

impl LocalApic {
    /// Whether [`Self::msr_read`] and [`Self::msr_write`] serve this MSR.
    pub const fn claims_msr(index: u32) -> bool {
        matches!(
            index,
            IA32_APIC_BASE | IA32_TSC_DEADLINE | X2APIC_FIRST..=X2APIC_LAST
        )
    }

    /// Reads the register page at `offset` (0 to FFFh), which [`Self::claims`] has found. `tsc` is the guest's TSC at
    /// `now`.
    ///
    /// Registers are 32 bits wide on 16-byte boundaries (12.4.1); narrower reads return the register's bytes, the bytes
    /// between the registers are zero.
    pub fn mmio_read(&mut self, offset: u64, width: Width, now: u64, tsc: u64) -> u64 {
        self.advance(now, tsc);
        let byte = offset & 0xf;
        if byte >= 4 {
            return 0;
        }
        let register = (offset >> 4 & 0xff) as usize;
        let value = match self.page_rights(register) {
            Rights::Reserved => {
                self.log_error(ERROR_REGISTER);
                0
            }
            Rights::WriteOnly => 0,
            Rights::ReadOnly | Rights::ReadWrite => self.read_register(register, now),
        };
        (u64::from(value) >> (8 * byte)) & width.mask()
    }

    /// Writes the register page at `offset` (0 to FFFh). Only aligned writes of 32 bits reach a register; others, which
    /// the SDM leaves undefined, are ignored, and so are writes of read-only registers.
    pub fn mmio_write(
        &mut self,
        offset: u64,
        width: Width,
        value: u64,
        now: u64,
        tsc: u64,
    ) -> Effect {
        self.advance(now, tsc);
        if offset & 0xf != 0 || width != Width::W4 {
            return Effect::None;
        }
        let register = (offset >> 4 & 0xff) as usize;
        match self.page_rights(register) {
            Rights::Reserved => {
                self.log_error(ERROR_REGISTER);
                Effect::None
            }
            Rights::ReadOnly => Effect::None,
            Rights::ReadWrite | Rights::WriteOnly => {
                self.write_register(register, value as u32, now)
            }
        }
    }

    /// Rights in the page, whose last quarter of 4 KiB is the only part with registers.
    const fn page_rights(&self, register: usize) -> Rights {
        if register < self.registers.len() {
            registers::rights(register, false)
        } else {
            Rights::Reserved
        }
    }

    /// RDMSR.
    ///
    /// # Errors
    /// #GP(0): the MSR does not exist in this mode, is write-only, or is not one of this APIC's.
    pub fn msr_read(&mut self, index: u32, now: u64, tsc: u64) -> Result<u64, GeneralProtection> {
        self.advance(now, tsc);
        match index {
            IA32_APIC_BASE => Ok(self.base),
            IA32_TSC_DEADLINE if self.features.tsc_deadline => Ok(self.tsc_deadline()),
            X2APIC_FIRST..=X2APIC_LAST => {
                let register = self.msr_register(index)?;
                match registers::rights(register, true) {
                    Rights::Reserved | Rights::WriteOnly => Err(GeneralProtection),
                    _ if register == ICR_LOW => Ok(u64::from(self.registers[ICR_HIGH]) << 32
                        | u64::from(self.registers[ICR_LOW])),
                    _ => Ok(u64::from(self.read_register(register, now))),
                }
            }
            _ => Err(GeneralProtection),
        }
    }

    /// WRMSR.
    ///
    /// # Errors
    /// #GP(0): as for reading, or the register is read-only, or `value` sets reserved bits, or IA32_APIC_BASE would make
    /// a transition that does not exist.
    pub fn msr_write(
        &mut self,
        index: u32,
        value: u64,
        now: u64,
        tsc: u64,
    ) -> Result<Effect, GeneralProtection> {
        self.advance(now, tsc);
        match index {
            IA32_APIC_BASE => self.set_base(value).map(|()| Effect::None),
            IA32_TSC_DEADLINE if self.features.tsc_deadline => {
                self.set_tsc_deadline(value);
                self.advance(now, tsc);
                Ok(Effect::None)
            }
            X2APIC_FIRST..=X2APIC_LAST => self.msr_write_register(index, value, now),
            _ => Err(GeneralProtection),
        }
    }

    /// The register behind an MSR in x2APIC mode.
    const fn msr_register(&self, index: u32) -> Result<usize, GeneralProtection> {
        let register = (index - X2APIC_FIRST) as usize;
        if !self.is_x2apic() || register >= self.registers.len() {
            return Err(GeneralProtection);
        }
        Ok(register)
    }

    fn msr_write_register(
        &mut self,
        index: u32,
        value: u64,
        now: u64,
    ) -> Result<Effect, GeneralProtection> {
        let register = self.msr_register(index)?;
        match registers::rights(register, true) {
            Rights::Reserved | Rights::ReadOnly => return Err(GeneralProtection),
            Rights::ReadWrite | Rights::WriteOnly => {}
        }
        let allowed = registers::writable(register, self.features.tsc_deadline)
            | registers::ignored(register);
        let high = value >> 32;
        // The destination is the upper half of ICR; no other register has an upper half.
        if value as u32 & !allowed != 0 || (high != 0 && register != ICR_LOW) {
            return Err(GeneralProtection);
        }
        if register == ICR_LOW {
            self.registers[ICR_HIGH] = high as u32;
        }
        Ok(self.write_register(register, value as u32, now))
    }

    /// Changes IA32_APIC_BASE (12.4.3, figure 12-27). The bootstrap flag stays as it is.
    fn set_base(&mut self, value: u64) -> Result<(), GeneralProtection> {
        if !is_valid_base(value, self.features) {
            return Err(GeneralProtection);
        }
        let old = self.base & (BASE_EN | BASE_EXTD);
        let new = value & (BASE_EN | BASE_EXTD);
        let from_x2apic_to_xapic = old == BASE_EN | BASE_EXTD && new == BASE_EN;
        let from_disabled_to_x2apic = old == 0 && new == BASE_EN | BASE_EXTD;
        if from_x2apic_to_xapic || from_disabled_to_x2apic {
            return Err(GeneralProtection);
        }
        self.base = (value & !BASE_BSP) | (self.base & BASE_BSP);
        if old == new {
            return Ok(());
        }
        if new == 0 {
            // Disabled: it comes back as after reset.
            self.reset_registers();
        } else if self.is_x2apic() {
            // Nothing else of the state changes (12.12.5.1).
            self.registers[ICR_HIGH] = 0;
            self.registers[DFR] = u32::MAX;
            self.show_ids();
        }
        Ok(())
    }

    /// The value of a readable register.
    fn read_register(&self, register: usize, now: u64) -> u32 {
        match register {
            PPR => u32::from(self.processor_priority()),
            CURRENT_COUNT => self.current_count(now),
            _ => self.registers[register],
        }
    }

    /// Writes a writable register. The timer has caught up with `now`.
    fn write_register(&mut self, register: usize, value: u32, now: u64) -> Effect {
        let writable = registers::writable(register, self.features.tsc_deadline);
        let kept = registers::ignored(register) & LVT_REMOTE_IRR;
        let value = value & writable | self.registers[register] & kept;
        match register {
            EOI => return self.end_of_interrupt(),
            // All other bits of DFR are ones.
            DFR => self.registers[DFR] = value | !writable,
            SVR => {
                self.registers[SVR] = value;
                if !self.software_enabled() {
                    for lvt in LVT_TIMER..=LVT_ERROR {
                        self.registers[lvt] |= LVT_MASKED;
                    }
                }
            }
            ESR => {
                self.registers[ESR] = core::mem::take(&mut self.errors);
            }
            ICR_LOW => {
                self.registers[ICR_LOW] = value;
                return self.send();
            }
            LVT_TIMER..=LVT_ERROR => {
                let forced = if self.software_enabled() {
                    0
                } else {
                    LVT_MASKED
                };
                if register == LVT_TIMER {
                    self.set_lvt_timer(value | forced);
                } else {
                    self.registers[register] = value | forced;
                    self.service_level_lints();
                }
            }
            INITIAL_COUNT => self.set_initial_count(value, now),
            DIVIDE => self.set_divide(value, now),
            SELF_IPI => self.send_to_self(value as u8),
            _ => self.registers[register] = value,
        }
        Effect::None
    }

    /// A write of ICR: the message that it sends.
    fn send(&mut self) -> Effect {
        let (low, high) = (self.registers[ICR_LOW], self.registers[ICR_HIGH]);
        let Some(delivery) = DeliveryMode::of(low) else {
            return Effect::None;
        };
        let level = low & ICR_LEVEL != 0;
        if level && low & ICR_ASSERT == 0 {
            // INIT level de-assert, which current processors ignore (12.6.1).
            return Effect::None;
        }
        let vector = low as u8;
        match delivery {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority if vector < 16 => {
                self.log_error(ERROR_SEND_VECTOR);
                return Effect::None;
            }
            // Not a delivery mode of ICR.
            DeliveryMode::ExtInt => return Effect::None,
            _ => {}
        }
        let logical = low & ICR_LOGICAL != 0;
        let destination = match low >> 18 & 3 {
            0 if self.is_x2apic() => Destination::from_32_bits(high, logical),
            0 => Destination::from_8_bits((high >> 24) as u8, logical),
            1 => Destination::Myself,
            2 => Destination::All,
            _ => Destination::Others,
        };
        Effect::Send(InterruptMessage {
            vector,
            delivery,
            // Interprocessor interrupts are edges, whatever the trigger bit says, but for INIT (12.6.1).
            trigger: Trigger::Edge,
            destination,
        })
    }

    /// A write of the self-IPI register (12.12.11).
    fn send_to_self(&mut self, vector: u8) {
        if vector < 16 {
            self.log_error(ERROR_SEND_VECTOR);
        } else if self.software_enabled() {
            self.request(vector, Trigger::Edge);
        }
    }
}
