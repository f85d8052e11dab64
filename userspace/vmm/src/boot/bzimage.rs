// SPDX-License-Identifier: GPL-2.0
//! The bzImage: its setup header, and where kernel and initial RAM disk go in guest memory.
//!
//! Written by hand after the boot protocol, because the `linux-loader` crate's licence (Apache-2.0) does not go
//! together with this project's (GPL-2.0 only).

use crate::error::VmmError;
use crate::memory::{GuestRam, PAGE_SIZE};
use std::ops::Range;
use std::path::Path;

/// Where the setup header begins, in the image and in the zero page alike.
pub const SETUP_HEADER: usize = 0x1f1;

// Offsets of the setup header's fields in the image (boot.rst, "The Real-Mode Kernel Header").
const SETUP_SECTS: usize = 0x1f1;
const BOOT_FLAG: usize = 0x1fe;
const JUMP_OFFSET: usize = 0x201;
const HEADER: usize = 0x202;
const VERSION: usize = 0x206;
const LOADFLAGS: usize = 0x211;
const INITRD_ADDR_MAX: usize = 0x22c;
const KERNEL_ALIGNMENT: usize = 0x230;
const RELOCATABLE_KERNEL: usize = 0x234;
const XLOADFLAGS: usize = 0x236;
const CMDLINE_SIZE: usize = 0x238;
const PREF_ADDRESS: usize = 0x258;
const INIT_SIZE: usize = 0x260;
const HEADER_END: usize = 0x268;

/// "HdrS".
const MAGIC: u32 = 0x5372_6448;
/// Protocol 2.12 brought the 64-bit entry point.
const OLDEST_VERSION: u16 = 0x020c;
/// LOADFLAGS: the protected-mode part is loaded at 1 MiB or above.
const LOADED_HIGH: u8 = 1 << 0;
/// XLOADFLAGS: there is a 64-bit entry point.
const XLF_KERNEL_64: u16 = 1 << 0;
/// Distance of the 64-bit entry point from the start of the loaded kernel.
const ENTRY_64: u64 = 0x200;
/// Kernels are loaded here or above.
const HIGH_LOAD: u64 = 0x10_0000;
const SECTOR: usize = 512;

/// A setup header, as it goes into the zero page at [`SETUP_HEADER`].
#[derive(Debug, Clone)]
pub struct SetupHeader(Vec<u8>);

impl SetupHeader {
    /// The header that a kernel without one gets.
    pub fn for_unpacked_kernel(command_line_limit: u32, initrd_addr_max: u32) -> Self {
        let mut header = vec![0; HEADER_END - SETUP_HEADER];
        let mut put = |offset: usize, bytes: &[u8]| {
            let at = offset - SETUP_HEADER;
            header[at..at + bytes.len()].copy_from_slice(bytes);
        };
        put(BOOT_FLAG, &0xaa55u16.to_le_bytes());
        put(HEADER, &MAGIC.to_le_bytes());
        put(VERSION, &OLDEST_VERSION.to_le_bytes());
        put(LOADFLAGS, &[LOADED_HIGH]);
        put(INITRD_ADDR_MAX, &initrd_addr_max.to_le_bytes());
        put(XLOADFLAGS, &XLF_KERNEL_64.to_le_bytes());
        put(CMDLINE_SIZE, &command_line_limit.to_le_bytes());
        Self(header)
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Longest command line, without the terminating zero.
    pub fn command_line_limit(&self) -> usize {
        self.u32(CMDLINE_SIZE) as usize
    }

    /// Copies the initial RAM disk as high as the kernel allows.
    pub fn load_initrd(
        &self,
        ram: &GuestRam,
        kernel: &LoadedKernel,
        initrd: &[u8],
    ) -> Result<LoadedInitrd, VmmError> {
        let size = initrd.len() as u64;
        let no_room = || VmmError::NoRoom {
            what: "the initial RAM disk",
            needed: size,
            memory: ram.size(),
        };
        let limit = ram
            .low_end()
            .min(u64::from(self.u32(INITRD_ADDR_MAX)).saturating_add(1));
        let gpa = limit
            .checked_sub(size.next_multiple_of(PAGE_SIZE))
            .map(|gpa| gpa & !(PAGE_SIZE - 1))
            .filter(|gpa| *gpa >= kernel.range.end)
            .ok_or_else(no_room)?;
        ram.write(gpa, initrd)?;
        Ok(LoadedInitrd { gpa, size })
    }

    /// A field. Both constructors make a header that reaches to `HEADER_END`.
    fn u32(&self, offset: usize) -> u32 {
        let mut bytes = [0; 4];
        let at = offset - SETUP_HEADER;
        bytes.copy_from_slice(&self.0[at..at + 4]);
        u32::from_le_bytes(bytes)
    }
}

/// A parsed bzImage.
#[derive(Debug)]
pub struct BzImage {
    image: Vec<u8>,
    setup_end: usize,
}

/// Where a kernel was put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadedKernel {
    /// The memory that it uses before it looks at the memory map.
    pub range: Range<u64>,
    /// Its 64-bit entry point.
    pub entry: u64,
}

