//! A guest that counts, in general registers and in SSE registers, compares, and prints a line each time: for hosts whose
//! CPUs come and go under it.
//!
//! It takes no exception. With more than one CPU, Bochs saves the faulting instruction's address when a VM exit follows an
//! exception at once, so an operating system does not survive there for long.

use super::{elf, print, COM1_IN_EDX};

/// In each line, before its letter: the letters go from `a` to `z` and around.
pub const BEAT: &str = "beat ";
/// What it prints, once and for all, when the two counts differ.
pub const LOST: &str = "registers lost";
/// Turns of an empty loop between two lines: some hundredths of a second on an emulated machine.
const PACE: u32 = 1 << 20;

/// The guest's kernel.
pub fn kernel() -> Vec<u8> {
    let mut code = vec![0xfa]; // cli
    code.extend([0x0f, 0x20, 0xe0]); // mov rax, cr4
    code.extend([0x0d, 0x00, 0x02, 0, 0]); // or eax, CR4.OSFXSR
    code.extend([0x0f, 0x22, 0xe0]); // mov cr4, rax
    code.extend(COM1_IN_EDX);
    code.extend([0x31, 0xc9]); // xor ecx, ecx: the count
    code.extend([0x66, 0x0f, 0xef, 0xc0]); // pxor xmm0, xmm0: the count again
    code.extend([0xb8, 1, 0, 0, 0]); // mov eax, 1
    code.extend([0x66, 0x48, 0x0f, 0x6e, 0xf8]); // movq xmm7, rax
    code.extend([0xb3, b'a']); // mov bl, 'a': the letter
    let again = code.len();
    code.extend([0x48, 0xff, 0xc1]); // inc rcx
    code.extend([0x66, 0x0f, 0xd4, 0xc7]); // paddq xmm0, xmm7
    code.push(0xbe); // mov esi, PACE
    code.extend(PACE.to_le_bytes());
    code.extend([0xff, 0xce, 0x75, 0xfc]); // 1: dec esi; jnz 1b
    code.extend([0x66, 0x48, 0x0f, 0x7e, 0xc0]); // movq rax, xmm0
    code.extend([0x48, 0x39, 0xc8]); // cmp rax, rcx
    code.extend([0x0f, 0x85]); // jne lost
    let lost = code.len();
    code.extend([0; 4]);
    print(&mut code, BEAT);
    code.extend([0x88, 0xd8, 0xee]); // mov al, bl; out dx, al
    print(&mut code, "\n");
    code.extend([0xfe, 0xc3]); // inc bl
    code.extend([0x80, 0xfb, b'z', 0x76, 0x02]); // cmp bl, 'z'; jbe 1f
    code.extend([0xb3, b'a']); // mov bl, 'a'; 1:
    jump(&mut code, &[0xe9], again);
    let distance = code.len() - (lost + 4);
    code.splice(lost..lost + 4, (distance as u32).to_le_bytes());
    print(&mut code, LOST);
    print(&mut code, "\n");
    code.extend([0xeb, 0xfe]); // 1: jmp 1b
    elf(&code)
}

/// A jump with a 32-bit distance back to `to`.
fn jump(code: &mut Vec<u8>, opcode: &[u8], to: usize) {
    code.extend(opcode);
    // Code of a few hundred bytes.
    let distance = to as i32 - (code.len() as i32 + 4);
    code.extend(distance.to_le_bytes());
}

/// How many whole lines a console has, from its first.
///
/// # Errors
/// The first line that is another than it should be.
pub fn check(console: &str) -> Result<usize, String> {
    let whole = console.rfind('\n').map_or("", |end| &console[..end]);
    let mut letters = ('a'..='z').cycle();
    let mut count = 0;
    for line in whole.lines() {
        let expected = letters.next().unwrap_or_default();
        let letter = line.trim_end().strip_prefix(BEAT);
        if letter.is_none_or(|letter| !letter.chars().eq([expected])) {
            return Err(format!(
                "line {count} is {line:?}, and should be {BEAT:?} with {expected:?}"
            ));
        }
        count += 1;
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{find, target};
    use super::*;

    #[test]
    fn jumps_lead_to_where_they_should() {
        let file = kernel();
        let wait = find(&file, &[0x75, 0xfc]) + 2;
        assert_eq!(target(&file[..wait]), wait - 4);
        assert_eq!(target(&file), file.len() - 2);
        let far = |at: usize| {
            let distance = i32::from_le_bytes(file[at..at + 4].try_into().expect("four bytes"));
            (at + 4).wrapping_add_signed(distance as isize)
        };
        let again = far(find(&file, &[0xb3, b'a', 0xe9]) + 3);
        assert_eq!(file[again..again + 3], [0x48, 0xff, 0xc1]);
        let lost = far(find(&file, &[0x0f, 0x85]) + 2);
        assert_eq!(file[lost..lost + 3], [0xb0, LOST.as_bytes()[0], 0xee]);
    }

    #[test]
    fn a_line_that_is_missing_doubled_or_wrong_is_found() {
        assert_eq!(check("beat a\nbeat b\nbea"), Ok(2));
        let around: String = ('a'..='z')
            .chain(['a'])
            .map(|c| format!("beat {c}\r\n"))
            .collect();
        assert_eq!(check(&around), Ok(27));
        for wrong in [
            "beat b\n",
            "beat a\nbeat a\n",
            "beat a\nbeat c\n",
            "beat a\nregisters lost\n",
            "\nbeat a\n",
        ] {
            check(wrong).expect_err(wrong);
        }
    }
}
