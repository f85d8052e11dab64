// SPDX-License-Identifier: GPL-2.0
//! Exits: which are handled at once, and which end the window (exit reasons: SDM volume 3, appendix C).

use super::exit_cr::{Outcome, Stop};
use super::host::HostRegisters;
use super::instructions::CurrentVmcs;
use super::run::{Afterwards, WindowContext};
use super::state::{guest_cr0, guest_cr4, pdpt};
use super::vcpu::VmxVcpu;
use super::vmcs::*;
use crate::arch::x86::msr::*;
use crate::arch::x86::registers::*;
use crate::arch::x86::snapshot::Exception;
use crate::arch::{Exit, ExitError};
use crate::chipset::Chipset;
use crate::iospace::{Direction, Width};
use crate::platform::PortOutcome;
use pvmm_hostabi::{Gpa, Host};

/// What to do after an exit.
pub(super) enum Flow {
    /// Enter the guest again; there is no event to deliver.
    Resume,
    /// Look after events first.
    Enter,
    /// End the window.
    Leave(Exit),
}

const EXCEPTION_OR_NMI: u32 = 0;
const EXTERNAL_INTERRUPT: u32 = 1;
const TRIPLE_FAULT: u32 = 2;
const INTERRUPT_WINDOW: u32 = 7;
const NMI_WINDOW: u32 = 8;
const CPUID: u32 = 10;
const GETSEC: u32 = 11;
const HLT: u32 = 12;
const INVD: u32 = 13;
const RDPMC: u32 = 15;
const VMCALL: u32 = 18;
const VMXON: u32 = 27;
const CR_ACCESS: u32 = 28;
const MOV_DR: u32 = 29;
const IO_INSTRUCTION: u32 = 30;
const RDMSR: u32 = 31;
const WRMSR: u32 = 32;
const INVALID_GUEST_STATE: u32 = 33;
const MWAIT: u32 = 36;
const MONITOR: u32 = 39;
const PAUSE: u32 = 40;
const MACHINE_CHECK_AT_ENTRY: u32 = 41;
const EPT_VIOLATION: u32 = 48;
const INVEPT: u32 = 50;
const PREEMPTION_TIMER: u32 = 52;
const INVVPID: u32 = 53;
const WBINVD: u32 = 54;
const XSETBV: u32 = 55;
const PML_FULL: u32 = 62;

/// Blocks NMIs again.
fn block_nmis(vmcs: &CurrentVmcs) {
    let blocking = vmcs.read(GUEST_INTERRUPTIBILITY);
    vmcs.write(
        GUEST_INTERRUPTIBILITY,
        blocking | u64::from(pvmm_uapi::BLOCKING_BY_NMI),
    );
}

impl<H: Host> VmxVcpu<H> {
    pub(super) fn handle_exit(
        &mut self,
        vmcs: &CurrentVmcs,
        host: &HostRegisters,
        context: &mut WindowContext<'_, H>,
        afterwards: &mut Afterwards,
    ) -> Flow {
        let reason = vmcs.read32(EXIT_REASON);
        match reason & 0xffff {
            EXTERNAL_INTERRUPT => Flow::Leave(Exit::Host),
            EXCEPTION_OR_NMI => self.exit_exception(vmcs, afterwards),
            TRIPLE_FAULT => Flow::Leave(Exit::Shutdown),
            INTERRUPT_WINDOW | NMI_WINDOW => Flow::Enter,
            CPUID => {
                self.exit_cpuid(vmcs);
                self.done(vmcs)
            }
            HLT => self.exit_hlt(vmcs, context),
            // Caches are coherent with memory on this host, and dirty data must not be lost.
            INVD | WBINVD | PAUSE => self.done(vmcs),
            RDPMC => self.fault(Exception::GENERAL_PROTECTION),
            // Instructions of features that the guest's CPUID does not have.
            GETSEC | VMCALL..=VMXON | MWAIT | MONITOR | INVEPT | INVVPID => {
                self.fault(Exception::INVALID_OPCODE)
            }
            CR_ACCESS => {
                let outcome = self.exit_cr_access(vmcs, context.platform);
                // What was read for this instruction is not for another.
                self.pdptes = None;
                self.finish(vmcs, outcome)
            }
            MOV_DR => {
                let outcome = self.exit_dr_access(vmcs);
                let wrote = outcome.is_ok() && vmcs.read(EXIT_QUALIFICATION) & (1 << 4) == 0;
                match self.finish(vmcs, outcome) {
                    // The next window loads the breakpoints as they are now.
                    Flow::Resume if wrote && vmcs.read(GUEST_DR7) & 0xff != 0 => {
                        Flow::Leave(Exit::Host)
                    }
                    flow => flow,
                }
            }
            IO_INSTRUCTION => self.exit_io(vmcs, context),
            RDMSR => self.exit_rdmsr(vmcs, context),
            WRMSR => self.exit_wrmsr(vmcs, host, context),
            XSETBV => {
                let outcome = self.exit_xsetbv();
                self.finish(vmcs, outcome)
            }
            EPT_VIOLATION => self.exit_ept_violation(vmcs),
            PML_FULL => {
                self.drain_pml(vmcs, context.memory);
                // The instruction is not done: it may still be in a shadow.
                Flow::Enter
            }
            // The host's turn, also if it was for the guest's own timer: this exit comes before that for an interrupt of
            // the host (SDM volume 3, 26.5.1), which a guest with a fast timer would otherwise keep waiting for ever.
            PREEMPTION_TIMER => Flow::Leave(Exit::Host),
            INVALID_GUEST_STATE => {
                // Unlike an exit, a failed entry keeps the event.
                vmcs.write(ENTRY_INTERRUPTION_INFORMATION, 0);
                Flow::Leave(Exit::Error(ExitError::InvalidGuestState(
                    vmcs.read(EXIT_QUALIFICATION),
                )))
            }
            MACHINE_CHECK_AT_ENTRY => {
                afterwards.machine_check = true;
                Flow::Leave(Exit::Host)
            }
            _ => Flow::Leave(Exit::Error(ExitError::UnknownExit(reason))),
        }
    }

