// SPDX-License-Identifier: GPL-2.0
//! The I/O APIC: Intel 82093AA (data sheet 290566), 24 pins.
//!
//! On the path this is a model: the chipset gives it the guest's accesses to FEC00000h and the levels of its pins, and
//! carries the messages that it sends to the local APIC. It hands messages out through a callback that tells whether a
//! local APIC took them; until one does, the delivery status says "send pending" and [`IoApic::retry`] sends again.
//!
//! A level here means "asserted": the polarity bit is kept for software, but the wires are taken to be as software says,
//! so that it has no effect. Messages with delivery mode ExtINT have no 8259 behind them and end at the local APIC.
//!
//! The caller serializes accesses.
#![forbid(unsafe_code)]

use super::apic_message::{DeliveryMode, Destination, InterruptMessage, Trigger};
use super::InvalidState;
use crate::iospace::Width;
use pvmm_uapi::{IoApicState, IOAPIC_PINS};

/// Guest-physical address of the registers (the PC's convention; the MADT tells it to the guest).
pub const IOAPIC_BASE: u64 = 0xfec0_0000;
/// Length of the range at [`IOAPIC_BASE`] in bytes. Only IOREGSEL and IOWIN are in it.
pub const IOAPIC_LENGTH: u64 = 0x1000;

/// Offset of IOREGSEL.
const IOREGSEL: u64 = 0x00;
/// Offset of IOWIN.
const IOWIN: u64 = 0x10;
/// Index of IOAPICID; bits 27:24.
const IOAPICID: u8 = 0;
/// Index of IOAPICVER.
const IOAPICVER: u8 = 1;
/// Index of IOAPICARB; bits 27:24, as the ID.
const IOAPICARB: u8 = 2;
/// Index of the low half of IOREDTBL0.
const IOREDTBL: u8 = 0x10;
/// The last index of IOREDTBL.
const IOREDTBL_LAST: u8 = IOREDTBL + 2 * IOAPIC_PINS as u8 - 1;
/// IOAPICVER: version 11h, 24 entries.
const VERSION: u32 = 0x0017_0011;
/// The bits of IOAPICID that exist.
const ID_BITS: u32 = 0x0f00_0000;

/// Redirection entry: destination is logical.
const LOGICAL: u64 = 1 << 11;
/// Redirection entry: delivery status, send pending.
const SEND_PENDING: u64 = 1 << 12;
/// Redirection entry: remote IRR.
const REMOTE_IRR: u64 = 1 << 14;
/// Redirection entry: level-triggered.
const LEVEL: u64 = 1 << 15;
/// Redirection entry: masked.
const MASKED: u64 = 1 << 16;
/// Redirection entry: what software can write.
const WRITABLE: u64 = 0xff00_0000_0001_afff;

/// The I/O APIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoApic {
    /// IOREDTBL, without the delivery status.
    redirection: [u64; IOAPIC_PINS],
    select: u8,
    id: u32,
    /// Level of each pin.
    levels: u32,
    /// Edges that no local APIC has taken yet.
    pending: u32,
}

/// How a message reaches the local APICs: true if one of them took it.
pub type Bus<'a> = &'a mut dyn FnMut(&InterruptMessage) -> bool;

impl Default for IoApic {
    fn default() -> Self {
        Self::new()
    }
}

impl IoApic {
    /// The I/O APIC after reset: all pins masked.
    pub const fn new() -> Self {
        Self {
            redirection: [MASKED; IOAPIC_PINS],
            select: 0,
            id: 0,
            levels: 0,
            pending: 0,
        }
    }

    /// Whether `gpa` is in the I/O APIC's range.
    pub const fn claims(gpa: u64) -> bool {
        gpa >= IOAPIC_BASE && gpa - IOAPIC_BASE < IOAPIC_LENGTH
    }

    /// Reads at `offset` in the range. Registers are read 32 bits wide; narrower reads return their low bits, and
    /// anything but IOREGSEL and IOWIN reads as zero.
    pub fn mmio_read(&self, offset: u64, width: Width) -> u64 {
        let value = match offset {
            IOREGSEL => u32::from(self.select),
            IOWIN => self.read_selected(),
            _ => 0,
        };
        u64::from(value) & width.mask()
    }

