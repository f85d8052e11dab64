// SPDX-License-Identifier: GPL-2.0
//! Kind "i8259": the pair of 8259A interrupt controllers with ELCR.
//!
//! On the path: the recorder below sees the guest's accesses after the device has had them; capture joins its log with
//! what is read back and what the model knows; the plan brings a fresh pair there. Range 0 is the master (20h-21h),
//! range 1 the slave (A0h-A1h), range 2 ELCR (4D0h-4D1h).
//!
//! Classified by port, by the data bits 4 and 3 (ICW1, OCW2, OCW3), by how far an initialization has come, and by what
//! ICW1 said (SNGL, IC4): Intel's 8259A data sheet (231468), "Programming the 8259A". One OCW3 carries up to three
//! commands; each is logged by itself.
#![forbid(unsafe_code)]

use super::error::{CaptureError, PlanError};
use super::field::Field;
use super::register::{Access as A, Fate as F, Register, Shown};
use super::sink::Sink;
use super::step::{impossible, known, put_log, record, retrace, Plan};
use crate::iospace::{Access, Direction, Location, Width};
use crate::record::{each_byte, Log};
use crate::replay::Backend;
use pvmm_uapi::{PlanStep, StateRecord};

/// Name of the kind.
pub const NAME: &str = "i8259";
/// Version of the state's layout.
pub const STATE_VERSION: u32 = 1;
/// Lengths of the kind's ranges in bytes.
pub const RANGES: &[u64] = &[2, 2, 2];

/// ICW1 of the master. The slave's registers have the same numbers plus [`SLAVE`].
pub const ICW1: u16 = 1;
/// ICW2.
pub const ICW2: u16 = 2;
/// ICW3.
pub const ICW3: u16 = 3;
/// ICW4.
pub const ICW4: u16 = 4;
/// OCW1, the interrupt mask register.
pub const OCW1: u16 = 5;
/// OCW2 with a set-priority command.
pub const OCW2_PRIORITY: u16 = 6;
/// OCW2 with a rotate-in-automatic-EOI command.
pub const OCW2_AUTO_ROTATE: u16 = 7;
/// OCW3 with a special-mask command.
pub const OCW3_MASK: u16 = 8;
/// OCW3 with a read-register command.
pub const OCW3_READ: u16 = 9;
/// OCW3 with a poll command.
pub const OCW3_POLL: u16 = 10;
/// OCW2 with an EOI, or without a command.
pub const OCW2_EOI: u16 = 15;
/// IRR or ISR, whichever OCW3 has selected.
pub const STATUS: u16 = 16;
/// Offset of the slave's register numbers.
pub const SLAVE: u16 = 32;
/// Levels of the master's inputs, and which of them are held pulses (high byte).
pub const MASTER_INPUTS: u16 = 11;
/// Edges latched in the master's request register.
pub const MASTER_IRR: u16 = 12;
/// The master's in-service register.
pub const MASTER_ISR: u16 = 13;
/// The master's input of lowest priority.
pub const MASTER_LOWEST: u16 = 14;
/// Levels of the slave's inputs, and which of them are held pulses (high byte).
pub const SLAVE_INPUTS: u16 = MASTER_INPUTS + SLAVE;
/// Edges latched in the slave's request register.
pub const SLAVE_IRR: u16 = MASTER_IRR + SLAVE;
/// The slave's in-service register.
pub const SLAVE_ISR: u16 = MASTER_ISR + SLAVE;
/// The slave's input of lowest priority.
pub const SLAVE_LOWEST: u16 = MASTER_LOWEST + SLAVE;
/// ELCR1.
pub const ELCR1: u16 = 65;
/// ELCR2.
pub const ELCR2: u16 = 66;

