// SPDX-License-Identifier: GPL-2.0
//! Guest memory: a memfd, mapped shared, in the ranges where a PC has RAM.
//!
//! The guest changes this memory at any time, so it is never seen as a slice; everything is copied in or out by
//! `vm-memory`'s volatile accesses. An untouched page costs nothing: the file is sparse.

use crate::error::VmmError;
use std::fs::File;
use std::sync::Arc;
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap, MmapRegion,
};

/// One contiguous range of guest memory.
pub type GuestRegion = GuestRegionMmap<()>;

/// Size of a page in bytes.
pub const PAGE_SIZE: u64 = 4096;
/// Conventional memory ends here; up to [`ROM_AREA`] is the VGA window, which is not memory.
pub const VGA_WINDOW: u64 = 0xa_0000;
/// The upper part of the first MiB, where a PC has its ROMs and this guest its ACPI tables: memory.
pub const ROM_AREA: u64 = 0xc_0000;
/// Memory below 4 GiB ends here at the latest; above is the PCI hole with the APICs.
pub const LOW_MEMORY_END: u64 = 0xc000_0000;
/// What does not fit below the hole continues here.
pub const HIGH_MEMORY: u64 = 0x1_0000_0000;
/// Smallest guest.
pub const MIN_MEMORY: u64 = 4 << 20;
/// Largest guest: 1 TiB.
pub const MAX_MEMORY: u64 = 1 << 40;

/// A range of guest-physical addresses, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// First address.
    pub gpa: u64,
    /// Length.
    pub size: u64,
}

/// Where a guest of `size` bytes has memory, in ascending order.
pub fn layout(size: u64) -> Result<Vec<Range>, VmmError> {
    if !(MIN_MEMORY..=MAX_MEMORY).contains(&size) || size % PAGE_SIZE != 0 {
        return Err(VmmError::MemorySize { size });
    }
    let low_end = size.min(LOW_MEMORY_END);
    let mut ranges = vec![
        Range {
            gpa: 0,
            size: VGA_WINDOW,
        },
        Range {
            gpa: ROM_AREA,
            size: low_end - ROM_AREA,
        },
    ];
    if size > LOW_MEMORY_END {
        ranges.push(Range {
            gpa: HIGH_MEMORY,
            size: size - LOW_MEMORY_END,
        });
    }
    Ok(ranges)
}

/// A guest's memory.
#[derive(Debug, Clone)]
pub struct GuestRam {
    size: u64,
    memory: GuestMemoryMmap<()>,
    regions: Vec<Arc<GuestRegion>>,
}

impl GuestRam {
    /// Maps `size` bytes of zeroed memory, laid out as [`layout`] says. `name` shows up in `/proc/PID/maps`.
    pub fn new(name: &str, size: u64) -> Result<Self, VmmError> {
        let layout = layout(size)?;
        let failed = |reason: String| VmmError::Memory { size, reason };
        let file = nix::sys::memfd::memfd_create(name, nix::sys::memfd::MFdFlags::MFD_CLOEXEC)
            .map_err(|errno| failed(format!("memfd_create: {errno}")))?;
        let file = Arc::new(File::from(file));
        file.set_len(size)
            .map_err(|error| failed(format!("ftruncate: {error}")))?;
        let mut regions = Vec::new();
        let mut offset = 0;
        for range in &layout {
            let length = usize::try_from(range.size)
                .map_err(|_| failed("larger than the address space".into()))?;
            let mapping =
                MmapRegion::from_file(FileOffset::from_arc(Arc::clone(&file), offset), length)
                    .map_err(|error| failed(error.to_string()))?;
            let region = GuestRegion::new(mapping, GuestAddress(range.gpa))
                .ok_or_else(|| failed("a region ends beyond the address space".into()))?;
            regions.push(Arc::new(region));
            // The VGA window's place in the file stays a hole, so that addresses and file offsets agree and large
            // pages can line up.
            offset = match range.gpa {
                0 => ROM_AREA,
                _ => offset + range.size,
            };
        }
        let memory = GuestMemoryMmap::from_arc_regions(regions.clone())
            .map_err(|error| failed(error.to_string()))?;
        Ok(Self {
            size,
            memory,
            regions,
        })
    }

    /// Size as the operator gave it, in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The regions, in ascending order.
    pub fn regions(&self) -> &[Arc<GuestRegion>] {
        &self.regions
    }

    /// The ranges, in ascending order.
    pub fn ranges(&self) -> Vec<Range> {
        self.regions
            .iter()
            .map(|region| Range {
                gpa: region.start_addr().0,
                size: region.len(),
            })
            .collect()
    }

    /// End of the memory below the PCI hole.
    pub fn low_end(&self) -> u64 {
        self.size.min(LOW_MEMORY_END)
    }

    /// If all of `length` bytes from `gpa` are memory.
    pub fn contains(&self, gpa: u64, length: u64) -> bool {
        usize::try_from(length)
            .is_ok_and(|length| self.memory.check_range(GuestAddress(gpa), length))
    }

    /// Copies out of guest memory.
    pub fn read(&self, gpa: u64, buffer: &mut [u8]) -> Result<(), VmmError> {
        self.memory
            .read_slice(buffer, GuestAddress(gpa))
            .map_err(|_| VmmError::GuestAddress {
                gpa,
                length: buffer.len(),
            })
    }

    /// Copies into guest memory.
    pub fn write(&self, gpa: u64, data: &[u8]) -> Result<(), VmmError> {
        self.memory
            .write_slice(data, GuestAddress(gpa))
            .map_err(|_| VmmError::GuestAddress {
                gpa,
                length: data.len(),
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_leaves_out_the_vga_window_and_the_pci_hole() {
        let small = layout(64 << 20).expect("a valid size");
        assert_eq!(
            small,
            [
                Range {
                    gpa: 0,
                    size: 0xa_0000
                },
                Range {
                    gpa: 0xc_0000,
                    size: (64 << 20) - 0xc_0000
                },
            ]
        );
        let large = layout(5 << 30).expect("a valid size");
        assert_eq!(large.len(), 3);
        assert_eq!(large[1].gpa + large[1].size, LOW_MEMORY_END);
        assert_eq!(
            large[2],
            Range {
                gpa: HIGH_MEMORY,
                size: 2 << 30
            }
        );
    }

    #[test]
    fn a_size_that_is_odd_or_out_of_range_is_refused() {
        for size in [0, 4096, (64 << 20) + 1, u64::MAX, 2 << 40] {
            assert!(layout(size).is_err(), "{size}");
        }
    }

    #[test]
    fn what_is_written_is_read_and_no_access_leaves_the_memory() {
        let ram = GuestRam::new("test", 8 << 20).expect("8 MiB can be mapped");
        ram.write(0x10_0000, b"guest").expect("memory");
        let mut buffer = [0; 5];
        ram.read(0x10_0000, &mut buffer).expect("memory");
        assert_eq!(&buffer, b"guest");
        assert!(ram.read(VGA_WINDOW - 2, &mut buffer).is_err());
        assert!(ram.write((8 << 20) - 4, b"guest").is_err());
        assert!(ram.write(u64::MAX, b"guest").is_err());
        assert!(ram.contains(ROM_AREA, 0x4_0000));
        assert!(!ram.contains(VGA_WINDOW, 1));
        assert!(!ram.contains(u64::MAX, u64::MAX));
    }
}