    /// Writes at `offset` in the range. IOREGSEL takes the low eight bits of any width, IOWIN only 32 bits; anything else
    /// is ignored.
    pub fn mmio_write(&mut self, offset: u64, width: Width, value: u64, bus: Bus<'_>) {
        match offset {
            IOREGSEL => self.select = value as u8,
            IOWIN if matches!(width, Width::W4 | Width::W8) => {
                self.write_selected(value as u32, bus);
            }
            _ => {}
        }
    }

    fn read_selected(&self) -> u32 {
        match self.select {
            IOAPICID | IOAPICARB => self.id,
            IOAPICVER => VERSION,
            IOREDTBL..=IOREDTBL_LAST => {
                let pin = usize::from((self.select - IOREDTBL) / 2);
                let status = if self.pending & 1 << pin != 0 {
                    SEND_PENDING
                } else {
                    0
                };
                let entry = self.redirection[pin] | status;
                if self.select & 1 == 0 {
                    entry as u32
                } else {
                    (entry >> 32) as u32
                }
            }
            _ => 0,
        }
    }

    fn write_selected(&mut self, value: u32, bus: Bus<'_>) {
        match self.select {
            IOAPICID => self.id = value & ID_BITS,
            IOREDTBL..=IOREDTBL_LAST => {
                let pin = usize::from((self.select - IOREDTBL) / 2);
                let shift = 32 * (self.select & 1);
                let bits = WRITABLE & (0xffff_ffff << shift);
                let value = u64::from(value) << shift;
                let entry = &mut self.redirection[pin];
                *entry = (*entry & !bits) | (value & bits);
                if *entry & LEVEL == 0 {
                    // An edge has no remote IRR. Software of this version, which has no EOI register, ends a level in
                    // this way.
                    *entry &= !REMOTE_IRR;
                } else {
                    self.pending &= !(1 << pin);
                }
                self.service(pin, bus);
            }
            _ => {}
        }
    }

    /// Sets the level of a pin, 0 to 23; others are ignored. The rising edge of an edge-triggered pin that is masked is
    /// lost, as the data sheet says.
    pub fn set_line(&mut self, pin: u8, level: bool, bus: Bus<'_>) {
        let pin = usize::from(pin);
        let Some(entry) = self.redirection.get(pin).copied() else {
            return;
        };
        let bit = 1 << pin;
        let rising = level && self.levels & bit == 0;
        if level {
            self.levels |= bit;
        } else {
            self.levels &= !bit;
        }
        if rising && entry & (LEVEL | MASKED) == 0 {
            self.pending |= bit;
        }
        self.service(pin, bus);
    }

    /// Sends what a pin has to send: a latched edge, or a level that is not being served.
    fn service(&mut self, pin: usize, bus: Bus<'_>) {
        let bit = 1 << pin;
        let entry = self.redirection[pin];
        if entry & MASKED != 0 {
            return;
        }
        let level = entry & LEVEL != 0;
        let wanted = if level {
            self.levels & bit != 0 && entry & REMOTE_IRR == 0
        } else {
            self.pending & bit != 0
        };
        if !wanted {
            return;
        }
        let Some(delivery) = DeliveryMode::of(entry as u32) else {
            // A reserved delivery mode goes nowhere.
            self.pending &= !bit;
            return;
        };
        // "Level" counts for the two modes with a vector; the others are edges whatever the bit says.
        let with_vector = matches!(delivery, DeliveryMode::Fixed | DeliveryMode::LowestPriority);
        let message = InterruptMessage {
            vector: entry as u8,
            delivery,
            trigger: if level && with_vector {
                Trigger::Level
            } else {
                Trigger::Edge
            },
            destination: Destination::from_8_bits((entry >> 56) as u8, entry & LOGICAL != 0),
        };
        if bus(&message) {
            self.pending &= !bit;
            if level {
                self.redirection[pin] |= REMOTE_IRR;
            }
        }
    }

    /// Whether a pin is masked; pins above 23 are.
    pub fn is_masked(&self, pin: u8) -> bool {
        self.redirection
            .get(usize::from(pin))
            .is_none_or(|entry| entry & MASKED != 0)
    }

    /// Whether an interrupt of a pin is on its way and not yet acknowledged by the processor: pending here, being
    /// served as a level, or in the IRR of the local APIC, which `requested` looks at. A masked pin has none.
    pub fn is_waiting(&self, pin: u8, requested: impl FnOnce(u8) -> bool) -> bool {
        let Some(entry) = self.redirection.get(usize::from(pin)) else {
            return false;
        };
        entry & MASKED == 0
            && (self.pending & 1 << pin != 0 || entry & REMOTE_IRR != 0 || requested(*entry as u8))
    }