const ICW1_FIELDS: &[Field] = &[
    Field::flag("IC4", 0),
    Field::flag("SNGL", 1),
    Field::flag("ADI", 2),
    Field::flag("LTIM", 3),
];
const ICW2_FIELDS: &[Field] = &[Field::hex("vector", 0, 8)];
const SLAVES: &[Field] = &[Field::each("slaves", 0, 8, 0)];
const SLAVE_ID: &[Field] = &[Field::number("ID", 0, 3)];
const ICW4_FIELDS: &[Field] = &[
    Field::flag("uPM", 0),
    Field::flag("AEOI", 1),
    Field::flag("M/S", 2),
    Field::flag("BUF", 3),
    Field::flag("SFNM", 4),
];
#[rustfmt::skip]
const OCW2_FIELDS: &[Field] = &[
    Field::names("", 5, 3, &[
        "rotate in AEOI off", "EOI", "no operation", "specific EOI", "rotate in AEOI on", "rotate and EOI", "set priority",
        "rotate and specific EOI",
    ]),
    Field::number("level", 0, 3),
];
const OCW3_FIELDS: &[Field] = &[
    Field::names("special mask", 5, 2, &["", "", "off", "on"]),
    Field::names("read", 0, 2, &["", "", "IRR", "ISR"]),
    Field::flag("poll", 2),
];
const MASTER_MASKED: &[Field] = &[Field::each("masked", 0, 8, 0)];
const SLAVE_MASKED: &[Field] = &[Field::each("masked", 0, 8, 8)];
const MASTER_STATUS: &[Field] = &[Field::each("IRQ", 0, 8, 0)];
const SLAVE_STATUS: &[Field] = &[Field::each("IRQ", 0, 8, 8)];
const MASTER_INPUT_FIELDS: &[Field] =
    &[Field::each("high", 0, 8, 0), Field::each("pulses", 8, 8, 0)];
const SLAVE_INPUT_FIELDS: &[Field] =
    &[Field::each("high", 0, 8, 8), Field::each("pulses", 8, 8, 8)];
const LOWEST_FIELDS: &[Field] = &[Field::number("lowest", 0, 3)];
const MASTER_LEVEL: &[Field] = &[Field::each("level", 0, 8, 0)];
const SLAVE_LEVEL: &[Field] = &[Field::each("level", 0, 8, 8)];

const INIT: &str = "part of the initialization sequence, which a new ICW1 starts again";
const LAST: &str = "the last command holds";
const EDGES: &str = "an edge that was latched is not seen again";

