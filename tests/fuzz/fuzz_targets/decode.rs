// SPDX-License-Identifier: GPL-2.0
//! The instruction decoder in all modes: no bytes make it panic, and what it takes is as long, and accesses as much
//! memory, as an independent decoder (iced-x86) says. What was decoded is also carried out, with any registers.
#![no_main]

use iced_x86::{Decoder, DecoderOptions, InstructionInfoFactory, OpAccess};
use libfuzzer_sys::fuzz_target;
use pvmm_core::decode::{
    decode, CodeSize, DecodeError, DeviceInstruction, Operation, Registers, SegmentName, MAX_LENGTH,
};
use pvmm_fuzz::input::Input;

/// Registers as the fuzzer wants them.
#[derive(Default)]
struct Cpu {
    gpr: [u64; 16],
    rip: u64,
    rflags: u64,
    base: u64,
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
    fn segment_base(&self, _segment: SegmentName) -> u64 {
        self.base
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let code = input.take(MAX_LENGTH + 1);
    for (size, bitness) in [
        (CodeSize::Bits16, 16),
        (CodeSize::Bits32, 32),
        (CodeSize::Bits64, 64),
    ] {
        if let Ok(instruction) = decode(code, size) {
            compare(code, size, bitness, &instruction);
            carry_out(&instruction, input);
        }
    }
});

fn compare(code: &[u8], size: CodeSize, bitness: u32, instruction: &DeviceInstruction) {
    let length = usize::from(instruction.length);
    assert!((1..=MAX_LENGTH.min(code.len())).contains(&length));
    // It looked at no byte beyond, and at all before.
    assert_eq!(decode(&code[..length], size).as_ref(), Ok(instruction));
    assert_eq!(
        decode(&code[..length - 1], size),
        Err(DecodeError::Truncated)
    );
    let reference = Decoder::with_ip(bitness, code, 0, DecoderOptions::NONE).decode();
    assert!(
        !reference.is_invalid() && reference.len() == length,
        "{code:02x?} in {bitness}-bit code is {reference:?}, and was taken for {instruction:?}"
    );
    if matches!(
        instruction.operation,
        Operation::String { repeat: true, .. }
    ) {
        // What it accesses depends on the count.
        return;
    }
    let mut factory = InstructionInfoFactory::new();
    let used = factory.info(&reference).used_memory();
    let width = usize::from(instruction.width.bytes());
    let access = instruction.access(&Cpu::default());
    let writes = used
        .iter()
        .any(|memory| !matches!(memory.access(), OpAccess::Read | OpAccess::CondRead));
    let reads = used
        .iter()
        .any(|memory| !matches!(memory.access(), OpAccess::Write | OpAccess::CondWrite));
    assert!(
        used.iter()
            .all(|memory| memory.memory_size().size() == width)
            && (access.read.is_some(), access.write.is_some()) == (reads, writes),
        "{code:02x?} in {bitness}-bit code accesses {used:?}, and was taken for {instruction:?}"
    );
}

fn carry_out(instruction: &DeviceInstruction, mut input: Input<'_>) {
    let mut cpu = Cpu {
        gpr: std::array::from_fn(|_| input.u64()),
        rip: input.u64(),
        rflags: input.u64() | 2,
        base: input.u64(),
    };
    let access = instruction.access(&cpu);
    let written = instruction.execute(&mut cpu, input.u64());
    if access.write.is_none() {
        assert_eq!(
            written, None,
            "{instruction:?} writes where nothing is written"
        );
    }
    if let Some(written) = written {
        assert_eq!(written & !access.width.mask(), 0, "{instruction:?}");
    }
}