    /// Sends again what no local APIC took before. Call when a local APIC has changed.
    pub fn retry(&mut self, bus: Bus<'_>) {
        let mut waiting = self.pending | self.levels;
        while waiting != 0 {
            let pin = waiting.trailing_zeros() as usize;
            waiting &= waiting - 1;
            self.service(pin, bus);
        }
    }

    /// The EOI message of a local APIC: the level-triggered pins with this vector are no longer being served, and ask
    /// again if they are still asserted.
    pub fn end_of_interrupt(&mut self, vector: u8, bus: Bus<'_>) {
        for pin in 0..IOAPIC_PINS {
            let entry = self.redirection[pin];
            if entry & LEVEL != 0 && entry & REMOTE_IRR != 0 && entry as u8 == vector {
                self.redirection[pin] &= !REMOTE_IRR;
                self.service(pin, bus);
            }
        }
    }

    /// The state.
    pub const fn save(&self) -> IoApicState {
        let mut redirection = self.redirection;
        let mut pin = 0;
        while pin < IOAPIC_PINS {
            if self.pending & 1 << pin != 0 {
                redirection[pin] |= SEND_PENDING;
            }
            pin += 1;
        }
        IoApicState {
            redirection,
            select: self.select as u32,
            id: self.id,
            levels: self.levels,
            pending: self.pending,
        }
    }

    /// Takes a state that [`Self::save`] made on another host. Nothing is sent.
    ///
    /// # Errors
    /// Names the first register with a value that it can never have; then nothing has changed.
    pub fn restore(&mut self, state: &IoApicState) -> Result<(), InvalidState> {
        let pins = (1u32 << IOAPIC_PINS) - 1;
        let mut new = Self {
            redirection: state.redirection,
            select: state.select as u8,
            id: state.id,
            levels: state.levels,
            pending: state.pending,
        };
        if state.select > 0xff {
            return Err(InvalidState::new("IOREGSEL", state.select.into()));
        }
        if state.id & !ID_BITS != 0 {
            return Err(InvalidState::new("IOAPICID", state.id.into()));
        }
        if state.levels & !pins != 0 {
            return Err(InvalidState::new(
                "I/O APIC pin levels",
                state.levels.into(),
            ));
        }
        if state.pending & !pins != 0 {
            return Err(InvalidState::new(
                "I/O APIC pending edges",
                state.pending.into(),
            ));
        }
        for (pin, entry) in (0u32..).zip(&mut new.redirection) {
            let pending = state.pending & 1 << pin != 0;
            let level = *entry & LEVEL != 0;
            let impossible = *entry & !(WRITABLE | SEND_PENDING | REMOTE_IRR) != 0
                || (*entry & SEND_PENDING != 0) != pending
                || (pending && level)
                || (*entry & REMOTE_IRR != 0 && !level);
            if impossible {
                return Err(InvalidState::indexed("IOREDTBL", pin, *entry));
            }
            *entry &= !SEND_PENDING;
        }
        *self = new;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    /// A bus that takes everything (or nothing) and remembers it.
    #[derive(Default)]
    struct Taken {
        messages: Vec<InterruptMessage>,
        refuse: bool,
    }

    impl Taken {
        fn bus(&mut self) -> impl FnMut(&InterruptMessage) -> bool + '_ {
            |message| {
                self.messages.push(*message);
                !self.refuse
            }
        }

        fn take(&mut self) -> usize {
            std::mem::take(&mut self.messages).len()
        }
    }

    fn read(ioapic: &mut IoApic, index: u8) -> u32 {
        ioapic.mmio_write(IOREGSEL, Width::W4, index.into(), &mut |_| false);
        ioapic.mmio_read(IOWIN, Width::W4) as u32
    }

    fn write(ioapic: &mut IoApic, taken: &mut Taken, index: u8, value: u32) {
        let mut bus = taken.bus();
        ioapic.mmio_write(IOREGSEL, Width::W4, index.into(), &mut bus);
        ioapic.mmio_write(IOWIN, Width::W4, value.into(), &mut bus);
    }

