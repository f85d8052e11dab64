//! Registers held over time, and the time-stamp counter: the only `unsafe` of the guest.
//!
//! On the path this checks the CPU state in the stream. An image of values is loaded into x87, SSE,
//! AVX and AVX-512 registers, MXCSR, the x87 control word and general registers; they are held while the CPU
//! spins or while the thread sleeps in the kernel, then stored and compared. During a sleep the
//! values mostly stay in the CPU (Linux restores registers lazily when a thread returns to the CPU
//! it came from), so that an idle guest that is moved has them there, too.
//!
//! Documents: SDM volume 1, chapters 8 (x87), 10 and 11 (SSE), 14 (AVX), 15 (AVX-512); system
//! calls: syscall(2), nanosleep(2), arch_prctl(2).

use core::arch::asm;

/// Which vector registers there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Vectors {
    /// xmm0 to xmm15
    Sse,
    /// ymm0 to ymm15
    Avx,
    /// zmm0 to zmm31, k1 to k7
    Avx512,
}

impl Vectors {
    /// The most that CPU and kernel offer.
    pub fn detect() -> Self {
        // Both ask XGETBV, too, whether the kernel saves the registers.
        if std::arch::is_x86_feature_detected!("avx512f") {
            Vectors::Avx512
        } else if std::arch::is_x86_feature_detected!("avx2") {
            Vectors::Avx
        } else {
            Vectors::Sse
        }
    }

    /// How many registers of how many 64-bit words.
    fn shape(self) -> (usize, usize) {
        match self {
            Vectors::Sse => (16, 2),
            Vectors::Avx => (16, 4),
            Vectors::Avx512 => (32, 8),
        }
    }
}

/// Values of the registers that are held.
#[derive(Clone, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Image {
    vectors: [[u64; 8]; 32],
    /// ST0 to ST7, 80 bits each in 16 bytes.
    x87: [[u16; 8]; 8],
    /// k0 to k7, 16 bits each; k0 isn't used.
    masks: [u64; 8],
    /// r8, r9, r10, r14, r15
    general: [u64; 5],
    mxcsr: u32,
    /// The x87 control word.
    fcw: u16,
}

impl Image {
    const ZERO: Image = Image {
        vectors: [[0; 8]; 32],
        x87: [[0; 8]; 8],
        masks: [0; 8],
        general: [0; 5],
        mxcsr: 0,
        fcw: 0,
    };

    /// An image that differs in every register and for every `seed`.
    pub fn new(vectors: Vectors, seed: u64) -> Self {
        let mut image = Image::ZERO;
        let mut state = seed;
        let mut next = || {
            state = state
                .wrapping_mul(0x5851_f42d_4c95_7f2d)
                .wrapping_add(0x1405_7b7e_f767_814f);
            state ^ state >> 29
        };
        let (count, words) = vectors.shape();
        for register in &mut image.vectors[..count] {
            register[..words].fill_with(&mut next);
        }
        for register in &mut image.x87 {
            // A normal number: integer bit set, exponent neither all zero nor all one.
            let value = next();
            register[0] = value as u16;
            register[1] = (value >> 16) as u16;
            register[2] = (value >> 32) as u16;
            register[3] = (value >> 48) as u16 | 0x8000;
            register[4] = next() as u16 & 0x9fff | 0x2000;
        }
        if vectors == Vectors::Avx512 {
            for mask in &mut image.masks[1..] {
                *mask = next() & 0xffff;
            }
        }
        image.general.fill_with(&mut next);
        // All exceptions masked. Rounding control (MXCSR bits 13-14, x87 bits 10-11) takes its
        // four values, flush-to-zero (MXCSR bit 15) its two. x87 precision stays 64 bits.
        let control = next();
        image.mxcsr = 0x1f80 | ((control & 7) as u32) << 13;
        image.fcw = 0x037f | ((control >> 3 & 3) as u16) << 10;
        image
    }

    /// Names of the registers that differ.
    pub fn differences(&self, other: &Image) -> Vec<String> {
        let mut names = Vec::new();
        for (index, (a, b)) in self.vectors.iter().zip(&other.vectors).enumerate() {
            if a != b {
                names.push(format!("vector{index} {b:x?} instead of {a:x?}"));
            }
        }
        for (index, (a, b)) in self.x87.iter().zip(&other.x87).enumerate() {
            if a != b {
                names.push(format!("st{index} {b:x?} instead of {a:x?}"));
            }
        }
        for (index, (a, b)) in self.masks.iter().zip(&other.masks).enumerate() {
            if a != b {
                names.push(format!("k{index} {b:#x} instead of {a:#x}"));
            }
        }
        let general = ["r8", "r9", "r10", "r14", "r15"];
        for ((name, a), b) in general.iter().zip(&self.general).zip(&other.general) {
            if a != b {
                names.push(format!("{name} {b:#x} instead of {a:#x}"));
            }
        }
        if self.mxcsr != other.mxcsr {
            let (a, b) = (self.mxcsr, other.mxcsr);
            names.push(format!("MXCSR {b:#x} instead of {a:#x}"));
        }
        if self.fcw != other.fcw {
            let (a, b) = (self.fcw, other.fcw);
            names.push(format!("x87 control word {b:#x} instead of {a:#x}"));
        }
        names
    }
}

