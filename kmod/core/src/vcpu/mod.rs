// SPDX-License-Identifier: GPL-2.0
//! A vCPU's life: windows, and what has to be done between them.
#![forbid(unsafe_code)]

mod control;
mod mmio;

pub use control::{Control, DeviceLine};

use crate::arch::x86::registers::{rdtsc, RFLAGS_IF};
use crate::arch::x86::vmx::run::WindowContext;
use crate::arch::x86::vmx::VmxVcpu;
use crate::arch::{Exit, ExitError};
use crate::iospace::{Direction, Width};
use crate::memory::{FaultError, GuestMemory};
use crate::platform::{Platform, PortOutcome};
use pvmm_hostabi::{Gpa, Host, Interrupted, Ns, ResolveError, WaitQueue, Waited};
use pvmm_uapi::*;

/// Longest sleep of a halted vCPU; it looks again then, which costs nothing and bounds the harm of a lost deadline.
const MAX_HALT_NS: u64 = 1_000_000_000;

/// What the vCPU waits for userspace to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pending {
    Nothing,
    PortRead(Width),
}

/// A vCPU.
pub struct Vcpu<H: Host> {
    /// Its registers and the hardware that runs it.
    pub cpu: VmxVcpu<H>,
    /// The machine around it.
    pub platform: Platform<H>,
    pending: Pending,
}

/// What a vCPU shares with the rest of its VM.
pub struct Surroundings<'a, H: Host> {
    /// Guest memory.
    pub memory: &'a GuestMemory<H>,
    /// The owner's address space.
    pub space: &'a H::AddressSpace,
    /// Requests from other threads.
    pub control: &'a Control<H>,
}

impl<H: Host> Vcpu<H> {
    /// A vCPU in a machine.
    pub const fn new(cpu: VmxVcpu<H>, platform: Platform<H>) -> Self {
        Self {
            cpu,
            platform,
            pending: Pending::Nothing,
        }
    }

    /// Whether an instruction waits for userspace's answer; state can't be captured then.
    pub fn is_waiting_for_user(&self) -> bool {
        self.pending != Pending::Nothing
    }

    /// Runs the guest until userspace has something to do; tells what in `run`. `Err` if a signal is pending.
    pub fn run(&mut self, around: &Surroundings<'_, H>, run: &mut Run) -> Result<(), Interrupted> {
        if let Pending::PortRead(width) = core::mem::replace(&mut self.pending, Pending::Nothing) {
            self.cpu.set_rax(width, run.value & width.mask());
        }
        run.exit = EXIT_INTERRUPTED;
        if run.immediate_exit != 0 {
            return Ok(());
        }
        loop {
            if self.cpu.is_halted() && !self.wait(around, run)? {
                return Ok(());
            }
            let mut context = WindowContext {
                platform: &mut self.platform,
                memory: around.memory,
                control: around.control,
            };
            let exit = self.cpu.run(&mut context);
            if self.handle(exit, around, run)? {
                return Ok(());
            }
        }
    }

    /// Waits while halted. `Ok(false)` if the guest can never go on.
    fn wait(&mut self, around: &Surroundings<'_, H>, run: &mut Run) -> Result<bool, Interrupted> {
        loop {
            let now = self.platform.now(rdtsc());
            self.platform.drain_interrupts();
            self.platform.advance(now);
            if self.platform.has_request() {
                self.report_request(run);
                return Ok(false);
            }
            if self.platform.take_nmi() {
                self.cpu.raise_nmi();
            }
            let enabled = self.cpu.snapshot().rflags & RFLAGS_IF != 0;
            if self.cpu.nmi_pending() || (enabled && self.platform.chipset().pending_interrupt()) {
                self.cpu.wake();
                return Ok(true);
            }
            if !enabled && !self.cpu.cpuid().apic().0 {
                // Without a local APIC nothing can raise an NMI.
                run.exit = EXIT_HALTED_FOREVER;
                return Ok(false);
            }
            let wait = self
                .platform
                .next_deadline(now)
                .map_or(MAX_HALT_NS, |deadline| {
                    deadline.saturating_sub(now).min(MAX_HALT_NS)
                });
            if wait == 0 {
                // A timer that is always due must not keep a signal out.
                H::do_work()?;
                continue;
            }
            let control = around.control;
            match control
                .queue()
                .wait(Some(Ns(wait)), &mut || control.has_lines())
            {
                Waited::Ready | Waited::TimedOut => {}
                Waited::Interrupted => return Err(Interrupted),
            }
        }
    }

