// SPDX-License-Identifier: GPL-2.0
//! The decoder against an independent one (iced-x86), and execution against the SDM's pages.

use super::flags::{AF, CF, OF, PF, SF, STATUS, ZF};
use super::*;
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use proptest::prelude::*;
use std::vec::Vec;

/// Registers as plain fields.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Cpu {
    gpr: [u64; 16],
    rip: u64,
    rflags: u64,
    bases: [u64; 6],
}

impl Registers for Cpu {
    fn gpr(&self, index: u8) -> u64 {
        self.gpr[usize::from(index)]
    }
    fn set_gpr(&mut self, index: u8, value: u64) {
        self.gpr[usize::from(index)] = value;
    }
    fn rip(&self) -> u64 {
        self.rip
    }
    fn set_rip(&mut self, value: u64) {
        self.rip = value;
    }
    fn rflags(&self) -> u64 {
        self.rflags
    }
    fn set_rflags(&mut self, value: u64) {
        self.rflags = value;
    }
    fn segment_base(&self, segment: SegmentName) -> u64 {
        self.bases[segment as usize]
    }
}

const SIZES: [CodeSize; 3] = [CodeSize::Bits16, CodeSize::Bits32, CodeSize::Bits64];

const fn bitness(size: CodeSize) -> u32 {
    match size {
        CodeSize::Bits16 => 16,
        CodeSize::Bits32 => 32,
        CodeSize::Bits64 => 64,
    }
}

fn reference(bytes: &[u8], size: CodeSize, ip: u64) -> Instruction {
    Decoder::with_ip(bitness(size), bytes, ip, DecoderOptions::NONE).decode()
}

/// The instruction is one that this decoder promises to know, and accesses memory.
fn promised(instruction: &Instruction) -> bool {
    let known = matches!(
        instruction.mnemonic(),
        Mnemonic::Mov
            | Mnemonic::Movzx
            | Mnemonic::Movsx
            | Mnemonic::Movsxd
            | Mnemonic::Movnti
            | Mnemonic::Movsb
            | Mnemonic::Movsw
            | Mnemonic::Movsd
            | Mnemonic::Movsq
            | Mnemonic::Stosb
            | Mnemonic::Stosw
            | Mnemonic::Stosd
            | Mnemonic::Stosq
            | Mnemonic::Lodsb
            | Mnemonic::Lodsw
            | Mnemonic::Lodsd
            | Mnemonic::Lodsq
            | Mnemonic::Xchg
            | Mnemonic::Add
            | Mnemonic::Or
            | Mnemonic::Adc
            | Mnemonic::Sbb
            | Mnemonic::And
            | Mnemonic::Sub
            | Mnemonic::Xor
            | Mnemonic::Cmp
            | Mnemonic::Test
            | Mnemonic::Not
            | Mnemonic::Neg
            | Mnemonic::Inc
            | Mnemonic::Dec
            | Mnemonic::Bt
            | Mnemonic::Bts
            | Mnemonic::Btr
            | Mnemonic::Btc
    );
    let in_memory = (0..instruction.op_count()).any(|operand| is_memory(instruction, operand));
    // The names MOVSD and the moves of segment registers belong to other instructions too.
    let other = matches!(
        instruction.code(),
        Code::Movsd_xmm_xmmm64
            | Code::Movsd_xmmm64_xmm
            | Code::Mov_rm16_Sreg
            | Code::Mov_r32m16_Sreg
            | Code::Mov_r64m16_Sreg
            | Code::Mov_Sreg_rm16
            | Code::Mov_Sreg_r32m16
            | Code::Mov_Sreg_r64m16
    );
    known && in_memory && !other
}

fn is_memory(instruction: &Instruction, operand: u32) -> bool {
    matches!(
        instruction.op_kind(operand),
        OpKind::Memory
            | OpKind::MemorySegSI
            | OpKind::MemorySegESI
            | OpKind::MemorySegRSI
            | OpKind::MemoryESDI
            | OpKind::MemoryESEDI
            | OpKind::MemoryESRDI
    )
}

