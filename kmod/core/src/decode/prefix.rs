// SPDX-License-Identifier: GPL-2.0
//! The bytes of an instruction and its prefixes (SDM volume 2, 2.1.1 and 2.2.1).
#![forbid(unsafe_code)]

use super::{CodeSize, DecodeError, SegmentName, MAX_LENGTH};
use crate::iospace::Width;

/// REX.W: 64-bit operand.
const REX_W: u8 = 8;

/// Reads an instruction byte by byte; never more than [`MAX_LENGTH`].
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes: bytes.get(..MAX_LENGTH).unwrap_or(bytes),
            at: 0,
        }
    }

    /// The next byte.
    pub(super) fn byte(&mut self) -> Result<u8, DecodeError> {
        let byte = *self.bytes.get(self.at).ok_or(DecodeError::Truncated)?;
        self.at += 1;
        Ok(byte)
    }

    /// The next `width` bytes, little-endian, zero-extended.
    pub(super) fn unsigned(&mut self, width: Width) -> Result<u64, DecodeError> {
        let mut value = 0;
        for index in 0..width.bytes() {
            value |= u64::from(self.byte()?) << (8 * index);
        }
        Ok(value)
    }

    /// The next `width` bytes, little-endian, sign-extended to 64 bits.
    pub(super) fn signed(&mut self, width: Width) -> Result<u64, DecodeError> {
        Ok(sign_extend(self.unsigned(width)?, width))
    }

    /// Bytes read so far: at most [`MAX_LENGTH`].
    pub(super) const fn length(&self) -> u8 {
        self.at as u8
    }
}

/// `value` of `width`, sign-extended to 64 bits.
pub(super) const fn sign_extend(value: u64, width: Width) -> u64 {
    let unused = 64 - 8 * width.bytes() as u32;
    ((value << unused) as i64 >> unused) as u64
}

/// The prefixes of an instruction.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Prefixes {
    /// 66h.
    pub(super) operand_size: bool,
    /// 67h.
    pub(super) address_size: bool,
    /// F0h.
    pub(super) lock: bool,
    /// F2h or F3h.
    pub(super) repeat: bool,
    /// The segment override that counts.
    pub(super) segment: Option<SegmentName>,
    /// The REX prefix, if one stands directly before the opcode.
    pub(super) rex: Option<u8>,
}

impl Prefixes {
    /// Reads the prefixes, and the first byte after them, which is the opcode's.
    pub(super) fn read(cursor: &mut Cursor<'_>, size: CodeSize) -> Result<(Self, u8), DecodeError> {
        let long = size == CodeSize::Bits64;
        let mut prefixes = Self::default();
        loop {
            let byte = cursor.byte()?;
            if long && byte & 0xf0 == 0x40 {
                prefixes.rex = Some(byte);
                continue;
            }
            let segment = match byte {
                0x26 => SegmentName::Es,
                0x2e => SegmentName::Cs,
                0x36 => SegmentName::Ss,
                0x3e => SegmentName::Ds,
                0x64 => SegmentName::Fs,
                0x65 => SegmentName::Gs,
                _ => {
                    match byte {
                        0x66 => prefixes.operand_size = true,
                        0x67 => prefixes.address_size = true,
                        0xf0 => prefixes.lock = true,
                        0xf2 | 0xf3 => prefixes.repeat = true,
                        opcode => return Ok((prefixes, opcode)),
                    }
                    // REX counts only directly before the opcode.
                    prefixes.rex = None;
                    continue;
                }
            };
            prefixes.rex = None;
            // 64-bit mode ignores the overrides of the four segments that have no base there.
            if !long || matches!(segment, SegmentName::Fs | SegmentName::Gs) {
                prefixes.segment = Some(segment);
            }
        }
    }

    /// The operand width of an instruction that has no byte form.
    pub(super) const fn operand_width(&self, size: CodeSize) -> Width {
        match size {
            CodeSize::Bits64 if self.rex_bit(REX_W) != 0 => Width::W8,
            CodeSize::Bits16 if !self.operand_size => Width::W2,
            CodeSize::Bits32 | CodeSize::Bits64 if self.operand_size => Width::W2,
            _ => Width::W4,
        }
    }

    /// The width of addresses.
    pub(super) const fn address_width(&self, size: CodeSize) -> Width {
        match (size, self.address_size) {
            (CodeSize::Bits64, false) => Width::W8,
            (CodeSize::Bits16, false) | (CodeSize::Bits32, true) => Width::W2,
            _ => Width::W4,
        }
    }

    /// Bit 3 of a register number, from REX bit `bit`: 8 if it is set.
    pub(super) const fn rex_bit(&self, bit: u8) -> u8 {
        match self.rex {
            Some(rex) if rex & bit != 0 => 8,
            _ => 0,
        }
    }
}