    fn set(ioapic: &mut IoApic, taken: &mut Taken, pin: u8, level: bool) {
        ioapic.set_line(pin, level, &mut taken.bus());
    }

    #[test]
    fn the_registers_after_reset_are_those_of_the_data_sheet() {
        let mut ioapic = IoApic::new();
        assert_eq!(read(&mut ioapic, 0), 0);
        assert_eq!(read(&mut ioapic, 1), 0x0017_0011);
        for index in (0x10..0x40).step_by(2) {
            assert_eq!(read(&mut ioapic, index), 0x10000);
            assert_eq!(read(&mut ioapic, index + 1), 0);
        }
        assert_eq!(read(&mut ioapic, 0x40), 0);
    }

    #[test]
    fn arbitration_id_follows_the_id() {
        let (mut ioapic, mut taken) = (IoApic::new(), Taken::default());
        write(&mut ioapic, &mut taken, 0, 0xffff_ffff);
        assert_eq!(read(&mut ioapic, 0), 0x0f00_0000);
        assert_eq!(read(&mut ioapic, 2), 0x0f00_0000);
    }

    #[test]
    fn an_edge_sends_one_message_with_the_entry_s_fields() {
        let (mut ioapic, mut taken) = (IoApic::new(), Taken::default());
        write(&mut ioapic, &mut taken, 0x13, 0x0300_0000);
        write(&mut ioapic, &mut taken, 0x12, 0x0000_0941);
        set(&mut ioapic, &mut taken, 1, true);
        set(&mut ioapic, &mut taken, 1, true);
        let message = InterruptMessage {
            vector: 0x41,
            delivery: DeliveryMode::LowestPriority,
            trigger: Trigger::Edge,
            destination: Destination::Logical(3),
        };
        assert_eq!(taken.messages, [message]);
        set(&mut ioapic, &mut taken, 1, false);
        set(&mut ioapic, &mut taken, 1, true);
        assert_eq!(taken.take(), 2);
    }

    #[test]
    fn an_edge_of_a_masked_pin_is_lost() {
        let (mut ioapic, mut taken) = (IoApic::new(), Taken::default());
        set(&mut ioapic, &mut taken, 4, true);
        write(&mut ioapic, &mut taken, 0x18, 0x34);
        assert_eq!(taken.take(), 0);
    }

    #[test]
    fn a_level_asks_again_after_the_eoi_while_it_is_asserted() {
        let (mut ioapic, mut taken) = (IoApic::new(), Taken::default());
        write(&mut ioapic, &mut taken, 0x22, 0x0000_8039);
        set(&mut ioapic, &mut taken, 9, true);
        assert_eq!(taken.take(), 1);
        assert_eq!(read(&mut ioapic, 0x22), 0x0000_c039, "remote IRR");
        set(&mut ioapic, &mut taken, 9, false);
        set(&mut ioapic, &mut taken, 9, true);
        assert_eq!(taken.take(), 0, "still being served");
        ioapic.end_of_interrupt(0x38, &mut taken.bus());
        assert_eq!(taken.take(), 0, "another vector");
        ioapic.end_of_interrupt(0x39, &mut taken.bus());
        assert_eq!(taken.take(), 1);
        set(&mut ioapic, &mut taken, 9, false);
        ioapic.end_of_interrupt(0x39, &mut taken.bus());
        assert_eq!(taken.take(), 0);
        assert_eq!(read(&mut ioapic, 0x22), 0x0000_8039);
    }

    #[test]
    fn a_masked_level_is_sent_when_it_is_unmasked() {
        let (mut ioapic, mut taken) = (IoApic::new(), Taken::default());
        write(&mut ioapic, &mut taken, 0x22, 0x0001_8039);
        set(&mut ioapic, &mut taken, 9, true);
        assert_eq!(taken.take(), 0);
        write(&mut ioapic, &mut taken, 0x22, 0x0000_8039);
        assert_eq!(taken.take(), 1);
    }

    #[test]
    fn switching_to_edge_and_back_clears_the_remote_irr() {
        let (mut ioapic, mut taken) = (IoApic::new(), Taken::default());
        write(&mut ioapic, &mut taken, 0x22, 0x0000_8039);
        set(&mut ioapic, &mut taken, 9, true);
        write(&mut ioapic, &mut taken, 0x22, 0x0001_0039);
        write(&mut ioapic, &mut taken, 0x22, 0x0001_8039);
        assert_eq!(read(&mut ioapic, 0x22), 0x0001_8039);
    }