/// Where an initial RAM disk was put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadedInitrd {
    /// First address.
    pub gpa: u64,
    /// Length in bytes.
    pub size: u64,
}

impl BzImage {
    /// Checks an image; `path` is for messages.
    pub fn parse(path: &Path, image: Vec<u8>) -> Result<Self, VmmError> {
        let wrong = |reason: &str| VmmError::Kernel {
            path: path.to_owned(),
            reason: reason.into(),
        };
        if image.len() < HEADER_END {
            return Err(wrong(
                "it is too short for a Linux kernel; give a bzImage (as /boot/vmlinuz-VERSION)",
            ));
        }
        let header = Self {
            image,
            setup_end: 0,
        };
        if header.u16(BOOT_FLAG) != 0xaa55 || header.u32(HEADER) != MAGIC {
            return Err(wrong(
                "it has no Linux boot header; give a bzImage (as /boot/vmlinuz-VERSION) or an ELF vmlinux",
            ));
        }
        if header.u16(VERSION) < OLDEST_VERSION
            || header.image[LOADFLAGS] & LOADED_HIGH == 0
            || header.u16(XLOADFLAGS) & XLF_KERNEL_64 == 0
        {
            return Err(wrong(
                "it has no 64-bit entry point; give an x86-64 kernel, Linux 3.8 or later",
            ));
        }
        // 0 means 4, for historical reasons.
        let sectors = match header.image[SETUP_SECTS] {
            0 => 4,
            sectors => usize::from(sectors),
        };
        let setup_end = (sectors + 1) * SECTOR;
        if header.image.len() <= setup_end {
            return Err(wrong("the file is cut off"));
        }
        Ok(Self {
            setup_end,
            ..header
        })
    }

    /// Its setup header.
    pub fn setup_header(&self) -> SetupHeader {
        // The header ends where the jump over it lands (boot.rst, "64-bit boot protocol"); the byte is at most 255.
        let end = HEADER + usize::from(self.image[JUMP_OFFSET]);
        SetupHeader(self.image[SETUP_HEADER..end.max(HEADER_END).min(self.setup_end)].to_vec())
    }

    /// Copies the kernel to where it wants to be, or as near as memory lets it.
    pub fn load(&self, ram: &GuestRam) -> Result<LoadedKernel, VmmError> {
        let code = &self.image[self.setup_end..];
        let size = u64::from(self.u32(INIT_SIZE)).max(code.len() as u64);
        let mut start = self.u64(PREF_ADDRESS).max(HIGH_LOAD);
        let fits = |start: u64| {
            start
                .checked_add(size)
                .is_some_and(|end| end <= ram.low_end())
        };
        if !fits(start) && self.image[RELOCATABLE_KERNEL] != 0 {
            let alignment = u64::from(self.u32(KERNEL_ALIGNMENT)).max(PAGE_SIZE);
            start = HIGH_LOAD.next_multiple_of(alignment);
        }
        if !fits(start) {
            return Err(VmmError::NoRoom {
                what: "the kernel",
                needed: size,
                memory: ram.size(),
            });
        }
        ram.write(start, code)?;
        Ok(LoadedKernel {
            range: start..start + size,
            entry: start + ENTRY_64,
        })
    }

    // The offsets given to these lie below `HEADER_END`, which `parse` checked.

