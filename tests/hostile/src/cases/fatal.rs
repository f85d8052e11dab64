//! What a guest does not come back from.

use super::{random_code, Case};
use crate::layout::{DATA, HOLE, LOCAL_APIC};
use crate::random::Random;
use crate::snippet::{Mode, Privilege, Snippet};

/// Instructions on [RBX] that software does not use on devices.
const OPERANDS: [&[u8]; 16] = [
    &[0xff, 0x33],
    &[0x8f, 0x03],
    &[0x0f, 0xb1, 0x03],
    &[0xf0, 0x0f, 0xb1, 0x03],
    &[0x0f, 0xc1, 0x03],
    &[0x0f, 0xc7, 0x0b],
    &[0x0f, 0x28, 0x03],
    &[0x0f, 0x29, 0x03],
    &[0x0f, 0x11, 0x03],
    &[0xc5, 0xfc, 0x11, 0x03],
    &[0xd9, 0x03],
    &[0xdd, 0x33],
    &[0x0f, 0xae, 0x03],
    &[0xff, 0x23],
    &[0xd1, 0x03],
    &[0x0f, 0x01, 0x13],
];

/// MXCSR: all exceptions masked, rounding towards minus infinity.
const ROUND_DOWN: u32 = 0x3f80;

/// The snippet of a case that [`Case::is_fatal`].
pub(super) fn snippet(case: Case, random: &Random) -> Snippet {
    let mode = if case == Case::TaskSwitch {
        Mode::Protected32
    } else {
        Mode::Long
    };
    let mut snippet = Snippet::new(mode, Privilege::Kernel, random);
    let code = &mut snippet.code;
    let device = random.pick(&[HOLE, LOCAL_APIC]);
    match case {
        // push 0; push 0; lidt [rsp]; ud2
        Case::TripleFault => code.raw(&[0x6a, 0, 0x6a, 0, 0x0f, 0x01, 0x1c, 0x24, 0x0f, 0x0b]),
        Case::WildCr3 => {
            let target = random.pick(&[HOLE, LOCAL_APIC, DATA, 0x3f_ffff_f000]);
            code.load(0, target).raw(&[0x0f, 0x22, 0xd8])
        }
        Case::HaltForever => code.raw(&[0xfa, 0xf4, 0xeb, 0xfc]),
        // cli; push ROUND_DOWN; ldmxcsr [rsp]; jmp $
        Case::Spin => code
            .raw(&[0xfa, 0x68])
            .raw(&ROUND_DOWN.to_le_bytes())
            .raw(&[0x0f, 0xae, 0x14, 0x24, 0xeb, 0xfe]),
        // mov rax, device; push rax; push 0fff0000h; lidt [rsp + 6]; int 40h or ud2
        Case::DeviceIdt => {
            let last: &[u8] = if random.one_in(2) {
                &[0xcd, 0x40]
            } else {
                &[0x0f, 0x0b]
            };
            code.load(0, device)
                .raw(&[0x50, 0x68, 0, 0, 0, 0])
                .raw(&[0x66, 0xc7, 0x44, 0x24, 6, 0xff, 0x0f])
                .raw(&[0x0f, 0x01, 0x5c, 0x24, 6])
                .raw(last)
        }
        Case::DeviceStack => code.load(4, device + 0x800).raw(&[0x50, 0x9d, 0xc3]),
        Case::DeviceCode => code.load(0, device + 0x800).raw(&[0xff, 0xe0]),
        Case::DeviceOperand => {
            let operand = random.pick(&OPERANDS);
            code.load(3, device).load(0, 0).raw(operand)
        }
        // jmp far RANDOM:0, where there is an available 32-bit TSS.
        Case::TaskSwitch => {
            snippet.descriptors[0] = 0x0000_8904_0000_0067;
            code.raw(&[0xea, 0, 0, 0, 0, crate::layout::selector::RANDOM as u8, 0])
        }
        // mov dx, 0cf9h; mov al, 6; out dx, al
        Case::Reset => code.load(2, 0xcf9).raw(&[0xb0, 6, 0xee]),
        _ => return random_code::wild_code(random),
    };
    snippet
}
