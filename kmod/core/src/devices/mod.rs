// SPDX-License-Identifier: GPL-2.0
//! Device kinds: register table, classifier, compaction, capture and restore plan of each.
//!
//! On the path a kind comes twice: its recorder sees the guest's accesses on the one host, and its plan is made from the
//! captured records on the other. A kind is one module; it is known to the rest through this file, by its `KIND_*`
//! number. Adding one is its module and its line in [`kinds`].
//!
//! [`plan`] is pure and needs nothing of the host, so that the daemon can make it; the records it takes come from a peer
//! and are not trusted.
#![forbid(unsafe_code)]

pub mod error;
pub mod field;
pub mod i8254;
pub mod i8259;
pub mod parallel;
mod peek;
pub mod register;
pub mod sink;
mod step;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
pub mod uart16550;

pub use error::{CaptureError, PlanError};
pub use register::Register;
pub use sink::{Full, Sink};

use crate::iospace::Access;
use crate::record::{LogView, Recorder};
use crate::replay::{Backend, Timing};
use pvmm_uapi::{PlanStep, StateRecord, KIND_I8254, KIND_I8259, KIND_PARALLEL, KIND_UART16550};

/// What is known about a kind without a device.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// `KIND_*`.
    pub number: u32,
    /// Its name on the command line and in messages.
    pub name: &'static str,
    /// Version of its state's layout.
    pub state_version: u32,
    /// Lengths of its ranges in bytes.
    pub ranges: &'static [u64],
    /// Its registers.
    pub registers: &'static [Register],
    /// Makes the plan from records of [`Kind::state_version`].
    plan: fn(&[StateRecord], &mut Sink<'_, PlanStep>) -> Result<(), PlanError>,
    /// Makes the plan that a device of the kind needs before it is given to a guest.
    reset: fn(&mut Sink<'_, PlanStep>) -> Result<(), PlanError>,
}

macro_rules! kinds {
    ($($number:ident $variant:ident $module:ident;)*) => {
        /// The kinds that this monitor knows.
        pub const KINDS: &[Kind] = &[
            $(Kind {
                number: $number,
                name: $module::NAME,
                state_version: $module::STATE_VERSION,
                ranges: $module::RANGES,
                registers: $module::REGISTERS,
                plan: $module::plan,
                reset: $module::reset,
            },)*
        ];

        /// The recorder of one device, whatever its kind. It changes under the lock of its device.
        #[derive(Debug, Clone, Copy)]
        pub enum RecorderState {
            $(
                #[doc = concat!("Of a device of [`", stringify!($module), "`].")]
                $variant($module::Recorder),
            )*
        }

        impl RecorderState {
            /// A recorder for a device of kind `number` that nobody has programmed. `None` for an unknown kind.
            pub const fn new(number: u32) -> Option<Self> {
                match number {
                    $($number => Some(Self::$variant($module::Recorder::new())),)*
                    _ => None,
                }
            }

            /// `KIND_*` of the device.
            pub const fn number(&self) -> u32 {
                match self {
                    $(Self::$variant(_) => $number,)*
                }
            }

            /// Its log.
            pub fn log(&self) -> LogView<'_> {
                match self {
                    $(Self::$variant(recorder) => recorder.log().view(),)*
                }
            }

            fn registers(&self) -> &'static [Register] {
                match self {
                    $(Self::$variant(_) => $module::REGISTERS,)*
                }
            }
        }

        impl Recorder for RecorderState {
            fn after(&mut self, access: &Access) {
                match self {
                    $(Self::$variant(recorder) => recorder.after(access),)*
                }
            }

            fn classify(&self, access: &Access) -> Option<u16> {
                let known = match self {
                    $(Self::$variant(recorder) => recorder.classify(access),)*
                };
                known.or_else(|| self.only_register(access))
            }
        }
    };
}

kinds! {
    KIND_I8259 I8259 i8259;
    KIND_I8254 I8254 i8254;
    KIND_UART16550 Uart16550 uart16550;
    KIND_PARALLEL Parallel parallel;
}

