// SPDX-License-Identifier: GPL-2.0
//! The walk against page tables that an independent builder made.

use super::*;
use proptest::prelude::*;
use std::collections::HashMap;
use std::vec;

/// Memory that is zero unless written, in the first 2^40 bytes.
#[derive(Default)]
struct Memory {
    words: HashMap<u64, u32>,
    next_table: u64,
}

impl GuestPhysicalRead for Memory {
    fn read_u32(&mut self, gpa: u64) -> Option<u32> {
        assert_eq!(gpa % 4, 0);
        (gpa < 1 << 40).then(|| self.words.get(&gpa).copied().unwrap_or(0))
    }

    fn read_u64(&mut self, gpa: u64) -> Option<u64> {
        assert_eq!(gpa % 8, 0);
        let low = self.read_u32(gpa)?;
        let high = self.read_u32(gpa + 4)?;
        Some(u64::from(low) | u64::from(high) << 32)
    }
}

impl Memory {
    fn new_table(&mut self) -> u64 {
        self.next_table += 0x1000;
        self.next_table
    }

    fn write(&mut self, gpa: u64, bytes: u64, value: u64) {
        self.words.insert(gpa, value as u32);
        if bytes == 8 {
            self.words.insert(gpa + 4, (value >> 32) as u32);
        }
    }
}

/// A kind of paging: its registers, the size of an entry, and the lowest address bit that each level's index has, from
/// the top.
struct Kind {
    cr4: u64,
    efer: u64,
    entry_bytes: u64,
    shifts: &'static [u32],
    linear_bits: u32,
}

const KINDS: [Kind; 4] = [
    Kind {
        cr4: 1 << 4,
        efer: 0,
        entry_bytes: 4,
        shifts: &[22, 12],
        linear_bits: 32,
    },
    Kind {
        cr4: 1 << 5,
        efer: 1 << 11,
        entry_bytes: 8,
        shifts: &[30, 21, 12],
        linear_bits: 32,
    },
    Kind {
        cr4: 1 << 5,
        efer: 1 << 10 | 1 << 11,
        entry_bytes: 8,
        shifts: &[39, 30, 21, 12],
        linear_bits: 48,
    },
    Kind {
        cr4: 1 << 5 | 1 << 12,
        efer: 1 << 10 | 1 << 11,
        entry_bytes: 8,
        shifts: &[48, 39, 30, 21, 12],
        linear_bits: 57,
    },
];

/// Whether a kind has pages of `1 << shift` bytes.
fn has_page(kind: &Kind, shift: u32) -> bool {
    match shift {
        12 | 22 => true,
        21 => true,
        30 => kind.linear_bits > 32,
        _ => false,
    }
}

/// Maps the page of `linear` to `frame` (below 2^32) with a page of `1 << leaf` bytes. `rights` are the flags of each
/// level's entry.
fn map(
    memory: &mut Memory,
    kind: &Kind,
    linear: u64,
    frame: u64,
    leaf: u32,
    rights: &[u64],
) -> Paging {
    let root = memory.new_table();
    let mut table = root;
    let mut upper = kind.linear_bits;
    for (level, &shift) in kind.shifts.iter().enumerate() {
        let index = linear >> shift & ((1 << (upper - shift)) - 1);
        upper = shift;
        let place = table + index * kind.entry_bytes;
        let pdpte_of_pae = kind.linear_bits == 32 && shift == 30;
        let flags = if pdpte_of_pae {
            rights[level] & 1
        } else {
            rights[level]
        };
        if shift == leaf {
            let size_flag = if shift == 12 { 0 } else { 1 << 7 };
            let page = frame & !((1 << shift) - 1);
            memory.write(place, kind.entry_bytes, page | size_flag | flags);
            break;
        }
        table = memory.new_table();
        memory.write(place, kind.entry_bytes, table | flags);
    }
    Paging {
        cr0: 1 << 31 | 1 << 16,
        cr3: root,
        cr4: kind.cr4,
        efer: kind.efer,
    }
}

const ALL: u64 = 7;

