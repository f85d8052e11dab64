// SPDX-License-Identifier: GPL-2.0
//! The local APIC (SDM volume 3, chapter 12 "Advanced programmable interrupt controller").
//!
//! On the path this is a model that the chipset asks for interrupts and gives the accesses to: the register page in
//! xAPIC mode, MSRs 800h to 8FFh in x2APIC mode, IA32_APIC_BASE and IA32_TSC_DEADLINE. What it sends to others
//! (interprocessor interrupts, the EOI of a level-triggered interrupt) is returned as an [`Effect`], so that it knows
//! nothing of the other APICs. Its state moves with the vCPU.
//!
//! Not modelled, because the version register says so: CMCI, and the suppression of EOI broadcasts. Remote read, and
//! the arbitration that only an APIC bus has, are absent as on all current processors.
//!
//! All times are VM nanoseconds given by the caller. Not internally synchronised: the caller holds the chipset's lock.
#![forbid(unsafe_code)]

mod access;
mod registers;
mod state;
mod timer;

#[cfg(test)]
mod tests;

pub use access::{IA32_APIC_BASE, IA32_TSC_DEADLINE, X2APIC_FIRST, X2APIC_LAST};
pub use timer::{CRYSTAL_HZ, MIN_PERIOD_NS};

use super::apic_message::{DeliveryMode, Destination, InterruptMessage, Trigger};
use registers::{
    DFR, ERROR_RECEIVE_VECTOR, ID, IRR, ISR, LDR, LVT_ERROR, LVT_LEVEL, LVT_LINT0, LVT_LINT1,
    LVT_MASKED, LVT_REMOTE_IRR, LVT_TIMER, SVR, SVR_ENABLE, TMR, TPR, VERSION, VERSION_VALUE,
};

/// IA32_APIC_BASE.BSP.
const BASE_BSP: u64 = 1 << 8;
/// IA32_APIC_BASE.EXTD: x2APIC mode.
const BASE_EXTD: u64 = 1 << 10;
/// IA32_APIC_BASE.EN: the local APIC is enabled.
const BASE_EN: u64 = 1 << 11;
/// The address of the register page after reset.
pub const DEFAULT_BASE: u64 = 0xfee0_0000;

/// What the guest's CPUID tells about its local APIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApicFeatures {
    /// CPUID.01H:ECX.x2APIC\[21\].
    pub x2apic: bool,
    /// CPUID.01H:ECX.TSC_Deadline\[24\].
    pub tsc_deadline: bool,
    /// MAXPHYADDR, CPUID.80000008H:EAX\[7:0\]; 36 to 52. Other values are taken as the nearest of these.
    pub physical_address_bits: u8,
}

/// An access that raises #GP(0) in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GeneralProtection;

/// What a write asks of the rest of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Effect {
    /// Nothing.
    None,
    /// A level-triggered interrupt with this vector ended; the I/O APICs have to know.
    EndOfInterrupt(u8),
    /// An interprocessor interrupt.
    Send(InterruptMessage),
}

/// What the local APIC asks of its processor core beside the interrupts of [`LocalApic::pending_vector`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Signals {
    /// An NMI is to be made pending.
    pub nmi: bool,
    /// An INIT is to be taken.
    pub init: bool,
    /// The vector of a start-up IPI.
    pub sipi: Option<u8>,
}

/// A local interrupt pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lint {
    /// LINT0, to which a PC wires the 8259 pair.
    Lint0,
    /// LINT1, to which a PC wires NMI.
    Lint1,
}

impl Lint {
    const fn lvt(self) -> usize {
        match self {
            Self::Lint0 => LVT_LINT0,
            Self::Lint1 => LVT_LINT1,
        }
    }
}

/// The local APIC of one vCPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalApic {
    id: u32,
    features: ApicFeatures,
    base: u64,
    /// The register page. ID, version and LDR are kept as the mode shows them; PPR is derived.
    registers: [u32; 64],
    /// Errors since the last write of ESR.
    errors: u32,
    /// When the count in the current-count register's place was the count.
    timer_start: u64,
    /// 0 when disarmed.
    tsc_deadline: u64,
    /// Levels of LINT0 and LINT1; `None` after a restore, until what drives the pin tells.
    lint: [Option<bool>; 2],
    signals: Signals,
}

