//! The disk that Bochs hosts boot from: the kernel as it runs, the initramfs, and where they go.
//!
//! See `bootrom.S` for the other half and for why. The disk is a table in its first sector (entry
//! point, number of chunks, then sector, length and physical address of each chunk) and the chunks.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{file, Result};
use crate::process::run_logged;
use crate::tree::{Bind, Tree};

/// The ROM's source.
const BOOT_ROM: &str = include_str!("bootrom.S");
/// Where the ROM expects `start_info`.
const START_INFO: u32 = 0x6000;
/// Where the ROM puts the memory map.
const MEMMAP: u32 = 0x5000;
/// Where the initramfs goes: above the kernel, and inside of the smallest host's memory.
const INITRD: u32 = 0x0800_0000;
/// Bytes of a sector.
const SECTOR: usize = 512;
/// Sectors per cylinder of the disk's geometry, and its heads and sectors per track.
pub const GEOMETRY: (usize, usize) = (16, 63);
/// Most sectors that one command of the ROM reads.
const MOST_SECTORS: usize = 0x8000;

/// The pieces of a kernel that is already unpacked.
#[derive(Debug, PartialEq, Eq)]
struct Kernel<'a> {
    /// Physical address of the 32-bit PVH entry point.
    entry: u32,
    /// Physical address and content of each loaded part.
    segments: Vec<(u32, &'a [u8])>,
}

/// Makes the ROM and the disk in `out` (`boot.rom`, `boot.disk`), and returns their paths.
///
/// # Errors
/// [`crate::LabError::Command`] if the ROM can't be assembled; [`crate::LabError::File`] if the kernel
/// isn't one with a PVH entry.
pub fn build(
    tree: &Tree,
    vmlinux: &Path,
    initrd: &[u8],
    command_line: &str,
    out: &Path,
) -> Result<(PathBuf, PathBuf)> {
    let rom = out.join("boot.rom");
    let source = out.join("bootrom.S");
    fs::write(&source, BOOT_ROM).map_err(file("can't write", &source))?;
    let script = "cd /pvmm/image && as --32 -o bootrom.o bootrom.S && \
                  ld -m elf_i386 -Ttext=0 --oformat binary -o boot.rom bootrom.o";
    run_logged(
        &mut tree.script(&[Bind::rw(out, "/pvmm/image")], script),
        "assembling the boot ROM",
        &out.join("image.log"),
    )?;
    let code = fs::read(&rom).map_err(file("can't read", &rom))?;
    let block = option_rom(code).map_err(file("can't use", &rom))?;
    fs::write(&rom, block).map_err(file("can't write", &rom))?;

    let elf = fs::read(vmlinux).map_err(file("can't read", vmlinux))?;
    let kernel = parse(&elf).ok_or_else(|| {
        file("no 64-bit kernel with a PVH entry:", vmlinux)(io::ErrorKind::InvalidData.into())
    })?;
    let disk = out.join("boot.disk");
    let content = disk_image(&kernel, initrd, command_line);
    fs::write(&disk, content).map_err(file("can't write", &disk))?;
    Ok((rom, disk))
}

/// Pads the ROM's code to its one block and makes the block's bytes add up to 0, as the BIOS demands.
fn option_rom(mut code: Vec<u8>) -> io::Result<Vec<u8>> {
    if code.len() >= SECTOR {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "longer than one block of 512 bytes",
        ));
    }
    code.resize(SECTOR, 0);
    let sum = code.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    code[SECTOR - 1] = sum.wrapping_neg();
    Ok(code)
}

/// Lays out the disk.
fn disk_image(kernel: &Kernel<'_>, initrd: &[u8], command_line: &str) -> Vec<u8> {
    let info = start_info(initrd.len(), command_line);
    let mut parts = kernel.segments.clone();
    parts.push((INITRD, initrd));
    parts.push((START_INFO, &info));

    let mut table = Vec::new();
    let mut disk = vec![0u8; SECTOR];
    for (address, content) in parts {
        for (number, piece) in content.chunks(MOST_SECTORS * SECTOR).enumerate() {
            let at = disk.len() / SECTOR;
            disk.extend_from_slice(piece);
            disk.resize(disk.len().next_multiple_of(SECTOR), 0);
            let length = disk.len() / SECTOR - at;
            // All are far below 4 GiB: the parts come from files of some 10 MB.
            table.push(at as u32);
            table.push(length as u32);
            table.push(address + (number * MOST_SECTORS * SECTOR) as u32);
        }
    }
    let chunks = (table.len() / 3) as u32;
    let words = [kernel.entry, chunks].into_iter().chain(table);
    for (place, word) in disk.chunks_mut(4).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    // The emulator wants whole cylinders.
    let (heads, sectors) = GEOMETRY;
    disk.resize(disk.len().next_multiple_of(heads * sectors * SECTOR), 0);
    disk
}

/// `hvm_start_info`, then its one module, then the command line.
fn start_info(initrd_length: usize, command_line: &str) -> Vec<u8> {
    const MAGIC: u32 = 0x336e_c578;
    const MODULE: u32 = START_INFO + 0x80;
    const COMMAND_LINE: u32 = START_INFO + 0x100;
    let mut info = Vec::new();
    let mut words = |list: &[u32]| {
        for word in list {
            info.extend_from_slice(&word.to_le_bytes());
        }
    };
    // magic, version, flags, number of modules, then 64-bit addresses: modules, command line, RSDP (not
    // known: the kernel looks for it), memory map; then the map's length, which the ROM fills in.
    words(&[
        MAGIC,
        1,
        0,
        1,
        MODULE,
        0,
        COMMAND_LINE,
        0,
        0,
        0,
        MEMMAP,
        0,
        0,
        0,
    ]);
    words(&[0; 18]);
    // module: address, length, command line, reserved
    words(&[INITRD, 0, initrd_length as u32, 0, 0, 0, 0, 0]);
    words(&[0; 24]);
    info.extend_from_slice(command_line.as_bytes());
    info.push(0);
    info
}

