// SPDX-License-Identifier: GPL-2.0
//! What the guest finds at its start, in place of firmware and boot loader: an unmodified kernel with its zero page,
//! command line and initial RAM disk in memory, and a vCPU at its 64-bit entry point.
//!
//! Follows the Linux x86 boot protocol (Documentation/arch/x86/boot.rst in the kernel source).
//!
//! | guest-physical | content |
//! |---|---|
//! | 500h | GDT, IDT |
//! | 7000h | zero page (`boot_params`) |
//! | 9000h | page tables: the first 4 GiB, identically mapped |
//! | 2_0000h | command line |
//! | E_0000h | ACPI tables |
//! | its own wish, 1 MiB or above | kernel |
//! | as high as it may lie | initial RAM disk |

pub mod bzimage;
pub mod entry;
pub mod vmlinux;
pub mod zero_page;

use crate::error::VmmError;
use crate::memory::GuestRam;
use pvmm_uapi::VcpuState;
use std::path::{Path, PathBuf};

/// Where the zero page lies.
pub const ZERO_PAGE: u64 = 0x7000;
/// Where the command line lies.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// Longest command line that there is room for, with its terminating zero.
pub const COMMAND_LINE_ROOM: usize = 0x1_0000;

/// What to boot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BootSource {
    /// A bzImage, or the same kernel unpacked.
    pub kernel: PathBuf,
    /// An initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: String,
}

/// Puts everything into guest memory and makes `state` enter the kernel. `state` is a vCPU's state after reset.
///
/// `rsdp` is where the ACPI tables begin, if there are any.
pub fn load(
    ram: &GuestRam,
    source: &BootSource,
    rsdp: Option<u64>,
    state: &mut VcpuState,
) -> Result<(), VmmError> {
    let image = read_file(&source.kernel)?;
    let (kernel, header) = if vmlinux::Vmlinux::is_elf(&image) {
        let image = vmlinux::Vmlinux::parse(&source.kernel, &image)?;
        (image.load(ram)?, image.setup_header())
    } else {
        let image = bzimage::BzImage::parse(&source.kernel, image)?;
        (image.load(ram)?, image.setup_header())
    };
    let initrd = match &source.initrd {
        Some(path) => Some(header.load_initrd(ram, &kernel, &read_file(path)?)?),
        None => None,
    };
    let limit = header.command_line_limit().min(COMMAND_LINE_ROOM - 1);
    if source.cmdline.len() > limit || source.cmdline.contains('\0') {
        return Err(VmmError::CommandLine {
            length: source.cmdline.len(),
            limit,
        });
    }
    let mut line = source.cmdline.clone().into_bytes();
    line.push(0);
    ram.write(COMMAND_LINE, &line)?;
    let page = zero_page::build(
        header.bytes(),
        &zero_page::e820(ram),
        initrd.as_ref(),
        COMMAND_LINE,
        rsdp,
    );
    ram.write(ZERO_PAGE, &page)?;
    entry::write_tables(ram)?;
    entry::enter_64_bit(state, kernel.entry, ZERO_PAGE);
    Ok(())
}

fn read_file(path: &Path) -> Result<Vec<u8>, VmmError> {
    std::fs::read(path).map_err(|reason| VmmError::File {
        path: path.to_owned(),
        reason,
    })
}
