// SPDX-License-Identifier: GPL-2.0
//! A vCPU's architectural state: from the VMCS and the fields beside it to the ABI's form and back.

use super::control_registers::is_valid_xcr0;
use super::instructions::CurrentVmcs;
use super::msr_access::saved_msrs;
use super::vcpu::VmxVcpu;
use super::vmcs::*;
use crate::arch::x86::msr::IA32_PAT;
use crate::arch::x86::registers::*;
use crate::arch::x86::xsave;
use pvmm_hostabi::{Gpa, Host};
use pvmm_uapi::{
    DescriptorTable, MsrEntry, Segment, VcpuState, ACTIVITY_ACTIVE, ACTIVITY_HLT,
    ACTIVITY_WAIT_FOR_SIPI, BLOCKING_BY_MOV_SS, BLOCKING_BY_NMI, BLOCKING_BY_STI,
};

/// State that VM entry, or an instruction of the monitor, would refuse: the name of the field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidVcpuState(pub &'static str);

/// Interruptibility bits that a vCPU may be restored with.
const INTERRUPTIBILITY: u32 = BLOCKING_BY_STI | BLOCKING_BY_MOV_SS | BLOCKING_BY_NMI;

/// Segments in the order of the VMCS fields.
pub(super) fn read_segment(vmcs: &CurrentVmcs, index: u32) -> Segment {
    Segment {
        selector: vmcs.read(GUEST_ES_SELECTOR.at(index)) as u16,
        base: vmcs.read(GUEST_ES_BASE.at(index)),
        limit: vmcs.read32(GUEST_ES_LIMIT.at(index)),
        access_rights: vmcs.read32(GUEST_ES_ACCESS_RIGHTS.at(index)),
        reserved: [0; 3],
    }
}

fn write_segment(vmcs: &CurrentVmcs, index: u32, segment: &Segment) {
    vmcs.write(GUEST_ES_SELECTOR.at(index), u64::from(segment.selector));
    vmcs.write(GUEST_ES_BASE.at(index), segment.base);
    vmcs.write(GUEST_ES_LIMIT.at(index), u64::from(segment.limit));
    vmcs.write(
        GUEST_ES_ACCESS_RIGHTS.at(index),
        u64::from(segment.access_rights),
    );
}

/// CR0 as the guest sees it.
pub(super) fn guest_cr0(vmcs: &CurrentVmcs) -> u64 {
    let mask = vmcs.read(CR0_GUEST_HOST_MASK);
    (vmcs.read(GUEST_CR0) & !mask) | (vmcs.read(CR0_READ_SHADOW) & mask)
}

/// CR4 as the guest sees it.
pub(super) fn guest_cr4(vmcs: &CurrentVmcs) -> u64 {
    let mask = vmcs.read(CR4_GUEST_HOST_MASK);
    (vmcs.read(GUEST_CR4) & !mask) | (vmcs.read(CR4_READ_SHADOW) & mask)
}

/// Where PAE paging has its four PDPTEs (SDM volume 3, 5.4.1).
pub(super) const fn pdpt(cr3: u64) -> Gpa {
    Gpa(cr3 & 0xffff_ffe0)
}

/// Writes the PDPTEs that VM entry loads for PAE paging.
pub(super) fn write_pdptes(vmcs: &CurrentVmcs, entries: &[u64; 4]) {
    for (index, entry) in (0..).zip(entries) {
        vmcs.write(GUEST_PDPTE0.at(index), *entry);
    }
}

/// IA32_PAT after reset (SDM volume 3, 13.12.4).
const PAT_RESET: u64 = 0x0007_0406_0007_0406;

/// Fills a zeroed state with that after a hardware reset (SDM volume 3, table 11-1).
pub(super) fn reset(state: &mut VcpuState) {
    let segment = |selector, base, access_rights| Segment {
        base,
        limit: 0xffff,
        access_rights,
        selector,
        reserved: [0; 3],
    };
    let table = DescriptorTable {
        base: 0,
        limit: 0xffff,
        reserved: 0,
    };
    state.rip = 0xfff0;
    state.rflags = RFLAGS_FIXED;
    state.cr0 = CR0_CD | CR0_NW | CR0_ET;
    state.dr6 = 0xffff_0ff0;
    state.dr7 = 0x400;
    state.xcr0 = 1;
    state.segments = [segment(0, 0, 0x93); 8];
    state.segments[1] = segment(0xf000, 0xffff_0000, 0x9b);
    state.segments[6] = segment(0, 0, 0x82);
    state.segments[7] = segment(0, 0, 0x8b);
    state.gdtr = table;
    state.idtr = table;
    state.msr_count = 1;
    state.msrs[0] = MsrEntry {
        index: IA32_PAT,
        reserved: 0,
        value: PAT_RESET,
    };
}

