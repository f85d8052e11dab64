// SPDX-License-Identifier: GPL-2.0
//! Locks and wait queues.
//!
//! The kernel's locks hold nothing here: their guards hand out the value only if it is `Unpin`, which the core's values
//! need not be. Each lock guards a cell beside it.

use super::Linux;
use crate::shim;
use core::cell::UnsafeCell;
use core::ffi::c_void;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicUsize, Ordering};
use kernel::prelude::*;
use kernel::sync::lock::{mutex::MutexBackend, spinlock::SpinLockBackend, Backend, Guard, Lock};
use kernel::sync::LockClassKey;
use pvmm_hostabi::{HostSync, Mutex, Ns, OutOfMemory, SpinLock, WaitQueue, Waited};

/// How many classes of locks there are; the core has fewer types of guarded values.
const CLASSES: usize = 16;

/// Keys of the classes, which lockdep knows by their addresses.
static KEYS: [LockClassKey; CLASSES] =
    // SAFETY: in static memory for good, and never dropped.
    [const { unsafe { LockClassKey::new_static() } }; CLASSES];

/// The type of value that each class is for, by the address of its name; 0 while it is for none.
static TYPES: [AtomicUsize; CLASSES] = [const { AtomicUsize::new(0) }; CLASSES];

/// The class of the locks that guard a `T`.
///
/// Lockdep takes all locks of a class for the same one, so that an order among them would look like a deadlock. The kernel
/// crate's macros make a class where they stand, but a generic function has one static for all types.
fn class<T>() -> Pin<&'static LockClassKey> {
    let name = core::any::type_name::<T>().as_ptr().addr();
    let free_or_same = |place: &AtomicUsize| {
        place
            .compare_exchange(0, name, Ordering::Relaxed, Ordering::Relaxed)
            .map_or_else(|known| known == name, |_| true)
    };
    // With more types than classes, the others share the last.
    let number = TYPES.iter().position(free_or_same).unwrap_or(CLASSES - 1);
    Pin::static_ref(&KEYS[number])
}

/// A lock of the kernel and the value that it guards.
pub(crate) struct Locked<T, B: Backend> {
    lock: Pin<KBox<Lock<(), B>>>,
    value: UnsafeCell<T>,
}

// SAFETY: the value moves with the lock.
unsafe impl<T: Send, B: Backend> Send for Locked<T, B> {}
// SAFETY: the value is reached through a guard only, by one thread at a time.
unsafe impl<T: Send, B: Backend> Sync for Locked<T, B> {}

/// The value, while the lock is held.
pub(crate) struct Held<'a, T, B: Backend> {
    _guard: Guard<'a, (), B>,
    value: &'a UnsafeCell<T>,
}

impl<T, B: Backend> Deref for Held<'_, T, B> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the guard keeps all others out, and the reference is bound to it.
        unsafe { &*self.value.get() }
    }
}

impl<T, B: Backend> DerefMut for Held<'_, T, B> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the guard keeps all others out, and the reference is bound to its exclusive borrow.
        unsafe { &mut *self.value.get() }
    }
}

impl<T: Send> SpinLock<T> for Locked<T, SpinLockBackend> {
    type Guard<'a>
        = Held<'a, T, SpinLockBackend>
    where
        Self: 'a;

    fn lock(&self) -> Self::Guard<'_> {
        Held {
            _guard: self.lock.lock(),
            value: &self.value,
        }
    }
}

impl<T: Send> Mutex<T> for Locked<T, MutexBackend> {
    type Guard<'a>
        = Held<'a, T, MutexBackend>
    where
        Self: 'a;

    fn lock(&self) -> Self::Guard<'_> {
        Held {
            _guard: self.lock.lock(),
            value: &self.value,
        }
    }

    fn try_lock(&self) -> Option<Self::Guard<'_>> {
        Some(Held {
            _guard: self.lock.try_lock()?,
            value: &self.value,
        })
    }
}

/// A `wait_queue_head_t` on the heap.
pub(crate) struct LinuxWaitQueue(*mut c_void);

// SAFETY: the kernel's wait queues may be used from any thread and context.
unsafe impl Send for LinuxWaitQueue {}
// SAFETY: as above.
unsafe impl Sync for LinuxWaitQueue {}

impl Drop for LinuxWaitQueue {
    fn drop(&mut self) {
        // SAFETY: allocated in `wait_queue`; nobody waits, since waiting borrows the value.
        unsafe { shim::pvmm_wait_queue_free(self.0) };
    }
}

/// Asks the predicate that `context` points to.
unsafe extern "C" fn ask(context: *mut c_void) -> bool {
    // SAFETY: `wait` passes a pointer to a reference that lives until `pvmm_wait` returns, and asks from one thread.
    let ready = unsafe { &mut *context.cast::<&mut dyn FnMut() -> bool>() };
    ready()
}

impl WaitQueue for LinuxWaitQueue {
    fn wait(&self, timeout: Option<Ns>, ready: &mut dyn FnMut() -> bool) -> Waited {
        let timeout = timeout.map_or(-1, |Ns(ns)| ns.min(i64::MAX as u64) as i64);
        let mut ready = ready;
        let context = (&raw mut ready).cast::<c_void>();
        // SAFETY: the queue lives while it is borrowed; the predicate lives until the call returns.
        match unsafe { shim::pvmm_wait(self.0, timeout, ask, context) } {
            0 => Waited::Ready,
            1 => Waited::TimedOut,
            _ => Waited::Interrupted,
        }
    }

    fn wake(&self) {
        // SAFETY: the queue lives while it is borrowed.
        unsafe { shim::pvmm_wake(self.0) };
    }
}

impl HostSync for Linux {
    type SpinLock<T: Send + 'static> = Locked<T, SpinLockBackend>;
    type Mutex<T: Send + 'static> = Locked<T, MutexBackend>;
    type WaitQueue = LinuxWaitQueue;

    fn spin_lock<T: Send + 'static>(value: T) -> Result<Self::SpinLock<T>, OutOfMemory> {
        let lock = KBox::pin_init(Lock::new((), c"pvmm", class::<T>()), GFP_KERNEL)
            .map_err(|_| OutOfMemory)?;
        Ok(Locked {
            lock,
            value: UnsafeCell::new(value),
        })
    }

    fn mutex<T: Send + 'static>(value: T) -> Result<Self::Mutex<T>, OutOfMemory> {
        let lock = KBox::pin_init(Lock::new((), c"pvmm", class::<T>()), GFP_KERNEL)
            .map_err(|_| OutOfMemory)?;
        Ok(Locked {
            lock,
            value: UnsafeCell::new(value),
        })
    }

    fn wait_queue() -> Result<LinuxWaitQueue, OutOfMemory> {
        // SAFETY: allocates and initialises a queue.
        let queue = unsafe { shim::pvmm_wait_queue_alloc() };
        if queue.is_null() {
            return Err(OutOfMemory);
        }
        Ok(LinuxWaitQueue(queue))
    }
}