    /// Handles what ended a window. `Ok(true)` if userspace has something to do.
    fn handle(
        &mut self,
        exit: Exit,
        around: &Surroundings<'_, H>,
        run: &mut Run,
    ) -> Result<bool, Interrupted> {
        match exit {
            Exit::Host => {
                H::do_work()?;
                Ok(self.report_request(run))
            }
            Exit::Halt => Ok(false),
            Exit::Memory { gpa, write } => match around.memory.fault(around.space, gpa, write) {
                Ok(()) => Ok(false),
                // The instruction at RIP has nothing to do with it: the processor was after an IDT, a TSS or a stack.
                Err(FaultError::NotMemory) if self.cpu.is_delivering() => Ok(error(
                    run,
                    ERROR_EVENT_DELIVERY,
                    gpa.0,
                    self.cpu.snapshot().rip,
                )),
                Err(FaultError::NotMemory) => self.device_memory(gpa, around, run),
                Err(FaultError::Resolve(ResolveError::Interrupted)) => Err(Interrupted),
                Err(_) => Ok(error(run, ERROR_GUEST_MEMORY, gpa.0, 0)),
            },
            Exit::PageDirectoryPointers { gpa } => {
                let mut entries = [u64::MAX; 4];
                for (index, entry) in (0..).zip(&mut entries) {
                    let mut bytes = [0; 8];
                    // Where there is no memory, all ones are read.
                    if around
                        .memory
                        .read(around.space, Gpa(gpa.0 + 8 * index), &mut bytes)
                        .is_ok()
                    {
                        *entry = u64::from_le_bytes(bytes);
                    }
                }
                self.cpu.set_pdptes(entries);
                Ok(false)
            }
            Exit::Port {
                port,
                width,
                direction,
                value,
            } => {
                if direction == Direction::Read {
                    self.pending = Pending::PortRead(width);
                }
                run.exit = EXIT_IO;
                run.address = u64::from(port);
                run.value = u64::from(value);
                run.width = u32::from(width.bytes());
                run.write = u32::from(direction == Direction::Write);
                Ok(true)
            }
            Exit::StringPort {
                port,
                width,
                direction,
                repeat,
                linear,
                address_bytes,
                length,
            } => {
                let element = mmio::StringElement {
                    port,
                    width,
                    direction,
                    repeat,
                    linear,
                    address_bytes,
                    length,
                };
                Ok(self.string_port(&element, around, run))
            }
            Exit::Shutdown => {
                run.exit = EXIT_SHUTDOWN;
                Ok(true)
            }
            Exit::Error(ExitError::InvalidGuestState(qualification)) => Ok(error(
                run,
                ERROR_INVALID_GUEST_STATE,
                self.cpu.snapshot().rip,
                qualification,
            )),
            Exit::Error(ExitError::VmInstruction(number)) => Ok(error(
                run,
                ERROR_VM_INSTRUCTION,
                self.cpu.snapshot().rip,
                u64::from(number),
            )),
            Exit::Error(ExitError::UnknownExit(reason)) => Ok(error(
                run,
                ERROR_UNKNOWN_EXIT,
                self.cpu.snapshot().rip,
                u64::from(reason),
            )),
            Exit::Unavailable => Ok(error(run, ERROR_VMX_UNAVAILABLE, 0, 0)),
        }
    }

    fn report_request(&mut self, run: &mut Run) -> bool {
        let (power_off, reset) = self.platform.take_request();
        if power_off {
            run.exit = EXIT_POWER_OFF;
        } else if reset {
            run.exit = EXIT_RESET;
        }
        power_off || reset
    }

    /// Reads the architectural state. `false` if the hardware could not be had.
    pub fn get_state(&mut self, around: &Surroundings<'_, H>, state: &mut VcpuState) -> bool {
        // The first capture of a pause: what other threads have raised goes to the chipset now, and nothing is
        // delivered afterwards, so that all parts show the same instant.
        let now = self.platform.now(rdtsc());
        self.platform.drain_interrupts();
        state.cr8 = self.platform.chipset().cr8();
        state.apic = self.platform.chipset_mut().save_local_apic(now);
        let mut context = WindowContext {
            platform: &mut self.platform,
            memory: around.memory,
            control: around.control,
        };
        self.cpu.get_state(&mut context, state).is_ok()
    }

    fn port_access(
        &mut self,
        port: u16,
        width: Width,
        direction: Direction,
        value: u64,
    ) -> PortOutcome {
        let now = self.platform.now(rdtsc());
        self.platform.port(port, width, direction, value, now)
    }
}

/// Fills in an internal error.
fn error(run: &mut Run, code: u32, address: u64, value: u64) -> bool {
    run.exit = EXIT_INTERNAL_ERROR;
    run.error = code;
    run.address = address;
    run.value = value;
    true
}
