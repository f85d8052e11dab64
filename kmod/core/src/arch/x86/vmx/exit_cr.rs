// SPDX-License-Identifier: GPL-2.0
//! Exits for control and debug registers and XSETBV (SDM volume 3, table 28-3 and 28-4).

use super::control_registers::{are_pdptes_valid, is_valid_xcr0, ControlRegisters};
use super::instructions::CurrentVmcs;
use super::state::{guest_cr0, guest_cr4, write_pdptes};
use super::vcpu::VmxVcpu;
use super::vmcs::*;
use crate::arch::x86::registers::*;
use crate::arch::x86::snapshot::Exception;
use crate::arch::x86::xsave::xsetbv0;
use crate::platform::Platform;
use pvmm_hostabi::Host;

/// Why an instruction is not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// It raises an exception.
    Raise(Exception),
    /// It loads the PDPTEs, which somebody has to read from memory first; then it comes again.
    NeedsPdptes,
}

impl From<Exception> for Stop {
    fn from(exception: Exception) -> Self {
        Self::Raise(exception)
    }
}

/// Instruction done, or why not.
pub(super) type Outcome = Result<(), Stop>;

/// Index of CS in the VMCS's segments.
const CS: u32 = 1;
/// Index of TR in the VMCS's segments.
const TR: u32 = 7;
/// Access rights: L.
const CODE_IS_LONG: u32 = 1 << 13;
/// Access rights: mask of the type.
const SEGMENT_TYPE: u32 = 0xf;
/// Access rights, type: busy 16-bit TSS.
const BUSY_16_BIT_TSS: u32 = 3;

const GP: Exception = Exception::GENERAL_PROTECTION;

impl<H: Host> VmxVcpu<H> {
    fn gpr_or_rsp(&self, vmcs: &CurrentVmcs, index: usize) -> u64 {
        if index == RSP {
            vmcs.read(GUEST_RSP)
        } else {
            self.registers[index & 15]
        }
    }

    /// The source operand of a MOV to a control or debug register: 64 bits in 64-bit mode, otherwise 32, whatever the
    /// rest of the register holds.
    fn operand(&self, vmcs: &CurrentVmcs, index: usize) -> u64 {
        let value = self.gpr_or_rsp(vmcs, index);
        if self.control_registers(vmcs).is_64_bit() {
            value
        } else {
            value & 0xffff_ffff
        }
    }

    fn set_gpr_or_rsp(&mut self, vmcs: &CurrentVmcs, index: usize, value: u64) {
        if index == RSP {
            vmcs.write(GUEST_RSP, value);
        } else {
            self.registers[index & 15] = value;
        }
    }

    /// A control-register access.
    pub(super) fn exit_cr_access(
        &mut self,
        vmcs: &CurrentVmcs,
        platform: &mut Platform<H>,
    ) -> Outcome {
        let qualification = vmcs.read(EXIT_QUALIFICATION);
        let register = (qualification >> 8 & 15) as usize;
        let operand = self.operand(vmcs, register);
        match (qualification >> 4 & 3, qualification & 15) {
            (0, 0) => self.set_cr0(vmcs, operand),
            (0, 4) => self.set_cr4(vmcs, operand),
            (0, 8) => {
                if operand > 15 {
                    return Err(GP.into());
                }
                platform.chipset_mut().set_cr8(operand);
                Ok(())
            }
            (1, 8) => {
                self.set_gpr_or_rsp(vmcs, register, platform.chipset().cr8());
                Ok(())
            }
            // CLTS
            (2, _) => self.set_cr0(vmcs, guest_cr0(vmcs) & !CR0_TS),
            // LMSW: PE can be set but not cleared.
            (3, _) => {
                let old = guest_cr0(vmcs);
                let word = qualification >> 16 & 15;
                self.set_cr0(vmcs, (old & !0xe) | word)
            }
            _ => Err(Exception::INVALID_OPCODE.into()),
        }
    }

    /// The registers that the checks of MOV to control registers look at.
    pub(super) fn control_registers(&self, vmcs: &CurrentVmcs) -> ControlRegisters {
        let rights = |index| vmcs.read32(GUEST_ES_ACCESS_RIGHTS.at(index));
        ControlRegisters {
            cr0: guest_cr0(vmcs),
            cr3: vmcs.read(GUEST_CR3),
            cr4: guest_cr4(vmcs),
            efer: vmcs.read(GUEST_EFER),
            code_is_long: rights(CS) & CODE_IS_LONG != 0,
            tss_is_16_bit: rights(TR) & SEGMENT_TYPE == BUSY_16_BIT_TSS,
        }
    }

