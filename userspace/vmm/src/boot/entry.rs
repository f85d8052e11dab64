// SPDX-License-Identifier: GPL-2.0
//! The vCPU at the kernel's 64-bit entry point, and the tables in memory that it needs there.
//!
//! boot.rst, "64-bit Boot Protocol": long mode, kernel, zero page and command line mapped identically, `__BOOT_CS` and
//! `__BOOT_DS` as flat segments, interrupts off, RSI at the zero page. Bits and encodings are the SDM's.

use crate::error::VmmError;
use crate::memory::{GuestRam, PAGE_SIZE};
use pvmm_uapi::{DescriptorTable, Segment, VcpuState};

const GDT: u64 = 0x500;
const IDT: u64 = 0x520;
const PML4: u64 = 0x9000;
const PDPT: u64 = 0xa000;
const PAGE_DIRECTORY: u64 = 0xb000;
/// GiB that are mapped.
const MAPPED_GIB: u64 = 4;

const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;

/// 64-bit code, present, execute/read, as a descriptor (base 0, limit 4 GiB).
const CODE_DESCRIPTOR: u64 = 0x00af_9b00_0000_ffff;
/// Data, present, read/write.
const DATA_DESCRIPTOR: u64 = 0x00cf_9300_0000_ffff;
/// The same as VMCS access rights (SDM volume 3, table 26-2).
const CODE_RIGHTS: u32 = 0xa09b;
const DATA_RIGHTS: u32 = 0xc093;
/// Busy 64-bit TSS.
const TSS_RIGHTS: u32 = 0x8b;
const UNUSABLE: u32 = 1 << 16;

const PTE_PRESENT: u64 = 1 << 0;
const PTE_WRITE: u64 = 1 << 1;
const PTE_LARGE: u64 = 1 << 7;
const LARGE_PAGE: u64 = 2 << 20;

const CR0_PE: u64 = 1 << 0;
const CR0_MP: u64 = 1 << 1;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_WP: u64 = 1 << 16;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// The x87 control word after FNINIT.
const FCW: u16 = 0x37f;
/// MXCSR after reset. XRSTOR loads it from the image even where the SSE state is in its initial configuration.
const MXCSR: u32 = 0x1f80;

/// Index of RSI in `VcpuState::gpr`.
const RSI: usize = 6;

// Indices in `LocalApicState::registers`: the register's offset divided by 10h.
const APIC_SVR: usize = 0x0f;
const APIC_LVT_LINT0: usize = 0x35;
const APIC_LVT_LINT1: usize = 0x36;
/// SVR: APIC software enable.
const SVR_ENABLE: u32 = 1 << 8;
const DELIVERY_NMI: u32 = 4 << 8;
const DELIVERY_EXTINT: u32 = 7 << 8;

/// Writes GDT and page tables.
pub fn write_tables(ram: &GuestRam) -> Result<(), VmmError> {
    for (index, descriptor) in [0, 0, CODE_DESCRIPTOR, DATA_DESCRIPTOR].iter().enumerate() {
        ram.write(GDT + 8 * index as u64, &u64::to_le_bytes(*descriptor))?;
    }
    ram.write(IDT, &[0; 8])?;
    let entry = |gpa, value: u64| ram.write(gpa, &value.to_le_bytes());
    entry(PML4, PDPT | PTE_PRESENT | PTE_WRITE)?;
    for gib in 0..MAPPED_GIB {
        let directory = PAGE_DIRECTORY + gib * PAGE_SIZE;
        entry(PDPT + 8 * gib, directory | PTE_PRESENT | PTE_WRITE)?;
        for index in 0..512 {
            let page = (gib << 30) + index * LARGE_PAGE;
            entry(
                directory + 8 * index,
                page | PTE_PRESENT | PTE_WRITE | PTE_LARGE,
            )?;
        }
    }
    Ok(())
}

/// Changes a vCPU's state after reset so that it enters a kernel. Also leaves the local APIC, if there is one, as PC
/// firmware does: enabled, with the 8259's interrupt at LINT0 and NMI at LINT1.
pub fn enter_64_bit(state: &mut VcpuState, entry: u64, zero_page: u64) {
    state.gpr = [0; 16];
    state.gpr[RSI] = zero_page;
    state.rip = entry;
    state.rflags = 2;
    state.cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_PG;
    state.cr3 = PML4;
    state.cr4 = CR4_PAE;
    state.efer = EFER_LME | EFER_LMA;
    let segment = |selector, limit, access_rights| Segment {
        selector,
        limit,
        access_rights,
        ..Segment::default()
    };
    let data = segment(BOOT_DS, u32::MAX, DATA_RIGHTS);
    state.segments = [
        data,
        segment(BOOT_CS, u32::MAX, CODE_RIGHTS),
        data,
        data,
        data,
        data,
        segment(0, 0, UNUSABLE),
        segment(0, 0x67, TSS_RIGHTS),
    ];
    state.gdtr = DescriptorTable {
        base: GDT,
        limit: 4 * 8 - 1,
        reserved: 0,
    };
    state.idtr = DescriptorTable {
        base: IDT,
        limit: 0,
        reserved: 0,
    };
    state.xsave[0..2].copy_from_slice(&FCW.to_le_bytes());
    state.xsave[24..28].copy_from_slice(&MXCSR.to_le_bytes());
    if state.apic.apic_base != 0 {
        state.apic.registers[APIC_SVR] |= SVR_ENABLE;
        state.apic.registers[APIC_LVT_LINT0] = DELIVERY_EXTINT;
        state.apic.registers[APIC_LVT_LINT1] = DELIVERY_NMI;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_below_4_gib_is_mapped_to_itself() {
        let ram = GuestRam::new("test", 16 << 20).expect("memory can be mapped");
        write_tables(&ram).expect("the tables lie in memory");
        let read = |gpa| {
            let mut bytes = [0; 8];
            ram.read(gpa, &mut bytes).expect("memory");
            u64::from_le_bytes(bytes)
        };
        let walk = |address: u64| {
            let mask = 0x000f_ffff_ffff_f000;
            let pdpt = read(PML4 + 8 * (address >> 39)) & mask;
            let directory = read(pdpt + 8 * (address >> 30 & 0x1ff)) & mask;
            let leaf = read(directory + 8 * (address >> 21 & 0x1ff));
            assert_eq!(leaf & 0x83, 0x83);
            (leaf & mask) | (address & (LARGE_PAGE - 1))
        };
        for address in [0, 0x7000, 0x10_0200, 0xbfff_ffff, 0xfee0_0000, 0xffff_ffff] {
            assert_eq!(walk(address), address);
        }
    }

    #[test]
    fn the_vcpu_is_in_64_bit_mode_at_the_entry_with_the_zero_page_in_rsi() {
        let mut state = VcpuState::default();
        state.apic.apic_base = 0xfee0_0900;
        enter_64_bit(&mut state, 0x100_0200, 0x7000);
        assert_eq!(
            (state.rip, state.gpr[6], state.rflags),
            (0x100_0200, 0x7000, 2)
        );
        assert_eq!(state.efer & 0x500, 0x500);
        assert_eq!(state.cr0 & 0x8000_0001, 0x8000_0001);
        // CS: long mode, not 32-bit (SDM volume 3, 27.3.1.2).
        assert_eq!(state.segments[1].access_rights & 0x6000, 0x2000);
        assert_eq!(state.apic.registers[0x35], 0x700);
    }
}
