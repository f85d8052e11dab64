// SPDX-License-Identifier: GPL-2.0
//! The CPUID policy: what a guest is told of the processor.
//!
//! A feature is shown if the host's CPU has it, its use needs nothing of the monitor or the monitor does it, and its state
//! moves with the guest. So the policy is a list of bits that may pass; all others, and those of the future, are hidden.
//! Topology is one package with one core and one thread. The TSC's rate is told in leaf 15H, so that a guest need not
//! measure it. Leaf 40000000H names the monitor.

use super::registers::*;
use super::vmx::capability::VmxCapability;
use super::xsave::GUEST_XCR0;
use crate::arch::zeroed;
use crate::models::local_apic::CRYSTAL_HZ;
use pvmm_hostabi::{HostMem, OutOfMemory};
use pvmm_uapi::{CpuidEntry, Pod, CPUID_SUBLEAF, MAX_CPUID_ENTRIES};

/// Executes CPUID.
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let (eax, ebx, ecx, edx): (u32, u64, u32, u32);
    // SAFETY: every x86-64 CPU has CPUID, and it has no side effect but serialisation. RBX can't be an operand, so it is
    // kept in another register meanwhile.
    unsafe {
        core::arch::asm!(
            "mov {rbx}, rbx",
            "cpuid",
            "xchg {rbx}, rbx",
            rbx = out(reg) ebx,
            inout("eax") leaf => eax,
            inout("ecx") subleaf => ecx,
            out("edx") edx,
            options(nomem, nostack, preserves_flags),
        );
    }
    [eax, ebx as u32, ecx, edx]
}

/// Registers of an entry, in the ABI's order.
const EAX: usize = 0;
const EBX: usize = 1;
const ECX: usize = 2;
const EDX: usize = 3;

/// CPUID.1:ECX bits that may pass: SSE3, PCLMULQDQ, SSSE3, FMA, CX16, PCID, SSE4.1, SSE4.2, MOVBE, POPCNT, AES, XSAVE,
/// AVX, F16C, RDRAND.
const LEAF_1_ECX: u32 = 1 << 0
    | 1 << 1
    | 1 << 9
    | 1 << 12
    | 1 << 13
    | 1 << 17
    | 1 << 19
    | 1 << 20
    | 1 << 22
    | 1 << 23
    | 1 << 25
    | 1 << 26
    | 1 << 28
    | 1 << 29
    | 1 << 30;
/// CPUID.1:ECX.x2APIC, which the monitor's APIC has whether the host's CPU does or not.
pub const ECX_X2APIC: u32 = 1 << 21;
/// CPUID.1:ECX.TSC_Deadline, likewise.
pub const ECX_TSC_DEADLINE: u32 = 1 << 24;
/// CPUID.1:ECX.OSXSAVE mirrors CR4.
const ECX_OSXSAVE: u32 = 1 << 27;
/// CPUID.1:ECX bit 31: a hypervisor is present.
const ECX_HYPERVISOR: u32 = 1 << 31;
/// CPUID.1:EDX bits that may pass: all of the base set but MCE, MCA, debug store, thermal and APIC, which depends on the VM.
const LEAF_1_EDX: u32 = 1 << 0
    | 1 << 1
    | 1 << 2
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 8
    | 1 << 11
    | 1 << 12
    | 1 << 13
    | 1 << 15
    | 1 << 16
    | 1 << 17
    | 1 << 19
    | 1 << 23
    | 1 << 24
    | 1 << 25
    | 1 << 26
    | 1 << 27;
/// CPUID.1:EDX.APIC.
pub const EDX_APIC: u32 = 1 << 9;
/// CPUID.7.0:EBX bits that may pass: FSGSBASE, TSC_ADJUST, BMI1, AVX2, SMEP, BMI2, ERMS, AVX512F, AVX512DQ, RDSEED, ADX,
/// SMAP, AVX512_IFMA, CLFLUSHOPT, CLWB, AVX512CD, SHA, AVX512BW, AVX512VL.
const LEAF_7_EBX: u32 = 1 << 0
    | 1 << 1
    | 1 << 3
    | 1 << 5
    | 1 << 7
    | 1 << 8
    | 1 << 9
    | 1 << 16
    | 1 << 17
    | 1 << 18
    | 1 << 19
    | 1 << 20
    | 1 << 21
    | 1 << 23
    | 1 << 24
    | 1 << 28
    | 1 << 29
    | 1 << 30
    | 1 << 31;
