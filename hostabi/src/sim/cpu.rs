// SPDX-License-Identifier: GPL-2.0
//! The simulated host's CPUs.
//!
//! A CPU is a lock that a thread holds while its interrupts are off; waiters get it in the order of their coming. With
//! interrupts on a thread is on no CPU, and each section with interrupts off may be on another one. As a spin lock taken with
//! interrupts on does not occupy a CPU here, a machine should have as many CPUs as threads that take both.

use super::lock;
use super::machine::Machine;
use super::thread::{current, enter_atomic, leave_atomic, process_context, Atomic, Task};
use super::SimHost;
use crate::{CpuId, HostCpu, Interrupted};
use std::marker::PhantomData;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::vec::Vec;

#[derive(Default)]
struct CpuState {
    /// The ticket that the next comer draws.
    next: u64,
    /// The ticket of the holder, if it was drawn already.
    serving: u64,
    /// An interrupt came while the holder had interrupts off.
    interrupt: bool,
    kicks: u64,
    nmis: u64,
}

impl CpuState {
    fn is_held(&self) -> bool {
        self.serving < self.next
    }
}

/// One CPU.
#[derive(Default)]
pub(super) struct Cpu {
    state: Mutex<CpuState>,
    changed: Condvar,
}

impl Cpu {
    fn acquire_if_free(&self) -> bool {
        let mut state = lock(&self.state);
        if state.is_held() {
            return false;
        }
        state.next += 1;
        true
    }

    /// Waits for the CPU. The holder gets an interrupt, as from a timer or another CPU.
    fn acquire(&self) {
        let mut state = lock(&self.state);
        let ticket = state.next;
        state.next += 1;
        if state.serving != ticket {
            state.interrupt = true;
            self.changed.notify_all();
        }
        while state.serving != ticket {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn release(&self) {
        let mut state = lock(&self.state);
        state.serving += 1;
        // Interrupts are on again: what was pending is taken. Whoever waits is an interrupt to the next holder.
        state.interrupt = state.next > state.serving + 1;
        self.changed.notify_all();
    }

    fn kick(&self) {
        let mut state = lock(&self.state);
        state.kicks += 1;
        if state.is_held() {
            state.interrupt = true;
            self.changed.notify_all();
        }
    }

    fn has_waiters(&self) -> bool {
        let state = lock(&self.state);
        state.next > state.serving + 1
    }
}

/// Interrupts are off.
pub struct SimIrqOff {
    machine: Machine,
    depth: u32,
    /// Interrupts are a matter of the thread.
    _thread: PhantomData<*const ()>,
}

impl SimIrqOff {
    /// Begins a section, on `cpu` if it is given. Sections inside another one are on the same CPU.
    fn begin(cpu: Option<u32>) -> Self {
        let machine = Machine::current();
        let depth = current(|thread| {
            let depth = thread.irq_depth.get() + 1;
            if depth == 1 {
                let wanted = cpu.or(thread.affinity.get());
                thread.cpu.set(acquire(&machine, wanted, thread.cpu.get()));
            }
            thread.irq_depth.set(depth);
            depth
        });
        enter_atomic(Atomic::Interrupts);
        Self {
            machine,
            depth,
            _thread: PhantomData,
        }
    }

    fn cpu(&self) -> &Cpu {
        let number = current(|thread| thread.cpu.get());
        &self.machine.0.cpus[number as usize]
    }
}

/// Takes the wanted CPU, or else any: the one after the last if all are free, so that a thread moves often.
fn acquire(machine: &Machine, wanted: Option<u32>, last: u32) -> u32 {
    let cpus = &machine.0.cpus;
    let count = cpus.len() as u32;
    if let Some(cpu) = wanted {
        cpus[cpu as usize].acquire();
        return cpu;
    }
    let preferred = (last + 1) % count;
    for step in 0..count {
        let cpu = (preferred + step) % count;
        if cpus[cpu as usize].acquire_if_free() {
            return cpu;
        }
    }
    cpus[preferred as usize].acquire();
    preferred
}

impl Drop for SimIrqOff {
    fn drop(&mut self) {
        leave_atomic(Atomic::Interrupts);
        let depth = current(|thread| thread.irq_depth.replace(self.depth - 1));
        if self.depth == 1 {
            self.cpu().release();
        }
        if !std::thread::panicking() {
            assert_eq!(depth, self.depth, "sections with interrupts off must nest");
        }
    }
}

/// The FPU registers belong to the core.
pub struct SimFpu<'a>(PhantomData<(&'a SimIrqOff, *const ())>);

