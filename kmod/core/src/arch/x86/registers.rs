// SPDX-License-Identifier: GPL-2.0
//! Control registers, flags and the instructions that read the CPU's state (SDM volume 3, 2.5).

use core::arch::asm;

/// CR0.PE: protected mode.
pub const CR0_PE: u64 = 1 << 0;
/// CR0.TS: task switched.
pub const CR0_TS: u64 = 1 << 3;
/// CR0.ET: reads as 1.
pub const CR0_ET: u64 = 1 << 4;
/// CR0.NE: numeric errors by exception. Fixed to 1 in VMX operation.
pub const CR0_NE: u64 = 1 << 5;
/// CR0.WP: supervisor respects read-only pages.
pub const CR0_WP: u64 = 1 << 16;
/// CR0.NW: not write-through.
pub const CR0_NW: u64 = 1 << 29;
/// CR0.CD: cache disable.
pub const CR0_CD: u64 = 1 << 30;
/// CR0.PG: paging.
pub const CR0_PG: u64 = 1 << 31;
/// Bits of CR0 that are defined; a write of any other is #GP.
pub const CR0_DEFINED: u64 = 0xe005_003f;

/// CR4.PSE: 4 MiB pages.
pub const CR4_PSE: u64 = 1 << 4;
/// CR4.MCE: machine checks.
pub const CR4_MCE: u64 = 1 << 6;
/// CR4.PGE: global pages.
pub const CR4_PGE: u64 = 1 << 7;
/// CR4.PAE.
pub const CR4_PAE: u64 = 1 << 5;
/// CR4.UMIP.
pub const CR4_UMIP: u64 = 1 << 11;
/// CR4.LA57: five-level paging.
pub const CR4_LA57: u64 = 1 << 12;
/// CR4.VMXE.
pub const CR4_VMXE: u64 = 1 << 13;
/// CR4.FSGSBASE.
pub const CR4_FSGSBASE: u64 = 1 << 16;
/// CR4.PCIDE.
pub const CR4_PCIDE: u64 = 1 << 17;
/// CR4.OSXSAVE.
pub const CR4_OSXSAVE: u64 = 1 << 18;
/// CR4.SMEP.
pub const CR4_SMEP: u64 = 1 << 20;
/// CR4.SMAP.
pub const CR4_SMAP: u64 = 1 << 21;
/// CR4 bits of every x86-64: VME, PVI, TSD, DE, PSE, PAE, MCE, PGE, PCE, OSFXSR, OSXMMEXCPT.
pub const CR4_BASE: u64 = 0x7ff;

/// EFER.SCE: SYSCALL.
pub const EFER_SCE: u64 = 1 << 0;
/// EFER.LME: long mode enable.
pub const EFER_LME: u64 = 1 << 8;
/// EFER.LMA: long mode active.
pub const EFER_LMA: u64 = 1 << 10;
/// EFER.NXE: execute disable.
pub const EFER_NXE: u64 = 1 << 11;

/// RFLAGS bit 1, which reads as 1.
pub const RFLAGS_FIXED: u64 = 1 << 1;
/// RFLAGS.TF: single step.
pub const RFLAGS_TF: u64 = 1 << 8;
/// RFLAGS.IF: interrupts enabled.
pub const RFLAGS_IF: u64 = 1 << 9;
/// RFLAGS.DF: string instructions go down.
pub const RFLAGS_DF: u64 = 1 << 10;

/// Index of RAX in the general-purpose registers; the order is the instruction encoding's.
pub const RAX: usize = 0;
/// Index of RCX.
pub const RCX: usize = 1;
/// Index of RDX.
pub const RDX: usize = 2;
/// Index of RBX.
pub const RBX: usize = 3;
/// Index of RSP.
pub const RSP: usize = 4;
/// Index of RSI.
pub const RSI: usize = 6;
/// Index of RDI.
pub const RDI: usize = 7;

/// Whether `address` is canonical with 48-bit linear addresses.
pub const fn is_canonical(address: u64) -> bool {
    ((address as i64) << 16 >> 16) as u64 == address
}

