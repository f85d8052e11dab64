//! Random bytes as code, code that changes itself, random page tables, and memory written in bulk.

use super::{address, any_mode};
use crate::layout::{CODE, LAST_PAGE, PLAYGROUND_LINEAR, RAM_END};
use crate::random::Random;
use crate::snippet::{Mode, Privilege, Snippet};

/// Random bytes, with bytes at their start that lead to rarer opcodes.
fn add_random_bytes(snippet: &mut Snippet, random: &Random) {
    const STARTS: [&[u8]; 14] = [
        &[],
        &[],
        &[0x0f],
        &[0x0f, 0x01],
        &[0x0f, 0x00],
        &[0x0f, 0xc7],
        &[0x0f, 0xae],
        &[0xf3],
        &[0xf2],
        &[0x66],
        &[0x67],
        &[0xf0],
        &[0xc4],
        &[0x62],
    ];
    for _ in 0..=random.below(6) {
        let start = random.pick(&STARTS);
        snippet.code.raw(start);
        for _ in 0..=random.below(8) {
            snippet.code.raw(&[random.byte()]);
        }
    }
}

/// Random code in every mode; in ring 0 only where an exception finds a stack whatever becomes of the snippet's.
pub(super) fn random_code(random: &Random) -> Snippet {
    let mode = any_mode(random);
    let privilege = if mode.has_safe_stack(Privilege::Kernel) && random.one_in(2) {
        Privilege::Kernel
    } else {
        Privilege::User
    };
    let mut snippet = Snippet::new(mode, privilege, random);
    snippet.rflags |= random.next() & 0x0024_7ed5;
    add_random_bytes(&mut snippet, random);
    if random.one_in(4) {
        snippet.end_at_page();
        snippet.at_gap = mode == Mode::Long && random.one_in(2);
    }
    snippet
}

/// Random code in ring 0 of any mode, with registers that point to devices too.
pub(super) fn wild_code(random: &Random) -> Snippet {
    let mode = random.pick(&Mode::ALL);
    let mut snippet = Snippet::new(mode, Privilege::Kernel, random);
    snippet.rflags |= random.next() & 0x003f_7fd5;
    for register in &mut snippet.registers {
        if random.one_in(3) {
            *register = random.pick(&[
                crate::layout::HOLE,
                crate::layout::LOCAL_APIC,
                crate::layout::IO_APIC,
                address(mode, random),
            ]);
        }
    }
    add_random_bytes(&mut snippet, random);
    snippet
}

/// Accesses through the playground's page tables, which the guest fills with [`table_entry`] before each round.
pub(super) fn paging(random: &Random) -> Snippet {
    let mut snippet = Snippet::new(Mode::Long, Privilege::Kernel, random);
    if random.one_in(4) {
        snippet.privilege = Privilege::User;
    }
    for _ in 0..=random.below(4) {
        // Few tables, so that entries are met that are there.
        let index = random.below(4) << 30 | random.below(4) << 21 | random.below(4) << 12;
        let offset = random.pick(&[0, 0xff8, 0xffc, 0xfff, random.below(0x1000)]);
        let value = random.next();
        let linear = PLAYGROUND_LINEAR + (index | offset);
        snippet.code.load(0, value);
        match random.below(4) {
            0 | 1 => snippet.code.fetch(linear),
            2 => snippet.code.store(linear),
            // invlpg [rdi]
            _ => snippet.code.load(7, linear).raw(&[0x0f, 0x01, 0x3f]),
        };
    }
    snippet
}

/// A random entry of a page table at `table`, whose neighbours lead down.
pub fn table_entry(random: &Random, table: u64) -> u64 {
    let next = table + 0x1000;
    let target = match random.below(10) {
        0..=3 => next,
        4 => table,
        5 => crate::layout::DATA,
        6 => random.pick(&[
            crate::layout::LOCAL_APIC,
            crate::layout::IO_APIC,
            crate::layout::HOLE,
        ]),
        7 => RAM_END,
        8 => random.odd_number() & 0x000f_ffff_ffff_f000,
        _ => 0x80_0000,
    };
    let rights = random.pick(&[7, 7, 7, 3, 5, 1, 0, 0x87, 0x67, 0x1ff]);
    let high = random.pick(&[0, 0, 0, 0, 1 << 63, 1 << 52, 1 << 46]);
    target | rights | high
}

/// `rep stosq` over a part of the memory that nothing else uses.
pub(super) fn fill(random: &Random) -> Snippet {
    const FIRST: u64 = 0x80_0000;
    let mut snippet = Snippet::new(Mode::Long, Privilege::Kernel, random);
    let start = FIRST + random.below(RAM_END - FIRST);
    let count = random.below(0x1_0000).min((RAM_END - start) / 8);
    let value = random.next();
    snippet
        .code
        .load(0, value)
        .load(1, count)
        .load(7, start)
        .raw(&[0xf3, 0x48, 0xab]);
    snippet
}

/// Writes to the code that runs, directly, through another address, and by a device's string input.
pub(super) fn self_modifying(random: &Random) -> Snippet {
    let mut snippet = Snippet::new(Mode::Long, Privilege::Kernel, random);
    let base = if random.one_in(2) { CODE } else { LAST_PAGE };
    let target = base + 0x100 + random.below(100);
    let value = random.next();
    let count = random.below(24);
    snippet
        .code
        .load(0, value)
        .load(1, count)
        .load(2, 0x80)
        .load(6, CODE + 0x100 + random.below(100))
        .load(7, target);
    let bytes: &[u8] = match random.below(5) {
        0 => &[0xf3, 0xaa],
        1 => &[0xf3, 0xa4],
        2 => &[0xf3, 0x6c],
        3 => &[0x48, 0x89, 0x07],
        _ => &[0xf0, 0x48, 0x01, 0x07],
    };
    snippet.code.raw(bytes).raw(&[0x90; 24]);
    snippet
}
