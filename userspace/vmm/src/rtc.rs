// SPDX-License-Identifier: GPL-2.0
//! The MC146818 real-time clock at 70h/71h: time of day and CMOS memory, modelled in userspace.
//!
//! The time is the host's wall clock plus an offset that the guest's own settings make. Alarm and periodic interrupts
//! are not modelled: register C reads 0 and IRQ 8 never rises. The data sheet is Motorola's MC146818A; the century
//! byte at 32h is the PC's.

use crate::bus::{Event, PortDevice};
use crate::error::VmmError;
use serde::{Deserialize, Serialize};
use std::time::{SystemTime, UNIX_EPOCH};

/// First port.
pub const PORT: u16 = 0x70;
/// Number of ports.
pub const PORTS: u16 = 2;
/// Name in the migration stream.
pub const STATE_NAME: &str = "rtc";
/// Version of [`RtcState`].
pub const STATE_VERSION: u32 = 1;

const CELLS: usize = 128;
const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const DAY_OF_WEEK: u8 = 0x06;
const DAY_OF_MONTH: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const REGISTER_A: u8 = 0x0a;
const REGISTER_B: u8 = 0x0b;
const REGISTER_C: u8 = 0x0c;
const REGISTER_D: u8 = 0x0d;
/// The century byte of PCs, which the ACPI FADT announces.
pub const CENTURY: u8 = 0x32;
/// Register A: update in progress. Never seen set, because every read computes the time anew.
const UIP: u8 = 0x80;
/// Register B: the guest sets the time.
const SET: u8 = 0x80;
/// Register B: binary, not BCD.
const DM: u8 = 0x04;
/// Register B: 24 hours, not 12.
const H24: u8 = 0x02;
/// Hours in 12-hour mode: afternoon.
const PM: u8 = 0x80;
/// Register D: RAM and time are valid.
const VRT: u8 = 0x80;
/// Seconds from 1 January 1970 to 1 January 10000: the clock stays below.
const END_OF_TIME: i64 = 253_402_300_800;

/// Says what the wall clock shows, in seconds since 1970.
pub type WallClock = Box<dyn Fn() -> i64 + Send>;

/// The host's wall clock.
pub fn host_wall_clock() -> WallClock {
    Box::new(|| {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |time| i64::try_from(time.as_secs()).unwrap_or(i64::MAX))
    })
}

/// The saved state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtcState {
    /// What the guest's clock shows, in seconds since 1970.
    pub time: i64,
    /// The address register (port 70h without the NMI bit).
    pub address: u8,
    /// CMOS memory with registers A and B; the time registers matter only while B.SET is set.
    pub cells: Vec<u8>,
}

/// The device.
pub struct Rtc {
    wall_clock: WallClock,
    /// Guest time minus wall clock, in seconds.
    offset: i64,
    address: u8,
    cells: [u8; CELLS],
}

impl Rtc {
    /// A clock that shows the time of `wall_clock`.
    pub fn new(wall_clock: WallClock) -> Self {
        let mut cells = [0; CELLS];
        // 32.768 kHz time base, 1024 Hz rate: what every PC firmware leaves.
        cells[usize::from(REGISTER_A)] = 0x26;
        cells[usize::from(REGISTER_B)] = H24;
        Self {
            wall_clock,
            offset: 0,
            address: 0,
            cells,
        }
    }

    fn time(&self) -> i64 {
        (self.wall_clock)()
            .saturating_add(self.offset)
            .clamp(0, END_OF_TIME - 1)
    }

    fn register_b(&self) -> u8 {
        self.cells[usize::from(REGISTER_B)]
    }

    fn encode(&self, value: u8) -> u8 {
        match self.register_b() & DM {
            0 => ((value / 10) << 4) | (value % 10),
            _ => value,
        }
    }

    fn decode(&self, value: u8) -> i64 {
        i64::from(match self.register_b() & DM {
            0 => (value >> 4) * 10 + (value & 0xf),
            _ => value,
        })
    }

    fn encode_hours(&self, hours: u8) -> u8 {
        match (self.register_b() & H24, hours) {
            (0, 0) => self.encode(12),
            (0, 1..=11) => self.encode(hours),
            (0, 12) => self.encode(12) | PM,
            (0, _) => self.encode(hours - 12) | PM,
            _ => self.encode(hours),
        }
    }

    fn decode_hours(&self, value: u8) -> i64 {
        if self.register_b() & H24 != 0 {
            return self.decode(value);
        }
        let hours = self.decode(value & !PM) % 12;
        hours + if value & PM != 0 { 12 } else { 0 }
    }

    /// The time registers' values for the present time.
    fn time_cell(&self, cell: u8) -> Option<u8> {
        let time = self.time();
        // Remainders of 60, 24 and 7 and a civil date's parts all fit a byte, except the year, which is split.
        let (seconds, days) = (time % 86_400, time / 86_400);
        let (year, month, day) = civil(days);
        Some(match cell {
            SECONDS => self.encode((seconds % 60) as u8),
            MINUTES => self.encode((seconds / 60 % 60) as u8),
            HOURS => self.encode_hours((seconds / 3600) as u8),
            // 1 January 1970 was a Thursday; Sunday is 1.
            DAY_OF_WEEK => self.encode(((days + 4) % 7) as u8 + 1),
            DAY_OF_MONTH => self.encode(day as u8),
            MONTH => self.encode(month as u8),
            YEAR => self.encode((year % 100) as u8),
            CENTURY => self.encode((year / 100) as u8),
            _ => return None,
        })
    }

