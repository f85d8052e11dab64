// SPDX-License-Identifier: GPL-2.0
//! What this CPU's VT-x can do (SDM volume 3, appendix A) and the control values that follow from it.

use super::vmcs::*;
use crate::arch::x86::msr::{self, rdmsr};
use pvmm_uapi::{FEATURE_EPT_AD, FEATURE_PML, FEATURE_TSC_SCALING, FEATURE_VPID};

/// A VT-x feature that pvmm needs and this CPU lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missing(pub &'static str);

/// The VT-x of this host, read once when the module loads.
#[derive(Debug, Clone, Copy)]
pub struct VmxCapability {
    /// IA32_VMX_BASIC.
    pub basic: u64,
    /// IA32_VMX_EPT_VPID_CAP.
    pub ept_vpid: u64,
    /// IA32_VMX_PROCBASED_CTLS2.
    pub secondary_allowed: u64,
    /// Pin-based controls of every vCPU.
    pub pin: u32,
    /// Primary processor-based controls of every vCPU.
    pub primary: u32,
    /// Secondary processor-based controls of every vCPU, without PML.
    pub secondary: u32,
    /// VM-exit controls of every vCPU.
    pub exit: u32,
    /// VM-entry controls of every vCPU, without the guest's mode.
    pub entry: u32,
    /// The preemption timer counts once per this power of two of TSC ticks.
    pub preemption_timer_shift: u32,
    /// Bits of CR0 that VMX operation fixes to 1, except PE and PG, which an unrestricted guest may clear.
    pub cr0_fixed_1: u64,
    /// Bits of CR4 that VMX operation fixes to 1.
    pub cr4_fixed_1: u64,
}

const EPT_WALK_LENGTH_4: u64 = 1 << 6;
const EPT_WRITE_BACK: u64 = 1 << 14;
const EPT_ACCESSED_DIRTY: u64 = 1 << 21;
const INVEPT_SINGLE: u64 = 1 << 25;
const INVEPT: u64 = 1 << 20;
const INVVPID: u64 = 1 << 32;
const INVVPID_SINGLE: u64 = 1 << 41;

/// Control bits that are wanted, if `capability` (allowed-0 low, allowed-1 high) lets them; plus those that it forces.
fn adjust(
    capability: u64,
    required: u32,
    optional: u32,
    name: &'static str,
) -> Result<u32, Missing> {
    let forced = capability as u32;
    let allowed = (capability >> 32) as u32;
    if required & !allowed != 0 {
        return Err(Missing(name));
    }
    Ok(forced | required | (optional & allowed))
}

impl VmxCapability {
    /// A VT-x with all features that requests ask for and no CPU behind it: for VMs that never open a window.
    pub const WITHOUT_CPU: Self = Self {
        basic: 1 << 55,
        ept_vpid: u64::MAX,
        secondary_allowed: u64::MAX << 32,
        pin: 0,
        primary: 0,
        secondary: u32::MAX,
        exit: 0,
        entry: 0,
        preemption_timer_shift: 0,
        cr0_fixed_1: 0,
        cr4_fixed_1: 0,
    };

