// SPDX-License-Identifier: GPL-2.0
//! The fate of each MSR that a guest may touch.
//!
//! | MSRs | fate |
//! |---|---|
//! | FS, GS and kernel GS base, SYSENTER | the guest's own, no exit |
//! | STAR, LSTAR, CSTAR, FMASK, TSC_AUX | reads and writes exit; loaded for a window |
//! | EFER, PAT | exit; held in the VMCS |
//! | TSC, TSC_ADJUST | exit; an offset |
//! | APIC base, x2APIC, TSC deadline | the chipset's |
//! | MTRRs, MISC_ENABLE | stored, without effect |
//! | a few that report constants | constants |
//! | everything else | #GP |

use super::instructions::CurrentVmcs;
use super::vcpu::VmxVcpu;
use super::vmcs::*;
use crate::arch::x86::msr::*;
use crate::arch::x86::registers::*;
use core::sync::atomic::Ordering;
use pvmm_hostabi::{Host, HostPage};

/// IA32_MISC_ENABLE after reset: fast strings on, BTS and PEBS unavailable (SDM volume 4, table 2-2).
pub(super) const MISC_ENABLE_RESET: u64 = 1 | 1 << 11 | 1 << 12;
/// IA32_MTRRCAP: eight variable ranges, fixed ranges, write combining.
const MTRRCAP: u64 = 8 | 1 << 8 | 1 << 10;

/// An access that the guest gets #GP(0) for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refused;

/// Makes every MSR exit but those that the guest has for itself (SDM volume 3, 26.6.9).
pub(super) fn fill_bitmap<P: HostPage>(bitmap: &P) {
    for word in bitmap.words() {
        word.store(u64::MAX, Ordering::Relaxed);
    }
    for index in [
        IA32_SYSENTER_CS,
        IA32_SYSENTER_ESP,
        IA32_SYSENTER_EIP,
        IA32_FS_BASE,
        IA32_GS_BASE,
        IA32_KERNEL_GS_BASE,
    ] {
        // Reads of low and of high MSRs, then writes of low and of high MSRs, 1 KiB each.
        let quarter = if index >= 0xc000_0000 { 1 } else { 0 };
        let bit = (index & 0x1fff) as usize;
        for base in [quarter * 1024, (quarter + 2) * 1024] {
            if let Some(word) = bitmap.words().get((base * 8 + bit) / 64) {
                word.fetch_and(!(1 << (bit % 64)), Ordering::Relaxed);
            }
        }
    }
}

/// MSRs that live in a VMCS field.
pub(super) fn vmcs_field(index: u32) -> Option<Field> {
    Some(match index {
        IA32_SYSENTER_CS => GUEST_SYSENTER_CS,
        IA32_SYSENTER_ESP => GUEST_SYSENTER_ESP,
        IA32_SYSENTER_EIP => GUEST_SYSENTER_EIP,
        IA32_PAT => GUEST_PAT,
        _ => return None,
    })
}

/// The MSRs of a captured state, at most `MAX_MSRS`.
pub(super) fn saved_msrs() -> impl Iterator<Item = u32> {
    [
        IA32_SYSENTER_CS,
        IA32_SYSENTER_ESP,
        IA32_SYSENTER_EIP,
        IA32_PAT,
        IA32_STAR,
        IA32_LSTAR,
        IA32_CSTAR,
        IA32_FMASK,
        IA32_KERNEL_GS_BASE,
        IA32_TSC_AUX,
        IA32_TSC_ADJUST,
        IA32_MISC_ENABLE,
        IA32_MTRR_DEF_TYPE,
    ]
    .into_iter()
    .chain(IA32_MTRR_PHYSBASE0..IA32_MTRR_PHYSBASE0 + 16)
    .chain((0..11).map(fixed_mtrr))
}

/// The number of the `index`th fixed-range MTRR.
const fn fixed_mtrr(index: u32) -> u32 {
    match index {
        0 => IA32_MTRR_FIX64K_00000,
        1 => 0x258,
        2 => 0x259,
        _ => 0x268 + index - 3,
    }
}

fn fixed_mtrr_index(index: u32) -> Option<usize> {
    (0..11)
        .find(|&n| fixed_mtrr(n) == index)
        .map(|n| n as usize)
}

/// Whether each byte of IA32_PAT is a memory type (SDM volume 3, table 13-10).
fn is_valid_pat(value: u64) -> bool {
    value
        .to_le_bytes()
        .iter()
        .all(|&entry| matches!(entry, 0 | 1 | 4..=7))
}

impl<H: Host> VmxVcpu<H> {
    fn stored_mut(&mut self, index: u32) -> Option<&mut u64> {
        match index {
            IA32_STAR => Some(&mut self.switched.star),
            IA32_LSTAR => Some(&mut self.switched.lstar),
            IA32_CSTAR => Some(&mut self.switched.cstar),
            IA32_FMASK => Some(&mut self.switched.fmask),
            IA32_KERNEL_GS_BASE => Some(&mut self.switched.kernel_gs_base),
            IA32_TSC_AUX => Some(&mut self.switched.tsc_aux),
            IA32_TSC_ADJUST => Some(&mut self.tsc_adjust),
            IA32_MISC_ENABLE => Some(&mut self.stored.misc_enable),
            IA32_MTRR_DEF_TYPE => Some(&mut self.stored.mtrr_def_type),
            IA32_MTRR_PHYSBASE0..=0x20f => self
                .stored
                .mtrr_variable
                .get_mut((index - IA32_MTRR_PHYSBASE0) as usize),
            _ => self.stored.mtrr_fixed.get_mut(fixed_mtrr_index(index)?),
        }
    }

