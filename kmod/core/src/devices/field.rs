// SPDX-License-Identifier: GPL-2.0
//! What the bits of a register mean, by the data sheet's names: part of the register table, for people who look at a
//! device or at what the guest does to it. Nothing is decided by it.
#![forbid(unsafe_code)]

use super::register::Register;
use core::fmt;

/// A group of neighbouring bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// Its name in the data sheet. Empty if the value speaks for itself.
    pub name: &'static str,
    /// Its lowest bit.
    pub low: u8,
    /// How many bits it has, at least 1.
    pub bits: u8,
    /// How its value is told.
    pub show: Show,
}

/// How a field's value is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Show {
    /// `NAME=5`.
    Number,
    /// `NAME=1fh`.
    Hex,
    /// `NAME` if it is not 0, else nothing.
    Flag,
    /// `NAME=TEXT`, with the text at the value's index; nothing if that is empty. A field without a name is put behind the
    /// one before it without a space, as in `8n1`.
    Names(&'static [&'static str]),
    /// `NAME=0,3,4`: the bits that are set, counted from the number given here. `NAME=-` if none is.
    Bits(u8),
}

impl Field {
    /// A field whose value is a number.
    pub const fn number(name: &'static str, low: u8, bits: u8) -> Self {
        Self::new(name, low, bits, Show::Number)
    }

    /// A field whose value is a number that people read in hexadecimal.
    pub const fn hex(name: &'static str, low: u8, bits: u8) -> Self {
        Self::new(name, low, bits, Show::Hex)
    }

    /// A bit that is named when it is set.
    pub const fn flag(name: &'static str, bit: u8) -> Self {
        Self::new(name, bit, 1, Show::Flag)
    }

    /// A bit that is told in either state.
    pub const fn bit(name: &'static str, bit: u8) -> Self {
        Self::new(name, bit, 1, Show::Number)
    }

    /// A field whose values have names.
    pub const fn names(
        name: &'static str,
        low: u8,
        bits: u8,
        names: &'static [&'static str],
    ) -> Self {
        Self::new(name, low, bits, Show::Names(names))
    }

    /// A field whose bits are inputs, or the like, that are numbered from `first`.
    pub const fn each(name: &'static str, low: u8, bits: u8, first: u8) -> Self {
        Self::new(name, low, bits, Show::Bits(first))
    }

    const fn new(name: &'static str, low: u8, bits: u8, show: Show) -> Self {
        Self {
            name,
            low,
            bits,
            show,
        }
    }

    /// The field's part of a register's value.
    pub const fn of(&self, value: u64) -> u64 {
        let shifted = if self.low < 64 { value >> self.low } else { 0 };
        if self.bits < 64 {
            shifted & ((1 << self.bits) - 1)
        } else {
            shifted
        }
    }
}

/// A register's value in the words of its data sheet: `8n1 DLAB=0`. Nothing if the table has no words for it.
///
/// ```
/// use pvmm_core::devices::{field::Decoded, register::find, uart16550};
/// let lcr = find(uart16550::REGISTERS, uart16550::LCR).expect("it has one");
/// assert_eq!(std::format!("{}", Decoded(lcr, 0x13)), "8n1 DLAB=0");
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Decoded(pub &'static Register, pub u64);

impl fmt::Display for Decoded {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(register, value) = self;
        let mut first = true;
        for field in register.fields {
            let part = field.of(*value);
            let text = match field.show {
                Show::Flag if part == 0 => continue,
                Show::Names(names) => match names.get(part as usize) {
                    Some(&"") => continue,
                    text => text,
                },
                _ => None,
            };
            if !first && !field.name.is_empty() {
                out.write_str(" ")?;
            }
            first = false;
            out.write_str(field.name)?;
            if !field.name.is_empty() && field.show != Show::Flag {
                out.write_str("=")?;
            }
            match (field.show, text) {
                (_, Some(text)) => out.write_str(text)?,
                (Show::Flag, _) => {}
                (Show::Hex, _) => write!(out, "{part:x}h")?,
                (Show::Bits(base), _) => write_bits(out, part, base)?,
                // A value that the data sheet does not know is told as a number.
                (Show::Number | Show::Names(_), _) => write!(out, "{part}")?,
            }
        }
        Ok(())
    }
}

fn write_bits(out: &mut fmt::Formatter<'_>, bits: u64, base: u8) -> fmt::Result {
    if bits == 0 {
        return out.write_str("-");
    }
    let mut comma = "";
    for bit in (0..64u8).filter(|bit| bits >> bit & 1 != 0) {
        write!(out, "{comma}{}", u16::from(base) + u16::from(bit))?;
        comma = ",";
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::register::{Access, Fate};
    use super::*;
    use std::format;

    const FIELDS: &[Field] = &[
        Field::number("N", 0, 4),
        Field::flag("SET", 4),
        Field::names("M", 5, 2, &["", "one", "two"]),
        Field::names("", 7, 1, &["a", "b"]),
        Field::each("IRQ", 8, 8, 3),
        Field::hex("H", 16, 48),
    ];
    static REGISTER: Register =
        Register::byte(1, "R", (0, 0), Access::ReadWrite, Fate::ReadBack, "").fields(FIELDS);

    #[test]
    fn each_field_is_told_in_its_own_way() {
        for (value, text) in [
            (0, "N=0a IRQ=- H=0h"),
            (0x1f, "N=15 SETa IRQ=- H=0h"),
            (0x20, "N=0 M=onea IRQ=- H=0h"),
            // A value without a name.
            (0x60, "N=0 M=3a IRQ=- H=0h"),
            (0x8080, "N=0b IRQ=10 H=0h"),
            (0x0300, "N=0a IRQ=3,4 H=0h"),
            (
                u64::MAX,
                "N=15 SET M=3b IRQ=3,4,5,6,7,8,9,10 H=ffffffffffffh",
            ),
        ] {
            assert_eq!(format!("{}", Decoded(&REGISTER, value)), text, "{value:#x}");
        }
    }

    #[test]
    fn a_field_is_cut_out_of_the_value_wherever_it_lies() {
        assert_eq!(Field::hex("H", 0, 64).of(u64::MAX), u64::MAX);
        assert_eq!(Field::hex("H", 60, 8).of(u64::MAX), 0xf);
        assert_eq!(Field::bit("B", 200).of(u64::MAX), 0);
    }
}
