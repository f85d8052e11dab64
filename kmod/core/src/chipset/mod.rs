// SPDX-License-Identifier: GPL-2.0
//! The chipset that every VM has: interrupt controllers, timers and ACPI fixed hardware, joined by their lines.
//!
//! ```text
//!  ISA line n ---+--> 8259 input n ------------------> INTR --> LINT0 --+
//!                |                                                      |
//!                +--> I/O APIC pin n (line 0: pin 2) --> messages --> local APIC --> processor core
//!  8254 OUT0 -----> ISA line 0
//!  ACPI SCI ------> ISA line 9 (together with a device on it)
//! ```
//!
//! Without the two APICs, INTR goes straight to the processor core; so it does while the local APIC is disabled.
//!
//! On the path it stands between the exit and the models: the vCPU gives it the guest's accesses to ports (`ports.rs`),
//! device memory and MSRs (`apics.rs`), asks it for the interrupt to inject and for the time of the next event. It is
//! deterministic: all times are VM nanoseconds given by the caller. It is not synchronised either; the caller holds the
//! lock that guards it.
//!
//! The 8259 pair and the 8254 are recorded devices, whose state moves by replay through [`Chipset::i8259_mut`] and
//! [`Chipset::i8254_at`]; the local APIC's moves with its vCPU; the rest is [`pvmm_uapi::ChipsetState`]. Restoring only
//! sets state and delivers nothing, so that the three can come in any order (the clock first); the first
//! [`Chipset::advance`] after it takes up the work.
#![forbid(unsafe_code)]

mod apics;
mod ports;
mod state;

#[cfg(test)]
mod tests;

use crate::clock::GuestClock;
use crate::models::acpi_pm::{AcpiPm, SCI_IRQ};
use crate::models::i8254::I8254At;
use crate::models::ioapic::IoApic;
use crate::models::local_apic::{Lint, LocalApic};
use crate::models::{I8259Pair, I8254};

pub use crate::models::local_apic::{ApicFeatures, GeneralProtection, Signals};

/// The ISA interrupt of the 8254.
const TIMER_IRQ: u8 = 0;
/// The I/O APIC pin of the 8254: the MADT needs an override of ISA 0 to GSI 2.
const TIMER_PIN: u8 = 2;
/// ISA interrupts that a device can have: all but the timer and the cascade.
const DEVICE_IRQS: u16 = 0xfffa;

/// Whether `irq` is an ISA interrupt that a device can have.
const fn is_device_irq(irq: u8) -> bool {
    irq < 16 && DEVICE_IRQS & 1 << irq != 0
}

/// What the guest asked of the machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Requests {
    /// Power off (ACPI S5).
    pub soft_off: bool,
    /// Reset the machine.
    pub reset: bool,
}

/// The local APIC of the one vCPU, and the I/O APIC.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Apics {
    local: LocalApic,
    io: IoApic,
}

/// The chipset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chipset {
    clock: GuestClock,
    i8259: I8259Pair,
    i8254: I8254,
    acpi_pm: AcpiPm,
    apics: Option<Apics>,
    /// Levels of the ISA lines as their devices drive them.
    isa_levels: u16,
    /// Level of the SCI as line 9 has it.
    sci: bool,
    reset: bool,
}

impl Chipset {
    /// A chipset after reset, with a local APIC and an I/O APIC if `apic` is given.
    pub const fn new(apic: Option<ApicFeatures>, clock: GuestClock) -> Self {
        let apics = match apic {
            Some(features) => Some(Apics {
                local: LocalApic::new(0, features),
                io: IoApic::new(),
            }),
            None => None,
        };
        Self {
            clock,
            i8259: I8259Pair::new(),
            i8254: I8254::new(),
            acpi_pm: AcpiPm::new(),
            apics,
            isa_levels: 0,
            sci: false,
            reset: false,
        }
    }

    /// Tells the guest's TSC line, at the start and whenever the guest writes its TSC or IA32_TSC_ADJUST.
    pub fn set_clock(&mut self, clock: GuestClock) {
        self.clock = clock;
    }

    /// Tells what the guest's CPUID says about its local APIC. Without effect in a machine without one.
    pub fn set_apic_features(&mut self, features: ApicFeatures) {
        if let Some(apics) = &mut self.apics {
            apics.local.set_features(features);
        }
    }

    /// Puts the local APIC into virtual wire mode, as firmware leaves it. For guests that start without firmware.
    pub fn enter_virtual_wire(&mut self) {
        if let Some(apics) = &mut self.apics {
            apics.local.enter_virtual_wire();
        }
    }

    /// The 8259 pair, for capture and replay.
    pub fn i8259_mut(&mut self) -> &mut I8259Pair {
        &mut self.i8259
    }

