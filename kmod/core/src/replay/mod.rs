// SPDX-License-Identifier: GPL-2.0
//! Replay: bringing a device into a captured state by accesses, and checking that it got there.
#![forbid(unsafe_code)]

use crate::iospace::{Location, Width};

/// What stands behind a device: hardware of the host, or a model. All accesses that the monitor itself makes to a
/// device go through this handle, which cannot reach anything else.
pub trait Backend {
    /// Reads a register, with whatever side effect that has.
    fn read(&mut self, at: Location, width: Width) -> u64;
    /// Writes a register.
    fn write(&mut self, at: Location, width: Width, value: u64);
}
