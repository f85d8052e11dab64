//! Registers and instructions of the processor.

use super::{any_mode, anywhere};
use crate::random::Random;
use crate::snippet::{Mode, Privilege, Snippet};

/// MSRs that something is known of (SDM volume 4).
const MSRS: [u32; 58] = [
    0x10,
    0x17,
    0x1b,
    0x34,
    0x3a,
    0x3b,
    0x48,
    0x49,
    0x79,
    0x8b,
    0xc1,
    0xce,
    0xe1,
    0xe7,
    0xe8,
    0xfe,
    0x10a,
    0x10b,
    0x122,
    0x123,
    0x140,
    0x174,
    0x175,
    0x176,
    0x179,
    0x17a,
    0x186,
    0x198,
    0x19a,
    0x1a0,
    0x1a2,
    0x1c9,
    0x1d9,
    0x200,
    0x20f,
    0x250,
    0x268,
    0x26f,
    0x277,
    0x2ff,
    0x345,
    0x38f,
    0x400,
    0x480,
    0x48b,
    0x491,
    0x570,
    0x600,
    0x6a0,
    0x6e0,
    0xda0,
    0xc000_0080,
    0xc000_0081,
    0xc000_0082,
    0xc000_0084,
    0xc000_0100,
    0xc000_0101,
    0xc000_0103,
];

/// RDMSR and WRMSR.
pub(super) fn msr(random: &Random) -> Snippet {
    let mut snippet = anywhere(random);
    for _ in 0..=random.below(3) {
        let index = match random.below(6) {
            0..=2 => random.pick(&MSRS),
            3 => 0x800 + random.below(0x100) as u32,
            4 => {
                random.pick(&[0, 0x200, 0x480, 0xc000_0000, 0x4000_0000, 0x4b56_4d00])
                    + random.below(0x120) as u32
            }
            _ => random.odd_number() as u32,
        };
        if random.one_in(2) {
            snippet.code.load(1, index.into()).raw(&[0x0f, 0x32]);
        } else {
            let value = random.odd_number();
            snippet.code.write_msr(index, value);
        }
    }
    snippet
}

/// CPUID of any leaf.
pub(super) fn cpuid(random: &Random) -> Snippet {
    let mut snippet = anywhere(random);
    let base = random.pick(&[0, 0, 0x8000_0000, 0x4000_0000, 0xffff_ff00]);
    let leaf = if random.one_in(4) {
        random.odd_number()
    } else {
        base + random.below(0x28)
    };
    let subleaf = if random.one_in(2) {
        random.below(70)
    } else {
        random.odd_number()
    };
    snippet
        .code
        .load(0, leaf)
        .load(1, subleaf)
        .raw(&[0x0f, 0xa2]);
    if random.one_in(4) {
        snippet.end_at_page();
        snippet.at_gap = snippet.mode == Mode::Long;
    }
    snippet
}

const CR0_PE: u32 = 1 << 0;
const CR0_PG: u32 = 1 << 31;
/// CR0: PE MP EM TS ET NE WP AM NW CD PG.
const CR0_BITS: [u32; 11] = [0, 1, 2, 3, 4, 5, 16, 18, 29, 30, 31];
const CR4_PSE: u32 = 1 << 4;
const CR4_PAE: u32 = 1 << 5;
const CR4_SMEP: u32 = 1 << 20;
const CR4_SMAP: u32 = 1 << 21;

/// What of CR4 must not change for the guest to find its way back: with other bits the page tables mean something else, or
/// the handlers' pages are not the kernel's.
const fn kept_cr4(mode: Mode) -> u32 {
    match mode {
        Mode::Paged32 => CR4_PSE | CR4_SMEP | CR4_SMAP,
        Mode::Pae => CR4_PAE | CR4_SMEP | CR4_SMAP,
        _ => 0,
    }
}