/// CPUID.7.0:EBX.INVPCID.
const EBX_INVPCID: u32 = 1 << 10;
/// CPUID.7.0:ECX bits that may pass: AVX512_VBMI, UMIP, AVX512_VBMI2, GFNI, VAES, VPCLMULQDQ, AVX512_VNNI, AVX512_BITALG,
/// AVX512_VPOPCNTDQ.
const LEAF_7_ECX: u32 =
    1 << 1 | 1 << 2 | 1 << 6 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 14;
/// CPUID.7.0:ECX.RDPID.
const ECX_RDPID: u32 = 1 << 22;
/// CPUID.7.0:EDX bits that may pass: fast short REP MOV, AVX512_VP2INTERSECT.
const LEAF_7_EDX: u32 = 1 << 4 | 1 << 8;
/// CPUID.0DH.1:EAX bits that may pass: XSAVEOPT, XSAVEC, XGETBV with ECX=1.
const LEAF_D_1_EAX: u32 = 0b111;
/// CPUID.80000001H:ECX bits that may pass: LAHF, LZCNT, PREFETCHW.
const LEAF_80000001_ECX: u32 = 1 << 0 | 1 << 5 | 1 << 8;
/// CPUID.80000001H:EDX bits that may pass: SYSCALL, NX, 1 GiB pages, long mode.
const LEAF_80000001_EDX: u32 = 1 << 11 | 1 << 20 | 1 << 26 | 1 << 29;
/// CPUID.80000001H:EDX.RDTSCP.
const EDX_RDTSCP: u32 = 1 << 27;
/// CPUID.80000007H:EDX: the TSC is invariant.
const EDX_INVARIANT_TSC: u32 = 1 << 8;

/// Highest basic leaf that is shown.
const MAX_BASIC: u32 = 0x15;
/// Highest extended leaf that is shown.
const MAX_EXTENDED: u32 = 0x8000_0008;
/// Guest-physical addresses that four levels of EPT reach.
const MAX_PHYSICAL_BITS: u32 = 46;

/// An entry that this host cannot provide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuidRefused {
    /// Index of the entry.
    pub entry: u32,
    /// Register, 0 EAX to 3 EDX.
    pub register: u32,
    /// The bits that are too many, or the value that the host has.
    pub bits: u32,
}

/// A guest's CPUID table.
///
/// Made empty on the heap and filled there: it is too large for a kernel's stack.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct GuestCpuid {
    entries: [CpuidEntry; MAX_CPUID_ENTRIES as usize],
    count: u64,
}

// SAFETY: `repr(C)`, integers only, and both fields are multiples of eight bytes long, so there is no padding.
unsafe impl Pod for GuestCpuid {}

const fn registers(entry: &CpuidEntry) -> [u32; 4] {
    [entry.eax, entry.ebx, entry.ecx, entry.edx]
}

impl GuestCpuid {
    /// An empty table.
    pub fn boxed<H: HostMem>() -> Result<H::Box<Self>, OutOfMemory> {
        zeroed::<H, Self>()
    }

    /// Fills an empty table with what a guest gets on this host.
    pub fn fill_from_host(
        &mut self,
        capability: &VmxCapability,
        host_xcr0: u64,
        tsc_khz: u32,
        apic: bool,
    ) {
        let table = self;
        let xcr0 = host_xcr0 & GUEST_XCR0;
        let max_basic = cpuid(0, 0)[EAX];
        for leaf in 0..=MAX_BASIC {
            let host = if leaf <= max_basic {
                cpuid(leaf, 0)
            } else {
                [0; 4]
            };
            table.add_basic(leaf, host, capability, xcr0, tsc_khz, apic);
        }
        table.push(
            0x4000_0000,
            None,
            [
                0x4000_0000,
                u32::from_le_bytes(*b"pvmm"),
                u32::from_le_bytes(*b"pvmm"),
                u32::from_le_bytes(*b"pvmm"),
            ],
        );
        let max_extended = cpuid(0x8000_0000, 0)[EAX];
        for leaf in 0x8000_0000..=MAX_EXTENDED {
            let host = if leaf <= max_extended {
                cpuid(leaf, 0)
            } else {
                [0; 4]
            };
            table.add_extended(leaf, host, capability);
        }
    }