    fn bytes<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.image[offset..offset + N]);
        bytes
    }

    fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes(self.bytes(offset))
    }

    fn u32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.bytes(offset))
    }

    fn u64(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.bytes(offset))
    }
}

/// A made-up image that follows the protocol, for the tests of this crate and of the daemon.
#[cfg(any(test, feature = "fake"))]
pub fn made_up_image(code: &[u8], init_size: u32) -> Vec<u8> {
    let mut image = vec![0; 2 * SECTOR];
    let mut put = |offset: usize, bytes: &[u8]| {
        image[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    put(SETUP_SECTS, &[1]);
    put(BOOT_FLAG, &0xaa55u16.to_le_bytes());
    put(JUMP_OFFSET, &[(HEADER_END - HEADER) as u8]);
    put(HEADER, &MAGIC.to_le_bytes());
    put(VERSION, &0x020fu16.to_le_bytes());
    put(LOADFLAGS, &[LOADED_HIGH]);
    put(INITRD_ADDR_MAX, &0x7fff_ffffu32.to_le_bytes());
    put(KERNEL_ALIGNMENT, &0x20_0000u32.to_le_bytes());
    put(RELOCATABLE_KERNEL, &[1]);
    put(XLOADFLAGS, &XLF_KERNEL_64.to_le_bytes());
    put(CMDLINE_SIZE, &255u32.to_le_bytes());
    put(PREF_ADDRESS, &0x100_0000u64.to_le_bytes());
    put(INIT_SIZE, &init_size.to_le_bytes());
    image.extend_from_slice(code);
    image
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn parse(image: Vec<u8>) -> Result<BzImage, VmmError> {
        BzImage::parse(Path::new("vmlinuz"), image)
    }

    fn ram(mib: u64) -> GuestRam {
        GuestRam::new("test", mib * MIB).expect("test memory can be mapped")
    }

    #[test]
    fn the_kernel_goes_where_it_wants_if_it_fits() {
        let image = parse(made_up_image(b"code", 4 << 20)).expect("a valid image");
        let ram = ram(32);
        let kernel = image.load(&ram).expect("it fits");
        assert_eq!(kernel.range, 16 * MIB..20 * MIB);
        assert_eq!(kernel.entry, 16 * MIB + 0x200);
        let mut code = [0; 4];
        ram.read(16 * MIB, &mut code).expect("memory");
        assert_eq!(&code, b"code");
    }

    #[test]
    fn a_relocatable_kernel_goes_lower_in_a_small_guest() {
        let image = parse(made_up_image(b"code", 4 << 20)).expect("a valid image");
        assert_eq!(image.load(&ram(16)).expect("it fits").range.start, 2 * MIB);
        let error = image.load(&ram(5)).expect_err("2 + 4 MiB are more than 5");
        assert!(
            error.to_string().contains("the kernel needs 4194304 bytes"),
            "{error}"
        );
    }

    #[test]
    fn the_initrd_lies_at_the_end_of_memory_and_never_on_the_kernel() {
        let image = parse(made_up_image(b"code", 4 << 20)).expect("a valid image");
        let ram = ram(32);
        let kernel = image.load(&ram).expect("it fits");
        let initrd = image
            .setup_header()
            .load_initrd(&ram, &kernel, &[7; 5000])
            .expect("it fits");
        assert_eq!((initrd.gpa, initrd.size), (32 * MIB - 8192, 5000));
        let error = image
            .setup_header()
            .load_initrd(&ram, &kernel, &vec![0; 12 << 20 | 1])
            .expect_err("only 12 MiB are free above the kernel");
        assert!(error.to_string().contains("initial RAM disk"), "{error}");
    }

    #[test]
    fn what_is_not_a_bootable_kernel_is_refused_with_the_reason() {
        let mut old = made_up_image(b"code", 0);
        old[VERSION] = 0x0b;
        let mut cut = made_up_image(b"", 0);
        cut[SETUP_SECTS] = 0;
        for (image, reason) in [
            (Vec::new(), "too short"),
            (vec![0x7f; 4096], "no Linux boot header"),
            (old, "no 64-bit entry point"),
            (made_up_image(b"", 0), "cut off"),
            (cut, "cut off"),
        ] {
            let error = parse(image).expect_err(reason).to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
