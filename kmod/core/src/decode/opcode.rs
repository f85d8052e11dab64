// SPDX-License-Identifier: GPL-2.0
//! Opcodes: from bytes to a [`DeviceInstruction`] (SDM volume 2, appendix A).
#![forbid(unsafe_code)]

use super::address::MemoryOperand;
use super::prefix::{Cursor, Prefixes};
use super::{CodeSize, DecodeError, DeviceInstruction};
use crate::iospace::Width;

/// REX.R, fourth bit of ModRM.reg.
const REX_R: u8 = 4;

/// A general-purpose register as an operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gpr {
    /// 0 to 15.
    pub index: u8,
    /// The operand is bits 8 to 15 (AH, CH, DH, BH).
    pub high_byte: bool,
}

/// The other operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A general-purpose register.
    Register(Gpr),
    /// A constant, sign-extended to 64 bits; only the operand's bits count.
    Immediate(u64),
}

/// The two-operand arithmetic group, in the order of its encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    /// ADD.
    Add,
    /// OR.
    Or,
    /// ADC.
    Adc,
    /// SBB.
    Sbb,
    /// AND.
    And,
    /// SUB.
    Sub,
    /// XOR.
    Xor,
    /// CMP.
    Cmp,
}

impl Arithmetic {
    /// The operation encoded by the low three bits of `field`.
    const fn from_field(field: u8) -> Self {
        match field & 7 {
            0 => Self::Add,
            1 => Self::Or,
            2 => Self::Adc,
            3 => Self::Sbb,
            4 => Self::And,
            5 => Self::Sub,
            6 => Self::Xor,
            _ => Self::Cmp,
        }
    }
}

/// The operations with one operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unary {
    /// NOT.
    Not,
    /// NEG.
    Neg,
    /// INC.
    Inc,
    /// DEC.
    Dec,
}

/// The bit tests, in the order of their encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BitOperation {
    /// BT.
    Test,
    /// BTS.
    Set,
    /// BTR.
    Reset,
    /// BTC.
    Complement,
}

impl BitOperation {
    /// The operation encoded by the low two bits of `field`.
    const fn from_field(field: u8) -> Self {
        match field & 3 {
            0 => Self::Test,
            1 => Self::Set,
            2 => Self::Reset,
            _ => Self::Complement,
        }
    }
}

/// The string instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StringOperation {
    /// MOVS: from DS:rSI to ES:rDI.
    Movs,
    /// STOS: from the accumulator to ES:rDI.
    Stos,
    /// LODS: from DS:rSI to the accumulator.
    Lods,
}

/// What an instruction does with its memory operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// MOV, MOVZX, MOVSX, MOVSXD from memory: the value is extended to `width` and goes to `register`.
    Load {
        /// Destination.
        register: Gpr,
        /// Width of the destination.
        width: Width,
        /// The extension is by the sign, not by zero.
        signed: bool,
    },
    /// MOV, MOVNTI to memory.
    Store(Source),
    /// XCHG.
    Exchange(Gpr),
    /// The arithmetic group with memory as destination: `memory = memory op source`.
    ToMemory(Arithmetic, Source),
    /// The arithmetic group with memory as source: `register = register op memory`.
    ToRegister(Arithmetic, Gpr),
    /// TEST.
    Test(Source),
    /// NOT, NEG, INC, DEC.
    Unary(Unary),
    /// BT, BTS, BTR, BTC. A register as source addresses bits beyond the operand too.
    Bit(BitOperation, Source),
    /// MOVS, STOS, LODS.
    String {
        /// Which.
        operation: StringOperation,
        /// With a repeat prefix.
        repeat: bool,
    },
}

impl Operation {
    /// Whether the instruction takes a LOCK prefix (SDM volume 2, LOCK).
    const fn can_lock(&self) -> bool {
        match self {
            Self::ToMemory(operation, _) => !matches!(operation, Arithmetic::Cmp),
            Self::Bit(operation, _) => !matches!(operation, BitOperation::Test),
            Self::Exchange(_) | Self::Unary(_) => true,
            _ => false,
        }
    }
}

/// Decodes one instruction at the start of `bytes`. More than [`super::MAX_LENGTH`] bytes are never looked at; fewer are
/// enough if the instruction is shorter.
///
/// # Errors
/// See [`DecodeError`]. No bytes make it panic.
pub fn decode(bytes: &[u8], size: CodeSize) -> Result<DeviceInstruction, DecodeError> {
    let mut cursor = Cursor::new(bytes);
    let (prefixes, opcode) = Prefixes::read(&mut cursor, size)?;
    let mut decoder = Decoder {
        cursor,
        prefixes,
        size,
        opcode,
    };
    let (operation, width, mut memory) = if opcode == 0x0f {
        decoder.two_byte()?
    } else {
        decoder.one_byte()?
    };
    if decoder.prefixes.lock && !operation.can_lock() {
        return Err(DecodeError::Unsupported(decoder.opcode));
    }
    let length = decoder.cursor.length();
    memory.end_at(length);
    Ok(DeviceInstruction {
        length,
        operation,
        width,
        memory,
        code_size: size,
    })
}

