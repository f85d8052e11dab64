// SPDX-License-Identifier: GPL-2.0
//! Replay: bringing a device into a captured state by accesses, and checking that it got there.
//!
//! On the path this is the last part: the stream has brought the records, [`crate::devices::plan`] has made a list of
//! steps from them, and [`execute`] carries the steps out on whatever stands behind the device here, and verifies.
#![forbid(unsafe_code)]

pub mod execute;

pub use execute::{execute, Outcome};

use crate::iospace::{Location, Width};

/// What stands behind a device: hardware of the host, or a model. All accesses that the monitor itself makes to a
/// device go through this handle, which cannot reach anything else.
pub trait Backend {
    /// Reads a register, with whatever side effect that has.
    fn read(&mut self, at: Location, width: Width) -> u64;
    /// Writes a register.
    fn write(&mut self, at: Location, width: Width, value: u64);
    /// The state of the device that no access reaches. Only a model has it; hardware keeps the default.
    fn hidden(&mut self) -> Option<&mut dyn Hidden> {
        None
    }
}

/// The state of a modelled device that no access can read or write, numbered by the kind's register table.
///
/// What comes in was sent by a peer: a value that the model could not have reached by itself must be refused if it can
/// harm, and may be taken if it only confuses that guest.
pub trait Hidden {
    /// The state numbered `register`; 0 for a number that the model does not have.
    fn get(&self, register: u16) -> u64;
    /// Whether [`Hidden::set`] would take `value` for `register`.
    fn accepts(&self, register: u16, value: u64) -> bool;
    /// Sets the state numbered `register`. A value that is not accepted changes nothing.
    ///
    /// # Errors
    ///
    /// [`NotAccepted`] if [`Hidden::accepts`] says so.
    fn set(&mut self, register: u16, value: u64) -> Result<(), NotAccepted>;
}

/// A model does not have the state, or the value is outside of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotAccepted;

/// Real time for polls and delays. The guest does not run while these are used.
pub trait Timing {
    /// Monotonic host time in nanoseconds.
    fn now_ns(&mut self) -> u64;
    /// Waits at least `ns`, at most [`pvmm_uapi::MAX_STEP_NS`]. May sleep.
    fn delay_ns(&mut self, ns: u64);
}