impl LocalApic {
    /// The local APIC of the processor with APIC ID `id`, after reset: enabled in xAPIC mode but software-disabled, all
    /// LVT entries masked (12.4.7.1). Processor 0 is the bootstrap processor.
    pub const fn new(id: u32, features: ApicFeatures) -> Self {
        let bsp = if id == 0 { BASE_BSP } else { 0 };
        let mut apic = Self {
            id,
            features,
            base: DEFAULT_BASE | BASE_EN | bsp,
            registers: [0; 64],
            errors: 0,
            timer_start: 0,
            tsc_deadline: 0,
            lint: [Some(false); 2],
            signals: Signals {
                nmi: false,
                init: false,
                sipi: None,
            },
        };
        apic.reset_registers();
        apic
    }

    /// Sets what CPUID tells. Call before the guest runs.
    pub fn set_features(&mut self, features: ApicFeatures) {
        self.features = features;
    }

    const fn reset_registers(&mut self) {
        self.registers = [0; 64];
        self.registers[VERSION] = VERSION_VALUE;
        self.registers[DFR] = u32::MAX;
        self.registers[SVR] = 0xff;
        let mut lvt = LVT_TIMER;
        while lvt <= LVT_ERROR {
            self.registers[lvt] = LVT_MASKED;
            lvt += 1;
        }
        self.errors = 0;
        self.timer_start = 0;
        self.tsc_deadline = 0;
        self.show_ids();
    }

    /// Puts the identification registers into the form that the mode shows: eight bits at the top, or 32 bits with a
    /// logical ID that is derived (12.12.10.2).
    const fn show_ids(&mut self) {
        if self.is_x2apic() {
            self.registers[ID] = self.id;
            self.registers[LDR] = (self.id >> 4) << 16 | 1 << (self.id & 15);
        } else {
            self.registers[ID] = self.id << 24;
            self.registers[LDR] = 0;
        }
    }

    /// What an INIT does: all registers but the ID and IA32_APIC_BASE are as after reset (12.4.7.3).
    pub fn init(&mut self) {
        self.reset_registers();
    }

    /// The state in which firmware hands a PC over to the operating system in virtual wire mode (MultiProcessor
    /// Specification, 3.6.2.2): software-enabled, the 8259 pair through LINT0, NMI through LINT1. For guests that start
    /// without firmware.
    pub fn enter_virtual_wire(&mut self) {
        self.registers[SVR] = SVR_ENABLE | 0xff;
        self.registers[LVT_LINT0] = (DeliveryMode::ExtInt as u32) << 8;
        self.registers[LVT_LINT1] = (DeliveryMode::Nmi as u32) << 8;
    }

    /// IA32_APIC_BASE.EN: CPUID.01H:EDX.APIC\[9\] follows it.
    pub const fn is_enabled(&self) -> bool {
        self.base & BASE_EN != 0
    }

    /// Whether the registers are MSRs and the register page is gone.
    pub const fn is_x2apic(&self) -> bool {
        self.base & BASE_EXTD != 0
    }

    /// Whether `gpa` is in the register page.
    pub const fn claims(&self, gpa: u64) -> bool {
        self.is_enabled() && !self.is_x2apic() && gpa & !0xfff == self.page()
    }

    /// The guest-physical address of the register page.
    pub const fn page(&self) -> u64 {
        self.base & !0xfff
    }

    const fn software_enabled(&self) -> bool {
        self.registers[SVR] & SVR_ENABLE != 0
    }

    /// Whether this APIC is among the receivers of a message, `own` saying that it sent it (12.6.2).
    pub const fn is_destination(&self, destination: Destination, own: bool) -> bool {
        match destination {
            Destination::Myself => own,
            Destination::All => true,
            Destination::Others => !own,
            Destination::Physical(id) => id == Destination::BROADCAST || id == self.id,
            Destination::Logical(id) => self.matches_logical(id),
        }
    }

