// SPDX-License-Identifier: GPL-2.0
//! Kind "i8254": the interval timer with port 61h.
//!
//! On the path: the recorder below sees the guest's accesses after the device has had them; capture joins its log with
//! port 61h and, of a model, where the counters stand; the plan brings a fresh timer there. Range 0 is 40h-43h, range 1
//! is 61h.
//!
//! Classified by port, by what the control word at 43h says (counter, latch, read-back, format), and by how far a
//! two-byte count has been written or read: Intel's 8254 data sheet (231164), "Programming the 8254" and "Read
//! Operations". A control word starts its counter's sequence again; a complete count replaces the one before.
//!
//! The phase: a model's counters go on to the tick, because phases are ticks of VM time. Hardware can't be given a
//! phase; there a counter starts its period anew.
#![forbid(unsafe_code)]

use super::error::{CaptureError, PlanError};
use super::field::Field;
use super::register::{Access as A, Fate as F, Register};
use super::sink::Sink;
use super::step::{impossible, known, put_log, record, retrace, Plan};
use crate::iospace::{Access, Direction, Location, Width};
use crate::record::{each_byte, Entry, Log};
use crate::replay::Backend;
use pvmm_uapi::{PlanStep, StateRecord};

/// Name of the kind.
pub const NAME: &str = "i8254";
/// Version of the state's layout.
pub const STATE_VERSION: u32 = 1;
/// Lengths of the kind's ranges in bytes.
pub const RANGES: &[u64] = &[4, 1];

/// Control word of counter 0. The registers of the other counters have the same numbers plus [`COUNTER`] and twice it.
pub const CONTROL: u16 = 1;
/// Low byte of a count.
pub const LOW: u16 = 2;
/// High byte of a count.
pub const HIGH: u16 = 3;
/// Counter latch command (also: the count part of a read-back command).
pub const LATCH: u16 = 4;
/// Status part of a read-back command.
pub const STATUS_LATCH: u16 = 5;
/// The low byte of a two-byte count was read.
pub const LOW_READ: u16 = 6;
/// The high byte of a two-byte count was read.
pub const HIGH_READ: u16 = 7;
/// Control state of the model: flip-flops and latches.
pub const COUNTER_CONTROL: u16 = 8;
/// Counting element and count register of the model.
pub const COUNTER_ELEMENT: u16 = 9;
/// Tick of the next load in the model.
pub const COUNTER_LOAD: u16 = 10;
/// Phase in the model: tick of the last load, or the pulses since then if the counter is stopped.
pub const COUNTER_PHASE: u16 = 11;
/// A latched status was read.
pub const STATUS_READ: u16 = 12;
/// Distance between the registers of two counters.
pub const COUNTER: u16 = 16;
/// Port 61h.
pub const PORT61: u16 = 49;
/// Tick up to which the model has counted.
pub const TICK: u16 = 50;
/// Edges of OUT0 that the guest has not had.
pub const BACKLOG: u16 = 51;

/// Bits of port 61h that software sets.
const PORT61_MASK: u64 = 0x0f;

const GOES_ON: &str = "shown by no register, and the count must go on to the tick";

