//! Ports and device memory.

use super::anywhere;
use crate::layout::{CODE, DATA, HOLE, IO_APIC, LOCAL_APIC, ROOM};
use crate::random::Random;
use crate::snippet::{Mode, Privilege, Snippet};

/// Ports that have something behind them, or once had.
const PORTS: [u16; 20] = [
    0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1, 0x40, 0x43, 0x61, 0x60, 0x64, 0x70, 0x71, 0x80, 0x92,
    0x2f8, 0x2fa, 0x600, 0x608, 0xcf8,
];

/// A port, but not one by which the guest ends itself.
fn port(random: &Random) -> u16 {
    let port = match random.below(3) {
        0 => random.pick(&PORTS).wrapping_add(random.below(4) as u16),
        1 => random.below(0x700) as u16,
        _ => random.next() as u16,
    };
    match port {
        // PM1_CNT, the keyboard controller's reset, fast reset, RST_CNT; and accesses of up to four bytes that reach them.
        0x601..=0x605 | 0x61..=0x64 | 0x8f..=0x92 | 0xcf6..=0xcf9 => port ^ 0x2000,
        port => port,
    }
}

/// IN and OUT in all their forms.
pub(super) fn ports(random: &Random) -> Snippet {
    let mut snippet = anywhere(random);
    // IOPL 3 lets ring 3 do it too.
    snippet.rflags |= random.below(4) << 12;
    for _ in 0..=random.below(4) {
        let (port, value) = (port(random), random.odd_number());
        snippet.code.load(2, port.into()).load(0, value);
        if random.one_in(4) {
            snippet.code.raw(&[0x66]);
        }
        let opcode = random.pick(&[0xec, 0xed, 0xee, 0xef, 0xe4, 0xe5, 0xe6, 0xe7]);
        if opcode < 0xe8 {
            let near = self::port(random) as u8;
            let near = if near == 0x64 || near == 0x92 || near > 0xf8 {
                0x80
            } else {
                near
            };
            snippet.code.raw(&[opcode, near]);
        } else {
            snippet.code.raw(&[opcode]);
        }
    }
    snippet
}

/// INS and OUTS with every prefix, to memory of all kinds.
pub(super) fn string_ports(random: &Random) -> Snippet {
    let mut snippet = anywhere(random);
    snippet.rflags |= random.below(4) << 12;
    if random.one_in(3) {
        // DF
        snippet.rflags |= 1 << 10;
    }
    let count = if random.one_in(8) {
        random.odd_number()
    } else {
        random.below(40)
    };
    snippet.code.load(1, count).load(2, port(random).into());
    for register in [6, 7] {
        if snippet.mode == Mode::Long && random.one_in(4) {
            let address = random.pick(&[HOLE, LOCAL_APIC, IO_APIC, CODE + 0x100]);
            snippet.code.load(register, address + random.below(0x1000));
        }
    }
    for _ in 0..random.below(4) {
        let prefix = random.pick(&[
            0x66, 0x67, 0xf2, 0xf3, 0xf3, 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x4f, 0x40,
        ]);
        snippet.code.raw(&[prefix]);
    }
    let opcode = random.pick(&[0x6c, 0x6d, 0x6e, 0x6f]);
    snippet.code.raw(&[opcode]);
    if random.one_in(4) {
        snippet.end_at_page();
        snippet.at_gap = snippet.mode == Mode::Long && random.one_in(2);
    }
    snippet
}

/// Opcodes with a ModRM byte that the monitor's decoder knows, and the bytes of the immediate that follows.
const MEMORY_OPCODES: [(&[u8], usize); 30] = [
    (&[0x88], 0),
    (&[0x89], 0),
    (&[0x8a], 0),
    (&[0x8b], 0),
    (&[0x00], 0),
    (&[0x01], 0),
    (&[0x03], 0),
    (&[0x21], 0),
    (&[0x29], 0),
    (&[0x33], 0),
    (&[0x39], 0),
    (&[0x3b], 0),
    (&[0x84], 0),
    (&[0x85], 0),
    (&[0x86], 0),
    (&[0x87], 0),
    (&[0x80], 1),
    (&[0x83], 1),
    (&[0x0f, 0xa3], 0),
    (&[0x0f, 0xab], 0),
    (&[0x0f, 0xb3], 0),
    (&[0x0f, 0xbb], 0),
    (&[0x0f, 0xb6], 0),
    (&[0x0f, 0xb7], 0),
    (&[0x0f, 0xbe], 0),
    (&[0x0f, 0xbf], 0),
    (&[0x0f, 0xc3], 0),
    (&[0xf0, 0x01], 0),
    (&[0xf0, 0x0f, 0xab], 0),
    (&[0xf0, 0x87], 0),
];

