// SPDX-License-Identifier: GPL-2.0
//! Devices of the host that are given to a guest.

use crate::{HostMem, OutOfMemory};

/// Why a device could not be claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClaimError {
    /// A driver of the host, or another guest, has it.
    Busy,
    /// No such range or line.
    Invalid,
    /// The host has no memory left.
    OutOfMemory,
}

impl From<OutOfMemory> for ClaimError {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

/// A claimed port range. Released on drop. The accesses are what `IN` and `OUT` do on this host; any context. An access
/// that is not wholly inside the range, or of another width, is not made: it reads all ones, which is FFh, FFFFh or
/// FFFFFFFFh by its width. Bits above the width of a read are 0.
pub trait Ports: Send + Sync + 'static {
    /// First port.
    fn base(&self) -> u16;
    /// Number of ports.
    fn count(&self) -> u16;
    /// Reads 1, 2 or 4 bytes at `offset`.
    fn read(&self, offset: u16, bytes: u8) -> u32;
    /// Writes 1, 2 or 4 bytes at `offset`.
    fn write(&self, offset: u16, bytes: u8, value: u32);
}

/// Is told of a device's interrupts.
pub trait IrqSink: Send + Sync + 'static {
    /// The line was raised. Hard interrupt context: no sleep, no lock that is held with interrupts on.
    fn interrupt(&self);
}

/// Claiming devices. Process context.
pub trait HostDev: HostMem {
    /// A claimed port range.
    type Ports: Ports;
    /// A claimed interrupt line. Dropping it waits for running calls of the sink; afterwards none comes.
    type Irq<S: IrqSink>: Send + Sync + 'static;

    /// Claims `count` ports from `base` on, exclusively. An empty range, or one beyond port FFFFh, is invalid.
    fn claim_ports(base: u16, count: u16) -> Result<Self::Ports, ClaimError>;

    /// Claims an edge-triggered ISA interrupt line, 0 to 15, exclusively. On failure `sink` is dropped.
    fn claim_irq<S: IrqSink>(irq: u32, sink: Self::Shared<S>) -> Result<Self::Irq<S>, ClaimError>;
}
