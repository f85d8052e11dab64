// SPDX-License-Identifier: GPL-2.0
//! The tables one by one (ACPI Specification 6.5, chapter 5.2).

use super::{aml, Machine};
use crate::rtc;

/// Size of the RSDP (5.2.5.3).
pub const RSDP_SIZE: usize = 36;
const HEADER_SIZE: usize = 36;
const LENGTH: usize = 4;
const CHECKSUM: usize = 9;
const OEM_ID: &[u8; 6] = b"PVMM  ";
const OEM_TABLE_ID: &[u8; 8] = b"PVMM    ";

/// The PM1a event block's ports: status, then enable (4.8.3.1).
pub const PM1A_EVT: u16 = 0x600;
/// The PM1a control block's port.
pub const PM1A_CNT: u16 = 0x604;
/// The PM timer's port.
pub const PM_TMR: u16 = 0x608;
/// ISA interrupt of the SCI.
pub const SCI: u8 = 9;
/// The reset register and the value that resets.
const RESET_REGISTER: u16 = 0xcf9;
const RESET_VALUE: u8 = 0x06;

const LOCAL_APIC: u32 = 0xfee0_0000;
const IO_APIC: u32 = 0xfec0_0000;
/// The I/O APIC's id: that of the model after reset (82093AA data sheet, 3.2.1), which nobody has programmed yet.
pub const IO_APIC_ID: u8 = 0;

// FADT flags (table 5.10).
const WBINVD: u32 = 1 << 0;
const PROC_C1: u32 = 1 << 2;
const PWR_BUTTON_CONTROL_METHOD_ABSENT: u32 = 0;
const SLP_BUTTON_CONTROL_METHOD: u32 = 1 << 5;
const FIX_RTC: u32 = 1 << 6;
const TMR_VAL_EXT: u32 = 1 << 8;
const RESET_REG_SUP: u32 = 1 << 10;
// FADT IA-PC boot architecture flags (table 5.11).
const LEGACY_DEVICES: u16 = 1 << 0;
const VGA_NOT_PRESENT: u16 = 1 << 2;
const PCIE_ASPM_CONTROLS: u16 = 1 << 4;

/// Makes the bytes of a table add up to 0.
fn seal(table: &mut [u8], checksum: usize) {
    table[checksum] = 0;
    let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    table[checksum] = sum.wrapping_neg();
}

