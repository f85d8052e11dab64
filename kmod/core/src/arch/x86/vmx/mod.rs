// SPDX-License-Identifier: GPL-2.0
//! VT-x (SDM volume 3, chapters 25 to 32).

pub mod capability;
mod control_registers;
mod entry;
pub mod ept;
mod exit;
mod exit_cr;
mod host;
pub mod instructions;
mod msr_access;
pub mod run;
mod state;
pub mod vcpu;
mod vmcs;

pub use vcpu::VmxVcpu;