proptest! {
    #[test]
    fn a_mapped_page_is_found_with_every_kind_of_paging(
        kind in 0..4usize, linear: u64, frame in 0..1u64 << 32, leaf in prop::sample::select(vec![12u32, 21, 22, 30]),
    ) {
        let kind = &KINDS[kind];
        prop_assume!(kind.shifts.contains(&leaf) && has_page(kind, leaf));
        let unused = 64 - kind.linear_bits;
        let linear = if kind.linear_bits == 32 {
            linear & 0xffff_ffff
        } else {
            ((linear << unused) as i64 >> unused) as u64
        };
        let mut memory = Memory::default();
        let paging = map(&mut memory, kind, linear, frame, leaf, &[ALL; 5]);
        let offset = linear & ((1 << leaf) - 1);
        let expected = Translation { gpa: frame >> leaf << leaf | offset, remaining: (1 << leaf) - offset };
        let purpose = Purpose { write: true, user: true, fetch: true };
        prop_assert_eq!(paging.translate(linear, purpose, &mut memory), Ok(expected));
        // The page beside it has no entry of its own, except in a table that is not there at all.
        let beside = linear ^ 1 << leaf;
        let fault = TranslateError::PageFault(
            FAULT_WRITE | FAULT_USER | if kind.efer & 1 << 11 != 0 { FAULT_FETCH } else { 0 },
        );
        prop_assert_eq!(paging.translate(beside, purpose, &mut memory), Err(fault));
    }

    #[test]
    fn rights_are_those_that_every_level_grants(
        kind in 0..4usize, missing in 0..5usize, flag in prop::sample::select(vec![WRITABLE, USER]),
        write: bool, user: bool, wp: bool,
    ) {
        let kind = &KINDS[kind];
        prop_assume!(missing < kind.shifts.len());
        // A PDPTE of PAE paging has no rights.
        prop_assume!(!(kind.linear_bits == 32 && kind.shifts[missing] == 30));
        let mut rights = [ALL; 5];
        rights[missing] &= !flag;
        let mut memory = Memory::default();
        let mut paging = map(&mut memory, kind, 0x1234_5678, 0x5000, 12, &rights);
        if !wp {
            paging.cr0 &= !(1 << 16);
        }
        let refused = if flag == USER { user } else { write && (user || wp) };
        let found = paging.translate(0x1234_5678, Purpose { write, user, fetch: false }, &mut memory);
        let code = FAULT_PRESENT | if write { FAULT_WRITE } else { 0 } | if user { FAULT_USER } else { 0 };
        if refused {
            prop_assert_eq!(found, Err(TranslateError::PageFault(code)));
        } else {
            prop_assert_eq!(found.map(|found| found.gpa), Ok(0x5678));
        }
    }

    #[test]
    fn garbage_in_memory_never_makes_the_walk_panic(
        words in prop::collection::vec(any::<u32>(), 1..64), linear: u64, cr0: u64, cr3: u64, cr4: u64, efer: u64,
    ) {
        struct Garbage(vec::Vec<u32>);
        impl GuestPhysicalRead for Garbage {
            fn read_u32(&mut self, gpa: u64) -> Option<u32> {
                Some(self.0[(gpa / 4) as usize % self.0.len()])
            }
            fn read_u64(&mut self, gpa: u64) -> Option<u64> {
                Some(u64::from(self.read_u32(gpa)?) | u64::from(self.read_u32(gpa.wrapping_add(4))?) << 32)
            }
        }
        let paging = Paging { cr0, cr3, cr4, efer };
        for purpose in [Purpose::default(), Purpose { write: true, user: true, fetch: true }] {
            if let Ok(found) = paging.translate(linear, purpose, &mut Garbage(words.clone())) {
                prop_assert!(found.gpa < 1 << 52 && found.remaining > 0);
            }
        }
    }
}

#[test]
fn without_paging_an_address_is_physical() {
    let paging = Paging {
        cr0: 1,
        cr3: 0,
        cr4: 0,
        efer: 0,
    };
    let found = paging.translate(0x1_0000_0ffe, Purpose::default(), &mut Memory::default());
    assert_eq!(
        found,
        Ok(Translation {
            gpa: 0xffe,
            remaining: 2
        })
    );
}

#[test]
fn an_address_that_is_not_canonical_is_refused() {
    let mut memory = Memory::default();
    let paging = map(&mut memory, &KINDS[2], 0, 0, 12, &[ALL; 5]);
    let found = paging.translate(1 << 47, Purpose::default(), &mut memory);
    assert_eq!(found, Err(TranslateError::NotCanonical));
    let paging = Paging {
        cr4: paging.cr4 | 1 << 12,
        ..paging
    };
    let found = paging.translate(1 << 47, Purpose::default(), &mut memory);
    assert_ne!(
        found,
        Err(TranslateError::NotCanonical),
        "57 bits with 5 levels"
    );
}

#[test]
fn execute_disable_stops_only_fetches_and_only_if_enabled() {
    let mut memory = Memory::default();
    let rights = [ALL, ALL, ALL | 1 << 63, ALL, ALL];
    let paging = map(&mut memory, &KINDS[2], 0x1000, 0x9000, 12, &rights);
    let fetch = Purpose {
        fetch: true,
        ..Purpose::default()
    };
    let fault = TranslateError::PageFault(FAULT_PRESENT | FAULT_FETCH);
    assert_eq!(paging.translate(0x1000, fetch, &mut memory), Err(fault));
    assert!(paging
        .translate(0x1000, Purpose::default(), &mut memory)
        .is_ok());
    let paging = Paging {
        efer: 1 << 10,
        ..paging
    };
    assert!(paging.translate(0x1000, fetch, &mut memory).is_ok());
}

#[test]
fn a_4_mib_page_can_be_above_4_gib() {
    let mut memory = Memory::default();
    // PDE 0: base bits 39:32 = 5 in bits 20:13, base bits 31:22 = 1.
    memory.write(0x1000, 4, 0x0040_0000 | 5 << 13 | 1 << 7 | ALL);
    let paging = Paging {
        cr0: 1 << 31,
        cr3: 0x1000,
        cr4: 1 << 4,
        efer: 0,
    };
    let found = paging.translate(0x12345, Purpose::default(), &mut memory);
    assert_eq!(found.map(|found| found.gpa), Ok(0x5_0041_2345));
}

#[test]
fn a_table_that_is_not_in_memory_is_named() {
    let paging = Paging {
        cr0: 1 << 31,
        cr3: 1 << 41,
        cr4: 1 << 5,
        efer: 1 << 10,
    };
    let found = paging.translate(0x1000, Purpose::default(), &mut Memory::default());
    assert_eq!(found, Err(TranslateError::NoTable(1 << 41)));
}