    /// The instruction is done: on to the next.
    fn done(&mut self, vmcs: &CurrentVmcs) -> Flow {
        let next = vmcs
            .read(GUEST_RIP)
            .wrapping_add(vmcs.read(EXIT_INSTRUCTION_LENGTH));
        let code_is_64_bit = vmcs.read32(GUEST_ES_ACCESS_RIGHTS.at(1)) & (1 << 13) != 0
            && vmcs.read(GUEST_EFER) & EFER_LMA != 0;
        vmcs.write(
            GUEST_RIP,
            if code_is_64_bit {
                next
            } else {
                next & 0xffff_ffff
            },
        );
        self.unblock(vmcs);
        Flow::Resume
    }

    fn fault(&mut self, exception: Exception) -> Flow {
        self.exception = Some(exception);
        Flow::Enter
    }

    fn finish(&mut self, vmcs: &CurrentVmcs, outcome: Outcome) -> Flow {
        match outcome {
            Ok(()) => self.done(vmcs),
            Err(Stop::Raise(exception)) => self.fault(exception),
            Err(Stop::NeedsPdptes) => Flow::Leave(Exit::PageDirectoryPointers {
                gpa: pdpt(vmcs.read(GUEST_CR3)),
            }),
        }
    }

    /// NMIs and machine checks are the host's; #DB and #AC go back to the guest.
    fn exit_exception(&mut self, vmcs: &CurrentVmcs, afterwards: &mut Afterwards) -> Flow {
        let information = vmcs.read32(EXIT_INTERRUPTION_INFORMATION);
        let vector = information & 0xff;
        if information & EVENT_TYPE == EVENT_NMI {
            afterwards.nmi = true;
            return Flow::Leave(Exit::Host);
        }
        if vector == 18 {
            afterwards.machine_check = true;
            return Flow::Leave(Exit::Host);
        }
        // The exception undid the unblocking of NMIs by an IRET (SDM volume 3, 28.2.2, bit 12).
        if information & EVENT_NMI_UNBLOCKING != 0 && self.reinject.is_none() {
            block_nmis(vmcs);
        }
        if vector == 1 {
            // The qualification has the bits that #DB would have set in DR6 and DR7 (table 28-1).
            self.dr6 = (self.dr6 & !0xf) | (vmcs.read(EXIT_QUALIFICATION) & 0x600f) | 0xffff_0ff0;
            vmcs.write(GUEST_DR7, vmcs.read(GUEST_DR7) & !(1 << 13));
        }
        self.reinject = Some((
            information & !0x7fff_f000,
            vmcs.read32(EXIT_INTERRUPTION_ERROR_CODE),
            vmcs.read32(EXIT_INSTRUCTION_LENGTH),
        ));
        Flow::Enter
    }

    fn exit_cpuid(&mut self, vmcs: &CurrentVmcs) {
        let (leaf, subleaf) = (self.registers[RAX] as u32, self.registers[RCX] as u32);
        let [eax, ebx, ecx, edx] = self.cpuid.query(leaf, subleaf, guest_cr4(vmcs), self.xcr0);
        self.registers[RAX] = u64::from(eax);
        self.registers[RBX] = u64::from(ebx);
        self.registers[RCX] = u64::from(ecx);
        self.registers[RDX] = u64::from(edx);
    }

    fn exit_hlt(&mut self, vmcs: &CurrentVmcs, context: &mut WindowContext<'_, H>) -> Flow {
        self.done(vmcs);
        let enabled = vmcs.read(GUEST_RFLAGS) & RFLAGS_IF != 0;
        // A single step that is due ends the halt before it begins.
        let single_step = vmcs.read(GUEST_PENDING_DEBUG) & PENDING_BS != 0;
        if single_step
            || self.nmi_pending
            || (enabled && context.platform.chipset().pending_interrupt())
        {
            return Flow::Enter;
        }
        self.halted = true;
        Flow::Leave(Exit::Halt)
    }