/// An address in device memory, or where there is nothing; also ones that cross into the next page.
fn device_address(random: &Random) -> u64 {
    let page = random.pick(&[LOCAL_APIC, LOCAL_APIC, IO_APIC, HOLE]);
    let offset = match random.below(4) {
        0 => random.below(0x40) << 4,
        1 => random.below(0x1000),
        2 => 0x1000 - random.below(9),
        _ => random.pick(&[0x20, 0x80, 0xb0, 0xf0, 0x320, 0x380, 0x390, 0x3e0, 0x10]),
    };
    page + offset
}

/// Instructions that software uses on device memory, in all widths, aligned and not.
pub(super) fn memory(random: &Random) -> Snippet {
    let mode = random.pick(&[Mode::Long, Mode::Long, Mode::Compatibility]);
    let mut snippet = Snippet::new(mode, Privilege::Kernel, random);
    let value = random.odd_number();
    snippet.code.load(0, value).load(3, device_address(random));
    if random.one_in(6) {
        // MOVS, STOS, LODS, up to a few elements.
        let (from, to) = if random.one_in(2) {
            (device_address(random), DATA + random.below(ROOM - 0x100))
        } else {
            (DATA + random.below(ROOM - 0x100), device_address(random))
        };
        snippet
            .code
            .load(6, from)
            .load(7, to)
            .load(1, random.below(6));
        if random.one_in(2) {
            snippet.code.raw(&[0xf3]);
        }
        if random.one_in(4) {
            snippet.code.raw(&[0x66]);
        }
        let opcode = random.pick(&[0xa4, 0xa5, 0xaa, 0xab, 0xac, 0xad]);
        snippet.code.raw(&[opcode]);
        return snippet;
    }
    for _ in 0..=random.below(3) {
        let (opcode, immediate) = random.pick(&MEMORY_OPCODES);
        if opcode[0] != 0xf0 && opcode != [0x0f, 0xc3] && random.one_in(4) {
            snippet.code.raw(&[0x66]);
        }
        let (lock, opcode) = match opcode {
            [0xf0, rest @ ..] => (true, rest),
            all => (false, all),
        };
        if lock {
            snippet.code.raw(&[0xf0]);
        }
        if mode == Mode::Long && random.one_in(3) {
            snippet.code.raw(&[0x48 | (random.byte() & 4)]);
        }
        // [EBX] or [EBX + disp8], any register as the other operand. CMP with LOCK is no instruction.
        let mut reg = random.byte() & 7;
        if immediate != 0 && reg == 7 {
            reg = 0;
        }
        let displacement = random.byte() & 0x3f;
        snippet.code.raw(opcode);
        if random.one_in(2) {
            snippet.code.raw(&[0x03 | reg << 3]);
        } else {
            snippet.code.raw(&[0x43 | reg << 3, displacement]);
        }
        for _ in 0..immediate {
            snippet.code.raw(&[random.byte()]);
        }
        // The registers may have been read into.
        let address = device_address(random);
        snippet.code.load(3, address);
    }
    snippet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_access_reaches_the_registers_that_end_the_guest() {
        let random = Random::new(0, 0, 0);
        let seen: Vec<u16> = (0..100_000).map(|_| port(&random)).collect();
        assert!(seen.contains(&0x20) && seen.contains(&0x600));
        for first in seen {
            for ended_by in [0x604, 0x605, 0x64, 0x92, 0xcf9] {
                assert!(
                    !(first..first.saturating_add(4)).contains(&ended_by),
                    "{first:#x}"
                );
            }
        }
    }
}
