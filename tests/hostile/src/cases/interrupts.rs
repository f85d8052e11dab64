//! Interrupt controllers, storms, and debug exceptions.

use super::{address, any_mode};
use crate::layout::{CODE, DATA, IO_APIC, LOCAL_APIC};
use crate::random::Random;
use crate::snippet::{Mode, Privilege, Snippet};

/// RFLAGS.IF.
const IF: u64 = 1 << 9;
/// RFLAGS.TF.
const TF: u64 = 1 << 8;

/// Registers of the local APIC: ICR, EOI, SVR, TPR, LVTs, timer.
const REGISTERS: [u64; 20] = [
    0x300, 0x310, 0x300, 0xb0, 0xf0, 0x80, 0xd0, 0xe0, 0x280, 0x2f0, 0x320, 0x330, 0x340, 0x350,
    0x360, 0x370, 0x380, 0x390, 0x3e0, 0x20,
];

/// Writes and reads of the registers of both APICs.
pub(super) fn apic(random: &Random) -> Snippet {
    let mut snippet = Snippet::new(Mode::Long, Privilege::Kernel, random);
    if random.one_in(2) {
        snippet.rflags |= IF;
    }
    for _ in 0..=random.below(5) {
        let value = random.odd_number();
        if random.one_in(3) {
            // Index and data; entries are 10h to 3Fh, others must read as nothing.
            let index = random.pick(&[0, 1, 2]) + 0x10 * random.below(4) + random.below(14);
            snippet
                .code
                .load(0, index)
                .store(IO_APIC)
                .load(0, value)
                .store(IO_APIC + 0x10);
        } else {
            let register = if random.one_in(4) {
                random.below(0x100) << 4
            } else {
                random.pick(&REGISTERS)
            };
            // In self-IPIs the shorthand must not say others, or nothing comes of it.
            let value = if register == 0x300 {
                value & 0xcfff | random.pick(&[0x4_0000, 0x8_0000, 0, 0xc_0000])
            } else {
                value
            };
            snippet.code.load(0, value).store(LOCAL_APIC + register);
        }
        if random.one_in(3) {
            let register = random.pick(&REGISTERS);
            snippet.code.fetch(LOCAL_APIC + register);
        }
    }
    snippet
}

/// As many interrupts as can be had in a short time.
pub(super) fn storm(random: &Random) -> Snippet {
    let mut snippet = Snippet::new(Mode::Long, Privilege::Kernel, random);
    snippet.rflags |= IF;
    snippet.resumes = 200;
    let vector = 0x20 + random.below(0xe0);
    let kind = random.below(7);
    let code = &mut snippet.code;
    match kind {
        // Self-IPIs, NMIs among them.
        0 | 1 => {
            let command = if kind == 0 { vector } else { 0x400 };
            let place = code.repeat(40);
            code.load(0, 0x4_0000 | command)
                .store(LOCAL_APIC + 0x300)
                .again(place);
        }
        2 => {
            let place = code.repeat(100);
            code.raw(&[0xcd, vector as u8]).again(place);
        }
        // The 8254 at its fastest, through the 8259 pair.
        3 => {
            code.out(0x20, 0x11)
                .out(0x21, 0x20)
                .out(0x21, 4)
                .out(0x21, random.pick(&[1, 3, 0x11]))
                .out(0x21, 0xfe)
                .out(0x43, 0x34)
                .out(0x40, 2)
                .out(0x40, 0);
            code.load(0, 0x700).store(LOCAL_APIC + 0x350);
            let place = code.repeat(2_000);
            code.raw(&[0xf3, 0x90]).again(place);
        }
        // The 8259 pair initialised again and again while it is used.
        4 => {
            let place = code.repeat(30);
            code.out(0x20, random.byte() | 0x10)
                .out(0x21, random.byte())
                .out(0x21, random.byte())
                .out(0xa0, random.byte())
                .out(0xa1, random.byte())
                .out(0x20, random.byte())
                .again(place);
        }
        // The local APIC's timer with the shortest period.
        5 => {
            let divide = random.pick(&[0xb, 0, 3]);
            code.load(0, divide)
                .store(LOCAL_APIC + 0x3e0)
                .load(0, 0x2_0000 | vector)
                .store(LOCAL_APIC + 0x320)
                .load(0, 1 + random.below(4))
                .store(LOCAL_APIC + 0x380);
            let place = code.repeat(2_000);
            code.raw(&[0xf3, 0x90]).again(place);
        }
        // TSC deadlines in the past, at once, and never.
        _ => {
            code.load(0, 0x4_0000 | vector).store(LOCAL_APIC + 0x320);
            let place = code.repeat(40);
            code.raw(&[0x51])
                .write_msr(0x6e0, random.odd_number())
                .raw(&[0x59])
                .again(place);
        }
    }
    snippet
}

/// Breakpoints, single steps, general detect, with the instructions that exit among those that are traced.
pub(super) fn debug(random: &Random) -> Snippet {
    let mode = any_mode(random);
    let privilege = if random.one_in(4) {
        Privilege::User
    } else {
        Privilege::Kernel
    };
    let mut snippet = Snippet::new(mode, privilege, random);
    snippet.resumes = if random.one_in(2) { 0 } else { 30 };
    if random.one_in(2) {
        snippet.rflags |= TF;
    }
    if random.one_in(3) {
        snippet.rflags |= IF;
    }
    for _ in 0..random.below(4) {
        let number = random.byte() & 7;
        let value = match number {
            0..=3 => random.pick(&[
                CODE + 0x100 + random.below(64),
                DATA + random.below(0x1000),
                address(mode, random),
                0x80,
            ]),
            7 => random.next() & 0xffff_ffff,
            _ => random.odd_number(),
        };
        let opcode = if random.one_in(4) { 0x21 } else { 0x23 };
        snippet
            .code
            .load(0, value)
            .raw(&[0x0f, opcode, 0xc0 | number << 3]);
    }
    const TRACED: [&[u8]; 14] = [
        &[0x0f, 0xa2],
        &[0x90],
        &[0xfb],
        &[0x8c, 0xd1, 0x8e, 0xd1],
        &[0x8c, 0xd1, 0x8e, 0xd1, 0x0f, 0xa2],
        &[0x8c, 0xd1, 0x8e, 0xd1, 0xf1],
        &[0x8c, 0xd1, 0x8e, 0xd1, 0xcc],
        &[0xfb, 0xf1],
        &[0xe4, 0x80],
        &[0xe6, 0x80],
        &[0xf1],
        &[0x9c, 0x9d],
        &[0x0f, 0x01, 0xe0],
        &[0xfb, 0x0f, 0x32],
    ];
    for _ in 0..=random.below(4) {
        let bytes = random.pick(&TRACED);
        snippet.code.raw(bytes);
    }
    if random.one_in(30) {
        // STI, HLT with a single step due.
        snippet.code.raw(&[0xfb, 0xf4]);
    }
    snippet
}
