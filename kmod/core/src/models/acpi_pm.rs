// SPDX-License-Identifier: GPL-2.0
//! The ACPI fixed hardware: PM1a event and control blocks and the power-management timer (ACPI specification 6.5,
//! section 4.8).
//!
//! On the path this is a model: the chipset gives it the guest's accesses to 600h-60Bh, and wires its SCI to interrupt 9.
//! There is no system-management mode, so the machine is in ACPI mode from the start: SCI_EN is always set, and the FADT
//! must have SMI_CMD = 0. The timer has 32 bits, so the FADT must set TMR_VAL_EXT.
//!
//! All times are VM nanoseconds given by the caller, who serializes accesses.
#![forbid(unsafe_code)]

use super::InvalidState;
use crate::iospace::Width;

/// First port of the PM1a event block: PM1_STS and PM1_EN, 2 bytes each. FADT PM1a_EVT_BLK, PM1_EVT_LEN = 4.
pub const PM1A_EVT_PORT: u16 = 0x600;
/// First port of the PM1a control block: PM1_CNT, 2 bytes. FADT PM1a_CNT_BLK, PM1_CNT_LEN = 2.
pub const PM1A_CNT_PORT: u16 = 0x604;
/// First port of the power-management timer, 4 bytes. FADT PM_TMR_BLK, PM_TMR_LEN = 4.
pub const PM_TMR_PORT: u16 = 0x608;
/// Number of ports from [`PM1A_EVT_PORT`] on.
pub const ACPI_PM_PORTS: u16 = 12;
/// Interrupt of the SCI: ISA and GSI 9, level-triggered, active high. FADT SCI_INT; the MADT needs an override.
pub const SCI_IRQ: u8 = 9;
/// Value of SLP_TYP that means S5, soft off; the DSDT's `\_S5` object must hold it.
pub const SLP_TYP_S5: u16 = 5;
/// Frequency of the power-management timer, in Hz.
pub const PM_TMR_HZ: u64 = 3_579_545;

/// PM1_STS: the timer's most significant bit has changed.
const TMR_STS: u16 = 1 << 0;
/// PM1_STS, PM1_EN: global lock released.
const GBL: u16 = 1 << 5;
/// PM1_STS, PM1_EN: power button.
const PWRBTN: u16 = 1 << 8;
/// PM1_STS, PM1_EN: sleep button.
const SLPBTN: u16 = 1 << 9;
/// PM1_STS, PM1_EN: real-time clock alarm.
const RTC: u16 = 1 << 10;
/// PM1_STS bits that this hardware sets.
const STATUS_BITS: u16 = TMR_STS | PWRBTN;
/// PM1_EN bits that can be written.
const ENABLE_BITS: u16 = TMR_STS | GBL | PWRBTN | SLPBTN | RTC;
/// PM1_CNT: events raise the SCI. Always set.
const SCI_EN: u16 = 1 << 0;
/// PM1_CNT: sleep type, bits 12:10.
const SLP_TYP: u16 = 7 << 10;
/// PM1_CNT: enter the sleep type. Write-only.
const SLP_EN: u16 = 1 << 13;
/// PM1_CNT: BM_RLD and SLP_TYP, which can be written and read back.
const CONTROL_BITS: u16 = 1 << 1 | SLP_TYP;
/// The timer's most significant bit.
const TMR_MSB: u32 = 1 << 31;

const NS_PER_S: u64 = 1_000_000_000;

/// Ticks of the power-management timer in `ns` nanoseconds, rounded down. Exact without 128-bit division: whole seconds
/// and the rest apart.
const fn ticks(ns: u64) -> u64 {
    // 2^64 ns are less than 2^35 s, and 2^35 s are less than 2^57 ticks.
    ns / NS_PER_S * PM_TMR_HZ + ns % NS_PER_S * PM_TMR_HZ / NS_PER_S
}

/// The first nanosecond with `ticks` ticks. `None` beyond 2^64 ns.
const fn ns_of(ticks: u64) -> Option<u64> {
    let Some(whole) = (ticks / PM_TMR_HZ).checked_mul(NS_PER_S) else {
        return None;
    };
    whole.checked_add((ticks % PM_TMR_HZ * NS_PER_S).div_ceil(PM_TMR_HZ))
}

/// The ACPI fixed hardware.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AcpiPm {
    status: u16,
    enable: u16,
    control: u16,
    /// Changes of the timer's most significant bit up to the last time that was looked at.
    changes: u64,
    soft_off: bool,
}

impl Default for AcpiPm {
    fn default() -> Self {
        Self::new()
    }
}

impl AcpiPm {
    /// The hardware after power-on, at VM nanosecond 0.
    pub const fn new() -> Self {
        Self {
            status: 0,
            enable: 0,
            control: SCI_EN,
            changes: 0,
            soft_off: false,
        }
    }

    /// The timer register.
    const fn timer(now: u64) -> u32 {
        ticks(now) as u32
    }

