// SPDX-License-Identifier: GPL-2.0
//! Guest memory: pages of the owner by GUP without pins, and invalidations by an mmu notifier.

use super::mem::Shared;
use super::Linux;
use crate::shim;
use core::ffi::c_void;
use core::marker::PhantomData;
use kernel::bindings;
use kernel::prelude::*;
use pvmm_hostabi::{
    GuestMem, Hva, InvalidateSink, OutOfMemory, Pfn, ResolveError, Resolved, UserCopy, WatchError,
};

/// A reference to an `mm_struct` (`mm_count`): the structure stays, its pages may go.
pub(crate) struct AddressSpace(*mut c_void);

// SAFETY: an `mm_struct` may be referenced and dropped from any thread.
unsafe impl Send for AddressSpace {}
// SAFETY: a shared reference is only compared.
unsafe impl Sync for AddressSpace {}

impl Drop for AddressSpace {
    fn drop(&mut self) {
        // SAFETY: the reference was taken in `current_address_space`.
        unsafe { shim::pvmm_mm_drop(self.0) };
    }
}

/// What the kernel links into the `mm_struct`'s list. The notifier is first: its address is the structure's.
#[repr(C)]
struct Registration<S> {
    notifier: bindings::mmu_notifier,
    operations: bindings::mmu_notifier_ops,
    sink: Shared<S>,
}

/// A registered notifier.
pub(crate) struct Watch<S: InvalidateSink> {
    registration: *mut Registration<S>,
    mm: *mut bindings::mm_struct,
    sink: PhantomData<S>,
}

// SAFETY: the registration is only used to unregister it, which may be done from any thread; the sink is `Send + Sync`.
unsafe impl<S: InvalidateSink> Send for Watch<S> {}
// SAFETY: nothing can be done with a shared reference.
unsafe impl<S: InvalidateSink> Sync for Watch<S> {}

impl<S: InvalidateSink> Watch<S> {
    /// # Safety
    ///
    /// `notifier` is the first field of a live [`Registration`].
    unsafe fn sink<'a>(notifier: *mut bindings::mmu_notifier) -> &'a S {
        // SAFETY: the caller's obligation; the registration lives until it has been unregistered, which waits for
        // running callbacks.
        unsafe { &(*notifier.cast::<Registration<S>>()).sink }
    }

    unsafe extern "C" fn start(
        notifier: *mut bindings::mmu_notifier,
        range: *const bindings::mmu_notifier_range,
    ) -> i32 {
        // SAFETY: called by the kernel with the registered notifier and a valid range.
        let (sink, range) = unsafe { (Self::sink(notifier), &*range) };
        sink.invalidate_start(Hva(range.start as u64)..Hva(range.end as u64));
        0
    }

    unsafe extern "C" fn end(
        notifier: *mut bindings::mmu_notifier,
        range: *const bindings::mmu_notifier_range,
    ) {
        // SAFETY: as in `start`.
        let (sink, range) = unsafe { (Self::sink(notifier), &*range) };
        sink.invalidate_end(Hva(range.start as u64)..Hva(range.end as u64));
    }

    /// The process is going: nothing may be mapped any more, for good.
    unsafe extern "C" fn release(
        notifier: *mut bindings::mmu_notifier,
        _mm: *mut bindings::mm_struct,
    ) {
        // SAFETY: as in `start`.
        let sink = unsafe { Self::sink(notifier) };
        sink.invalidate_start(Hva(0)..Hva(u64::MAX));
    }
}

impl<S: InvalidateSink> Drop for Watch<S> {
    fn drop(&mut self) {
        // SAFETY: registered in `watch` with this mm. Unregistering waits until no callback runs, after which nobody else
        // has the pointer.
        unsafe {
            bindings::mmu_notifier_unregister(self.registration.cast(), self.mm);
            drop(KBox::from_raw(self.registration));
            shim::pvmm_mm_drop(self.mm.cast());
        }
    }
}

impl GuestMem for Linux {
    type AddressSpace = AddressSpace;
    type Watch<S: InvalidateSink> = Watch<S>;

    fn current_address_space() -> Result<AddressSpace, OutOfMemory> {
        // SAFETY: takes a reference to the caller's mm.
        let mm = unsafe { shim::pvmm_mm_grab() };
        if mm.is_null() {
            return Err(OutOfMemory);
        }
        Ok(AddressSpace(mm))
    }

    fn is_current(space: &AddressSpace) -> bool {
        // SAFETY: only compares.
        unsafe { shim::pvmm_mm_is_current(space.0) }
    }

    fn watch<S: InvalidateSink>(
        space: &AddressSpace,
        sink: Shared<S>,
    ) -> Result<Watch<S>, WatchError> {
        let operations = bindings::mmu_notifier_ops {
            release: Some(Watch::<S>::release),
            invalidate_range_start: Some(Watch::<S>::start),
            invalidate_range_end: Some(Watch::<S>::end),
            ..Default::default()
        };
        let registration = Registration {
            notifier: Default::default(),
            operations,
            sink,
        };
        let registration = KBox::into_raw(
            KBox::new(registration, GFP_KERNEL).map_err(|_| WatchError::OutOfMemory)?,
        );
        // SAFETY: the caller runs in `space` (the contract), whose mm is therefore alive; a second reference for the
        // registration, which may outlive the space's handle.
        let mm = unsafe { shim::pvmm_mm_grab() }.cast::<bindings::mm_struct>();
        debug_assert!(mm.cast() == space.0);
        // SAFETY: the registration is on the heap until `Watch::drop`; its operations lie in it.
        let error = unsafe {
            (*registration).notifier.ops = &raw const (*registration).operations;
            bindings::mmu_notifier_register(registration.cast(), mm)
        };
        if error != 0 {
            // SAFETY: not registered, so nobody else has the pointer; the reference was taken above.
            unsafe {
                drop(KBox::from_raw(registration));
                shim::pvmm_mm_drop(mm.cast());
            }
            return Err(if error == EINTR.to_errno() {
                WatchError::Interrupted
            } else {
                WatchError::OutOfMemory
            });
        }
        Ok(Watch {
            registration,
            mm,
            sink: PhantomData,
        })
    }

    fn resolve(_space: &AddressSpace, hva: Hva, write: bool) -> Result<Resolved, ResolveError> {
        let mut pfn = 0;
        // SAFETY: GUP checks the address; the pointer is to a local.
        match unsafe { shim::pvmm_resolve(hva.0 as usize, write, &mut pfn) } {
            0 => Ok(Resolved {
                pfn: Pfn(pfn),
                writable: write,
            }),
            error if error == ENOMEM.to_errno() => Err(ResolveError::OutOfMemory),
            error if error == EINTR.to_errno() || error == ERESTARTSYS.to_errno() => {
                Err(ResolveError::Interrupted)
            }
            _ => Err(ResolveError::Unmapped),
        }
    }

    fn read(_space: &AddressSpace, hva: Hva, buffer: &mut [u8]) -> Result<(), ResolveError> {
        Self::copy_in(hva.0, buffer).map_err(|_| ResolveError::Unmapped)
    }

    fn write(_space: &AddressSpace, hva: Hva, buffer: &[u8]) -> Result<(), ResolveError> {
        Self::copy_out(hva.0, buffer).map_err(|_| ResolveError::Unmapped)
    }
}
