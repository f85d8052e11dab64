// SPDX-License-Identifier: GPL-2.0
//! One window: from interrupts off to interrupts on, with as many entries into the guest as there are exits that need
//! neither sleep nor the host.
//!
//! Interrupts stay pending while a window is open; the first entry with one pending exits at once, which ends the
//! window. The VMX-preemption timer bounds a window by itself and serves the guest's own timers.

use super::entry::enter;
use super::exit::Flow;
use super::host::HostRegisters;
use super::instructions::{invept, invvpid, CurrentVmcs};
use super::state::{guest_cr0, guest_cr4, pdpt, read_segment, write_pdptes};
use super::vcpu::VmxVcpu;
use super::vmcs::*;
use crate::arch::x86::registers::*;
use crate::arch::x86::snapshot::Exception;
use crate::arch::x86::xsave::{reset_mxcsr, xrstor, xsave, xsetbv0};
use crate::arch::{Exit, ExitError};
use crate::memory::GuestMemory;
use crate::platform::Platform;
use crate::vcpu::Control;
use core::arch::asm;
use pvmm_hostabi::{Host, HostPage};
use pvmm_uapi::{BLOCKING_BY_MOV_SS, BLOCKING_BY_NMI, BLOCKING_BY_STI};

/// Longest window. The host's interrupts end it much earlier; this is for a host that has none to come.
const WINDOW_NS: u64 = 10_000_000;

/// Shortest time that a guest runs before its next timer interrupt, so that it gets on however fast its timers are: an
/// interrupt may come this late.
const MIN_RUN_NS: u64 = 10_000;

/// What a window works with beside the vCPU.
pub struct WindowContext<'a, H: Host> {
    /// Chipset, devices and clock.
    pub platform: &'a mut Platform<H>,
    /// Guest memory.
    pub memory: &'a GuestMemory<H>,
    /// Requests from other threads.
    pub control: &'a Control<H>,
}

/// What must happen after the window with interrupts still off.
#[derive(Default)]
pub(super) struct Afterwards {
    pub(super) nmi: bool,
    pub(super) machine_check: bool,
}

impl<H: Host> VmxVcpu<H> {
    /// Runs guest code until something must be done outside a window. Process context.
    pub fn run(&mut self, context: &mut WindowContext<'_, H>) -> Exit {
        let mut afterwards = Afterwards::default();
        self.window(
            context,
            &mut afterwards,
            |vcpu, vmcs, host, context, afterwards| {
                vcpu.enter_until_exit(vmcs, host, context, afterwards)
            },
        )
        .unwrap_or_else(|exit| exit)
    }

    /// Reads the vCPU's state into `state`. Process context.
    pub fn get_state(
        &mut self,
        context: &mut WindowContext<'_, H>,
        state: &mut pvmm_uapi::VcpuState,
    ) -> Result<(), Exit> {
        let mut afterwards = Afterwards::default();
        loop {
            let result = self.window(context, &mut afterwards, |vcpu, vmcs, _, _, _| {
                vcpu.save_state(vmcs, state);
            });
            match result {
                Err(Exit::Host) if H::do_work().is_ok() => {}
                other => return other,
            }
        }
    }