/// The register table.
#[rustfmt::skip]
pub const REGISTERS: &[Register] = &[
    Register::byte(ICW1, "master ICW1", (0, 0), A::WriteOnly, F::Recorded, INIT).fields(ICW1_FIELDS),
    Register::byte(ICW2, "master ICW2", (0, 1), A::WriteOnly, F::Recorded, INIT).fields(ICW2_FIELDS),
    Register::byte(ICW3, "master ICW3", (0, 1), A::WriteOnly, F::Recorded, INIT).fields(SLAVES),
    Register::byte(ICW4, "master ICW4", (0, 1), A::WriteOnly, F::Recorded, INIT).fields(ICW4_FIELDS),
    Register::byte(OCW1, "master OCW1", (0, 1), A::ReadWrite, F::Recorded, "readable, but not while a poll is pending").shown(Shown::Unlogged(OCW3_POLL)).fields(MASTER_MASKED),
    Register::byte(OCW2_PRIORITY, "master OCW2 (set priority)", (0, 0), A::WriteOnly, F::Recorded, LAST).fields(OCW2_FIELDS),
    Register::byte(OCW2_AUTO_ROTATE, "master OCW2 (rotate in AEOI)", (0, 0), A::WriteOnly, F::Recorded, LAST).fields(OCW2_FIELDS),
    Register::byte(OCW3_MASK, "master OCW3 (special mask)", (0, 0), A::WriteOnly, F::Recorded, LAST).fields(OCW3_FIELDS),
    Register::byte(OCW3_READ, "master OCW3 (read register)", (0, 0), A::WriteOnly, F::Recorded, LAST).fields(OCW3_FIELDS),
    Register::byte(OCW3_POLL, "master OCW3 (poll)", (0, 0), A::WriteOnly, F::Recorded, "pending until the next read").fields(OCW3_FIELDS),
    Register::byte(OCW2_EOI, "master OCW2 (EOI)", (0, 0), A::WriteOnly, F::Irrelevant, "what it did shows in ISR and in the priority").fields(OCW2_FIELDS),
    Register::byte(STATUS, "master IRR or ISR", (0, 0), A::ReadOnly, F::Irrelevant, "which of the two is recorded; what they hold is inferred").shown(Shown::Unlogged(OCW3_POLL)).fields(MASTER_STATUS),
    Register::hidden(MASTER_INPUTS, "master inputs", "levels tell edges from what was high before").fields(MASTER_INPUT_FIELDS),
    Register::hidden(MASTER_IRR, "master IRR", EDGES).fields(MASTER_STATUS),
    Register::hidden(MASTER_ISR, "master ISR", "readable, but set by nothing but an acknowledge").fields(MASTER_STATUS),
    Register::hidden(MASTER_LOWEST, "master priority", "rotated by EOI commands").fields(LOWEST_FIELDS),
    Register::byte(ICW1 + SLAVE, "slave ICW1", (1, 0), A::WriteOnly, F::Recorded, INIT).fields(ICW1_FIELDS),
    Register::byte(ICW2 + SLAVE, "slave ICW2", (1, 1), A::WriteOnly, F::Recorded, INIT).fields(ICW2_FIELDS),
    Register::byte(ICW3 + SLAVE, "slave ICW3", (1, 1), A::WriteOnly, F::Recorded, INIT).fields(SLAVE_ID),
    Register::byte(ICW4 + SLAVE, "slave ICW4", (1, 1), A::WriteOnly, F::Recorded, INIT).fields(ICW4_FIELDS),
    Register::byte(OCW1 + SLAVE, "slave OCW1", (1, 1), A::ReadWrite, F::Recorded, "readable, but not while a poll is pending").shown(Shown::Unlogged(OCW3_POLL + SLAVE)).fields(SLAVE_MASKED),
    Register::byte(OCW2_PRIORITY + SLAVE, "slave OCW2 (set priority)", (1, 0), A::WriteOnly, F::Recorded, LAST).fields(OCW2_FIELDS),
    Register::byte(OCW2_AUTO_ROTATE + SLAVE, "slave OCW2 (rotate in AEOI)", (1, 0), A::WriteOnly, F::Recorded, LAST).fields(OCW2_FIELDS),
    Register::byte(OCW3_MASK + SLAVE, "slave OCW3 (special mask)", (1, 0), A::WriteOnly, F::Recorded, LAST).fields(OCW3_FIELDS),
    Register::byte(OCW3_READ + SLAVE, "slave OCW3 (read register)", (1, 0), A::WriteOnly, F::Recorded, LAST).fields(OCW3_FIELDS),
    Register::byte(OCW3_POLL + SLAVE, "slave OCW3 (poll)", (1, 0), A::WriteOnly, F::Recorded, "pending until the next read").fields(OCW3_FIELDS),
    Register::byte(OCW2_EOI + SLAVE, "slave OCW2 (EOI)", (1, 0), A::WriteOnly, F::Irrelevant, "what it did shows in ISR and in the priority").fields(OCW2_FIELDS),
    Register::byte(STATUS + SLAVE, "slave IRR or ISR", (1, 0), A::ReadOnly, F::Irrelevant, "which of the two is recorded; what they hold is inferred").shown(Shown::Unlogged(OCW3_POLL + SLAVE)).fields(SLAVE_STATUS),
    Register::hidden(SLAVE_INPUTS, "slave inputs", "levels tell edges from what was high before").fields(SLAVE_INPUT_FIELDS),
    Register::hidden(SLAVE_IRR, "slave IRR", EDGES).fields(SLAVE_STATUS),
    Register::hidden(SLAVE_ISR, "slave ISR", "readable, but set by nothing but an acknowledge").fields(SLAVE_STATUS),
    Register::hidden(SLAVE_LOWEST, "slave priority", "rotated by EOI commands").fields(LOWEST_FIELDS),
    Register::byte(ELCR1, "ELCR1", (2, 0), A::ReadWrite, F::ReadBack, "readable").fields(MASTER_LEVEL),
    Register::byte(ELCR2, "ELCR2", (2, 1), A::ReadWrite, F::ReadBack, "readable").fields(SLAVE_LEVEL),
];

/// State that only a model has, in the order in which it is set.
const HIDDEN: [u16; 8] = [
    MASTER_INPUTS,
    MASTER_IRR,
    MASTER_ISR,
    MASTER_LOWEST,
    SLAVE_INPUTS,
    SLAVE_IRR,
    SLAVE_ISR,
    SLAVE_LOWEST,
];

/// Bound of the log: ten registers of each chip, each at most once.
pub const LOG_BOUND: usize = 20;

/// What the recorder knows of one chip.
#[derive(Debug, Clone, Copy, Default)]
struct Chip {
    /// The initialization command word that the odd port takes next, 2 to 4; 0 when it is the mask.
    expects: u16,
    needs_icw4: bool,
    single: bool,
    /// A rotation depended on what was in service.
    rotated: bool,
}

/// The recorder of an 8259A pair.
#[derive(Debug, Clone, Copy, Default)]
pub struct Recorder {
    log: Log<LOG_BOUND>,
    chips: [Chip; 2],
    /// The register of the last write that was logged.
    newest: Option<u16>,
}

impl Recorder {
    /// A recorder for a pair that nobody has programmed.
    pub const fn new() -> Self {
        const CHIP: Chip = Chip {
            expects: 0,
            needs_icw4: false,
            single: false,
            rotated: false,
        };
        Self {
            log: Log::new(),
            chips: [CHIP; 2],
            newest: None,
        }
    }

