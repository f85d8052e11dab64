// SPDX-License-Identifier: GPL-2.0
//! The guest's extended state: XSAVE's standard format in one page (SDM volume 1, 13.4).

use core::arch::asm;
use pvmm_hostabi::HostPage;
use pvmm_uapi::XSAVE_SIZE;

/// XCR0 bits that a guest may have: x87, SSE, AVX and the three of AVX-512. Their standard format fits
/// [`XSAVE_SIZE`]. MPX is gone, PKRU would need the host's saved, AMX is refused.
pub const GUEST_XCR0: u64 = 0b1110_0111;

/// MXCSR after reset.
const MXCSR_RESET: u32 = 0x1f80;
/// The same, in memory.
static MXCSR_RESET_VALUE: u32 = MXCSR_RESET;
/// Offset of MXCSR in the legacy region.
const MXCSR: usize = 24;
/// Offset of XSTATE_BV.
const XSTATE_BV: usize = 512;
/// The XSAVE header ends here.
const HEADER_END: usize = 576;

/// XCR0.
///
/// # Safety
///
/// CR4.OSXSAVE must be set.
pub unsafe fn xgetbv0() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: XGETBV of XCR0 is allowed at every privilege level if CR4.OSXSAVE is set (the caller's obligation).
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Writes XCR0.
///
/// # Safety
///
/// Supervisor mode, CR4.OSXSAVE set, `value` valid on this CPU, and the host's value must be put back before host code
/// uses the FPU.
pub unsafe fn xsetbv0(value: u64) {
    // SAFETY: the caller's obligation.
    unsafe {
        asm!("xsetbv", in("ecx") 0, in("eax") value as u32, in("edx") (value >> 32) as u32,
             options(nomem, nostack, preserves_flags));
    }
}

/// Saves the components in `mask` to `page`.
///
/// # Safety
///
/// The FPU belongs to the caller (`HostCpu::fpu_enter`), and `mask` is a subset of XCR0 and of [`GUEST_XCR0`].
pub unsafe fn xsave<P: HostPage>(page: &P, mask: u64) {
    // SAFETY: the page is aligned and larger than the standard format of the components in `GUEST_XCR0`; the
    // FPU is the caller's.
    unsafe {
        asm!("xsave64 [{}]", in(reg) page.words().as_ptr(), in("eax") mask as u32,
             in("edx") (mask >> 32) as u32, options(nostack, preserves_flags));
    }
}

/// Loads the components in `mask` from `page`.
///
/// # Safety
///
/// As for [`xsave`]; the image must be one that [`xsave`] wrote, [`reset`] made or [`load_image`] accepted: another
/// could fault.
pub unsafe fn xrstor<P: HostPage>(page: &P, mask: u64) {
    // SAFETY: as for `xsave`; the image is well formed by the caller's obligation.
    unsafe {
        asm!("xrstor64 [{}]", in(reg) page.words().as_ptr(), in("eax") mask as u32,
             in("edx") (mask >> 32) as u32, options(nostack, preserves_flags));
    }
}

/// Gives MXCSR the value after reset, which whoever uses the FPU next may rely on: an XRSTORS of a state whose SSE part is the
/// initial one sets it (SDM volume 1, 13.12), but not on every implementation of the processor, and then programs that the
/// host starts would compute with the guest's rounding.
///
/// # Safety
///
/// The FPU belongs to the caller (`HostCpu::fpu_enter`), and what was in it is saved.
pub unsafe fn reset_mxcsr() {
    // SAFETY: the caller's obligation; the operand is a constant in memory without reserved bits.
    unsafe {
        asm!("ldmxcsr [{}]", in(reg) &raw const MXCSR_RESET_VALUE,
             options(nostack, preserves_flags, readonly));
    }
}

fn set_word<P: HostPage>(page: &P, index: usize, value: u64) {
    if let Some(word) = page.words().get(index) {
        word.store(value, core::sync::atomic::Ordering::Relaxed);
    }
}

/// Puts a page into the state after reset.
pub fn reset<P: HostPage>(page: &P) {
    for word in page.words() {
        word.store(0, core::sync::atomic::Ordering::Relaxed);
    }
    set_word(page, MXCSR / 8, u64::from(MXCSR_RESET));
}

/// Copies an image out of a page.
pub fn save_image<P: HostPage>(page: &P, image: &mut [u8; XSAVE_SIZE]) {
    for (bytes, word) in image.chunks_exact_mut(8).zip(page.words()) {
        bytes.copy_from_slice(
            &word
                .load(core::sync::atomic::Ordering::Relaxed)
                .to_le_bytes(),
        );
    }
}

/// Whether XRSTOR takes an image: no components outside `mask`, the standard format, no reserved header or MXCSR bits.
pub fn is_valid_image(image: &[u8; XSAVE_SIZE], mask: u64) -> bool {
    let field = |offset: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&image[offset..offset + 8]);
        u64::from_le_bytes(bytes)
    };
    let mxcsr = field(MXCSR) as u32;
    let header_is_clean = image[XSTATE_BV + 8..HEADER_END]
        .iter()
        .all(|&byte| byte == 0);
    field(XSTATE_BV) & !mask == 0 && header_is_clean && mxcsr & 0xffff_0000 == 0
}

/// Copies an image that [`is_valid_image`] accepts into a page; another is refused.
pub fn load_image<P: HostPage>(page: &P, image: &[u8; XSAVE_SIZE], mask: u64) -> bool {
    if !is_valid_image(image, mask) {
        return false;
    }
    for (bytes, word) in image.chunks_exact(8).zip(page.words()) {
        let mut value = [0; 8];
        value.copy_from_slice(bytes);
        word.store(
            u64::from_le_bytes(value),
            core::sync::atomic::Ordering::Relaxed,
        );
    }
    true
}
