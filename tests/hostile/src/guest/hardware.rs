//! Memory at its physical address, ports, MSRs.
//!
//! The guest owns its machine: there is no memory that an access could make unsound but its own image, which nothing here
//! is given an address of.

/// IA32_APIC_BASE.
const APIC_BASE: u32 = 0x1b;
/// What it is after reset on the bootstrap processor.
const APIC_BASE_RESET: u64 = 0xfee0_0900;
/// IA32_EFER.
const EFER: u32 = 0xc000_0080;
const EFER_SCE: u64 = 1;
const EFER_LME: u64 = 1 << 8;

extern "C" {
    fn hostile_out(port: u64, value: u64);
    fn hostile_in(port: u64) -> u64;
    fn hostile_rdmsr(index: u64) -> u64;
    fn hostile_wrmsr(index: u64, value: u64);
    fn hostile_clear_debug();
    fn hostile_features() -> u64;
}

/// OUT of a byte.
pub fn port_out(port: u16, value: u8) {
    // SAFETY: a guest without drivers can't confuse one; the machine is its own.
    unsafe { hostile_out(port.into(), value.into()) }
}

/// IN of a byte.
pub fn port_in(port: u16) -> u8 {
    // SAFETY: as for `port_out`.
    unsafe { hostile_in(port.into()) as u8 }
}

/// WRMSR of a value that the MSR takes.
pub fn write_msr(index: u32, value: u64) {
    // SAFETY: the callers write values that leave the guest's own mode as it is.
    unsafe { hostile_wrmsr(index.into(), value) }
}

/// Whether the machine has a local APIC, as CPUID.01H:EDX bit 9 says.
pub fn has_apic() -> bool {
    // SAFETY: every 64-bit processor has CPUID, and it has no effect but its result.
    unsafe { hostile_features() & (1 << 9) != 0 }
}

/// Puts back the registers that a snippet may have changed and that matter to the guest.
pub fn repair_registers() {
    // SAFETY: reading this MSR has no side effects, and every processor with a local APIC has it.
    if has_apic() && unsafe { hostile_rdmsr(APIC_BASE.into()) } != APIC_BASE_RESET {
        // From x2APIC mode the way back leads through being disabled.
        write_msr(APIC_BASE, 0xfee0_0100);
        write_msr(APIC_BASE, APIC_BASE_RESET);
    }
    write_msr(EFER, EFER_LME | EFER_SCE | 1 << 10);
    // SAFETY: no breakpoint is enabled afterwards.
    unsafe { hostile_clear_debug() }
}

/// Writes memory at `address`.
pub fn store(address: u64, value: u64) {
    // SAFETY: identically mapped memory that no Rust object lies in: the callers name places of `pvmm_hostile::layout`.
    unsafe { (address as *mut u64).write_volatile(value) }
}

/// Writes four bytes at `address`, which may be a device's.
pub fn store_32(address: u64, value: u32) {
    // SAFETY: as for `store`.
    unsafe { (address as *mut u32).write_volatile(value) }
}

/// Copies bytes to `address`.
pub fn store_bytes(address: u64, bytes: &[u8]) {
    // SAFETY: as for `store`; `bytes` is an object of the image or the stack, which lie elsewhere.
    unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len()) }
}

/// Copies `length` bytes from one place of memory to another.
pub fn copy(from: u64, to: u64, length: u64) {
    // SAFETY: as for `store`; `from` is part of the image, which is only read.
    unsafe { core::ptr::copy(from as *const u8, to as *mut u8, length as usize) }
}

/// Fills `length` bytes at `address`.
pub fn fill(address: u64, value: u8, length: u64) {
    // SAFETY: as for `store`.
    unsafe { core::ptr::write_bytes(address as *mut u8, value, length as usize) }
}

/// Copies a string that ends with a zero byte; what is longer than `room`, or no text, is cut off.
pub fn copy_string(address: u64, room: &mut [u8]) -> &str {
    let mut length = 0;
    while length < room.len() {
        // SAFETY: the boot loader has put a string with a zero at its end there.
        let byte = unsafe { ((address + length as u64) as *const u8).read_volatile() };
        if byte == 0 {
            break;
        }
        room[length] = byte;
        length += 1;
    }
    let text = room.get(..length).unwrap_or(&[]);
    core::str::from_utf8(text).unwrap_or("")
}

/// ACPI soft off through the FADT's fixed registers: SLP_TYP 5, then SLP_EN. Stays here if that does nothing.
pub fn power_off() -> ! {
    for value in [5 << 2, 5 << 2 | 1 << 5] {
        port_out(0x604, 0);
        port_out(0x605, value);
    }
    loop {
        core::hint::spin_loop();
    }
}
