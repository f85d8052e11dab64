// SPDX-License-Identifier: GPL-2.0
//! The `/dev/pvmm` ioctl ABI.
//!
//! One open file is one virtual machine: it is made by [`CREATE_VM`], ends when the last reference to the file goes, and
//! everything that it owns (memory registrations, claimed devices, vCPUs) goes with it. Requests that move more than one
//! fixed structure carry a user address and a count; the core copies through the host's `UserCopy`.
//!
//! All structures are `repr(C)`, made of fixed-width integers, without implicit padding; reserved fields must be zero.
//! Addresses, sizes and lengths are in bytes unless a field's name says otherwise.
#![cfg_attr(not(CONFIG_RUST), no_std)]
#![deny(unsafe_code)]

pub mod cpu;
pub mod device;
pub mod inspect;
pub mod ioctl;
pub mod memory;
pub mod pod;
pub mod run;
pub mod system;

pub use cpu::*;
pub use device::*;
pub use inspect::*;
pub use ioctl::*;
pub use memory::*;
pub use pod::Pod;
pub use run::*;
pub use system::*;