    /// Opens a window, calls `body` with the VMCS current and the host's registers saved, and closes it.
    fn window<R>(
        &mut self,
        context: &mut WindowContext<'_, H>,
        afterwards: &mut Afterwards,
        body: impl FnOnce(
            &mut Self,
            &CurrentVmcs,
            &HostRegisters,
            &mut WindowContext<'_, H>,
            &mut Afterwards,
        ) -> R,
    ) -> Result<R, Exit> {
        let irq = H::irq_off();
        if H::work_pending(&irq) {
            return Err(Exit::Host);
        }
        let cpu = H::current(&irq);
        let result = {
            let Ok(_operation) = H::enter_vmx(&irq) else {
                return Err(Exit::Unavailable);
            };
            // SAFETY: in VMX operation with interrupts off for the life of `_operation`, which outlives `vmcs`; the page
            // starts with the revision identifier, and every earlier window has cleared it.
            let Ok(vmcs) = (unsafe { CurrentVmcs::load(self.vmcs.phys(), self.fresh) }) else {
                return Err(Exit::Error(ExitError::VmInstruction(0)));
            };
            self.fresh = false;
            context.memory.window_opens();
            context.control.enter(cpu);
            self.configure(&vmcs, context);
            self.load_incoming(&vmcs);
            self.apply_changes(&vmcs);
            // The CPU may hold translations from an earlier life of this vCPU's identifier.
            if self.last_cpu != Some(cpu) {
                self.last_cpu = Some(cpu);
                self.flushed_epoch = None;
                self.forget_translations();
            }
            // SAFETY: supervisor mode, interrupts off, `vmcs` current here; restored below, before `irq` is dropped.
            let host = unsafe { HostRegisters::save(&vmcs, self.capability.has_rdtscp()) };
            let result = {
                let _fpu = H::fpu_enter(&irq);
                let mask = self.allowed_xcr0 & host.xcr0();
                // SAFETY: the switched MSRs hold only values that passed `check_saved_msr` or that the guest itself
                // had in the register; the FPU is ours, the mask a subset of the host's XCR0, and the image is
                // from `reset`, `load_image` or `xsave`; XCR0 is put back by `restore`.
                unsafe {
                    host.load_guest_msrs(&self.switched);
                    xrstor(&self.xsave, mask);
                    if self.xcr0 != host.xcr0() {
                        xsetbv0(self.xcr0);
                    }
                }
                let result = body(self, &vmcs, &host, context, afterwards);
                self.registers[RSP] = vmcs.read(GUEST_RSP);
                // SAFETY: the same CPU and window as `save`; XCR0 is the host's again before the FPU is saved with
                // the same mask as it was loaded, and it is saved before it is changed.
                unsafe {
                    host.restore(&mut self.switched);
                    xsave(&self.xsave, mask);
                    reset_mxcsr();
                }
                result
            };
            self.drain_pml(&vmcs, context.memory);
            context.control.leave();
            context.memory.window_closed();
            result
        };
        if core::mem::take(&mut afterwards.nmi) {
            H::deliver_nmi(&irq);
        }
        if core::mem::take(&mut afterwards.machine_check) {
            // SAFETY: vector 18 is the host's own machine-check handler, which looks at the banks that the
            // event has left filled.
            unsafe { asm!("int 18") };
        }
        Ok(result)
    }

    /// Writes the fields that change from window to window, and at first all that never change.
    fn configure(&mut self, vmcs: &CurrentVmcs, context: &WindowContext<'_, H>) {
        if !self.configured {
            self.configured = true;
            let capability = self.capability;
            let (bitmap_a, bitmap_b) = context.platform.io_bitmaps();
            for (field, value) in [
                (PIN_BASED_CONTROLS, u64::from(capability.pin)),
                (PROC_BASED_CONTROLS, u64::from(self.primary)),
                (ENTRY_INTERRUPTION_INFORMATION, 0),
                (EXIT_CONTROLS, u64::from(capability.exit)),
                (EXIT_MSR_STORE_COUNT, 0),
                (EXIT_MSR_LOAD_COUNT, 0),
                (ENTRY_MSR_LOAD_COUNT, 0),
                (CR3_TARGET_COUNT, 0),
                (PAGE_FAULT_ERROR_CODE_MASK, 0),
                (PAGE_FAULT_ERROR_CODE_MATCH, 0),
                // #DB and #AC could otherwise recur without end during delivery and keep the CPU; #MC is the host's.
                (EXCEPTION_BITMAP, 1 << 1 | 1 << 17 | 1 << 18),
                (VMCS_LINK_POINTER, u64::MAX),
                (IO_BITMAP_A, bitmap_a.0),
                (IO_BITMAP_B, bitmap_b.0),
                (MSR_BITMAP, self.msr_bitmap.phys().0),
                (EPT_POINTER, context.memory.ept_pointer()),
                (VIRTUAL_PROCESSOR_ID, u64::from(self.vpid)),
                (PML_ADDRESS, self.pml.phys().0),
                (GUEST_PML_INDEX, PML_ENTRIES - 1),
                (
                    CR0_GUEST_HOST_MASK,
                    CR0_NE | CR0_NW | CR0_CD | !CR0_DEFINED & 0xffff_ffff,
                ),
                (
                    CR4_GUEST_HOST_MASK,
                    !self.allowed_cr4 | CR4_PCIDE | CR4_PAE | CR4_MCE,
                ),
            ] {
                vmcs.write(field, value);
            }
        }
        let mut secondary = self.capability.secondary;
        if context.memory.is_logging() {
            secondary |= SECONDARY_PML;
        }
        if self.tsc_multiplier != 0 {
            secondary |= SECONDARY_TSC_SCALING;
            vmcs.write(TSC_MULTIPLIER, self.tsc_multiplier);
        }
        vmcs.write(SECONDARY_CONTROLS, u64::from(secondary));
        self.write_tsc_offset(vmcs);
    }

