//! Guests: random programs in real mode, and states for their vCPU.

use std::mem::offset_of;

use pvmm_hostile::Random;
use pvmm_uapi::{Pod, Segment, VcpuState};

use crate::arena::{GUEST_PAGES, PAGE};

/// Where the program is, a guest-physical address that is also its IP.
pub const CODE: u64 = 0x1000;
/// Most bytes of a program.
const LENGTH: usize = 256;

/// Ports that mean something to the monitor, and some that don't.
const PORTS: [u8; 12] = [
    0x20, 0x21, 0x40, 0x42, 0x43, 0x61, 0x80, 0xa0, 0xa1, 0x60, 0x70, 0x92,
];

/// Index registers that a RDMSR, WRMSR or OUT of the program may find in (E)CX and DX.
const INDICES: [u32; 8] = [
    0x10,
    0x1b,
    0x2f8,
    0x3f8,
    0x6e0,
    0x802,
    0xc000_0080,
    0xc000_0082,
];

/// A program that does something of everything and then begins again, halts or spins.
pub fn program(random: &Random) -> Vec<u8> {
    let mut code = Vec::with_capacity(LENGTH);
    let instructions = 4 + random.below(24);
    for _ in 0..instructions {
        instruction(&mut code, random);
    }
    match random.below(4) {
        // HLT, JMP to itself.
        0 => code.extend([0xf4, 0xeb, 0xfd]),
        1 => code.extend([0xeb, 0xfe]),
        _ => {
            // JMP to the beginning.
            let distance = -(code.len() as i16 + 3);
            code.push(0xe9);
            code.extend(distance.to_le_bytes());
        }
    }
    code
}

fn instruction(code: &mut Vec<u8>, random: &Random) {
    let byte = random.byte();
    let word = (random.next() as u16).to_le_bytes();
    let port = random.pick(&PORTS);
    match random.below(20) {
        // OUT imm8, AL; IN AL, imm8
        0 => code.extend([0xe6, port]),
        1 => code.extend([0xe4, port]),
        // MOV [imm16], AL; MOV AX, imm16
        2..=4 => code.extend([0xa2, word[0], word[1]]),
        5 => code.extend([0xb8, word[0], word[1]]),
        // MOV [imm32], AL: device memory, memory of other regions, and nothing
        6 | 7 => {
            let at = match random.below(4) {
                0 => 0xfee0_0000 + (random.below(64) << 4),
                1 => 0xfec0_0000 + (random.below(2) << 4),
                2 => 0x10_0000 + random.below(0x60_0000),
                _ => random.next() & 0xffff_ffff,
            };
            code.extend([0x67, 0xa2]);
            code.extend((at as u32).to_le_bytes());
        }
        // CPUID, RDTSC, RDMSR, WRMSR with a known index
        8 => code.extend([0x0f, 0xa2]),
        9 => code.extend([0x0f, 0x31]),
        10 | 11 => {
            code.extend([0x66, 0xb9]);
            code.extend(random.pick(&INDICES).to_le_bytes());
            code.extend([0x0f, if random.one_in(2) { 0x30 } else { 0x32 }]);
        }
        // HLT, STI, CLI
        12 => code.extend([if random.one_in(3) { 0xf4 } else { 0x90 }]),
        13 => code.push(0xfb),
        14 => code.push(0xfa),
        // MOV CX, imm16; REP STOSB
        15 => code.extend([0xb9, word[0], word[1], 0xf3, 0xaa]),
        // MOV DX, imm16; IN/OUT/INS/OUTS
        16 => {
            let [low, high, ..] = random.pick(&INDICES).to_le_bytes();
            let operation = random.pick(&[0xecu8, 0xed, 0xee, 0xef, 0x6c, 0x6e]);
            code.extend([0xba, low, high, operation]);
        }
        // LOOP with a small count
        17 => code.extend([0xb9, byte, 0x00, 0xe2, 0xfe]),
        // INT
        18 if random.one_in(4) => code.extend([0xcd, byte]),
        _ if random.one_in(6) => code.push(byte),
        _ => code.push(0x40 | (byte & 7)),
    }
}

/// Turns a vCPU's state into one that runs the program.
pub fn start(state: &mut VcpuState, random: &Random) {
    let data = Segment {
        base: 0,
        limit: 0xffff_ffff,
        access_rights: 0x8093,
        selector: 0,
        reserved: [0; 3],
    };
    state.segments[..6].fill(data);
    state.segments[1].access_rights = 0x809b;
    for register in &mut state.gpr {
        *register = random.next() & 0xffff;
    }
    state.gpr[4] = 0x9000;
    state.rip = CODE;
    state.rflags = if random.one_in(3) { 0x202 } else { 2 };
    state.activity = 0;
    state.event = 0;
    state.interruptibility = 0;
    state.pending_debug = 0;
}

/// Puts an unlikely number somewhere into a structure.
pub fn spoil(bytes: &mut [u8], random: &Random) {
    let width = random.pick(&[1usize, 2, 4, 8]);
    let places = bytes.len() / width;
    if places == 0 {
        return;
    }
    let at = random.below(places as u64) as usize * width;
    bytes[at..at + width].copy_from_slice(&random.odd_number().to_le_bytes()[..width]);
}

/// Spoils a state, mostly where the registers are and not in the long tail of its extended state.
pub fn spoil_state(state: &mut VcpuState, random: &Random) {
    let end = if random.one_in(4) {
        size_of::<VcpuState>()
    } else {
        offset_of!(VcpuState, msrs) + 24 * size_of::<pvmm_uapi::MsrEntry>()
    };
    spoil(&mut state.as_bytes_mut()[..end], random);
}

const _: () = assert!(CODE + (LENGTH as u64) < GUEST_PAGES * PAGE);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_fits_and_depends_on_the_seed_alone() {
        for round in 0..1000 {
            let code = program(&Random::new(1, 2, round));
            assert!(!code.is_empty() && code.len() <= LENGTH, "{}", code.len());
            assert_eq!(code, program(&Random::new(1, 2, round)));
        }
        assert_ne!(
            program(&Random::new(1, 2, 3)),
            program(&Random::new(1, 2, 4))
        );
    }

    #[test]
    fn a_spoiled_structure_differs_in_one_place() {
        for round in 0..1000 {
            let mut bytes = [0x5a; 24];
            spoil(&mut bytes, &Random::new(1, 0, round));
            let changed: Vec<usize> = (0..24).filter(|at| bytes[*at] != 0x5a).collect();
            assert!(changed.last().unwrap_or(&0) - changed.first().unwrap_or(&0) < 8);
        }
        spoil(&mut [], &Random::new(1, 0, 0));
    }
}
