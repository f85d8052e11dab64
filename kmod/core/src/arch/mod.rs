// SPDX-License-Identifier: GPL-2.0
//! Processor architectures: running guest code and seeing its exits.
//!
//! This is where a guest access enters the path. What is particular to VT-x stays below [`x86::vmx`]; the rest of the core
//! sees a vCPU that runs until an [`Exit`] which it could not handle itself.

// One function that makes zeroed values of types for which that is sound.
pub mod x86;
#[allow(unsafe_code)]
mod zeroed;

pub use zeroed::zeroed;

use crate::iospace::{Direction, Width};
use pvmm_hostabi::Gpa;

/// Why a run of guest code ended, when it needs something that cannot be done with interrupts off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// The host wants the CPU, or a request waits for the vCPU. Run again.
    Host,
    /// The guest waits for an interrupt.
    Halt,
    /// The guest touched guest-physical memory that is not mapped with that right.
    Memory {
        /// Where.
        gpa: Gpa,
        /// Whether it wrote.
        write: bool,
    },
    /// The guest needs the four PDPTEs of PAE paging from its memory; what needs them comes again.
    PageDirectoryPointers {
        /// Where the first is.
        gpa: Gpa,
    },
    /// The guest accessed a port that userspace serves.
    Port {
        /// The port.
        port: u16,
        /// Width.
        width: Width,
        /// Which way.
        direction: Direction,
        /// The value written.
        value: u32,
    },
    /// The guest executed a string I/O instruction; the vCPU's snapshot has its registers.
    StringPort {
        /// The port.
        port: u16,
        /// Width of one element.
        width: Width,
        /// Which way: a read is INS.
        direction: Direction,
        /// Whether a REP prefix repeats it.
        repeat: bool,
        /// Linear address of the element in memory.
        linear: u64,
        /// Bytes of the address size: 2, 4 or 8.
        address_bytes: u8,
        /// Bytes of the instruction.
        length: u8,
    },
    /// The guest shut down: triple fault.
    Shutdown,
    /// The monitor can't go on with this guest.
    Error(ExitError),
    /// The hardware is not to be had: another hypervisor took it.
    Unavailable,
}

/// What keeps the monitor from going on with a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitError {
    /// VM entry found invalid guest state; the exit qualification (SDM volume 3, 28.8).
    InvalidGuestState(u64),
    /// A VMX instruction failed; the VM-instruction error (SDM volume 3, 32.4).
    VmInstruction(u32),
    /// An exit reason that nobody handles.
    UnknownExit(u32),
}