    fn exit_io(&mut self, vmcs: &CurrentVmcs, context: &mut WindowContext<'_, H>) -> Flow {
        let qualification = vmcs.read(EXIT_QUALIFICATION);
        let port = (qualification >> 16) as u16;
        let Some(width) = Width::from_bytes((qualification & 7) as u8 + 1) else {
            return Flow::Leave(Exit::Error(ExitError::UnknownExit(IO_INSTRUCTION)));
        };
        let direction = if qualification & (1 << 3) != 0 {
            Direction::Read
        } else {
            Direction::Write
        };
        if qualification & (1 << 4) != 0 {
            return Flow::Leave(Exit::StringPort {
                port,
                width,
                direction,
                repeat: qualification & (1 << 5) != 0,
                linear: vmcs.read(GUEST_LINEAR_ADDRESS),
                // Bits 9:7 of the instruction information (table 28-8): 0, 1, 2 for 16, 32, 64 bits.
                address_bytes: 2 << (vmcs.read32(EXIT_INSTRUCTION_INFORMATION) >> 7 & 3).min(2),
                length: vmcs.read32(EXIT_INSTRUCTION_LENGTH) as u8,
            });
        }
        let value = self.registers[RAX] & width.mask();
        let now = context.platform.now(rdtsc());
        let outcome = context.platform.port(port, width, direction, value, now);
        self.done(vmcs);
        match outcome {
            PortOutcome::Done(value) => {
                if direction == Direction::Read {
                    self.set_rax(width, value);
                }
                Flow::Resume
            }
            PortOutcome::User => Flow::Leave(Exit::Port {
                port,
                width,
                direction,
                value: value as u32,
            }),
        }
    }

    fn exit_rdmsr(&mut self, vmcs: &CurrentVmcs, context: &mut WindowContext<'_, H>) -> Flow {
        let index = self.registers[RCX] as u32;
        let now = context.platform.now(rdtsc());
        let by_chipset = Chipset::claims_msr(index)
            .then(|| context.platform.chipset_at(now).msr_read(index, now))
            .flatten();
        let value = match by_chipset {
            Some(answer) => answer.map_err(|_| ()),
            None => self.read_msr(vmcs, index).map_err(|_| ()),
        };
        match value {
            Ok(value) => {
                self.registers[RAX] = value & 0xffff_ffff;
                self.registers[RDX] = value >> 32;
                self.done(vmcs)
            }
            Err(()) => self.fault(Exception::GENERAL_PROTECTION),
        }
    }

    fn exit_wrmsr(
        &mut self,
        vmcs: &CurrentVmcs,
        host: &HostRegisters,
        context: &mut WindowContext<'_, H>,
    ) -> Flow {
        let index = self.registers[RCX] as u32;
        let value = (self.registers[RDX] << 32) | (self.registers[RAX] & 0xffff_ffff);
        let now = context.platform.now(rdtsc());
        let by_chipset = Chipset::claims_msr(index)
            .then(|| {
                context
                    .platform
                    .chipset_at(now)
                    .msr_write(index, value, now)
            })
            .flatten();
        let outcome = match by_chipset {
            Some(answer) => answer.map(|()| false).map_err(|_| ()),
            None => self.write_msr(vmcs, index, value).map_err(|_| ()),
        };
        match outcome {
            Ok(tsc_moved) => {
                if tsc_moved {
                    self.write_tsc_offset(vmcs);
                    context.platform.set_tsc_adjust(self.tsc_adjust);
                }
                if Self::is_switched(index) {
                    // The guest may have changed this one since it was loaded, and it is loaded with the rest.
                    // SAFETY: reading it has no side effect.
                    self.switched.kernel_gs_base = unsafe { rdmsr(IA32_KERNEL_GS_BASE) };
                    // SAFETY: between `save` and `restore` of this window; the values have passed `check_saved_msr`.
                    unsafe { host.load_guest_msrs(&self.switched) };
                }
                self.done(vmcs)
            }
            Err(()) => self.fault(Exception::GENERAL_PROTECTION),
        }
    }

    fn exit_ept_violation(&mut self, vmcs: &CurrentVmcs) -> Flow {
        let qualification = vmcs.read(EXIT_QUALIFICATION);
        // The violation undid the unblocking of an IRET (SDM volume 3, 28.2.3, bit 12).
        if qualification & (1 << 12) != 0 && self.reinject.is_none() {
            block_nmis(vmcs);
        }
        debug_assert!(guest_cr0(vmcs) & CR0_ET != 0);
        Flow::Leave(Exit::Memory {
            gpa: Gpa(vmcs.read(GUEST_PHYSICAL_ADDRESS)),
            write: qualification & (1 << 1) != 0,
        })
    }
}
