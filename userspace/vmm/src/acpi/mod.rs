// SPDX-License-Identifier: GPL-2.0
//! The ACPI tables of a guest with APICs: RSDP, XSDT, FADT, MADT and DSDT, in the ROM area below 1 MiB.
//!
//! Follows the ACPI Specification 6.5, chapter 5, for tables and chapter 20 for AML. Written by hand, because the
//! `acpi_tables` crate's licence (Apache-2.0) does not go together with this project's (GPL-2.0 only), and a machine
//! without PCI needs little.

pub mod aml;
pub mod tables;

use crate::error::VmmError;
use crate::memory::{GuestRam, ROM_AREA};

/// Where the tables go: the BIOS area that an OS searches for the RSDP (ACPI 5.2.5.1).
pub const TABLES: u64 = 0xe_0000;
const TABLES_END: u64 = 0x10_0000;
/// The FACS must be 64-byte aligned (ACPI 5.2.10); the others do not care.
const ALIGNMENT: usize = 64;
const _: () = assert!(TABLES >= ROM_AREA);

/// A serial port that the guest should find by ACPI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SerialPort {
    /// First port.
    pub port: u16,
    /// ISA interrupt.
    pub irq: u8,
}

/// A parallel port that the guest should find by ACPI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParallelPort {
    /// First port.
    pub port: u16,
    /// ISA interrupt, if it has one.
    pub irq: Option<u8>,
}

/// What the tables describe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// APIC ids of the vCPUs.
    pub apic_ids: Vec<u8>,
    /// The serial ports, COM1 first.
    pub serial_ports: Vec<SerialPort>,
    /// The parallel ports.
    pub parallel_ports: Vec<ParallelPort>,
}

/// Builds the tables, to be put at [`TABLES`], where their first bytes are the RSDP.
pub fn build(machine: &Machine) -> Vec<u8> {
    let mut area = vec![0; tables::RSDP_SIZE];
    let mut add = |table: Vec<u8>| {
        area.resize(area.len().next_multiple_of(ALIGNMENT), 0);
        let address = TABLES + area.len() as u64;
        area.extend_from_slice(&table);
        address
    };
    let facs = add(tables::facs());
    let dsdt = add(tables::dsdt(machine));
    let fadt = add(tables::fadt(facs, dsdt));
    let madt = add(tables::madt(machine));
    let xsdt = add(tables::xsdt(&[fadt, madt]));
    area[..tables::RSDP_SIZE].copy_from_slice(&tables::rsdp(xsdt));
    area
}

/// Writes the tables into guest memory; returns the RSDP's address.
pub fn install(ram: &GuestRam, machine: &Machine) -> Result<u64, VmmError> {
    let area = build(machine);
    if TABLES + area.len() as u64 > TABLES_END {
        return Err(VmmError::NoRoom {
            what: "the ACPI tables",
            needed: area.len() as u64,
            memory: TABLES_END - TABLES,
        });
    }
    ram.write(TABLES, &area)?;
    Ok(TABLES)
}
