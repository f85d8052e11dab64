// SPDX-License-Identifier: GPL-2.0
//! The zero page (`struct boot_params`) and the memory map in it.
//!
//! Offsets are those of Documentation/arch/x86/zero-page.rst and of the setup header in boot.rst.

use super::bzimage::{LoadedInitrd, SETUP_HEADER};
use crate::memory::{GuestRam, Range, PAGE_SIZE, ROM_AREA, VGA_WINDOW};

const ACPI_RSDP_ADDR: usize = 0x070;
const EXT_RAMDISK_IMAGE: usize = 0x0c0;
const EXT_RAMDISK_SIZE: usize = 0x0c4;
const E820_ENTRIES: usize = 0x1e8;
const TYPE_OF_LOADER: usize = 0x210;
const LOADFLAGS: usize = 0x211;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const CMD_LINE_PTR: usize = 0x228;
const E820_TABLE: usize = 0x2d0;
const E820_ENTRY: usize = 20;

/// TYPE_OF_LOADER: none of the registered ones.
const LOADER_UNDEFINED: u8 = 0xff;
/// LOADFLAGS: the heap end is valid. Only 16-bit code uses the heap, so it stays clear.
const CAN_USE_HEAP: u8 = 1 << 7;

/// E820 type: usable.
pub const E820_RAM: u32 = 1;
/// E820 type: not usable.
pub const E820_RESERVED: u32 = 2;

/// Where a PC's extended BIOS data area begins. The guest gets it marked as reserved, as from a real firmware.
const EBDA: u64 = 0x9_fc00;
const FIRST_MIB: u64 = 0x10_0000;

/// One line of the memory map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct E820Entry {
    /// Where.
    pub range: Range,
    /// `E820_*`.
    pub kind: u32,
}

/// The memory map of a guest.
pub fn e820(ram: &GuestRam) -> Vec<E820Entry> {
    let entry = |gpa, end, kind| E820Entry {
        range: Range {
            gpa,
            size: end - gpa,
        },
        kind,
    };
    let mut map = vec![
        entry(0, EBDA, E820_RAM),
        entry(EBDA, VGA_WINDOW, E820_RESERVED),
        entry(ROM_AREA, FIRST_MIB, E820_RESERVED),
        entry(FIRST_MIB, ram.low_end(), E820_RAM),
    ];
    map.extend(
        ram.ranges()
            .into_iter()
            .filter(|range| range.gpa > ram.low_end())
            .map(|range| E820Entry {
                range,
                kind: E820_RAM,
            }),
    );
    map
}

/// Builds the page.
pub fn build(
    setup_header: &[u8],
    e820: &[E820Entry],
    initrd: Option<&LoadedInitrd>,
    cmdline: u64,
    rsdp: Option<u64>,
) -> Vec<u8> {
    let mut page = vec![0; PAGE_SIZE as usize];
    let mut put = |offset: usize, bytes: &[u8]| {
        page[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    // The header ends below the memory map: its length is a byte counted from 202h.
    let header = &setup_header[..setup_header.len().min(E820_TABLE - SETUP_HEADER)];
    put(SETUP_HEADER, header);
    put(TYPE_OF_LOADER, &[LOADER_UNDEFINED]);
    let loadflags = header
        .get(LOADFLAGS - SETUP_HEADER)
        .map_or(0, |flags| flags & !CAN_USE_HEAP);
    put(LOADFLAGS, &[loadflags]);
    put(CMD_LINE_PTR, &(cmdline as u32).to_le_bytes());
    let initrd = initrd.copied().unwrap_or(LoadedInitrd { gpa: 0, size: 0 });
    put(RAMDISK_IMAGE, &(initrd.gpa as u32).to_le_bytes());
    put(RAMDISK_SIZE, &(initrd.size as u32).to_le_bytes());
    put(
        EXT_RAMDISK_IMAGE,
        &((initrd.gpa >> 32) as u32).to_le_bytes(),
    );
    put(
        EXT_RAMDISK_SIZE,
        &((initrd.size >> 32) as u32).to_le_bytes(),
    );
    put(ACPI_RSDP_ADDR, &rsdp.unwrap_or(0).to_le_bytes());
    // A guest has at most five entries; the table has room for 128.
    put(E820_ENTRIES, &[e820.len() as u8]);
    for (index, entry) in e820.iter().enumerate() {
        let offset = E820_TABLE + index * E820_ENTRY;
        put(offset, &entry.range.gpa.to_le_bytes());
        put(offset + 8, &entry.range.size.to_le_bytes());
        put(offset + 16, &entry.kind.to_le_bytes());
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usable(map: &[E820Entry]) -> u64 {
        map.iter()
            .filter(|entry| entry.kind == E820_RAM)
            .map(|entry| entry.range.size)
            .sum()
    }

    #[test]
    fn the_memory_map_is_sorted_disjoint_and_inside_the_memory() {
        for mib in [64, 3072, 3073, 5000] {
            let ram = GuestRam::new("test", mib << 20).expect("sparse memory can be mapped");
            let map = e820(&ram);
            for pair in map.windows(2) {
                assert!(
                    pair[0].range.gpa + pair[0].range.size <= pair[1].range.gpa,
                    "{map:?}"
                );
            }
            for entry in &map {
                assert!(ram.contains(entry.range.gpa, entry.range.size), "{entry:?}");
            }
            assert!(usable(&map) > ((mib - 1) << 20) && usable(&map) <= mib << 20);
        }
    }

    #[test]
    fn the_fields_are_where_the_protocol_has_them() {
        let mut header = vec![0; 0x77];
        header[LOADFLAGS - SETUP_HEADER] = 0x81;
        let ram = GuestRam::new("test", 64 << 20).expect("memory can be mapped");
        let initrd = LoadedInitrd {
            gpa: 0x1_2345_6000,
            size: 0x1234,
        };
        let page = build(
            &header,
            &e820(&ram),
            Some(&initrd),
            0x2_0000,
            Some(0xe_0000),
        );
        assert_eq!(page.len(), 4096);
        assert_eq!(page[0x210], 0xff);
        assert_eq!(page[0x211], 0x01);
        assert_eq!(
            page[0x218..0x220],
            [0x00, 0x60, 0x45, 0x23, 0x34, 0x12, 0, 0]
        );
        assert_eq!(page[0xc0..0xc4], [1, 0, 0, 0]);
        assert_eq!(page[0x228..0x22c], [0, 0, 2, 0]);
        assert_eq!(page[0x70..0x78], [0, 0, 0x0e, 0, 0, 0, 0, 0]);
        assert_eq!(page[0x1e8], 4);
        assert_eq!(page[0x2d0 + 16], 1);
    }
}
