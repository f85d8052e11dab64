// SPDX-License-Identifier: GPL-2.0
//! The host ABI: what a host kernel provides to the pvmm core.
//!
//! A port is one type that implements [`Host`]: nine small traits, all of associated functions, so that the core
//! carries the type and no object. The contract of each function is its doc comment; each sentence of it has a
//! conformance test that runs on the simulated host under `cargo test` and in the kernel at load time, or is in
//! [`conformance`]'s list of what cannot be seen through a host.
//!
//! Words that the contracts use: *process context* may sleep and has interrupts on; *any context* includes a hard
//! interrupt handler and a section under [`HostCpu::irq_off`]. A *window* is such a section in which the core is in VMX
//! operation.
#![cfg_attr(not(CONFIG_RUST), no_std)]
#![deny(unsafe_code)]

#[cfg(feature = "sim")]
extern crate std;

pub mod addr;
pub mod conformance;
pub mod cpu;
pub mod dev;
pub mod guest_mem;
pub mod log;
pub mod mem;
#[cfg(feature = "sim")]
pub mod sim;
pub mod sync;
pub mod time;
pub mod user_copy;
pub mod vmx;

pub use addr::{Gfn, Gpa, Hpa, Hva, Ns, Pfn, TscKhz, PAGE_SHIFT, PAGE_SIZE};
pub use cpu::{CpuId, HostCpu, Interrupted};
pub use dev::{ClaimError, HostDev, IrqSink, Ports};
pub use guest_mem::{GuestMem, InvalidateSink, ResolveError, Resolved, WatchError};
pub use log::{HostLog, Level};
pub use mem::{HostMem, HostPage, OutOfMemory};
pub use sync::{HostSync, Mutex, SpinLock, WaitQueue, Waited};
pub use time::HostTime;
pub use user_copy::{Fault, UserCopy};
pub use vmx::{HostVmx, VmxUnavailable};

/// A host kernel. Implemented by one uninhabited or zero-sized type per port.
pub trait Host:
    HostMem
    + GuestMem
    + UserCopy
    + HostCpu
    + HostVmx
    + HostTime
    + HostSync
    + HostDev
    + HostLog
    + Sized
    + Send
    + Sync
    + 'static
{
}