/// How the registers are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Turns of an empty loop, at least 1 is made.
    Spin(u32),
    /// Sleep of so many ns (below one second) in the kernel.
    Sleep(u32),
}

/// Loads, holds and stores the registers. The texts are what differs between the kinds of vectors.
macro_rules! hold_registers {
    ($name:ident, $load:literal, $store:literal, $end:literal) => {
        /// # Safety
        /// The CPU and the kernel have to support the registers.
        unsafe fn $name(image: &Image, stored: &mut Image, spin: u64, sleep: &[i64; 2]) {
            // SAFETY: The loads read only `image`, the stores write only `stored`, at the offsets
            // of their fields. The one system call, nanosleep(sleep, NULL), reads two i64 through
            // `sleep` and writes nothing; it changes rax, rcx and r11. Every register used is an
            // operand or in the ABI's clobber list; of the vector registers that aren't in it the
            // compiler makes no use without the target features. At the end the x87 stack is empty and the control words are what Rust
            // expects (the defaults of the psABI), as they were before.
            unsafe {
                asm!(
                    "fninit",
                    "fldcw [r12 + {fcw}]",
                    "ldmxcsr [r12 + {mxcsr}]",
                    ".irp n, 7, 6, 5, 4, 3, 2, 1, 0",
                    "fld tbyte ptr [r12 + {x87} + \\n * 16]",
                    ".endr",
                    $load,
                    "mov r8, [r12 + {general}]",
                    "mov r9, [r12 + {general} + 8]",
                    "mov r10, [r12 + {general} + 16]",
                    "mov r14, [r12 + {general} + 24]",
                    "mov r15, [r12 + {general} + 32]",
                    "test rdx, rdx",
                    "jz 3f",
                    "2:",
                    "dec rdx",
                    "jnz 2b",
                    "jmp 4f",
                    "3:",
                    "mov eax, 35",
                    "syscall",
                    "4:",
                    "mov [r13 + {general}], r8",
                    "mov [r13 + {general} + 8], r9",
                    "mov [r13 + {general} + 16], r10",
                    "mov [r13 + {general} + 24], r14",
                    "mov [r13 + {general} + 32], r15",
                    $store,
                    "fnstcw [r13 + {fcw}]",
                    "stmxcsr [r13 + {mxcsr}]",
                    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7",
                    "fstp tbyte ptr [r13 + {x87} + \\n * 16]",
                    ".endr",
                    "fninit",
                    "ldmxcsr [rip + 5f]",
                    $end,
                    ".pushsection .rodata",
                    ".balign 4",
                    "5: .long 0x1f80",
                    ".popsection",
                    vectors = const core::mem::offset_of!(Image, vectors),
                    masks = const core::mem::offset_of!(Image, masks),
                    x87 = const core::mem::offset_of!(Image, x87),
                    general = const core::mem::offset_of!(Image, general),
                    mxcsr = const core::mem::offset_of!(Image, mxcsr),
                    fcw = const core::mem::offset_of!(Image, fcw),
                    in("r12") image,
                    in("r13") stored,
                    inout("rdi") sleep.as_ptr() => _,
                    inout("rsi") 0u64 => _,
                    inout("rdx") spin => _,
                    out("r14") _,
                    out("r15") _,
                    clobber_abi("sysv64"),
                );
            }
        }
    };
}

hold_registers!(
    hold_sse,
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
     movups xmm\\n, [r12 + {vectors} + \\n * 64]
     .endr
     /* {masks} */",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
     movups [r13 + {vectors} + \\n * 64], xmm\\n
     .endr",
    ""
);
hold_registers!(
    hold_avx,
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
     vmovups ymm\\n, [r12 + {vectors} + \\n * 64]
     .endr
     /* {masks} */",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
     vmovups [r13 + {vectors} + \\n * 64], ymm\\n
     .endr",
    "vzeroupper"
);
hold_registers!(
    hold_avx512,
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
     vmovups zmm\\n, [r12 + {vectors} + \\n * 64]
     .endr
     .irp n, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
     vmovups zmm\\n, [r12 + {vectors} + \\n * 64]
     .endr
     .irp n, 1, 2, 3, 4, 5, 6, 7
     kmovw k\\n, [r12 + {masks} + \\n * 8]
     .endr",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
     vmovups [r13 + {vectors} + \\n * 64], zmm\\n
     .endr
     .irp n, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
     vmovups [r13 + {vectors} + \\n * 64], zmm\\n
     .endr
     .irp n, 1, 2, 3, 4, 5, 6, 7
     kmovw [r13 + {masks} + \\n * 8], k\\n
     .endr",
    "vzeroupper"
);

