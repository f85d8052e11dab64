// SPDX-License-Identifier: GPL-2.0
//! Memory of the guest: ordinary memory of the process that owns the VM.

use crate::{HostMem, Hva, OutOfMemory, Pfn};
use core::ops::Range;

/// Where a page of the process lies at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resolved {
    /// The frame that backs the page.
    pub pfn: Pfn,
    /// Whether the frame may be written. Always true if write access was asked for.
    pub writable: bool,
}

/// Why a page could not be resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResolveError {
    /// Nothing is mapped there, or not with that access.
    Unmapped,
    /// The host has no memory left.
    OutOfMemory,
    /// A signal arrived before the page did.
    Interrupted,
}

/// Why an address space could not be watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WatchError {
    /// The host has no memory left.
    OutOfMemory,
    /// A signal arrived while the host waited for the space's locks.
    Interrupted,
}

impl From<OutOfMemory> for WatchError {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

/// Is told that the host takes memory back.
pub trait InvalidateSink: Send + Sync + 'static {
    /// From now until the matching [`InvalidateSink::invalidate_end`] no frame of `range` may be used. When this returns
    /// no CPU uses one. Called in process context, must not allocate; calls may nest and run at the same time.
    fn invalidate_start(&self, range: Range<Hva>);
    /// Frames of `range` may be resolved anew. Called once per start, but not for the last one, with which the process
    /// ends: nothing can be resolved any more.
    fn invalidate_end(&self, range: Range<Hva>);
}

/// Access to the memory of the process that owns the VM.
pub trait GuestMem: HostMem {
    /// The address space of a process. Keeps the space's identity, not its pages, alive.
    type AddressSpace: Send + Sync + 'static;
    /// A registration of an [`InvalidateSink`]. Dropping it waits for running calls; afterwards none comes.
    type Watch<S: InvalidateSink>: Send + Sync + 'static;

    /// The address space of the caller. Process context.
    fn current_address_space() -> Result<Self::AddressSpace, OutOfMemory>;

    /// Whether the caller runs in `space`. The functions below must only be called if it does.
    fn is_current(space: &Self::AddressSpace) -> bool;

    /// Calls `sink` whenever the host changes or takes away pages of `space`. No invalidation that `sink` has not been told
    /// of is under way when this returns. Process context.
    fn watch<S: InvalidateSink>(
        space: &Self::AddressSpace,
        sink: Self::Shared<S>,
    ) -> Result<Self::Watch<S>, WatchError>;

    /// Finds the frame of the page at `hva`, bringing it in if it is absent and breaking copy-on-write if `write`. An
    /// address that is not the process's, such as one of the kernel, is unmapped, here as in the copies below.
    ///
    /// The frame is not pinned: it may be used until an invalidation of its address starts. A caller takes a count of
    /// invalidations before the call and, under the lock that its sink takes, throws the answer away if one has
    /// started since. Process context of `space`; may sleep.
    fn resolve(space: &Self::AddressSpace, hva: Hva, write: bool)
        -> Result<Resolved, ResolveError>;

    /// Copies from the process's memory. All or [`ResolveError`]. Process context of `space`; may sleep.
    fn read(space: &Self::AddressSpace, hva: Hva, buffer: &mut [u8]) -> Result<(), ResolveError>;

    /// Copies to the process's memory. On an error a part may have been written. Process context of `space`; may sleep.
    fn write(space: &Self::AddressSpace, hva: Hva, buffer: &[u8]) -> Result<(), ResolveError>;
}