/// MOV to control registers, flipping some of their bits and then putting them back; CLTS, LMSW, SMSW, XSETBV.
pub(super) fn control(random: &Random) -> Snippet {
    let mode = any_mode(random);
    let mut snippet = Snippet::new(mode, Privilege::Kernel, random);
    match random.below(8) {
        0..=2 => {
            let mut flip = 0;
            for _ in 0..=random.below(3) {
                flip |= 1 << random.pick(&CR0_BITS);
            }
            if random.one_in(6) {
                flip |= random.next() as u32;
            }
            if mode == Mode::Real {
                // An exception in protected mode would not find the real-mode vectors useful.
                flip &= !(CR0_PE | CR0_PG);
            }
            flip_control(&mut snippet, 0, flip.into());
        }
        3..=4 => {
            let mut flip = 1u32 << random.below(32);
            if random.one_in(3) {
                flip ^= 1u32 << random.below(23);
            }
            flip_control(&mut snippet, 4, (flip & !kept_cr4(mode)).into());
        }
        5 if mode == Mode::Long => {
            // CR3: cache control, PCID, reserved bits.
            let flip = random.pick(&[
                0x18,
                1,
                0xfff,
                1 << 63,
                1 << 62,
                1 << 52,
                0x8000_0000_0000_0fff,
            ]);
            flip_control(&mut snippet, 3, flip);
        }
        6 if mode == Mode::Long => {
            // CR8, and registers that don't exist.
            let value = random.odd_number();
            let register = random.pick(&[0xc0, 0xc0, 0xc8, 0xd8, 0xf8, 0xe8]);
            let opcode = random.pick(&[0x20, 0x22]);
            snippet
                .code
                .load(0, value)
                .raw(&[0x44, 0x0f, opcode, register]);
        }
        _ => {
            let value = random.odd_number();
            snippet.code.load(0, value & !1);
            match random.below(4) {
                0 => snippet.code.raw(&[0x0f, 0x06]),
                1 => snippet.code.raw(&[0x0f, 0x01, 0xf0]),
                2 => snippet.code.raw(&[0x0f, 0x01, 0xe0]),
                _ => {
                    let features = random.pick(&[0, 1, 2, 3, 4, 5, 7, 0x1f, 0xe1, 0xe7, 0x207]);
                    let index = random.pick(&[0, 0, 0, 1, 0xffff_ffff]);
                    let high = random.pick(&[0, 0, 0, 1, 0x8000_0000]);
                    snippet
                        .code
                        .load(0, features)
                        .load(1, index)
                        .load(2, high)
                        .raw(&[0x0f, 0x01, 0xd1])
                }
            };
        }
    }
    snippet
}

/// `mov ebx, cr; mov eax, ebx; xor eax, flip; mov cr, eax`, something that may exit, and `mov cr, ebx`.
fn flip_control(snippet: &mut Snippet, register: u8, flip: u64) {
    let field = register << 3;
    let long = snippet.mode == Mode::Long;
    let wide = snippet.mode.bits() == 16;
    let code = &mut snippet.code;
    code.raw(&[0x0f, 0x20, 0xc3 | field]).load(0, flip);
    if long {
        code.raw(&[0x48]);
    } else if wide {
        code.raw(&[0x66]);
    }
    // xor eax, ebx
    code.raw(&[0x31, 0xd8, 0x0f, 0x22, 0xc0 | field]);
    // cpuid would change EBX.
    code.raw(&[0x0f, 0x31, 0xf3, 0x90]);
    code.raw(&[0x0f, 0x22, 0xc3 | field]);
}

/// Instructions of VT-x and SMX, and neighbours that should not exist.
pub(super) fn vmx(random: &Random) -> Snippet {
    let mut snippet = anywhere(random);
    if snippet.mode == Mode::Long && random.one_in(3) {
        // CR4.VMXE and SMXE first, which must not work.
        let bit = random.pick(&[1 << 13, 1 << 14]);
        flip_control(&mut snippet, 4, bit);
    }
    let modrm = random.byte() & 0x3f;
    let short: [&[u8]; 14] = [
        &[0x0f, 0x01, 0xc0],
        &[0x0f, 0x01, 0xc1],
        &[0x0f, 0x01, 0xc2],
        &[0x0f, 0x01, 0xc3],
        &[0x0f, 0x01, 0xc4],
        &[0x0f, 0x01, 0xd4],
        &[0x0f, 0x01, 0xd9],
        &[0x0f, 0x01, 0xda],
        &[0x0f, 0x01, 0xdd],
        &[0x0f, 0x37],
        &[0x0f, 0x01, 0xcf],
        &[0x0f, 0x01, 0xd7],
        &[0x0f, 0x01, 0xc5],
        &[0x0f, 0x01, 0xc6],
    ];
    match random.below(3) {
        0 => {
            let bytes = random.pick(&short);
            snippet.code.raw(bytes);
        }
        1 => {
            // VMPTRLD, VMCLEAR, VMXON, VMPTRST: 0F C7 /6 and /7.
            let field = random.pick(&[0x30, 0x38]);
            for prefix in [0x66, 0xf3] {
                if random.one_in(3) {
                    snippet.code.raw(&[prefix]);
                }
            }
            snippet.code.raw(&[0x0f, 0xc7, field | (modrm & 7)]);
        }
        _ => {
            // VMREAD, VMWRITE, INVEPT, INVVPID, INVPCID.
            let operand = if random.one_in(2) {
                modrm
            } else {
                modrm | 0xc0
            };
            match random.below(5) {
                0 => snippet.code.raw(&[0x0f, 0x78, operand]),
                1 => snippet.code.raw(&[0x0f, 0x79, operand]),
                n => snippet.code.raw(&[0x66, 0x0f, 0x38, 0x7e + n as u8, modrm]),
            };
        }
    }
    snippet
}

