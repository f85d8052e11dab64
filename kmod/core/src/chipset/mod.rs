// SPDX-License-Identifier: GPL-2.0
//! The chipset that every VM has: interrupt controllers, timers and ACPI fixed hardware, joined by their lines.
//!
//! Skeleton of the interface; the models are wired in by the commits that follow.
#![forbid(unsafe_code)]

use crate::clock::GuestClock;
use crate::iospace::Width;
use crate::models::InvalidState;
use pvmm_uapi::{ChipsetState, LocalApicState};

/// What the guest's CPUID tells about its local APIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApicFeatures {
    /// CPUID.01H:ECX.x2APIC\[21\].
    pub x2apic: bool,
    /// CPUID.01H:ECX.TSC_Deadline\[24\].
    pub tsc_deadline: bool,
    /// MAXPHYADDR, CPUID.80000008H:EAX\[7:0\]; 36 to 52.
    pub physical_address_bits: u8,
}

/// An access that raises #GP(0) in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GeneralProtection;

/// What the local APIC asks of the processor core beside INTR.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Signals {
    /// An NMI is to be made pending.
    pub nmi: bool,
    /// An INIT is to be taken.
    pub init: bool,
    /// Vector of a start-up IPI.
    pub sipi: Option<u8>,
}

/// What the guest asked of the machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Requests {
    /// Power off (ACPI S5).
    pub soft_off: bool,
    /// Reset the machine.
    pub reset: bool,
}

/// The chipset.
#[derive(Debug)]
pub struct Chipset {
    clock: GuestClock,
}

impl Chipset {
    /// A chipset after reset, with a local APIC and an I/O APIC if `apic` is given.
    pub const fn new(apic: Option<ApicFeatures>, clock: GuestClock) -> Self {
        let _ = apic;
        Self { clock }
    }

    /// Tells the guest's TSC line, at the start and whenever the guest writes its TSC or IA32_TSC_ADJUST.
    pub fn set_clock(&mut self, clock: GuestClock) {
        self.clock = clock;
    }

    /// Whether the chipset serves `port`.
    pub const fn claims_port(port: u16) -> bool {
        matches!(port, 0x20..=0x21 | 0xa0..=0xa1 | 0x4d0..=0x4d1 | 0x40..=0x43 | 0x61 | 0x600..=0x60b | 0xcf9)
    }

    /// A guest's IN. `None` if no byte of it is the chipset's.
    pub fn port_read(&mut self, port: u16, width: Width, now: u64) -> Option<u64> {
        let _ = (width, now);
        Self::claims_port(port).then_some(0)
    }

    /// A guest's OUT. `None` if no byte of it is the chipset's.
    pub fn port_write(&mut self, port: u16, width: Width, value: u64, now: u64) -> Option<()> {
        let _ = (width, value, now);
        Self::claims_port(port).then_some(())
    }

    /// A guest's read of device memory. `None` if it is not the chipset's.
    pub fn mmio_read(&mut self, gpa: u64, width: Width, now: u64) -> Option<u64> {
        let _ = (gpa, width, now);
        None
    }

    /// A guest's write of device memory. `None` if it is not the chipset's.
    pub fn mmio_write(&mut self, gpa: u64, width: Width, value: u64, now: u64) -> Option<()> {
        let _ = (gpa, width, value, now);
        None
    }

    /// RDMSR of IA32_APIC_BASE, IA32_TSC_DEADLINE and 800h to 8FFh. `None` if the MSR is another.
    pub fn msr_read(&mut self, index: u32, now: u64) -> Option<Result<u64, GeneralProtection>> {
        let _ = (index, now);
        None
    }

    /// WRMSR of the same.
    pub fn msr_write(
        &mut self,
        index: u32,
        value: u64,
        now: u64,
    ) -> Option<Result<(), GeneralProtection>> {
        let _ = (index, value, now);
        None
    }

    /// Sets the level of an ISA interrupt line (1, 3 to 15); 0, 2 and anything above 15 are ignored.
    pub fn set_isa_line(&mut self, irq: u8, level: bool) {
        let _ = (irq, level);
    }

    /// Raises and lowers an ISA interrupt line: one edge.
    pub fn pulse_isa_line(&mut self, irq: u8) {
        self.set_isa_line(irq, true);
        self.set_isa_line(irq, false);
    }

    /// Lets the timers catch up with `now`. Call before the interrupt is looked for.
    pub fn advance(&mut self, now: u64) {
        let _ = now;
    }

    /// When to call [`Self::advance`] next, in VM nanoseconds; a value not above `now` means at once.
    pub fn next_deadline(&self, now: u64) -> Option<u64> {
        let _ = now;
        None
    }

    /// Whether INTR of the processor core is asserted.
    pub fn pending_interrupt(&self) -> bool {
        false
    }

    /// The interrupt acknowledge cycle: the vector to inject, or `None` if the request has gone.
    pub fn acknowledge_interrupt(&mut self) -> Option<u8> {
        None
    }

    /// CR8. 0 without a local APIC.
    pub fn cr8(&self) -> u64 {
        0
    }

    /// MOV to CR8; bits 4 to 63 must be zero (#GP, the caller's to raise) and are ignored.
    pub fn set_cr8(&mut self, value: u64) {
        let _ = value;
    }

    /// Takes what the local APIC asks of the processor core.
    pub fn take_signals(&mut self) -> Signals {
        Signals::default()
    }

    /// Takes what the guest asked of the machine.
    pub fn take_requests(&mut self) -> Requests {
        Requests::default()
    }

    /// Presses the power button.
    pub fn press_power_button(&mut self) {}

    /// The state of what is neither a recorded device nor a local APIC.
    pub fn save(&mut self, now: u64) -> ChipsetState {
        let _ = now;
        ChipsetState::default()
    }

    /// Takes a saved state. The clock must have been set before.
    ///
    /// # Errors
    /// Names the first register with an impossible value; then nothing has changed.
    pub fn restore(&mut self, state: &ChipsetState, now: u64) -> Result<(), InvalidState> {
        let _ = (state, now);
        Ok(())
    }

    /// The local APIC's state; zero without one.
    pub fn save_local_apic(&mut self, now: u64) -> LocalApicState {
        let _ = now;
        LocalApicState::default()
    }

    /// Takes a saved local APIC.
    ///
    /// # Errors
    /// Names the first register with an impossible value; then nothing has changed.
    pub fn restore_local_apic(&mut self, state: &LocalApicState) -> Result<(), InvalidState> {
        let _ = state;
        Ok(())
    }
}
