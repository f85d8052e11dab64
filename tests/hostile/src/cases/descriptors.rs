//! Segments, descriptor tables and far transfers, in the modes whose exceptions find their stack in any case.

use crate::layout::{selector, DATA, DESCRIPTORS};
use crate::random::Random;
use crate::snippet::{Mode, Privilege, Snippet};

/// A descriptor: of a type that exists, with a base and a limit at a border.
fn descriptor(random: &Random) -> u64 {
    let base = random.pick(&[0, DATA, 0xffff_f000, 0x7fff_ffff, random.next()]) & 0xffff_ffff;
    let limit = random.pick(&[0, 1, 0xfff, 0xf_ffff, random.next() & 0xf_ffff]);
    let access = u64::from(random.byte() | if random.one_in(5) { 0 } else { 0x80 });
    let flags = random.below(16);
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16) << 48
        | flags << 52
        | (base >> 24) << 56
}

/// A selector: of a random descriptor, of one of the guest's, in the LDT, or beyond both tables.
fn any_selector(random: &Random) -> u64 {
    let random_one = selector::RANDOM + 8 * random.below(selector::RANDOM_COUNT.into()) as u16;
    let known = random.pick(&[
        0,
        selector::CODE_64,
        selector::FLAT,
        selector::CODE_32,
        selector::USER_CODE_64,
        selector::USER_DATA,
        selector::USER_CODE_32,
        selector::CODE_16,
        selector::TSS_64,
        selector::LOW_CODE,
    ]);
    let selector = match random.below(8) {
        0..=4 => random_one,
        5..=6 => known,
        _ => random.next() as u16,
    };
    u64::from(selector ^ random.below(4) as u16 ^ if random.one_in(10) { 4 } else { 0 })
}

/// Loads of segment and system registers, far transfers and returns; descriptor tables that change and come back.
pub(super) fn descriptors(random: &Random) -> Snippet {
    let mode = random.pick(&[Mode::Long, Mode::Compatibility]);
    let privilege = if random.one_in(4) {
        Privilege::User
    } else {
        Privilege::Kernel
    };
    let mut snippet = Snippet::new(mode, privilege, random);
    for place in &mut snippet.descriptors {
        *place = descriptor(random);
    }
    for _ in 0..=random.below(3) {
        let selector = any_selector(random);
        let target = random.pick(&[0x3_0200, 0x200, 0, random.odd_number() & 0xffff_ffff]);
        let code = &mut snippet.code;
        code.load(0, selector);
        match random.below(10) {
            // MOV to a segment register; CS is none.
            0..=2 => {
                code.raw(&[0x8e, 0xc0 | (random.byte() & 7) << 3]);
            }
            // LLDT, LTR, VERR, VERW; LAR, LSL.
            3 => {
                code.raw(&[0x0f, 0x00, 0xd0 | (random.byte() & 0x38)]);
            }
            4 => {
                let opcode = random.pick(&[2, 3]);
                code.raw(&[0x0f, opcode, 0xc8]);
            }
            // JMP and CALL through a far pointer: JMP m16:32, with REX.W m16:64.
            5 => {
                code.load(3, DATA + 0x100);
                // mov [rbx + 4], eax; mov dword [rbx], target; jmp far [rbx]
                code.raw(&[0x89, 0x43, 4, 0xc7, 0x03])
                    .raw(&(target as u32).to_le_bytes());
                let field = random.pick(&[0x1b, 0x2b]);
                code.raw(&[0xff, field]);
            }
            // RETF and IRET to anything.
            6 => {
                code.raw(&[0x68])
                    .raw(&(any_selector(random) as u32).to_le_bytes())
                    .raw(&[0x68])
                    .raw(&(random.odd_number() as u32).to_le_bytes());
                code.raw(&[0x68])
                    .raw(&(random.next() as u32 & 0x3f_7fd7).to_le_bytes())
                    .raw(&[0x50, 0x68])
                    .raw(&(target as u32).to_le_bytes());
                let returns: [&[u8]; 6] = [
                    &[0xcf],
                    &[0x48, 0xcf],
                    &[0x66, 0xcf],
                    &[0xcb],
                    &[0x48, 0xcb],
                    &[0xca, 8, 0],
                ];
                let bytes = random.pick(&returns);
                code.raw(bytes);
            }
            // LGDT or LIDT of random bytes, and back: SGDT [rbx], LGDT [rbx + 40h], LGDT [rbx].
            7 => {
                let (save, load) = random.pick(&[(0x03, 0x10), (0x0b, 0x18)]);
                code.load(3, DESCRIPTORS);
                code.raw(&[0x0f, 0x01, save]);
                code.raw(&[0x0f, 0x01, load | 0x43, 0x40]);
                code.raw(&[0x0f, 0x01, load | 0x03]);
            }
            // SLDT, STR, SGDT, SIDT.
            8 => {
                let bytes: &[u8] = match random.below(3) {
                    0 => &[0x0f, 0x00, 0xc0],
                    1 => &[0x0f, 0x00, 0xc8],
                    _ => &[0x0f, 0x01, 0x0b],
                };
                code.load(3, DESCRIPTORS).raw(bytes);
            }
            // PUSH and POP of segments, LFS.
            _ => {
                let bytes: &[u8] = match random.below(4) {
                    0 => &[0x0f, 0xa0, 0x0f, 0xa9],
                    1 => &[0x50, 0x0f, 0xa1],
                    2 => &[0x0f, 0xb4, 0x03],
                    _ => &[0x0f, 0xb2, 0x03],
                };
                code.load(3, DATA).raw(bytes);
            }
        }
    }
    snippet
}