impl Drop for SimFpu<'_> {
    fn drop(&mut self) {
        current(|thread| thread.fpu.set(false));
    }
}

/// Runs `f` on CPU `cpu` of `machine` as an interrupt handler runs.
pub(super) fn in_interrupt<R>(machine: &Machine, cpu: Option<u32>, f: impl FnOnce() -> R) -> R {
    let _machine = machine.enter();
    let irq = SimIrqOff::begin(cpu);
    let before = current(|thread| thread.in_interrupt.replace(true));
    let result = f();
    current(|thread| thread.in_interrupt.set(before));
    drop(irq);
    result
}

impl HostCpu for SimHost {
    type IrqOff = SimIrqOff;
    type Fpu<'a> = SimFpu<'a>;

    fn online() -> u32 {
        Machine::current().0.cpus.len() as u32
    }

    fn irq_off() -> SimIrqOff {
        SimIrqOff::begin(None)
    }

    fn current(_: &SimIrqOff) -> CpuId {
        CpuId(current(|thread| thread.cpu.get()))
    }

    fn work_pending(irq: &SimIrqOff) -> bool {
        let task = Task::current();
        task.has_signal() || task.wants_schedule() || irq.cpu().has_waiters()
    }

    #[track_caller]
    fn do_work() -> Result<(), Interrupted> {
        process_context("HostCpu::do_work");
        let task = Task::current();
        if task.has_signal() {
            return Err(Interrupted);
        }
        task.scheduled();
        std::thread::yield_now();
        Ok(())
    }

    fn kick(cpu: CpuId) {
        if let Some(cpu) = Machine::current().0.cpus.get(cpu.0 as usize) {
            cpu.kick();
        }
    }

    #[track_caller]
    fn run_on_all(f: &(dyn Fn() + Sync)) {
        process_context("HostCpu::run_on_all");
        let machine = Machine::current();
        // Two callers whose CPUs wait for each other inside would otherwise stop each other.
        let _turn = lock(&machine.0.all_cpus);
        std::thread::scope(|scope| {
            for cpu in 0..machine.0.cpus.len() as u32 {
                let machine = &machine;
                scope.spawn(move || in_interrupt(machine, Some(cpu), f));
            }
        });
    }

    fn deliver_nmi(irq: &SimIrqOff) {
        lock(&irq.cpu().state).nmis += 1;
    }

    #[track_caller]
    fn fpu_enter(_: &SimIrqOff) -> SimFpu<'_> {
        let nested = current(|thread| thread.fpu.replace(true));
        assert!(!nested, "the FPU is taken already");
        SimFpu(PhantomData)
    }
}

impl Machine {
    /// How often each CPU was kicked.
    pub fn kicks(&self) -> Vec<u64> {
        self.0
            .cpus
            .iter()
            .map(|cpu| lock(&cpu.state).kicks)
            .collect()
    }

    /// How many NMIs were given to each CPU's handler.
    pub fn nmis(&self) -> Vec<u64> {
        self.0
            .cpus
            .iter()
            .map(|cpu| lock(&cpu.state).nmis)
            .collect()
    }

    /// Whether an interrupt waits for this CPU's interrupts to come on: a kick, a device, another CPU or thread. What ends
    /// a guest's run.
    pub fn interrupt_pending(irq: &SimIrqOff) -> bool {
        lock(&irq.cpu().state).interrupt
    }

    /// Waits, as a guest that runs until something ends it, for an interrupt; at most `limit`. Says whether it came.
    pub fn run_until_interrupt(irq: &SimIrqOff, limit: Duration) -> bool {
        let cpu = irq.cpu();
        let end = Instant::now() + limit;
        let mut state = lock(&cpu.state);
        while !state.interrupt {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = cpu
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        true
    }
}