impl<H: Host> VmxVcpu<H> {
    /// CR0 for the guest: what VMX operation fixes, without the cache-disabling bits, which would slow the whole CPU.
    pub(super) fn write_cr0(&self, vmcs: &CurrentVmcs, value: u64) {
        vmcs.write(CR0_READ_SHADOW, value);
        let real = (value | self.capability.cr0_fixed_1 | CR0_NE | CR0_ET) & !(CR0_CD | CR0_NW);
        vmcs.write(GUEST_CR0, real);
    }

    /// CR4 for the guest: VMXE is on behind its back, and MCE is the host's, whose machine checks would otherwise shut
    /// the processor down.
    pub(super) fn write_cr4(&self, vmcs: &CurrentVmcs, value: u64) {
        vmcs.write(CR4_READ_SHADOW, value);
        // SAFETY: a VMCS is current only in VMX operation, hence in supervisor mode.
        let host = unsafe { read_cr4() } & CR4_MCE;
        let real = (value & !CR4_MCE) | host | self.capability.cr4_fixed_1 | CR4_VMXE;
        vmcs.write(GUEST_CR4, real);
    }

    /// Sets EFER and the entry control that must agree with it.
    pub(super) fn write_efer(&self, vmcs: &CurrentVmcs, value: u64) {
        vmcs.write(GUEST_EFER, value);
        let mode = if value & EFER_LMA != 0 {
            ENTRY_IA32E
        } else {
            0
        };
        vmcs.write(ENTRY_CONTROLS, u64::from(self.capability.entry | mode));
    }

    /// Checks what can be checked without the CPU; VM entry checks the rest.
    pub fn check_state(&self, state: &VcpuState) -> Result<(), InvalidVcpuState> {
        let canonical = [
            (state.rip, "RIP"),
            (state.gdtr.base, "GDTR base"),
            (state.idtr.base, "IDTR base"),
        ];
        for (value, name) in canonical {
            if !is_canonical(value) {
                return Err(InvalidVcpuState(name));
            }
        }
        if state.cr4 & !self.allowed_cr4 != 0 {
            return Err(InvalidVcpuState("CR4"));
        }
        if state.cr0 & !CR0_DEFINED != 0 || state.cr0 & (CR0_PG | CR0_PE) == CR0_PG {
            return Err(InvalidVcpuState("CR0"));
        }
        if state.efer & !(EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE) != 0 {
            return Err(InvalidVcpuState("IA32_EFER"));
        }
        if !is_valid_xcr0(state.xcr0, self.allowed_xcr0) {
            return Err(InvalidVcpuState("XCR0"));
        }
        if state.dr7 >> 32 != 0 || state.dr6 >> 32 != 0 {
            return Err(InvalidVcpuState("DR6 or DR7"));
        }
        if state.interruptibility & !INTERRUPTIBILITY != 0 {
            return Err(InvalidVcpuState("interruptibility"));
        }
        if state.activity > ACTIVITY_WAIT_FOR_SIPI {
            return Err(InvalidVcpuState("activity"));
        }
        if state.event & EVENT_VALID != 0 && state.event & 0x7fff_f000 != 0 {
            return Err(InvalidVcpuState("event"));
        }
        if state.cr8 > 15 {
            return Err(InvalidVcpuState("CR8"));
        }
        for entry in Self::msrs(state)? {
            self.check_saved_msr(entry.index, entry.value)
                .map_err(InvalidVcpuState)?;
        }
        if !xsave::is_valid_image(&state.xsave, self.allowed_xcr0) {
            return Err(InvalidVcpuState("XSAVE image"));
        }
        Ok(())
    }

    fn msrs(state: &VcpuState) -> Result<&[MsrEntry], InvalidVcpuState> {
        state
            .msrs
            .get(..state.msr_count as usize)
            .ok_or(InvalidVcpuState("MSR count"))
    }

    /// Takes a new state, which the next window loads. Nothing changes if it is refused.
    pub fn set_state(&mut self, state: H::Box<VcpuState>) -> Result<(), InvalidVcpuState> {
        self.check_state(&state)?;
        if !xsave::load_image(&self.xsave, &state.xsave, self.allowed_xcr0) {
            return Err(InvalidVcpuState("XSAVE image"));
        }
        for entry in Self::msrs(&state)? {
            self.load_saved_msr(entry.index, entry.value);
        }
        self.registers = state.gpr;
        self.cr2 = state.cr2;
        self.dr = state.dr;
        self.dr6 = state.dr6;
        self.xcr0 = state.xcr0;
        self.nmi_pending = state.nmi_pending != 0;
        self.halted = state.activity == ACTIVITY_HLT;
        self.wait_for_sipi = state.activity == ACTIVITY_WAIT_FOR_SIPI;
        self.exception = None;
        self.reinject = (state.event & EVENT_VALID != 0).then_some((
            state.event,
            state.event_error_code,
            state.event_instruction_length,
        ));
        self.changes = Default::default();
        // What a vCPU that is restored halted can be woken by, before its first window.
        self.snapshot.rflags = state.rflags;
        self.incoming = Some(state);
        Ok(())
    }