    /// Drops what the CPU has cached of the guest's own page tables. Inside a window.
    pub(super) fn forget_translations(&self) {
        if self.capability.has_vpid() {
            // SAFETY: in VMX operation; single-context INVVPID exists if VPIDs are used.
            let flushed = unsafe { invvpid(self.vpid) };
            debug_assert!(flushed.is_ok());
        }
    }

    /// Writes the TSC offset, IA32_TSC_ADJUST included.
    pub(super) fn write_tsc_offset(&self, vmcs: &CurrentVmcs) {
        vmcs.write(TSC_OFFSET, self.tsc_offset.wrapping_add(self.tsc_adjust));
    }

    /// What an instruction that was carried out outside the window has changed.
    fn apply_changes(&mut self, vmcs: &CurrentVmcs) {
        let changes = core::mem::take(&mut self.changes);
        vmcs.write(GUEST_RSP, self.registers[RSP]);
        if let Some(rflags) = changes.rflags {
            vmcs.write(GUEST_RFLAGS, rflags | RFLAGS_FIXED);
        }
        if let Some(rip) = changes.rip {
            vmcs.write(GUEST_RIP, rip);
            self.unblock(vmcs);
        }
        if changes.exception.is_some() {
            self.exception = changes.exception;
        }
    }

    fn take_snapshot(&mut self, vmcs: &CurrentVmcs) {
        let snapshot = &mut self.snapshot;
        snapshot.rip = vmcs.read(GUEST_RIP);
        snapshot.rflags = vmcs.read(GUEST_RFLAGS);
        snapshot.cr0 = guest_cr0(vmcs);
        snapshot.cr3 = vmcs.read(GUEST_CR3);
        snapshot.cr4 = guest_cr4(vmcs);
        snapshot.efer = vmcs.read(GUEST_EFER);
        for (index, segment) in snapshot.segments.iter_mut().enumerate() {
            *segment = read_segment(vmcs, index as u32);
        }
    }

    /// Moves what the CPU has logged to the dirty bitmap (SDM volume 3, 29.3.6).
    pub(super) fn drain_pml(&self, vmcs: &CurrentVmcs, memory: &GuestMemory<H>) {
        let index = vmcs.read(GUEST_PML_INDEX) & 0xffff;
        if index == PML_ENTRIES - 1 {
            return;
        }
        // The index counts down and points to the next free entry; it wraps to FFFFh when the buffer is full.
        let first = if index >= PML_ENTRIES {
            0
        } else {
            index as usize + 1
        };
        for entry in self.pml.words().iter().skip(first) {
            let gpa = entry.load(core::sync::atomic::Ordering::Relaxed);
            memory.mark_dirty(pvmm_hostabi::Gpa(gpa).gfn());
        }
        vmcs.write(GUEST_PML_INDEX, PML_ENTRIES - 1);
    }

