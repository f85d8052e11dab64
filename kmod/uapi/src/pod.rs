// SPDX-License-Identifier: GPL-2.0
//! The structures of this ABI as bytes, for the copies between the kernel and userspace.
//!
//! This is the one module of the crate with `unsafe`: it states, type by type, that a structure may be read from and
//! written as bytes.
#![allow(unsafe_code)]

use crate::*;
use core::mem::size_of;

/// A structure of fixed-width integers without padding.
///
/// # Safety
///
/// Every bit pattern of the type's size must be a valid value, and the type must have no padding bytes.
pub unsafe trait Pod: Copy + 'static {
    /// The value's bytes, in the host's byte order.
    fn as_bytes(&self) -> &[u8] {
        // SAFETY: the type has no padding (the trait's contract), so all its bytes are initialised; the slice
        // borrows `self` and covers exactly it.
        unsafe { core::slice::from_raw_parts((self as *const Self).cast(), size_of::<Self>()) }
    }

    /// The value's bytes, to be overwritten.
    fn as_bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_bytes`, and any bytes that are stored through the slice make a valid value (the trait's
        // contract).
        unsafe { core::slice::from_raw_parts_mut((self as *mut Self).cast(), size_of::<Self>()) }
    }
}

macro_rules! pod {
    ($($type:ty),* $(,)?) => {
        $(
            // SAFETY: `repr(C)`, only integers and arrays of them, and the test below checks that the fields'
            // sizes add up to the type's, which leaves no room for padding.
            unsafe impl Pod for $type {}
        )*
    };
}

pod! {
    AttachDevice, Capabilities, ChipsetState, Clock, CpuidEntry, CpuidTable, CreateVcpu, CreateVm, DescriptorTable,
    DeviceCapture, DeviceExecute, DevicePeek, DeviceTrace, DirtyFetch, DirtyLog, DirtyRange, IoApicState, IrqLine,
    LocalApicState, MemoryRegion, MsrEntry, PlanStep, Run, Segment, StateRecord, TraceEntry, VcpuState, VcpuStateRequest,
}

// SAFETY: an array of a type without padding has none either, and every bit pattern of it is valid element by element.
unsafe impl<T: Pod, const N: usize> Pod for [T; N] {}

// Padding shows as a size that differs from the sum of the fields.
macro_rules! no_padding {
    ($($type:ty = $sum:expr),* $(,)?) => { $(const _: () = assert!(size_of::<$type>() == $sum);)* };
}

no_padding! {
    AttachDevice = (6 + 2 * MAX_PORT_RANGES) * 4,
    Capabilities = 8 + 4 * 4 + 4 * 8 + 32,
    ChipsetState = size_of::<IoApicState>() + 4 * 4,
    Clock = 2 * 8 + 2 * 4,
    CpuidEntry = 8 * 4,
    CpuidTable = 8 + 6 * 4,
    CreateVcpu = 2 * 4,
    CreateVm = 2 * 4,
    DescriptorTable = 8 + 2 * 4,
    DeviceCapture = 2 * 4 + 8 + 4 * 4,
    DeviceExecute = 2 * 4 + 8 + 2 * 4 + 8,
    DevicePeek = 2 * 4 + 8 + 6 * 4,
    DeviceTrace = 2 * 4 + 8 + 2 * 4 + 8,
    DirtyFetch = 8 + 2 * 4,
    DirtyLog = 2 * 4,
    DirtyRange = 2 * 8,
    IoApicState = 8 * IOAPIC_PINS + 4 * 4,
    IrqLine = 2 * 4,
    LocalApicState = 3 * 8 + 64 * 4,
    MemoryRegion = 4 * 8,
    MsrEntry = 2 * 4 + 8,
    PlanStep = 4 + 2 + 1 + 1 + 4 * 8,
    Run = 2 * 4 + 2 * 8 + 4 * 4,
    Segment = 8 + 2 * 4 + 4 * 2,
    StateRecord = 2 + 3 + 3 + 2 * 8,
    TraceEntry = 3 * 8 + 2 * 2 + 4,
    VcpuState = 16 * 8 + 15 * 8 + 8 * size_of::<Segment>() + 2 * size_of::<DescriptorTable>()
        + 6 * 4 + 8 + 2 * 4 + MAX_MSRS * size_of::<MsrEntry>() + size_of::<LocalApicState>() + XSAVE_SIZE,
    VcpuStateRequest = 8 + 2 * 4,
}
