// SPDX-License-Identifier: GPL-2.0
//! Kernel images, packed and unpacked. What is taken lies in the guest's memory, and the initial RAM disk not on top of it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pvmm_fuzz::input::Input;
use pvmm_vmm::boot::bzimage::{BzImage, LoadedKernel, SetupHeader};
use pvmm_vmm::boot::vmlinux::Vmlinux;
use pvmm_vmm::boot::{zero_page, COMMAND_LINE};
use pvmm_vmm::memory::GuestRam;
use pvmm_vmm::VmmError;
use std::path::Path;
use std::sync::OnceLock;

/// The guest's memory. Kept, since mapping it takes longer than all the rest.
fn ram() -> &'static GuestRam {
    static RAM: OnceLock<GuestRam> = OnceLock::new();
    RAM.get_or_init(|| GuestRam::new("fuzz", 32 << 20).expect("memory can be mapped"))
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let initrd_size = usize::from(input.u16()) * 64;
    let image = input.rest();
    let Ok((kernel, header)) = load(image) else {
        return;
    };
    assert!(kernel.range.start < kernel.range.end);
    assert!(ram().contains(kernel.range.start, kernel.range.end - kernel.range.start));
    let initrd = header
        .load_initrd(ram(), &kernel, &vec![0x5a; initrd_size])
        .ok();
    if let Some(initrd) = &initrd {
        assert!(initrd.gpa >= kernel.range.end, "{initrd:?} on {kernel:?}");
        assert!(initrd.size == 0 || ram().contains(initrd.gpa, initrd.size));
    }
    let page = zero_page::build(
        header.bytes(),
        &zero_page::e820(ram()),
        initrd.as_ref(),
        COMMAND_LINE,
        None,
    );
    assert_eq!(page.len(), 4096);
    let _ = header.command_line_limit();
});

fn load(image: &[u8]) -> Result<(LoadedKernel, SetupHeader), VmmError> {
    let path = Path::new("kernel");
    if Vmlinux::is_elf(image) {
        let image = Vmlinux::parse(path, image)?;
        Ok((image.load(ram())?, image.setup_header()))
    } else {
        let image = BzImage::parse(path, image.to_vec())?;
        Ok((image.load(ram())?, image.setup_header()))
    }
}
