// SPDX-License-Identifier: GPL-2.0
//! The host ABI on Linux, one file per trait.

mod cpu;
mod dev;
mod guest_mem;
pub(crate) mod mem;
mod sync;
mod time;
pub(crate) mod vmx;

use crate::shim;
use core::ffi::c_void;
use kernel::prelude::*;
use pvmm_hostabi::{Fault, Host, HostLog, Level, UserCopy};

/// Linux.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Linux;

impl Host for Linux {}

impl UserCopy for Linux {
    fn copy_in(address: u64, buffer: &mut [u8]) -> Result<(), Fault> {
        let to = buffer.as_mut_ptr().cast::<c_void>();
        // SAFETY: the buffer may be written for its length; the kernel checks the user's address.
        let left = unsafe { shim::pvmm_copy_in(to, address, buffer.len()) };
        if left == 0 {
            Ok(())
        } else {
            Err(Fault)
        }
    }

    fn copy_out(address: u64, buffer: &[u8]) -> Result<(), Fault> {
        let from = buffer.as_ptr().cast::<c_void>();
        // SAFETY: the buffer may be read for its length; the kernel checks the user's address.
        let left = unsafe { shim::pvmm_copy_out(address, from, buffer.len()) };
        if left == 0 {
            Ok(())
        } else {
            Err(Fault)
        }
    }
}

impl HostLog for Linux {
    fn log(level: Level, message: core::fmt::Arguments<'_>) {
        match level {
            Level::Error => pr_err!("{}\n", message),
            Level::Warning => pr_warn!("{}\n", message),
            Level::Info => pr_info!("{}\n", message),
        }
    }
}
