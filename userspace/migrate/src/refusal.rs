// SPDX-License-Identifier: GPL-2.0
//! Why a host does not take a guest: every reason, before the first page.
//!
//! Place on the path: the answer to the description. It travels back to the source as a record, so that the operator
//! there reads the same text as in the target's log.

use crate::channel::printable;
use crate::cpuid::bit_names;
use serde::{Deserialize, Serialize};
use std::fmt;

/// One reason. Its text says what does not fit and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// The description is malformed.
    #[error("the guest's description is malformed: {0}; the source's daemon is broken or of an incompatible version")]
    Description(String),
    /// The modules' interfaces differ.
    #[error("the guest runs on module interface {need}, this host has {have}; load the same version of pvmm.ko on both hosts")]
    ApiVersion {
        /// The source's.
        need: u32,
        /// The target's.
        have: u32,
    },
    /// A guest of that name is already here.
    #[error("a guest named \"{0}\" is already on this host; stop or rename one of them, or, if it is what a broken move left, wait until this host gives that up")]
    Name(String),
    /// Too little memory.
    #[error("the guest has {need} bytes of memory, this host can give {have}; free memory or raise --max-memory")]
    Memory {
        /// Bytes that the guest has.
        need: u64,
        /// Bytes that are free here.
        have: u64,
    },
    /// Too many vCPUs.
    #[error("the guest has {need} vCPUs, this host's module supports {have}")]
    Vcpus {
        /// The guest's.
        need: u32,
        /// The host's.
        have: u32,
    },
    /// VM flags that this host cannot provide.
    #[error("the guest was made with flags {missing:#x}, which this host's module does not know; load the same version of pvmm.ko on both hosts")]
    Flags {
        /// The bits that are missing here.
        missing: u32,
    },
    /// CPU features that the guest has and this host lacks.
    #[error("the guest's CPU has {names} (CPUID leaf {leaf:#x} subleaf {subleaf:#x} {register} bits {missing:#x}), which this host lacks; start the guest with a CPUID table that both hosts can provide", names = bit_names(*.leaf, *.subleaf, .register, *.missing))]
    CpuidBits {
        /// EAX on input.
        leaf: u32,
        /// ECX on input.
        subleaf: u32,
        /// `EAX` to `EDX`.
        register: String,
        /// The bits that are missing here.
        missing: u32,
    },
    /// A number in CPUID that must not be higher than the host's, or must be equal.
    #[error("the guest's CPUID leaf {leaf:#x} subleaf {subleaf:#x} {register} is {need:#x}, this host's {have:#x}: {rule}")]
    CpuidValue {
        /// EAX on input.
        leaf: u32,
        /// ECX on input.
        subleaf: u32,
        /// `EAX` to `EDX`.
        register: String,
        /// The guest's.
        need: u32,
        /// The host's.
        have: u32,
        /// What does not hold.
        rule: String,
    },
    /// Extended state that this host cannot keep.
    #[error("the guest may use extended state {missing:#x} of XCR0, which this host lacks")]
    Xcr0 {
        /// The bits that are missing here.
        missing: u64,
    },
    /// Another TSC rate, and no scaling.
    #[error("the guest's TSC runs at {need} kHz, this host's at {have} kHz, and its CPU has no TSC scaling; use a host of the same rate or one with TSC scaling")]
    TscRate {
        /// The guest's, in kHz.
        need: u32,
        /// The host's, in kHz.
        have: u32,
    },
    /// A device kind that this monitor does not know.
    #[error("the guest has device {device} of kind {kind}, which this host's monitor does not know; install the same version of pvmm on both hosts")]
    DeviceKind {
        /// Its number.
        device: u32,
        /// `KIND_*`.
        kind: u32,
    },
    /// A device state of another version.
    #[error("the guest's {kind} (device {device}) has state version {need}, this host's monitor restores version {have}; install the same version of pvmm on both hosts")]
    DeviceVersion {
        /// Its number.
        device: u32,
        /// The kind's name.
        kind: String,
        /// The source's.
        need: u32,
        /// The target's.
        have: u32,
    },
    /// No granted device that fits.
    #[error("the guest has a passed-through {kind} at port {port:#x} IRQ {irq}, and this host {why}; start its daemon with --grant {kind},port={port:#x},irq={irq}, or free the device", irq = irq_text(*irq))]
    DeviceNotGranted {
        /// The kind's name.
        kind: String,
        /// First port that the guest sees.
        port: u32,
        /// ISA interrupt that the guest sees; 0 for none.
        irq: u32,
        /// What stands against it.
        why: String,
    },
    /// A userspace device that this daemon lacks or has in an older version.
    #[error("the guest has the userspace device \"{name}\" with state version {need}, this host's daemon {have}; install the same version of pvmmd on both hosts")]
    UserDevice {
        /// Its name.
        name: String,
        /// The source's version.
        need: u32,
        /// What the target has.
        have: String,
    },
    /// Found while the guest was being prepared: memory could not be allocated, a device could not be claimed, ...
    #[error("{0}")]
    Other(String),
}

/// A device that a reason is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Concern<'a> {
    /// The recorded device with this number.
    Device(u32),
    /// The passed-through device whose first port in the guest is this.
    Port(u32),
    /// The userspace device with this name.
    UserDevice(&'a str),
}

impl Reason {
    /// The device that it is about; `None` if it is about the guest as a whole.
    pub fn concern(&self) -> Option<Concern<'_>> {
        match self {
            Self::DeviceKind { device, .. } | Self::DeviceVersion { device, .. } => {
                Some(Concern::Device(*device))
            }
            Self::DeviceNotGranted { port, .. } => Some(Concern::Port(*port)),
            Self::UserDevice { name, .. } => Some(Concern::UserDevice(name)),
            _ => None,
        }
    }
}

/// An interrupt as an option has it.
fn irq_text(irq: u32) -> String {
    match irq {
        0 => "none".into(),
        irq => irq.to_string(),
    }
}

/// All reasons why a host does not take a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The reasons, at least one.
    pub reasons: Vec<Reason>,
}

impl Refusal {
    /// A refusal for a reason that only the daemon knows. `text` says what failed and what to do.
    pub fn other(text: impl Into<String>) -> Self {
        Reason::Other(text.into()).into()
    }
}

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Self {
        Self {
            reasons: vec![reason],
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, reason) in self.reasons.iter().enumerate() {
            if index > 0 {
                f.write_str("; ")?;
            }
            // The texts in it may be a peer's.
            f.write_str(&printable(&reason.to_string()))?;
        }
        Ok(())
    }
}

impl std::error::Error for Refusal {}
