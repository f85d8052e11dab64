// SPDX-License-Identifier: GPL-2.0
//! Guest memory and its dirty log.

/// Argument of [`crate::SET_MEMORY_REGION`]: guest-physical memory backed by the caller's own.
///
/// The region stays until the VM ends. Regions may not overlap (`EEXIST`).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryRegion {
    /// First guest-physical address, page aligned.
    pub gpa: u64,
    /// Size, a multiple of the page size, not 0.
    pub size: u64,
    /// Where the memory lies in the caller's address space, page aligned.
    pub hva: u64,
    /// Zero.
    pub reserved: u64,
}

/// Argument of [`crate::DIRTY_LOG`].
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DirtyLog {
    /// 1 starts tracking with every page clean, 0 stops it.
    pub enable: u32,
    /// Zero.
    pub reserved: u32,
}

/// A run of dirty guest frames.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DirtyRange {
    /// First guest frame number.
    pub gfn: u64,
    /// Number of frames, not 0.
    pub pages: u64,
}

/// Argument of [`crate::DIRTY_FETCH`].
///
/// A page that is reported is clean again from the guest's view before the request returns, so a caller that copies
/// it afterwards loses no write: what is written later is reported by the next fetch.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DirtyFetch {
    /// User address of an array of [`DirtyRange`].
    pub ranges: u64,
    /// In: room in the array. Out: entries written.
    pub count: u32,
    /// Out: 1 if dirty pages were left because the array was full.
    pub more: u32,
}
