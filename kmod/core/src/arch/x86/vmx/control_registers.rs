// SPDX-License-Identifier: GPL-2.0
//! What a processor checks when software writes CR0, CR4 or XCR0 (SDM volume 3, 2.5, 2.6 and 11.8.5; volume 2, MOV to
//! control registers and XSETBV).
//!
//! A value that passes leaves the guest in a state that VM entry accepts (27.3.1.1), and XSETBV on the host too.
#![forbid(unsafe_code)]

use crate::arch::x86::registers::*;

/// Why the write raises #GP(0).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refused;

/// The registers that a write depends on, as the guest sees them before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ControlRegisters {
    /// CR0.
    pub(super) cr0: u64,
    /// CR3.
    pub(super) cr3: u64,
    /// CR4.
    pub(super) cr4: u64,
    /// IA32_EFER.
    pub(super) efer: u64,
    /// CS.L.
    pub(super) code_is_long: bool,
    /// The task register holds a 16-bit TSS.
    pub(super) tss_is_16_bit: bool,
}

impl ControlRegisters {
    /// Whether the guest executes in 64-bit mode, where operands of MOV to control and debug registers have 64 bits.
    pub(super) const fn is_64_bit(&self) -> bool {
        self.efer & EFER_LMA != 0 && self.code_is_long
    }

    /// Whether linear addresses are translated by PAE paging, whose PDPTEs are in registers.
    pub(super) const fn has_pdptes(&self) -> bool {
        self.cr0 & CR0_PG != 0 && self.cr4 & CR4_PAE != 0 && self.efer & EFER_LMA == 0
    }

    /// The registers after a MOV to CR0.
    ///
    /// # Errors
    /// It raises #GP(0).
    pub(super) const fn with_cr0(self, value: u64) -> Result<Self, Refused> {
        // A processor ignores reserved bits of the lower half, and knows of no upper half.
        let cr0 = (value & CR0_DEFINED) | CR0_ET;
        if value >> 32 != 0
            || cr0 & (CR0_PG | CR0_PE) == CR0_PG
            || cr0 & (CR0_CD | CR0_NW) == CR0_NW
            || (cr0 & CR0_PG == 0 && (self.cr4 & CR4_PCIDE != 0 || self.is_64_bit()))
        {
            return Err(Refused);
        }
        let mut efer = self.efer;
        if (cr0 ^ self.cr0) & CR0_PG != 0 {
            if cr0 & CR0_PG != 0 && efer & EFER_LME != 0 {
                if self.cr4 & CR4_PAE == 0 || self.code_is_long || self.tss_is_16_bit {
                    return Err(Refused);
                }
                efer |= EFER_LMA;
            } else {
                efer &= !EFER_LMA;
            }
        }
        Ok(Self { cr0, efer, ..self })
    }

    /// The registers after a MOV to CR4, whose bits `allowed` the guest may set.
    ///
    /// # Errors
    /// It raises #GP(0).
    pub(super) const fn with_cr4(self, value: u64, allowed: u64) -> Result<Self, Refused> {
        let long = self.efer & EFER_LMA != 0;
        if value & !allowed != 0
            || (long && value & CR4_PAE == 0)
            || (value & CR4_PCIDE != 0 && !long)
            || (value & !self.cr4 & CR4_PCIDE != 0 && self.cr3 & 0xfff != 0)
        {
            return Err(Refused);
        }
        Ok(Self { cr4: value, ..self })
    }

    /// Whether the way from `old` to these registers loads the PDPTEs (4.4.1).
    pub(super) const fn loads_pdptes(&self, old: &Self) -> bool {
        self.has_pdptes()
            && ((self.cr0 ^ old.cr0) & (CR0_CD | CR0_NW | CR0_PG) != 0
                || (self.cr4 ^ old.cr4) & (CR4_PAE | CR4_PGE | CR4_PSE | CR4_SMEP) != 0)
    }

    /// Whether the way from `old` to these registers invalidates cached translations (5.10.4.1).
    pub(super) const fn invalidates_translations(&self, old: &Self) -> bool {
        (self.cr0 ^ old.cr0) & CR0_PG != 0
            || (self.cr4 ^ old.cr4) & (CR4_PAE | CR4_PGE | CR4_PSE | CR4_PCIDE | CR4_SMEP) != 0
    }
}

/// Whether a processor takes these PDPTEs: no reserved bit in one that is present (5.4.1). `physical_bits` is the width of
/// the guest's physical addresses.
pub(super) fn are_pdptes_valid(entries: &[u64; 4], physical_bits: u32) -> bool {
    let address = (1u64 << physical_bits.clamp(36, 52)) - 1;
    // Bits 2:1 and 8:5, and what lies above the address.
    let reserved = !address | 0x1e6;
    entries
        .iter()
        .all(|entry| entry & 1 == 0 || entry & reserved == 0)
}

