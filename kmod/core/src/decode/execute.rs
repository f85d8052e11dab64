// SPDX-License-Identifier: GPL-2.0
//! Carrying an instruction out: which linear addresses it accesses, and what it does once its value has been read.
//!
//! The two steps are apart because the caller has to translate the addresses, may have to ask userspace for the value,
//! and must find every fault before a register changes.
#![forbid(unsafe_code)]

use super::flags;
use super::opcode::{BitOperation, Gpr, Operation, Source, StringOperation};
use super::prefix::sign_extend;
use super::{CodeSize, DeviceInstruction, MemoryAccess, Registers, SegmentName};
use crate::iospace::Width;

const RAX: u8 = 0;
const RCX: u8 = 1;
const RSI: u8 = 6;
const RDI: u8 = 7;
/// RFLAGS.DF.
const DF: u64 = 1 << 10;

/// Reads a register operand of `width`.
fn get<R: Registers + ?Sized>(registers: &R, gpr: Gpr, width: Width) -> u64 {
    let value = registers.gpr(gpr.index);
    let value = if gpr.high_byte { value >> 8 } else { value };
    value & width.mask()
}

/// Writes a register operand of `width`: four bytes clear the upper half, one and two keep the rest.
fn set<R: Registers + ?Sized>(registers: &mut R, gpr: Gpr, width: Width, value: u64) {
    let old = registers.gpr(gpr.index);
    let new = match width {
        Width::W1 if gpr.high_byte => (old & !0xff00) | (value & 0xff) << 8,
        Width::W1 | Width::W2 => (old & !width.mask()) | (value & width.mask()),
        Width::W4 | Width::W8 => value & width.mask(),
    };
    registers.set_gpr(gpr.index, new);
}

/// A whole register as an operand.
const fn whole(index: u8) -> Gpr {
    Gpr {
        index,
        high_byte: false,
    }
}

impl DeviceInstruction {
    /// What the instruction will do in memory, with the registers as they are. A repeated string instruction does one
    /// element, and nothing if its count is zero.
    pub fn access<R: Registers + ?Sized>(&self, registers: &R) -> MemoryAccess {
        let operand = || {
            Some(
                self.memory
                    .linear(registers, self.bit_string_offset(registers)),
            )
        };
        let (read, write) = match self.operation {
            Operation::Load { .. } | Operation::ToRegister(..) | Operation::Test(_) => {
                (operand(), None)
            }
            Operation::Store(_) => (None, operand()),
            Operation::ToMemory(super::Arithmetic::Cmp, _)
            | Operation::Bit(BitOperation::Test, _) => (operand(), None),
            Operation::Exchange(_)
            | Operation::ToMemory(..)
            | Operation::Unary(_)
            | Operation::Bit(..) => (operand(), operand()),
            Operation::String { operation, repeat } => {
                if repeat && self.count(registers) == 0 {
                    (None, None)
                } else {
                    self.string_addresses(registers, operation)
                }
            }
        };
        MemoryAccess {
            read,
            write,
            width: self.width,
        }
    }

    /// Carries the instruction out, given the value that was read (0 if nothing was to be read). Registers, flags and
    /// RIP change; the value to write, if any, is returned. A repeated string instruction does one element and leaves
    /// RIP where it is until the count is zero.
    ///
    /// Whatever can fault has to be checked before: there is no way back.
    pub fn execute<R: Registers + ?Sized>(&self, registers: &mut R, read: u64) -> Option<u64> {
        let width = self.width;
        let read = read & width.mask();
        let mut finished = true;
        let written = match self.operation {
            Operation::Load {
                register,
                width: destination,
                signed,
            } => {
                let value = if signed {
                    sign_extend(read, width)
                } else {
                    read
                };
                set(registers, register, destination, value);
                None
            }
            Operation::Store(source) => Some(self.source(registers, source)),
            Operation::Exchange(register) => {
                let written = get(registers, register, width);
                set(registers, register, width, read);
                Some(written)
            }
            Operation::ToMemory(operation, source) => {
                let operand = self.source(registers, source);
                let (result, rflags) =
                    flags::arithmetic(operation, read, operand, width, registers.rflags());
                registers.set_rflags(rflags);
                (operation != super::Arithmetic::Cmp).then_some(result)
            }
            Operation::ToRegister(operation, register) => {
                let operand = get(registers, register, width);
                let (result, rflags) =
                    flags::arithmetic(operation, operand, read, width, registers.rflags());
                registers.set_rflags(rflags);
                if operation != super::Arithmetic::Cmp {
                    set(registers, register, width, result);
                }
                None
            }
            Operation::Test(source) => {
                let operand = self.source(registers, source);
                let (_, rflags) = flags::arithmetic(
                    super::Arithmetic::And,
                    read,
                    operand,
                    width,
                    registers.rflags(),
                );
                registers.set_rflags(rflags);
                None
            }
            Operation::Unary(operation) => {
                let (result, rflags) = flags::unary(operation, read, width, registers.rflags());
                registers.set_rflags(rflags);
                Some(result)
            }
            Operation::Bit(operation, source) => self.bit(registers, operation, source, read),
            Operation::String { operation, repeat } => {
                let written;
                (written, finished) = self.string_element(registers, operation, repeat, read);
                written
            }
        };
        if finished {
            self.advance_rip(registers);
        }
        written
    }