/// The address of an operand as iced-x86 sees it.
fn reference_address(cpu: &Cpu, size: CodeSize, instruction: &Instruction, operand: u32) -> u64 {
    let address = instruction
        .virtual_address(operand, 0, |register, _, _| {
            let segment = match register {
                Register::ES => Some(SegmentName::Es),
                Register::CS => Some(SegmentName::Cs),
                Register::SS => Some(SegmentName::Ss),
                Register::DS => Some(SegmentName::Ds),
                Register::FS => Some(SegmentName::Fs),
                Register::GS => Some(SegmentName::Gs),
                _ => None,
            };
            Some(match segment {
                Some(SegmentName::Fs) => cpu.segment_base(SegmentName::Fs),
                Some(SegmentName::Gs) => cpu.segment_base(SegmentName::Gs),
                Some(_) if size == CodeSize::Bits64 => 0,
                Some(segment) => cpu.segment_base(segment),
                None => {
                    let full = cpu.gpr[register.full_register().number()];
                    match register.size() {
                        8 => full,
                        4 => full & 0xffff_ffff,
                        _ => full & 0xffff,
                    }
                }
            })
        })
        .expect("every register is known");
    match size {
        CodeSize::Bits64 => address,
        _ => address & 0xffff_ffff,
    }
}

/// Compares one decoding with iced-x86's.
fn compare(bytes: &[u8], size: CodeSize, cpu: &Cpu) -> Result<bool, TestCaseError> {
    let instruction = reference(bytes, size, cpu.rip);
    let ours = match decode(bytes, size) {
        Ok(ours) => ours,
        Err(error) => {
            prop_assert!(
                instruction.is_invalid() || !promised(&instruction),
                "{error} but {:?}",
                instruction.code()
            );
            return Ok(false);
        }
    };
    prop_assert!(!instruction.is_invalid(), "{ours:?} is no instruction");
    prop_assert!(
        promised(&instruction),
        "{ours:?} is {:?}",
        instruction.code()
    );
    prop_assert_eq!(usize::from(ours.length), instruction.len());
    prop_assert_eq!(
        usize::from(ours.width.bytes()),
        instruction.memory_size().size()
    );
    let operands: Vec<u64> = (0..instruction.op_count())
        .filter(|operand| is_memory(&instruction, *operand))
        .map(|operand| reference_address(cpu, size, &instruction, operand))
        .collect();
    match ours.operation {
        Operation::String { repeat, .. } => {
            let access = ours.access(cpu);
            prop_assert_eq!(
                repeat,
                instruction.has_rep_prefix() || instruction.has_repne_prefix()
            );
            if repeat && ours.count_of(cpu) == 0 {
                prop_assert_eq!((access.read, access.write), (None, None));
            } else {
                // iced-x86 lists the destination first.
                let ours: Vec<u64> = access.write.into_iter().chain(access.read).collect();
                prop_assert_eq!(ours, operands);
            }
        }
        _ => prop_assert_eq!(std::vec![ours.memory.linear(cpu, 0)], operands),
    }
    Ok(true)
}

fn cpus() -> impl Strategy<Value = Cpu> {
    (
        prop::array::uniform16(prop_oneof![any::<u64>(), 0..3u64]),
        any::<u64>(),
        prop::array::uniform6(any::<u64>()),
    )
        .prop_map(|(gpr, rip, bases)| Cpu {
            gpr,
            rip,
            rflags: 2,
            bases,
        })
}

