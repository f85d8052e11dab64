// SPDX-License-Identifier: GPL-2.0
//! VMX operation on Linux: only inside a window.
//!
//! A module can't put CR4.VMXE into the kernel's shadow of CR4, and the kernel writes CR4 from it, so VMXE must never be set
//! while anything else runs on the CPU. Every window therefore sets it, executes VMXON, and undoes both. Nothing has to be
//! done at CPU hotplug, suspend, kexec or reboot, and a panic inside a window is covered: the kernel's emergency path looks at
//! the real CR4.

use super::cpu::IrqOff;
use super::mem::Page;
use super::Linux;
use crate::shim;
use core::marker::PhantomData;
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use kernel::prelude::*;
use pvmm_core::arch::x86::cpuid::cpuid;
use pvmm_core::arch::x86::msr::{rdmsr, IA32_FEATURE_CONTROL, IA32_VMX_BASIC};
use pvmm_core::arch::x86::registers::{read_cr4, write_cr4, CR4_VMXE};
use pvmm_core::arch::x86::vmx::instructions::{vmxoff, vmxon};
use pvmm_hostabi::{HostCpu, HostMem, HostPage, HostVmx, VmxUnavailable};

/// The VMXON region of each possible CPU, while the module is loaded.
static REGIONS: AtomicPtr<KVec<Page>> = AtomicPtr::new(core::ptr::null_mut());

/// Owns [`REGIONS`].
pub(crate) struct Regions(());

impl Regions {
    /// Allocates a region for each possible CPU. Each gets its revision identifier at its first use.
    pub(crate) fn allocate() -> Result<Self> {
        // SAFETY: reads a constant.
        let cpus = unsafe { shim::pvmm_possible_cpus() };
        let mut regions = KVec::with_capacity(cpus as usize, GFP_KERNEL)?;
        for _ in 0..cpus {
            regions.push(Linux::page().map_err(|_| ENOMEM)?, GFP_KERNEL)?;
        }
        let boxed = KBox::new(regions, GFP_KERNEL)?;
        REGIONS.store(KBox::into_raw(boxed), Ordering::Release);
        Ok(Self(()))
    }
}

impl Drop for Regions {
    fn drop(&mut self) {
        let regions = REGIONS.swap(core::ptr::null_mut(), Ordering::AcqRel);
        if !regions.is_null() {
            // SAFETY: stored by `allocate`, taken out once; the module is going, so no window is open.
            drop(unsafe { KBox::from_raw(regions) });
        }
    }
}

/// The region of the current CPU, with the revision identifier that VMXON wants to see there (SDM volume 3, 26.11.5).
/// `None` if software may not use VMX on this CPU, which may have come online long after the others were looked at.
fn region(irq: &IrqOff) -> Option<&'static Page> {
    // SAFETY: the list lives as long as the module is loaded, and windows are only opened while it is.
    let regions = unsafe { REGIONS.load(Ordering::Acquire).as_ref() }?;
    let region = regions.get(Linux::current(irq).0 as usize)?;
    let identifier = region.words().first()?;
    if identifier.load(Ordering::Relaxed) == 0 {
        if !has_vmx() || !is_vmx_allowed() {
            return None;
        }
        // SAFETY: IA32_VMX_BASIC exists on every CPU with VMX.
        let revision = unsafe { rdmsr(IA32_VMX_BASIC) } & 0x7fff_ffff;
        identifier.store(revision, Ordering::Relaxed);
    }
    Some(region)
}

/// Whether the current CPU has VMX.
fn has_vmx() -> bool {
    cpuid(1, 0)[2] & (1 << 5) != 0
}

/// Whether the firmware, or Linux in its place, allows VMX outside of SMX on the current CPU, which has it.
fn is_vmx_allowed() -> bool {
    // SAFETY: IA32_FEATURE_CONTROL exists on every CPU with VMX.
    unsafe { rdmsr(IA32_FEATURE_CONTROL) & 5 == 5 }
}

/// VMX operation of this CPU; ends on drop.
pub(crate) struct VmxOperation<'a> {
    cr4: usize,
    irq: PhantomData<&'a IrqOff>,
}

impl Drop for VmxOperation<'_> {
    fn drop(&mut self) {
        // SAFETY: in VMX operation since `enter_vmx`, on the same CPU with interrupts off; no VMCS is current any more (the
        // contract). CR4 gets the value that the kernel had there.
        unsafe {
            let left = vmxoff();
            debug_assert!(left.is_ok());
            write_cr4(self.cr4 as u64);
            // VM exit leaves the task register with a limit that is too small for I/O permission bitmaps.
            shim::pvmm_tss_limit_is_invalid();
        }
    }
}

/// Outcomes of the probe on one CPU, the worst last.
const PROBE: [Option<VmxUnavailable>; 5] = [
    None,
    Some(VmxUnavailable::Failed),
    Some(VmxUnavailable::Busy),
    Some(VmxUnavailable::DisabledByFirmware),
    Some(VmxUnavailable::Absent),
];

/// Looks for VMX on the current CPU and enters it once; the result is an index of [`PROBE`].
fn probe_here() -> u32 {
    if !has_vmx() {
        return 4;
    }
    if !is_vmx_allowed() {
        return 3;
    }
    let irq = Linux::irq_off();
    let entered = Linux::enter_vmx(&irq);
    match entered {
        Ok(_) => 0,
        Err(VmxUnavailable::Busy) => 2,
        Err(_) => 1,
    }
}

impl HostVmx for Linux {
    type VmxOperation<'a> = VmxOperation<'a>;

    fn probe() -> Result<(), VmxUnavailable> {
        let worst = AtomicU32::new(0);
        Self::run_on_all(&|| {
            worst.fetch_max(probe_here(), Ordering::Relaxed);
        });
        match PROBE.get(worst.into_inner() as usize) {
            Some(Some(reason)) => Err(*reason),
            _ => Ok(()),
        }
    }

    fn enter_vmx(irq: &IrqOff) -> Result<VmxOperation<'_>, VmxUnavailable> {
        let page = region(irq).ok_or(VmxUnavailable::Failed)?;
        // SAFETY: supervisor mode.
        let cr4 = unsafe { read_cr4() };
        if cr4 & CR4_VMXE != 0 {
            return Err(VmxUnavailable::Busy);
        }
        // SAFETY: supervisor mode with interrupts off; the value is put back here or by the guard. The region is this CPU's
        // and carries the revision identifier, which it only gets where VMX is allowed.
        unsafe {
            write_cr4(cr4 | CR4_VMXE);
            if vmxon(page.phys()).is_err() {
                write_cr4(cr4);
                return Err(VmxUnavailable::Failed);
            }
        }
        Ok(VmxOperation {
            cr4: cr4 as usize,
            irq: PhantomData,
        })
    }
}
