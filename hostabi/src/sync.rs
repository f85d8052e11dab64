// SPDX-License-Identifier: GPL-2.0
//! Locks and waiting.

use crate::{Ns, OutOfMemory};
use core::ops::DerefMut;

/// A lock for a few instructions. Process context with interrupts on or off. An [`IrqSink`](crate::IrqSink), and what
/// [`HostCpu::run_on_all`](crate::HostCpu::run_on_all) runs, may take it only if nobody ever holds it with interrupts on.
/// The holder must not sleep.
pub trait SpinLock<T>: Send + Sync {
    /// The value, while held.
    type Guard<'a>: DerefMut<Target = T>
    where
        Self: 'a;

    /// Waits for the lock.
    fn lock(&self) -> Self::Guard<'_>;
}

/// A lock whose holder may sleep. Process context.
pub trait Mutex<T>: Send + Sync {
    /// The value, while held.
    type Guard<'a>: DerefMut<Target = T>
    where
        Self: 'a;

    /// Waits for the lock.
    fn lock(&self) -> Self::Guard<'_>;

    /// Takes the lock if it is free; does not wait.
    fn try_lock(&self) -> Option<Self::Guard<'_>>;
}

/// How a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    /// The condition held.
    Ready,
    /// The time was over first.
    TimedOut,
    /// A signal arrived first.
    Interrupted,
}

/// Waiting for a condition. Only in predicate form, so that no wake-up can be lost.
pub trait WaitQueue: Send + Sync {
    /// Sleeps until `ready` is true, the time is over, or a signal arrives. `ready` is asked before sleeping and after each
    /// [`WaitQueue::wake`], a wake-up while it is being asked included; it must not sleep. No lock of the queue is held
    /// meanwhile, so it may take a spin lock under which others wake. Process context.
    fn wait(&self, timeout: Option<Ns>, ready: &mut dyn FnMut() -> bool) -> Waited;

    /// Makes waiters ask their condition again. What was stored before the call is visible to them. Any context.
    fn wake(&self);
}

/// Makes locks and wait queues. Process context.
pub trait HostSync {
    /// A [`SpinLock`].
    type SpinLock<T: Send + 'static>: SpinLock<T> + 'static;
    /// A [`Mutex`].
    type Mutex<T: Send + 'static>: Mutex<T> + 'static;
    /// A [`WaitQueue`].
    type WaitQueue: WaitQueue + 'static;

    /// A spin lock around `value`.
    fn spin_lock<T: Send + 'static>(value: T) -> Result<Self::SpinLock<T>, OutOfMemory>;
    /// A mutex around `value`.
    fn mutex<T: Send + 'static>(value: T) -> Result<Self::Mutex<T>, OutOfMemory>;
    /// A wait queue.
    fn wait_queue() -> Result<Self::WaitQueue, OutOfMemory>;
}