    /// Reads at `offset` from [`PM1A_EVT_PORT`]. Any width and alignment; what is no register reads as zero.
    pub fn read(&mut self, offset: u16, width: Width, now: u64) -> u64 {
        self.advance(now);
        let blocks = [
            u64::from(self.status) | u64::from(self.enable) << 16,
            u64::from(self.control),
            u64::from(Self::timer(now)),
        ];
        let mut value = 0;
        for byte in 0..u16::from(width.bytes()) {
            let at = offset.saturating_add(byte);
            let block = blocks.get(usize::from(at / 4)).copied().unwrap_or(0);
            value |= (block >> (8 * (at % 4)) & 0xff) << (8 * byte);
        }
        value
    }

    /// Writes at `offset` from [`PM1A_EVT_PORT`]. Any width and alignment; what is no register, and the timer, is left
    /// alone.
    pub fn write(&mut self, offset: u16, width: Width, value: u64, now: u64) {
        self.advance(now);
        // The written bytes and which they are, as a picture of the two blocks that can be written.
        let (mut written, mut mask) = (0u64, 0u64);
        for byte in 0..u16::from(width.bytes()) {
            let at = offset.saturating_add(byte);
            if at < 8 {
                written |= (value >> (8 * byte) & 0xff) << (8 * at);
                mask |= 0xff << (8 * at);
            }
        }
        let (enable, enable_mask) = ((written >> 16) as u16, (mask >> 16) as u16 & ENABLE_BITS);
        let (control, control_mask) = ((written >> 32) as u16, (mask >> 32) as u16);
        // PM1_STS: writing a one clears the bit.
        self.status &= !(written as u16);
        self.enable = (self.enable & !enable_mask) | (enable & enable_mask);
        let kept = self.control & !(control_mask & CONTROL_BITS);
        self.control = kept | (control & control_mask & CONTROL_BITS);
        // Only S5 exists; other sleep types do nothing.
        if control & SLP_EN != 0 && self.control & SLP_TYP == SLP_TYP_S5 << 10 {
            self.soft_off = true;
        }
    }

    /// Lets the timer catch up with `now`.
    pub fn advance(&mut self, now: u64) {
        let changes = ticks(now) / u64::from(TMR_MSB);
        if changes > self.changes {
            self.changes = changes;
            self.status |= TMR_STS;
        }
    }

    /// When to call [`Self::advance`] next, in VM nanoseconds: when the timer will raise the SCI. `None` if it will not.
    pub fn next_deadline(&self) -> Option<u64> {
        if self.enable & TMR_STS == 0 || self.status & TMR_STS != 0 {
            return None;
        }
        let next = self.changes.checked_add(1)?;
        ns_of(next.checked_mul(u64::from(TMR_MSB))?)
    }

    /// Presses the power button.
    pub fn press_power_button(&mut self) {
        self.status |= PWRBTN;
    }

    /// The level of the SCI.
    pub const fn sci(&self) -> bool {
        self.status & self.enable != 0
    }

    /// Takes the guest's request to power off.
    pub fn take_soft_off(&mut self) -> bool {
        core::mem::take(&mut self.soft_off)
    }

    /// The state at `now`: PM1_STS and PM1_EN as one number, and PM1_CNT. A request to power off is not part of it: take
    /// it before.
    pub fn save(&mut self, now: u64) -> (u32, u32) {
        self.advance(now);
        (
            u32::from(self.status) | u32::from(self.enable) << 16,
            u32::from(self.control),
        )
    }

