// SPDX-License-Identifier: GPL-2.0
//! Large structures of the ioctl ABI, made on the heap: a kernel's stack has room for none of them.

use pvmm_hostabi::{HostMem, OutOfMemory};
use pvmm_uapi::Pod;

/// A structure of zeroes on the heap.
pub fn zeroed<H: HostMem, T: Pod + Send>() -> Result<H::Box<T>, OutOfMemory> {
    // SAFETY: every bit pattern is a valid `Pod`, zeroes included.
    unsafe { H::boxed_zeroed() }
}