    fn push(&mut self, leaf: u32, subleaf: Option<u32>, values: [u32; 4]) {
        // The policy makes fewer entries than there is room for.
        if let Some(place) = self.entries.get_mut(self.count as usize) {
            *place = CpuidEntry {
                leaf,
                subleaf: subleaf.unwrap_or(0),
                flags: if subleaf.is_some() { CPUID_SUBLEAF } else { 0 },
                eax: values[EAX],
                ebx: values[EBX],
                ecx: values[ECX],
                edx: values[EDX],
                reserved: 0,
            };
            self.count += 1;
        }
    }

    fn add_basic(
        &mut self,
        leaf: u32,
        host: [u32; 4],
        capability: &VmxCapability,
        xcr0: u64,
        tsc_khz: u32,
        apic: bool,
    ) {
        match leaf {
            0 => self.push(0, None, [MAX_BASIC, host[EBX], host[ECX], host[EDX]]),
            1 => {
                let mut ecx = host[ECX] & LEAF_1_ECX | ECX_HYPERVISOR;
                let mut edx = host[EDX] & LEAF_1_EDX;
                if apic {
                    ecx |= ECX_X2APIC | ECX_TSC_DEADLINE;
                    edx |= EDX_APIC;
                }
                // One logical processor, APIC id 0, the host's CLFLUSH size.
                self.push(1, None, [host[EAX], host[EBX] & 0xff00 | 1 << 16, ecx, edx]);
            }
            2 => self.push(2, None, host),
            // Deterministic cache parameters, each cache for one thread in a package of one core.
            4 => {
                for subleaf in 0..8 {
                    let cache = cpuid(4, subleaf);
                    self.push(
                        4,
                        Some(subleaf),
                        [cache[EAX] & 0x3ff, cache[EBX], cache[ECX], cache[EDX]],
                    );
                    if cache[EAX] & 0x1f == 0 {
                        break;
                    }
                }
            }
            // The local APIC's timer always runs.
            6 => self.push(6, None, [1 << 2, 0, 0, 0]),
            7 => {
                let mut ebx = host[EBX] & LEAF_7_EBX;
                let mut ecx = host[ECX] & LEAF_7_ECX;
                if capability.has_invpcid() {
                    ebx |= host[EBX] & EBX_INVPCID;
                }
                if capability.has_rdtscp() {
                    ecx |= host[ECX] & ECX_RDPID;
                }
                self.push(7, Some(0), [0, ebx, ecx, host[EDX] & LEAF_7_EDX]);
            }
            // One thread at the first level, none at the second.
            0xb if apic => {
                self.push(0xb, Some(0), [0, 1, 1 << 8, 0]);
                self.push(0xb, Some(1), [0, 1, 1 | 2 << 8, 0]);
            }
            0xd => {
                // Sizes for the state that is enabled (EBX of subleaves 0 and 1) are worked out when asked for.
                let size = xsave_size(xcr0);
                self.push(0xd, Some(0), [xcr0 as u32, 0, size, (xcr0 >> 32) as u32]);
                self.push(0xd, Some(1), [cpuid(0xd, 1)[EAX] & LEAF_D_1_EAX, 0, 0, 0]);
                for component in 2..63 {
                    if xcr0 & (1 << component) != 0 {
                        let [eax, ebx, ecx, _] = cpuid(0xd, component);
                        self.push(0xd, Some(component), [eax, ebx, ecx & !1, 0]);
                    }
                }
            }
            0x15 => {
                let (denominator, numerator) = tsc_ratio(tsc_khz);
                self.push(0x15, None, [denominator, numerator, CRYSTAL_HZ, 0]);
            }
            _ => self.push(leaf, None, [0; 4]),
        }
    }

    fn add_extended(&mut self, leaf: u32, host: [u32; 4], capability: &VmxCapability) {
        let values = match leaf {
            0x8000_0000 => [MAX_EXTENDED, 0, 0, 0],
            0x8000_0001 => {
                let rdtscp = if capability.has_rdtscp() {
                    EDX_RDTSCP
                } else {
                    0
                };
                let edx = LEAF_80000001_EDX | rdtscp;
                // Outside 64-bit mode Intel CPUs hide SYSCALL here; the guest finds out in 64-bit mode by EFER.
                [0, 0, host[ECX] & LEAF_80000001_ECX, host[EDX] & edx]
            }
            0x8000_0002..=0x8000_0006 => host,
            0x8000_0007 => [0, 0, 0, EDX_INVARIANT_TSC],
            0x8000_0008 => [
                (host[EAX] & 0xff).min(MAX_PHYSICAL_BITS) | host[EAX] & 0xff00,
                0,
                0,
                0,
            ],
            _ => [0; 4],
        };
        self.push(leaf, None, values);
    }

