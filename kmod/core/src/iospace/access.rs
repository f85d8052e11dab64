// SPDX-License-Identifier: GPL-2.0
//! One access of a guest to a device: the type that every step of the path speaks, from the exit to the plan on
//! the peer.

/// Width of an access.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Width {
    /// One byte.
    W1,
    /// Two bytes.
    W2,
    /// Four bytes.
    W4,
    /// Eight bytes; memory only.
    W8,
}

impl Width {
    /// The width of `bytes` bytes.
    pub const fn from_bytes(bytes: u8) -> Option<Self> {
        match bytes {
            1 => Some(Self::W1),
            2 => Some(Self::W2),
            4 => Some(Self::W4),
            8 => Some(Self::W8),
            _ => None,
        }
    }

    /// The width in bytes.
    pub const fn bytes(self) -> u8 {
        match self {
            Self::W1 => 1,
            Self::W2 => 2,
            Self::W4 => 4,
            Self::W8 => 8,
        }
    }

    /// The bits that an access of this width carries. What an absent device answers to a read.
    pub const fn mask(self) -> u64 {
        match self {
            Self::W1 => 0xff,
            Self::W2 => 0xffff,
            Self::W4 => 0xffff_ffff,
            Self::W8 => u64::MAX,
        }
    }
}

/// Read or write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The guest reads.
    Read,
    /// The guest writes.
    Write,
}

/// A place in a device: one of its ranges (ports, memory or PCI configuration, in the order in which the kind lists
/// them) and the offset in it. Absolute addresses stay outside of device code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    /// Index of the range.
    pub range: u8,
    /// Offset in bytes.
    pub offset: u64,
}

impl Location {
    /// The place at `offset` in range `range`.
    pub const fn new(range: u8, offset: u64) -> Self {
        Self { range, offset }
    }
}

/// One access.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Access {
    /// Where.
    pub at: Location,
    /// How wide.
    pub width: Width,
    /// Which way.
    pub direction: Direction,
    /// What was written, or what the device returned. Only the bits of `width.mask()` are ever set.
    pub value: u64,
}

impl Access {
    /// A read that returned `value`.
    pub const fn read(at: Location, width: Width, value: u64) -> Self {
        Self {
            at,
            width,
            direction: Direction::Read,
            value: value & width.mask(),
        }
    }

    /// A write of `value`.
    pub const fn write(at: Location, width: Width, value: u64) -> Self {
        Self {
            at,
            width,
            direction: Direction::Write,
            value: value & width.mask(),
        }
    }
}