    /// Writes a state that [`VmxVcpu::set_state`] took to the VMCS.
    pub(super) fn load_incoming(&mut self, vmcs: &CurrentVmcs) {
        let Some(state) = self.incoming.take() else {
            return;
        };
        self.write_cr0(vmcs, state.cr0);
        self.write_cr4(vmcs, state.cr4);
        self.write_efer(vmcs, state.efer);
        vmcs.write(GUEST_CR3, state.cr3);
        self.needs_pdptes = self.control_registers(vmcs).has_pdptes();
        vmcs.write(GUEST_DR7, state.dr7);
        for (index, segment) in state.segments.iter().enumerate() {
            write_segment(vmcs, index as u32, segment);
        }
        vmcs.write(GUEST_GDTR_BASE, state.gdtr.base);
        vmcs.write(GUEST_GDTR_LIMIT, u64::from(state.gdtr.limit));
        vmcs.write(GUEST_IDTR_BASE, state.idtr.base);
        vmcs.write(GUEST_IDTR_LIMIT, u64::from(state.idtr.limit));
        vmcs.write(GUEST_RIP, state.rip);
        vmcs.write(GUEST_RSP, state.gpr[RSP]);
        vmcs.write(GUEST_RFLAGS, state.rflags | RFLAGS_FIXED);
        vmcs.write(GUEST_INTERRUPTIBILITY, u64::from(state.interruptibility));
        vmcs.write(GUEST_PENDING_DEBUG, state.pending_debug);
        vmcs.write(GUEST_ACTIVITY, 0);
        vmcs.write(ENTRY_INTERRUPTION_INFORMATION, 0);
        vmcs.write(GUEST_DEBUGCTL, 0);
        for entry in state.msrs.iter().take(state.msr_count as usize) {
            if let Some(field) = super::msr_access::vmcs_field(entry.index) {
                vmcs.write(field, entry.value);
            }
        }
    }

    /// Reads the state. CR8 and the APIC are the chipset's, and left alone.
    pub(super) fn save_state(&self, vmcs: &CurrentVmcs, state: &mut VcpuState) {
        state.gpr = self.registers;
        state.gpr[RSP] = vmcs.read(GUEST_RSP);
        state.rip = vmcs.read(GUEST_RIP);
        state.rflags = vmcs.read(GUEST_RFLAGS);
        state.cr0 = guest_cr0(vmcs);
        state.cr2 = self.cr2;
        state.cr3 = vmcs.read(GUEST_CR3);
        state.cr4 = guest_cr4(vmcs);
        state.dr = self.dr;
        state.dr6 = self.dr6;
        state.dr7 = vmcs.read(GUEST_DR7);
        state.efer = vmcs.read(GUEST_EFER);
        state.xcr0 = self.xcr0;
        for (index, segment) in state.segments.iter_mut().enumerate() {
            *segment = read_segment(vmcs, index as u32);
        }
        state.gdtr.base = vmcs.read(GUEST_GDTR_BASE);
        state.gdtr.limit = vmcs.read32(GUEST_GDTR_LIMIT);
        state.idtr.base = vmcs.read(GUEST_IDTR_BASE);
        state.idtr.limit = vmcs.read32(GUEST_IDTR_LIMIT);
        (
            state.event,
            state.event_error_code,
            state.event_instruction_length,
        ) = self.reinject.unwrap_or_default();
        state.interruptibility = vmcs.read32(GUEST_INTERRUPTIBILITY) & INTERRUPTIBILITY;
        state.activity = if self.wait_for_sipi {
            ACTIVITY_WAIT_FOR_SIPI
        } else if self.halted {
            ACTIVITY_HLT
        } else {
            ACTIVITY_ACTIVE
        };
        state.nmi_pending = u32::from(self.nmi_pending);
        state.pending_debug = vmcs.read(GUEST_PENDING_DEBUG);
        let mut count = 0;
        for (place, index) in state.msrs.iter_mut().zip(saved_msrs()) {
            place.index = index;
            place.value = match super::msr_access::vmcs_field(index) {
                Some(field) => vmcs.read(field),
                None => self.saved_msr(index),
            };
            count += 1;
        }
        state.msr_count = count;
        xsave::save_image(&self.xsave, &mut state.xsave);
    }
}
