// SPDX-License-Identifier: GPL-2.0
//! The register page of a local APIC: places, access rights and bits (SDM volume 3, tables 12-1 and 12-6).
//!
//! A register is named by its place in the xAPIC page divided by 16, which is also its MSR number less 800h.
#![forbid(unsafe_code)]

/// Local APIC ID.
pub(super) const ID: usize = 0x02;
/// Version.
pub(super) const VERSION: usize = 0x03;
/// Task priority.
pub(super) const TPR: usize = 0x08;
/// Processor priority; derived.
pub(super) const PPR: usize = 0x0a;
/// End of interrupt.
pub(super) const EOI: usize = 0x0b;
/// Logical destination.
pub(super) const LDR: usize = 0x0d;
/// Destination format; xAPIC only.
pub(super) const DFR: usize = 0x0e;
/// Spurious-interrupt vector.
pub(super) const SVR: usize = 0x0f;
/// In-service, the first of eight.
pub(super) const ISR: usize = 0x10;
/// Trigger mode, the first of eight.
pub(super) const TMR: usize = 0x18;
/// Interrupt request, the first of eight.
pub(super) const IRR: usize = 0x20;
/// Error status.
pub(super) const ESR: usize = 0x28;
/// Not a register of the page: the errors found since the last write of ESR, in a saved state.
pub(super) const PENDING_ERRORS: usize = 0x29;
/// Interrupt command, low half; all of it in x2APIC mode.
pub(super) const ICR_LOW: usize = 0x30;
/// Interrupt command, high half; xAPIC only.
pub(super) const ICR_HIGH: usize = 0x31;
/// LVT timer.
pub(super) const LVT_TIMER: usize = 0x32;
/// LVT thermal sensor.
pub(super) const LVT_THERMAL: usize = 0x33;
/// LVT performance monitoring counters.
pub(super) const LVT_PMC: usize = 0x34;
/// LVT LINT0.
pub(super) const LVT_LINT0: usize = 0x35;
/// LVT LINT1.
pub(super) const LVT_LINT1: usize = 0x36;
/// LVT error.
pub(super) const LVT_ERROR: usize = 0x37;
/// Initial count.
pub(super) const INITIAL_COUNT: usize = 0x38;
/// Current count. Held here is the count at the timer's start time; 0 means stopped.
pub(super) const CURRENT_COUNT: usize = 0x39;
/// Divide configuration.
pub(super) const DIVIDE: usize = 0x3e;
/// Self IPI; x2APIC only.
pub(super) const SELF_IPI: usize = 0x3f;

/// The value of the version register: an integrated APIC, six LVT entries (no CMCI), no suppression of EOI broadcasts.
pub(super) const VERSION_VALUE: u32 = 0x0005_0014;

/// LVT: masked.
pub(super) const LVT_MASKED: u32 = 1 << 16;
/// LVT: level-triggered.
pub(super) const LVT_LEVEL: u32 = 1 << 15;
/// LVT: remote IRR.
pub(super) const LVT_REMOTE_IRR: u32 = 1 << 14;
/// LVT timer: the mode.
pub(super) const TIMER_MODE: u32 = 3 << 17;
/// LVT timer: the half of the mode that only TSC-deadline uses.
pub(super) const TIMER_MODE_DEADLINE: u32 = 2 << 17;
/// SVR: APIC software enable.
pub(super) const SVR_ENABLE: u32 = 1 << 8;
/// Delivery status, in ICR and LVT. Always idle here, and ignored when written.
pub(super) const DELIVERY_STATUS: u32 = 1 << 12;
/// ICR: logical destination.
pub(super) const ICR_LOGICAL: u32 = 1 << 11;
/// ICR: level, assert.
pub(super) const ICR_ASSERT: u32 = 1 << 14;
/// ICR: level-triggered.
pub(super) const ICR_LEVEL: u32 = 1 << 15;
/// ICR: bits that can be written.
pub(super) const ICR_WRITABLE: u32 = 0x000c_cfff;

