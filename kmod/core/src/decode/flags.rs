// SPDX-License-Identifier: GPL-2.0
//! Arithmetic with its status flags (SDM volume 1, 3.4.3.1 and appendix A).
#![forbid(unsafe_code)]

use super::opcode::{Arithmetic, Unary};
use crate::iospace::Width;

/// RFLAGS.CF.
pub(super) const CF: u64 = 1 << 0;
/// RFLAGS.PF.
pub(super) const PF: u64 = 1 << 2;
/// RFLAGS.AF.
pub(super) const AF: u64 = 1 << 4;
/// RFLAGS.ZF.
pub(super) const ZF: u64 = 1 << 6;
/// RFLAGS.SF.
pub(super) const SF: u64 = 1 << 7;
/// RFLAGS.OF.
pub(super) const OF: u64 = 1 << 11;
/// The flags that arithmetic sets.
pub(super) const STATUS: u64 = CF | PF | AF | ZF | SF | OF;

/// The most significant bit of a value of `width`.
const fn sign_bit(width: Width) -> u64 {
    1 << (8 * width.bytes() as u32 - 1)
}

/// `flag` if `condition` holds.
const fn flag_if(condition: bool, flag: u64) -> u64 {
    if condition {
        flag
    } else {
        0
    }
}

/// SF, ZF and PF of a result, which has only bits of `width`.
const fn of_result(result: u64, width: Width) -> u64 {
    flag_if(result == 0, ZF)
        | flag_if(result & sign_bit(width) != 0, SF)
        | flag_if((result as u8).count_ones() % 2 == 0, PF)
}

/// `a + b + carry` and all status flags.
fn add(a: u64, b: u64, carry: u64, width: Width) -> (u64, u64) {
    let mask = width.mask();
    let (a, b) = (a & mask, b & mask);
    let result = a.wrapping_add(b).wrapping_add(carry) & mask;
    // The carry out of each bit position.
    let carries = (a & b) | ((a | b) & !result);
    let flags = of_result(result, width)
        | flag_if(carries & sign_bit(width) != 0, CF)
        | flag_if(carries & 8 != 0, AF)
        | flag_if((a ^ result) & (b ^ result) & sign_bit(width) != 0, OF);
    (result, flags)
}

/// `a - b - borrow` and all status flags.
fn subtract(a: u64, b: u64, borrow: u64, width: Width) -> (u64, u64) {
    let mask = width.mask();
    let (a, b) = (a & mask, b & mask);
    let result = a.wrapping_sub(b).wrapping_sub(borrow) & mask;
    // The borrow into each next bit position.
    let borrows = (!a & b) | ((!a | b) & result);
    let flags = of_result(result, width)
        | flag_if(borrows & sign_bit(width) != 0, CF)
        | flag_if(borrows & 8 != 0, AF)
        | flag_if((a ^ b) & (a ^ result) & sign_bit(width) != 0, OF);
    (result, flags)
}

/// The result of `a op b` and the new RFLAGS. The result of CMP is the difference, which nobody keeps. AF after a logical
/// operation, which the SDM leaves undefined, is cleared.
pub(super) fn arithmetic(
    operation: Arithmetic,
    a: u64,
    b: u64,
    width: Width,
    rflags: u64,
) -> (u64, u64) {
    let carry = rflags & CF;
    let logical = |result: u64| {
        let result = result & width.mask();
        (result, of_result(result, width))
    };
    let (result, flags) = match operation {
        Arithmetic::Add => add(a, b, 0, width),
        Arithmetic::Adc => add(a, b, carry, width),
        Arithmetic::Sub | Arithmetic::Cmp => subtract(a, b, 0, width),
        Arithmetic::Sbb => subtract(a, b, carry, width),
        Arithmetic::And => logical(a & b),
        Arithmetic::Or => logical(a | b),
        Arithmetic::Xor => logical(a ^ b),
    };
    (result, (rflags & !STATUS) | flags)
}

/// The result of `op a` and the new RFLAGS. INC and DEC keep CF, NOT keeps all flags.
pub(super) fn unary(operation: Unary, a: u64, width: Width, rflags: u64) -> (u64, u64) {
    let keep = |kept: u64, (result, flags): (u64, u64)| {
        (result, (rflags & (!STATUS | kept)) | (flags & !kept))
    };
    match operation {
        Unary::Not => (!a & width.mask(), rflags),
        Unary::Neg => keep(0, subtract(0, a, 0, width)),
        Unary::Inc => keep(CF, add(a, 1, 0, width)),
        Unary::Dec => keep(CF, subtract(a, 1, 0, width)),
    }
}