/// A table with its header (5.2.6).
fn table(signature: &[u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut table = Vec::with_capacity(HEADER_SIZE + body.len());
    table.extend_from_slice(signature);
    table.extend_from_slice(&((HEADER_SIZE + body.len()) as u32).to_le_bytes());
    table.extend_from_slice(&[revision, 0]);
    table.extend_from_slice(OEM_ID);
    table.extend_from_slice(OEM_TABLE_ID);
    table.extend_from_slice(&1u32.to_le_bytes());
    table.extend_from_slice(b"PVMM");
    table.extend_from_slice(&1u32.to_le_bytes());
    table.extend_from_slice(body);
    seal(&mut table, CHECKSUM);
    table
}

/// The root pointer (5.2.5.3). There is no RSDT.
pub fn rsdp(xsdt: u64) -> [u8; RSDP_SIZE] {
    let mut rsdp = [0; RSDP_SIZE];
    rsdp[..8].copy_from_slice(b"RSD PTR ");
    rsdp[9..15].copy_from_slice(OEM_ID);
    rsdp[15] = 2;
    rsdp[20..24].copy_from_slice(&(RSDP_SIZE as u32).to_le_bytes());
    rsdp[24..32].copy_from_slice(&xsdt.to_le_bytes());
    // The first checksum covers the ACPI 1.0 part, the second everything.
    seal(&mut rsdp[..20], 8);
    seal(&mut rsdp, 32);
    rsdp
}

/// The list of tables (5.2.8).
pub fn xsdt(tables: &[u64]) -> Vec<u8> {
    let body: Vec<u8> = tables
        .iter()
        .flat_map(|table| table.to_le_bytes())
        .collect();
    table(b"XSDT", 1, &body)
}

/// The firmware control structure (5.2.10). It has no checksum.
pub fn facs() -> Vec<u8> {
    let mut facs = vec![0; 64];
    facs[..4].copy_from_slice(b"FACS");
    facs[LENGTH] = 64;
    facs[32] = 2;
    facs
}

/// A register in port space (5.2.3.2).
fn gas(port: u16, bits: u8) -> [u8; 12] {
    let mut gas = [0; 12];
    let access = match bits {
        8 => 1,
        16 => 2,
        _ => 3,
    };
    gas[..4].copy_from_slice(&[1, bits, 0, access]);
    gas[4..6].copy_from_slice(&port.to_le_bytes());
    gas
}

/// The fixed hardware description (5.2.9), as a machine that is always in ACPI mode: SMI_CMD is 0.
pub fn fadt(facs: u64, dsdt: u64) -> Vec<u8> {
    const SIZE: usize = 276;
    let mut fadt = vec![0; SIZE - HEADER_SIZE];
    // Offsets are those of table 5.9, which count the header.
    let mut put = |offset: usize, bytes: &[u8]| {
        fadt[offset - HEADER_SIZE..offset - HEADER_SIZE + bytes.len()].copy_from_slice(bytes);
    };
    // Both tables lie below 1 MiB.
    put(36, &(facs as u32).to_le_bytes());
    put(40, &(dsdt as u32).to_le_bytes());
    put(46, &u16::from(SCI).to_le_bytes());
    put(56, &u32::from(PM1A_EVT).to_le_bytes());
    put(64, &u32::from(PM1A_CNT).to_le_bytes());
    put(76, &u32::from(PM_TMR).to_le_bytes());
    // PM1_EVT_LEN, PM1_CNT_LEN, PM2_CNT_LEN, PM_TMR_LEN.
    put(88, &[4, 2, 0, 4]);
    // P_LVL2_LAT and P_LVL3_LAT: beyond these values there is no C2 and no C3.
    put(96, &0xfffu16.to_le_bytes());
    put(98, &0xfffu16.to_le_bytes());
    put(108, &[rtc::CENTURY]);
    let boot = LEGACY_DEVICES | VGA_NOT_PRESENT | PCIE_ASPM_CONTROLS;
    put(109, &boot.to_le_bytes());
    let flags = WBINVD
        | PROC_C1
        | PWR_BUTTON_CONTROL_METHOD_ABSENT
        | SLP_BUTTON_CONTROL_METHOD
        | FIX_RTC
        | TMR_VAL_EXT
        | RESET_REG_SUP;
    put(112, &flags.to_le_bytes());
    put(116, &gas(RESET_REGISTER, 8));
    put(128, &[RESET_VALUE]);
    // FADT minor version: 6.5.
    put(131, &[5]);
    put(132, &facs.to_le_bytes());
    put(140, &dsdt.to_le_bytes());
    put(148, &gas(PM1A_EVT, 32));
    put(172, &gas(PM1A_CNT, 16));
    put(208, &gas(PM_TMR, 32));
    table(b"FACP", 6, &fadt)
}

/// The interrupt controllers (5.2.12).
pub fn madt(machine: &Machine) -> Vec<u8> {
    let mut madt = LOCAL_APIC.to_le_bytes().to_vec();
    // PCAT_COMPAT: there is an 8259 pair, too.
    madt.extend_from_slice(&1u32.to_le_bytes());
    for (uid, apic_id) in machine.apic_ids.iter().enumerate() {
        madt.extend_from_slice(&[0, 8, uid as u8, *apic_id]);
        madt.extend_from_slice(&1u32.to_le_bytes());
    }
    madt.extend_from_slice(&[1, 12, IO_APIC_ID, 0]);
    madt.extend_from_slice(&IO_APIC.to_le_bytes());
    madt.extend_from_slice(&0u32.to_le_bytes());
    // Interrupt source overrides: ISA IRQ 0 is at pin 2; the SCI is active high (bits 1:0 = 1), level (bits 3:2 = 3).
    madt.extend_from_slice(&[2, 10, 0, 0, 2, 0, 0, 0, 0, 0]);
    madt.extend_from_slice(&[2, 10, 0, SCI, SCI, 0, 0, 0, 0x0d, 0]);
    // NMI at LINT1 of every local APIC.
    madt.extend_from_slice(&[4, 6, 0xff, 0, 0, 1]);
    table(b"APIC", 5, &madt)
}

/// The devices and the soft-off state (5.2.11.1).
pub fn dsdt(machine: &Machine) -> Vec<u8> {
    let mut devices = vec![aml::device(
        b"RTC_",
        &[
            aml::name(b"_HID", aml::eisa_id(b"PNP0B00")),
            aml::name(
                b"_CRS",
                aml::resource_template(&[
                    aml::io(rtc::PORT, rtc::PORTS as u8),
                    aml::irq_no_flags(8),
                ]),
            ),
        ],
    )];
    for (index, serial) in (0u8..9).zip(&machine.serial_ports) {
        devices.push(aml::device(
            &[b'C', b'O', b'M', b'1' + index],
            &[
                aml::name(b"_HID", aml::eisa_id(b"PNP0501")),
                aml::name(b"_UID", aml::integer(u32::from(index) + 1)),
                aml::name(
                    b"_CRS",
                    aml::resource_template(&[
                        aml::io(serial.port, 8),
                        aml::irq_no_flags(serial.irq),
                    ]),
                ),
            ],
        ));
    }
    for (index, parallel) in (0u8..9).zip(&machine.parallel_ports) {
        let mut resources = vec![aml::io(parallel.port, 3)];
        resources.extend(parallel.irq.map(aml::irq_no_flags));
        devices.push(aml::device(
            &[b'L', b'P', b'T', b'1' + index],
            &[
                // A standard port, without EPP and ECP.
                aml::name(b"_HID", aml::eisa_id(b"PNP0400")),
                aml::name(b"_UID", aml::integer(u32::from(index) + 1)),
                aml::name(b"_CRS", aml::resource_template(&resources)),
            ],
        ));
    }
    // SLP_TYPa and SLP_TYPb of S5; pvmm.ko takes 5.
    let soft_off = aml::package(&[5, 0, 0, 0].map(aml::integer));
    let body = [aml::scope(b"_SB_", &devices), aml::name(b"_S5_", soft_off)].concat();
    table(b"DSDT", 2, &body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acpi::{build, ParallelPort, SerialPort, TABLES};

    fn machine() -> Machine {
        Machine {
            apic_ids: vec![0],
            serial_ports: vec![
                SerialPort {
                    port: 0x3f8,
                    irq: 4,
                },
                SerialPort {
                    port: 0x2f8,
                    irq: 3,
                },
            ],
            parallel_ports: vec![ParallelPort {
                port: 0x378,
                irq: Some(7),
            }],
        }
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn u64_at(bytes: &[u8], offset: usize) -> u64 {
        u64::from_le_bytes(bytes[offset..offset + 8].try_into().expect("8 bytes"))
    }

    fn at(area: &[u8], address: u64) -> &[u8] {
        let table = &area[(address - TABLES) as usize..];
        let length = u32::from_le_bytes(table[4..8].try_into().expect("4 bytes")) as usize;
        &table[..length]
    }

    #[test]
    fn every_table_is_found_from_the_rsdp_and_sums_to_zero() {
        let area = build(&machine());
        assert_eq!(&area[..8], b"RSD PTR ");
        assert_eq!((sum(&area[..20]), sum(&area[..36])), (0, 0));
        let xsdt = at(&area, u64_at(&area, 24));
        assert_eq!((&xsdt[..4], sum(xsdt)), (&b"XSDT"[..], 0));
        let fadt = at(&area, u64_at(xsdt, 36));
        assert_eq!((&fadt[..4], sum(fadt), fadt.len()), (&b"FACP"[..], 0, 276));
        let madt = at(&area, u64_at(xsdt, 44));
        assert_eq!((&madt[..4], sum(madt)), (&b"APIC"[..], 0));
        let dsdt = at(&area, u64_at(fadt, 140));
        assert_eq!((&dsdt[..4], sum(dsdt)), (&b"DSDT"[..], 0));
        let facs = at(&area, u64_at(fadt, 132));
        assert_eq!((&facs[..4], facs.len()), (&b"FACS"[..], 64));
        // 5.2.10: the FACS is 64-byte aligned.
        assert_eq!(u64_at(fadt, 132) % 64, 0);
    }

    #[test]
    fn the_madt_lists_entries_that_add_up_to_its_length() {
        let madt = madt(&machine());
        let mut offset = 44;
        let mut kinds = Vec::new();
        while offset < madt.len() {
            kinds.push(madt[offset]);
            offset += usize::from(madt[offset + 1]);
        }
        assert_eq!((offset, kinds), (madt.len(), vec![0, 1, 2, 2, 4]));
    }

    #[test]
    fn the_dsdt_names_each_serial_and_parallel_port() {
        let with = |ports: usize| {
            let mut machine = machine();
            machine.serial_ports.truncate(ports);
            machine.parallel_ports.truncate(ports - 1);
            dsdt(&machine)
        };
        let holds = |table: &[u8], text: &[u8]| table.windows(text.len()).any(|part| part == text);
        assert!(holds(&with(2), b"COM2"));
        assert!(!holds(&with(1), b"COM2"));
        assert!(holds(&with(2), b"LPT1"));
        assert!(!holds(&with(1), b"LPT1"));
        assert!(holds(&with(1), b"COM1"));
        assert!(holds(&with(1), b"_S5_"));
    }
}
