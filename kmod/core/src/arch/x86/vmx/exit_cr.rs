// SPDX-License-Identifier: GPL-2.0
//! Exits for control and debug registers and XSETBV (SDM volume 3, table 28-3 and 28-4).

use super::instructions::CurrentVmcs;
use super::state::{guest_cr0, guest_cr4};
use super::vcpu::VmxVcpu;
use super::vmcs::*;
use crate::arch::x86::registers::*;
use crate::arch::x86::snapshot::Exception;
use crate::arch::x86::xsave::xsetbv0;
use crate::platform::Platform;
use pvmm_hostabi::Host;

/// Instruction done, or the exception that it raises.
pub(super) type Outcome = Result<(), Exception>;

const GP: Exception = Exception::GENERAL_PROTECTION;

impl<H: Host> VmxVcpu<H> {
    fn gpr_or_rsp(&self, vmcs: &CurrentVmcs, index: usize) -> u64 {
        if index == RSP {
            vmcs.read(GUEST_RSP)
        } else {
            self.registers[index & 15]
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
        match (qualification >> 4 & 3, qualification & 15) {
            (0, 0) => self.set_cr0(vmcs, self.gpr_or_rsp(vmcs, register)),
            (0, 4) => self.set_cr4(vmcs, self.gpr_or_rsp(vmcs, register)),
            (0, 8) => {
                let value = self.gpr_or_rsp(vmcs, register);
                if value > 15 {
                    return Err(GP);
                }
                platform.chipset_mut().set_cr8(value);
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
            _ => Err(Exception::INVALID_OPCODE),
        }
    }

    /// MOV to CR0 with the checks of SDM volume 3, 2.5, and the switch of long mode of 11.8.5.
    fn set_cr0(&mut self, vmcs: &CurrentVmcs, value: u64) -> Outcome {
        let value = value | CR0_ET;
        let old = guest_cr0(vmcs);
        let cr4 = guest_cr4(vmcs);
        let mut efer = vmcs.read(GUEST_EFER);
        if value & !CR0_DEFINED != 0
            || value & (CR0_PG | CR0_PE) == CR0_PG
            || value & (CR0_CD | CR0_NW) == CR0_NW
            || (value & CR0_PG == 0 && cr4 & CR4_PCIDE != 0)
        {
            return Err(GP);
        }
        if (value ^ old) & CR0_PG != 0 {
            if value & CR0_PG != 0 && efer & EFER_LME != 0 {
                if cr4 & CR4_PAE == 0 {
                    return Err(GP);
                }
                efer |= EFER_LMA;
            } else {
                efer &= !EFER_LMA;
            }
            self.write_efer(vmcs, efer);
        }
        self.write_cr0(vmcs, value);
        Ok(())
    }

    /// MOV to CR4 of bits that the guest may not flip by itself.
    fn set_cr4(&mut self, vmcs: &CurrentVmcs, value: u64) -> Outcome {
        let old = guest_cr4(vmcs);
        let efer = vmcs.read(GUEST_EFER);
        let long_mode = efer & EFER_LMA != 0;
        if value & !self.allowed_cr4 != 0
            || (long_mode && value & CR4_PAE == 0)
            || (value & CR4_PCIDE != 0 && !long_mode)
            || (value & !old & CR4_PCIDE != 0 && vmcs.read(GUEST_CR3) & 0xfff != 0)
        {
            return Err(GP);
        }
        self.write_cr4(vmcs, value);
        Ok(())
    }

    /// MOV to or from a debug register: they are the guest's only inside a window, so that each access exits.
    pub(super) fn exit_dr_access(&mut self, vmcs: &CurrentVmcs) -> Outcome {
        let qualification = vmcs.read(EXIT_QUALIFICATION);
        let number = match (qualification & 7) as usize {
            4 | 5 if guest_cr4(vmcs) & (1 << 3) != 0 => return Err(Exception::INVALID_OPCODE),
            4 => 6,
            5 => 7,
            number => number,
        };
        let register = (qualification >> 8 & 15) as usize;
        if vmcs.read(GUEST_DR7) & (1 << 13) != 0 {
            // DR7.GD: general detect.
            vmcs.write(GUEST_DR7, vmcs.read(GUEST_DR7) & !(1 << 13));
            self.dr6 |= 1 << 13;
            return Err(Exception::DEBUG);
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
        let value = self.gpr_or_rsp(vmcs, register);
        match number {
            6 if value >> 32 != 0 => return Err(GP),
            7 if value >> 32 != 0 => return Err(GP),
            6 => self.dr6 = (value & 0xe00f) | 0xffff_0ff0,
            7 => vmcs.write(GUEST_DR7, (value & 0xffff_2bff) | 0x400),
            n => self.dr[n & 3] = value,
        }
        Ok(())
    }

    /// XSETBV (SDM volume 2): the CPU has checked CPL and CR4.OSXSAVE before the exit.
    pub(super) fn exit_xsetbv(&mut self) -> Outcome {
        let value = (self.registers[RDX] << 32) | (self.registers[RAX] & 0xffff_ffff);
        let avx = value & 0b110;
        let avx512 = value & 0b1110_0000;
        if self.registers[RCX] as u32 != 0
            || value & !self.allowed_xcr0 != 0
            || value & 1 == 0
            || avx == 0b100
            || (avx512 != 0 && (avx512 != 0b1110_0000 || avx != 0b110))
        {
            return Err(GP);
        }
        self.xcr0 = value;
        // SAFETY: the value is one that the host's CPU has (allowed_xcr0 is a subset of the host's XCR0) and valid by the
        // checks above; the window's end puts the host's back.
        unsafe { xsetbv0(value) };
        Ok(())
    }
}
