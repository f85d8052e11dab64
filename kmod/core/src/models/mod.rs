// SPDX-License-Identifier: GPL-2.0
//! Models of the interrupt controllers and timers that every VM has.
#![forbid(unsafe_code)]

pub mod acpi_pm;
pub mod apic_message;
pub mod invalid_state;
pub mod ioapic;
pub mod local_apic;

pub use invalid_state::InvalidState;
