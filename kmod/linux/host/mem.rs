// SPDX-License-Identifier: GPL-2.0
//! Memory of the monitor: the page allocator and the kernel crate's containers.

use super::Linux;
use crate::shim;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU64, Ordering};
use kernel::alloc::flags::{__GFP_NOWARN, __GFP_ZERO, GFP_KERNEL_ACCOUNT};
use kernel::prelude::*;
use kernel::sync::Arc;
use pvmm_hostabi::{HostMem, HostPage, Hpa, OutOfMemory};

/// Pages, boxes and word arrays that are in use, for the search for leaks.
static LIVE: AtomicU64 = AtomicU64::new(0);

/// Pages, boxes and word arrays that are in use.
pub(crate) fn live() -> u64 {
    LIVE.load(Ordering::Relaxed)
}

/// Says in the kernel log, when it is dropped, if something is still in use then.
pub(crate) struct LeakCheck;

impl Drop for LeakCheck {
    fn drop(&mut self) {
        match live() {
            0 => {}
            left => pr_warn!("WARNING: {} allocations were not given back\n", left),
        }
    }
}

/// A page of the page allocator.
pub(crate) struct Page(Hpa);

impl HostPage for Page {
    fn phys(&self) -> Hpa {
        self.0
    }

    fn words(&self) -> &[AtomicU64; 512] {
        // SAFETY: the page is ours until drop, and the reference is bound to `self`.
        unsafe { Self::words_at(self.0) }
    }

    fn into_raw(self) -> Hpa {
        let phys = self.0;
        core::mem::forget(self);
        phys
    }

    unsafe fn from_raw(phys: Hpa) -> Self {
        Self(phys)
    }

    unsafe fn words_at<'a>(phys: Hpa) -> &'a [AtomicU64; 512] {
        // SAFETY: every page of the page allocator is in the direct map, page aligned; the caller promises that it lives
        // for `'a`. Zeroed when it was allocated, so initialised; atomic, so that hardware may change it.
        unsafe { &*shim::pvmm_page_at(phys.0).cast() }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: allocated by `page`, and not given away: `into_raw` forgets the handle.
        unsafe { shim::pvmm_page_free(self.0 .0) };
        LIVE.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An array in vmalloc or slab memory, whichever fits.
pub(crate) struct Words(KVVec<AtomicU64>);

impl Deref for Words {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        &self.0
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        LIVE.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A value in slab memory.
pub(crate) struct Boxed<T>(KBox<T>);

impl<T> Boxed<T> {
    fn counted(value: KBox<T>) -> Self {
        LIVE.fetch_add(1, Ordering::Relaxed);
        Self(value)
    }
}

impl<T> Drop for Boxed<T> {
    fn drop(&mut self) {
        LIVE.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<T> Deref for Boxed<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for Boxed<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

/// A reference-counted value.
pub(crate) struct Shared<T>(Arc<T>);

impl<T> Shared<T> {
    /// Takes over a reference.
    pub(crate) const fn from_arc(arc: Arc<T>) -> Self {
        Self(arc)
    }

    /// Gives the reference to C.
    pub(crate) fn into_raw(self) -> *const T {
        Arc::into_raw(self.0)
    }

    /// Takes a reference back.
    ///
    /// # Safety
    ///
    /// `pointer` must come from [`Shared::into_raw`] and must not have been taken back since.
    pub(crate) unsafe fn from_raw(pointer: *const T) -> Self {
        // SAFETY: the caller's obligation.
        Self(unsafe { Arc::from_raw(pointer) })
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl HostMem for Linux {
    type Page = Page;
    type Words = Words;
    type Box<T: Send + 'static> = Boxed<T>;
    type Shared<T: Send + Sync + 'static> = Shared<T>;

    fn page() -> Result<Page, OutOfMemory> {
        let mut phys = 0;
        // SAFETY: the pointer is to a local.
        let page = unsafe { shim::pvmm_page_alloc(&mut phys) };
        if page.is_null() {
            return Err(OutOfMemory);
        }
        LIVE.fetch_add(1, Ordering::Relaxed);
        Ok(Page(Hpa(phys)))
    }

    fn words(count: usize) -> Result<Words, OutOfMemory> {
        // How many is up to userspace, so that failing is nothing to warn of.
        let flags = GFP_KERNEL_ACCOUNT | __GFP_NOWARN;
        let mut words = KVVec::with_capacity(count, flags).map_err(|_| OutOfMemory)?;
        for _ in 0..count {
            words
                .push(AtomicU64::new(0), flags)
                .map_err(|_| OutOfMemory)?;
        }
        LIVE.fetch_add(1, Ordering::Relaxed);
        Ok(Words(words))
    }

    fn boxed<T: Send + 'static>(value: T) -> Result<Boxed<T>, OutOfMemory> {
        let boxed = KBox::new(value, GFP_KERNEL_ACCOUNT).map_err(|_| OutOfMemory)?;
        Ok(Boxed::counted(boxed))
    }

    unsafe fn boxed_zeroed<T: Send + 'static>() -> Result<Boxed<T>, OutOfMemory> {
        let place =
            KBox::<T>::new_uninit(GFP_KERNEL_ACCOUNT | __GFP_ZERO).map_err(|_| OutOfMemory)?;
        // SAFETY: the allocation is zeroed, which is a valid value by the caller's obligation.
        Ok(Boxed::counted(unsafe { place.assume_init() }))
    }

    fn shared<T: Send + Sync + 'static>(value: T) -> Result<Shared<T>, OutOfMemory> {
        Arc::new(value, GFP_KERNEL_ACCOUNT)
            .map(Shared)
            .map_err(|_| OutOfMemory)
    }
}