    /// Copies the running time into the cells, where the guest may change it.
    fn latch(&mut self) {
        for cell in TIME_CELLS {
            if let Some(value) = self.time_cell(cell) {
                self.cells[usize::from(cell)] = value;
            }
        }
    }

    /// Makes the time in the cells the running time.
    fn set(&mut self) {
        let cell = |cell: u8| self.cells[usize::from(cell)];
        let year = self.decode(cell(CENTURY)) * 100 + self.decode(cell(YEAR));
        let days = days_from_civil(
            year,
            self.decode(cell(MONTH)).clamp(1, 12),
            self.decode(cell(DAY_OF_MONTH)).clamp(1, 31),
        );
        let time = days * 86_400
            + self.decode_hours(cell(HOURS)) * 3600
            + self.decode(cell(MINUTES)) * 60
            + self.decode(cell(SECONDS));
        self.offset = time
            .clamp(0, END_OF_TIME - 1)
            .saturating_sub((self.wall_clock)());
    }

    /// Reads the state.
    pub fn save(&self) -> RtcState {
        RtcState {
            time: self.time(),
            address: self.address,
            cells: self.cells.to_vec(),
        }
    }

    /// Takes over a saved state; the clock goes on from the time that it showed then.
    pub fn restore(&mut self, state: &RtcState) -> Result<(), VmmError> {
        let wrong = |reason| VmmError::DeviceState {
            device: STATE_NAME,
            reason,
        };
        let cells = <[u8; CELLS]>::try_from(state.cells.as_slice()).map_err(|_| {
            wrong(format!(
                "it has {} CMOS cells instead of {CELLS}",
                state.cells.len()
            ))
        })?;
        if !(0..END_OF_TIME).contains(&state.time) {
            return Err(wrong(format!("its time is {} s since 1970", state.time)));
        }
        self.cells = cells;
        self.address = state.address & 0x7f;
        self.offset = state.time.saturating_sub((self.wall_clock)());
        Ok(())
    }
}

const TIME_CELLS: [u8; 8] = [
    SECONDS,
    MINUTES,
    HOURS,
    DAY_OF_WEEK,
    DAY_OF_MONTH,
    MONTH,
    YEAR,
    CENTURY,
];

impl PortDevice for Rtc {
    fn read(&mut self, offset: u16) -> u8 {
        if offset == 0 {
            // The address register is write-only.
            return 0xff;
        }
        let setting = self.register_b() & SET != 0;
        match self.address {
            REGISTER_A => self.cells[usize::from(REGISTER_A)] & !UIP,
            REGISTER_C => 0,
            REGISTER_D => VRT,
            cell if !setting => self
                .time_cell(cell)
                .unwrap_or(self.cells[usize::from(cell)]),
            cell => self.cells[usize::from(cell)],
        }
    }

    fn write(&mut self, offset: u16, value: u8) -> Option<Event> {
        if offset == 0 {
            // Bit 7 is the NMI mask of PCs.
            self.address = value & 0x7f;
            return None;
        }
        let cell = usize::from(self.address);
        match self.address {
            REGISTER_C | REGISTER_D => {}
            REGISTER_B => {
                let was_setting = self.register_b() & SET != 0;
                match (was_setting, value & SET != 0) {
                    (false, true) => {
                        self.latch();
                        self.cells[cell] = value;
                    }
                    (true, false) => {
                        self.cells[cell] = value;
                        self.set();
                    }
                    _ => self.cells[cell] = value,
                }
            }
            address if TIME_CELLS.contains(&address) && self.register_b() & SET == 0 => {
                self.latch();
                self.cells[cell] = value;
                self.set();
            }
            _ => self.cells[cell] = value,
        }
        None
    }
}

/// Days since 1 January 1970 of a date of the proleptic Gregorian calendar. `month` is 1 to 12.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    // Years that begin in March put the leap day at the end, where it shifts nothing.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    // Month lengths from March repeat 31 30 31 30 31; 719,468 days lie between 1 March 0 and 1 January 1970.
    year * 365 + leap_days + (month * 153 + 2) / 5 + day - 1 - 719_468
}