    const fn matches_logical(&self, destination: u32) -> bool {
        if destination == Destination::BROADCAST {
            return true;
        }
        let own = self.registers[LDR];
        if self.is_x2apic() {
            return destination >> 16 == own >> 16 && destination & own & 0xffff != 0;
        }
        let own = own >> 24;
        if self.registers[DFR] >> 28 == 0xf {
            // Flat model.
            return destination & own != 0;
        }
        // Cluster model: cluster 15 means all clusters.
        let cluster = destination >> 4 & 0xf;
        (cluster == 0xf || cluster == own >> 4) && destination & own & 0xf != 0
    }

    /// Takes a message that was found to be for this APIC. Returns false if it cannot be taken now, because the APIC is
    /// disabled: the sender may try again.
    pub fn receive(&mut self, message: &InterruptMessage) -> bool {
        if !self.is_enabled() {
            return false;
        }
        match message.delivery {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                if !self.software_enabled() {
                    return false;
                }
                self.request(message.vector, message.trigger);
            }
            DeliveryMode::Nmi => self.signals.nmi = true,
            DeliveryMode::Init => self.signals.init = true,
            DeliveryMode::StartUp => self.signals.sipi = Some(message.vector),
            // There is no system-management mode, and no 8259 behind an I/O APIC's pins.
            DeliveryMode::Smi | DeliveryMode::ExtInt => {}
        }
        true
    }

    /// Sets IRR and TMR, or logs an illegal vector.
    fn request(&mut self, vector: u8, trigger: Trigger) {
        if vector < 16 {
            self.log_error(ERROR_RECEIVE_VECTOR);
            return;
        }
        self.set_vector(IRR, vector, true);
        self.set_vector(TMR, vector, trigger == Trigger::Level);
    }

    /// Notes an error for ESR. The first since ESR was written raises the error interrupt.
    fn log_error(&mut self, error: u32) {
        let first = self.errors == 0;
        self.errors |= error;
        let lvt = self.registers[LVT_ERROR];
        let vector = lvt as u8;
        if !first || lvt & LVT_MASKED != 0 {
            return;
        }
        if vector < 16 {
            self.errors |= ERROR_RECEIVE_VECTOR;
        } else {
            self.request(vector, Trigger::Edge);
        }
    }

    /// Raises the interrupt of a source on the chip (12.5.1) as an edge.
    fn raise_local(&mut self, lvt: usize) {
        let entry = self.registers[lvt];
        if entry & LVT_MASKED != 0 {
            return;
        }
        match DeliveryMode::of(entry) {
            Some(DeliveryMode::Fixed) => self.request(entry as u8, Trigger::Edge),
            Some(DeliveryMode::Nmi) => self.signals.nmi = true,
            Some(DeliveryMode::Init) => self.signals.init = true,
            // ExtINT is a level that `passes_extint` looks at; the others do nothing here.
            _ => {}
        }
    }

    /// Sets the level of a local interrupt pin. The first level after [`Self::restore`] is the one that the pin had, and
    /// no edge.
    pub fn set_lint(&mut self, pin: Lint, level: bool) {
        let old = self.lint[pin as usize].replace(level);
        if !self.is_enabled() {
            return;
        }
        if level && old == Some(false) && !self.is_level_lint(pin) {
            self.raise_local(pin.lvt());
        }
        self.service_level_lints();
    }

    /// Whether a pin is level-sensitive: only in fixed mode, where the trigger bit says so.
    const fn is_level_lint(&self, pin: Lint) -> bool {
        let entry = self.registers[pin.lvt()];
        matches!(DeliveryMode::of(entry), Some(DeliveryMode::Fixed)) && entry & LVT_LEVEL != 0
    }

    /// Requests the interrupts of level-sensitive pins that are high and not yet being served.
    fn service_level_lints(&mut self) {
        for pin in [Lint::Lint0, Lint::Lint1] {
            let entry = self.registers[pin.lvt()];
            let waiting = entry & (LVT_MASKED | LVT_REMOTE_IRR) == 0;
            if self.lint[pin as usize] == Some(true)
                && waiting
                && self.is_level_lint(pin)
                && entry as u8 >= 16
            {
                self.registers[pin.lvt()] |= LVT_REMOTE_IRR;
                self.request(entry as u8, Trigger::Level);
            }
        }
    }

    /// Whether the 8259 pair on LINT0 reaches the processor core: ExtINT mode and not masked, or the local APIC is
    /// disabled and the pin is INTR (12.4.3).
    pub const fn passes_extint(&self) -> bool {
        if !self.is_enabled() {
            return true;
        }
        let entry = self.registers[LVT_LINT0];
        entry & LVT_MASKED == 0 && matches!(DeliveryMode::of(entry), Some(DeliveryMode::ExtInt))
    }

    /// The highest vector of a set of 256 bits at `first`.
    fn highest(&self, first: usize) -> Option<u8> {
        let group = (0..8).rev().find(|i| self.registers[first + i] != 0)?;
        let bit = 31 - self.registers[first + group].leading_zeros();
        Some((32 * group as u32 + bit) as u8)
    }

    fn vector(&self, first: usize, vector: u8) -> bool {
        self.registers[first + usize::from(vector / 32)] & 1 << (vector % 32) != 0
    }

    fn set_vector(&mut self, first: usize, vector: u8, value: bool) {
        let group = &mut self.registers[first + usize::from(vector / 32)];
        let bit = 1 << (vector % 32);
        *group = if value { *group | bit } else { *group & !bit };
    }

    /// PPR: the higher of task priority and the class of the interrupt in service (12.8.3.1).
    fn processor_priority(&self) -> u8 {
        let task = self.tpr();
        let in_service = self.highest(ISR).unwrap_or(0);
        if task >> 4 >= in_service >> 4 {
            task
        } else {
            in_service & 0xf0
        }
    }

    /// The vector of the highest request, whatever the priority of the processor: for the TPR threshold of the VMCS.
    pub fn highest_request(&self) -> Option<u8> {
        self.highest(IRR)
    }

    /// Whether `vector` is requested and not yet acknowledged.
    pub fn is_requested(&self, vector: u8) -> bool {
        self.vector(IRR, vector)
    }

    /// The vector that interrupts the processor now, if its class is above the processor priority.
    pub fn pending_vector(&self) -> Option<u8> {
        if !self.is_enabled() {
            return None;
        }
        self.highest(IRR)
            .filter(|vector| vector >> 4 > self.processor_priority() >> 4)
    }

    /// The processor takes the pending vector: it moves from request to service.
    pub fn acknowledge(&mut self) -> Option<u8> {
        let vector = self.pending_vector()?;
        self.set_vector(IRR, vector, false);
        self.set_vector(ISR, vector, true);
        Some(vector)
    }

    /// A write of EOI: ends the highest interrupt in service (12.8.5).
    fn end_of_interrupt(&mut self) -> Effect {
        let Some(vector) = self.highest(ISR) else {
            return Effect::None;
        };
        self.set_vector(ISR, vector, false);
        if !self.vector(TMR, vector) {
            return Effect::None;
        }
        for pin in [Lint::Lint0, Lint::Lint1] {
            let entry = &mut self.registers[pin.lvt()];
            if *entry as u8 == vector {
                *entry &= !LVT_REMOTE_IRR;
            }
        }
        self.service_level_lints();
        Effect::EndOfInterrupt(vector)
    }

    /// The task-priority register.
    pub const fn tpr(&self) -> u8 {
        self.registers[TPR] as u8
    }

    /// CR8: the class of the task priority (12.8.6).
    pub const fn cr8(&self) -> u64 {
        self.tpr() as u64 >> 4
    }

    /// MOV to CR8. Only the low four bits are taken.
    pub fn set_cr8(&mut self, value: u64) {
        self.registers[TPR] = ((value & 0xf) << 4) as u32;
    }

    /// Takes what the APIC asks of the processor core.
    pub fn take_signals(&mut self) -> Signals {
        core::mem::take(&mut self.signals)
    }
}