/// Finds what must be loaded in an ELF kernel; `None` if it isn't one.
fn parse(elf: &[u8]) -> Option<Kernel<'_>> {
    const PT_LOAD: u32 = 1;
    const PT_NOTE: u32 = 4;
    if elf.get(..5)? != b"\x7fELF\x02" {
        return None;
    }
    let headers = usize::try_from(u64_at(elf, 32)?).ok()?;
    let size = usize::from(u16::from_le_bytes(elf.get(54..56)?.try_into().ok()?));
    let count = usize::from(u16::from_le_bytes(elf.get(56..58)?.try_into().ok()?));
    let mut entry = None;
    let mut segments = Vec::new();
    for number in 0..count {
        let header = elf.get(headers + number * size..)?;
        let offset = usize::try_from(u64_at(header, 8)?).ok()?;
        let length = usize::try_from(u64_at(header, 32)?).ok()?;
        let content = elf.get(offset..offset.checked_add(length)?)?;
        match u32_at(header, 0)? {
            PT_LOAD => segments.push((u32::try_from(u64_at(header, 24)?).ok()?, content)),
            PT_NOTE => entry = entry.or(pvh_entry(content)),
            _ => {}
        }
    }
    Some(Kernel {
        entry: entry?,
        segments,
    })
}

/// The note `XEN_ELFNOTE_PHYS32_ENTRY` (18, owner "Xen").
fn pvh_entry(mut notes: &[u8]) -> Option<u32> {
    loop {
        let name = u32_at(notes, 0)? as usize;
        let length = u32_at(notes, 4)? as usize;
        let kind = u32_at(notes, 8)?;
        let content = 12 + name.next_multiple_of(4);
        if kind == 18 && notes.get(12..12 + name)? == b"Xen\0" {
            return u32_at(notes, content);
        }
        notes = notes.get(content + length.next_multiple_of(4)..)?;
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use std::result::Result;

    use super::*;

    fn note(owner: &[u8], kind: u32, content: &[u8]) -> Vec<u8> {
        let mut note = Vec::new();
        for word in [owner.len() as u32, content.len() as u32, kind] {
            note.extend_from_slice(&word.to_le_bytes());
        }
        for part in [owner, content] {
            note.extend_from_slice(part);
            note.resize(note.len().next_multiple_of(4), 0);
        }
        note
    }

    #[test]
    fn the_pvh_entry_is_found_behind_other_notes() {
        let mut notes = note(b"GNU\0", 3, &[1; 20]);
        notes.extend(note(b"Xen\0", 6, b"linux\0"));
        notes.extend(note(b"Xen\0", 18, &0x038a_b110u64.to_le_bytes()));
        assert_eq!(pvh_entry(&notes), Some(0x038a_b110));
        assert_eq!(pvh_entry(&note(b"Foo\0", 18, &[0; 8])), None);
    }

    #[test]
    fn the_table_in_the_first_sector_leads_to_every_byte() -> Result<(), &'static str> {
        let segment: Vec<u8> = (0..MOST_SECTORS * SECTOR + 700).map(|n| n as u8).collect();
        let kernel = Kernel {
            entry: 0x1234,
            segments: vec![(0x0100_0000, &segment)],
        };
        let disk = disk_image(&kernel, b"initramfs", "quiet");
        assert_eq!(disk.len() % (GEOMETRY.0 * GEOMETRY.1 * SECTOR), 0);
        assert_eq!(u32_at(&disk, 0), Some(0x1234));
        let chunks = u32_at(&disk, 4).ok_or("no table")? as usize;
        // the segment in two pieces, the initramfs, start_info
        assert_eq!(chunks, 4);
        let mut memory = std::collections::BTreeMap::new();
        for chunk in 0..chunks {
            let word = |n: usize| {
                u32_at(&disk, 8 + chunk * 12 + n * 4)
                    .map(|w| w as usize)
                    .ok_or("table cut short")
            };
            let (at, length, address) = (word(0)?, word(1)?, word(2)?);
            let content = &disk[at * SECTOR..(at + length) * SECTOR];
            memory.insert(address, content);
        }
        assert_eq!(memory[&0x0100_0000], &segment[..MOST_SECTORS * SECTOR]);
        let rest = 0x0100_0000 + MOST_SECTORS * SECTOR;
        assert_eq!(&memory[&rest][..700], &segment[MOST_SECTORS * SECTOR..]);
        assert_eq!(&memory[&(INITRD as usize)][..9], b"initramfs");
        let info = memory[&(START_INFO as usize)];
        assert_eq!(&info[0x100..0x106], b"quiet\0");
        assert_eq!(u32_at(info, 0x80), Some(INITRD));
        assert_eq!(u32_at(info, 0x88), Some(9));
        Ok(())
    }

    #[test]
    fn the_bytes_of_the_rom_add_up_to_zero() -> io::Result<()> {
        let rom = option_rom(vec![0x55, 0xaa, 1, 0xfa])?;
        assert_eq!(rom.len(), SECTOR);
        assert_eq!(rom.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)), 0);
        assert!(option_rom(vec![0; SECTOR]).is_err());
        Ok(())
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"\x7fELF\x02 but cut short"), None);
        assert_eq!(parse(&[0; 4096]), None);
    }
}
