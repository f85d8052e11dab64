// SPDX-License-Identifier: GPL-2.0
//! The simulated machine: CPUs, clock, log, and counts of what is alive. Its devices are in `dev`, its VT-x in `vmx`.

use super::cpu::Cpu;
use super::dev::Devices;
use super::lock;
use super::thread::{current, Task};
use super::SimHost;
use crate::{HostLog, HostTime, Level, Ns, TscKhz, VmxUnavailable};
use std::string::String;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::vec::Vec;

/// How much the core holds of each kind of memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Live {
    /// Pages, including those whose handle was given up.
    pub pages: u64,
    /// Arrays of words.
    pub words: u64,
    /// Boxes.
    pub boxes: u64,
    /// Shared values, however many owners they have.
    pub shared: u64,
    /// Spin locks, mutexes and wait queues.
    pub sync: u64,
    /// Watches, claimed ports and claimed interrupt lines.
    pub registrations: u64,
}

/// The kinds of [`Live`].
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Page,
    Words,
    Box,
    Shared,
    Sync,
    Registration,
}

/// A simulated machine. Cheap to clone; a clone is the same machine.
#[derive(Clone)]
pub struct Machine(pub(super) Arc<State>);

/// A machine's parts.
pub(super) struct State {
    pub(super) cpus: Vec<Cpu>,
    /// One user of [`HostCpu::run_on_all`](crate::HostCpu::run_on_all) at a time.
    pub(super) all_cpus: Mutex<()>,
    /// Why a CPU has no VT-x to give.
    pub(super) vmx: Mutex<Vec<Option<VmxUnavailable>>>,
    pub(super) devices: Devices,
    live: [AtomicU64; 6],
    started: Instant,
    tsc_khz: AtomicU32,
    tsc_is_stable: AtomicBool,
    log: Mutex<Vec<(Level, String)>>,
}

impl Machine {
    /// A machine with `cpus` CPUs, working VT-x on each, a TSC of 1 GHz and no devices.
    ///
    /// # Panics
    ///
    /// If `cpus` is 0.
    pub fn new(cpus: u32) -> Self {
        assert!(cpus > 0, "a machine needs a CPU");
        Self(Arc::new(State {
            cpus: (0..cpus).map(|_| Cpu::default()).collect(),
            all_cpus: Mutex::default(),
            vmx: Mutex::new((0..cpus).map(|_| None).collect()),
            devices: Devices::default(),
            live: Default::default(),
            started: Instant::now(),
            tsc_khz: AtomicU32::new(1_000_000),
            tsc_is_stable: AtomicBool::new(true),
            log: Mutex::default(),
        }))
    }

    /// The calling thread's machine.
    pub fn current() -> Self {
        current(|thread| thread.machine())
    }

    /// Moves the calling thread to this machine until the guard is dropped.
    pub fn enter(&self) -> Entered {
        Entered {
            before: current(|thread| thread.set_machine(Some(self.clone()))),
            _thread: std::marker::PhantomData,
        }
    }

    /// What the core holds at the moment.
    pub fn live(&self) -> Live {
        let count = |kind: Kind| self.0.live[kind as usize].load(SeqCst);
        Live {
            pages: count(Kind::Page),
            words: count(Kind::Words),
            boxes: count(Kind::Box),
            shared: count(Kind::Shared),
            sync: count(Kind::Sync),
            registrations: count(Kind::Registration),
        }
    }

    /// Sets the TSC's rate.
    pub fn set_tsc_khz(&self, rate: TscKhz) {
        self.0.tsc_khz.store(rate.0, SeqCst);
    }

    /// Sets whether the TSC is stable.
    pub fn set_tsc_is_stable(&self, stable: bool) {
        self.0.tsc_is_stable.store(stable, SeqCst);
    }

    /// Takes the lines that were logged.
    pub fn take_log(&self) -> Vec<(Level, String)> {
        std::mem::take(&mut *lock(&self.0.log))
    }
}

/// Moves the thread back to its former machine when dropped.
#[must_use]
pub struct Entered {
    before: Option<Machine>,
    _thread: std::marker::PhantomData<*const ()>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        let before = self.before.take();
        current(|thread| thread.set_machine(before));
    }
}

/// Something alive that a machine counts.
pub(super) struct Counted {
    /// `None` once the count goes on without this value.
    machine: Option<Machine>,
    kind: Kind,
}

impl Counted {
    /// Counts one more of `kind` on the calling thread's machine.
    pub(super) fn new(kind: Kind) -> Self {
        let machine = Machine::current();
        machine.0.live[kind as usize].fetch_add(1, SeqCst);
        Self::resume(machine, kind)
    }

    /// Goes on counting without this value.
    pub(super) fn keep(mut self) -> Option<Machine> {
        self.machine.take()
    }

    /// The value for something that was counted before.
    pub(super) fn resume(machine: Machine, kind: Kind) -> Self {
        Self {
            machine: Some(machine),
            kind,
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Some(machine) = &self.machine {
            machine.0.live[self.kind as usize].fetch_sub(1, SeqCst);
        }
    }
}

impl SimHost {
    /// What the simulated TSC shows. Any context.
    pub fn rdtsc() -> u64 {
        let machine = Machine::current();
        let ns = machine.0.started.elapsed().as_nanos();
        let ticks = ns * u128::from(machine.0.tsc_khz.load(SeqCst)) / 1_000_000;
        u64::try_from(ticks).unwrap_or(u64::MAX)
    }
}

impl HostTime for SimHost {
    fn tsc_khz() -> TscKhz {
        TscKhz(Machine::current().0.tsc_khz.load(SeqCst))
    }

    fn tsc_is_stable() -> bool {
        Machine::current().0.tsc_is_stable.load(SeqCst)
    }

    fn delay(ns: Ns) {
        let (start, time) = (Instant::now(), Duration::from_nanos(ns.0));
        while start.elapsed() < time {
            std::thread::yield_now();
        }
    }
}

impl HostLog for SimHost {
    fn log(level: Level, message: core::fmt::Arguments<'_>) {
        let line = std::fmt::format(message);
        lock(&Machine::current().0.log).push((level, line));
    }
}

impl core::fmt::Debug for Machine {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Machine")
            .field("cpus", &self.0.cpus.len())
            .field("live", &self.live())
            .finish()
    }
}

impl core::fmt::Debug for Task {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Task")
            .field("signal", &self.has_signal())
            .finish()
    }
}
