// SPDX-License-Identifier: GPL-2.0
//! Looking at a device while the guest goes on: its recorder's log, and the registers that can be read without changing
//! anything.
//!
//! Beside the path of a move: nothing is brought to rest, nothing is written, and no register is read of which the kind's
//! table does not say that a read does nothing but show it ([`Shown`]). So this is less than a capture, and may be
//! done at any moment between two accesses of the guest.
#![forbid(unsafe_code)]

use super::register::{find, Access, Register, Shown};
use super::sink::{Full, Sink};
use super::step::record;
use crate::record::LogView;
use crate::replay::Backend;
use pvmm_uapi::{StateRecord, ORIGIN_INFERRED, ORIGIN_LOG, ORIGIN_READ_BACK};

/// Puts what can be seen of a device into `sink`: its log, oldest access first; the registers that may be read, in the order
/// of the table; of a model, what no access reaches.
///
/// # Errors
///
/// [`Full`] if the sink is too small for it.
pub(super) fn peek(
    table: &'static [Register],
    log: LogView<'_>,
    backend: &mut dyn Backend,
    sink: &mut Sink<'_, StateRecord>,
) -> Result<(), Full> {
    for entry in log.entries {
        if let Some(register) = find(table, entry.register) {
            sink.push(StateRecord {
                origin: ORIGIN_LOG,
                ..record(register, entry.access.value)
            })?;
        }
    }
    for register in table {
        if is_shown(table, register, log, backend) {
            let value = backend.read(register.at, register.width) & register.width.mask();
            sink.push(StateRecord {
                origin: ORIGIN_READ_BACK,
                ..record(register, value)
            })?;
        }
    }
    if let Some(hidden) = backend.hidden() {
        for register in table
            .iter()
            .filter(|register| register.access == Access::Hidden)
        {
            sink.push(StateRecord {
                origin: ORIGIN_INFERRED,
                ..record(register, hidden.get(register.id))
            })?;
        }
    }
    Ok(())
}

/// Whether reading at the place of `register` shows it now, and changes nothing.
fn is_shown(
    table: &'static [Register],
    register: &Register,
    log: LogView<'_>,
    backend: &mut dyn Backend,
) -> bool {
    if !matches!(register.access, Access::ReadWrite | Access::ReadOnly) {
        return false;
    }
    match register.shown {
        Shown::Alone => is_alone(table, register),
        Shown::While {
            register: other,
            mask,
            value,
        } => {
            let Some(other) = find(table, other) else {
                return false;
            };
            let readable = matches!(other.access, Access::ReadWrite | Access::ReadOnly)
                && other.shown == Shown::Alone
                && is_alone(table, other);
            let found = if readable {
                Some(backend.read(other.at, other.width))
            } else if log.is_complete {
                Some(log.last_of(other.id).map_or(0, |entry| entry.access.value))
            } else {
                None
            };
            found.is_some_and(|found| found & mask == value)
        }
        Shown::Unlogged(other) => log.is_complete && log.last_of(other).is_none(),
    }
}

/// Whether no other register can be read where this one is.
fn is_alone(table: &[Register], register: &Register) -> bool {
    !table
        .iter()
        .any(|other| other.id != register.id && other.is_read() && other.overlaps(register))
}

#[cfg(test)]
mod tests;
