// SPDX-License-Identifier: GPL-2.0
//! Instructions that access device memory.
//!
//! An EPT violation on a modelled or user-served page leaves the instruction to be carried out by the monitor. This
//! module decodes it, says which linear addresses it reads and writes, and, given what was read, changes the registers
//! and says what to write. It stands between the exit in `arch` and the access to the I/O space. Encodings: SDM volume 2,
//! chapter 2 and the instructions' own pages.
//!
//! Decoded are the instructions that compilers and kernels use on device memory: MOV in all its forms, MOVZX, MOVSX,
//! MOVSXD, the string instructions MOVS, STOS and LODS (one element at a time), XCHG, the two-operand arithmetic group,
//! TEST, and the bit tests. Everything else, and everything without a memory operand, is an error.
#![forbid(unsafe_code)]

use crate::iospace::Width;

mod address;
mod execute;
mod flags;
mod opcode;
mod prefix;

#[cfg(test)]
mod tests;

pub use address::MemoryOperand;
pub use opcode::{
    decode, Arithmetic, BitOperation, Gpr, Operation, Source, StringOperation, Unary,
};

/// Longest instruction (SDM volume 2, 2.3.11).
pub const MAX_LENGTH: usize = 15;

/// The default operand and address size of the code segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CodeSize {
    /// Real-address mode, virtual-8086 mode, or protected mode with CS.D = 0.
    Bits16,
    /// Protected or compatibility mode with CS.D = 1.
    Bits32,
    /// 64-bit mode (CS.L = 1 while EFER.LMA = 1).
    Bits64,
}

/// A segment register, in the order of the instruction encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SegmentName {
    /// ES.
    Es,
    /// CS.
    Cs,
    /// SS.
    Ss,
    /// DS.
    Ds,
    /// FS.
    Fs,
    /// GS.
    Gs,
}

/// The registers of the vCPU that executes the instruction.
pub trait Registers {
    /// A general-purpose register: 0 to 15 are RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15. `index` is always
    /// below 16.
    fn gpr(&self, index: u8) -> u64;
    /// Sets all 64 bits of a general-purpose register. `index` is always below 16.
    fn set_gpr(&mut self, index: u8, value: u64);
    /// RIP, still at the instruction.
    fn rip(&self) -> u64;
    /// Sets RIP.
    fn set_rip(&mut self, value: u64);
    /// RFLAGS.
    fn rflags(&self) -> u64;
    /// Sets RFLAGS.
    fn set_rflags(&mut self, value: u64);
    /// Base address of a segment, as in the VMCS.
    fn segment_base(&self, segment: SegmentName) -> u64;
}

/// The linear address of the instruction at RIP.
pub fn instruction_address<R: Registers + ?Sized>(registers: &R, size: CodeSize) -> u64 {
    match size {
        CodeSize::Bits64 => registers.rip(),
        CodeSize::Bits16 | CodeSize::Bits32 => {
            registers
                .segment_base(SegmentName::Cs)
                .wrapping_add(registers.rip())
                & Width::W4.mask()
        }
    }
}

/// Why some bytes are not an instruction that this decoder carries out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecodeError {
    /// The bytes end inside the instruction. With [`MAX_LENGTH`] bytes given, the instruction is too long.
    Truncated,
    /// An instruction without an operand in memory.
    NoMemoryOperand,
    /// An opcode that is not among those that this decoder knows; its last byte.
    Unsupported(u8),
}

impl core::fmt::Display for DecodeError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Truncated => write!(f, "the instruction is incomplete or longer than 15 bytes"),
            Self::NoMemoryOperand => write!(f, "the instruction has no operand in memory"),
            Self::Unsupported(opcode) => {
                write!(
                    f,
                    "the instruction with opcode {opcode:#04x} is not one that accesses device memory"
                )
            }
        }
    }
}

impl core::error::Error for DecodeError {}

/// An instruction that accesses memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceInstruction {
    /// Length in bytes, 1 to [`MAX_LENGTH`].
    pub length: u8,
    /// What it does.
    pub operation: Operation,
    /// Width of the memory operand.
    pub width: Width,
    /// Where the memory operand is. String instructions use their own addresses and ignore it, but for its segment
    /// and address size.
    pub memory: MemoryOperand,
    /// The code segment's size, for the width of RIP.
    pub code_size: CodeSize,
}

/// What an instruction (or one element of a string instruction) does in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryAccess {
    /// Linear address that is read, if any. The read comes first.
    pub read: Option<u64>,
    /// Linear address that is written, if any.
    pub write: Option<u64>,
    /// Width of each access.
    pub width: Width,
}
