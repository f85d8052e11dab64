// SPDX-License-Identifier: GPL-2.0
//! Why a device cannot be captured, or its captured state not be made into a plan.
#![forbid(unsafe_code)]

use super::sink::Full;
use core::fmt;

/// Why a device cannot be captured now. The guest goes on at the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CaptureError {
    /// The caller's storage is too small.
    Full,
    /// The recorder has lost an access; this device cannot be moved any more.
    LogOverflow,
    /// The device did not come to rest within the kind's limit.
    Busy {
        /// The register (number in the kind's table) that shows it.
        register: u16,
    },
    /// The guest brought the device into a state that this hardware doesn't show and the recorder can't know.
    Unknowable {
        /// The register (number in the kind's table).
        register: u16,
    },
}

impl From<Full> for CaptureError {
    fn from(_: Full) -> Self {
        Self::Full
    }
}

impl fmt::Display for CaptureError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => write!(out, "no room for the device's records"),
            Self::LogOverflow => write!(
                out,
                "the recorder lost an access; the device cannot be moved"
            ),
            Self::Busy { register } => write!(
                out,
                "the device did not come to rest (register {register}); try again"
            ),
            Self::Unknowable { register } => write!(
                out,
                "the state behind register {register} cannot be found out"
            ),
        }
    }
}

impl core::error::Error for CaptureError {}

/// Why a captured state is refused. The records come from a peer; nothing of a refused state reaches a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlanError {
    /// This monitor does not know the kind.
    UnknownKind {
        /// `KIND_*` of the peer.
        kind: u32,
    },
    /// This monitor does not know this version of the kind's state.
    UnknownVersion {
        /// Name of the kind.
        kind: &'static str,
        /// Version of the peer.
        version: u32,
        /// Version of this monitor.
        known: u32,
    },
    /// The kind has no register of this number.
    UnknownRegister {
        /// Name of the kind.
        kind: &'static str,
        /// The number.
        register: u16,
    },
    /// Range, offset, width, origin or reserved bytes are not those of the register.
    Malformed {
        /// The register's name.
        register: &'static str,
    },
    /// The register cannot have this value.
    Value {
        /// The register's name.
        register: &'static str,
        /// The value.
        value: u64,
    },
    /// A guest cannot have made this access at this point of the sequence.
    Sequence {
        /// The register's name.
        register: &'static str,
    },
    /// The register comes more than once, or more often than the device can hold.
    Repeated {
        /// The register's name.
        register: &'static str,
    },
    /// A register without which the state is incomplete does not come.
    Missing {
        /// The register's name.
        register: &'static str,
    },
    /// The caller's storage is too small for the plan.
    Full,
}

impl From<Full> for PlanError {
    fn from(_: Full) -> Self {
        Self::Full
    }
}

impl fmt::Display for PlanError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownKind { kind } => write!(out, "unknown device kind {kind}"),
            Self::UnknownVersion {
                kind,
                version,
                known,
            } => {
                write!(
                    out,
                    "{kind}: state version {version} is unknown, this monitor has {known}"
                )
            }
            Self::UnknownRegister { kind, register } => {
                write!(out, "{kind}: unknown register {register}")
            }
            Self::Malformed { register } => write!(out, "{register}: malformed record"),
            Self::Value { register, value } => {
                write!(out, "{register}: impossible value {value:#x}")
            }
            Self::Sequence { register } => write!(
                out,
                "{register}: not possible at this point of the sequence"
            ),
            Self::Repeated { register } => write!(out, "{register}: too many records"),
            Self::Missing { register } => write!(out, "{register}: record missing"),
            Self::Full => write!(out, "no room for the restore plan"),
        }
    }
}

impl core::error::Error for PlanError {}
