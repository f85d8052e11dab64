// SPDX-License-Identifier: GPL-2.0
//! The I/O bitmaps (SDM volume 3, 26.6.4): which ports exit. A clear bit is the *through* policy: the guest's access reaches
//! the hardware and nobody sees it.
#![forbid(unsafe_code)]

use core::sync::atomic::Ordering;
use pvmm_hostabi::{Host, HostPage, Hpa, OutOfMemory};

/// Bitmap A for ports 0 to 7FFFh, bitmap B for the rest.
pub struct IoBitmap<H: Host> {
    a: H::Page,
    b: H::Page,
}

impl<H: Host> IoBitmap<H> {
    /// A bitmap with which every port exits.
    pub fn new() -> Result<Self, OutOfMemory> {
        let bitmap = Self {
            a: H::page()?,
            b: H::page()?,
        };
        for word in bitmap.a.words().iter().chain(bitmap.b.words()) {
            word.store(u64::MAX, Ordering::Relaxed);
        }
        Ok(bitmap)
    }

    /// Addresses of A and B.
    pub fn phys(&self) -> (Hpa, Hpa) {
        (self.a.phys(), self.b.phys())
    }

    /// Whether accesses to `port` exit.
    #[cfg(test)]
    pub fn exits(&self, port: u16) -> bool {
        let page = if port < 0x8000 { &self.a } else { &self.b };
        let bit = usize::from(port & 0x7fff);
        page.words()[bit / 64].load(Ordering::Relaxed) & 1 << (bit % 64) != 0
    }

    /// Sets whether accesses to `port` exit. Takes effect at the next access.
    pub fn set(&self, port: u16, exits: bool) {
        let page = if port < 0x8000 { &self.a } else { &self.b };
        let bit = usize::from(port & 0x7fff);
        if let Some(word) = page.words().get(bit / 64) {
            let mask = 1 << (bit % 64);
            if exits {
                word.fetch_or(mask, Ordering::Relaxed);
            } else {
                word.fetch_and(!mask, Ordering::Relaxed);
            }
        }
    }
}
