// SPDX-License-Identifier: GPL-2.0
//! The chipset's state on its way to the peer and back, but for the recorded devices.
//!
//! The parts of a machine are saved one after the other, so saving one must not reach into another: nothing is delivered
//! here. An interrupt that moved from the I/O APIC to a local APIC that has been saved already would be lost, and a level
//! would wait for its EOI forever. For the same reason the caller must not [`Chipset::advance`] between the parts.
#![forbid(unsafe_code)]

use super::{Chipset, DEVICE_IRQS};
use crate::models::InvalidState;
use pvmm_uapi::{ChipsetState, IoApicState, LocalApicState};

impl Chipset {
    /// The state at `now` of what is neither a recorded device nor a local APIC. Take the requests
    /// ([`Chipset::take_requests`]) before: they are not part of it.
    pub fn save(&mut self, now: u64) -> ChipsetState {
        let (pm1_event, pm1_control) = self.acpi_pm.save(now);
        ChipsetState {
            ioapic: self
                .apics
                .as_ref()
                .map_or_else(IoApicState::default, |apics| apics.io.save()),
            pm1_event,
            pm1_control,
            isa_levels: self.isa_levels.into(),
            reserved: 0,
        }
    }

    /// Takes a state that [`Self::save`] made on another host, the VM's clock being at `now` as it was there.
    ///
    /// # Errors
    /// Names the first register with an impossible value; then nothing has changed.
    pub fn restore(&mut self, state: &ChipsetState, now: u64) -> Result<(), InvalidState> {
        if state.isa_levels & !u32::from(DEVICE_IRQS) != 0 {
            return Err(InvalidState::new(
                "ISA interrupt levels",
                state.isa_levels.into(),
            ));
        }
        if state.reserved != 0 {
            return Err(InvalidState::new(
                "reserved chipset state",
                state.reserved.into(),
            ));
        }
        let mut acpi_pm = self.acpi_pm;
        acpi_pm.restore(state.pm1_event, state.pm1_control, now)?;
        match &mut self.apics {
            Some(apics) => apics.io.restore(&state.ioapic)?,
            None if state.ioapic == IoApicState::default() => {}
            None => {
                return Err(InvalidState::new(
                    "I/O APIC, which this VM does not have",
                    0,
                ))
            }
        }
        self.acpi_pm = acpi_pm;
        self.sci = acpi_pm.sci();
        self.isa_levels = state.isa_levels as u16;
        Ok(())
    }

    /// The local APIC's state at `now`; zero without one. Take the signals ([`Chipset::take_signals`]) and keep them
    /// with the vCPU: they are not part of it.
    pub fn save_local_apic(&mut self, now: u64) -> LocalApicState {
        let tsc = self.clock.tsc_at(now);
        self.apics
            .as_mut()
            .map_or_else(LocalApicState::default, |apics| apics.local.save(now, tsc))
    }

    /// Takes a saved local APIC. What CPUID tells about it ([`Chipset::set_apic_features`]) must have been set before.
    ///
    /// # Errors
    /// Names the first register with an impossible value; then nothing has changed.
    pub fn restore_local_apic(&mut self, state: &LocalApicState) -> Result<(), InvalidState> {
        match &mut self.apics {
            Some(apics) => apics.local.restore(state),
            None if *state == LocalApicState::default() => Ok(()),
            None => Err(InvalidState::new(
                "local APIC, which this VM does not have",
                state.apic_base,
            )),
        }
    }
}
