// SPDX-License-Identifier: GPL-2.0
//! What other threads and interrupt handlers may do to a vCPU: raise a line and get it out of its window or its sleep.
//!
//! The order on both sides is: publish, then look. A vCPU publishes its CPU when a window opens and then takes the lines; a
//! caller sets a line and then looks for the CPU. So either the vCPU sees the line, or the caller sees the CPU and
//! interrupts it.
#![forbid(unsafe_code)]

use crate::record::trace::Tap;
use core::sync::atomic::{AtomicU32, Ordering};
use pvmm_hostabi::{CpuId, Host, IrqSink, OutOfMemory, WaitQueue};

/// Requests to a vCPU.
pub struct Control<H: Host> {
    /// The CPU of the open window plus 1; 0 if none is open.
    window: AtomicU32,
    /// Lines that have risen since they were last taken.
    rose: AtomicU32,
    /// Present levels.
    levels: AtomicU32,
    /// Whether either has changed since they were last taken.
    changed: AtomicU32,
    tap: Tap<H>,
    queue: H::WaitQueue,
}

impl<H: Host> Control<H> {
    /// A control without requests. Process context.
    pub fn new() -> Result<Self, OutOfMemory> {
        Ok(Self {
            window: AtomicU32::new(0),
            rose: AtomicU32::new(0),
            levels: AtomicU32::new(0),
            changed: AtomicU32::new(0),
            tap: Tap::new()?,
            queue: H::wait_queue()?,
        })
    }

    /// A window opens on `cpu`.
    pub fn enter(&self, cpu: CpuId) {
        self.window.store(cpu.0 + 1, Ordering::SeqCst);
    }

    /// The window has closed.
    pub fn leave(&self) {
        self.window.store(0, Ordering::SeqCst);
    }

    /// Where accesses can be watched.
    pub fn tap(&self) -> &Tap<H> {
        &self.tap
    }

    /// Where a halted vCPU waits.
    pub fn queue(&self) -> &H::WaitQueue {
        &self.queue
    }

    /// Whether a line has changed.
    pub fn has_lines(&self) -> bool {
        self.changed.load(Ordering::SeqCst) != 0
    }

    /// Takes the lines: those that have risen, and all levels.
    pub fn take_lines(&self) -> (u32, u32) {
        self.changed.store(0, Ordering::SeqCst);
        (
            self.rose.swap(0, Ordering::SeqCst),
            self.levels.load(Ordering::SeqCst),
        )
    }

    /// Puts back the levels of a captured state.
    pub fn set_levels(&self, levels: u32) {
        self.levels.store(levels & 0xffff, Ordering::SeqCst);
        self.changed.store(1, Ordering::SeqCst);
    }

    fn notify(&self) {
        self.changed.store(1, Ordering::SeqCst);
        let window = self.window.load(Ordering::SeqCst);
        if window != 0 {
            H::kick(CpuId(window - 1));
        }
        self.queue.wake();
    }

    /// Sets the level of a line, 0 to 15. Any context.
    pub fn set_line(&self, irq: u32, level: bool) {
        let bit = 1 << (irq & 15);
        if level {
            if self.levels.fetch_or(bit, Ordering::SeqCst) & bit == 0 {
                self.rose.fetch_or(bit, Ordering::SeqCst);
            }
        } else {
            self.levels.fetch_and(!bit, Ordering::SeqCst);
        }
        self.notify();
    }

    /// Raises and lowers a line. Any context.
    pub fn pulse_line(&self, irq: u32) {
        self.rose.fetch_or(1 << (irq & 15), Ordering::SeqCst);
        self.notify();
    }
}

/// The interrupt line of a host device, tied to a line of the guest.
pub struct DeviceLine<H: Host> {
    /// The vCPU.
    pub control: H::Shared<Control<H>>,
    /// The guest's line.
    pub irq: u32,
}

impl<H: Host> IrqSink for DeviceLine<H> {
    fn interrupt(&self) {
        self.control.pulse_line(self.irq);
    }
}