/// Prefixes, an opcode that is likely known, and anything after it.
fn likely_instructions() -> impl Strategy<Value = Vec<u8>> {
    let prefixes = prop::collection::vec(
        prop::sample::select(std::vec![
            0x26u8, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x40, 0x48, 0x4f,
            0x41, 0x44, 0x42
        ]),
        0..4,
    );
    let opcode = prop_oneof![
        any::<u8>().prop_map(|byte| std::vec![byte]),
        prop::sample::select(std::vec![
            0xa3u8, 0xab, 0xb3, 0xbb, 0xba, 0xb6, 0xb7, 0xbe, 0xbf, 0xc3
        ])
        .prop_map(|byte| std::vec![0x0f, byte]),
        prop::sample::select(std::vec![
            0x63u8, 0x80, 0x81, 0x82, 0x83, 0x88, 0x89, 0x8a, 0x8b, 0xa0, 0xa1, 0xa2, 0xa3, 0xa4,
            0xa5, 0xaa, 0xab, 0xac, 0xad, 0xc6, 0xc7, 0xf6, 0xf7, 0xfe, 0xff
        ])
        .prop_map(|byte| std::vec![byte]),
    ];
    let rest = prop::collection::vec(any::<u8>(), 0..14);
    (prefixes, opcode, rest).prop_map(|(prefixes, opcode, rest)| {
        let mut bytes = prefixes;
        bytes.extend(opcode);
        bytes.extend(rest);
        bytes.truncate(MAX_LENGTH);
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5_000))]

    #[test]
    fn any_bytes_decode_as_an_independent_decoder_says(
        bytes in prop::collection::vec(any::<u8>(), 0..20), size in prop::sample::select(&SIZES), cpu in cpus(),
    ) {
        compare(&bytes, size, &cpu)?;
    }

    #[test]
    fn likely_instructions_decode_as_an_independent_decoder_says(
        bytes in likely_instructions(), size in prop::sample::select(&SIZES), cpu in cpus(),
    ) {
        compare(&bytes, size, &cpu)?;
    }

    #[test]
    fn execution_never_panics_and_ends_behind_the_instruction(
        bytes in likely_instructions(), size in prop::sample::select(&SIZES), mut cpu in cpus(), read in any::<u64>(),
    ) {
        if let Ok(instruction) = decode(&bytes, size) {
            let start = cpu.clone();
            let access = instruction.access(&cpu);
            let written = instruction.execute(&mut cpu, read);
            prop_assert_eq!(written.is_some(), access.write.is_some());
            if let Some(value) = written {
                prop_assert_eq!(value & !instruction.width.mask(), 0);
            }
            let mask = if size == CodeSize::Bits64 { u64::MAX } else { 0xffff_ffff };
            let next = start.rip.wrapping_add(u64::from(instruction.length)) & mask;
            prop_assert!(cpu.rip == next || (cpu.rip == start.rip && instruction.repeats()));
        }
    }

    #[test]
    fn sums_and_differences_have_the_flags_of_the_exact_result(
        a: u64, b: u64, carry: bool, width in prop::sample::select(&[Width::W1, Width::W2, Width::W4, Width::W8]),
    ) {
        let (a, b) = (a & width.mask(), b & width.mask());
        let (signed_a, signed_b) = (signed(a, width), signed(b, width));
        for (operation, sign, with_carry) in [
            (Arithmetic::Add, 1, false), (Arithmetic::Adc, 1, true),
            (Arithmetic::Sub, -1, false), (Arithmetic::Cmp, -1, false), (Arithmetic::Sbb, -1, true),
        ] {
            let extra = i128::from(with_carry && carry) * sign;
            let exact = i128::from(a) + sign * i128::from(b) + extra;
            let exact_signed = signed_a + sign * signed_b + extra;
            let exact_nibble = i128::from(a & 15) + sign * i128::from(b & 15) + extra;
            let (result, rflags) = flags::arithmetic(operation, a, b, width, u64::from(carry) | 1 << 9);
            prop_assert_eq!(result, exact as u64 & width.mask());
            prop_assert_eq!(rflags & CF != 0, exact < 0 || exact > i128::from(width.mask()));
            prop_assert_eq!(rflags & OF != 0, exact_signed != signed(result, width));
            prop_assert_eq!(rflags & AF != 0, !(0..16).contains(&exact_nibble));
            prop_assert_eq!(rflags & ZF != 0, result == 0);
            prop_assert_eq!(rflags & SF != 0, signed(result, width) < 0);
            prop_assert_eq!(rflags & PF != 0, (result & 0xff).count_ones() % 2 == 0);
            prop_assert_eq!(rflags & !STATUS, 1 << 9, "other flags are kept");
        }
    }
}

fn signed(value: u64, width: Width) -> i128 {
    i128::from(super::prefix::sign_extend(value, width) as i64)
}