    /// The 8254 at `now`, for capture and replay.
    pub fn i8254_at(&mut self, now: u64) -> I8254At<'_> {
        self.i8254.at(now)
    }

    /// Lets the timers catch up with `now`. Call before the interrupt is looked for.
    pub fn advance(&mut self, now: u64) {
        self.carry_intr();
        if let Some(apics) = &mut self.apics {
            apics.local.advance(now, self.clock.tsc_at(now));
        }
        self.i8254.advance(now);
        self.acpi_pm.advance(now);
        self.settle();
    }

    /// When to call [`Self::advance`] next, in VM nanoseconds; a value not above `now` means at once. `None` if no timer
    /// will raise an interrupt. The answer holds until the next call of anything else.
    pub fn next_deadline(&mut self, now: u64) -> Option<u64> {
        let clock = self.clock.told_at(now);
        let local = self
            .apics
            .as_ref()
            .and_then(|apics| apics.local.next_deadline(&clock));
        // Edges that nobody would see are counted when somebody looks; so are those that come while one waits.
        let timer = if self.hears_timer() && !self.has_tick_waiting() {
            self.i8254.next_edge(now)
        } else {
            None
        };
        [local, timer, self.acpi_pm.next_deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Sets the level of an ISA interrupt line (1, 3 to 15); others belong to the chipset and are ignored. A level that
    /// the line already has changes nothing, so a request of [`Self::pulse_isa_line`] stays when the line is told to be
    /// low.
    pub fn set_isa_line(&mut self, irq: u8, level: bool) {
        if !is_device_irq(irq) || level == (self.isa_levels & 1 << irq != 0) {
            return;
        }
        if level {
            self.isa_levels |= 1 << irq;
        } else {
            self.isa_levels &= !(1 << irq);
        }
        self.drive(irq);
        self.settle();
    }

    /// One edge on an ISA interrupt line (1, 3 to 15), for a source of which only edges are seen. The line is low
    /// afterwards, but the request stays until it is acknowledged.
    pub fn pulse_isa_line(&mut self, irq: u8) {
        if !is_device_irq(irq) {
            return;
        }
        self.isa_levels &= !(1 << irq);
        self.drive(irq);
        self.pulse(irq, irq);
        self.settle();
    }

    /// Presses the power button.
    pub fn press_power_button(&mut self) {
        self.acpi_pm.press_power_button();
        self.settle();
    }

    /// Takes what the guest asked of the machine.
    pub fn take_requests(&mut self) -> Requests {
        Requests {
            soft_off: self.acpi_pm.take_soft_off(),
            reset: core::mem::take(&mut self.reset),
        }
    }

    /// Carries the level of an ISA line to its inputs.
    fn drive(&mut self, irq: u8) {
        self.carry_intr();
        let level = self.isa_levels & 1 << irq != 0 || (irq == SCI_IRQ && self.sci);
        self.i8259.set_line(irq, level);
        if let Some(Apics { local, io }) = &mut self.apics {
            io.set_line(irq, level, &mut |message| apics::deliver(local, message));
        }
    }

    /// One edge on an ISA line and its I/O APIC pin.
    fn pulse(&mut self, irq: u8, pin: u8) {
        self.carry_intr();
        self.i8259.pulse(irq);
        if let Some(Apics { local, io }) = &mut self.apics {
            let mut bus = |message: &_| apics::deliver(local, message);
            io.set_line(pin, true, &mut bus);
            io.set_line(pin, false, &mut bus);
        }
    }

    /// Brings all lines into agreement after anything has changed.
    fn settle(&mut self) {
        if self.sci != self.acpi_pm.sci() {
            self.sci = self.acpi_pm.sci();
            self.drive(SCI_IRQ);
        }
        self.deliver_ticks();
        self.carry_intr();
        if let Some(Apics { local, io }) = &mut self.apics {
            io.retry(&mut |message| apics::deliver(local, message));
        }
    }

    /// Carries INTR of the 8259 pair to LINT0. Also before anything changes: the first level after a restore is the one
    /// that was saved, and what comes then is an edge.
    fn carry_intr(&mut self) {
        if let Some(apics) = &mut self.apics {
            apics.local.set_lint(Lint::Lint0, self.i8259.pending());
        }
    }

    /// Turns edges of OUT0 into interrupts, one at a time: the next waits until the one before is acknowledged, so
    /// that a guest whose host was late counts every tick.
    fn deliver_ticks(&mut self) {
        while self.i8254.backlog() > 0 && !self.has_tick_waiting() {
            self.i8254.take_edge();
            self.pulse(TIMER_IRQ, TIMER_PIN);
        }
    }

    /// Whether the processor can get the 8259 pair's interrupts.
    fn passes_extint(&self) -> bool {
        self.apics
            .as_ref()
            .is_none_or(|apics| apics.local.passes_extint())
    }

    /// Whether a tick reaches the processor, by one way or the other.
    fn hears_timer(&self) -> bool {
        let by_ioapic = self
            .apics
            .as_ref()
            .is_some_and(|apics| !apics.io.is_masked(TIMER_PIN));
        by_ioapic || (self.passes_extint() && !self.i8259.masked(TIMER_IRQ))
    }

    /// Whether a tick is on its way that the processor has not acknowledged, on a way that leads to it.
    fn has_tick_waiting(&self) -> bool {
        let in_8259 = self.passes_extint()
            && !self.i8259.masked(TIMER_IRQ)
            && self.i8259.requested(TIMER_IRQ);
        let in_apic = self.apics.as_ref().is_some_and(|apics| {
            apics
                .io
                .is_waiting(TIMER_PIN, |vector| apics.local.is_requested(vector))
        });
        in_8259 || in_apic
    }

    /// Whether INTR of the processor core is asserted.
    pub fn pending_interrupt(&self) -> bool {
        let by_local_apic = self
            .apics
            .as_ref()
            .is_some_and(|apics| apics.local.pending_vector().is_some());
        by_local_apic || (self.passes_extint() && self.i8259.pending())
    }

    /// The interrupt acknowledge cycle: the vector to inject, or `None` if there is no request. An interrupt of the 8259
    /// pair comes first, since the local APIC gives ExtINT no priority to compare.
    pub fn acknowledge_interrupt(&mut self) -> Option<u8> {
        let vector = if self.passes_extint() && self.i8259.pending() {
            self.i8259.acknowledge()
        } else {
            self.apics.as_mut()?.local.acknowledge()?
        };
        self.settle();
        Some(vector)
    }
}
