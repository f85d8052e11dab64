//! Guests of a few instructions, without an operating system.
//!
//! Each comes as an ELF file with a 64-bit entry point, which `pvmmd run` boots as it boots a `vmlinux`: with the first
//! 4 GiB mapped to themselves and interrupts off. None of them takes an interrupt or an exception.

pub mod beat;
pub mod load;

/// Where the code lies and begins.
const CODE: u64 = 1 << 20;
/// Length of an ELF header, and of one program header.
const HEADERS: u64 = 64 + 56;
const PAGE: u32 = 4096;
/// `mov edx, 3f8h`: COM1's transmitter holding register.
const COM1_IN_EDX: [u8; 5] = [0xba, 0xf8, 0x03, 0, 0];

/// Prints `text` on COM1, whose port is in EDX; AL is changed.
fn print(code: &mut Vec<u8>, text: &str) {
    for byte in text.bytes() {
        code.extend([0xb0, byte, 0xee]); // mov al, byte; out dx, al
    }
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
    /// Where the short jump at the end of `code` leads, from its beginning.
    pub(super) fn target(code: &[u8]) -> usize {
        let distance = code[code.len() - 1] as i8;
        code.len().wrapping_add_signed(distance.into())
    }

    /// Where `wanted` is in `bytes`.
    pub(super) fn find(bytes: &[u8], wanted: &[u8]) -> usize {
        bytes
            .windows(wanted.len())
            .position(|window| window == wanted)
            .expect("it is there")
    }
}