    /// RIP behind the instruction. Outside of 64-bit mode it has 32 bits.
    fn advance_rip<R: Registers + ?Sized>(&self, registers: &mut R) {
        let next = registers.rip().wrapping_add(u64::from(self.length));
        registers.set_rip(match self.code_size {
            CodeSize::Bits64 => next,
            CodeSize::Bits16 | CodeSize::Bits32 => next & Width::W4.mask(),
        });
    }

    fn source<R: Registers + ?Sized>(&self, registers: &R, source: Source) -> u64 {
        match source {
            Source::Register(gpr) => get(registers, gpr, self.width),
            Source::Immediate(value) => value & self.width.mask(),
        }
    }

    /// How far behind the operand's address the addressed bit's operand is: a bit number from a register is signed and
    /// may lie outside of the operand (SDM volume 2, BT).
    fn bit_string_offset<R: Registers + ?Sized>(&self, registers: &R) -> u64 {
        let Operation::Bit(_, source @ Source::Register(_)) = self.operation else {
            return 0;
        };
        let bytes = i64::from(self.width.bytes());
        let number = sign_extend(self.source(registers, source), self.width) as i64;
        (number.div_euclid(8 * bytes) * bytes) as u64
    }

    fn bit<R: Registers + ?Sized>(
        &self,
        registers: &mut R,
        operation: BitOperation,
        source: Source,
        read: u64,
    ) -> Option<u64> {
        let bits = 8 * u64::from(self.width.bytes());
        let bit = 1u64 << (self.source(registers, source) % bits);
        let carry = if read & bit != 0 { flags::CF } else { 0 };
        registers.set_rflags((registers.rflags() & !flags::CF) | carry);
        match operation {
            BitOperation::Test => None,
            BitOperation::Set => Some(read | bit),
            BitOperation::Reset => Some(read & !bit),
            BitOperation::Complement => Some(read ^ bit),
        }
    }

    /// rCX, as wide as addresses are.
    fn count<R: Registers + ?Sized>(&self, registers: &R) -> u64 {
        get(registers, whole(RCX), self.memory.address_width)
    }

    fn string_addresses<R: Registers + ?Sized>(
        &self,
        registers: &R,
        operation: StringOperation,
    ) -> (Option<u64>, Option<u64>) {
        // Only the source's segment can be overridden.
        let from = || {
            let offset = registers.gpr(RSI);
            Some(
                self.memory
                    .in_segment(registers, self.memory.segment, offset),
            )
        };
        let to = || {
            let offset = registers.gpr(RDI);
            Some(self.memory.in_segment(registers, SegmentName::Es, offset))
        };
        match operation {
            StringOperation::Movs => (from(), to()),
            StringOperation::Stos => (None, to()),
            StringOperation::Lods => (from(), None),
        }
    }

    /// One element. Returns the value to write and whether the instruction is finished.
    fn string_element<R: Registers + ?Sized>(
        &self,
        registers: &mut R,
        operation: StringOperation,
        repeat: bool,
        read: u64,
    ) -> (Option<u64>, bool) {
        let count = self.count(registers);
        if repeat && count == 0 {
            return (None, true);
        }
        let width = self.width;
        let written = match operation {
            StringOperation::Movs => Some(read),
            StringOperation::Stos => Some(get(registers, whole(RAX), width)),
            StringOperation::Lods => {
                set(registers, whole(RAX), width, read);
                None
            }
        };
        if operation != StringOperation::Stos {
            self.step(registers, RSI);
        }
        if operation != StringOperation::Lods {
            self.step(registers, RDI);
        }
        if !repeat {
            return (written, true);
        }
        set(
            registers,
            whole(RCX),
            self.memory.address_width,
            count.wrapping_sub(1),
        );
        (written, count == 1)
    }

    /// Moves rSI or rDI by one element in the direction of RFLAGS.DF.
    fn step<R: Registers + ?Sized>(&self, registers: &mut R, index: u8) {
        let bytes = u64::from(self.width.bytes());
        let old = registers.gpr(index);
        let new = if registers.rflags() & DF == 0 {
            old.wrapping_add(bytes)
        } else {
            old.wrapping_sub(bytes)
        };
        set(registers, whole(index), self.memory.address_width, new);
    }
}