/// Whether XSETBV takes this value: x87 always, AVX only with SSE, AVX-512 whole and with AVX.
pub(super) const fn is_valid_xcr0(value: u64, allowed: u64) -> bool {
    let avx = value & 0b110;
    let avx512 = value & 0b1110_0000;
    value & !allowed == 0
        && value & 1 != 0
        && avx != 0b100
        && (avx512 == 0 || (avx512 == 0b1110_0000 && avx == 0b110))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 64-bit code as Linux leaves it.
    const LONG: ControlRegisters = ControlRegisters {
        cr0: CR0_PG | CR0_WP | CR0_ET | CR0_PE,
        cr3: 0x1000,
        cr4: CR4_PAE,
        efer: EFER_LME | EFER_LMA,
        code_is_long: true,
        tss_is_16_bit: false,
    };
    /// Protected mode on the way there.
    const ON_THE_WAY: ControlRegisters = ControlRegisters {
        cr0: CR0_ET | CR0_PE,
        efer: EFER_LME,
        code_is_long: false,
        ..LONG
    };

    #[test]
    fn paging_stays_on_in_64_bit_mode() {
        assert_eq!(LONG.with_cr0(LONG.cr0 & !CR0_PG), Err(Refused));
        assert_eq!(LONG.with_cr0(CR0_ET | CR0_CD), Err(Refused));
        let compatibility = ControlRegisters {
            code_is_long: false,
            ..LONG
        };
        let left = compatibility.with_cr0(CR0_ET | CR0_PE);
        assert_eq!(left.map(|registers| registers.efer), Ok(EFER_LME));
    }

    #[test]
    fn long_mode_is_entered_only_where_vm_entry_accepts_it() {
        let on = CR0_ET | CR0_PE | CR0_PG;
        let entered = ON_THE_WAY.with_cr0(on);
        assert_eq!(
            entered.map(|registers| registers.efer),
            Ok(EFER_LME | EFER_LMA)
        );
        for wrong in [
            ControlRegisters {
                cr4: 0,
                ..ON_THE_WAY
            },
            ControlRegisters {
                code_is_long: true,
                ..ON_THE_WAY
            },
            ControlRegisters {
                tss_is_16_bit: true,
                ..ON_THE_WAY
            },
        ] {
            assert_eq!(wrong.with_cr0(on), Err(Refused), "{wrong:?}");
        }
    }

    #[test]
    fn reserved_bits_of_cr0_are_ignored_in_the_lower_half_and_refused_in_the_upper() {
        let registers = LONG.with_cr0(LONG.cr0 | 1 << 17 | 1 << 28);
        assert_eq!(registers, Ok(LONG));
        assert_eq!(LONG.with_cr0(LONG.cr0 | 1 << 32), Err(Refused));
    }

    #[test]
    fn combinations_that_mean_nothing_are_refused() {
        for value in [CR0_PG, CR0_PE | CR0_NW] {
            assert_eq!(ON_THE_WAY.with_cr0(value), Err(Refused), "{value:#x}");
        }
        let allowed = CR4_BASE | CR4_PCIDE;
        for value in [CR4_VMXE | CR4_PAE, 0, 1 << 63] {
            assert_eq!(LONG.with_cr4(value, allowed), Err(Refused), "{value:#x}");
        }
        assert!(LONG.with_cr4(CR4_PAE | CR4_PCIDE, allowed).is_ok());
        let with_pcid = ControlRegisters {
            cr3: 0x1001,
            ..LONG
        };
        assert_eq!(
            with_pcid.with_cr4(CR4_PAE | CR4_PCIDE, allowed),
            Err(Refused)
        );
        assert_eq!(ON_THE_WAY.with_cr4(CR4_PCIDE, allowed), Err(Refused));
    }

    #[test]
    fn pdptes_are_loaded_when_pae_paging_begins_and_when_what_they_depend_on_changes() {
        let off = ControlRegisters {
            efer: 0,
            ..ON_THE_WAY
        };
        let on = off.with_cr0(CR0_PE | CR0_PG).expect("PAE paging");
        assert!(on.loads_pdptes(&off));
        assert!(!on.loads_pdptes(&on));
        assert!(!LONG.loads_pdptes(&ON_THE_WAY));
        let cached = on.with_cr0(on.cr0 | CR0_CD).expect("caching off");
        assert!(cached.loads_pdptes(&on));
    }

    #[test]
    fn pdptes_with_reserved_bits_are_refused_if_they_are_present() {
        let valid = [0x1001, 0x2019, 0, 0xffff_fffe];
        assert!(are_pdptes_valid(&valid, 40));
        for reserved in [1 << 1, 1 << 2, 1 << 5, 1 << 8, 1 << 40, 1 << 63] {
            let mut entries = valid;
            entries[3] = reserved | 1;
            assert!(!are_pdptes_valid(&entries, 40), "{reserved:#x}");
        }
    }

    #[test]
    fn xcr0_is_valid_as_xsetbv_has_it() {
        for value in [1, 3, 7, 0xe7] {
            assert!(is_valid_xcr0(value, 0xe7), "{value:#x}");
        }
        for value in [0, 2, 5, 6, 0x27, 0xc7, 0xe1, 0xe3, 0x207, 1 << 63 | 1] {
            assert!(!is_valid_xcr0(value, 0xe7), "{value:#x}");
        }
        assert!(!is_valid_xcr0(7, 3));
    }
}