    /// Takes a state that [`Self::save`] made on another host, the VM's clock being at `now` as it was there.
    ///
    /// # Errors
    /// Names the first register with a value that it can never have; then nothing has changed.
    pub fn restore(&mut self, event: u32, control: u32, now: u64) -> Result<(), InvalidState> {
        let (status, enable) = (event as u16, (event >> 16) as u16);
        if status & !STATUS_BITS != 0 {
            return Err(InvalidState::new("PM1_STS", status.into()));
        }
        if enable & !ENABLE_BITS != 0 {
            return Err(InvalidState::new("PM1_EN", enable.into()));
        }
        if control & !u32::from(CONTROL_BITS) != u32::from(SCI_EN) {
            return Err(InvalidState::new("PM1_CNT", control.into()));
        }
        *self = Self {
            status,
            enable,
            control: control as u16,
            changes: ticks(now) / u64::from(TMR_MSB),
            soft_off: false,
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    const EN: u16 = 2;
    const CNT: u16 = 4;
    const TMR: u16 = 8;
    /// The time at which the timer's most significant bit changes for the first time, rounded up: 599.9 s.
    const HALF: u64 = 599_932_015_941;

    #[test]
    fn the_timer_runs_at_its_frequency_and_wraps_at_32_bits() {
        let mut pm = AcpiPm::new();
        assert_eq!(pm.read(TMR, Width::W4, 0), 0);
        assert_eq!(pm.read(TMR, Width::W4, 1_000_000_000), 3_579_545);
        assert_eq!(pm.read(TMR, Width::W4, 279), 0, "a tick is 279.36 ns");
        assert_eq!(pm.read(TMR, Width::W4, 280), 1);
        assert_eq!(pm.read(TMR, Width::W4, 2 * HALF), 0);
        assert_eq!(pm.read(TMR, Width::W4, HALF), 1 << 31);
    }

    #[test]
    fn the_timer_s_top_bit_raises_the_sci_only_if_enabled() {
        let mut pm = AcpiPm::new();
        assert_eq!(pm.next_deadline(), None);
        pm.write(EN, Width::W2, 1, 0);
        assert_eq!(pm.next_deadline(), Some(HALF));
        pm.advance(HALF - 1);
        assert!(!pm.sci());
        pm.advance(HALF);
        assert!(pm.sci());
        assert_eq!(pm.next_deadline(), None, "nothing new until it is cleared");
        pm.write(0, Width::W2, 1, HALF);
        assert!(!pm.sci());
        assert_eq!(pm.next_deadline(), Some(2 * HALF));
    }

    #[test]
    fn a_pressed_power_button_raises_the_sci_until_its_status_is_cleared() {
        let mut pm = AcpiPm::new();
        pm.write(EN, Width::W2, 1 << 8, 0);
        assert!(!pm.sci());
        pm.press_power_button();
        assert!(pm.sci());
        assert_eq!(pm.read(0, Width::W4, 0), 0x0100_0100);
        pm.write(0, Width::W2, !(1 << 8) & 0xffff, 0);
        assert!(pm.sci(), "a zero clears nothing");
        pm.write(1, Width::W1, 1, 0);
        assert!(!pm.sci(), "a byte is enough");
    }

    #[test]
    fn only_sleep_type_s5_powers_off() {
        let mut pm = AcpiPm::new();
        pm.write(CNT, Width::W2, 1 << 13, 0);
        assert!(!pm.take_soft_off());
        pm.write(CNT, Width::W2, 5 << 10, 0);
        assert!(!pm.take_soft_off(), "SLP_EN starts it");
        pm.write(CNT + 1, Width::W1, (5 << 10 | 1 << 13) >> 8, 0);
        assert!(pm.take_soft_off());
        assert!(!pm.take_soft_off());
        assert_eq!(pm.read(CNT, Width::W2, 0), 5 << 10 | 1, "SLP_EN reads as 0");
    }

    #[test]
    fn the_machine_is_always_in_acpi_mode() {
        let mut pm = AcpiPm::new();
        pm.write(CNT, Width::W2, 0, 0);
        assert_eq!(pm.read(CNT, Width::W4, 0), 1);
    }

    #[test]
    fn an_impossible_state_is_refused() {
        let mut pm = AcpiPm::new();
        for (event, control) in [
            (2, 1),
            (1 << 17, 1),
            (0, 0),
            (0, 1 << 13 | 1),
            (0, 1 << 16 | 1),
        ] {
            assert!(
                pm.restore(event, control, 0).is_err(),
                "{event:x} {control:x}"
            );
            assert_eq!(pm, AcpiPm::new());
        }
    }

    proptest! {
        #[test]
        fn timer_ticks_are_exact(ns: u64) {
            let exact = u128::from(ns) * 3_579_545 / 1_000_000_000;
            prop_assert_eq!(u128::from(ticks(ns)), exact);
            let back = ns_of(ticks(ns)).expect("not after ns");
            prop_assert!(back <= ns && ticks(back) == ticks(ns));
            prop_assert!(back == 0 || ticks(back - 1) < ticks(ns));
        }

        #[test]
        fn a_restored_block_answers_as_the_saved_one(
            accesses in prop::collection::vec((0..14u16, 0..3u8, any::<Option<u32>>(), 0..300_000_000_000u64), 0..40),
            split in 0..40usize,
        ) {
            let mut original = AcpiPm::new();
            let mut copy = original;
            let mut now = 0;
            for (index, &(offset, width, value, ns)) in accesses.iter().enumerate() {
                let width = [Width::W1, Width::W2, Width::W4][usize::from(width)];
                if index == split {
                    let (event, control) = original.save(now);
                    original.take_soft_off();
                    copy = AcpiPm::new();
                    prop_assert_eq!(copy.restore(event, control, now), Ok(()));
                    prop_assert_eq!(copy, original);
                }
                now += ns;
                let answers: Vec<_> = [&mut original, &mut copy].into_iter().map(|pm| {
                    let read = match value {
                        Some(value) => {
                            pm.write(offset, width, value.into(), now);
                            0
                        }
                        None => pm.read(offset, width, now),
                    };
                    (read, pm.sci(), pm.next_deadline(), pm.soft_off)
                }).collect();
                prop_assert!(index < split || answers[0] == answers[1]);
            }
        }
    }
}
