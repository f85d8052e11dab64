// SPDX-License-Identifier: GPL-2.0
//! The host's CPUs.

/// A host CPU's number. There may be gaps between the numbers of CPUs that are online; all are below 8192.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CpuId(pub u32);

/// A signal is pending for the calling thread; it should return to userspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interrupted;

/// CPUs, interrupts and the FPU.
pub trait HostCpu {
    /// Interrupts are off and the thread stays on its CPU while this lives; the former state returns on drop.
    type IrqOff;
    /// The FPU and vector registers belong to the core while this lives; the host's content returns on drop.
    type Fpu<'a>;

    /// Number of CPUs online. Any context.
    fn online() -> u32;

    /// Turns interrupts off. May nest.
    fn irq_off() -> Self::IrqOff;

    /// The current CPU; stable, since `irq` keeps the thread there.
    fn current(irq: &Self::IrqOff) -> CpuId;

    /// Whether the thread should leave its window: a signal, or another thread to be scheduled. Asked with interrupts off,
    /// so that work that arrives later comes with an interrupt, which ends the guest's run.
    fn work_pending(irq: &Self::IrqOff) -> bool;

    /// Does what [`HostCpu::work_pending`] announced: schedules, or says that a signal waits, which stays pending until the
    /// thread has returned to userspace. Process context.
    fn do_work() -> Result<(), Interrupted>;

    /// Interrupts `cpu`, so that a guest that runs there exits. Does not wait. Any context; a CPU that is offline
    /// is ignored.
    fn kick(cpu: CpuId);

    /// Runs `f` on every online CPU with interrupts off, at the same time, and waits for all. Process context. As each
    /// CPU must take an interrupt for it, every window that was open when the call began has ended when it returns. `f` may
    /// do what is allowed in any context.
    fn run_on_all(f: &(dyn Fn() + Sync));

    /// Delivers an NMI that the core has taken to the host's handler, on this CPU.
    fn deliver_nmi(irq: &Self::IrqOff);

    /// Saves the host's extended state and gives the registers to the core. Not nested.
    fn fpu_enter(irq: &Self::IrqOff) -> Self::Fpu<'_>;
}
