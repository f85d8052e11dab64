// SPDX-License-Identifier: GPL-2.0
//! Memory operands: ModRM, SIB and displacement (SDM volume 2, tables 2-1 to 2-3), and the address that they make with
//! the registers (SDM volume 1, 3.7.5 and 3.3.7).
#![forbid(unsafe_code)]

use super::prefix::{Cursor, Prefixes};
use super::{CodeSize, DecodeError, Registers, SegmentName};
use crate::iospace::Width;

/// REX.X, fourth bit of SIB.index.
const REX_X: u8 = 2;
/// REX.B, fourth bit of ModRM.rm, SIB.base.
const REX_B: u8 = 1;

const RBX: u8 = 3;
const RSP: u8 = 4;
const RBP: u8 = 5;
const RSI: u8 = 6;
const RDI: u8 = 7;

/// What a memory operand's displacement is added to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Base {
    /// Nothing.
    None,
    /// A general-purpose register.
    Gpr(u8),
    /// RIP at the instruction's first byte; the displacement includes the instruction's length.
    Rip,
}

/// A memory operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryOperand {
    pub(super) segment: SegmentName,
    pub(super) base: Base,
    /// Index register and the binary logarithm of its scale.
    pub(super) index: Option<(u8, u8)>,
    /// Modulo 2^64.
    pub(super) displacement: u64,
    pub(super) address_width: Width,
    pub(super) long: bool,
}

impl MemoryOperand {
    /// An operand at an absolute offset.
    pub(super) fn absolute(prefixes: &Prefixes, size: CodeSize, displacement: u64) -> Self {
        Self {
            segment: prefixes.segment.unwrap_or(SegmentName::Ds),
            base: Base::None,
            index: None,
            displacement,
            address_width: prefixes.address_width(size),
            long: size == CodeSize::Bits64,
        }
    }

    /// Reads the operand that `modrm` starts. The cursor stands behind `modrm`.
    pub(super) fn read(
        cursor: &mut Cursor<'_>,
        prefixes: &Prefixes,
        size: CodeSize,
        modrm: u8,
    ) -> Result<Self, DecodeError> {
        if modrm >> 6 == 3 {
            return Err(DecodeError::NoMemoryOperand);
        }
        let mut operand = Self::absolute(prefixes, size, 0);
        if operand.address_width == Width::W2 {
            operand.read_16(cursor, modrm)?;
        } else {
            operand.read_32(cursor, prefixes, modrm)?;
        }
        let stack = matches!(operand.base, Base::Gpr(RSP | RBP));
        if stack && prefixes.segment.is_none() {
            operand.segment = SegmentName::Ss;
        }
        Ok(operand)
    }

    /// The 16-bit forms (table 2-1).
    fn read_16(&mut self, cursor: &mut Cursor<'_>, modrm: u8) -> Result<(), DecodeError> {
        let (base, index) = match modrm & 7 {
            0 => (RBX, Some((RSI, 0))),
            1 => (RBX, Some((RDI, 0))),
            2 => (RBP, Some((RSI, 0))),
            3 => (RBP, Some((RDI, 0))),
            4 => (RSI, None),
            5 => (RDI, None),
            6 => (RBP, None),
            _ => (RBX, None),
        };
        let mode = modrm >> 6;
        if mode == 0 && modrm & 7 == 6 {
            self.displacement = cursor.signed(Width::W2)?;
            return Ok(());
        }
        self.base = Base::Gpr(base);
        self.index = index;
        self.displacement = match mode {
            1 => cursor.signed(Width::W1)?,
            2 => cursor.signed(Width::W2)?,
            _ => 0,
        };
        Ok(())
    }

    /// The 32-bit and 64-bit forms (tables 2-2 and 2-3).
    fn read_32(
        &mut self,
        cursor: &mut Cursor<'_>,
        prefixes: &Prefixes,
        modrm: u8,
    ) -> Result<(), DecodeError> {
        let mode = modrm >> 6;
        let mut base_field = modrm & 7;
        let with_sib = base_field == RSP;
        if with_sib {
            let sib = cursor.byte()?;
            base_field = sib & 7;
            let index = (sib >> 3 & 7) | prefixes.rex_bit(REX_X);
            // Index 4 means none; with REX.X it is R12.
            if index != RSP {
                self.index = Some((index, sib >> 6));
            }
        }
        if mode == 0 && base_field == RBP {
            // A displacement alone; in 64-bit mode without SIB it is relative to RIP.
            if self.long && !with_sib {
                self.base = Base::Rip;
            }
            self.displacement = cursor.signed(Width::W4)?;
            return Ok(());
        }
        self.base = Base::Gpr(base_field | prefixes.rex_bit(REX_B));
        self.displacement = match mode {
            1 => cursor.signed(Width::W1)?,
            2 => cursor.signed(Width::W4)?,
            _ => 0,
        };
        Ok(())
    }

    /// Tells the operand how long the instruction is, which a RIP-relative address depends on.
    pub(super) fn end_at(&mut self, length: u8) {
        if self.base == Base::Rip {
            self.displacement = self.displacement.wrapping_add(u64::from(length));
        }
    }

    /// The linear address of the operand, `beyond` bytes (modulo 2^64) behind where it starts.
    pub(super) fn linear<R: Registers + ?Sized>(&self, registers: &R, beyond: u64) -> u64 {
        let base = match self.base {
            Base::None => 0,
            Base::Gpr(register) => registers.gpr(register),
            Base::Rip => registers.rip(),
        };
        let index = match self.index {
            Some((register, scale)) => registers.gpr(register) << scale,
            None => 0,
        };
        let offset = base
            .wrapping_add(index)
            .wrapping_add(self.displacement)
            .wrapping_add(beyond);
        self.in_segment(registers, self.segment, offset)
    }

    /// The linear address of `offset` in `segment`, with this operand's address size.
    pub(super) fn in_segment<R: Registers + ?Sized>(
        &self,
        registers: &R,
        segment: SegmentName,
        offset: u64,
    ) -> u64 {
        let offset = offset & self.address_width.mask();
        if !self.long {
            return registers.segment_base(segment).wrapping_add(offset) & Width::W4.mask();
        }
        match segment {
            SegmentName::Fs | SegmentName::Gs => {
                registers.segment_base(segment).wrapping_add(offset)
            }
            _ => offset,
        }
    }
}
