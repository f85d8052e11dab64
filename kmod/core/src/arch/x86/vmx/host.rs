// SPDX-License-Identifier: GPL-2.0
//! The host's side of a window: what VM exit loads, and what it leaves changed and has to be put back.

use super::instructions::CurrentVmcs;
use super::vcpu::SwitchedMsrs;
use super::vmcs::*;
use crate::arch::x86::msr::{self, rdmsr, wrmsr};
use crate::arch::x86::registers::*;
use crate::arch::x86::xsave::{xgetbv0, xsetbv0};
use core::arch::asm;

/// The host's registers that a window changes.
pub(super) struct HostRegisters {
    gdt: DescriptorTableRegister,
    idt: DescriptorTableRegister,
    ldtr: u16,
    selectors: [u16; 4],
    fs_base: u64,
    gs_base: u64,
    dr7: u64,
    debugctl: u64,
    xcr0: u64,
    msrs: SwitchedMsrs,
    has_tsc_aux: bool,
}

impl HostRegisters {
    /// Saves them and writes the host-state fields.
    ///
    /// # Safety
    ///
    /// Supervisor mode with interrupts off on the CPU that `vmcs` is current on. [`HostRegisters::restore`] must run on the
    /// same CPU before interrupts are on again.
    pub(super) unsafe fn save(vmcs: &CurrentVmcs, has_tsc_aux: bool) -> Self {
        // SAFETY: supervisor mode (the caller's obligation); these MSRs exist on every x86-64 CPU, IA32_TSC_AUX on those with
        // RDTSCP.
        let saved = unsafe {
            Self {
                gdt: sgdt(),
                idt: sidt(),
                ldtr: read_ldtr(),
                selectors: [read_ds(), read_es(), read_fs(), read_gs()],
                fs_base: rdmsr(msr::IA32_FS_BASE),
                gs_base: rdmsr(msr::IA32_GS_BASE),
                dr7: read_dr7(),
                debugctl: rdmsr(msr::IA32_DEBUGCTL),
                xcr0: xgetbv0(),
                msrs: SwitchedMsrs {
                    star: rdmsr(msr::IA32_STAR),
                    lstar: rdmsr(msr::IA32_LSTAR),
                    cstar: rdmsr(msr::IA32_CSTAR),
                    fmask: rdmsr(msr::IA32_FMASK),
                    kernel_gs_base: rdmsr(msr::IA32_KERNEL_GS_BASE),
                    tsc_aux: if has_tsc_aux {
                        rdmsr(msr::IA32_TSC_AUX)
                    } else {
                        0
                    },
                },
                has_tsc_aux,
            }
        };
        let tr = read_tr();
        // SAFETY: supervisor mode; `tr` is the task register's value. The MSRs exist on every x86-64 CPU.
        unsafe {
            vmcs.write(HOST_CR0, read_cr0());
            vmcs.write(HOST_CR3, read_cr3());
            vmcs.write(HOST_CR4, read_cr4());
            vmcs.write(HOST_TR_BASE, tss_base(&saved.gdt, tr));
            vmcs.write(HOST_PAT, rdmsr(msr::IA32_PAT));
            vmcs.write(HOST_EFER, rdmsr(msr::IA32_EFER));
            vmcs.write(HOST_SYSENTER_CS, rdmsr(msr::IA32_SYSENTER_CS));
            vmcs.write(HOST_SYSENTER_ESP, rdmsr(msr::IA32_SYSENTER_ESP));
            vmcs.write(HOST_SYSENTER_EIP, rdmsr(msr::IA32_SYSENTER_EIP));
        }
        // RPL and TI must be 0 in host selectors (SDM volume 3, 28.2.3); the data segments get the null selector here and
        // their own back in `restore`.
        vmcs.write(HOST_CS_SELECTOR, u64::from(read_cs()));
        vmcs.write(HOST_SS_SELECTOR, u64::from(read_ss()));
        for field in [
            HOST_DS_SELECTOR,
            HOST_ES_SELECTOR,
            HOST_FS_SELECTOR,
            HOST_GS_SELECTOR,
        ] {
            vmcs.write(field, 0);
        }
        vmcs.write(HOST_TR_SELECTOR, u64::from(tr));
        vmcs.write(HOST_FS_BASE, saved.fs_base);
        vmcs.write(HOST_GS_BASE, saved.gs_base);
        vmcs.write(HOST_GDTR_BASE, saved.gdt.base);
        vmcs.write(HOST_IDTR_BASE, saved.idt.base);
        saved
    }

