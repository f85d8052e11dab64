// SPDX-License-Identifier: GPL-2.0
//! Extended page tables (SDM volume 3, 29.3): the map from guest frames to the host's frames.
//!
//! The tree is filled on demand, one 4 KiB leaf at a time, and emptied when the host takes frames back. It does no locking and no
//! invalidation of cached translations: its owner does both.

use core::ops::Range;
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

    /// The table with the leaf entry of `gfn`; if there is none, the level at which it ends.
    fn table(&self, gfn: Gfn) -> Result<&[AtomicU64; 512], u32> {
        let mut table = self.root.words();
        for level in (1..LEVELS).rev() {
            let entry = table[index(gfn, level)].load(Ordering::Acquire);
            if entry & READ == 0 {
                return Err(level);
            }
            // SAFETY: a present entry above the leaves holds the address of a page that `map` gave up to the tree, which
            // frees it only when it is dropped; the reference is bound to `self`.
            table = unsafe { P::words_at(Hpa(entry & ADDRESS)) };
        }
        Ok(table)
    }

    /// Calls `each` with the leaf entries of `gfns` whose tables exist. What was never mapped costs a step for each table
    /// that could be there, at whatever level.
    fn for_each_leaf(&self, gfns: Range<u64>, mut each: impl FnMut(&AtomicU64)) {
        let end = gfns.end.min(MAX_GFN);
        let mut at = gfns.start;
        while at < end {
            match self.table(Gfn(at)) {
                Ok(table) => {
                    let stop = end.min((at | 0x1ff) + 1);
                    table[index(Gfn(at), 0)..=index(Gfn(stop - 1), 0)]
                        .iter()
                        .for_each(&mut each);
                    at = stop;
                }
                Err(level) => at = ((at >> (9 * level)) + 1) << (9 * level),
            }
        }
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
            // SAFETY: as in `table`.
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

    /// Removes the mappings of `gfns`. Returns whether there was one.
    pub fn unmap(&mut self, gfns: Range<u64>) -> bool {
        let mut changed = false;
        self.for_each_leaf(gfns, |entry| {
            changed |= entry.swap(0, Ordering::AcqRel) & READ != 0;
        });
        changed
    }

    /// Clears the dirty flags of `gfns`, so that the next write to each is logged again.
    pub fn clear_dirty(&self, gfns: Range<u64>) {
        self.for_each_leaf(gfns, |entry| {
            entry.fetch_and(!DIRTY, Ordering::AcqRel);
        });
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

#[cfg(test)]
mod tests {
    use super::*;
    use pvmm_hostabi::sim::{Machine, SimHost};
    use pvmm_hostabi::HostMem;
    use std::vec;

    const FAR: u64 = MAX_GFN - 1;

    /// A tree in which these frames are mapped.
    fn tree(gfns: &[u64]) -> Ept<<SimHost as HostMem>::Page> {
        let mut ept = Ept::new(SimHost::page().expect("there is memory"));
        for gfn in gfns {
            let mut pages = TablePages::allocate(SimHost::page).expect("there is memory");
            ept.map(Gfn(*gfn), Pfn(gfn + 1), true, &mut pages)
                .expect("it is within reach");
        }
        ept
    }

    fn mapped(ept: &Ept<<SimHost as HostMem>::Page>, gfn: u64) -> bool {
        let mut entries = 0;
        ept.for_each_leaf(gfn..gfn + 1, |entry| {
            entries += u64::from(entry.load(Ordering::Relaxed) & READ != 0);
        });
        entries == 1
    }

    #[test]
    fn a_range_is_unmapped_up_to_its_ends_across_tables_of_every_level() {
        let _entered = Machine::new(1).enter();
        let frames = [0, 5, 511, 512, 1 << 18, (1 << 18) - 1, 1 << 27, FAR];
        for (range, expected) in [
            (0..0, vec![]),
            (5..6, vec![5]),
            (6..511, vec![]),
            (6..513, vec![511, 512]),
            (1..1 << 27, vec![5, 511, 512, (1 << 18) - 1, 1 << 18]),
            (0..u64::MAX, frames.to_vec()),
        ] {
            let mut ept = tree(&frames);
            assert_eq!(ept.unmap(range.clone()), !expected.is_empty());
            for frame in frames {
                assert_eq!(mapped(&ept, frame), !expected.contains(&frame), "{range:?}");
            }
            assert!(!ept.unmap(range));
        }
    }

    #[test]
    fn a_range_without_mappings_costs_next_to_nothing() {
        let _entered = Machine::new(1).enter();
        let mut ept = tree(&[0, FAR]);
        let mut leaves = 0;
        ept.for_each_leaf(0..MAX_GFN, |_| leaves += 1);
        assert_eq!(leaves, 2 * 512);
        ept.clear_dirty(0..MAX_GFN);
        assert!(ept.unmap(0..MAX_GFN));
    }
}
