// SPDX-License-Identifier: GPL-2.0
//! Names of CPUID feature bits, for refusals that a person can act on. Follows the CPUID instruction's description in
//! the SDM, volume 2A, and only names what differs between hosts in practice; other bits are named by number.

/// EAX to EDX in the order of the SDM.
pub const REGISTERS: [&str; 4] = ["EAX", "EBX", "ECX", "EDX"];

const LEAF_1_ECX: &[(u32, &str)] = &[
    (0, "SSE3"),
    (1, "PCLMULQDQ"),
    (3, "MONITOR"),
    (5, "VMX"),
    (9, "SSSE3"),
    (12, "FMA"),
    (13, "CMPXCHG16B"),
    (17, "PCID"),
    (19, "SSE4.1"),
    (20, "SSE4.2"),
    (21, "x2APIC"),
    (22, "MOVBE"),
    (23, "POPCNT"),
    (24, "TSC-Deadline"),
    (25, "AESNI"),
    (26, "XSAVE"),
    (28, "AVX"),
    (29, "F16C"),
    (30, "RDRAND"),
];
const LEAF_1_EDX: &[(u32, &str)] = &[
    (4, "TSC"),
    (5, "MSR"),
    (6, "PAE"),
    (8, "CX8"),
    (9, "APIC"),
    (11, "SEP"),
    (12, "MTRR"),
    (13, "PGE"),
    (15, "CMOV"),
    (16, "PAT"),
    (17, "PSE-36"),
    (19, "CLFSH"),
    (23, "MMX"),
    (24, "FXSR"),
    (25, "SSE"),
    (26, "SSE2"),
];
const LEAF_7_EBX: &[(u32, &str)] = &[
    (0, "FSGSBASE"),
    (1, "IA32_TSC_ADJUST"),
    (3, "BMI1"),
    (4, "HLE"),
    (5, "AVX2"),
    (7, "SMEP"),
    (8, "BMI2"),
    (10, "INVPCID"),
    (11, "RTM"),
    (16, "AVX512F"),
    (17, "AVX512DQ"),
    (18, "RDSEED"),
    (19, "ADX"),
    (20, "SMAP"),
    (21, "AVX512_IFMA"),
    (23, "CLFLUSHOPT"),
    (24, "CLWB"),
    (28, "AVX512CD"),
    (29, "SHA"),
    (30, "AVX512BW"),
    (31, "AVX512VL"),
];
const LEAF_7_ECX: &[(u32, &str)] = &[
    (1, "AVX512_VBMI"),
    (2, "UMIP"),
    (3, "PKU"),
    (8, "GFNI"),
    (9, "VAES"),
    (10, "VPCLMULQDQ"),
    (16, "LA57"),
    (22, "RDPID"),
];
const LEAF_D_1_EAX: &[(u32, &str)] = &[
    (0, "XSAVEOPT"),
    (1, "XSAVEC"),
    (2, "XGETBV_ECX_1"),
    (3, "XSAVES"),
];
const LEAF_80000001_ECX: &[(u32, &str)] = &[(0, "LAHF"), (5, "LZCNT"), (8, "PREFETCHW")];
const LEAF_80000001_EDX: &[(u32, &str)] = &[
    (11, "SYSCALL"),
    (20, "NX"),
    (26, "1-GByte pages"),
    (27, "RDTSCP"),
    (29, "Intel 64"),
];

/// Names of the bits of `mask` in a register of a leaf, separated by commas; `bit N` for one without a name here.
pub fn bit_names(leaf: u32, subleaf: u32, register: &str, mask: u32) -> String {
    let table = match (leaf, subleaf, register) {
        (1, _, "ECX") => LEAF_1_ECX,
        (1, _, "EDX") => LEAF_1_EDX,
        (7, 0, "EBX") => LEAF_7_EBX,
        (7, 0, "ECX") => LEAF_7_ECX,
        (0xd, 1, "EAX") => LEAF_D_1_EAX,
        (0x8000_0001, _, "ECX") => LEAF_80000001_ECX,
        (0x8000_0001, _, "EDX") => LEAF_80000001_EDX,
        _ => &[],
    };
    let name = |bit: u32| match table.iter().find(|(number, _)| *number == bit) {
        Some((_, name)) => (*name).to_owned(),
        None => format!("bit {bit}"),
    };
    (0..32)
        .filter(|bit| mask & (1 << bit) != 0)
        .map(name)
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_named_as_in_the_sdm_and_numbered_where_they_have_no_name() {
        assert_eq!(bit_names(7, 0, "EBX", 1 << 5 | 1 << 29), "AVX2, SHA");
        assert_eq!(bit_names(7, 0, "EBX", 1 << 2), "bit 2");
        assert_eq!(bit_names(0x8000_0001, 0, "EDX", 1 << 26), "1-GByte pages");
    }
}
