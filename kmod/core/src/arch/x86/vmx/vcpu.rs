// SPDX-License-Identifier: GPL-2.0
//! A vCPU on VT-x: its VMCS and the state that the VMCS does not hold.

use super::capability::VmxCapability;
use super::entry::GeneralRegisters;
use crate::arch::x86::cpuid::GuestCpuid;
use crate::arch::x86::snapshot::{Changes, Exception, Snapshot};
use crate::arch::x86::xsave;
use core::sync::atomic::Ordering;
use pvmm_hostabi::{CpuId, Host, HostPage, OutOfMemory};

/// Memory-type range registers and the like, which are stored and have no effect: EPT decides the memory type.
#[derive(Debug, Clone, Copy, Default)]
pub struct StoredMsrs {
    /// IA32_MTRR_DEF_TYPE.
    pub mtrr_def_type: u64,
    /// The variable-range MTRRs: base and mask of each.
    pub mtrr_variable: [u64; 16],
    /// The fixed-range MTRRs in the order of their numbers: 250h, 258h, 259h, 268h to 26Fh.
    pub mtrr_fixed: [u64; 11],
    /// IA32_MISC_ENABLE.
    pub misc_enable: u64,
}

/// MSRs that the CPU does not switch at entry and exit: loaded for a window and put back after it.
#[derive(Debug, Clone, Copy, Default)]
pub struct SwitchedMsrs {
    /// IA32_STAR.
    pub star: u64,
    /// IA32_LSTAR.
    pub lstar: u64,
    /// IA32_CSTAR.
    pub cstar: u64,
    /// IA32_FMASK.
    pub fmask: u64,
    /// IA32_KERNEL_GS_BASE; the guest changes it without an exit.
    pub kernel_gs_base: u64,
    /// IA32_TSC_AUX.
    pub tsc_aux: u64,
}

/// A vCPU.
pub struct VmxVcpu<H: Host> {
    pub(super) capability: VmxCapability,
    pub(super) vmcs: H::Page,
    /// The VMCS region was never loaded.
    pub(super) fresh: bool,
    /// The fields that never change have been written.
    pub(super) configured: bool,
    pub(super) pml: H::Page,
    pub(super) msr_bitmap: H::Page,
    pub(super) xsave: H::Page,
    pub(super) vpid: u16,
    pub(super) last_cpu: Option<CpuId>,
    pub(super) flushed_epoch: Option<u64>,
    pub(super) primary: u32,
    pub(super) registers: GeneralRegisters,
    pub(super) cr2: u64,
    pub(super) dr: [u64; 4],
    pub(super) dr6: u64,
    pub(super) xcr0: u64,
    /// The XCR0 bits of the guest's CPUID.
    pub(super) allowed_xcr0: u64,
    /// The CR4 bits of the guest's CPUID.
    pub(super) allowed_cr4: u64,
    pub(super) switched: SwitchedMsrs,
    pub(super) stored: StoredMsrs,
    pub(super) tsc_adjust: u64,
    pub(super) nmi_pending: bool,
    pub(super) halted: bool,
    pub(super) wait_for_sipi: bool,
    pub(super) exception: Option<Exception>,
    /// An event whose delivery an exit interrupted: information, error code, instruction length.
    pub(super) reinject: Option<(u32, u32, u32)>,
    pub(super) snapshot: Snapshot,
    pub(super) changes: Changes,
    /// PDPTEs that were read from memory for the instruction that asked for them.
    pub(super) pdptes: Option<[u64; 4]>,
    /// The VMCS has no PDPTEs yet and must get some before the guest is entered.
    pub(super) needs_pdptes: bool,
    pub(super) cpuid: H::Box<GuestCpuid>,
    /// State to load into the VMCS when the next window opens.
    pub(super) incoming: Option<H::Box<pvmm_uapi::VcpuState>>,
    /// The TSC offset that the VMCS is to have, and the multiplier.
    pub(super) tsc_offset: u64,
    pub(super) tsc_multiplier: u64,
}

