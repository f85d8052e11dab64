// SPDX-License-Identifier: GPL-2.0
//! Addresses, frame numbers and units as types, so that they can't be mixed up.

/// Base-2 logarithm of the page size.
pub const PAGE_SHIFT: u32 = 12;
/// The page size in bytes.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl core::fmt::LowerHex for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                core::fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}

number! {
    /// A guest-physical address.
    Gpa
}
number! {
    /// A guest frame number: a [`Gpa`] without its page offset.
    Gfn
}
number! {
    /// A host-physical address.
    Hpa
}
number! {
    /// A host page frame number: an [`Hpa`] without its page offset.
    Pfn
}
number! {
    /// A virtual address of the process that owns the guest.
    Hva
}
number! {
    /// A time or a duration in nanoseconds.
    Ns
}

/// A rate of the time-stamp counter in kHz.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TscKhz(pub u32);

impl Gpa {
    /// The frame that the address lies in.
    pub const fn gfn(self) -> Gfn {
        Gfn(self.0 >> PAGE_SHIFT)
    }
}

impl Gfn {
    /// The frame's first address; `None` if it has none in 64 bits.
    pub const fn gpa(self) -> Option<Gpa> {
        if self.0 > u64::MAX >> PAGE_SHIFT {
            return None;
        }
        Some(Gpa(self.0 << PAGE_SHIFT))
    }
}

impl Hpa {
    /// The frame that the address lies in.
    pub const fn pfn(self) -> Pfn {
        Pfn(self.0 >> PAGE_SHIFT)
    }
}

impl Pfn {
    /// The frame's first address. Host frames come from the host, so the shift loses nothing.
    pub const fn hpa(self) -> Hpa {
        Hpa(self.0 << PAGE_SHIFT)
    }
}