    /// The host's XCR0.
    pub(super) const fn xcr0(&self) -> u64 {
        self.xcr0
    }

    /// Loads the guest's switched MSRs.
    ///
    /// # Safety
    ///
    /// Between [`HostRegisters::save`] and [`HostRegisters::restore`]; addresses in `guest` are canonical.
    pub(super) unsafe fn load_guest_msrs(&self, guest: &SwitchedMsrs) {
        // SAFETY: interrupts are off and nothing returns to userspace or executes SYSCALL before `restore`; the
        // values are acceptable by the caller's obligation.
        unsafe { switch_msrs(guest, self.has_tsc_aux) };
    }

    /// Puts everything back, and the part of the guest's state that it changed without an exit into `guest`.
    ///
    /// # Safety
    ///
    /// As for [`HostRegisters::save`], with its result, on the same CPU and in the same window.
    pub(super) unsafe fn restore(&self, guest: &mut SwitchedMsrs) {
        // SAFETY: all values were read from this CPU in `save`, so they are valid for it. Reloading FS or GS changes the
        // base, which is written right after it; interrupts are off, and an NMI's entry code determines the kernel's
        // GS base by itself.
        unsafe {
            guest.kernel_gs_base = rdmsr(msr::IA32_KERNEL_GS_BASE);
            switch_msrs(&self.msrs, self.has_tsc_aux);
            lgdt(&self.gdt);
            lidt(&self.idt);
            if self.ldtr != 0 {
                asm!("lldt {0:x}", in(reg) self.ldtr, options(nostack, preserves_flags));
            }
            let [ds, es, fs, gs] = self.selectors;
            if ds != 0 {
                asm!("mov ds, {0:x}", in(reg) ds, options(nostack, preserves_flags));
            }
            if es != 0 {
                asm!("mov es, {0:x}", in(reg) es, options(nostack, preserves_flags));
            }
            if fs != 0 {
                asm!("mov fs, {0:x}", in(reg) fs, options(nostack, preserves_flags));
                wrmsr(msr::IA32_FS_BASE, self.fs_base);
            }
            if gs != 0 {
                asm!("mov gs, {0:x}", in(reg) gs, options(nostack, preserves_flags));
                wrmsr(msr::IA32_GS_BASE, self.gs_base);
            }
            if self.debugctl != 0 {
                wrmsr(msr::IA32_DEBUGCTL, self.debugctl);
            }
            if self.dr7 != read_dr7() {
                write_dr7(self.dr7);
            }
            if xgetbv0() != self.xcr0 {
                xsetbv0(self.xcr0);
            }
        }
    }
}

/// # Safety
///
/// As for [`wrmsr`] with each of the values.
unsafe fn switch_msrs(msrs: &SwitchedMsrs, has_tsc_aux: bool) {
    // SAFETY: the caller's obligation.
    unsafe {
        wrmsr(msr::IA32_STAR, msrs.star);
        wrmsr(msr::IA32_LSTAR, msrs.lstar);
        wrmsr(msr::IA32_CSTAR, msrs.cstar);
        wrmsr(msr::IA32_FMASK, msrs.fmask);
        wrmsr(msr::IA32_KERNEL_GS_BASE, msrs.kernel_gs_base);
        if has_tsc_aux {
            wrmsr(msr::IA32_TSC_AUX, msrs.tsc_aux);
        }
    }
}
