// SPDX-License-Identifier: GPL-2.0
//! Threads of the simulated host: what context a thread is in, its signals, and which of its allocations fail.

use super::lock;
use super::machine::{Entered, Machine};
use super::process::SimAddressSpace;
use super::sync::Sleeper;
use crate::OutOfMemory;
use std::cell::{Cell, RefCell};
use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

/// What keeps a thread from sleeping. Counts, since they nest.
#[derive(Debug, Clone, Copy)]
pub(super) enum Atomic {
    /// [`HostCpu::irq_off`](crate::HostCpu::irq_off), or an interrupt handler.
    Interrupts,
    /// A spin lock is held.
    SpinLock,
    /// A wait queue asks its condition.
    Condition,
}

const ATOMIC: [(Atomic, &str); 3] = [
    (Atomic::Interrupts, "interrupts are off"),
    (Atomic::SpinLock, "a spin lock is held"),
    (Atomic::Condition, "a wait queue asks its condition"),
];

/// A thread's state.
pub(super) struct Thread {
    machine: RefCell<Option<Machine>>,
    process: RefCell<Option<SimAddressSpace>>,
    task: Task,
    atomic: [Cell<u32>; ATOMIC.len()],
    /// Depth of sections with interrupts off.
    pub(super) irq_depth: Cell<u32>,
    /// In an interrupt handler or in what runs on all CPUs.
    pub(super) in_interrupt: Cell<bool>,
    /// In an [`InvalidateSink`](crate::InvalidateSink).
    pub(super) in_sink: Cell<bool>,
    /// The CPU: the one that the thread is on with interrupts off, else the one that it was on last.
    pub(super) cpu: Cell<u32>,
    /// The only CPU that the thread runs on, if a test wants that.
    pub(super) affinity: Cell<Option<u32>>,
    pub(super) fpu: Cell<bool>,
    allocations: Cell<Option<u64>>,
    failures: Cell<u64>,
}

std::thread_local! {
    static THREAD: Thread = Thread {
        machine: RefCell::new(None),
        process: RefCell::new(None),
        task: Task::default(),
        atomic: [const { Cell::new(0) }; ATOMIC.len()],
        irq_depth: Cell::new(0),
        in_interrupt: Cell::new(false),
        in_sink: Cell::new(false),
        cpu: Cell::new(0),
        affinity: Cell::new(None),
        fpu: Cell::new(false),
        allocations: Cell::new(None),
        failures: Cell::new(0),
    };
}

/// Looks at the calling thread.
pub(super) fn current<R>(f: impl FnOnce(&Thread) -> R) -> R {
    THREAD.with(f)
}

impl Thread {
    /// The thread's machine; makes one if it has none.
    pub(super) fn machine(&self) -> Machine {
        self.machine
            .borrow_mut()
            .get_or_insert_with(|| Machine::new(2))
            .clone()
    }

    /// Exchanges the thread's machine.
    pub(super) fn set_machine(&self, machine: Option<Machine>) -> Option<Machine> {
        self.machine.replace(machine)
    }

    /// The thread's process; makes one if it has none.
    pub(super) fn process(&self) -> SimAddressSpace {
        self.process
            .borrow_mut()
            .get_or_insert_with(SimAddressSpace::new)
            .clone()
    }

    /// Exchanges the thread's process.
    pub(super) fn set_process(&self, process: Option<SimAddressSpace>) -> Option<SimAddressSpace> {
        self.process.replace(process)
    }

    /// The thread's signals.
    pub(super) fn task(&self) -> &Task {
        &self.task
    }

    fn count(&self, kind: Atomic) -> &Cell<u32> {
        &self.atomic[kind as usize]
    }
}

/// The thread may not sleep from here on, until the matching [`leave_atomic`].
pub(super) fn enter_atomic(kind: Atomic) {
    current(|thread| {
        let count = thread.count(kind);
        count.set(count.get() + 1);
    });
}

/// Ends an [`enter_atomic`].
pub(super) fn leave_atomic(kind: Atomic) {
    current(|thread| {
        let count = thread.count(kind);
        count.set(count.get() - 1);
    });
}

/// Calls that are under way, and somebody who waits for their end.
#[derive(Default)]
pub(super) struct Running {
    count: Mutex<u32>,
    idle: Condvar,
}

/// One call that is under way.
pub(super) struct Call<'a>(&'a Running);

impl Running {
    /// Counts a call until the result is dropped, be it by a panic.
    pub(super) fn begin(&self) -> Call<'_> {
        *lock(&self.count) += 1;
        Call(self)
    }

    /// Waits until no call is under way.
    pub(super) fn wait(&self) {
        let mut count = lock(&self.count);
        while *count > 0 {
            count = self
                .idle
                .wait(count)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        *lock(&self.0.count) -= 1;
        self.0.idle.notify_all();
    }
}