const FORMATS: &[&str] = &["latch", "low byte", "high byte", "low and high byte"];
/// The data sheet doesn't care about the highest bit of modes 2 and 3.
const MODES: &[&str] = &["0", "1", "2", "3", "4", "5", "2", "3"];
const CONTROL_FIELDS: &[Field] = &[
    Field::number("counter", 6, 2),
    Field::names("mode", 1, 3, MODES),
    Field::names("format", 4, 2, FORMATS),
    Field::flag("BCD", 0),
];
const LATCH_FIELDS: &[Field] = &[Field::number("counter", 6, 2)];
/// COUNT and STATUS are selected by a 0.
const READ_BACK_FIELDS: &[Field] = &[
    Field::each("counters", 1, 3, 0),
    Field::names(
        "latch",
        4,
        2,
        &["count and status", "count", "status", "nothing"],
    ),
];
const STATUS_FIELDS: &[Field] = &[
    Field::bit("OUT", 7),
    Field::flag("null count", 6),
    Field::names("mode", 1, 3, MODES),
    Field::names("format", 4, 2, FORMATS),
    Field::flag("BCD", 0),
];
/// See `models/i8254/hidden.rs` for these two.
const LATCHES_FIELDS: &[Field] = &[
    Field::names("mode", 1, 3, MODES),
    Field::names("format", 4, 2, FORMATS),
    Field::flag("BCD", 0),
    Field::flag("count written", 6),
    Field::flag("null count", 7),
    Field::flag("loaded", 8),
    Field::flag("stopped", 9),
    Field::flag("load is reload", 10),
    Field::flag("OUT low", 11),
    Field::flag("OUT high", 12),
    Field::bit("gate", 13),
    Field::flag("high byte is read next", 14),
    Field::flag("first byte waits", 15),
    Field::flag("count latched", 24),
    Field::flag("status latched", 25),
];
const ELEMENT_FIELDS: &[Field] = &[
    Field::number("loaded with", 0, 32),
    Field::number("count register", 48, 16),
];
const PORT61_FIELDS: &[Field] = &[
    Field::bit("TIM_CNT2_EN", 0),
    Field::bit("SPKR_DAT_EN", 1),
    Field::flag("PCI_SERR_EN", 2),
    Field::flag("IOCHK_EN", 3),
    Field::bit("REF_TOGGLE", 4),
    Field::bit("TMR2_OUT_STS", 5),
];
const BACKLOG_FIELDS: &[Field] = &[Field::number("edges", 0, 32)];

/// The counter (0 to 2) and `COUNTER_*` item of a hidden register, if it is one.
pub fn hidden_item(register: u16) -> Option<(usize, u16)> {
    let counter = usize::from(register / COUNTER);
    let item = register % COUNTER;
    (counter < 3 && (COUNTER_CONTROL..=COUNTER_PHASE).contains(&item)).then_some((counter, item))
}

macro_rules! registers {
    ($($index:literal)*) => {
        &[
            $(
                Register::byte(CONTROL + $index * COUNTER, concat!("control word ", $index), (0, 3), A::WriteOnly, F::Recorded, "starts the counter's sequence again").fields(CONTROL_FIELDS),
                Register::byte(LOW + $index * COUNTER, concat!("count ", $index, " (low byte)"), (0, $index), A::WriteOnly, F::Recorded, "reads return the counting element"),
                Register::byte(HIGH + $index * COUNTER, concat!("count ", $index, " (high byte)"), (0, $index), A::WriteOnly, F::Recorded, "reads return the counting element"),
                Register::byte(LATCH + $index * COUNTER, concat!("counter latch command ", $index), (0, 3), A::WriteOnly, F::Recorded, "outstanding until read").fields(LATCH_FIELDS),
                Register::byte(STATUS_LATCH + $index * COUNTER, concat!("read-back command ", $index, " (status)"), (0, 3), A::WriteOnly, F::Recorded, "outstanding until read").fields(READ_BACK_FIELDS),
                Register::byte(LOW_READ + $index * COUNTER, concat!("counter ", $index, " (low byte read)"), (0, $index), A::ReadSideEffect, F::Inferred, "the next read gives the high byte"),
                Register::byte(HIGH_READ + $index * COUNTER, concat!("counter ", $index, " (high byte read)"), (0, $index), A::ReadSideEffect, F::Irrelevant, "after it nothing is outstanding"),
                Register::byte(STATUS_READ + $index * COUNTER, concat!("counter ", $index, " (status read)"), (0, $index), A::ReadSideEffect, F::Irrelevant, "only after a read-back command; after it nothing is outstanding").fields(STATUS_FIELDS),
                Register::hidden(COUNTER_CONTROL + $index * COUNTER, concat!("counter ", $index, " latches"), "a latched value would be another one here").fields(LATCHES_FIELDS),
                Register::hidden(COUNTER_ELEMENT + $index * COUNTER, concat!("counter ", $index, " counting element"), GOES_ON).fields(ELEMENT_FIELDS),
                Register::hidden(COUNTER_LOAD + $index * COUNTER, concat!("counter ", $index, " next load"), GOES_ON),
                Register::hidden(COUNTER_PHASE + $index * COUNTER, concat!("counter ", $index, " phase"), GOES_ON),
            )*
            Register::byte(PORT61, "port 61h", (1, 0), A::ReadWrite, F::ReadBack, "bits 0 to 3 are readable; bit 0 is the gate of counter 2").fields(PORT61_FIELDS),
            Register::hidden(TICK, "tick", "edges after it are still to be counted"),
            Register::hidden(BACKLOG, "ticks owed", "edges of OUT0 that the guest has not had").fields(BACKLOG_FIELDS),
        ]
    };
}