    /// Reads the capability MSRs of this CPU.
    ///
    /// # Safety
    ///
    /// Supervisor mode on a CPU with VMX.
    pub unsafe fn read() -> Result<Self, Missing> {
        // SAFETY: IA32_VMX_BASIC exists on every CPU with VMX.
        let basic = unsafe { rdmsr(msr::IA32_VMX_BASIC) };
        if basic & (1 << 55) == 0 {
            return Err(Missing("true VMX controls (IA32_VMX_BASIC bit 55)"));
        }
        // SAFETY: bit 55 of IA32_VMX_BASIC promises the four "true" MSRs; MISC and the FIXED registers exist
        // with VMX.
        let (pin, primary, exit, entry, misc, cr0_fixed, cr4_fixed) = unsafe {
            (
                rdmsr(msr::IA32_VMX_TRUE_PINBASED_CTLS),
                rdmsr(msr::IA32_VMX_TRUE_PROCBASED_CTLS),
                rdmsr(msr::IA32_VMX_TRUE_EXIT_CTLS),
                rdmsr(msr::IA32_VMX_TRUE_ENTRY_CTLS),
                rdmsr(msr::IA32_VMX_MISC),
                rdmsr(msr::IA32_VMX_CR0_FIXED0),
                rdmsr(msr::IA32_VMX_CR4_FIXED0),
            )
        };
        let primary = adjust(
            primary,
            PROC_TSC_OFFSETTING
                | PROC_HLT
                | PROC_MWAIT
                | PROC_RDPMC
                | PROC_MOV_DR
                | PROC_CR8_LOAD
                | PROC_CR8_STORE
                | PROC_IO_BITMAPS
                | PROC_MSR_BITMAP
                | PROC_MONITOR
                | PROC_SECONDARY,
            0,
            "primary processor-based controls",
        )? & !(PROC_CR3_LOAD | PROC_CR3_STORE);
        // SAFETY: the secondary controls are allowed (checked above), so their MSR exists.
        let secondary_allowed = unsafe { rdmsr(msr::IA32_VMX_PROCBASED_CTLS2) };
        let secondary = adjust(secondary_allowed, SECONDARY_EPT, 0, "EPT")
            .and_then(|_| {
                adjust(
                    secondary_allowed,
                    SECONDARY_UNRESTRICTED,
                    0,
                    "unrestricted guest",
                )
            })
            .and_then(|_| {
                adjust(
                    secondary_allowed,
                    SECONDARY_EPT | SECONDARY_UNRESTRICTED | SECONDARY_WBINVD,
                    SECONDARY_VPID | SECONDARY_RDTSCP | SECONDARY_INVPCID,
                    "WBINVD exiting",
                )
            })?;
        // SAFETY: EPT is allowed (checked above), so IA32_VMX_EPT_VPID_CAP exists.
        let ept_vpid = unsafe { rdmsr(msr::IA32_VMX_EPT_VPID_CAP) };
        for (bits, name) in [
            (EPT_WALK_LENGTH_4, "EPT with four levels"),
            (EPT_WRITE_BACK, "write-back EPT structures"),
            (EPT_ACCESSED_DIRTY, "EPT accessed and dirty flags"),
            (INVEPT | INVEPT_SINGLE, "single-context INVEPT"),
        ] {
            if ept_vpid & bits != bits {
                return Err(Missing(name));
            }
        }
        if secondary_allowed >> 32 & u64::from(SECONDARY_PML) == 0 {
            return Err(Missing("page-modification logging"));
        }
        let has_invvpid = ept_vpid & (INVVPID | INVVPID_SINGLE) == INVVPID | INVVPID_SINGLE;
        Ok(Self {
            basic,
            ept_vpid,
            secondary_allowed,
            pin: adjust(
                pin,
                PIN_EXTERNAL_INTERRUPT | PIN_NMI | PIN_VIRTUAL_NMI | PIN_PREEMPTION_TIMER,
                0,
                "virtual NMIs or the VMX-preemption timer",
            )?,
            primary,
            secondary: if has_invvpid {
                secondary
            } else {
                secondary & !SECONDARY_VPID
            },
            exit: adjust(
                exit,
                EXIT_HOST_64
                    | EXIT_SAVE_DEBUG
                    | EXIT_SAVE_PAT
                    | EXIT_LOAD_PAT
                    | EXIT_SAVE_EFER
                    | EXIT_LOAD_EFER,
                0,
                "VM-exit controls for PAT and EFER",
            )?,
            entry: adjust(
                entry,
                ENTRY_LOAD_DEBUG | ENTRY_LOAD_PAT | ENTRY_LOAD_EFER,
                0,
                "VM-entry controls for PAT and EFER",
            )?,
            preemption_timer_shift: (misc & 0x1f) as u32,
            cr0_fixed_1: cr0_fixed & !0x8000_0001,
            cr4_fixed_1: cr4_fixed,
        })
    }

    /// Whether VPIDs are used.
    pub const fn has_vpid(&self) -> bool {
        self.secondary & SECONDARY_VPID != 0
    }

    /// Whether RDTSCP and RDPID work in the guest.
    pub const fn has_rdtscp(&self) -> bool {
        self.secondary & SECONDARY_RDTSCP != 0
    }

    /// Whether INVPCID works in the guest.
    pub const fn has_invpcid(&self) -> bool {
        self.secondary & SECONDARY_INVPCID != 0
    }

    /// Whether the guest's TSC can run at another rate than the host's.
    pub const fn has_tsc_scaling(&self) -> bool {
        self.secondary_allowed >> 32 & SECONDARY_TSC_SCALING as u64 != 0
    }

    /// The revision identifier that VMXON and VMCS regions start with.
    pub const fn revision(&self) -> u32 {
        self.basic as u32 & 0x7fff_ffff
    }

    /// `FEATURE_*` bits of the ioctl ABI.
    pub const fn features(&self) -> u64 {
        let mut features = FEATURE_PML | FEATURE_EPT_AD;
        if self.has_vpid() {
            features |= FEATURE_VPID;
        }
        if self.has_tsc_scaling() {
            features |= FEATURE_TSC_SCALING;
        }
        features
    }
}
