// SPDX-License-Identifier: GPL-2.0
//! Copies from and to the process that called the monitor.

/// The address range is not accessible to the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault;

/// Copies between the monitor and its caller. Process context; may sleep.
pub trait UserCopy {
    /// Fills `buffer` from the caller's memory at `address`. All or [`Fault`].
    fn copy_in(address: u64, buffer: &mut [u8]) -> Result<(), Fault>;

    /// Writes `buffer` to the caller's memory at `address`. On [`Fault`] a part may have been written.
    fn copy_out(address: u64, buffer: &[u8]) -> Result<(), Fault>;
}
