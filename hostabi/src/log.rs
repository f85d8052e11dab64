// SPDX-License-Identifier: GPL-2.0
//! The host's log.

/// Importance of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Something failed.
    Error,
    /// Something to look at.
    Warning,
    /// A milestone.
    Info,
}

/// Writes to the host's log.
pub trait HostLog {
    /// Writes one line. Any context. A guest must not be able to make the core call this without limit.
    fn log(level: Level, message: core::fmt::Arguments<'_>);
}
