//! One round: everything is put in place, the snippet runs, and whatever ends it leads back here.

use crate::hardware::{
    copy, fill, has_apic, port_out, repair_registers, store, store_32, store_bytes, write_msr,
};
use crate::tables::{self, gdt, DIRECTORY_32, PAE_PDPT};
use pvmm_hostile::cases::random_code::table_entry;
use pvmm_hostile::layout::{
    selector, CODE, DATA, DESCRIPTORS, IO_APIC, LAST_PAGE, LOCAL_APIC, PLAYGROUND, ROOM, STACK,
    STACK_TOP, TRAP,
};
use pvmm_hostile::snippet::RSP;
use pvmm_hostile::{Case, Mode, Privilege, Random, Snippet};

extern "C" {
    static low_start: u8;
    static low_end: u8;
    static low_image: u8;
    static low_parameters: u8;
    static mut resumes: u64;
    fn hostile_enter(frame: *const u64) -> u64;
    fn hostile_enter_legacy() -> u64;
}

/// INT3, which the code's room is filled with.
const INT3: u8 = 0xcc;
/// How long a snippet may take, in periods of the 8254's clock: 20 ms.
const WATCHDOG: u16 = 23_864;
/// RFLAGS.VM.
const VM: u64 = 1 << 17;
/// RFLAGS bits that must not be set at the start: NT makes IRET a task switch, and VM has its own mode.
const NOT_AT_START: u64 = VM | 1 << 14;
/// How often what rarely changes is put back.
const REPAIR_INTERVAL: u64 = 16;

const IA32_STAR: u32 = 0xc000_0081;
const IA32_LSTAR: u32 = 0xc000_0082;

/// Runs one round of a case; returns the vector that ended it.
pub fn round(case: Case, seed: u64, round: u64) -> u64 {
    let snippet = case.snippet(seed, round);
    if round % REPAIR_INTERVAL == 0 || leaves_traces(case) {
        repair(case, seed, round);
    }
    if !case.is_fatal() {
        arm_watchdog();
    }
    // The end of the code may be the end of a page, and the code may have written behind its end.
    fill(CODE, INT3, 0x2000);
    store_bytes(CODE + u64::from(snippet.offset), snippet.code.bytes());
    for (index, descriptor) in snippet.descriptors.iter().enumerate() {
        store(
            gdt() + u64::from(selector::RANDOM) + 8 * index as u64,
            *descriptor,
        );
    }
    // SAFETY: a number that only the interrupt handlers use otherwise, and none is running.
    unsafe { resumes = snippet.resumes.into() };
    let vector = if snippet.mode.is_legacy() {
        enter_legacy(&snippet)
    } else {
        enter(&snippet)
    };
    if leaves_traces(case) {
        repair_registers();
    }
    vector
}

/// Whether the case changes registers that the guest needs.
const fn leaves_traces(case: Case) -> bool {
    matches!(
        case,
        Case::Msr
            | Case::Debug
            | Case::RandomCode
            | Case::WildCode
            | Case::Apic
            | Case::Storm
            | Case::Ports
            | Case::StringPorts
            | Case::DeviceMemory
            | Case::Paging
    )
}

/// Puts back what snippets may have changed.
fn repair(case: Case, seed: u64, round: u64) {
    repair_registers();
    tables::restore();
    fill(CODE, INT3, ROOM);
    fill(DATA, 0, ROOM);
    let random = Random::new(seed, !(case as u64), round);
    for word in 0..32 {
        store(DESCRIPTORS + 8 * word, random.next());
    }
    // SYSCALL comes out at an INT3.
    write_msr(IA32_STAR, 0x1b_0008 << 32);
    write_msr(IA32_LSTAR, TRAP);
    if case == Case::Paging {
        for level in 0..4 {
            let table = PLAYGROUND + 0x1000 * level;
            for entry in 0..8 {
                store(table + 8 * entry, table_entry(&random, table));
            }
        }
    }
    // Both 8259s masked.
    port_out(0x21, 0xff);
    port_out(0xa1, 0xff);
    if has_apic() {
        repair_apics(case);
    }
}

/// Puts back the registers of both APICs.
fn repair_apics(case: Case) {
    // The local APIC on, everything in it masked; the watchdog's pin of the I/O APIC an NMI.
    for lvt in [0x320, 0x330, 0x340, 0x350, 0x360, 0x370] {
        store_32(LOCAL_APIC + lvt, 0x1_0000);
    }
    for (register, value) in [(0xf0, 0x1ff), (0x80, 0), (0x380, 0), (0xe0, u32::MAX)] {
        store_32(LOCAL_APIC + register, value);
    }
    for _ in 0..8 {
        store_32(LOCAL_APIC + 0xb0, 0);
    }
    for (index, value) in [(0x15, 0), (0x14, 0x400)] {
        store_32(IO_APIC, index);
        store_32(IO_APIC + 0x10, value);
    }
    for pin in (0..24).filter(|pin| *pin != 2) {
        if case == Case::Apic {
            store_32(IO_APIC, 0x10 + 2 * pin);
            store_32(IO_APIC + 0x10, 0x1_0000);
        }
    }
}