    fn enter_until_exit(
        &mut self,
        vmcs: &CurrentVmcs,
        host: &HostRegisters,
        context: &mut WindowContext<'_, H>,
        afterwards: &mut Afterwards,
    ) -> Exit {
        if self.needs_pdptes {
            let Some(pdptes) = self.pdptes.take() else {
                return Exit::PageDirectoryPointers {
                    gpa: pdpt(vmcs.read(GUEST_CR3)),
                };
            };
            write_pdptes(vmcs, &pdptes);
            self.needs_pdptes = false;
        }
        let host_breakpoints = self.load_debug_registers(vmcs);
        // SAFETY: CR2 is the guest's during a window; host page faults do not happen with interrupts off in memory that is
        // mapped.
        unsafe { write_cr2(self.cr2) };
        let mut launched = false;
        let end = rdtsc().wrapping_add(context.platform.host_ticks(WINDOW_NS));
        let exit = loop {
            // Whatever the guest does: exits that are handled here may not keep the host's interrupts out.
            if launched && (rdtsc().wrapping_sub(end) as i64) >= 0 {
                break Exit::Host;
            }
            let due = match self.prepare_entry(vmcs, context) {
                Ok(due) => due,
                Err(exit) => break exit,
            };
            match self.enter_while_unchanged(vmcs, host, context, afterwards, due, &mut launched) {
                Flow::Leave(exit) => break exit,
                Flow::Enter | Flow::Resume => {}
            }
        };
        // SAFETY: reading CR2 has no side effect.
        self.cr2 = unsafe { read_cr2() };
        if let Some(registers) = host_breakpoints {
            // SAFETY: these are the values that the host had there.
            unsafe { write_breakpoints(&registers) };
        }
        match exit {
            Exit::Halt => self.snapshot.rflags = vmcs.read(GUEST_RFLAGS),
            // The instruction will be carried out, or reported, outside.
            Exit::Memory { .. }
            | Exit::StringPort { .. }
            | Exit::PageDirectoryPointers { .. }
            | Exit::Shutdown
            | Exit::Error(_) => self.take_snapshot(vmcs),
            Exit::Host | Exit::Port { .. } | Exit::Unavailable => {}
        }
        exit
    }

    /// Brings the machine around the vCPU up to date and sets up what the next entry delivers. Returns the host's TSC at
    /// which that has to be done again; the reason to end the window if there is one.
    fn prepare_entry(
        &mut self,
        vmcs: &CurrentVmcs,
        context: &mut WindowContext<'_, H>,
    ) -> Result<u64, Exit> {
        let epoch = context.memory.flush_epoch();
        if self.flushed_epoch != Some(epoch) {
            // SAFETY: in VMX operation; single-context INVEPT exists (VmxCapability::read).
            let flushed = unsafe { invept(context.memory.ept_pointer()) };
            debug_assert!(flushed.is_ok());
            self.flushed_epoch = Some(epoch);
        }
        let tsc = rdtsc();
        let now = context.platform.now(tsc);
        // A line that is raised after this finds the CPU that `Control::enter` has published and interrupts it.
        context.platform.drain_interrupts();
        context.platform.advance(now);
        if context.platform.has_request() {
            return Err(Exit::Host);
        }
        self.nmi_pending |= context.platform.take_nmi();
        self.inject(vmcs, context);
        let wait = context
            .platform
            .next_deadline(now)
            .map_or(WINDOW_NS, |deadline| {
                deadline.saturating_sub(now).min(WINDOW_NS)
            });
        let due = tsc.wrapping_add(context.platform.host_ticks(wait));
        // From here on: what has been done above is the monitor's time, not the guest's.
        let soonest = rdtsc().wrapping_add(context.platform.host_ticks(MIN_RUN_NS));
        Ok(due.max(soonest))
    }

    /// Enters the guest again and again while its exits change nothing that [`Self::prepare_entry`] looks at: neither
    /// an interrupt nor a deadline nor an event to deliver.
    fn enter_while_unchanged(
        &mut self,
        vmcs: &CurrentVmcs,
        host: &HostRegisters,
        context: &mut WindowContext<'_, H>,
        afterwards: &mut Afterwards,
        due: u64,
        launched: &mut bool,
    ) -> Flow {
        loop {
            // The timer stands still outside the guest, so each entry gets what is left.
            let left = due.saturating_sub(rdtsc()) >> self.capability.preemption_timer_shift;
            vmcs.write(PREEMPTION_TIMER_VALUE, left.min(u64::from(u32::MAX)));
            // SAFETY: `HostRegisters::save` wrote the host-state fields on this CPU; controls and bitmaps are ours
            // (`configure`); interrupts are off and the guest's FPU state is loaded (`window`).
            let entered = unsafe { enter(vmcs, &mut self.registers, *launched) };
            if !entered {
                let error = vmcs.read32(VM_INSTRUCTION_ERROR);
                return Flow::Leave(Exit::Error(ExitError::VmInstruction(error)));
            }
            *launched = true;
            self.keep_interrupted_event(vmcs);
            match self.handle_exit(vmcs, host, context, afterwards) {
                Flow::Resume
                    if self.reinject.is_none()
                        && !context.platform.is_touched()
                        && !context.control.has_lines() => {}
                flow => return flow,
            }
        }
    }

