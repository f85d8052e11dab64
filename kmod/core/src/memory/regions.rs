// SPDX-License-Identifier: GPL-2.0
//! The layout of guest memory: a few ranges of guest frames and where the owner's process has them. Fixed once the VM has
//! a vCPU, hence read without a lock.
#![forbid(unsafe_code)]

use core::ops::Range;
use pvmm_hostabi::{Gpa, Hva, PAGE_SHIFT, PAGE_SIZE};
use pvmm_uapi::MemoryRegion;

/// Highest number of regions.
pub const MAX_REGIONS: usize = 8;
/// Guest-physical addresses end here: what four levels of EPT reach, cut to what the dirty bitmap of a reasonable size
/// covers (1 TiB needs 32 MiB).
pub const MAX_GPA: u64 = 1 << 40;

/// One range.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Region {
    gfn: u64,
    pages: u64,
    hva: u64,
}

impl Region {
    /// Its guest frames.
    pub const fn gfns(&self) -> Range<u64> {
        self.gfn..self.gfn + self.pages
    }
}

/// Why a region was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegionError {
    /// Not page aligned, empty, or out of the address range.
    Invalid,
    /// It overlaps another.
    Overlap,
    /// There are [`MAX_REGIONS`] already.
    TooMany,
}

/// All ranges.
#[derive(Debug, Clone, Copy, Default)]
pub struct Regions {
    regions: [Region; MAX_REGIONS],
    count: usize,
}

impl Regions {
    /// Adds a range.
    pub fn add(&mut self, region: &MemoryRegion) -> Result<(), RegionError> {
        let unaligned = (region.gpa | region.size | region.hva) & (PAGE_SIZE - 1) != 0;
        let end = region.gpa.checked_add(region.size);
        if unaligned
            || region.size == 0
            || region.reserved != 0
            || end.is_none_or(|end| end > MAX_GPA)
            || region.hva.checked_add(region.size).is_none()
        {
            return Err(RegionError::Invalid);
        }
        let new = Region {
            gfn: region.gpa >> PAGE_SHIFT,
            pages: region.size >> PAGE_SHIFT,
            hva: region.hva,
        };
        let overlaps =
            |old: &Region| new.gfns().start < old.gfns().end && old.gfns().start < new.gfns().end;
        if self.iter().any(overlaps) {
            return Err(RegionError::Overlap);
        }
        *self
            .regions
            .get_mut(self.count)
            .ok_or(RegionError::TooMany)? = new;
        self.count += 1;
        Ok(())
    }

    /// The ranges in the order in which they were added.
    pub fn iter(&self) -> impl Iterator<Item = &Region> {
        self.regions.iter().take(self.count)
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// One more than the highest guest frame.
    pub fn end(&self) -> u64 {
        self.iter()
            .map(|region| region.gfns().end)
            .max()
            .unwrap_or(0)
    }

    /// Where the owner has the byte at `gpa`; `None` if that is not memory.
    pub fn hva(&self, gpa: Gpa) -> Option<Hva> {
        let gfn = gpa.0 >> PAGE_SHIFT;
        self.iter()
            .find(|region| region.gfns().contains(&gfn))
            .map(|region| Hva(region.hva + (gpa.0 - (region.gfn << PAGE_SHIFT))))
    }

    /// The guest frames that lie in a range of the owner's addresses, whole pages.
    pub fn gfns_of(&self, range: Range<Hva>) -> impl Iterator<Item = Range<u64>> + '_ {
        let (start, end) = (range.start.0 >> PAGE_SHIFT, range.end.0.div_ceil(PAGE_SIZE));
        self.iter().filter_map(move |region| {
            let first = region.hva >> PAGE_SHIFT;
            let from = start.max(first);
            let to = end.min(first + region.pages);
            (from < to).then(|| region.gfn + (from - first)..region.gfn + (to - first))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(gpa: u64, size: u64, hva: u64) -> MemoryRegion {
        MemoryRegion {
            gpa,
            size,
            hva,
            reserved: 0,
        }
    }

    #[test]
    fn overlapping_unaligned_and_empty_regions_are_refused() {
        let mut regions = Regions::default();
        assert_eq!(regions.add(&region(0x1000, 0x3000, 0x10000)), Ok(()));
        assert_eq!(
            regions.add(&region(0x3000, 0x1000, 0x20000)),
            Err(RegionError::Overlap)
        );
        assert_eq!(regions.add(&region(0x4000, 0x1000, 0x20000)), Ok(()));
        assert_eq!(
            regions.add(&region(0x8000, 0, 0x20000)),
            Err(RegionError::Invalid)
        );
        assert_eq!(
            regions.add(&region(0x8800, 0x1000, 0x20000)),
            Err(RegionError::Invalid)
        );
        assert_eq!(
            regions.add(&region(u64::MAX - 0xfff, 0x1000, 0)),
            Err(RegionError::Invalid)
        );
        assert_eq!(
            regions.add(&region(0x8000, 0x1000, u64::MAX - 0xfff)),
            Err(RegionError::Invalid)
        );
    }

    #[test]
    fn addresses_translate_both_ways_inside_a_region_only() {
        let mut regions = Regions::default();
        regions
            .add(&region(0x10_0000, 0x4000, 0x7000_0000))
            .expect("a valid region");
        assert_eq!(regions.hva(Gpa(0x10_1234)), Some(Hva(0x7000_1234)));
        assert_eq!(regions.hva(Gpa(0x10_4000)), None);
        assert_eq!(regions.hva(Gpa(0xf_ffff)), None);
        let mut found = regions.gfns_of(Hva(0x7000_1800)..Hva(0x7000_2001));
        assert_eq!(found.next(), Some(0x101..0x103));
        assert_eq!(found.next(), None);
        assert_eq!(regions.gfns_of(Hva(0)..Hva(0x7000_0000)).next(), None);
    }

    #[test]
    fn the_ninth_region_is_refused() {
        let mut regions = Regions::default();
        for n in 0..8 {
            assert_eq!(regions.add(&region(n << 20, 0x1000, 0x1000)), Ok(()));
        }
        assert_eq!(
            regions.add(&region(9 << 20, 0x1000, 0x1000)),
            Err(RegionError::TooMany)
        );
    }
}