/// The register table.
#[rustfmt::skip]
pub const REGISTERS: &[Register] = registers!(0 1 2);

/// Bound of the log. Of each counter: control word, a complete count and the first byte of the next, both latch
/// commands, and the read of a first byte.
pub const LOG_BOUND: usize = 3 * 7;

/// What the recorder knows of one counter.
#[derive(Debug, Clone, Copy)]
struct Counter {
    /// Read/write format of the last control word.
    format: u64,
    /// The first byte of a two-byte count was written.
    low_written: bool,
    /// The first byte of a two-byte count was read.
    low_read: bool,
}

/// The recorder of an 8254.
#[derive(Debug, Clone, Copy)]
pub struct Recorder {
    log: Log<LOG_BOUND>,
    counters: [Counter; 3],
    /// The register of the last access that was logged.
    newest: Option<u16>,
}

impl Default for Recorder {
    fn default() -> Self {
        Self::new()
    }
}

impl Recorder {
    /// A recorder for a timer that nobody has programmed.
    pub const fn new() -> Self {
        const COUNTER: Counter = Counter {
            format: 3,
            low_written: false,
            low_read: false,
        };
        Self {
            log: Log::new(),
            counters: [COUNTER; 3],
            newest: None,
        }
    }

    /// The log.
    pub const fn log(&self) -> &Log<LOG_BOUND> {
        &self.log
    }

    /// The log of a counter begins with a control word. If the guest has given none, it is what the counter has after
    /// power-on: low then high byte, mode 3.
    fn append(&mut self, register: u16, access: Access) {
        let (counter, item) = split(register);
        let control = CONTROL + counter * COUNTER;
        if item != CONTROL && self.log.last_of(control).is_none() {
            let value = u64::from(counter) << 6 | 0x36;
            let access = Access::write(Location::new(0, 3), Width::W1, value);
            self.log.append(control, access);
        }
        self.log.append(register, access);
        self.newest = Some(register);
    }

    fn discard(&mut self, registers: &[u16]) {
        self.log
            .drop_where(|entry| registers.contains(&entry.register));
    }

    fn after_byte(&mut self, access: Access) {
        self.newest = None;
        match (access.at.range, access.at.offset, access.direction) {
            (0, 3, Direction::Write) => self.after_control(access),
            (0, index @ 0..=2, Direction::Write) => self.after_count(index as usize, access),
            (0, index @ 0..=2, Direction::Read) => self.after_read(index as usize, access),
            _ => {}
        }
    }

    fn after_control(&mut self, access: Access) {
        let value = access.value;
        let latch = |index: u64| Access {
            value: index << 6,
            ..access
        };
        match (value >> 6, value & 0x30) {
            (3, _) => {
                for index in 0..3 {
                    if value & (2 << index) == 0 {
                        continue;
                    }
                    let base = base(index as usize);
                    if value & 0x20 == 0 {
                        self.outstanding(LATCH + base, latch(index));
                    }
                    if value & 0x10 == 0 {
                        let value = 0xe0 | 2 << index;
                        self.outstanding(STATUS_LATCH + base, Access { value, ..access });
                    }
                }
            }
            (index, 0) => self.outstanding(LATCH + base(index as usize), latch(index)),
            (index, format) => {
                let base = base(index as usize);
                self.log
                    .drop_where(|entry| (base..base + COUNTER).contains(&entry.register));
                self.counters[index as usize] = Counter {
                    format: format >> 4,
                    low_written: false,
                    low_read: false,
                };
                self.append(CONTROL + base, access);
            }
        }
    }

    /// A latch command has no effect while the one before waits to be read.
    fn outstanding(&mut self, register: u16, access: Access) {
        if self.log.last_of(register).is_none() {
            self.append(register, access);
        }
    }

