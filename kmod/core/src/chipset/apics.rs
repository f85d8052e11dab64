// SPDX-License-Identifier: GPL-2.0
//! The guest's accesses to the local APIC and the I/O APIC, and the messages between them.
#![forbid(unsafe_code)]

use super::{Apics, Chipset, GeneralProtection, Signals};
use crate::iospace::Width;
use crate::models::apic_message::InterruptMessage;
use crate::models::ioapic::{IoApic, IOAPIC_BASE};
use crate::models::local_apic::{Effect, LocalApic};

/// Brings a message of the I/O APIC to the local APIC; true if it took it.
pub(super) fn deliver(local: &mut LocalApic, message: &InterruptMessage) -> bool {
    local.is_destination(message.destination, false) && local.receive(message)
}

impl Apics {
    /// Carries out what the local APIC asked for.
    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::EndOfInterrupt(vector) => {
                let local = &mut self.local;
                self.io
                    .end_of_interrupt(vector, &mut |message| deliver(local, message));
            }
            // There is one processor: a message to others goes nowhere.
            Effect::Send(message) => {
                if self.local.is_destination(message.destination, true) {
                    self.local.receive(&message);
                }
            }
        }
    }
}

impl Chipset {
    /// Whether the chipset serves the device memory at `gpa`, as the guest has set it up at present.
    pub fn claims_memory(&self, gpa: u64) -> bool {
        self.apics
            .as_ref()
            .is_some_and(|apics| IoApic::claims(gpa) || apics.local.claims(gpa))
    }

    /// A guest's read of device memory. `None` if it is not the chipset's.
    pub fn mmio_read(&mut self, gpa: u64, width: Width, now: u64) -> Option<u64> {
        let tsc = self.clock.tsc_at(now);
        let apics = self.apics.as_mut()?;
        if IoApic::claims(gpa) {
            return Some(apics.io.mmio_read(gpa - IOAPIC_BASE, width));
        }
        if !apics.local.claims(gpa) {
            return None;
        }
        let value = apics.local.mmio_read(gpa & 0xfff, width, now, tsc);
        self.settle();
        Some(value)
    }

    /// A guest's write of device memory. `None` if it is not the chipset's.
    pub fn mmio_write(&mut self, gpa: u64, width: Width, value: u64, now: u64) -> Option<()> {
        let tsc = self.clock.tsc_at(now);
        let apics = self.apics.as_mut()?;
        if IoApic::claims(gpa) {
            let Apics { local, io } = apics;
            io.mmio_write(gpa - IOAPIC_BASE, width, value, &mut |message| {
                deliver(local, message)
            });
        } else if apics.local.claims(gpa) {
            let effect = apics.local.mmio_write(gpa & 0xfff, width, value, now, tsc);
            apics.carry_out(effect);
        } else {
            return None;
        }
        self.settle();
        Some(())
    }

    /// Whether an MSR is the local APIC's: IA32_APIC_BASE, IA32_TSC_DEADLINE and 800h to 8FFh.
    pub const fn claims_msr(index: u32) -> bool {
        LocalApic::claims_msr(index)
    }

    /// RDMSR of IA32_APIC_BASE, IA32_TSC_DEADLINE and 800h to 8FFh. `None` if the MSR is another, or there is no local
    /// APIC.
    ///
    /// # Errors
    /// The inner result: the access raises #GP(0).
    pub fn msr_read(&mut self, index: u32, now: u64) -> Option<Result<u64, GeneralProtection>> {
        if !LocalApic::claims_msr(index) {
            return None;
        }
        let tsc = self.clock.tsc_at(now);
        let apics = self.apics.as_mut()?;
        let answer = apics.local.msr_read(index, now, tsc);
        self.settle();
        Some(answer)
    }

    /// WRMSR of the MSRs of [`Self::msr_read`].
    ///
    /// # Errors
    /// The inner result: the access raises #GP(0); nothing has changed.
    pub fn msr_write(
        &mut self,
        index: u32,
        value: u64,
        now: u64,
    ) -> Option<Result<(), GeneralProtection>> {
        if !LocalApic::claims_msr(index) {
            return None;
        }
        let tsc = self.clock.tsc_at(now);
        let apics = self.apics.as_mut()?;
        let answer = apics.local.msr_write(index, value, now, tsc);
        let answer = answer.map(|effect| apics.carry_out(effect));
        self.settle();
        Some(answer)
    }

    /// Whether there is a local APIC and it is enabled: what CPUID.01H:EDX.APIC\[9\] tells.
    pub fn has_enabled_apic(&self) -> bool {
        self.apics
            .as_ref()
            .is_some_and(|apics| apics.local.is_enabled())
    }

    /// The highest vector that the local APIC has requested whatever the priority of the processor, for the TPR threshold
    /// of the VMCS (SDM volume 3, 26.6.8).
    pub fn highest_request(&self) -> Option<u8> {
        self.apics.as_ref()?.local.highest_request()
    }

    /// CR8. 0 without a local APIC.
    pub fn cr8(&self) -> u64 {
        self.apics.as_ref().map_or(0, |apics| apics.local.cr8())
    }

    /// MOV to CR8. Bits 4 to 63 must be zero (#GP, the caller's to raise) and are ignored.
    pub fn set_cr8(&mut self, value: u64) {
        if let Some(apics) = &mut self.apics {
            apics.local.set_cr8(value);
        }
    }

    /// What an INIT does to the local APIC. Call when the processor takes the INIT of [`Self::take_signals`].
    pub fn init_local_apic(&mut self) {
        if let Some(apics) = &mut self.apics {
            apics.local.init();
        }
        self.settle();
    }

    /// Takes what the local APIC asks of the processor core beside INTR.
    pub fn take_signals(&mut self) -> Signals {
        self.apics
            .as_mut()
            .map_or_else(Signals::default, |apics| apics.local.take_signals())
    }
}