    /// Loads DR0 to DR3 if the guest uses breakpoints; returns the host's.
    fn load_debug_registers(&self, vmcs: &CurrentVmcs) -> Option<[u64; 4]> {
        if vmcs.read(GUEST_DR7) & 0xff == 0 {
            return None;
        }
        let mut registers = [0; 4];
        // SAFETY: reading and writing DR0 to DR3 has no effect on the host while its DR7 enables none; VM exit sets DR7 to 400h
        // and the window's end restores the host's after these.
        unsafe {
            asm!("mov {}, dr0", out(reg) registers[0], options(nomem, nostack, preserves_flags));
            asm!("mov {}, dr1", out(reg) registers[1], options(nomem, nostack, preserves_flags));
            asm!("mov {}, dr2", out(reg) registers[2], options(nomem, nostack, preserves_flags));
            asm!("mov {}, dr3", out(reg) registers[3], options(nomem, nostack, preserves_flags));
            write_dr7(0x400);
            write_breakpoints(&self.dr);
        }
        Some(registers)
    }

    /// An event whose delivery the exit interrupted is delivered again at the next entry (SDM volume 3, 28.2.4).
    fn keep_interrupted_event(&mut self, vmcs: &CurrentVmcs) {
        let information = vmcs.read32(IDT_VECTORING_INFORMATION);
        if information & EVENT_VALID == 0 {
            return;
        }
        // Bit 12 is undefined here and must be zero at entry. A type of 4, 5 or 6 is a software event, whose entry needs the
        // length.
        self.reinject = Some((
            information & !0x7fff_f000,
            vmcs.read32(IDT_VECTORING_ERROR_CODE),
            vmcs.read32(EXIT_INSTRUCTION_LENGTH),
        ));
        if information & EVENT_TYPE == EVENT_NMI {
            // The NMI was not delivered after all, so it must not block.
            let blocking = vmcs.read(GUEST_INTERRUPTIBILITY);
            vmcs.write(
                GUEST_INTERRUPTIBILITY,
                blocking & !u64::from(BLOCKING_BY_NMI),
            );
        }
    }

    /// Sets up the one event that the next entry delivers, and the windows for those that must wait.
    fn inject(&mut self, vmcs: &CurrentVmcs, context: &mut WindowContext<'_, H>) {
        let blocking = vmcs.read32(GUEST_INTERRUPTIBILITY);
        let shadow = blocking & (BLOCKING_BY_STI | BLOCKING_BY_MOV_SS) != 0;
        let rflags = vmcs.read(GUEST_RFLAGS);
        let enabled = rflags & RFLAGS_IF != 0;
        if shadow {
            let pending = vmcs.read(GUEST_PENDING_DEBUG);
            vmcs.write(GUEST_PENDING_DEBUG, pending_in_shadow(pending, rflags));
        }
        let platform = &mut *context.platform;
        let mut interrupt = platform.chipset().pending_interrupt();
        let mut event = 0;
        if let Some(exception) = self.exception.take() {
            event = self.exception_event(vmcs, exception);
        } else if let Some((information, error_code, length)) = self.reinject.take() {
            event = information;
            vmcs.write(ENTRY_EXCEPTION_ERROR_CODE, u64::from(error_code));
            vmcs.write(ENTRY_INSTRUCTION_LENGTH, u64::from(length));
        } else if self.nmi_pending && !shadow && blocking & BLOCKING_BY_NMI == 0 {
            self.nmi_pending = false;
            event = EVENT_VALID | EVENT_NMI | 2;
        } else if enabled && !shadow && interrupt {
            if let Some(vector) = platform.chipset_mut().acknowledge_interrupt() {
                event = EVENT_VALID | EVENT_EXTERNAL_INTERRUPT | u32::from(vector);
            }
            interrupt = platform.chipset().pending_interrupt();
        }
        if event != 0 {
            // VM exit takes the valid bit away (SDM volume 3, 26.8.3).
            vmcs.write(ENTRY_INTERRUPTION_INFORMATION, u64::from(event));
        }
        let mut primary = self.capability.primary;
        // An NMI waits for the end of STI's blocking too, which the NMI window does not on every processor (26.2): there it
        // would open again and again.
        let sti = blocking & BLOCKING_BY_STI != 0;
        if self.nmi_pending && !sti {
            primary |= PROC_NMI_WINDOW;
        }
        if interrupt || (self.nmi_pending && sti) {
            primary |= PROC_INTERRUPT_WINDOW;
        }
        if self.primary != primary {
            vmcs.write(PROC_BASED_CONTROLS, u64::from(primary));
            self.primary = primary;
        }
    }

