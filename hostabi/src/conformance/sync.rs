// SPDX-License-Identifier: GPL-2.0
//! Checks of [`HostSync`](crate::HostSync): locks and waiting.

use super::mem::Counted;
use super::{ensure, equal, holds, succeeds, Contract, Failure, Fixture};
use crate::{Host, Mutex, Ns, SpinLock, WaitQueue, Waited};
use core::marker::PhantomData;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

/// Turns that each CPU takes with a lock.
const TURNS: u64 = 500;
/// A wait that nothing ends but time.
const SHORT: Ns = Ns(5_000_000);
/// A wait that a wake-up must end. Only a host that loses it waits that long.
const LONG: Ns = Ns(1_000_000_000);

/// The checks for host `H`.
pub(super) struct Checks<H>(PhantomData<H>);

impl<H: Host> Checks<H> {
    pub(super) const LIST: &'static [Contract] = &[
        Contract {
            name: "a spin lock has one holder at a time",
            check: spin_lock_excludes::<H>,
        },
        Contract {
            name: "a spin lock works with interrupts on and off",
            check: spin_lock_keeps_value::<H>,
        },
        Contract {
            name: "a mutex can be taken if and only if it is free",
            check: mutex_is_taken_if_free::<H>,
        },
        Contract {
            name: "a lock drops its value once",
            check: locks_drop_value::<H>,
        },
        Contract {
            name: "a wait asks before it sleeps",
            check: wait_asks_first::<H>,
        },
        Contract {
            name: "a wait lasts at least its time",
            check: wait_lasts::<H>,
        },
        Contract {
            name: "a wake-up while the condition is asked is not lost",
            check: wake_is_not_lost::<H>,
        },
    ];
}

/// The lock is used with interrupts off only, as what runs on all CPUs must.
fn spin_lock_excludes<H: Host>(_: &Fixture) -> Result<(), Failure> {
    let lock = succeeds("a spin lock can be made", H::spin_lock(0u64))?;
    let inside = AtomicBool::new(false);
    let (calls, met) = (AtomicU64::new(0), AtomicU64::new(0));
    H::run_on_all(&|| {
        calls.fetch_add(1, SeqCst);
        for _ in 0..TURNS {
            let mut count = lock.lock();
            if inside.swap(true, SeqCst) {
                met.fetch_add(1, SeqCst);
            }
            *count += 1;
            inside.store(false, SeqCst);
        }
    });
    equal("no two CPUs hold the lock", 0, met.load(SeqCst))?;
    let irq = H::irq_off();
    let count = *lock.lock();
    drop(irq);
    equal(
        "no update is lost",
        TURNS.saturating_mul(calls.load(SeqCst)),
        count,
    )
}

fn spin_lock_keeps_value<H: Host>(_: &Fixture) -> Result<(), Failure> {
    let lock = succeeds("a spin lock can be made", H::spin_lock(1u64))?;
    for turn in 1..10 {
        equal("interrupts on: the value is kept", turn, {
            let value = *lock.lock();
            value
        })?;
        let irq = H::irq_off();
        let cpu = H::current(&irq);
        *lock.lock() += 1;
        equal(
            "the release leaves interrupts off",
            cpu.0.into(),
            H::current(&irq).0.into(),
        )?;
    }
    Ok(())
}

fn mutex_is_taken_if_free<H: Host>(_: &Fixture) -> Result<(), Failure> {
    let mutex = succeeds("a mutex can be made", H::mutex(1u64))?;
    for turn in 1..4 {
        let mut held = mutex.lock();
        equal("the value is kept", turn, *held)?;
        holds("a held mutex is not free", mutex.try_lock().is_none())?;
        *held += 1;
        drop(held);
        let tried = mutex.try_lock();
        holds("a released mutex is free", tried.is_some())?;
        holds(
            "a mutex taken by try_lock is not free",
            mutex.try_lock().is_none(),
        )?;
        drop(tried);
    }
    Ok(())
}

fn locks_drop_value<H: Host>(_: &Fixture) -> Result<(), Failure> {
    let (value, spin_drops) = Counted::<H>::new(1)?;
    let spin = succeeds("a spin lock can be made", H::spin_lock(value))?;
    let (value, mutex_drops) = Counted::<H>::new(2)?;
    let mutex = succeeds("a mutex can be made", H::mutex(value))?;
    equal("a spin lock's value lives", 1, spin.lock().value)?;
    equal("a mutex's value lives", 2, mutex.lock().value)?;
    equal("neither is dropped before", 0, {
        spin_drops.load(SeqCst) + mutex_drops.load(SeqCst)
    })?;
    drop(spin);
    drop(mutex);
    equal("a spin lock drops it", 1, spin_drops.load(SeqCst))?;
    equal("a mutex drops it", 1, mutex_drops.load(SeqCst))
}

fn queue<H: Host>() -> Result<H::WaitQueue, Failure> {
    succeeds("a wait queue can be made", H::wait_queue())
}

fn wait_asks_first<H: Host>(_: &Fixture) -> Result<(), Failure> {
    let queue = queue::<H>()?;
    for timeout in [Some(Ns(0)), Some(SHORT), None] {
        let mut asked = 0;
        let waited = queue.wait(timeout, &mut || {
            asked += 1;
            true
        });
        holds("a condition that holds is seen", waited == Waited::Ready)?;
        ensure("it is asked", asked > 0, 1, asked)?;
    }
    Ok(())
}

fn wait_lasts<H: Host>(fixture: &Fixture) -> Result<(), Failure> {
    let queue = queue::<H>()?;
    for timeout in [Ns(0), SHORT] {
        let start = (fixture.tsc)();
        let waited = queue.wait(Some(timeout), &mut || false);
        let took = fixture.elapsed_ns::<H>(start);
        holds(
            "nothing but time ends the wait (was there a signal?)",
            waited == Waited::TimedOut,
        )?;
        // The host's clock and the TSC may differ by a little.
        ensure(
            "the time has gone by, measured by the TSC",
            took >= timeout.0 - timeout.0 / 16,
            timeout.0,
            took,
        )?;
    }
    Ok(())
}

/// The condition becomes true, and says so, after it was asked and before the waiter sleeps.
fn wake_is_not_lost<H: Host>(fixture: &Fixture) -> Result<(), Failure> {
    let queue = queue::<H>()?;
    queue.wake();
    let mut asked = 0;
    let start = (fixture.tsc)();
    let waited = queue.wait(Some(LONG), &mut || {
        asked += 1;
        if asked == 1 {
            queue.wake();
        }
        asked > 1
    });
    let took = fixture.elapsed_ns::<H>(start);
    holds(
        "the condition is asked again (was there a signal?)",
        waited == Waited::Ready,
    )?;
    ensure(
        "and not only when the time is over",
        took < LONG.0 / 2,
        LONG.0 / 2,
        took,
    )
}