impl RecorderState {
    /// Offsets of `range` that must exit to this recorder now, as a bit mask. Ask again after each recorded access.
    pub fn traps(&self, range: u8) -> u64 {
        match self {
            Self::I8259(_) => i8259::traps(range),
            Self::I8254(_) => i8254::traps(range),
            Self::Uart16550(recorder) => recorder.traps(range),
            Self::Parallel(recorder) => recorder.traps(range),
        }
    }

    /// The register that an access reaches if the kind's table alone tells; of a recorder that does not see the guest's
    /// accesses.
    pub fn only_register(&self, access: &Access) -> Option<u16> {
        Some(register::reached_by(self.registers(), access)?.id)
    }

    /// Looks at the device behind `backend` without changing it: puts its log, the registers that can be read without a side
    /// effect and, of a model, what no access reaches into `sink`. `seen` says whether the recorder sees the guest's
    /// accesses. The guest stands between two accesses.
    ///
    /// # Errors
    ///
    /// [`Full`] if there is more than the sink takes.
    pub fn peek(
        &self,
        seen: bool,
        backend: &mut dyn Backend,
        sink: &mut Sink<'_, StateRecord>,
    ) -> Result<(), Full> {
        let mut log = self.log();
        log.is_complete &= seen;
        peek::peek(self.registers(), log, backend, sink)
    }

    /// Captures the device behind `backend` into `sink`. The guest is paused; may sleep. A model's clock stands still.
    ///
    /// A capture may take state out of a physical device (it says so in its kind): before the guest runs on, the plan of
    /// the records must be executed on the same device.
    ///
    /// # Errors
    ///
    /// [`CaptureError`]; the guest can run on.
    pub fn capture(
        &mut self,
        backend: &mut dyn Backend,
        timing: &mut dyn Timing,
        sink: &mut Sink<'_, StateRecord>,
    ) -> Result<(), CaptureError> {
        match self {
            Self::I8259(recorder) => recorder.capture(backend, sink),
            Self::I8254(recorder) => recorder.capture(backend, sink),
            Self::Uart16550(recorder) => recorder.capture(backend, timing, sink),
            Self::Parallel(recorder) => recorder.capture(backend, timing, sink),
        }
    }
}

/// Whether a device of kind `number` can be attached to a VM. The chipset's own devices are in every VM, as models.
pub fn is_attachable(number: u32) -> bool {
    !matches!(number, KIND_I8259 | KIND_I8254) && kind(number).is_some()
}

/// The kind of this `KIND_*` number.
pub fn kind(number: u32) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.number == number)
}

/// Name of a register of a kind, for messages and tables.
pub fn register_name(kind_number: u32, register: u16) -> Option<&'static str> {
    register::find(kind(kind_number)?.registers, register).map(|register| register.name)
}

/// Makes the plan that brings a device of kind `number` into the state that a new recorder stands for. To be executed
/// on hardware when it is given to a guest, and again when it is taken away; a model starts there, and has no steps.
///
/// # Errors
///
/// [`PlanError::UnknownKind`], or [`PlanError::Full`].
pub fn reset(number: u32, sink: &mut Sink<'_, PlanStep>) -> Result<(), PlanError> {
    let kind = kind(number).ok_or(PlanError::UnknownKind { kind: number })?;
    (kind.reset)(sink)
}

/// Makes the plan that brings a fresh device into the state of `records`, which a peer captured from a device of kind
/// `number` in state version `version`. Up to [`pvmm_uapi::MAX_PLAN_STEPS`] steps.
///
/// # Errors
///
/// [`PlanError`] names what is wrong with the records; the steps made so far must not be executed.
pub fn plan(
    number: u32,
    version: u32,
    records: &[StateRecord],
    sink: &mut Sink<'_, PlanStep>,
) -> Result<(), PlanError> {
    let kind = kind(number).ok_or(PlanError::UnknownKind { kind: number })?;
    if version != kind.state_version {
        return Err(PlanError::UnknownVersion {
            kind: kind.name,
            version,
            known: kind.state_version,
        });
    }
    (kind.plan)(records, sink)
}
