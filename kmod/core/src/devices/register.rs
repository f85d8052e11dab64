// SPDX-License-Identifier: GPL-2.0
//! The register table of a device kind: what each register is, how it can be accessed, and what becomes of it in a
//! move.
//!
//! One table per kind is the single place that the recorder, capture, the restore plan, error messages and the
//! documentation take these facts from.
#![forbid(unsafe_code)]

use super::field::Field;
use crate::iospace::{self, Direction, Location, Width};
use core::fmt;

/// How software can access a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// Reads return what was written, or what the device has made of it.
    ReadWrite,
    /// Reads return something else.
    WriteOnly,
    /// Writes go nowhere, or to another register.
    ReadOnly,
    /// Reading changes the device.
    ReadSideEffect,
    /// No access reaches it.
    Hidden,
}

/// What becomes of a register in a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fate {
    /// The guest's writes are kept in the log and issued again.
    Recorded,
    /// Read from the device at capture, and written on the peer.
    ReadBack,
    /// Found out by the kind at capture in another way than by reading the register, and brought back by the plan.
    Inferred,
    /// Not part of the state.
    Irrelevant,
}

/// When a read at a register's place shows that register and changes nothing, so that it may be looked at while the guest
/// goes on. Only registers whose [`Access`] is [`Access::ReadWrite`] or [`Access::ReadOnly`] are looked at at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Shown {
    /// At any time, if no other register of the table can be read at its place; never otherwise.
    Alone,
    /// Only while these bits of another register of the kind have this value. That one is read if it is
    /// [`Shown::Alone`], and else taken from the log, where a register that was not written is 0.
    While {
        /// The other register's number.
        register: u16,
        /// The bits that decide.
        mask: u64,
        /// What they must be.
        value: u64,
    },
    /// Only while the log has no entry of this register.
    Unlogged(u16),
}

/// One register of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Register {
    /// Its number in records and plan steps. Never given to another register as long as the kind exists.
    pub id: u16,
    /// Its name in the data sheet.
    pub name: &'static str,
    /// Where it is. For [`Access::Hidden`] the location means nothing and is 0.
    pub at: Location,
    /// Width of an access.
    pub width: Width,
    /// How it can be accessed.
    pub access: Access,
    /// What becomes of it.
    pub fate: Fate,
    /// Why.
    pub why: &'static str,
    /// When it may be looked at.
    pub shown: Shown,
    /// What its bits mean, in the order in which they are told.
    pub fields: &'static [Field],
}

impl Register {
    /// A register of one byte, which may be looked at if it is [`Shown::Alone`].
    pub const fn byte(
        id: u16,
        name: &'static str,
        at: (u8, u64),
        access: Access,
        fate: Fate,
        why: &'static str,
    ) -> Self {
        Self {
            id,
            name,
            at: Location::new(at.0, at.1),
            width: Width::W1,
            access,
            fate,
            why,
            shown: Shown::Alone,
            fields: &[],
        }
    }

    /// The register, with another rule of when it may be looked at.
    pub const fn shown(self, shown: Shown) -> Self {
        Self { shown, ..self }
    }

    /// The register, with what its bits mean.
    pub const fn fields(self, fields: &'static [Field]) -> Self {
        Self { fields, ..self }
    }

    /// Whether a read at its place can reach it.
    pub(super) const fn is_read(&self) -> bool {
        !matches!(self.access, Access::WriteOnly | Access::Hidden)
    }

    /// Whether it and `other` have a byte of the device in common.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        let end = |register: &Self| {
            let width = u64::from(register.width.bytes());
            register.at.offset.saturating_add(width)
        };
        self.at.range == other.at.range
            && self.at.offset < end(other)
            && other.at.offset < end(self)
    }

    /// State that no access reaches.
    pub const fn hidden(id: u16, name: &'static str, why: &'static str) -> Self {
        Self {
            id,
            name,
            at: Location::new(0, 0),
            width: Width::W8,
            access: Access::Hidden,
            fate: Fate::Inferred,
            why,
            shown: Shown::Alone,
            fields: &[],
        }
    }
}

/// The register numbered `id` in `table`.
pub fn find(table: &'static [Register], id: u16) -> Option<&'static Register> {
    table.iter().find(|register| register.id == id)
}

/// The register of `table` that an access reaches, if the table alone tells: no other register takes such an access at the
/// same place.
pub fn reached_by(
    table: &'static [Register],
    access: &iospace::Access,
) -> Option<&'static Register> {
    let only = |takes: &dyn Fn(Access) -> bool| {
        let mut found = table
            .iter()
            .filter(|register| register.at == access.at && takes(register.access));
        found.next().filter(|_| found.next().is_none())
    };
    match access.direction {
        Direction::Read => only(&|access| !matches!(access, Access::WriteOnly | Access::Hidden)),
        // Where there is a register for writes, one whose reads do something is for reads.
        Direction::Write => only(&|access| matches!(access, Access::WriteOnly | Access::ReadWrite))
            .or_else(|| only(&|access| access == Access::ReadSideEffect)),
    }
}

/// A register table as a Markdown table.
///
/// ```
/// use pvmm_core::devices::{i8254, register::Markdown};
/// let table = std::format!("{}", Markdown(i8254::REGISTERS));
/// assert!(table.starts_with("| register | place | access | in a move | why |\n|---|---|---|---|---|\n"));
/// assert!(table.contains("| control word 0 | 0: 3h | write-only | recorded |"));
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Markdown(pub &'static [Register]);

impl fmt::Display for Markdown {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "| register | place | access | in a move | why |")?;
        writeln!(out, "|---|---|---|---|---|")?;
        for register in self.0 {
            write!(out, "| {} | ", register.name)?;
            match register.access {
                Access::Hidden => write!(out, "-")?,
                _ => write!(out, "{}: {:x}h", register.at.range, register.at.offset)?,
            }
            writeln!(
                out,
                " | {} | {} | {} |",
                register.access, register.fate, register.why
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for Access {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::ReadWrite => "read/write",
            Self::WriteOnly => "write-only",
            Self::ReadOnly => "read-only",
            Self::ReadSideEffect => "read has side effect",
            Self::Hidden => "none",
        })
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Recorded => "recorded",
            Self::ReadBack => "read back",
            Self::Inferred => "inferred",
            Self::Irrelevant => "not part of the state",
        })
    }
}
