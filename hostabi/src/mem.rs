// SPDX-License-Identifier: GPL-2.0
//! Memory of the monitor itself.
// The raw forms of a page are needed to keep page tables whose only link is the physical address in an entry; the core
// uses them in its page-table code alone.
#![allow(unsafe_code)]

use crate::Hpa;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::AtomicU64;

/// The host has no memory left for the request. Nothing was allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutOfMemory;

/// One page of host memory: page aligned, physically contiguous, freed on drop.
pub trait HostPage: Send + Sync + Sized + 'static {
    /// Its physical address. Never changes during its life.
    fn phys(&self) -> Hpa;

    /// Its content. Hardware may change it at any time, hence atomic words.
    fn words(&self) -> &[AtomicU64; 512];

    /// Gives up the handle without freeing the page.
    fn into_raw(self) -> Hpa;

    /// Takes a page back.
    ///
    /// # Safety
    ///
    /// `phys` must come from [`HostPage::into_raw`] of the same host and must not have been taken back since.
    unsafe fn from_raw(phys: Hpa) -> Self;

    /// The content of a page whose handle was given up.
    ///
    /// # Safety
    ///
    /// `phys` must come from [`HostPage::into_raw`], and the page must not be taken back and freed during `'a`.
    unsafe fn words_at<'a>(phys: Hpa) -> &'a [AtomicU64; 512];
}

/// Allocation. All functions: process context; fail with [`OutOfMemory`] and then have no effect; never panic. A page may
/// be dropped in any context, everything else in process context.
pub trait HostMem {
    /// A page.
    type Page: HostPage;
    /// An array of words.
    type Words: Deref<Target = [AtomicU64]> + Send + Sync + 'static;
    /// One value on the heap.
    type Box<T: Send + 'static>: DerefMut<Target = T> + Send;
    /// One value on the heap with several owners; the last one drops it, in process context.
    type Shared<T: Send + Sync + 'static>: Deref<Target = T> + Clone + Send + Sync;

    /// A zeroed page, in any physical memory that the CPU and its VMX hardware can reach.
    fn page() -> Result<Self::Page, OutOfMemory>;

    /// `count` zeroed words. `count` may be large (megabytes); 0 gives an empty array. A number of bytes beyond what a
    /// [`usize`] holds is [`OutOfMemory`].
    fn words(count: usize) -> Result<Self::Words, OutOfMemory>;

    /// Moves `value` to the heap; on failure `value` is dropped.
    fn boxed<T: Send + 'static>(value: T) -> Result<Self::Box<T>, OutOfMemory>;

    /// A value of zeroed bytes, made on the heap: for types that are too large for a kernel's stack.
    ///
    /// # Safety
    ///
    /// Zeroed bytes must be a valid `T`.
    unsafe fn boxed_zeroed<T: Send + 'static>() -> Result<Self::Box<T>, OutOfMemory>;

    /// Moves `value` to the heap; on failure `value` is dropped.
    fn shared<T: Send + Sync + 'static>(value: T) -> Result<Self::Shared<T>, OutOfMemory>;
}
