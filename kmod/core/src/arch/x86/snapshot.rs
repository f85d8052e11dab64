// SPDX-License-Identifier: GPL-2.0
//! The registers that carrying out an instruction outside a window needs, read when the window closed, and the changes to
//! them, written when the next one opens.
#![forbid(unsafe_code)]

use super::registers::*;
use crate::decode::CodeSize;
use pvmm_uapi::Segment;

/// An exception for the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exception {
    /// Vector.
    pub vector: u8,
    /// Error code, for the vectors that have one.
    pub error_code: Option<u32>,
    /// CR2, for a page fault.
    pub address: Option<u64>,
}

impl Exception {
    /// #UD.
    pub const INVALID_OPCODE: Self = Self {
        vector: 6,
        error_code: None,
        address: None,
    };
    /// #GP(0).
    pub const GENERAL_PROTECTION: Self = Self {
        vector: 13,
        error_code: Some(0),
        address: None,
    };
    /// #DB.
    pub const DEBUG: Self = Self {
        vector: 1,
        error_code: None,
        address: None,
    };
}

/// Registers at the end of a window.
#[derive(Debug, Clone, Copy, Default)]
pub struct Snapshot {
    /// RIP.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// CR0 as the guest sees it.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4 as the guest sees it.
    pub cr4: u64,
    /// IA32_EFER.
    pub efer: u64,
    /// ES, CS, SS, DS, FS, GS.
    pub segments: [Segment; 6],
}

impl Snapshot {
    /// The default operand and address size of the code segment.
    pub const fn code_size(&self) -> CodeSize {
        let access_rights = self.segments[1].access_rights;
        if self.efer & EFER_LMA != 0 && access_rights & (1 << 13) != 0 {
            CodeSize::Bits64
        } else if self.cr0 & CR0_PE != 0 && access_rights & (1 << 14) != 0 {
            CodeSize::Bits32
        } else {
            CodeSize::Bits16
        }
    }

    /// RIP behind an instruction of `length` bytes at RIP: it has 32 bits outside of 64-bit mode.
    pub const fn behind(&self, length: u8) -> u64 {
        let next = self.rip.wrapping_add(length as u64);
        match self.code_size() {
            CodeSize::Bits64 => next,
            CodeSize::Bits16 | CodeSize::Bits32 => next & 0xffff_ffff,
        }
    }

    /// The current privilege level: SS's DPL (SDM volume 3, 26.4.1).
    pub const fn cpl(&self) -> u8 {
        ((self.segments[2].access_rights >> 5) & 3) as u8
    }
}

/// Changes to make when the next window opens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changes {
    /// New RIP; the instruction is done.
    pub rip: Option<u64>,
    /// New RFLAGS.
    pub rflags: Option<u64>,
    /// An exception instead.
    pub exception: Option<Exception>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rip_wraps_at_32_bits_outside_of_64_bit_mode() {
        let mut snapshot = Snapshot {
            rip: 0xffff_ffff,
            cr0: CR0_PE,
            ..Snapshot::default()
        };
        snapshot.segments[1].access_rights = 0x409b;
        assert_eq!(snapshot.behind(2), 1);
        snapshot.efer = EFER_LMA;
        snapshot.segments[1].access_rights = 0x209b;
        assert_eq!(snapshot.behind(2), 0x1_0000_0001);
    }
}
