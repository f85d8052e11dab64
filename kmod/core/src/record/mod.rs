// SPDX-License-Identifier: GPL-2.0
//! Recording: what a device was told that it cannot be asked for.
//!
//! A [`Recorder`] sees each access that is not passed through, after the device has had it, and keeps the shortest
//! sequence that brings a fresh device into the same state.
#![forbid(unsafe_code)]

use crate::iospace::Access;

/// Watches one device. It sees accesses, it cannot change them.
pub trait Recorder {
    /// Notes an access that the device has had. Called in the exit path: short, no sleep, any CPU.
    fn after(&mut self, access: &Access);
}