/// Privileged or unusual instructions.
pub(super) fn system(random: &Random) -> Snippet {
    const INSTRUCTIONS: [&[u8]; 50] = [
        &[0x0f, 0x08],
        &[0x0f, 0x09],
        &[0x0f, 0x01, 0x3b],
        &[0x0f, 0x01, 0xf8],
        &[0x0f, 0x01, 0xc8],
        &[0x0f, 0x01, 0xc9],
        &[0x0f, 0x01, 0xfa],
        &[0x0f, 0x01, 0xfb],
        &[0xf3, 0x90],
        &[0x0f, 0x33],
        &[0x0f, 0x31],
        &[0x0f, 0x01, 0xf9],
        &[0x0f, 0xc7, 0xf0],
        &[0x0f, 0xc7, 0xf8],
        &[0xf3, 0x0f, 0xc7, 0xf8],
        &[0x0f, 0xaa],
        &[0x0f, 0x0b],
        &[0x0f, 0xb9, 0xc0],
        &[0x0f, 0xff, 0xc0],
        &[0x0f, 0x05],
        &[0x0f, 0x07],
        &[0x48, 0x0f, 0x07],
        &[0x0f, 0x34],
        &[0x0f, 0x35],
        &[0x48, 0x0f, 0x35],
        &[0x0f, 0x01, 0xca],
        &[0x0f, 0x01, 0xcb],
        &[0x0f, 0x01, 0xd0],
        &[0x0f, 0x01, 0xee],
        &[0x0f, 0x01, 0xef],
        &[0x0f, 0x01, 0xe8],
        &[0x0f, 0xc7, 0x2b],
        &[0x0f, 0xae, 0x03],
        &[0x0f, 0xae, 0x0b],
        &[0x0f, 0xae, 0x23],
        &[0x0f, 0xae, 0x2b],
        &[0x0f, 0xc7, 0x1b],
        &[0xf3, 0x0f, 0xae, 0xd0],
        &[0xf3, 0x0f, 0xae, 0xd8],
        &[0xf3, 0x0f, 0xc7, 0xf1],
        &[0xf3, 0x0f, 0xae, 0xf0],
        &[0x66, 0x0f, 0xae, 0xf0],
        &[0xf2, 0x0f, 0xae, 0xf0],
        &[0xf1],
        &[0xce],
        &[0x62, 0x03],
        &[0x9b],
        &[0xd9, 0x03],
        &[0x0f, 0x18, 0x03],
        &[0xc7, 0xf8, 0, 0, 0, 0],
    ];
    let mut snippet = anywhere(random);
    snippet.rflags |= random.next() & 0x0004_3ad5;
    if random.one_in(3) {
        // A shadow of STI or MOV SS before it.
        let shadow: &[u8] = if random.one_in(2) {
            &[0xfb]
        } else {
            &[0x8c, 0xd1, 0x8e, 0xd1]
        };
        snippet.code.raw(shadow);
    }
    let leaf = random.below(8);
    snippet.code.load(0, leaf);
    if random.one_in(40) {
        // Until the watchdog comes.
        snippet.code.raw(&[0xf4]);
        return snippet;
    }
    for _ in 0..=random.below(2) {
        if random.one_in(8) {
            snippet.code.raw(&[0xcd, random.byte()]);
        }
        let instruction = random.pick(&INSTRUCTIONS);
        snippet.code.raw(instruction);
    }
    snippet
}