    #[test]
    fn what_no_local_apic_takes_is_pending_until_one_does() {
        let (mut ioapic, mut taken) = (IoApic::new(), Taken::default());
        taken.refuse = true;
        write(&mut ioapic, &mut taken, 0x14, 0x34);
        write(&mut ioapic, &mut taken, 0x22, 0x0000_8039);
        set(&mut ioapic, &mut taken, 2, true);
        set(&mut ioapic, &mut taken, 2, false);
        set(&mut ioapic, &mut taken, 9, true);
        assert_eq!(
            read(&mut ioapic, 0x14) & 1 << 12,
            1 << 12,
            "the edge is send-pending"
        );
        assert_eq!(
            read(&mut ioapic, 0x22) & 1 << 14,
            0,
            "nobody serves the level"
        );
        taken.refuse = false;
        taken.take();
        ioapic.retry(&mut taken.bus());
        assert_eq!(taken.take(), 2);
        assert_eq!(read(&mut ioapic, 0x14), 0x34);
        ioapic.retry(&mut taken.bus());
        assert_eq!(taken.take(), 0);
    }

    #[test]
    fn an_impossible_state_is_refused_by_name_and_changes_nothing() {
        let mut hostile = vec![];
        for change in [
            |state: &mut IoApicState| state.redirection[3] |= 1 << 20,
            |state: &mut IoApicState| state.redirection[3] |= REMOTE_IRR,
            |state: &mut IoApicState| state.redirection[3] |= SEND_PENDING,
            |state: &mut IoApicState| state.pending = 1,
            |state: &mut IoApicState| state.levels = 1 << 24,
            |state: &mut IoApicState| state.select = 0x100,
            |state: &mut IoApicState| state.id = 1,
        ] {
            let mut state = IoApic::new().save();
            change(&mut state);
            hostile.push(state);
        }
        assert!(!hostile.is_empty());
        for state in hostile {
            let mut ioapic = IoApic::new();
            assert!(ioapic.restore(&state).is_err(), "{state:x?}");
            assert_eq!(ioapic, IoApic::new());
        }
    }

    /// Something that happens to an I/O APIC.
    #[derive(Debug, Clone)]
    enum Event {
        Write(u8, u32),
        Read(u8),
        Line(u8, bool),
        Eoi(u8),
        Retry,
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let index = prop_oneof![0..4u8, 0x10..0x18u8, any::<u8>()];
        let value = prop_oneof![
            any::<u32>(),
            (0..32u32).prop_map(|v| (v & 0x18) << 12 | 0x30)
        ];
        let event = prop_oneof![
            (index.clone(), value).prop_map(|(index, value)| Event::Write(index, value)),
            index.prop_map(Event::Read),
            (0..5u8, any::<bool>()).prop_map(|(pin, level)| Event::Line(pin, level)),
            prop_oneof![Just(0x30u8), any::<u8>()].prop_map(Event::Eoi),
            Just(Event::Retry),
        ];
        prop::collection::vec(event, 0..60)
    }

    fn happen(ioapic: &mut IoApic, event: &Event, refuse: bool) -> (u32, Vec<InterruptMessage>) {
        let mut taken = Taken {
            refuse,
            ..Taken::default()
        };
        let mut value = 0;
        match *event {
            Event::Write(index, value) => write(ioapic, &mut taken, index, value),
            Event::Read(index) => value = read(ioapic, index),
            Event::Line(pin, level) => set(ioapic, &mut taken, pin, level),
            Event::Eoi(vector) => ioapic.end_of_interrupt(vector, &mut taken.bus()),
            Event::Retry => ioapic.retry(&mut taken.bus()),
        }
        (value, taken.messages)
    }

    proptest! {
        #[test]
        fn a_restored_ioapic_answers_as_the_saved_one(before in events(), after in events(), refuse: bool) {
            let mut original = IoApic::new();
            for event in &before {
                happen(&mut original, event, refuse);
            }
            let mut copy = IoApic::new();
            prop_assert_eq!(copy.restore(&original.save()), Ok(()));
            prop_assert_eq!(copy, original);
            for event in &after {
                let expected = happen(&mut original, event, false);
                prop_assert_eq!(happen(&mut copy, event, false), expected);
            }
        }
    }
}