/// Loads `image` into the registers, holds them, and returns what they are then.
///
/// `vectors` is lowered to what the machine has: registers above it come back as zero.
pub fn hold(vectors: Vectors, image: &Image, how: Hold) -> Image {
    let mut stored = Image::ZERO;
    let (spin, sleep) = match how {
        Hold::Spin(turns) => (u64::from(turns.max(1)), [0, 0]),
        Hold::Sleep(ns) => (0, [0, i64::from(ns)]),
    };
    match vectors.min(Vectors::detect()) {
        // SAFETY: SSE2 is part of x86-64.
        Vectors::Sse => unsafe { hold_sse(image, &mut stored, spin, &sleep) },
        // SAFETY: AVX2 was detected, and with it that the kernel saves the registers.
        Vectors::Avx => unsafe { hold_avx(image, &mut stored, spin, &sleep) },
        // SAFETY: AVX-512F was detected, and with it that the kernel saves the registers.
        Vectors::Avx512 => unsafe { hold_avx512(image, &mut stored, spin, &sleep) },
    }
    stored
}

/// The time-stamp counter, read after everything before it.
pub fn tsc() -> u64 {
    // SAFETY: LFENCE is part of SSE2, which x86-64 has. RDTSC is allowed to processes unless they
    // asked for CR4.TSD by prctl(2), which we don't.
    unsafe {
        core::arch::x86_64::_mm_lfence();
        core::arch::x86_64::_rdtsc()
    }
}

/// What the GS base of this process points to, once set.
static GS_BLOCK: [u64; 2] = [0x7076_6d6d_2d67_7300, 0x0011_2233_4455_6677];

/// Points the GS base of this thread, which nothing else uses in 64-bit Linux processes, at a
/// constant. In the kernel the value then lies in the MSR IA32_KERNEL_GS_BASE.
///
/// # Errors
/// The number that the kernel refused with.
pub fn set_gs_base() -> Result<(), i64> {
    const SYS_ARCH_PRCTL: i64 = 158;
    const ARCH_SET_GS: i64 = 0x1001;
    let result: i64;
    // SAFETY: arch_prctl(ARCH_SET_GS, address) changes nothing but the GS base, which neither the
    // C library nor Rust use on x86-64; the system call changes rax, rcx and r11.
    unsafe {
        asm!(
            "syscall",
            inout("rax") SYS_ARCH_PRCTL => result,
            in("rdi") ARCH_SET_GS,
            in("rsi") GS_BLOCK.as_ptr(),
            out("rcx") _,
            out("r11") _,
            options(nostack)
        );
    }
    if result == 0 {
        Ok(())
    } else {
        Err(-result)
    }
}

/// Whether the GS base still is what [`set_gs_base`] made it. To be called only after that.
pub fn gs_base_holds() -> bool {
    let word: u64;
    // SAFETY: Reads 8 bytes at GS base + 8. [`set_gs_base`] was called before, so that they are in
    // GS_BLOCK; should a move have lost the base, the worst is a fault that ends this process,
    // which is what it is there to show.
    unsafe {
        asm!("mov {}, gs:[8]", out(reg) word, options(nostack, readonly, preserves_flags));
    }
    word == GS_BLOCK[1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_survive_spinning_and_sleeping() {
        for vectors in [Vectors::Sse, Vectors::Avx, Vectors::Avx512] {
            let vectors = vectors.min(Vectors::detect());
            for (seed, how) in [(1, Hold::Spin(1000)), (2, Hold::Sleep(1_000_000))] {
                let image = Image::new(vectors, seed);
                let stored = hold(vectors, &image, how);
                assert_eq!(image.differences(&stored), Vec::<String>::new());
            }
        }
    }

    #[test]
    fn images_differ_in_every_register_between_seeds() {
        let (a, b) = (
            Image::new(Vectors::Avx512, 1),
            Image::new(Vectors::Avx512, 2),
        );
        let names = a.differences(&b);
        // 32 vector registers, 8 of the x87, 7 masks, 5 general ones, perhaps the control words.
        assert!(names.len() >= 52, "{names:?}");
    }

    #[test]
    fn a_change_of_any_kind_of_register_is_named() {
        let image = Image::new(Vectors::Sse, 1);
        let mut other = image.clone();
        other.vectors[3][1] ^= 1;
        other.x87[2][4] ^= 1;
        other.masks[5] = 1;
        other.general[4] ^= 1;
        other.mxcsr ^= 0x8000;
        other.fcw ^= 0x400;
        let names = image.differences(&other).join("; ");
        for name in ["vector3", "st2", "k5", "r15", "MXCSR", "x87 control word"] {
            assert!(names.contains(name), "{name}: {names}");
        }
    }

    #[test]
    fn the_gs_base_can_be_set_and_read_back() {
        assert_eq!(set_gs_base(), Ok(()));
        assert!(gs_base_holds());
    }

    #[test]
    fn the_time_stamp_counter_goes_on() {
        let first = tsc();
        hold(
            Vectors::Sse,
            &Image::new(Vectors::Sse, 1),
            Hold::Spin(10_000),
        );
        assert!(tsc() > first);
    }
}
