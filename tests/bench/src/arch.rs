//! The instructions that are measured: the only `unsafe` of the program.

use std::arch::asm;
use std::io;

/// The time-stamp counter, after everything before it is done.
pub fn ticks() -> u64 {
    // SAFETY: both exist on every CPU with 64-bit mode, and have no effect on memory.
    unsafe {
        std::arch::x86_64::_mm_lfence();
        std::arch::x86_64::_rdtsc()
    }
}

/// CPUID leaf 0.
pub fn cpuid() {
    std::hint::black_box(std::arch::x86_64::__cpuid(0));
}

/// Allows this thread all ports.
///
/// # Errors
/// The system's: it takes root.
pub fn allow_ports() -> io::Result<()> {
    // SAFETY: changes nothing but this thread's I/O privilege level.
    if unsafe { libc::iopl(3) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Ports that are read or written here, none of which moves anything but the device behind it.
#[derive(Debug, Clone, Copy)]
#[repr(u16)]
pub enum Port {
    /// Mask of the first 8259.
    Mask8259 = 0x21,
    /// The ACPI timer of a pvmm guest.
    PmTimer = 0x608,
    /// COM1's scratch register.
    Com1Scratch = 0x3ff,
    /// COM2's scratch register.
    Com2Scratch = 0x2ff,
    /// COM2's FIFO control register.
    Com2FifoControl = 0x2fa,
}

/// IN, one byte.
pub fn port_read(port: Port) {
    let value: u8;
    // SAFETY: a read of these ports changes nothing; without the privilege the program gets SIGSEGV.
    unsafe {
        asm!("in al, dx", in("dx") port as u16, out("al") value, options(nomem, nostack, preserves_flags));
    }
    std::hint::black_box(value);
}

/// IN, four bytes.
pub fn port_read_long(port: Port) {
    let value: u32;
    // SAFETY: as for `port_read`.
    unsafe {
        asm!("in eax, dx", in("dx") port as u16, out("eax") value, options(nomem, nostack, preserves_flags));
    }
    std::hint::black_box(value);
}

/// OUT, one byte.
pub fn port_write(port: Port, value: u8) {
    // SAFETY: the ports of `Port` belong to devices that have no access to memory.
    unsafe {
        asm!("out dx, al", in("dx") port as u16, in("al") value, options(nomem, nostack, preserves_flags));
    }
}