    /// MOV to CR0 that changes a bit which is not the guest's own.
    fn set_cr0(&mut self, vmcs: &CurrentVmcs, value: u64) -> Outcome {
        let old = self.control_registers(vmcs);
        let new = old.with_cr0(value).map_err(|_| GP)?;
        self.take_control_registers(vmcs, &old, &new)
    }

    /// MOV to CR4 of bits that the guest may not flip by itself.
    fn set_cr4(&mut self, vmcs: &CurrentVmcs, value: u64) -> Outcome {
        let old = self.control_registers(vmcs);
        let new = old.with_cr4(value, self.allowed_cr4).map_err(|_| GP)?;
        self.take_control_registers(vmcs, &old, &new)
    }

    /// Puts control registers that passed the checks into effect, with what the processor does beside that.
    fn take_control_registers(
        &mut self,
        vmcs: &CurrentVmcs,
        old: &ControlRegisters,
        new: &ControlRegisters,
    ) -> Outcome {
        if new.loads_pdptes(old) {
            let pdptes = self.pdptes.ok_or(Stop::NeedsPdptes)?;
            if !are_pdptes_valid(&pdptes, self.cpuid.physical_address_bits().into()) {
                return Err(GP.into());
            }
            write_pdptes(vmcs, &pdptes);
        }
        if new.efer != old.efer {
            self.write_efer(vmcs, new.efer);
        }
        if new.cr0 != old.cr0 {
            self.write_cr0(vmcs, new.cr0);
        }
        if new.cr4 != old.cr4 {
            self.write_cr4(vmcs, new.cr4);
        }
        if new.invalidates_translations(old) {
            self.forget_translations();
        }
        Ok(())
    }

    /// MOV to or from a debug register: they are the guest's only inside a window, so that each access exits.
    pub(super) fn exit_dr_access(&mut self, vmcs: &CurrentVmcs) -> Outcome {
        let qualification = vmcs.read(EXIT_QUALIFICATION);
        let number = match (qualification & 7) as usize {
            4 | 5 if guest_cr4(vmcs) & (1 << 3) != 0 => {
                return Err(Exception::INVALID_OPCODE.into())
            }
            4 => 6,
            5 => 7,
            number => number,
        };
        let register = (qualification >> 8 & 15) as usize;
        if vmcs.read(GUEST_DR7) & (1 << 13) != 0 {
            // DR7.GD: general detect.
            vmcs.write(GUEST_DR7, vmcs.read(GUEST_DR7) & !(1 << 13));
            self.dr6 |= 1 << 13;
            return Err(Exception::DEBUG.into());
        }
        if qualification & (1 << 4) != 0 {
            let value = match number {
                6 => self.dr6,
                7 => vmcs.read(GUEST_DR7),
                n => self.dr[n & 3],
            };
            self.set_gpr_or_rsp(vmcs, register, value);
            return Ok(());
        }
        let value = self.operand(vmcs, register);
        match number {
            6 if value >> 32 != 0 => return Err(GP.into()),
            7 if value >> 32 != 0 => return Err(GP.into()),
            6 => self.dr6 = (value & 0xe00f) | 0xffff_0ff0,
            7 => vmcs.write(GUEST_DR7, (value & 0xffff_2bff) | 0x400),
            n => self.dr[n & 3] = value,
        }
        Ok(())
    }

    /// XSETBV (SDM volume 2): the CPU has checked CPL and CR4.OSXSAVE before the exit.
    pub(super) fn exit_xsetbv(&mut self) -> Outcome {
        let value = (self.registers[RDX] << 32) | (self.registers[RAX] & 0xffff_ffff);
        if self.registers[RCX] as u32 != 0 || !is_valid_xcr0(value, self.allowed_xcr0) {
            return Err(GP.into());
        }
        self.xcr0 = value;
        // SAFETY: the value is one that the host's CPU has (allowed_xcr0 is a subset of the host's XCR0) and valid by the
        // checks above; the window's end puts the host's back.
        unsafe { xsetbv0(value) };
        Ok(())
    }
}
