//! Machine code, byte by byte (SDM volume 2).

/// Longest code of a snippet.
pub const ROOM: usize = 192;

/// Code that grows at its end. What does not fit is left out, so that a sequence may come to an early end: random code is
/// none the worse for it.
#[derive(Debug, Clone)]
pub struct Assembler {
    bytes: [u8; ROOM],
    length: usize,
    bits: u32,
}

impl Assembler {
    /// Empty code for a code segment of 16, 32 or 64 bits.
    pub const fn new(bits: u32) -> Self {
        Self {
            bytes: [0; ROOM],
            length: 0,
            bits,
        }
    }

    /// The code.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// Adds bytes.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        for byte in bytes {
            if let Some(place) = self.bytes.get_mut(self.length) {
                *place = *byte;
                self.length += 1;
            }
        }
        self
    }

    /// The prefix that makes 16-bit code's operands 32 bits wide.
    fn wide(&mut self) -> &mut Self {
        if self.bits == 16 {
            self.raw(&[0x66]);
        }
        self
    }

    /// `mov r32, imm32`, or `mov r64, imm64` in 64-bit mode; `register` is 0 to 7.
    pub fn load(&mut self, register: u8, value: u64) -> &mut Self {
        let opcode = 0xb8 | (register & 7);
        if self.bits == 64 {
            self.raw(&[0x48, opcode]).raw(&value.to_le_bytes())
        } else {
            self.wide()
                .raw(&[opcode])
                .raw(&(value as u32).to_le_bytes())
        }
    }

    /// `mov [absolute], eax`. In 64-bit mode EDI is changed.
    pub fn store(&mut self, address: u64) -> &mut Self {
        if self.bits == 64 {
            self.load(7, address).raw(&[0x89, 0x07])
        } else {
            self.absolute(0xa3, address)
        }
    }

    /// `mov eax, [absolute]`. In 64-bit mode EDI is changed.
    pub fn fetch(&mut self, address: u64) -> &mut Self {
        if self.bits == 64 {
            self.load(7, address).raw(&[0x8b, 0x07])
        } else {
            self.absolute(0xa1, address)
        }
    }

    /// An accumulator move with an address of 32 bits.
    fn absolute(&mut self, opcode: u8, address: u64) -> &mut Self {
        if self.bits == 16 {
            self.raw(&[0x66, 0x67]);
        }
        self.raw(&[opcode]).raw(&(address as u32).to_le_bytes())
    }

    /// `out imm8, al` after loading AL.
    pub fn out(&mut self, port: u8, value: u8) -> &mut Self {
        self.raw(&[0xb0, value, 0xe6, port])
    }

    /// `wrmsr`.
    pub fn write_msr(&mut self, index: u32, value: u64) -> &mut Self {
        self.load(1, index.into())
            .load(0, value & 0xffff_ffff)
            .load(2, value >> 32)
            .raw(&[0x0f, 0x30])
    }

    /// Repeats what follows up to [`Assembler::again`]: sets the count in ECX and returns the loop's place.
    pub fn repeat(&mut self, count: u32) -> usize {
        self.load(1, count.into());
        self.length
    }

    /// `loop` back to `place`, which must be less than 126 bytes back. ECX counts.
    pub fn again(&mut self, place: usize) -> &mut Self {
        let back = (place as i64) - (self.length as i64 + 2);
        self.raw(&[0xe2, back as i8 as u8])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_that_of_the_assembler_of_binutils() {
        let mut long = Assembler::new(64);
        long.load(0, 0x1122).out(0x43, 0x30);
        assert_eq!(
            long.bytes(),
            [0x48, 0xb8, 0x22, 0x11, 0, 0, 0, 0, 0, 0, 0xb0, 0x30, 0xe6, 0x43]
        );
        let mut word = Assembler::new(16);
        word.load(3, 0x1234_5678).fetch(0x10);
        assert_eq!(
            word.bytes(),
            [0x66, 0xbb, 0x78, 0x56, 0x34, 0x12, 0x66, 0x67, 0xa1, 0x10, 0, 0, 0]
        );
    }

    #[test]
    fn a_loop_goes_back_to_its_place() {
        let mut code = Assembler::new(32);
        let place = code.repeat(3);
        code.raw(&[0x90]).again(place);
        assert_eq!(code.bytes(), [0xb9, 3, 0, 0, 0, 0x90, 0xe2, 0xfd]);
    }

    #[test]
    fn what_does_not_fit_is_left_out() {
        let mut code = Assembler::new(32);
        code.raw(&[0x90; ROOM + 5]);
        assert_eq!(code.bytes().len(), ROOM);
    }
}