    fn after_count(&mut self, index: usize, access: Access) {
        let base = base(index);
        let (low, high) = (LOW + base, HIGH + base);
        let counter = &mut self.counters[index];
        match (counter.format, counter.low_written) {
            (1, _) => {
                self.discard(&[low]);
                self.append(low, access);
            }
            (2, _) => {
                self.discard(&[high]);
                self.append(high, access);
            }
            (_, false) => {
                counter.low_written = true;
                self.append(low, access);
            }
            (_, true) => {
                counter.low_written = false;
                // The first byte has waited behind the count that is now replaced.
                let first = self.log.last_of(low).copied();
                self.discard(&[low, high]);
                if let Some(first) = first {
                    self.append(low, first.access);
                }
                self.append(high, access);
            }
        }
    }

    fn after_read(&mut self, index: usize, access: Access) {
        let base = base(index);
        // A latched status is read first.
        if self.log.last_of(STATUS_LATCH + base).is_some() {
            return self.discard(&[STATUS_LATCH + base]);
        }
        let counter = &mut self.counters[index];
        if counter.format == 3 && !counter.low_read {
            counter.low_read = true;
            self.append(LOW_READ + base, access);
        } else {
            counter.low_read = false;
            self.discard(&[LATCH + base, LOW_READ + base]);
        }
    }

    /// Captures the timer. Nothing changes for the guest.
    ///
    /// # Errors
    ///
    /// A log that has lost an access, or storage that is too small.
    pub fn capture(
        &mut self,
        backend: &mut dyn Backend,
        sink: &mut Sink<'_, StateRecord>,
    ) -> Result<(), CaptureError> {
        if self.log.overflowed() {
            return Err(CaptureError::LogOverflow);
        }
        put_log(REGISTERS, self.log.entries(), sink)?;
        for register in REGISTERS
            .iter()
            .filter(|register| register.fate == F::ReadBack)
        {
            let value = backend.read(register.at, register.width) & PORT61_MASK;
            sink.push(record(register, value))?;
        }
        if let Some(hidden) = backend.hidden() {
            for register in REGISTERS
                .iter()
                .filter(|register| register.access == A::Hidden)
            {
                sink.push(record(register, hidden.get(register.id)))?;
            }
        }
        Ok(())
    }
}

impl crate::record::Recorder for Recorder {
    fn after(&mut self, access: &Access) {
        each_byte(access, |byte| self.after_byte(byte));
    }

    fn classify(&self, access: &Access) -> Option<u16> {
        let value = access.value;
        let (index, register) = match (access.at.range, access.at.offset, access.direction) {
            (0, 3, Direction::Write) => match (value >> 6, value & 0x30) {
                // One command latches several things; the fields tell all. What is outstanding already is not latched.
                (3, _) => {
                    let selected = (0..3).filter(|index| value & (2 << index) != 0);
                    let parts = selected.flat_map(|index| {
                        let parts = [(0x10, STATUS_LATCH), (0x20, LATCH)];
                        let asked = parts.into_iter().filter(|(not, _)| value & not == 0);
                        asked.map(move |(_, register)| (index, register))
                    });
                    parts
                        .clone()
                        .find(|(index, part)| self.log.last_of(part + base(*index)).is_none())
                        .or_else(|| parts.clone().next())?
                }
                (index, 0) => (index as usize, LATCH),
                (index, _) => (index as usize, CONTROL),
            },
            (0, index @ 0..=2, direction) => {
                let index = index as usize;
                let counter = &self.counters[index];
                let register = match (direction, counter.format) {
                    (Direction::Read, _)
                        if self.log.last_of(STATUS_LATCH + base(index)).is_some() =>
                    {
                        STATUS_READ
                    }
                    (Direction::Read, 2) => HIGH_READ,
                    (Direction::Read, 3) if counter.low_read => HIGH_READ,
                    (Direction::Read, _) => LOW_READ,
                    (Direction::Write, 2) => HIGH,
                    (Direction::Write, 3) if counter.low_written => HIGH,
                    (Direction::Write, _) => LOW,
                };
                (index, register)
            }
            _ => return None,
        };
        Some(register + base(index))
    }
}

/// Distance of a counter's registers from those of counter 0.
const fn base(index: usize) -> u16 {
    COUNTER * index as u16
}