/// ESR: an IPI with a vector below 16 was to be sent.
pub(super) const ERROR_SEND_VECTOR: u32 = 1 << 5;
/// ESR: an interrupt with a vector below 16 was received or raised here.
pub(super) const ERROR_RECEIVE_VECTOR: u32 = 1 << 6;
/// ESR: a reserved register was accessed in xAPIC mode.
pub(super) const ERROR_REGISTER: u32 = 1 << 7;
/// ESR: all bits that this APIC sets.
pub(super) const ERRORS: u32 = ERROR_SEND_VECTOR | ERROR_RECEIVE_VECTOR | ERROR_REGISTER;

/// What software may do with a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rights {
    ReadWrite,
    ReadOnly,
    WriteOnly,
    Reserved,
}

/// The access rights of a register in xAPIC or x2APIC mode.
pub(super) const fn rights(register: usize, x2apic: bool) -> Rights {
    match register {
        ID | VERSION | PPR | CURRENT_COUNT => Rights::ReadOnly,
        ISR..=0x27 => Rights::ReadOnly,
        EOI => Rights::WriteOnly,
        LDR if x2apic => Rights::ReadOnly,
        DFR | ICR_HIGH if x2apic => Rights::Reserved,
        SELF_IPI if x2apic => Rights::WriteOnly,
        TPR | LDR | DFR | SVR | ESR => Rights::ReadWrite,
        ICR_LOW..=INITIAL_COUNT | DIVIDE => Rights::ReadWrite,
        _ => Rights::Reserved,
    }
}

/// The bits of a register that a write can change. For [`ESR`] and [`EOI`], whose writes are commands, the bits that
/// x2APIC mode accepts.
pub(super) const fn writable(register: usize, tsc_deadline: bool) -> u32 {
    match register {
        TPR => 0xff,
        LDR => 0xff00_0000,
        DFR => 0xf000_0000,
        // With focus processor checking (bit 9), which current processors ignore.
        SVR => 0x3ff,
        ICR_LOW => ICR_WRITABLE,
        ICR_HIGH => 0xff00_0000,
        LVT_TIMER if tsc_deadline => 0xff | LVT_MASKED | TIMER_MODE,
        LVT_TIMER => 0xff | LVT_MASKED | (TIMER_MODE & !TIMER_MODE_DEADLINE),
        LVT_THERMAL | LVT_PMC => 0x7ff | LVT_MASKED,
        LVT_LINT0 | LVT_LINT1 => 0x7ff | 1 << 13 | LVT_LEVEL | LVT_MASKED,
        LVT_ERROR => 0xff | LVT_MASKED,
        INITIAL_COUNT => u32::MAX,
        DIVIDE => 0b1011,
        SELF_IPI => 0xff,
        _ => 0,
    }
}

/// The bits of a register that a write leaves alone without being an error in x2APIC mode.
pub(super) const fn ignored(register: usize) -> u32 {
    match register {
        ICR_LOW | LVT_TIMER | LVT_THERMAL | LVT_PMC | LVT_ERROR => DELIVERY_STATUS,
        LVT_LINT0 | LVT_LINT1 => DELIVERY_STATUS | LVT_REMOTE_IRR,
        _ => 0,
    }
}

/// The data-sheet name of a register, for refusals.
pub(super) const fn name(register: usize) -> &'static str {
    match register {
        ID => "local APIC ID",
        VERSION => "local APIC version",
        TPR => "TPR",
        PPR => "PPR",
        EOI => "EOI",
        LDR => "LDR",
        DFR => "DFR",
        SVR => "SVR",
        ISR..=0x17 => "ISR",
        TMR..=0x1f => "TMR",
        IRR..=0x27 => "IRR",
        ESR => "ESR",
        PENDING_ERRORS => "pending errors of ESR",
        ICR_LOW => "ICR (low)",
        ICR_HIGH => "ICR (high)",
        LVT_TIMER => "LVT timer",
        LVT_THERMAL => "LVT thermal sensor",
        LVT_PMC => "LVT performance counters",
        LVT_LINT0 => "LVT LINT0",
        LVT_LINT1 => "LVT LINT1",
        LVT_ERROR => "LVT error",
        INITIAL_COUNT => "initial count",
        CURRENT_COUNT => "current count",
        DIVIDE => "divide configuration",
        _ => "reserved local APIC register",
    }
}
