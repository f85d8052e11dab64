// SPDX-License-Identifier: GPL-2.0
//! The VMX instructions (SDM volume 3, chapter 32).

use super::vmcs::Field;
use core::arch::asm;
use core::marker::PhantomData;
use pvmm_hostabi::Hpa;

/// A VMX instruction reported VMfail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VmFail;

fn check(failed: u8) -> Result<(), VmFail> {
    if failed == 0 {
        Ok(())
    } else {
        Err(VmFail)
    }
}

/// VMXON.
///
/// # Safety
///
/// CR4.VMXE set, IA32_FEATURE_CONTROL allows VMX outside SMX, interrupts off; `region` is a page that is used for nothing
/// else until VMXOFF and starts with the VMCS revision identifier. Outside VMX operation (the instruction faults
/// otherwise).
pub unsafe fn vmxon(region: Hpa) -> Result<(), VmFail> {
    let failed: u8;
    // SAFETY: the caller's obligations are the instruction's conditions.
    unsafe {
        asm!("vmxon [{}]", "setbe {}", in(reg) &region.0, out(reg_byte) failed, options(nostack))
    };
    check(failed)
}

/// VMXOFF.
///
/// # Safety
///
/// In VMX root operation, and no VMCS that is still needed is active on this CPU.
pub unsafe fn vmxoff() -> Result<(), VmFail> {
    let failed: u8;
    // SAFETY: the caller's obligations are the instruction's conditions.
    unsafe { asm!("vmxoff", "setbe {}", out(reg_byte) failed, options(nostack)) };
    check(failed)
}

/// VMCLEAR: writes the VMCS back to memory and makes it inactive.
///
/// # Safety
///
/// In VMX root operation; `vmcs` is a VMCS region.
pub unsafe fn vmclear(vmcs: Hpa) -> Result<(), VmFail> {
    let failed: u8;
    // SAFETY: the caller's obligations are the instruction's conditions.
    unsafe {
        asm!("vmclear [{}]", "setbe {}", in(reg) &vmcs.0, out(reg_byte) failed, options(nostack))
    };
    check(failed)
}

/// INVEPT, single-context: drops all translations that were derived from `eptp`.
///
/// # Safety
///
/// In VMX root operation on a CPU with single-context INVEPT.
pub unsafe fn invept(eptp: u64) -> Result<(), VmFail> {
    let descriptor = [eptp, 0];
    let failed: u8;
    // SAFETY: the descriptor is 16 bytes with the reserved half zero; the rest is the caller's obligation.
    unsafe {
        asm!("invept {}, [{}]", "setbe {}", in(reg) 1u64, in(reg) &descriptor, out(reg_byte) failed,
             options(nostack));
    }
    check(failed)
}

/// INVVPID, single-context: drops all linear translations of `vpid`.
///
/// # Safety
///
/// In VMX root operation on a CPU with single-context INVVPID; `vpid` is not 0.
pub unsafe fn invvpid(vpid: u16) -> Result<(), VmFail> {
    let descriptor = [u64::from(vpid), 0];
    let failed: u8;
    // SAFETY: the descriptor is 16 bytes with the reserved part zero; the rest is the caller's obligation.
    unsafe {
        asm!("invvpid {}, [{}]", "setbe {}", in(reg) 1u64, in(reg) &descriptor, out(reg_byte) failed,
             options(nostack));
    }
    check(failed)
}

/// The VMCS that is current on this CPU. Lives inside a window, can't leave its CPU, and makes the VMCS inactive when
/// it is dropped. Because it is evidence that a VMCS is current, reading and writing fields through it is safe; what
/// the fields make the CPU do is the concern of the entry.
pub struct CurrentVmcs {
    region: Hpa,
    not_send: PhantomData<*const ()>,
}

impl CurrentVmcs {
    /// VMCLEAR if `fresh`, then VMPTRLD.
    ///
    /// # Safety
    ///
    /// In VMX root operation with interrupts off until the value is dropped; `region` is a VMCS region with the revision
    /// identifier that no other CPU has active. `fresh` must be set for a region that was never loaded.
    pub unsafe fn load(region: Hpa, fresh: bool) -> Result<Self, VmFail> {
        if fresh {
            // SAFETY: in VMX root operation; the region is the caller's.
            unsafe { vmclear(region)? };
        }
        let failed: u8;
        // SAFETY: the caller's obligations are the instruction's conditions.
        unsafe {
            asm!("vmptrld [{}]", "setbe {}", in(reg) &region.0, out(reg_byte) failed, options(nostack))
        };
        check(failed)?;
        Ok(Self {
            region,
            not_send: PhantomData,
        })
    }

    /// VMREAD. A field that this CPU does not have reads as 0.
    pub(super) fn read(&self, field: Field) -> u64 {
        let mut value = 0u64;
        // SAFETY: a VMCS is current (the type's invariant); an unsupported field makes VMREAD fail without effect.
        unsafe {
            asm!("vmread {}, {}", inout(reg) value, in(reg) u64::from(field.0), options(nostack, nomem));
        }
        value
    }

    /// VMREAD of a field of at most 32 bits.
    pub(super) fn read32(&self, field: Field) -> u32 {
        self.read(field) as u32
    }

    /// VMWRITE. A field that this CPU does not have is left alone: the controls that would use it are then off.
    pub(super) fn write(&self, field: Field, value: u64) {
        // SAFETY: a VMCS is current (the type's invariant); VMWRITE changes nothing but it.
        unsafe {
            asm!("vmwrite {}, {}", in(reg) u64::from(field.0), in(reg) value, options(nostack));
        }
    }
}

impl Drop for CurrentVmcs {
    fn drop(&mut self) {
        // SAFETY: still in VMX root operation (the constructor's contract), and the region is the one that was
        // loaded. VMCLEAR of a loaded region cannot fail.
        let cleared = unsafe { vmclear(self.region) };
        debug_assert!(cleared.is_ok());
    }
}