/// Operation, width of the memory operand, memory operand.
type Decoded = Result<(Operation, Width, MemoryOperand), DecodeError>;

struct Decoder<'a> {
    cursor: Cursor<'a>,
    prefixes: Prefixes,
    size: CodeSize,
    opcode: u8,
}

impl Decoder<'_> {
    const ACCUMULATOR: Gpr = Gpr {
        index: 0,
        high_byte: false,
    };

    const fn unsupported<T>(&self) -> Result<T, DecodeError> {
        Err(DecodeError::Unsupported(self.opcode))
    }

    /// Operand width: bit 0 of most opcodes is 0 for the byte form.
    const fn width(&self) -> Width {
        if self.opcode & 1 == 0 {
            Width::W1
        } else {
            self.prefixes.operand_width(self.size)
        }
    }

    /// Reads ModRM and the memory operand; returns ModRM's reg field too.
    fn modrm(&mut self) -> Result<(u8, MemoryOperand), DecodeError> {
        let modrm = self.cursor.byte()?;
        let memory = MemoryOperand::read(&mut self.cursor, &self.prefixes, self.size, modrm)?;
        Ok((modrm >> 3 & 7, memory))
    }

    /// The register that a reg field names in an operand of `width`.
    const fn gpr(&self, reg: u8, width: Width) -> Gpr {
        if matches!(width, Width::W1) && self.prefixes.rex.is_none() && reg >= 4 {
            return Gpr {
                index: reg - 4,
                high_byte: true,
            };
        }
        Gpr {
            index: reg | self.prefixes.rex_bit(REX_R),
            high_byte: false,
        }
    }

    /// Reads an immediate of an operand of `width`: at most four bytes, sign-extended.
    fn immediate(&mut self, width: Width) -> Result<Source, DecodeError> {
        let stored = match width {
            Width::W8 => Width::W4,
            other => other,
        };
        Ok(Source::Immediate(self.cursor.signed(stored)?))
    }

    fn one_byte(&mut self) -> Decoded {
        let width = self.width();
        match self.opcode {
            // ADD OR ADC SBB AND SUB XOR CMP: 00 Eb,Gb 01 Ev,Gv 02 Gb,Eb 03 Gv,Ev, eight opcodes apart.
            0x00..=0x3b if self.opcode & 7 < 4 => {
                let operation = Arithmetic::from_field(self.opcode >> 3);
                let (reg, memory) = self.modrm()?;
                let register = self.gpr(reg, width);
                let operation = if self.opcode & 2 == 0 {
                    Operation::ToMemory(operation, Source::Register(register))
                } else {
                    Operation::ToRegister(operation, register)
                };
                Ok((operation, width, memory))
            }
            0x63 if self.size == CodeSize::Bits64 => self.movsxd(),
            0x80..=0x83 => self.group1(width),
            0x84 | 0x85 => {
                let (reg, memory) = self.modrm()?;
                let source = Source::Register(self.gpr(reg, width));
                Ok((Operation::Test(source), width, memory))
            }
            0x86 | 0x87 => {
                let (reg, memory) = self.modrm()?;
                Ok((Operation::Exchange(self.gpr(reg, width)), width, memory))
            }
            0x88 | 0x89 => {
                let (reg, memory) = self.modrm()?;
                let source = Source::Register(self.gpr(reg, width));
                Ok((Operation::Store(source), width, memory))
            }
            0x8a | 0x8b => {
                let (reg, memory) = self.modrm()?;
                let register = self.gpr(reg, width);
                let operation = Operation::Load {
                    register,
                    width,
                    signed: false,
                };
                Ok((operation, width, memory))
            }
            0xa0..=0xa3 => self.moffs(width),
            0xa4 | 0xa5 => Ok(self.string(StringOperation::Movs, width)),
            0xaa | 0xab => Ok(self.string(StringOperation::Stos, width)),
            0xac | 0xad => Ok(self.string(StringOperation::Lods, width)),
            0xc6 | 0xc7 => {
                let (reg, memory) = self.modrm()?;
                if reg != 0 {
                    return self.unsupported();
                }
                Ok((Operation::Store(self.immediate(width)?), width, memory))
            }
            0xf6 | 0xf7 => self.group3(width),
            0xfe | 0xff => {
                let (reg, memory) = self.modrm()?;
                let operation = match reg {
                    0 => Unary::Inc,
                    1 => Unary::Dec,
                    _ => return self.unsupported(),
                };
                Ok((Operation::Unary(operation), width, memory))
            }
            _ => self.unsupported(),
        }
    }

    fn two_byte(&mut self) -> Decoded {
        self.opcode = self.cursor.byte()?;
        let full = self.prefixes.operand_width(self.size);
        match self.opcode {
            // BT BTS BTR BTC Ev,Gv
            0xa3 | 0xab | 0xb3 | 0xbb => {
                let operation = BitOperation::from_field(self.opcode >> 3);
                let (reg, memory) = self.modrm()?;
                let source = Source::Register(self.gpr(reg, full));
                Ok((Operation::Bit(operation, source), full, memory))
            }
            // BT BTS BTR BTC Ev,Ib
            0xba => {
                let (reg, memory) = self.modrm()?;
                if reg < 4 {
                    return self.unsupported();
                }
                let source = Source::Immediate(self.cursor.unsigned(Width::W1)?);
                let operation = Operation::Bit(BitOperation::from_field(reg), source);
                Ok((operation, full, memory))
            }
            // MOVZX, MOVSX
            0xb6 | 0xb7 | 0xbe | 0xbf => {
                let narrow = if self.opcode & 1 == 0 {
                    Width::W1
                } else {
                    Width::W2
                };
                let (reg, memory) = self.modrm()?;
                let operation = Operation::Load {
                    register: self.gpr(reg, full),
                    width: full,
                    signed: self.opcode & 8 != 0,
                };
                Ok((operation, narrow, memory))
            }
            // MOVNTI has no other operand widths, and prefixes make other instructions of it.
            0xc3 if !self.prefixes.operand_size && !self.prefixes.repeat => {
                let width = match full {
                    Width::W8 => Width::W8,
                    _ => Width::W4,
                };
                let (reg, memory) = self.modrm()?;
                let source = Source::Register(self.gpr(reg, width));
                Ok((Operation::Store(source), width, memory))
            }
            _ => self.unsupported(),
        }
    }

    /// MOVSXD: the source is four bytes, but two with a 16-bit operand.
    fn movsxd(&mut self) -> Decoded {
        let width = self.prefixes.operand_width(self.size);
        let narrow = match width {
            Width::W2 => Width::W2,
            _ => Width::W4,
        };
        let (reg, memory) = self.modrm()?;
        let operation = Operation::Load {
            register: self.gpr(reg, width),
            width,
            signed: true,
        };
        Ok((operation, narrow, memory))
    }

    /// The arithmetic group with an immediate: 80 Eb,Ib 81 Ev,Iz 82 as 80 83 Ev,Ib.
    fn group1(&mut self, width: Width) -> Decoded {
        if self.opcode == 0x82 && self.size == CodeSize::Bits64 {
            return self.unsupported();
        }
        let (reg, memory) = self.modrm()?;
        let source = if self.opcode == 0x83 {
            Source::Immediate(self.cursor.signed(Width::W1)?)
        } else {
            self.immediate(width)?
        };
        let operation = Operation::ToMemory(Arithmetic::from_field(reg), source);
        Ok((operation, width, memory))
    }

    /// TEST with an immediate, NOT, NEG.
    fn group3(&mut self, width: Width) -> Decoded {
        let (reg, memory) = self.modrm()?;
        let operation = match reg {
            0 | 1 => Operation::Test(self.immediate(width)?),
            2 => Operation::Unary(Unary::Not),
            3 => Operation::Unary(Unary::Neg),
            _ => return self.unsupported(),
        };
        Ok((operation, width, memory))
    }

    /// MOV between the accumulator and an absolute address as wide as addresses are.
    fn moffs(&mut self, width: Width) -> Decoded {
        let address_width = self.prefixes.address_width(self.size);
        let offset = self.cursor.unsigned(address_width)?;
        let memory = MemoryOperand::absolute(&self.prefixes, self.size, offset);
        let operation = if self.opcode & 2 == 0 {
            Operation::Load {
                register: Self::ACCUMULATOR,
                width,
                signed: false,
            }
        } else {
            Operation::Store(Source::Register(Self::ACCUMULATOR))
        };
        Ok((operation, width, memory))
    }

    fn string(
        &self,
        operation: StringOperation,
        width: Width,
    ) -> (Operation, Width, MemoryOperand) {
        let memory = MemoryOperand::absolute(&self.prefixes, self.size, 0);
        let operation = Operation::String {
            operation,
            repeat: self.prefixes.repeat,
        };
        (operation, width, memory)
    }
}
