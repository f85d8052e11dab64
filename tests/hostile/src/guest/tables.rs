//! Descriptor tables and page tables, at the places that `start.S` and `layout` name.

use crate::hardware::store;
use pvmm_hostile::layout::{
    selector, CODE, DATA, HOLE, IO_APIC, LAST_PAGE, PLAYGROUND, RAM_END, STACK,
};

const PML4: u64 = 0x60_0000;
const PDPT: u64 = 0x60_1000;
/// The first 2 MiB in pages of 4 KiB.
const PAGES: u64 = 0x60_2000;
/// The first GiB: the memory.
const DIRECTORY_0: u64 = 0x60_3000;
/// The last GiB below 4 GiB: the devices.
const DIRECTORY_3: u64 = 0x60_4000;
/// The page before the gap.
const GAP_PDPT: u64 = 0x60_5000;
const GAP_DIRECTORY: u64 = 0x60_6000;
const GAP_PAGES: u64 = 0x60_7000;
/// CR3 for PAE paging.
pub const PAE_PDPT: u64 = 0x60_8000;
/// CR3 for 32-bit paging.
pub const DIRECTORY_32: u64 = 0x60_9000;
const TSS_64: u64 = 0x60_a000;
const TSS_32: u64 = 0x60_b000;
/// Stack of ring 0 when ring 3 of a legacy mode is interrupted; the end.
const LEGACY_STACK: u64 = 0x60_d000;
const IDT_32: u64 = 0x61_0000;
const IDT_64: u64 = 0x61_1000;

const PRESENT: u64 = 1;
const WRITE: u64 = 2;
const USER: u64 = 4;
const LARGE: u64 = 1 << 7;
const ALL: u64 = PRESENT | WRITE | USER;

/// The vector of NMIs.
const NMI: u64 = 2;
/// 2 MiB and 4 MiB, the sizes of large pages.
const MIB_2: u64 = 2 << 20;
const MIB_4: u64 = 4 << 20;

extern "C" {
    static hostile_gdt: u8;
    static hostile_vectors: u8;
    static low_vectors: u8;
    static low_real_vectors: u8;
    static interrupt_stack: u8;
    static nmi_stack: u8;
    fn hostile_load_tables(cr3: u64);
}

/// The address of a symbol of `start.S`.
macro_rules! address_of {
    ($symbol:ident) => {
        core::ptr::addr_of!($symbol) as u64
    };
}

/// The GDT's address.
pub fn gdt() -> u64 {
    address_of!(hostile_gdt)
}

/// Makes all tables and loads them.
pub fn build() {
    for table in (PML4..TSS_64).step_by(4096) {
        for entry in 0..512 {
            store(table + 8 * entry, 0);
        }
    }
    for word in 0..32 {
        store(TSS_64 + 8 * word, 0);
        store(TSS_32 + 8 * word, 0);
    }
    restore();
}

/// Writes all entries again that snippets may have changed. The tables are in use meanwhile: the watchdog's NMI may come at
/// any time.
pub fn restore() {
    page_tables();
    descriptors();
    // SAFETY: the tables map image and stack where they are, and the descriptors are the guest's own.
    unsafe { hostile_load_tables(PML4) }
}

fn page_tables() {
    store(PML4, PDPT | ALL);
    store(PML4 + 8, PLAYGROUND | ALL);
    store(PML4 + 8 * 255, GAP_PDPT | ALL);
    store(GAP_PDPT + 8 * 511, GAP_DIRECTORY | ALL);
    store(GAP_DIRECTORY + 8 * 511, GAP_PAGES | ALL);
    store(GAP_PAGES + 8 * (LAST_PAGE >> 12 & 0x1ff), CODE | ALL);
    store(PDPT, DIRECTORY_0 | ALL);
    store(PDPT + 8 * 3, DIRECTORY_3 | ALL);
    store(DIRECTORY_0, PAGES | ALL);
    for page in 0..512 {
        let gpa = page << 12;
        let user = [CODE, DATA, STACK].contains(&(gpa & !0xffff));
        store(
            PAGES + 8 * page,
            gpa | PRESENT | WRITE | if user { USER } else { 0 },
        );
    }
    for gpa in (MIB_2..RAM_END).step_by(MIB_2 as usize) {
        store(
            DIRECTORY_0 + 8 * (gpa / MIB_2),
            gpa | PRESENT | WRITE | LARGE,
        );
    }
    for gpa in [HOLE, IO_APIC, IO_APIC + MIB_2] {
        store(DIRECTORY_3 + 8 * ((gpa / MIB_2) & 0x1ff), gpa | ALL | LARGE);
    }
    store(PAE_PDPT, DIRECTORY_0 | PRESENT);
    store(PAE_PDPT + 8 * 3, DIRECTORY_3 | PRESENT);
    for gpa in (0..RAM_END).step_by(MIB_4 as usize).chain([HOLE, IO_APIC]) {
        let index = gpa / MIB_4;
        let entry = ((index * MIB_4) | ALL | LARGE) as u32;
        crate::hardware::store_32(DIRECTORY_32 + 4 * index, entry);
    }
}