macro_rules! read_register {
    ($(#[$doc:meta])* $name:ident, $register:literal) => {
        $(#[$doc])*
        ///
        /// # Safety
        ///
        /// Only in supervisor mode.
        pub unsafe fn $name() -> u64 {
            let value: u64;
            // SAFETY: reading the register has no side effect, and the caller is in supervisor mode.
            unsafe {
                asm!(concat!("mov {}, ", $register), out(reg) value, options(nomem, nostack, preserves_flags));
            }
            value
        }
    };
}

read_register! {
    /// CR0.
    read_cr0, "cr0"
}
read_register! {
    /// CR2: the address of the last page fault.
    read_cr2, "cr2"
}
read_register! {
    /// CR3.
    read_cr3, "cr3"
}
read_register! {
    /// CR4 as the CPU has it.
    read_cr4, "cr4"
}
read_register! {
    /// DR7.
    read_dr7, "dr7"
}

/// Writes CR2.
///
/// # Safety
///
/// Supervisor mode, and no page fault of the host's own waits to be looked at.
pub unsafe fn write_cr2(value: u64) {
    // SAFETY: the caller's obligation; the register has no effect by itself.
    unsafe { asm!("mov cr2, {}", in(reg) value, options(nomem, nostack, preserves_flags)) };
}

/// Writes CR4.
///
/// # Safety
///
/// Supervisor mode with interrupts off, and the caller restores what the host's kernel expects before anything else runs.
pub unsafe fn write_cr4(value: u64) {
    // SAFETY: the caller's obligation. No `nomem`: the write orders memory accesses of the code around it.
    unsafe { asm!("mov cr4, {}", in(reg) value, options(nostack, preserves_flags)) };
}

/// Writes DR7.
///
/// # Safety
///
/// Supervisor mode; the value must be one that the host's kernel had there.
pub unsafe fn write_dr7(value: u64) {
    // SAFETY: the caller's obligation.
    unsafe { asm!("mov dr7, {}", in(reg) value, options(nostack, preserves_flags)) };
}

/// The time-stamp counter, after all earlier loads.
pub fn rdtsc() -> u64 {
    // SAFETY: LFENCE and RDTSC have no effect beyond their results; CR4.TSD does not bind supervisor mode.
    unsafe {
        core::arch::x86_64::_mm_lfence();
        core::arch::x86_64::_rdtsc()
    }
}

/// GDTR or IDTR in memory.
#[repr(C, packed)]
#[derive(Debug, Clone, Copy, Default)]
pub struct DescriptorTableRegister {
    /// Limit in bytes.
    pub limit: u16,
    /// Linear base address.
    pub base: u64,
}

/// GDTR.
pub fn sgdt() -> DescriptorTableRegister {
    let mut value = DescriptorTableRegister::default();
    // SAFETY: SGDT stores ten bytes to the operand, which is a local of that size.
    unsafe { asm!("sgdt [{}]", in(reg) &mut value, options(nostack, preserves_flags)) };
    value
}

/// IDTR.
pub fn sidt() -> DescriptorTableRegister {
    let mut value = DescriptorTableRegister::default();
    // SAFETY: SIDT stores ten bytes to the operand, which is a local of that size.
    unsafe { asm!("sidt [{}]", in(reg) &mut value, options(nostack, preserves_flags)) };
    value
}

/// Loads GDTR.
///
/// # Safety
///
/// `value` must be one that [`sgdt`] returned on this CPU: the table that the host runs on.
pub unsafe fn lgdt(value: &DescriptorTableRegister) {
    // SAFETY: the caller's obligation.
    unsafe { asm!("lgdt [{}]", in(reg) value, options(nostack, preserves_flags)) };
}

/// Loads IDTR.
///
/// # Safety
///
/// `value` must be one that [`sidt`] returned on this CPU.
pub unsafe fn lidt(value: &DescriptorTableRegister) {
    // SAFETY: the caller's obligation.
    unsafe { asm!("lidt [{}]", in(reg) value, options(nostack, preserves_flags)) };
}

macro_rules! read_selector {
    ($(#[$doc:meta])* $name:ident, $instruction:literal) => {
        $(#[$doc])*
        pub fn $name() -> u16 {
            let value: u16;
            // SAFETY: storing a selector to a register has no side effect.
            unsafe { asm!($instruction, out(reg) value, options(nomem, nostack, preserves_flags)) };
            value
        }
    };
}

read_selector! {
    /// CS.
    read_cs, "mov {0:x}, cs"
}
read_selector! {
    /// SS.
    read_ss, "mov {0:x}, ss"
}
read_selector! {
    /// DS.
    read_ds, "mov {0:x}, ds"
}
read_selector! {
    /// ES.
    read_es, "mov {0:x}, es"
}
read_selector! {
    /// FS.
    read_fs, "mov {0:x}, fs"
}
read_selector! {
    /// GS.
    read_gs, "mov {0:x}, gs"
}
read_selector! {
    /// The task register.
    read_tr, "str {0:x}"
}
read_selector! {
    /// LDTR.
    read_ldtr, "sldt {0:x}"
}

/// The base address of the TSS that `selector` names in the current GDT (SDM volume 3, figure 9-4).
///
/// # Safety
///
/// `selector` must be the value of the task register on this CPU, whose descriptor is then present and 16 bytes long.
pub unsafe fn tss_base(gdt: &DescriptorTableRegister, selector: u16) -> u64 {
    let descriptor = (gdt.base + u64::from(selector & !7)) as *const u64;
    // SAFETY: the descriptor of the loaded task register lies in the GDT, which stays mapped; it may be less than
    // 8-byte aligned.
    let (low, high) = unsafe {
        (
            descriptor.read_unaligned(),
            descriptor.add(1).read_unaligned(),
        )
    };
    ((low >> 16) & 0xff_ffff) | ((low >> 56) << 24) | (high << 32)
}
