// SPDX-License-Identifier: GPL-2.0
//! CPUs, interrupts and the FPU.

use super::Linux;
use crate::shim;
use core::ffi::c_void;
use core::marker::PhantomData;
use pvmm_hostabi::{CpuId, HostCpu, Interrupted};

/// Interrupts are off on this CPU.
pub(crate) struct IrqOff {
    flags: usize,
    not_send: PhantomData<*const ()>,
}

impl Drop for IrqOff {
    fn drop(&mut self) {
        // SAFETY: the flags are from `irq_off` on this CPU, which the thread can't have left since.
        unsafe { shim::pvmm_irq_restore(self.flags) };
    }
}

/// The FPU is the core's.
pub(crate) struct Fpu<'a>(PhantomData<&'a IrqOff>);

impl Drop for Fpu<'_> {
    fn drop(&mut self) {
        // SAFETY: ends what `fpu_enter` has begun, on the same CPU.
        unsafe { shim::pvmm_fpu_end() };
    }
}

/// Calls the closure that `context` points to.
unsafe extern "C" fn call(context: *mut c_void) {
    // SAFETY: `run_on_all` passes a pointer to a reference that it keeps until all calls are done.
    let function = unsafe { *context.cast::<&(dyn Fn() + Sync)>() };
    function();
}

impl HostCpu for Linux {
    type IrqOff = IrqOff;
    type Fpu<'a> = Fpu<'a>;

    fn online() -> u32 {
        // SAFETY: reads a counter.
        unsafe { shim::pvmm_online_cpus() }
    }

    fn irq_off() -> IrqOff {
        // SAFETY: the guard restores the flags.
        IrqOff {
            flags: unsafe { shim::pvmm_irq_save() },
            not_send: PhantomData,
        }
    }

    fn current(_irq: &IrqOff) -> CpuId {
        // SAFETY: reads the CPU's number.
        CpuId(unsafe { shim::pvmm_current_cpu() })
    }

    fn work_pending(_irq: &IrqOff) -> bool {
        // SAFETY: reads flags of the current task.
        unsafe { shim::pvmm_work_pending() }
    }

    fn do_work() -> Result<(), Interrupted> {
        // SAFETY: process context without locks (the contract).
        unsafe { shim::pvmm_cond_resched() };
        // SAFETY: reads a flag of the current task.
        if unsafe { shim::pvmm_signal_pending() } {
            return Err(Interrupted);
        }
        Ok(())
    }

    fn kick(cpu: CpuId) {
        // SAFETY: the shim checks that the CPU exists and is online.
        unsafe { shim::pvmm_kick(cpu.0) };
    }

    fn run_on_all(f: &(dyn Fn() + Sync)) {
        let context = (&raw const f).cast_mut().cast::<c_void>();
        // SAFETY: the call waits until every CPU has run the function, so the reference outlives its uses; the closure is
        // `Sync`, so it may run on several CPUs at once.
        unsafe { shim::pvmm_on_each_cpu(call, context) };
    }

    fn deliver_nmi(_irq: &IrqOff) {
        // SAFETY: interrupts are off, so that the NMI reaches this CPU.
        unsafe { shim::pvmm_deliver_nmi() };
    }

    fn fpu_enter(_irq: &IrqOff) -> Fpu<'_> {
        // SAFETY: not nested (the contract); interrupts are off, so no softirq can use the FPU in between.
        unsafe { shim::pvmm_fpu_begin() };
        Fpu(PhantomData)
    }
}
