//! Where everything is in the guest's memory, whose linear addresses are its physical ones unless said otherwise.
//!
//! | physical | what |
//! |---|---|
//! | 0 | interrupt vectors of real mode |
//! | 8000h | code that leaves and enters 64-bit mode |
//! | [`CODE`], [`DATA`], [`STACK`] | 64 KiB each for snippets |
//! | 40_0000h | the image |
//! | 60_0000h | page tables, descriptor tables |
//! | [`PLAYGROUND`] | page tables that snippets may do anything to |
//! | [`RAM_END`] | the end of the memory that is mapped |

/// Code of snippets.
pub const CODE: u64 = 0x3_0000;
/// Data of snippets.
pub const DATA: u64 = 0x4_0000;
/// Stacks of snippets.
pub const STACK: u64 = 0x5_0000;
/// Length of each of the three.
pub const ROOM: u64 = 0x1_0000;
/// Where a snippet's stack pointer is at its start, behind [`STACK`].
pub const STACK_TOP: u64 = 0x8000;
/// Four page-table pages, from the PDPT down, behind entry 1 of the PML4.
pub const PLAYGROUND: u64 = 0x70_0000;
/// The linear addresses that the playground translates begin here.
pub const PLAYGROUND_LINEAR: u64 = 1 << 39;
/// The end of memory as 64-bit mode maps it.
pub const RAM_END: u64 = 16 << 20;
/// The last page below the gap of addresses that are not canonical; it is the first page of [`CODE`].
pub const LAST_PAGE: u64 = 0x7fff_ffff_f000;
/// A mapped address where there is neither memory nor a device.
pub const HOLE: u64 = 0xd000_0000;
/// The I/O APIC's page.
pub const IO_APIC: u64 = 0xfec0_0000;
/// The local APIC's page.
pub const LOCAL_APIC: u64 = 0xfee0_0000;
/// Where a snippet finds random descriptors, as operands and for descriptor tables.
pub const DESCRIPTORS: u64 = DATA + 0x8000;
/// Interrupts and exceptions of SYSCALL and SYSENTER targets end here: an INT3.
pub const TRAP: u64 = CODE + 0xf000;

/// Selectors of the guest's GDT.
pub mod selector {
    /// 64-bit code.
    pub const CODE_64: u16 = 0x08;
    /// Flat data of 4 GiB.
    pub const FLAT: u16 = 0x10;
    /// Flat 32-bit code.
    pub const CODE_32: u16 = 0x18;
    /// 64-bit code of ring 3.
    pub const USER_CODE_64: u16 = 0x20 | 3;
    /// Data of ring 3, up to [`super::RAM_END`].
    pub const USER_DATA: u16 = 0x28 | 3;
    /// 32-bit code of ring 3.
    pub const USER_CODE_32: u16 = 0x30 | 3;
    /// 16-bit code at [`super::CODE`].
    pub const CODE_16: u16 = 0x38;
    /// 16-bit data at [`super::DATA`].
    pub const DATA_16: u16 = 0x40;
    /// 16-bit stack at [`super::STACK`].
    pub const STACK_16: u16 = 0x48;
    /// 16-bit code of ring 3.
    pub const USER_CODE_16: u16 = 0x50 | 3;
    /// 16-bit data of ring 3.
    pub const USER_DATA_16: u16 = 0x58 | 3;
    /// 16-bit stack of ring 3.
    pub const USER_STACK_16: u16 = 0x60 | 3;
    /// Data up to [`super::RAM_END`].
    pub const DATA: u16 = 0x68;
    /// The TSS of 64-bit mode.
    pub const TSS_64: u16 = 0x70;
    /// The TSS of the other modes.
    pub const TSS_32: u16 = 0x80;
    /// 16-bit code at 0, on the way to real mode.
    pub const LOW_CODE: u16 = 0x88;
    /// 16-bit data at 0, on the way to real mode.
    pub const LOW_DATA: u16 = 0x90;
    /// The first of [`RANDOM_COUNT`] descriptors that are different in each round.
    pub const RANDOM: u16 = 0xc0;
    /// How many.
    pub const RANDOM_COUNT: u16 = 16;
}