impl DeviceInstruction {
    fn repeats(&self) -> bool {
        matches!(self.operation, Operation::String { repeat: true, .. })
    }

    fn count_of(&self, cpu: &Cpu) -> u64 {
        cpu.gpr[1] & self.memory.address_width.mask()
    }
}

/// Decodes `bytes` as 64-bit code and executes it; returns the access and what is written.
fn run(cpu: &mut Cpu, bytes: &[u8], read: u64) -> (MemoryAccess, Option<u64>) {
    let instruction = decode(bytes, CodeSize::Bits64).expect("the test's bytes are an instruction");
    let access = instruction.access(cpu);
    let written = instruction.execute(cpu, read);
    (access, written)
}

#[test]
fn every_promised_instruction_is_reached_by_the_comparison() {
    // mov eax,[rdx]; xchg; rep movsb; bts [rdx],eax; movsxd; lock or [rdx],eax
    let samples: [&[u8]; 6] = [
        &[0x8b, 0x02],
        &[0x87, 0x02],
        &[0xf3, 0xa4],
        &[0x0f, 0xab, 0x02],
        &[0x48, 0x63, 0x02],
        &[0xf0, 0x09, 0x02],
    ];
    for bytes in samples {
        let decoded = compare(bytes, CodeSize::Bits64, &Cpu::default());
        assert!(matches!(decoded, Ok(true)), "{bytes:02x?}: {decoded:?}");
    }
}

#[test]
fn a_32_bit_load_clears_the_upper_half_and_a_16_bit_load_does_not() {
    let mut cpu = Cpu {
        gpr: [u64::MAX; 16],
        ..Cpu::default()
    };
    run(&mut cpu, &[0x8b, 0x02], 0x1234_5678);
    assert_eq!(cpu.gpr[0], 0x1234_5678);
    run(&mut cpu, &[0x66, 0x8b, 0x0a], 0xabcd);
    assert_eq!(cpu.gpr[1], 0xffff_ffff_ffff_abcd);
    assert_eq!(cpu.rip, 5);
}

#[test]
fn register_4_of_a_byte_instruction_is_ah_without_rex_and_spl_with_it() {
    let mut cpu = Cpu::default();
    run(&mut cpu, &[0x8a, 0x22], 0x5a);
    assert_eq!(cpu.gpr[0], 0x5a00);
    run(&mut cpu, &[0x40, 0x8a, 0x22], 0x5a);
    assert_eq!(cpu.gpr[4], 0x5a);
}

#[test]
fn movsx_extends_the_sign_and_movzx_does_not() {
    let mut cpu = Cpu::default();
    run(&mut cpu, &[0x0f, 0xbe, 0x02], 0x80);
    assert_eq!(cpu.gpr[0], 0xffff_ff80);
    run(&mut cpu, &[0x48, 0x0f, 0xbf, 0x02], 0x8000);
    assert_eq!(cpu.gpr[0], 0xffff_ffff_ffff_8000);
    run(&mut cpu, &[0x48, 0x0f, 0xb6, 0x02], 0x80);
    assert_eq!(cpu.gpr[0], 0x80);
}

#[test]
fn a_rip_relative_address_counts_from_the_next_instruction() {
    let mut cpu = Cpu {
        rip: 0x1000,
        ..Cpu::default()
    };
    // mov dword ptr [rip+0x10], 7
    let (access, written) = run(&mut cpu, &[0xc7, 0x05, 0x10, 0, 0, 0, 7, 0, 0, 0], 0);
    assert_eq!(access.write, Some(0x101a));
    assert_eq!(access.read, None);
    assert_eq!(written, Some(7));
    assert_eq!(cpu.rip, 0x100a);
}

#[test]
fn a_64_bit_store_of_an_immediate_extends_its_sign() {
    let (_, written) = run(
        &mut Cpu::default(),
        &[0x48, 0xc7, 0x02, 0xff, 0xff, 0xff, 0xff],
        0,
    );
    assert_eq!(written, Some(u64::MAX));
}