    /// The log.
    pub const fn log(&self) -> &Log<LOG_BOUND> {
        &self.log
    }

    fn keep(&mut self, register: u16, access: Access) {
        self.log.replace(register, access);
        self.newest = Some(register);
    }

    fn after_byte(&mut self, access: Access) {
        self.newest = None;
        let (chip, base) = match access.at.range {
            0 => (&mut self.chips[0], 0),
            1 => (&mut self.chips[1], SLAVE),
            _ => return,
        };
        let value = access.value;
        match (access.direction, access.at.offset) {
            // A read of either port answers a pending poll.
            (Direction::Read, 0..=1) => self
                .log
                .drop_where(|entry| entry.register == OCW3_POLL + base),
            (Direction::Write, 0) if value & 0x10 != 0 => {
                *chip = Chip {
                    expects: ICW2,
                    needs_icw4: value & 1 != 0,
                    single: value & 2 != 0,
                    rotated: false,
                };
                self.log
                    .drop_where(|entry| (base..base + SLAVE).contains(&entry.register));
                self.keep(ICW1 + base, access);
            }
            (Direction::Write, 0) if value & 0x08 != 0 => self.after_ocw3(base, access),
            (Direction::Write, 0) => match value >> 5 {
                0b110 | 0b111 => {
                    chip.rotated = false;
                    self.keep(OCW2_PRIORITY + base, with(access, 0xc0 | value & 7));
                }
                0b000 | 0b100 => self.keep(OCW2_AUTO_ROTATE + base, with(access, value & 0x80)),
                0b101 => chip.rotated = true,
                // An EOI without rotation leaves nothing behind but its effect on ISR.
                _ => {}
            },
            (Direction::Write, 1) => {
                let register = match chip.expects {
                    0 => OCW1,
                    icw => icw,
                };
                chip.expects = match register {
                    ICW2 if !chip.single => ICW3,
                    ICW2 | ICW3 if chip.needs_icw4 => ICW4,
                    _ => 0,
                };
                self.keep(register + base, access);
            }
            _ => {}
        }
    }

    fn after_ocw3(&mut self, base: u16, access: Access) {
        let value = access.value;
        if value & 0x40 != 0 {
            self.keep(OCW3_MASK + base, with(access, 0x48 | value & 0x20));
        }
        if value & 0x02 != 0 {
            self.keep(OCW3_READ + base, with(access, 0x0a | value & 0x01));
        }
        if value & 0x04 != 0 {
            self.keep(OCW3_POLL + base, with(access, 0x0c));
        }
    }