    fn exception_event(&mut self, vmcs: &CurrentVmcs, exception: Exception) -> u32 {
        let mut event = EVENT_VALID | EVENT_HARDWARE_EXCEPTION | u32::from(exception.vector);
        // Real mode delivers no error codes (SDM volume 3, 21.1.4).
        if let Some(code) = exception.error_code {
            if guest_cr0(vmcs) & CR0_PE != 0 {
                event |= EVENT_ERROR_CODE;
                vmcs.write(ENTRY_EXCEPTION_ERROR_CODE, u64::from(code));
            }
        }
        if let Some(address) = exception.address {
            // SAFETY: as in `enter_until_exit`, which calls this.
            unsafe { write_cr2(address) };
        }
        event
    }

    /// Ends the blocking by STI or MOV SS: an instruction was completed.
    pub(super) fn unblock(&self, vmcs: &CurrentVmcs) {
        let blocking = vmcs.read(GUEST_INTERRUPTIBILITY);
        let shadow = u64::from(BLOCKING_BY_STI | BLOCKING_BY_MOV_SS);
        if blocking & shadow != 0 {
            vmcs.write(GUEST_INTERRUPTIBILITY, blocking & !shadow);
        }
        if vmcs.read(GUEST_RFLAGS) & RFLAGS_TF != 0 {
            // A single step is due after the instruction (table 26-4: BS and "enabled breakpoint").
            vmcs.write(
                GUEST_PENDING_DEBUG,
                vmcs.read(GUEST_PENDING_DEBUG) | PENDING_BS,
            );
        }
    }
}

/// Pending debug exceptions that VM entry accepts while STI or MOV SS blocks: a single step is pending if and only if
/// RFLAGS.TF is set (SDM volume 3, 27.3.1.5; IA32_DEBUGCTL.BTF is never set). The exit for a debug exception clears them,
/// also where it leaves the blocking.
const fn pending_in_shadow(pending: u64, rflags: u64) -> u64 {
    if rflags & RFLAGS_TF != 0 {
        pending | PENDING_BS
    } else {
        pending & !PENDING_BS
    }
}

/// Entries of the PML buffer.
const PML_ENTRIES: u64 = 512;

/// Writes DR0 to DR3.
///
/// # Safety
///
/// Supervisor mode; no breakpoint is enabled in DR7 at the moment.
unsafe fn write_breakpoints(registers: &[u64; 4]) {
    // SAFETY: the caller's obligation.
    unsafe {
        asm!("mov dr0, {}", in(reg) registers[0], options(nomem, nostack, preserves_flags));
        asm!("mov dr1, {}", in(reg) registers[1], options(nomem, nostack, preserves_flags));
        asm!("mov dr2, {}", in(reg) registers[2], options(nomem, nostack, preserves_flags));
        asm!("mov dr3, {}", in(reg) registers[3], options(nomem, nostack, preserves_flags));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_step_is_pending_in_a_shadow_exactly_if_the_guest_steps() {
        assert_eq!(pending_in_shadow(0, RFLAGS_TF), PENDING_BS);
        assert_eq!(pending_in_shadow(PENDING_BS | 1, 0), 1);
        assert_eq!(pending_in_shadow(2, RFLAGS_TF), PENDING_BS | 2);
    }
}
