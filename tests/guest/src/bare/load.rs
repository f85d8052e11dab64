//! A guest that is nothing but memory to move, of any size: it fills its memory, says so on COM1, and then either
//! halts or rewrites a part of it for ever.

use super::{elf, print, COM1_IN_EDX, PAGE};

/// What the guest prints when its memory is full.
pub const FULL: &str = "memory is full";
/// From here to its end, memory is filled. Page tables and what the boot loader leaves lie below.
const FILLED_FROM: u64 = 2 << 20;
/// Memory that a busy guest rewrites.
const HOT: u64 = 8 << 20;

/// A kernel for a guest with `memory` bytes (more than 16 MiB, at most 3 GiB).
pub fn kernel(memory: u64, busy: bool) -> Vec<u8> {
    let mut code = vec![0xfa]; // cli
    bounds(&mut code, FILLED_FROM, memory);
    code.extend([0x48, 0x89, 0x3f]); // 1: mov [rdi], rdi
    code.extend([0x48, 0x83, 0xc7, 8]); // add rdi, 8
    code.extend([0x48, 0x39, 0xf7, 0x72, 0xf4]); // cmp rdi, rsi; jb 1b
    code.extend(COM1_IN_EDX);
    print(&mut code, FULL);
    print(&mut code, "\n");
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

#[cfg(test)]
mod tests {
    use super::super::tests::{find, target};
    use super::*;

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
}