/// A code or data descriptor of 64 KiB or, in pages, of up to 4 GiB.
const fn segment(base: u64, pages: Option<u64>, access: u64, flags: u64) -> u64 {
    let (limit, granularity) = match pages {
        Some(pages) => (pages - 1, 8),
        None => (0xffff, 0),
    };
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 0xf) << 48
        | (flags | granularity) << 52
        | (base >> 24) << 56
}

fn descriptors() {
    const CODE_KERNEL: u64 = 0x9b;
    const DATA_KERNEL: u64 = 0x93;
    const CODE_USER: u64 = 0xfb;
    const DATA_USER: u64 = 0xf3;
    const LONG: u64 = 2;
    const BITS_32: u64 = 4;
    let whole = Some(1 << 20);
    let memory = Some(RAM_END >> 12);
    let entries = [
        (selector::CODE_64, segment(0, whole, CODE_KERNEL, LONG)),
        (selector::FLAT, segment(0, whole, DATA_KERNEL, BITS_32)),
        (selector::CODE_32, segment(0, whole, CODE_KERNEL, BITS_32)),
        (selector::USER_CODE_64, segment(0, whole, CODE_USER, LONG)),
        (selector::USER_DATA, segment(0, memory, DATA_USER, BITS_32)),
        (
            selector::USER_CODE_32,
            segment(0, memory, CODE_USER, BITS_32),
        ),
        (selector::CODE_16, segment(CODE, None, CODE_KERNEL, 0)),
        (selector::DATA_16, segment(DATA, None, DATA_KERNEL, 0)),
        (selector::STACK_16, segment(STACK, None, DATA_KERNEL, 0)),
        (selector::USER_CODE_16, segment(CODE, None, CODE_USER, 0)),
        (selector::USER_DATA_16, segment(DATA, None, DATA_USER, 0)),
        (selector::USER_STACK_16, segment(STACK, None, DATA_USER, 0)),
        (selector::DATA, segment(0, memory, DATA_KERNEL, BITS_32)),
        (selector::LOW_CODE, segment(0, None, CODE_KERNEL, 0)),
        (selector::LOW_DATA, segment(0, None, DATA_KERNEL, 0)),
        (selector::TSS_64, tss(TSS_64)),
        (selector::TSS_32, tss(TSS_32)),
    ];
    for (selector, descriptor) in entries {
        store(gdt() + u64::from(selector & !7), descriptor);
    }
    let stack = address_of!(interrupt_stack);
    // RSP0 (offset 4), IST1 (36) and IST2 (44), whose upper halves are 0. The watchdog's NMI has a stack of its own, since it
    // may come while an interrupt is handled.
    for (offset, value) in [(4, stack), (36, stack), (44, address_of!(nmi_stack))] {
        crate::hardware::store_32(TSS_64 + offset, value as u32);
    }
    crate::hardware::store_32(TSS_64 + 100, 0x68 << 16);
    crate::hardware::store_32(TSS_32 + 4, LEGACY_STACK as u32);
    crate::hardware::store_32(TSS_32 + 8, selector::FLAT.into());
    crate::hardware::store_32(TSS_32 + 100, 0x68 << 16);
    for vector in 0..256 {
        // Interrupt gates that every ring may use; those of IA-32e mode switch to the stack IST1.
        let gate = |target: u64, selector: u16, ist: u64| {
            target & 0xffff
                | u64::from(selector) << 16
                | ist << 32
                | 0xee << 40
                | (target >> 16 & 0xffff) << 48
        };
        let long = address_of!(hostile_vectors) + 16 * vector;
        let ist = if vector == NMI { 2 } else { 1 };
        store(IDT_64 + 16 * vector, gate(long, selector::CODE_64, ist));
        store(IDT_64 + 16 * vector + 8, 0);
        let low = address_of!(low_vectors) + 16 * vector;
        store(IDT_32 + 8 * vector, gate(low, selector::CODE_32, 0));
    }
}

/// An available TSS.
const fn tss(base: u64) -> u64 {
    0x67 | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24) << 56
}

/// Writes the vectors of real mode to address 0.
pub fn real_mode_vectors() {
    let first = address_of!(low_real_vectors);
    for vector in 0..256 {
        crate::hardware::store_32(4 * vector, (first + 8 * vector) as u32);
    }
}