/// Offsets of `range` that must exit to the recorder: everything but port 61h, which can be read back.
pub const fn traps(range: u8) -> u64 {
    match range {
        0 => 0b1111,
        _ => 0,
    }
}

/// Which counter a register belongs to, and what it is.
const fn split(id: u16) -> (u16, u16) {
    (id / COUNTER, id % COUNTER)
}

/// The plan before such a device is given to a guest: no step. The host's own is never given away; a model is fresh.
///
/// # Errors
///
/// None.
pub fn reset(_: &mut Sink<'_, PlanStep>) -> Result<(), PlanError> {
    Ok(())
}

/// Makes the plan that brings a fresh timer into the state of `records`, which a peer has sent.
///
/// Order: programming, in the guest's order; a check of each programmed counter by its status; latches and half-read
/// counts, which a check would use up; port 61h, whose gate starts counter 2; what only a model can be told, and the
/// tick last, so that nothing is counted in between. The clock of the VM must have been set before.
///
/// # Errors
///
/// [`PlanError`] names the register of the first record that a guest can't have caused.
pub fn plan(records: &[StateRecord], sink: &mut Sink<'_, PlanStep>) -> Result<(), PlanError> {
    let mut retraced = Recorder::new();
    let mut port61 = None;
    for (index, record) in records.iter().enumerate() {
        let register = known(NAME, REGISTERS, record)?;
        let (counter, item) = split(register.id);
        match (register.id, item) {
            (_, LOW_READ) if register.access != A::Hidden => {
                let access = Access::read(register.at, Width::W1, 0);
                retrace(&mut retraced, |recorder| recorder.newest, register, &access)?;
            }
            (PORT61, _) if port61.is_some() => {
                return Err(PlanError::Repeated {
                    register: register.name,
                })
            }
            (PORT61, _) if record.value & !PORT61_MASK != 0 => {
                return Err(impossible(register, record))
            }
            (PORT61, _) => port61 = Some(record.value),
            _ if register.access == A::Hidden => {
                if records
                    .iter()
                    .take(index)
                    .any(|other| other.register == register.id)
                {
                    return Err(PlanError::Repeated {
                        register: register.name,
                    });
                }
            }
            _ => {
                let canonical = match item {
                    CONTROL => record.value >> 6 == u64::from(counter) && record.value & 0x30 != 0,
                    LATCH => record.value == u64::from(counter) << 6,
                    STATUS_LATCH => record.value == 0xe0 | 2 << counter,
                    _ => true,
                };
                if !canonical {
                    return Err(impossible(register, record));
                }
                let access = Access::write(register.at, Width::W1, record.value);
                retrace(&mut retraced, |recorder| recorder.newest, register, &access)?;
            }
        }
    }
    let port61 = port61.ok_or(PlanError::Missing {
        register: "port 61h",
    })?;

    let mut plan = Plan::new(REGISTERS, sink);
    let entries = retraced.log.entries();
    let programs = |entry: &&Entry| matches!(split(entry.register).1, CONTROL | LOW | HIGH);
    for entry in entries.iter().filter(programs) {
        plan.write(entry.register, entry.access.value)?;
    }
    for entry in entries
        .iter()
        .filter(|entry| split(entry.register).1 == CONTROL)
    {
        let counter = split(entry.register).0;
        plan.write(STATUS_LATCH + counter * COUNTER, 0xe0 | 2 << counter)?;
        plan.check_at(
            entry.register,
            Location::new(0, counter.into()),
            entry.access.value,
            0x3f,
        )?;
    }
    for entry in entries.iter().filter(|entry| !programs(entry)) {
        match entry.access.direction {
            Direction::Write => plan.write(entry.register, entry.access.value)?,
            Direction::Read => plan.read(entry.register)?,
        }
    }
    plan.write(PORT61, port61)?;
    plan.check(PORT61, port61, PORT61_MASK)?;
    let hidden = |tick: bool| {
        records.iter().filter(move |record| {
            let id = record.register;
            (id == TICK) == tick && (id == TICK || id == BACKLOG || hidden_item(id).is_some())
        })
    };
    for record in hidden(false).chain(hidden(true)) {
        plan.set(record.register, record.value)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