#[test]
fn xchg_reads_and_writes_the_same_place() {
    let mut cpu = Cpu::default();
    cpu.gpr[0] = 0x11;
    cpu.gpr[2] = 0xfee0_00b0;
    let (access, written) = run(&mut cpu, &[0x87, 0x02], 0x22);
    assert_eq!(access.read, Some(0xfee0_00b0));
    assert_eq!(access.write, access.read);
    assert_eq!(written, Some(0x11));
    assert_eq!(cpu.gpr[0], 0x22);
}

#[test]
fn a_comparison_with_memory_writes_nothing() {
    let mut cpu = Cpu::default();
    let (access, written) = run(&mut cpu, &[0x83, 0x3a, 0x05], 4);
    assert_eq!((access.write, written), (None, None));
    assert_eq!(cpu.rflags & (CF | ZF), CF, "4 is below 5");
}

#[test]
fn a_repeated_store_does_one_element_at_a_time_and_then_goes_on() {
    let mut cpu = Cpu::default();
    cpu.gpr[0] = 0x77;
    cpu.gpr[1] = 2;
    cpu.gpr[7] = 0x2000;
    let stosd = [0xf3, 0xab];
    let (access, written) = run(&mut cpu, &stosd, 0);
    assert_eq!((access.write, written), (Some(0x2000), Some(0x77)));
    assert_eq!((cpu.gpr[1], cpu.gpr[7], cpu.rip), (1, 0x2004, 0));
    let (access, _) = run(&mut cpu, &stosd, 0);
    assert_eq!(access.write, Some(0x2004));
    assert_eq!((cpu.gpr[1], cpu.gpr[7], cpu.rip), (0, 0x2008, 2));
    cpu.rip = 0;
    let (access, written) = run(&mut cpu, &stosd, 0);
    assert_eq!((access.read, access.write, written), (None, None, None));
    assert_eq!((cpu.gpr[7], cpu.rip), (0x2008, 2));
}

#[test]
fn a_backward_move_steps_down() {
    let mut cpu = Cpu {
        rflags: 1 << 10,
        ..Cpu::default()
    };
    cpu.gpr[6] = 0x1000;
    cpu.gpr[7] = 0x2000;
    let (access, written) = run(&mut cpu, &[0x48, 0xa5], 42);
    assert_eq!((access.read, access.write), (Some(0x1000), Some(0x2000)));
    assert_eq!(written, Some(42));
    assert_eq!((cpu.gpr[6], cpu.gpr[7]), (0xff8, 0x1ff8));
}

#[test]
fn a_bit_number_from_a_register_reaches_beyond_the_operand() {
    let mut cpu = Cpu::default();
    cpu.gpr[0] = (-1i32) as u32 as u64;
    cpu.gpr[2] = 0x1000;
    // bts [rdx], eax: bit -1 is bit 31 of the word before.
    let (access, written) = run(&mut cpu, &[0x0f, 0xab, 0x02], 0);
    assert_eq!(access.write, Some(0xffc));
    assert_eq!(written, Some(1 << 31));
    assert_eq!(cpu.rflags & CF, 0);
    // btr dword ptr [rdx], 33: the number is taken modulo 32.
    let (access, written) = run(&mut cpu, &[0x0f, 0xba, 0x32, 33], 3);
    assert_eq!((access.write, written), (Some(0x1000), Some(1)));
    assert_eq!(cpu.rflags & CF, CF);
}

#[test]
fn increment_and_decrement_keep_the_carry() {
    let mut cpu = Cpu {
        rflags: CF,
        ..Cpu::default()
    };
    let (_, written) = run(&mut cpu, &[0xff, 0x02], 0x7fff_ffff);
    assert_eq!(written, Some(0x8000_0000));
    assert_eq!(cpu.rflags & STATUS, CF | OF | SF | AF | PF);
}

#[test]
fn an_instruction_of_more_than_15_bytes_is_refused() {
    let mut bytes = std::vec![0x66; 14];
    bytes.extend([0x8b, 0x02]);
    assert_eq!(
        decode(&bytes, CodeSize::Bits64),
        Err(DecodeError::Truncated)
    );
}