    /// The entries.
    pub fn entries(&self) -> &[CpuidEntry] {
        self.entries.get(..self.count as usize).unwrap_or(&[])
    }

    /// Fills an empty table with `wanted`, if each feature in it is among those of `host`.
    ///
    /// Feature bits must be a subset. Everything else (topology, brand, cache sizes) is information and may differ,
    /// except the state components of XSAVE, whose layout must be the same.
    pub fn fill_restricted(
        &mut self,
        host: &Self,
        wanted: &[CpuidEntry],
    ) -> Result<(), CpuidRefused> {
        for (index, entry) in wanted.iter().enumerate() {
            let host = host
                .find(entry.leaf, entry.subleaf)
                .map_or([0; 4], registers);
            for (register, (want, have)) in registers(entry).into_iter().zip(host).enumerate() {
                let excess = match (entry.leaf, entry.subleaf, register) {
                    (1, _, ECX | EDX)
                    | (7, 0, EBX | ECX | EDX)
                    | (0xd, 0, EAX | EDX)
                    | (0xd, 1, EAX)
                    | (0x8000_0001, _, ECX | EDX)
                    | (0x8000_0007, _, EDX) => want & !have,
                    // Offset and size of a component in the standard format.
                    (0xd, 2.., EAX | EBX) if want != have => have,
                    (0x8000_0008, _, EAX) if want & 0xff > have & 0xff => have & 0xff,
                    _ => 0,
                };
                if excess != 0 {
                    return Err(CpuidRefused {
                        entry: index as u32,
                        register: register as u32,
                        bits: excess,
                    });
                }
            }
            let refused = CpuidRefused {
                entry: index as u32,
                register: 0,
                bits: 0,
            };
            *self.entries.get_mut(self.count as usize).ok_or(refused)? = *entry;
            self.count += 1;
        }
        Ok(())
    }

    fn find(&self, leaf: u32, subleaf: u32) -> Option<&CpuidEntry> {
        self.entries().iter().find(|entry| {
            entry.leaf == leaf && (entry.flags & CPUID_SUBLEAF == 0 || entry.subleaf == subleaf)
        })
    }

    /// CPUID as the guest executes it.
    pub fn query(&self, leaf: u32, subleaf: u32, cr4: u64, xcr0: u64) -> [u32; 4] {
        // Beyond the last basic leaf the data of the last one is returned (SDM volume 2, CPUID).
        let known = matches!(leaf, 0..=MAX_BASIC | 0x4000_0000 | 0x8000_0000..=MAX_EXTENDED);
        let leaf = if known { leaf } else { MAX_BASIC };
        let mut values = self.find(leaf, subleaf).map_or([0; 4], registers);
        match (leaf, subleaf) {
            (1, _) if cr4 & CR4_OSXSAVE != 0 => values[ECX] |= ECX_OSXSAVE,
            (0xb, _) => {
                values[ECX] = values[ECX] & !0xff | subleaf & 0xff;
            }
            (0xd, 0) => values[EBX] = xsave_size(xcr0),
            (0xd, 1) => values[EBX] = xsave_compact_size(xcr0),
            _ => {}
        }
        values
    }

    /// XCR0 bits that the guest may set.
    pub fn xcr0(&self) -> u64 {
        let has_xsave = self
            .find(1, 0)
            .is_some_and(|entry| entry.ecx & (1 << 26) != 0);
        match self.find(0xd, 0) {
            Some(entry) if has_xsave => {
                (u64::from(entry.edx) << 32 | u64::from(entry.eax)) & GUEST_XCR0 | 1
            }
            _ => 1,
        }
    }

    /// CR4 bits that the guest may set.
    pub fn cr4(&self) -> u64 {
        let mut bits = CR4_BASE;
        if let Some(entry) = self.find(1, 0) {
            for (feature, bit) in [(1 << 26, CR4_OSXSAVE), (1 << 17, CR4_PCIDE)] {
                if entry.ecx & feature != 0 {
                    bits |= bit;
                }
            }
        }
        if let Some(entry) = self.find(7, 0) {
            for (feature, bit) in [(1, CR4_FSGSBASE), (1 << 7, CR4_SMEP), (1 << 20, CR4_SMAP)] {
                if entry.ebx & feature != 0 {
                    bits |= bit;
                }
            }
            if entry.ecx & (1 << 2) != 0 {
                bits |= CR4_UMIP;
            }
        }
        bits
    }

