// SPDX-License-Identifier: GPL-2.0
//! The pvmm monitor.
//!
//! The folders follow a guest access on its way: [`arch`] sees the exit, [`iospace`] finds its policy, the device's
//! recorder in [`devices`] notes it with [`record`], the log leaves by capture; on the peer it becomes a plan that
//! [`replay`] executes and verifies. [`models`] holds the interrupt controllers and timers that stand in for hardware.
//!
//! The crate knows no host kernel: what it needs comes through `pvmm_hostabi`.
#![cfg_attr(not(CONFIG_RUST), no_std)]
#![deny(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod arch;
pub mod chipset;
pub mod clock;
pub mod decode;
pub mod devices;
pub mod iospace;
pub mod memory;
pub mod models;
pub mod monitor;
pub mod paging;
pub mod platform;
pub mod record;
pub mod replay;
pub mod vcpu;
pub mod vm;

/// The monitor's version.
pub const VERSION: &str = "0.1.0";
