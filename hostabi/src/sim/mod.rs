// SPDX-License-Identifier: GPL-2.0
//! The simulated host: the host ABI made of ordinary memory and threads, for tests.
//!
//! It stands before the path, in the place of a kernel. It keeps every contract in the least helpful way that the
//! contract allows (a thread changes its CPU whenever it may, freed pages are poisoned, a page that is read first gets
//! another frame when it is written) and panics when its user breaks one (sleeping with interrupts off, guards that are
//! dropped in the wrong order, a page taken back twice).
//!
//! Each test thread has a [`Machine`] of its own, so that tests run side by side; [`spawn`] makes further threads of the
//! same machine and process. A test acts as the world around the core through [`Machine`] (devices, interrupts, VT-x,
//! counts of live memory), [`SimAddressSpace`] (the process's memory), [`Task`] (signals) and
//! [`fail_allocations_after`].

mod cpu;
mod dev;
mod frames;
mod machine;
mod mem;
mod process;
mod sync;
mod thread;
mod vmx;

pub use cpu::{SimFpu, SimIrqOff};
pub use dev::{PortDevice, SimIrq, SimPorts};
pub use frames::physical;
pub use machine::{Entered, Live, Machine};
pub use mem::{SimBox, SimPage, SimShared, SimWords};
pub use process::{Invalidation, SimAddressSpace, SimWatch};
pub use sync::{SimMutex, SimMutexGuard, SimSpinGuard, SimSpinLock, SimWaitQueue};
pub use thread::{each_allocation_fails, fail_allocations_after, spawn, AllocationFailures, Task};
pub use vmx::SimVmxOperation;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// The simulated host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SimHost {}

impl crate::Host for SimHost {}

/// Takes a lock of the simulation. A test that panicked while it held the lock has already failed; the others go on.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