    /// Captures the pair. Nothing changes for the guest.
    ///
    /// # Errors
    ///
    /// Of hardware, only a pair with nothing in service and an unrotated priority can be captured: the rest has no
    /// register to put it back.
    pub fn capture(
        &mut self,
        backend: &mut dyn Backend,
        sink: &mut Sink<'_, StateRecord>,
    ) -> Result<(), CaptureError> {
        if self.log.overflowed() {
            return Err(CaptureError::LogOverflow);
        }
        if backend.hidden().is_none() {
            self.check_at_rest(backend)?;
        }
        put_log(REGISTERS, self.log.entries(), sink)?;
        for register in REGISTERS
            .iter()
            .filter(|register| register.fate == F::ReadBack)
        {
            sink.push(record(register, backend.read(register.at, register.width)))?;
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

    fn check_at_rest(&self, backend: &mut dyn Backend) -> Result<(), CaptureError> {
        for (range, base, chip) in [(0, 0, self.chips[0]), (1, SLAVE, self.chips[1])] {
            if chip.rotated {
                return Err(CaptureError::Unknowable {
                    register: MASTER_LOWEST + base,
                });
            }
            // With a poll pending, a read would acknowledge an interrupt.
            if self.log.last_of(OCW3_POLL + base).is_some() {
                return Err(CaptureError::Busy {
                    register: OCW3_POLL + base,
                });
            }
            let even = Location::new(range, 0);
            let selected = self
                .log
                .last_of(OCW3_READ + base)
                .map_or(0x0a, |entry| entry.access.value);
            backend.write(even, Width::W1, 0x0b);
            let in_service = backend.read(even, Width::W1);
            backend.write(even, Width::W1, selected);
            if in_service & 0xff != 0 {
                return Err(CaptureError::Busy {
                    register: MASTER_ISR + base,
                });
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
        let (chip, base) = match access.at.range {
            0 => (&self.chips[0], 0),
            1 => (&self.chips[1], SLAVE),
            _ => return None,
        };
        let polled = self.log.last_of(OCW3_POLL + base).is_some();
        let value = access.value;
        let register = match (access.direction, access.at.offset) {
            (Direction::Read, 0..=1) if polled => OCW3_POLL,
            (Direction::Read, 0) => STATUS,
            (Direction::Write, 0) if value & 0x10 != 0 => ICW1,
            (Direction::Write, 0) if value & 0x08 != 0 => match value {
                _ if value & 0x40 != 0 => OCW3_MASK,
                _ if value & 0x04 != 0 => OCW3_POLL,
                _ => OCW3_READ,
            },
            (Direction::Write, 0) => match value >> 5 {
                0b110 | 0b111 => OCW2_PRIORITY,
                0b000 | 0b100 => OCW2_AUTO_ROTATE,
                _ => OCW2_EOI,
            },
            (Direction::Write, 1) if chip.expects != 0 => chip.expects,
            (_, 1) => OCW1,
            _ => return None,
        };
        Some(register + base)
    }
}

/// The part of an access that carries one command.
const fn with(access: Access, value: u64) -> Access {
    Access { value, ..access }
}

/// Offsets of `range` that must exit to the recorder: everything but ELCR, which can be read back.
pub const fn traps(range: u8) -> u64 {
    match range {
        0 | 1 => 0b11,
        _ => 0,
    }
}

/// The plan before such a device is given to a guest: no step. The host's own is never given away; a model is fresh.
///
/// # Errors
///
/// None.
pub fn reset(_: &mut Sink<'_, PlanStep>) -> Result<(), PlanError> {
    Ok(())
}

/// Makes the plan that brings a fresh pair into the state of `records`, which a peer has sent.
///
/// Order: trigger modes before anything can be requested; the log; checks, before a poll command would eat their
/// reads; polls; what only a model can be told.
///
/// # Errors
///
/// [`PlanError`] names the register of the first record that a guest can't have caused.
pub fn plan(records: &[StateRecord], sink: &mut Sink<'_, PlanStep>) -> Result<(), PlanError> {
    let mut retraced = Recorder::new();
    let mut hidden = [None; HIDDEN.len()];
    let mut elcr = [None; 2];
    for record in records {
        let register = known(NAME, REGISTERS, record)?;
        let slot = match register.fate {
            F::Recorded => {
                let access = Access::write(register.at, register.width, record.value);
                if retraced.log.last_of(register.id).is_some() {
                    return Err(PlanError::Repeated {
                        register: register.name,
                    });
                }
                retrace(&mut retraced, |recorder| recorder.newest, register, &access)?;
                // Bits that the recorder does not keep are not part of the register.
                if retraced
                    .log
                    .last_of(register.id)
                    .map(|entry| entry.access.value)
                    != Some(record.value)
                {
                    return Err(impossible(register, record));
                }
                continue;
            }
            F::ReadBack => elcr.get_mut(usize::from(register.id - ELCR1)),
            _ => HIDDEN
                .iter()
                .position(|&id| id == register.id)
                .and_then(|index| hidden.get_mut(index)),
        };
        match slot {
            Some(slot @ None) => *slot = Some(record.value),
            _ => {
                return Err(PlanError::Repeated {
                    register: register.name,
                })
            }
        }
    }
    let mut plan = Plan::new(REGISTERS, sink);
    for (id, value) in [ELCR1, ELCR2].into_iter().zip(elcr) {
        let value = value.ok_or(PlanError::Missing {
            register: if id == ELCR1 { "ELCR1" } else { "ELCR2" },
        })?;
        plan.write(id, value)?;
        plan.check(id, value, 0xff)?;
    }
    let entries = retraced.log.entries();
    let is_poll = |id: u16| id == OCW3_POLL || id == OCW3_POLL + SLAVE;
    for entry in entries.iter().filter(|entry| !is_poll(entry.register)) {
        plan.write(entry.register, entry.access.value)?;
    }
    for base in [0, SLAVE] {
        // ICW1 clears the mask. A chip that was never initialized has nothing to be checked, and may have a poll pending
        // from before, if this plan puts its own state back.
        let initialized = retraced.log.last_of(ICW1 + base).is_some();
        let mask = retraced
            .log
            .last_of(OCW1 + base)
            .map_or(0, |entry| entry.access.value);
        if initialized {
            plan.check(OCW1 + base, mask, 0xff)?;
        }
    }
    for entry in entries.iter().filter(|entry| is_poll(entry.register)) {
        plan.write(entry.register, entry.access.value)?;
    }
    for (id, value) in HIDDEN.into_iter().zip(hidden) {
        if let Some(value) = value {
            plan.set(id, value)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