/// One NMI in 20 ms, in any mode and with interrupts off: counter 0 in mode 0.
fn arm_watchdog() {
    port_out(0x43, 0x30);
    port_out(0x40, WATCHDOG as u8);
    port_out(0x40, (WATCHDOG >> 8) as u8);
}

/// Enters 64-bit or compatibility mode.
fn enter(snippet: &Snippet) -> u64 {
    let base = if snippet.at_gap { LAST_PAGE } else { CODE };
    let (cs, ss) = snippet.selectors();
    let r = &snippet.registers;
    // As `hostile_enter` takes them.
    let frame = [
        r[15],
        r[14],
        r[13],
        r[12],
        r[11],
        r[10],
        r[9],
        r[8],
        r[7],
        r[6],
        r[5],
        r[3],
        r[2],
        r[1],
        r[0],
        base + u64::from(snippet.offset),
        cs.into(),
        snippet.rflags & !NOT_AT_START | 2,
        STACK + r[RSP],
        ss.into(),
    ];
    // SAFETY: `frame` is what it takes; whatever the snippet does, the next that runs here is the return, or nothing.
    unsafe { hostile_enter(frame.as_ptr()) }
}

/// Enters a mode that is none of IA-32e mode's.
fn enter_legacy(snippet: &Snippet) -> u64 {
    let start = core::ptr::addr_of!(low_start) as u64;
    let end = core::ptr::addr_of!(low_end) as u64;
    copy(core::ptr::addr_of!(low_image) as u64, start, end - start);
    tables::real_mode_vectors();
    const PE: u64 = 1;
    const PG: u64 = 1 << 31;
    const CR0: u64 = 0x30;
    const PSE: u64 = 1 << 4;
    const PAE: u64 = 1 << 5;
    const SSE: u64 = 3 << 9;
    let (cr0, cr3, cr4) = match snippet.mode {
        Mode::Real => (CR0, DIRECTORY_32, SSE | PSE),
        Mode::Paged32 => (CR0 | PE | PG, DIRECTORY_32, SSE | PSE),
        Mode::Pae => (CR0 | PE | PG, PAE_PDPT, SSE | PAE),
        _ => (CR0 | PE, DIRECTORY_32, SSE | PSE),
    };
    let is_real = snippet.mode == Mode::Real;
    let is_16_bit = snippet.is_segmented();
    let (cs, ss) = match snippet.mode {
        Mode::Real | Mode::Virtual8086 => ((CODE >> 4) as u16, (STACK >> 4) as u16),
        _ => snippet.selectors(),
    };
    let data = match snippet.mode {
        Mode::Real => (DATA >> 4) as u16,
        Mode::Protected16 if snippet.privilege == Privilege::Kernel => selector::DATA_16,
        Mode::Protected16 => selector::USER_DATA_16,
        _ => selector::USER_DATA,
    };
    let mut rflags = snippet.rflags & !NOT_AT_START & 0x3f_ffff | 2;
    if snippet.mode == Mode::Virtual8086 {
        rflags |= VM;
    }
    let eip = u64::from(snippet.offset) + if is_16_bit { 0 } else { CODE };
    let esp = snippet.registers[RSP] + if is_16_bit { 0 } else { STACK };
    // The frame ends at the top of the stack: eight registers as POPA takes them, then what IRET takes.
    let mut words = [0u32; 17];
    for (place, number) in words.iter_mut().zip([7, 6, 5, 4, 3, 2, 1, 0]) {
        *place = snippet.registers[number] as u32;
    }
    let data_16 = (DATA >> 4) as u32;
    for (place, value) in words.iter_mut().skip(8).zip([
        eip as u32,
        cs.into(),
        rflags as u32,
        esp as u32,
        ss.into(),
        data_16,
        data_16,
        data_16,
        data_16,
    ]) {
        *place = value;
    }
    let taken = match (snippet.mode, snippet.privilege) {
        (Mode::Virtual8086, _) => 17,
        (_, Privilege::Kernel) => 11,
        (_, Privilege::User) => 13,
    };
    let at = STACK_TOP - 4 * taken;
    if is_real {
        // IRET of real mode takes three words of 16 bits.
        words[8] = eip as u32 | u32::from(cs) << 16;
        words[9] = rflags as u32 & 0xffff;
    }
    for (index, word) in words.iter().take(taken as usize).enumerate() {
        store_32(STACK + at + 4 * index as u64, *word);
    }
    let (frame, frame_selector) = match (snippet.mode, snippet.privilege) {
        (Mode::Real, _) => (at | (STACK >> 4) << 16, 0),
        (Mode::Protected16, Privilege::Kernel) => (at, u64::from(selector::STACK_16)),
        _ => (STACK + at, u64::from(selector::FLAT)),
    };
    let parameters = core::ptr::addr_of!(low_parameters) as u64;
    for (index, value) in [
        cr0,
        cr3,
        cr4,
        data.into(),
        frame | frame_selector << 32,
        is_real.into(),
    ]
    .into_iter()
    .enumerate()
    {
        store(parameters + 8 * index as u64, value);
    }
    // SAFETY: the low code and its parameters are in place; as for `enter`.
    unsafe { hostile_enter_legacy() }
}
