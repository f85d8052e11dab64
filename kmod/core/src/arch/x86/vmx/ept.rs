// SPDX-License-Identifier: GPL-2.0
//! Extended page tables (SDM volume 3, 29.3): the map from guest frames to the host's frames.
//!
//! The tree is filled on demand, one 4 KiB leaf at a time, and emptied when the host takes frames back. It does no locking and no
//! invalidation of cached translations: its owner does both.

use core::sync::atomic::{AtomicU64, Ordering};
use pvmm_hostabi::{Gfn, HostPage, Hpa, OutOfMemory, Pfn};

const READ: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const EXECUTE: u64 = 1 << 2;
const MEMORY_TYPE_WRITE_BACK: u64 = 6 << 3;
const DIRTY: u64 = 1 << 9;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Levels of the tree.
const LEVELS: u32 = 4;
/// Guest frames that four levels reach.
pub const MAX_GFN: u64 = 1 << 36;

/// Pages for the tree that were allocated before the lock was taken, since allocation may sleep.
pub struct TablePages<P> {
    pages: [Option<P>; (LEVELS - 1) as usize],
}

impl<P: HostPage> TablePages<P> {
    /// Allocates as many pages as one mapping may need.
    pub fn allocate(mut page: impl FnMut() -> Result<P, OutOfMemory>) -> Result<Self, OutOfMemory> {
        let mut pages = [None, None, None];
        for place in &mut pages {
            *place = Some(page()?);
        }
        Ok(Self { pages })
    }

    fn take(&mut self) -> Option<P> {
        self.pages.iter_mut().find_map(Option::take)
    }
}

/// A tree of EPT structures. It owns its pages.
pub struct Ept<P: HostPage> {
    root: P,
}

fn index(gfn: Gfn, level: u32) -> usize {
    ((gfn.0 >> (9 * level)) & 0x1ff) as usize
}

impl<P: HostPage> Ept<P> {
    /// An empty tree.
    pub const fn new(root: P) -> Self {
        Self { root }
    }

    /// The EPT pointer: write-back, four levels, accessed and dirty flags on.
    pub fn pointer(&self) -> u64 {
        self.root.phys().0 | 6 | u64::from(LEVELS - 1) << 3 | 1 << 6
    }

    /// The leaf entry of `gfn`, if all tables above it exist.
    fn leaf(&self, gfn: Gfn) -> Option<&AtomicU64> {
        if gfn.0 >= MAX_GFN {
            return None;
        }
        let mut table = self.root.words();
        for level in (1..LEVELS).rev() {
            let entry = table[index(gfn, level)].load(Ordering::Acquire);
            if entry & READ == 0 {
                return None;
            }
            // SAFETY: a present entry above the leaves holds the address of a page that `map` gave up to the tree, which
            // frees it only when it is dropped; the reference is bound to `self`.
            table = unsafe { P::words_at(Hpa(entry & ADDRESS)) };
        }
        Some(&table[index(gfn, 0)])
    }

    /// Maps `gfn` to `pfn`, replacing what was there. Takes tables that are missing from `pages`.
    ///
    /// Fails if `gfn` is beyond the tree's reach or `pages` does not suffice, which a fresh [`TablePages`] always does.
    pub fn map(
        &mut self,
        gfn: Gfn,
        pfn: Pfn,
        writable: bool,
        pages: &mut TablePages<P>,
    ) -> Result<(), OutOfMemory> {
        if gfn.0 >= MAX_GFN {
            return Err(OutOfMemory);
        }
        let mut table = self.root.words();
        for level in (1..LEVELS).rev() {
            let entry = &table[index(gfn, level)];
            let mut value = entry.load(Ordering::Acquire);
            if value & READ == 0 {
                let page = pages.take().ok_or(OutOfMemory)?;
                value = page.into_raw().0 | READ | WRITE | EXECUTE;
                entry.store(value, Ordering::Release);
            }
            // SAFETY: as in `leaf`.
            table = unsafe { P::words_at(Hpa(value & ADDRESS)) };
        }
        let rights = if writable {
            READ | WRITE | EXECUTE
        } else {
            READ | EXECUTE
        };
        table[index(gfn, 0)].store(
            pfn.hpa().0 | MEMORY_TYPE_WRITE_BACK | rights,
            Ordering::Release,
        );
        Ok(())
    }

    /// Removes the mapping of `gfn`. Returns whether there was one.
    pub fn unmap(&mut self, gfn: Gfn) -> bool {
        self.leaf(gfn)
            .is_some_and(|entry| entry.swap(0, Ordering::AcqRel) & READ != 0)
    }

    /// Clears the dirty flag of `gfn`, so that the next write is logged again.
    pub fn clear_dirty(&self, gfn: Gfn) {
        if let Some(entry) = self.leaf(gfn) {
            entry.fetch_and(!DIRTY, Ordering::AcqRel);
        }
    }

    /// Calls `free` on each table below `table`, leaves first.
    fn free_below(table: &[AtomicU64; 512], level: u32) {
        if level == 0 {
            return;
        }
        for entry in table {
            let value = entry.swap(0, Ordering::AcqRel);
            if value & READ != 0 {
                // SAFETY: a present entry above the leaves holds a page that was given up to the tree; the entry is
                // gone, so the page is taken back once.
                let page = unsafe { P::from_raw(Hpa(value & ADDRESS)) };
                Self::free_below(page.words(), level - 1);
            }
        }
    }
}

impl<P: HostPage> Drop for Ept<P> {
    fn drop(&mut self) {
        Self::free_below(self.root.words(), LEVELS - 1);
    }
}
