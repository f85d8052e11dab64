//! A piece of code to run, the mode to run it in, and the registers to begin with.

use crate::assembler::Assembler;
use crate::layout::{selector, CODE, RAM_END, STACK_TOP};
use crate::random::Random;

/// Number of RSP among the general-purpose registers.
pub const RSP: usize = 4;

/// How the processor executes a snippet (SDM volume 3, 2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// 64-bit mode.
    Long,
    /// Compatibility mode, 32-bit code.
    Compatibility,
    /// Protected mode, 32-bit code, no paging.
    Protected32,
    /// Protected mode, 16-bit code, no paging.
    Protected16,
    /// Protected mode, 32-bit code, 32-bit paging.
    Paged32,
    /// Protected mode, 32-bit code, PAE paging.
    Pae,
    /// Virtual-8086 mode.
    Virtual8086,
    /// Real-address mode: CR0.PE = 0.
    Real,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Long,
        Self::Compatibility,
        Self::Protected32,
        Self::Protected16,
        Self::Paged32,
        Self::Pae,
        Self::Virtual8086,
        Self::Real,
    ];

    /// Bits of an operand and an address without prefixes, but that operands have 32 in 64-bit mode.
    pub const fn bits(self) -> u32 {
        match self {
            Self::Long => 64,
            Self::Compatibility | Self::Protected32 | Self::Paged32 | Self::Pae => 32,
            Self::Protected16 | Self::Virtual8086 | Self::Real => 16,
        }
    }

    /// Whether the guest leaves IA-32e mode for it.
    pub const fn is_legacy(self) -> bool {
        !matches!(self, Self::Long | Self::Compatibility)
    }

    /// Whether exceptions lead back, whatever the snippet has done to its stack: they change to another one, or, in real
    /// mode, all but an odd stack pointer at the end of its segment will do.
    pub const fn has_safe_stack(self, privilege: Privilege) -> bool {
        let is_protected = !matches!(self, Self::Virtual8086 | Self::Real);
        !self.is_legacy() || !is_protected || privilege as u8 == 3
    }
}

/// The privilege level that a snippet begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Privilege {
    /// Ring 0.
    Kernel = 0,
    /// Ring 3.
    User = 3,
}

/// What to run.
#[derive(Debug, Clone)]
pub struct Snippet {
    /// In which mode.
    pub mode: Mode,
    /// With which privilege. Real mode has only ring 0, virtual-8086 mode only ring 3.
    pub privilege: Privilege,
    /// The code.
    pub code: Assembler,
    /// Where it begins: an offset in the code's room.
    pub offset: u16,
    /// Begins at the same place below the gap of addresses that are not canonical; 64-bit mode only.
    pub at_gap: bool,
    /// General-purpose registers in the order of their numbers.
    pub registers: [u64; 16],
    /// RFLAGS, or what the mode has of it.
    pub rflags: u64,
    /// How many interrupts and debug exceptions may come before one ends the snippet.
    pub resumes: u32,
    /// Random descriptors at [`selector::RANDOM`].
    pub descriptors: [u64; selector::RANDOM_COUNT as usize],
}

impl Snippet {
    /// An empty snippet with random registers, which are addresses where that is harmless.
    pub fn new(mode: Mode, privilege: Privilege, random: &Random) -> Self {
        let privilege = match mode {
            Mode::Real => Privilege::Kernel,
            Mode::Virtual8086 => Privilege::User,
            _ => privilege,
        };
        let mut registers = [0; 16];
        for register in &mut registers {
            *register = crate::cases::address(mode, random);
        }
        registers[RSP] = STACK_TOP;
        Self {
            mode,
            privilege,
            code: Assembler::new(mode.bits()),
            offset: 0x100,
            at_gap: false,
            registers,
            rflags: 2,
            resumes: 0,
            descriptors: [0; selector::RANDOM_COUNT as usize],
        }
    }

    /// Puts the code where its last byte is the last of a page.
    pub fn end_at_page(&mut self) {
        self.offset = 0x1000 - self.code.bytes().len() as u16;
    }

    /// CS and SS of protected and IA-32e modes.
    pub const fn selectors(&self) -> (u16, u16) {
        match (self.mode, self.privilege) {
            (Mode::Long, Privilege::Kernel) => (selector::CODE_64, selector::FLAT),
            (Mode::Long, Privilege::User) => (selector::USER_CODE_64, selector::USER_DATA),
            (Mode::Compatibility, Privilege::Kernel) => (selector::CODE_32, selector::FLAT),
            (Mode::Protected16, Privilege::Kernel) => (selector::CODE_16, selector::STACK_16),
            (Mode::Protected16, Privilege::User) => {
                (selector::USER_CODE_16, selector::USER_STACK_16)
            }
            (_, Privilege::Kernel) => (selector::CODE_32, selector::DATA),
            (_, Privilege::User) => (selector::USER_CODE_32, selector::USER_DATA),
        }
    }

    /// Whether CS and SS begin at [`CODE`] and the stack's room, rather than at 0.
    pub const fn is_segmented(&self) -> bool {
        self.mode.bits() == 16
    }
}

// The segments of ring 3 end with the memory, which the code must lie in.
const _: () = assert!(CODE < RAM_END);