/// Year, month and day of a number of days since 1 January 1970, not negative.
fn civil(days: i64) -> (i64, i64, i64) {
    let mut year = 1970 + days / 366;
    while days_from_civil(year + 1, 1, 1) <= days {
        year += 1;
    }
    let mut month = 1;
    while month < 12 && days_from_civil(year, month + 1, 1) <= days {
        month += 1;
    }
    (year, month, days - days_from_civil(year, month, 1) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::atomic::{AtomicI64, Ordering};
    use std::sync::Arc;

    /// 29 February 2024, 23:59:58 UTC, a Thursday (`date -u -d @1709251198`).
    const LEAP_DAY: i64 = 1_709_251_198;

    fn clock(time: i64) -> (Rtc, Arc<AtomicI64>) {
        let now = Arc::new(AtomicI64::new(time));
        let wall_clock = {
            let now = Arc::clone(&now);
            Box::new(move || now.load(Ordering::Relaxed))
        };
        (Rtc::new(wall_clock), now)
    }

    fn read(rtc: &mut Rtc, cell: u8) -> u8 {
        rtc.write(0, cell | 0x80);
        rtc.read(1)
    }

    fn write(rtc: &mut Rtc, cell: u8, value: u8) {
        rtc.write(0, cell);
        rtc.write(1, value);
    }

    fn shown(rtc: &mut Rtc) -> Vec<u8> {
        TIME_CELLS.iter().map(|cell| read(rtc, *cell)).collect()
    }

    #[test]
    fn the_time_is_shown_in_bcd_and_in_binary() {
        let (mut rtc, _) = clock(LEAP_DAY);
        assert_eq!(shown(&mut rtc), [0x58, 0x59, 0x23, 5, 0x29, 2, 0x24, 0x20]);
        write(&mut rtc, REGISTER_B, H24 | DM);
        assert_eq!(shown(&mut rtc), [58, 59, 23, 5, 29, 2, 24, 20]);
        write(&mut rtc, REGISTER_B, DM);
        assert_eq!(read(&mut rtc, HOURS), 11 | PM);
    }

    #[test]
    fn the_clock_runs_over_a_leap_day_into_march() {
        let (mut rtc, now) = clock(LEAP_DAY);
        now.store(LEAP_DAY + 2, Ordering::Relaxed);
        assert_eq!(shown(&mut rtc), [0, 0, 0, 6, 1, 3, 0x24, 0x20]);
    }

    #[test]
    fn linux_finds_a_valid_clock_that_is_not_updating() {
        let (mut rtc, _) = clock(LEAP_DAY);
        assert_eq!(read(&mut rtc, REGISTER_A) & UIP, 0);
        assert_eq!(read(&mut rtc, REGISTER_B), H24);
        assert_eq!(read(&mut rtc, REGISTER_D), VRT);
    }

    #[test]
    fn a_time_that_the_guest_sets_runs_on_from_there() {
        let (mut rtc, now) = clock(LEAP_DAY);
        write(&mut rtc, REGISTER_B, SET | H24);
        for (cell, value) in [
            (SECONDS, 0x10),
            (MINUTES, 0x20),
            (HOURS, 0x03),
            (MONTH, 0x12),
            (YEAR, 0x30),
        ] {
            write(&mut rtc, cell, value);
        }
        now.store(LEAP_DAY + 100, Ordering::Relaxed);
        assert_eq!(
            read(&mut rtc, SECONDS),
            0x10,
            "the clock stands while it is set"
        );
        write(&mut rtc, REGISTER_B, H24);
        now.store(LEAP_DAY + 105, Ordering::Relaxed);
        assert_eq!(
            shown(&mut rtc),
            [0x15, 0x20, 0x03, 1, 0x29, 0x12, 0x30, 0x20]
        );
    }

    #[test]
    fn a_restored_clock_shows_the_saved_time_whatever_the_new_host_says() {
        let (mut source, _) = clock(LEAP_DAY);
        write(&mut source, 0x40, 0x77);
        let (mut target, now) = clock(12_345);
        target
            .restore(&source.save())
            .expect("a saved state is valid");
        assert_eq!(shown(&mut target), shown(&mut source));
        assert_eq!(read(&mut target, 0x40), 0x77);
        now.store(12_346, Ordering::Relaxed);
        assert_eq!(read(&mut target, SECONDS), 0x59);
    }

    #[test]
    fn a_malformed_state_is_refused() {
        let (mut rtc, _) = clock(LEAP_DAY);
        let good = rtc.save();
        for bad in [
            RtcState {
                time: -1,
                ..good.clone()
            },
            RtcState {
                time: END_OF_TIME,
                ..good.clone()
            },
            RtcState {
                cells: vec![0; 127],
                ..good.clone()
            },
        ] {
            assert!(rtc.restore(&bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn a_date_survives_the_way_through_the_calendar(days in 0i64..END_OF_TIME / 86_400) {
            let (year, month, day) = civil(days);
            prop_assert!((1..=12).contains(&month) && (1..=31).contains(&day));
            prop_assert_eq!(days_from_civil(year, month, day), days);
        }

        #[test]
        fn no_sequence_of_accesses_panics(accesses in prop::collection::vec((any::<bool>(), 0u16..2, any::<u8>()), 0..200)) {
            let (mut rtc, now) = clock(LEAP_DAY);
            for (is_write, offset, value) in accesses {
                if is_write { rtc.write(offset, value); } else { rtc.read(offset); }
                now.fetch_add(i64::from(value), Ordering::Relaxed);
            }
            rtc.save();
        }
    }
}
