// SPDX-License-Identifier: GPL-2.0
//! Narrows the CPUID table that the host offers to what one guest's machine has.

use crate::spec::IrqChip;
use pvmm_uapi::CpuidEntry;

/// CPUID.01H:EDX: on-chip APIC.
const APIC: u32 = 1 << 9;
/// CPUID.01H:ECX: x2APIC.
const X2APIC: u32 = 1 << 21;
/// CPUID.01H:ECX: the APIC timer's TSC-deadline mode.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaves that describe the x2APIC topology.
const TOPOLOGY: [u32; 2] = [0x0b, 0x1f];

/// The table for a guest with this interrupt controller.
pub fn for_guest(mut table: Vec<CpuidEntry>, irqchip: IrqChip) -> Vec<CpuidEntry> {
    if irqchip == IrqChip::Pic {
        table.retain(|entry| !TOPOLOGY.contains(&entry.leaf));
        for entry in &mut table {
            match entry.leaf {
                1 => {
                    entry.edx &= !APIC;
                    entry.ecx &= !(X2APIC | TSC_DEADLINE);
                }
                // AMD's copy of the feature flags.
                0x8000_0001 => entry.edx &= !APIC,
                _ => {}
            }
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_without_apics_sees_none() {
        let table = vec![
            CpuidEntry {
                leaf: 1,
                edx: u32::MAX,
                ecx: u32::MAX,
                ..Default::default()
            },
            CpuidEntry {
                leaf: 0xb,
                ..Default::default()
            },
        ];
        assert_eq!(for_guest(table.clone(), IrqChip::Apic), table);
        let narrowed = for_guest(table, IrqChip::Pic);
        assert_eq!(narrowed.len(), 1);
        assert_eq!(narrowed[0].edx & APIC, 0);
        assert_eq!(narrowed[0].ecx & (X2APIC | TSC_DEADLINE), 0);
    }
}
