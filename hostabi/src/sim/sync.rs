// SPDX-License-Identifier: GPL-2.0
//! The simulated host's locks and wait queues. They find what would hang or crash a kernel: sleeping while a spin lock is
//! held, taking a lock twice, a spin lock that is used by an interrupt handler and held with interrupts on.

use super::lock;
use super::machine::{Counted, Kind};
use super::thread::{allocate, current, enter_atomic, leave_atomic, process_context, Atomic, Task};
use super::SimHost;
use crate::{HostSync, Mutex, Ns, OutOfMemory, SpinLock, WaitQueue, Waited};
use core::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Condvar, MutexGuard, PoisonError, TryLockError};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

/// A lock that knows its holder.
struct Owned<T> {
    value: std::sync::Mutex<T>,
    holder: std::sync::Mutex<Option<ThreadId>>,
    _count: Counted,
}

impl<T> Owned<T> {
    fn new(value: T) -> Self {
        Self {
            value: std::sync::Mutex::new(value),
            holder: std::sync::Mutex::new(None),
            _count: Counted::new(Kind::Sync),
        }
    }

    #[track_caller]
    fn lock(&self) -> MutexGuard<'_, T> {
        let me = std::thread::current().id();
        assert!(
            *lock(&self.holder) != Some(me),
            "this thread holds the lock already"
        );
        let guard = lock(&self.value);
        *lock(&self.holder) = Some(me);
        guard
    }

    fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        let guard = match self.value.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        *lock(&self.holder) = Some(std::thread::current().id());
        Some(guard)
    }

    /// To be called before the guard is dropped.
    fn forget_holder(&self) {
        *lock(&self.holder) = None;
    }
}

/// A spin lock.
pub struct SimSpinLock<T> {
    inner: Owned<T>,
    /// It was taken with interrupts on.
    with_interrupts: AtomicBool,
    /// It was taken by an interrupt handler.
    by_handler: AtomicBool,
}

/// A [`SimSpinLock`]'s value, while held.
pub struct SimSpinGuard<'a, T> {
    lock: &'a SimSpinLock<T>,
    guard: MutexGuard<'a, T>,
}

impl<T: Send> SpinLock<T> for SimSpinLock<T> {
    type Guard<'a>
        = SimSpinGuard<'a, T>
    where
        Self: 'a;

    #[track_caller]
    fn lock(&self) -> SimSpinGuard<'_, T> {
        let (irq_depth, in_interrupt) =
            current(|thread| (thread.irq_depth.get(), thread.in_interrupt.get()));
        if irq_depth == 0 {
            self.with_interrupts.store(true, SeqCst);
        }
        if in_interrupt {
            self.by_handler.store(true, SeqCst);
        }
        assert!(
            !(self.with_interrupts.load(SeqCst) && self.by_handler.load(SeqCst)),
            "a spin lock that an interrupt handler takes was held with interrupts on"
        );
        let guard = self.inner.lock();
        enter_atomic(Atomic::SpinLock);
        SimSpinGuard { lock: self, guard }
    }
}

impl<T> Deref for SimSpinGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for SimSpinGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

impl<T> Drop for SimSpinGuard<'_, T> {
    fn drop(&mut self) {
        self.lock.inner.forget_holder();
        leave_atomic(Atomic::SpinLock);
    }
}

/// A mutex.
pub struct SimMutex<T>(Owned<T>);

/// A [`SimMutex`]'s value, while held.
pub struct SimMutexGuard<'a, T> {
    lock: &'a SimMutex<T>,
    guard: MutexGuard<'a, T>,
}

impl<T: Send> Mutex<T> for SimMutex<T> {
    type Guard<'a>
        = SimMutexGuard<'a, T>
    where
        Self: 'a;

    #[track_caller]
    fn lock(&self) -> SimMutexGuard<'_, T> {
        process_context("Mutex::lock");
        SimMutexGuard {
            lock: self,
            guard: self.0.lock(),
        }
    }

    #[track_caller]
    fn try_lock(&self) -> Option<SimMutexGuard<'_, T>> {
        process_context("Mutex::try_lock");
        Some(SimMutexGuard {
            lock: self,
            guard: self.0.try_lock()?,
        })
    }
}

impl<T> Deref for SimMutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for SimMutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

impl<T> Drop for SimMutexGuard<'_, T> {
    fn drop(&mut self) {
        self.lock.0.forget_holder();
    }
}

/// Where waiters of a queue sleep.
#[derive(Default)]
pub(super) struct Sleeper {
    /// How often the queue was woken.
    wakes: std::sync::Mutex<u64>,
    woken: Condvar,
}

impl Sleeper {
    pub(super) fn wake(&self) {
        *lock(&self.wakes) += 1;
        self.woken.notify_all();
    }
}

/// A wait queue.
pub struct SimWaitQueue {
    sleeper: Arc<Sleeper>,
    _count: Counted,
}

impl SimWaitQueue {
    fn wait_until(&self, end: Option<Instant>, ready: &mut dyn FnMut() -> bool) -> Waited {
        let task = Task::current();
        loop {
            // Read before asking: a wake-up that comes while the condition is asked must not be lost.
            let wakes = *lock(&self.sleeper.wakes);
            enter_atomic(Atomic::Condition);
            let is_ready = ready();
            leave_atomic(Atomic::Condition);
            if is_ready {
                return Waited::Ready;
            }
            if task.has_signal() {
                return Waited::Interrupted;
            }
            let mut now = lock(&self.sleeper.wakes);
            while *now == wakes {
                let Some(end) = end else {
                    now = self
                        .sleeper
                        .woken
                        .wait(now)
                        .unwrap_or_else(PoisonError::into_inner);
                    continue;
                };
                let left = end.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Waited::TimedOut;
                }
                now = self
                    .sleeper
                    .woken
                    .wait_timeout(now, left)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
            }
        }
    }
}

impl WaitQueue for SimWaitQueue {
    #[track_caller]
    fn wait(&self, timeout: Option<Ns>, ready: &mut dyn FnMut() -> bool) -> Waited {
        process_context("WaitQueue::wait");
        // A time that no clock reaches is as good as none.
        let end = timeout.and_then(|ns| Instant::now().checked_add(Duration::from_nanos(ns.0)));
        let task = Task::current();
        task.sleeps_on(Some(Arc::clone(&self.sleeper)));
        let waited = self.wait_until(end, ready);
        task.sleeps_on(None);
        waited
    }

    fn wake(&self) {
        self.sleeper.wake();
    }
}

impl HostSync for SimHost {
    type SpinLock<T: Send + 'static> = SimSpinLock<T>;
    type Mutex<T: Send + 'static> = SimMutex<T>;
    type WaitQueue = SimWaitQueue;

    #[track_caller]
    fn spin_lock<T: Send + 'static>(value: T) -> Result<SimSpinLock<T>, OutOfMemory> {
        allocate("HostSync::spin_lock")?;
        Ok(SimSpinLock {
            inner: Owned::new(value),
            with_interrupts: AtomicBool::new(false),
            by_handler: AtomicBool::new(false),
        })
    }

    #[track_caller]
    fn mutex<T: Send + 'static>(value: T) -> Result<SimMutex<T>, OutOfMemory> {
        allocate("HostSync::mutex")?;
        Ok(SimMutex(Owned::new(value)))
    }

    #[track_caller]
    fn wait_queue() -> Result<SimWaitQueue, OutOfMemory> {
        allocate("HostSync::wait_queue")?;
        Ok(SimWaitQueue {
            sleeper: Arc::default(),
            _count: Counted::new(Kind::Sync),
        })
    }
}