/// Panics if the thread is not in process context. `what` is the call that needs it.
#[track_caller]
pub(super) fn process_context(what: &str) {
    if std::thread::panicking() {
        return;
    }
    current(|thread| {
        for (kind, reason) in ATOMIC {
            assert!(
                thread.count(kind).get() == 0,
                "{what} needs process context, but {reason}"
            );
        }
    });
}

/// Whether the next allocation of this thread may succeed.
#[track_caller]
pub(super) fn allocate(what: &str) -> Result<(), OutOfMemory> {
    process_context(what);
    current(|thread| {
        assert!(
            !thread.in_sink.get(),
            "{what} allocates, which an InvalidateSink must not do"
        );
        match thread.allocations.get() {
            None => Ok(()),
            Some(0) => {
                thread.failures.set(thread.failures.get() + 1);
                Err(OutOfMemory)
            }
            Some(left) => {
                thread.allocations.set(Some(left - 1));
                Ok(())
            }
        }
    })
}

/// Lets the thread's allocations succeed again when dropped.
#[derive(Debug)]
pub struct AllocationFailures {
    before: Option<u64>,
    /// The failures belong to this thread.
    _thread: std::marker::PhantomData<*const ()>,
}

impl AllocationFailures {
    /// How many allocations have failed on request.
    pub fn count(&self) -> u64 {
        current(|thread| thread.failures.get())
    }
}

impl Drop for AllocationFailures {
    fn drop(&mut self) {
        current(|thread| thread.allocations.set(self.before));
    }
}

/// Lets `successes` further allocations of this thread succeed and all later ones fail, until the guard is dropped.
#[must_use]
pub fn fail_allocations_after(successes: u64) -> AllocationFailures {
    current(|thread| {
        thread.failures.set(0);
        AllocationFailures {
            before: thread.allocations.replace(Some(successes)),
            _thread: std::marker::PhantomData,
        }
    })
}

/// Runs `f` again and again: first with no allocation succeeding, then with one, and so on, until none failed. Returns the
/// last result.
///
/// # Panics
///
/// If `f` succeeds although an allocation failed, fails although none did, or leaves memory behind when it fails.
pub fn each_allocation_fails<T, E: Debug>(mut f: impl FnMut() -> Result<T, E>) -> T {
    let machine = Machine::current();
    for successes in 0.. {
        let before = machine.live();
        let failures = fail_allocations_after(successes);
        let result = f();
        let failed = failures.count() > 0;
        drop(failures);
        match result {
            Ok(_) if failed => panic!("success although allocation {successes} failed"),
            Ok(value) => return value,
            Err(error) if !failed => panic!("failure without cause: {error:?}"),
            Err(_) => assert_eq!(
                before,
                machine.live(),
                "memory was left behind after allocation {successes} failed"
            ),
        }
    }
    unreachable!("an endless range ended")
}

#[derive(Default)]
struct TaskState {
    signal: AtomicBool,
    reschedule: AtomicBool,
    /// The queue that the thread sleeps on.
    sleeper: Mutex<Option<Arc<Sleeper>>>,
}

/// What others can do to a thread: send it a signal, have it scheduled.
#[derive(Clone, Default)]
pub struct Task(Arc<TaskState>);

impl Task {
    /// The calling thread.
    pub fn current() -> Self {
        current(|thread| thread.task().clone())
    }

    /// Sends a signal. It stays pending until [`Task::clear_signal`].
    pub fn signal(&self) {
        self.0.signal.store(true, SeqCst);
        if let Some(sleeper) = &*lock(&self.0.sleeper) {
            sleeper.wake();
        }
    }

    /// Handles the signal, as a thread that returned to userspace does.
    pub fn clear_signal(&self) {
        self.0.signal.store(false, SeqCst);
    }

    /// Asks for the thread to be scheduled.
    pub fn reschedule(&self) {
        self.0.reschedule.store(true, SeqCst);
    }

    /// Whether a signal is pending.
    pub fn has_signal(&self) -> bool {
        self.0.signal.load(SeqCst)
    }

    pub(super) fn wants_schedule(&self) -> bool {
        self.0.reschedule.load(SeqCst)
    }

    pub(super) fn scheduled(&self) {
        self.0.reschedule.store(false, SeqCst);
    }

    pub(super) fn sleeps_on(&self, sleeper: Option<Arc<Sleeper>>) {
        *lock(&self.0.sleeper) = sleeper;
    }

    /// Keeps the thread on one CPU from its next section with interrupts off on, or lets it go. Only for the calling
    /// thread.
    pub fn stay_on(cpu: Option<u32>) {
        current(|thread| thread.affinity.set(cpu));
    }
}

/// Starts a thread of the caller's machine and process.
pub fn spawn<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let (machine, process) = current(|thread| (thread.machine(), thread.process()));
    std::thread::spawn(move || {
        let _machine: Entered = machine.enter();
        process.adopt();
        f()
    })
}
