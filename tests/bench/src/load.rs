//! A guest that is nothing but memory to move, of any size: it fills its memory, says so on COM1, and then either
//! halts or rewrites a part of it for ever.
//!
//! It is a few instructions long and comes as an ELF file with a 64-bit entry point, which `pvmmd run` boots as it boots
//! a `vmlinux`: with the first 4 GiB mapped to themselves.

/// What the guest prints when its memory is full.
pub const FULL: &str = "memory is full";
/// Where the code lies and begins.
const CODE: u64 = 1 << 20;
/// From here to its end, memory is filled. Page tables and what the boot loader leaves lie below.
const FILLED_FROM: u64 = 2 << 20;
/// Memory that a busy guest rewrites.
const HOT: u64 = 8 << 20;
/// Length of an ELF header, and of one program header.
const HEADERS: u64 = 64 + 56;
const PAGE: u32 = 4096;
/// COM1's transmitter holding register.
const COM1: u32 = 0x3f8;

/// A kernel for a guest with `memory` bytes (more than 16 MiB, at most 3 GiB).
pub fn kernel(memory: u64, busy: bool) -> Vec<u8> {
    let mut code = vec![0xfa]; // cli
    bounds(&mut code, FILLED_FROM, memory);
    code.extend([0x48, 0x89, 0x3f]); // 1: mov [rdi], rdi
    code.extend([0x48, 0x83, 0xc7, 8]); // add rdi, 8
    code.extend([0x48, 0x39, 0xf7, 0x72, 0xf4]); // cmp rdi, rsi; jb 1b
    code.push(0xba); // mov edx, COM1
    code.extend(COM1.to_le_bytes());
    for byte in FULL.bytes().chain(*b"\n") {
        code.extend([0xb0, byte, 0xee]); // mov al, byte; out dx, al
    }
    if busy {
        bounds(&mut code, FILLED_FROM, FILLED_FROM + HOT); // 1:
        code.extend([0x48, 0xff, 0x07]); // 2: inc qword [rdi]
        code.extend([0x48, 0x81, 0xc7]); // add rdi, PAGE
        code.extend(PAGE.to_le_bytes());
        code.extend([0x48, 0x39, 0xf7, 0x72, 0xf1]); // cmp rdi, rsi; jb 2b
        code.extend([0xeb, 0xdb]); // jmp 1b
    } else {
        // A halted CPU that no interrupt could wake would be the guest's end.
        code.extend([0xb0, 0xff, 0xe6, 0x21, 0xe6, 0xa1]); // mov al, 0ffh; out 21h, al; out 0a1h, al
        code.extend([0xfb, 0xf4, 0xeb, 0xfc]); // 1: sti; hlt; jmp 1b
    }
    elf(&code)
}

/// `mov rdi, from; mov rsi, to`.
fn bounds(code: &mut Vec<u8>, from: u64, to: u64) {
    code.extend([0x48, 0xbf]);
    code.extend(from.to_le_bytes());
    code.extend([0x48, 0xbe]);
    code.extend(to.to_le_bytes());
}

/// An ELF file with this code as its only part (System V ABI, chapters 4 and 5).
fn elf(code: &[u8]) -> Vec<u8> {
    let mut file = Vec::from(*b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    // ET_EXEC for EM_X86_64.
    for half in [2u16, 62] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1u32.to_le_bytes());
    // Entry point, then the program headers' place, and no sections.
    for word in [CODE, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    // Length of this header; length and number of program headers; no section headers.
    for half in [64u16, 56, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    // PT_LOAD, readable and executable.
    for word in [1u32, 5] {
        file.extend(word.to_le_bytes());
    }
    let length = code.len() as u64;
    for word in [HEADERS, CODE, CODE, length, length, u64::from(PAGE)] {
        file.extend(word.to_le_bytes());
    }
    file.extend(code);
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the short jump at the end of `code` leads, from its beginning.
    fn target(code: &[u8]) -> usize {
        let distance = code[code.len() - 1] as i8;
        code.len().wrapping_add_signed(distance.into())
    }

    #[test]
    fn jumps_lead_to_where_their_loops_begin() {
        let busy = kernel(64 << 20, true);
        let fill = find(&busy, &[0x48, 0x89, 0x3f]);
        let jump = find(&busy, &[0x72, 0xf4]) + 2;
        assert_eq!(target(&busy[..jump]), fill);
        let rewrite = find(&busy, &[0x48, 0xff, 0x07]);
        let jump = find(&busy, &[0x72, 0xf1]) + 2;
        assert_eq!(target(&busy[..jump]), rewrite);
        assert_eq!(target(&busy), rewrite - 20, "where its bounds are loaded");
        let idle = kernel(64 << 20, false);
        assert_eq!(target(&idle), idle.len() - 4);
    }

    fn find(bytes: &[u8], wanted: &[u8]) -> usize {
        bytes
            .windows(wanted.len())
            .position(|window| window == wanted)
            .expect("it is there")
    }
}