    /// MAXPHYADDR.
    pub fn physical_address_bits(&self) -> u8 {
        self.find(0x8000_0008, 0)
            .map_or(36, |entry| entry.eax.min(52) as u8)
            .max(36)
    }

    /// Whether the guest has a local APIC, x2APIC mode and the TSC deadline timer.
    pub fn apic(&self) -> (bool, bool, bool) {
        self.find(1, 0).map_or((false, false, false), |entry| {
            (
                entry.edx & EDX_APIC != 0,
                entry.ecx & ECX_X2APIC != 0,
                entry.ecx & ECX_TSC_DEADLINE != 0,
            )
        })
    }
}

/// The ratio of the TSC's rate to the crystal's for leaf 15H: denominator (EAX) and numerator (EBX).
///
/// Guests multiply the crystal's rate in kHz by the numerator in 32 bits, which bounds the numerator. Fractions with such a
/// numerator are at most (crystal's kHz) / 2^32 apart in proportion, so the best one is within three parts per million.
fn tsc_ratio(tsc_khz: u32) -> (u32, u32) {
    const CRYSTAL_KHZ: u64 = CRYSTAL_HZ as u64 / 1000;
    const MAX_NUMERATOR: u64 = u32::MAX as u64 / CRYSTAL_KHZ;
    let wanted = u64::from(tsc_khz.max(1));
    let mut best = (1, 1);
    let mut best_error = u64::MAX;
    for denominator in 1..=MAX_NUMERATOR {
        let numerator = (wanted * denominator + CRYSTAL_KHZ / 2) / CRYSTAL_KHZ;
        if numerator > MAX_NUMERATOR {
            break;
        }
        // The error of the fraction, times the denominator: at most half of CRYSTAL_KHZ.
        let error = (numerator * CRYSTAL_KHZ).abs_diff(wanted * denominator);
        if numerator > 0 && error.saturating_mul(best.0) < best_error.saturating_mul(denominator) {
            best_error = error;
            best = (denominator, numerator);
        }
        if error == 0 {
            break;
        }
    }
    // Both are at most MAX_NUMERATOR.
    (best.0 as u32, best.1 as u32)
}

/// Size of the standard format of the components in `xcr0` (SDM volume 1, 13.4).
fn xsave_size(xcr0: u64) -> u32 {
    (2..63)
        .filter(|&component| xcr0 & (1 << component) != 0)
        .map(|component| {
            let [size, offset, _, _] = cpuid(0xd, component);
            offset.saturating_add(size)
        })
        .max()
        .unwrap_or(0)
        .max(576)
}

/// Size of the compact format of the components in `xcr0` (SDM volume 1, 13.4.3).
fn xsave_compact_size(xcr0: u64) -> u32 {
    (2..63)
        .filter(|&component| xcr0 & (1 << component) != 0)
        .fold(576, |end, component| {
            let [size, _, flags, _] = cpuid(0xd, component);
            let start = if flags & 2 != 0 {
                end.next_multiple_of(64)
            } else {
                end
            };
            start.saturating_add(size)
        })
}

#[cfg(test)]
mod tests {
    use super::tsc_ratio;
    use crate::models::local_apic::CRYSTAL_HZ;
    use proptest::prelude::*;

    /// What a guest computes from leaf 15H, in the 32 bits in which Linux does.
    fn tsc_khz_of_leaf_15h(khz: u32) -> u32 {
        let (denominator, numerator) = tsc_ratio(khz);
        let product = (CRYSTAL_HZ / 1000).checked_mul(numerator);
        product.expect("fits 32 bits") / denominator
    }

    #[test]
    fn measured_tsc_rates_are_found_though_they_lie_beside_a_multiple_of_the_crystals() {
        for khz in [
            100_000, 1_000_100, 2_399_998, 2_400_100, 2_419_200, 4_571_322, 5_999_999,
        ] {
            let found = tsc_khz_of_leaf_15h(khz);
            assert!(
                found.abs_diff(khz) <= 1 + khz / 300_000,
                "{found} for {khz}"
            );
        }
    }

    proptest! {
        #[test]
        fn a_guest_that_computes_in_32_bits_finds_the_tsc_rate(khz in 20_000u32..6_000_000) {
            let found = tsc_khz_of_leaf_15h(khz);
            prop_assert!(found.abs_diff(khz) <= 1 + khz / 300_000, "{} for {}", found, khz);
        }
    }
}
