// SPDX-License-Identifier: GPL-2.0
//! Interrupt messages: what an I/O APIC or a local APIC's ICR sends, and a local APIC receives (SDM volume 3, 12.6
//! "Issuing interprocessor interrupts", and 12.11 for the message of a device).
#![forbid(unsafe_code)]

/// What the receiver does with a message. The numbers are those of the delivery mode fields of ICR, LVT and the I/O
/// APIC's redirection table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeliveryMode {
    /// 0: deliver the vector to all destinations.
    Fixed = 0,
    /// 1: deliver the vector to one destination.
    LowestPriority = 1,
    /// 2: system-management interrupt.
    Smi = 2,
    /// 4: non-maskable interrupt.
    Nmi = 4,
    /// 5: INIT.
    Init = 5,
    /// 6: start-up IPI; the vector is the page of the real-mode entry point.
    StartUp = 6,
    /// 7: as if from an 8259.
    ExtInt = 7,
}

impl DeliveryMode {
    /// The mode in bits 10:8 of `register`; `None` for the reserved number 3.
    pub const fn of(register: u32) -> Option<Self> {
        match register >> 8 & 7 {
            0 => Some(Self::Fixed),
            1 => Some(Self::LowestPriority),
            2 => Some(Self::Smi),
            4 => Some(Self::Nmi),
            5 => Some(Self::Init),
            6 => Some(Self::StartUp),
            7 => Some(Self::ExtInt),
            _ => None,
        }
    }
}

/// The trigger mode of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Trigger {
    /// Ends with its delivery.
    Edge,
    /// Ends with the EOI, which the receiver tells the I/O APIC.
    Level,
}

/// Who is to receive a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Destination {
    /// The local APIC with this ID; [`Destination::BROADCAST`] means all.
    Physical(u32),
    /// The local APICs whose logical destination register matches; [`Destination::BROADCAST`] means all.
    Logical(u32),
    /// The sender.
    Myself,
    /// All, the sender too.
    All,
    /// All but the sender.
    Others,
}

impl Destination {
    /// The destination that means all local APICs.
    pub const BROADCAST: u32 = u32::MAX;

    /// A destination from the eight bits that the I/O APIC and an ICR in xAPIC mode have.
    pub const fn from_8_bits(destination: u8, logical: bool) -> Self {
        let destination = match destination {
            0xff => Self::BROADCAST,
            other => other as u32,
        };
        Self::from_32_bits(destination, logical)
    }

    /// A destination from the 32 bits that an ICR in x2APIC mode has.
    pub const fn from_32_bits(destination: u32, logical: bool) -> Self {
        if logical {
            Self::Logical(destination)
        } else {
            Self::Physical(destination)
        }
    }
}

/// One message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct InterruptMessage {
    /// The vector; meaningful for the first two delivery modes and for a start-up IPI.
    pub vector: u8,
    /// What the receiver does.
    pub delivery: DeliveryMode,
    /// How it ends.
    pub trigger: Trigger,
    /// Who receives it.
    pub destination: Destination,
}
