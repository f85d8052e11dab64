// SPDX-License-Identifier: GPL-2.0
//! An unpacked kernel (`vmlinux`, an ELF file): its parts, and its 64-bit entry point.
//!
//! A bzImage unpacks itself into the same memory and then jumps to the same entry point, so the boot protocol is that of
//! a bzImage without its first half. The file has no setup header; the zero page gets the fields that the kernel looks
//! at in one.

use super::bzimage::{LoadedKernel, SetupHeader};
use crate::error::VmmError;
use crate::memory::GuestRam;
use object::elf::{FileHeader64, EM_X86_64, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};
use object::Endianness;
use std::path::Path;

/// What every ELF file begins with.
const MAGIC: &[u8] = b"\x7fELF";
/// Linux' COMMAND_LINE_SIZE on x86, less the terminating zero.
const COMMAND_LINE_LIMIT: usize = 2047;
/// Below 2 GiB, as an x86 bzImage says of itself.
const INITRD_ADDR_MAX: u32 = 0x7fff_ffff;

/// One part of a kernel.
#[derive(Debug)]
struct Segment<'a> {
    gpa: u64,
    content: &'a [u8],
    /// With the zeroes behind the content.
    end: u64,
}

/// A parsed `vmlinux`.
#[derive(Debug)]
pub struct Vmlinux<'a> {
    segments: Vec<Segment<'a>>,
    entry: u64,
}

impl<'a> Vmlinux<'a> {
    /// If `image` is an ELF file.
    pub fn is_elf(image: &[u8]) -> bool {
        image.starts_with(MAGIC)
    }

    /// Checks an image; `path` is for messages.
    pub fn parse(path: &Path, image: &'a [u8]) -> Result<Self, VmmError> {
        let wrong = |reason: &str| VmmError::Kernel {
            path: path.to_owned(),
            reason: reason.into(),
        };
        let broken = |error: object::Error| wrong(&format!("the ELF file is damaged: {error}"));
        let header = FileHeader64::<Endianness>::parse(image).map_err(|_| {
            wrong("it is no 64-bit ELF file; give an x86-64 vmlinux, or a bzImage (as /boot/vmlinuz-VERSION)")
        })?;
        let endian = header.endian().map_err(broken)?;
        if header.e_machine(endian) != EM_X86_64 {
            return Err(wrong("it is for another processor; give an x86-64 kernel"));
        }
        let mut segments = Vec::new();
        for part in header.program_headers(endian, image).map_err(broken)? {
            if part.p_type(endian) != PT_LOAD || part.p_memsz(endian) == 0 {
                continue;
            }
            let gpa = part.p_paddr(endian);
            let content = part
                .data(endian, image)
                .map_err(|()| wrong("the file is cut off"))?;
            let end = gpa
                .checked_add(part.p_memsz(endian))
                .filter(|_| content.len() as u64 <= part.p_memsz(endian))
                .ok_or_else(|| wrong("a part of it ends beyond every address"))?;
            segments.push(Segment { gpa, content, end });
        }
        let entry = header.e_entry(endian);
        if !segments
            .iter()
            .any(|segment| (segment.gpa..segment.end).contains(&entry))
        {
            return Err(wrong(
                "its entry point is in none of its parts; give a vmlinux, not a module or a program",
            ));
        }
        Ok(Self { segments, entry })
    }

    /// Copies the kernel to where it was linked for.
    pub fn load(&self, ram: &GuestRam) -> Result<LoadedKernel, VmmError> {
        let start = self.segments.iter().map(|segment| segment.gpa).min();
        let end = self.segments.iter().map(|segment| segment.end).max();
        let range = start.unwrap_or(0)..end.unwrap_or(0);
        if !ram.contains(range.start, range.end - range.start) {
            return Err(VmmError::NoRoom {
                what: "the kernel",
                needed: range.end,
                memory: ram.size(),
            });
        }
        for segment in &self.segments {
            ram.write(segment.gpa, segment.content)?;
        }
        Ok(LoadedKernel {
            range,
            entry: self.entry,
        })
    }

    /// What a bzImage would say of itself.
    pub fn setup_header(&self) -> SetupHeader {
        SetupHeader::for_unpacked_kernel(COMMAND_LINE_LIMIT as u32, INITRD_ADDR_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GPA: u64 = 0x100_0000;

    /// A kernel of one part with 8 bytes of content and as many zeroes behind it.
    fn made_up(machine: u16, entry: u64, size: u64) -> Vec<u8> {
        let mut image = Vec::new();
        image.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        image.extend_from_slice(&2u16.to_le_bytes());
        image.extend_from_slice(&machine.to_le_bytes());
        image.extend_from_slice(&1u32.to_le_bytes());
        image.extend_from_slice(&entry.to_le_bytes());
        image.extend_from_slice(&64u64.to_le_bytes());
        image.extend_from_slice(&0u64.to_le_bytes());
        image.extend_from_slice(&0u32.to_le_bytes());
        for half in [64u16, 56, 1, 64, 0, 0] {
            image.extend_from_slice(&half.to_le_bytes());
        }
        image.extend_from_slice(&1u32.to_le_bytes());
        image.extend_from_slice(&7u32.to_le_bytes());
        for word in [120, GPA, GPA, 8, size, 4096] {
            image.extend_from_slice(&u64::to_le_bytes(word));
        }
        image.extend_from_slice(b"the code");
        image
    }

    fn parse(image: &[u8]) -> Result<Vmlinux<'_>, VmmError> {
        Vmlinux::parse(Path::new("vmlinux"), image)
    }

    #[test]
    fn the_parts_go_where_they_were_linked_for() {
        let image = made_up(62, GPA + 4, 16);
        assert!(Vmlinux::is_elf(&image));
        let ram = GuestRam::new("test", 32 << 20).expect("test memory can be mapped");
        let kernel = parse(&image)
            .expect("a valid image")
            .load(&ram)
            .expect("it fits");
        assert_eq!((kernel.range, kernel.entry), (GPA..GPA + 16, GPA + 4));
        let mut found = [0xff; 16];
        ram.read(GPA, &mut found).expect("memory");
        assert_eq!(&found, b"the code\0\0\0\0\0\0\0\0");
    }

    #[test]
    fn a_kernel_that_does_not_fit_is_refused() {
        let ram = GuestRam::new("test", 16 << 20).expect("test memory can be mapped");
        let image = made_up(62, GPA, 16);
        let kernel = parse(&image).expect("a valid image");
        let error = kernel.load(&ram).expect_err("16 MiB end where it begins");
        assert!(error.to_string().contains("the kernel needs"), "{error}");
    }

    #[test]
    fn what_is_no_kernel_is_refused_with_the_reason() {
        let whole = made_up(62, GPA, 16);
        for (image, reason) in [
            (&whole[..40], "no 64-bit ELF file"),
            (&whole[..100], "damaged"),
            (&whole[..124], "cut off"),
            (&made_up(40, GPA, 16), "another processor"),
            (&made_up(62, GPA + 16, 16), "entry point"),
            (&made_up(62, GPA, 4), "beyond"),
            (&made_up(62, GPA, u64::MAX), "beyond"),
        ] {
            let error = parse(image).expect_err(reason).to_string();
            assert!(error.contains(reason), "{reason}: {error}");
        }
    }
}