    /// An MSR of [`saved_msrs`] that is not a VMCS field.
    pub(super) fn saved_msr(&self, index: u32) -> u64 {
        match index {
            IA32_STAR => self.switched.star,
            IA32_LSTAR => self.switched.lstar,
            IA32_CSTAR => self.switched.cstar,
            IA32_FMASK => self.switched.fmask,
            IA32_KERNEL_GS_BASE => self.switched.kernel_gs_base,
            IA32_TSC_AUX => self.switched.tsc_aux,
            IA32_TSC_ADJUST => self.tsc_adjust,
            IA32_MISC_ENABLE => self.stored.misc_enable,
            IA32_MTRR_DEF_TYPE => self.stored.mtrr_def_type,
            IA32_MTRR_PHYSBASE0..=0x20f => self
                .stored
                .mtrr_variable
                .get((index - IA32_MTRR_PHYSBASE0) as usize)
                .copied()
                .unwrap_or(0),
            _ => fixed_mtrr_index(index)
                .and_then(|n| self.stored.mtrr_fixed.get(n).copied())
                .unwrap_or(0),
        }
    }

    /// Whether a captured MSR may be restored; its name if not.
    pub(super) fn check_saved_msr(&self, index: u32, value: u64) -> Result<(), &'static str> {
        let fits = match index {
            IA32_PAT => is_valid_pat(value),
            IA32_LSTAR | IA32_CSTAR | IA32_KERNEL_GS_BASE | IA32_SYSENTER_ESP
            | IA32_SYSENTER_EIP => is_canonical(value),
            IA32_FMASK | IA32_TSC_AUX => value >> 32 == 0,
            _ => true,
        };
        if !saved_msrs().any(|known| known == index) {
            return Err("an MSR that is not part of the state");
        }
        if !fits {
            return Err("the value of an MSR");
        }
        Ok(())
    }

    /// Takes a captured MSR that [`VmxVcpu::check_saved_msr`] let pass.
    pub(super) fn load_saved_msr(&mut self, index: u32, value: u64) {
        if let Some(stored) = self.stored_mut(index) {
            *stored = value;
        }
    }

    /// RDMSR of anything but the chipset's.
    pub(super) fn read_msr(&self, vmcs: &CurrentVmcs, index: u32) -> Result<u64, Refused> {
        if let Some(field) = vmcs_field(index) {
            return Ok(vmcs.read(field));
        }
        Ok(match index {
            IA32_TSC => self.guest_tsc(rdtsc()),
            IA32_EFER => vmcs.read(GUEST_EFER),
            IA32_FS_BASE => vmcs.read(GUEST_FS_BASE),
            IA32_GS_BASE => vmcs.read(GUEST_GS_BASE),
            // Locked without VMX or SGX.
            IA32_FEATURE_CONTROL => 1,
            IA32_MTRRCAP => MTRRCAP,
            IA32_PLATFORM_ID | IA32_MCG_CAP | PLATFORM_INFO | IA32_DEBUGCTL => 0,
            // The revision of the microcode is the host's affair; a high one keeps guests from wanting to update it.
            IA32_BIOS_SIGN_ID => 0xffff_ffff << 32,
            _ if saved_msrs().any(|known| known == index) => self.saved_msr(index),
            _ => return Err(Refused),
        })
    }

    /// WRMSR of anything but the chipset's. Returns whether the guest's TSC has moved.
    pub(super) fn write_msr(
        &mut self,
        vmcs: &CurrentVmcs,
        index: u32,
        value: u64,
    ) -> Result<bool, Refused> {
        match index {
            IA32_TSC => {
                let difference = value.wrapping_sub(self.guest_tsc(rdtsc()));
                self.tsc_adjust = self.tsc_adjust.wrapping_add(difference);
                return Ok(true);
            }
            IA32_TSC_ADJUST => {
                self.tsc_adjust = value;
                return Ok(true);
            }
            IA32_EFER => self.write_guest_efer(vmcs, value)?,
            IA32_BIOS_SIGN_ID | IA32_DEBUGCTL if value == 0 => {}
            IA32_MTRRCAP => return Err(Refused),
            _ => {
                self.check_saved_msr(index, value).map_err(|_| Refused)?;
                match vmcs_field(index) {
                    Some(field) => vmcs.write(field, value),
                    None => self.load_saved_msr(index, value),
                }
            }
        }
        Ok(false)
    }

    /// SDM volume 3, 2.2.1: LME can't change while paging is on, and LMA is not the guest's to write.
    fn write_guest_efer(&mut self, vmcs: &CurrentVmcs, value: u64) -> Result<(), Refused> {
        let old = vmcs.read(GUEST_EFER);
        let paging = super::state::guest_cr0(vmcs) & CR0_PG != 0;
        if value & !(EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE) != 0
            || (paging && (value ^ old) & EFER_LME != 0)
        {
            return Err(Refused);
        }
        self.write_efer(vmcs, (value & !EFER_LMA) | (old & EFER_LMA));
        Ok(())
    }

    /// The guest's TSC, IA32_TSC_ADJUST included, at the host's TSC `host`.
    pub(super) fn guest_tsc(&self, host: u64) -> u64 {
        let scaled = if self.tsc_multiplier == 0 {
            host
        } else {
            ((u128::from(host) * u128::from(self.tsc_multiplier)) >> 48) as u64
        };
        scaled
            .wrapping_add(self.tsc_offset)
            .wrapping_add(self.tsc_adjust)
    }

    /// Whether the switched MSRs changed by a write of this index must be loaded at once.
    pub(super) fn is_switched(index: u32) -> bool {
        matches!(
            index,
            IA32_STAR | IA32_LSTAR | IA32_CSTAR | IA32_FMASK | IA32_TSC_AUX
        )
    }
}