impl<H: Host> VmxVcpu<H> {
    /// A vCPU in the state after reset, with the given CPUID table. `number` is unique on the host and below 2^16 - 1.
    pub fn new(
        capability: VmxCapability,
        number: u16,
        cpuid: H::Box<GuestCpuid>,
    ) -> Result<Self, OutOfMemory> {
        let vmcs = H::page()?;
        vmcs.words()[0].store(u64::from(capability.revision()), Ordering::Relaxed);
        let xsave = H::page()?;
        xsave::reset(&xsave);
        let mut incoming = crate::arch::zeroed::<H, pvmm_uapi::VcpuState>()?;
        super::state::reset(&mut incoming);
        let mut vcpu = Self {
            primary: capability.primary,
            capability,
            vmcs,
            fresh: true,
            configured: false,
            pml: H::page()?,
            msr_bitmap: H::page()?,
            xsave,
            vpid: number + 1,
            last_cpu: None,
            flushed_epoch: None,
            registers: [0; 16],
            cr2: 0,
            dr: [0; 4],
            dr6: 0xffff_0ff0,
            xcr0: 1,
            allowed_xcr0: 1,
            allowed_cr4: 0,
            switched: SwitchedMsrs::default(),
            stored: StoredMsrs {
                misc_enable: super::msr_access::MISC_ENABLE_RESET,
                ..StoredMsrs::default()
            },
            tsc_adjust: 0,
            nmi_pending: false,
            halted: false,
            wait_for_sipi: false,
            exception: None,
            reinject: None,
            snapshot: Snapshot::default(),
            changes: Changes::default(),
            pdptes: None,
            needs_pdptes: false,
            incoming: Some(incoming),
            cpuid,
            tsc_offset: 0,
            tsc_multiplier: 0,
        };
        super::msr_access::fill_bitmap(&vcpu.msr_bitmap);
        vcpu.apply_cpuid();
        Ok(vcpu)
    }

    /// Takes another CPUID table.
    pub fn set_cpuid(&mut self, cpuid: H::Box<GuestCpuid>) {
        self.cpuid = cpuid;
        self.apply_cpuid();
    }

    fn apply_cpuid(&mut self) {
        self.allowed_xcr0 = self.cpuid.xcr0();
        self.allowed_cr4 = self.cpuid.cr4();
        // The CR4 mask depends on it.
        self.configured = false;
    }

    /// The CPUID table.
    pub fn cpuid(&self) -> &GuestCpuid {
        &self.cpuid
    }

    /// Places the guest's TSC: offset to add to the host's, scaled by `multiplier` (48 fraction bits; 0 for none).
    pub fn set_tsc(&mut self, offset: u64, multiplier: u64) {
        self.tsc_offset = offset;
        self.tsc_multiplier = multiplier;
    }

    /// IA32_TSC_ADJUST.
    pub const fn tsc_adjust(&self) -> u64 {
        self.tsc_adjust
    }

    /// Whether HLT stopped it.
    pub const fn is_halted(&self) -> bool {
        self.halted
    }

    /// Ends a halt.
    pub fn wake(&mut self) {
        self.halted = false;
    }

    /// Whether an NMI waits.
    pub const fn nmi_pending(&self) -> bool {
        self.nmi_pending
    }

    /// Makes an NMI pending.
    pub fn raise_nmi(&mut self) {
        self.nmi_pending = true;
    }

    /// Whether the last exit interrupted the delivery of an interrupt or exception.
    pub const fn is_delivering(&self) -> bool {
        self.reinject.is_some()
    }

    /// The registers at the end of the last window.
    pub const fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// A general-purpose register, RSP included. `index` is masked to 15.
    pub fn gpr(&self, index: u8) -> u64 {
        self.registers[usize::from(index & 15)]
    }

    /// Sets a general-purpose register. `index` is masked to 15.
    pub fn set_gpr(&mut self, index: u8, value: u64) {
        self.registers[usize::from(index & 15)] = value;
    }

    /// Sets the bytes of RAX that an IN of this width writes (SDM volume 2, IN: a 32-bit result clears the upper half).
    pub fn set_rax(&mut self, width: crate::iospace::Width, value: u64) {
        let rax = &mut self.registers[0];
        *rax = match width {
            crate::iospace::Width::W1 => (*rax & !0xff) | (value & 0xff),
            crate::iospace::Width::W2 => (*rax & !0xffff) | (value & 0xffff),
            _ => value & 0xffff_ffff,
        };
    }

    /// Gives the vCPU the PDPTEs of [`crate::arch::Exit::PageDirectoryPointers`].
    pub fn set_pdptes(&mut self, entries: [u64; 4]) {
        self.pdptes = Some(entries);
    }

    /// What to change when the next window opens.
    pub fn changes(&mut self) -> &mut Changes {
        &mut self.changes
    }
}
