// SPDX-License-Identifier: GPL-2.0
//! The records of protocol version 1: their kinds, limits and payloads.
//!
//! Place on the path: what the source says and what the target answers, in the order of [`crate::phase`]. Payloads are serde
//! types of the stream's own ([`crate::state`] for the large ones), so that a change of an ioctl structure is a decision here
//! and not an accident. Pages have their own layout, [`crate::pages`].

use crate::description::VmDescription;
use crate::refusal::Refusal;
use crate::session::Outcome;
use crate::state::{ChipsetRecord, ClockRecord, DeviceRecord, VcpuRecord};
use crate::vm::UserDeviceState;
use crate::wire::MAX_USER_DEVICE_BYTES;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Most bytes of a [`Kind::Probe`].
pub const PROBE_SIZE: usize = 256 << 10;

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $number:literal, $name:literal, limit $limit:expr;)*) => {
        /// What a record is.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum Kind {
            $($(#[$doc])* $kind = $number,)*
        }

        impl Kind {
            /// All kinds.
            pub const ALL: &'static [Self] = &[$(Self::$kind),*];

            /// The kind of a number on the wire.
            pub const fn from_number(number: u16) -> Option<Self> {
                match number {
                    $($number => Some(Self::$kind),)*
                    _ => None,
                }
            }

            /// Its name in errors.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)*
                }
            }

            /// Most bytes of payload.
            pub const fn limit(self) -> u32 {
                match self {
                    $(Self::$kind => $limit,)*
                }
            }
        }
    };
}

kinds! {
    /// Source: [`VmDescription`].
    Describe = 1, "describe", limit 64 << 10;
    /// Source: a batch of pages, see [`crate::pages`].
    Pages = 2, "pages", limit crate::pages::MAX_PAYLOAD as u32;
    /// Source: [`RoundEnd`].
    RoundEnd = 3, "round-end", limit 64;
    /// Source: [`Paused`].
    Paused = 4, "paused", limit 64;
    /// Source: [`VcpuRecord`].
    Vcpu = 5, "vcpu", limit 16 << 10;
    /// Source: [`ChipsetRecord`].
    Chipset = 6, "chipset", limit 4 << 10;
    /// Source: [`ClockRecord`].
    Clock = 7, "clock", limit 256;
    /// Source: [`DeviceRecord`].
    Device = 8, "device", limit 16 << 10;
    /// Source: [`UserDeviceState`].
    UserDevice = 9, "user-device", limit MAX_USER_DEVICE_BYTES as u32 + 1024;
    /// Source: [`StateEnd`].
    StateEnd = 10, "state-end", limit 64;
    /// Source: [`Commit`].
    Commit = 11, "commit", limit 64;
    /// Source: [`Ping`].
    Ping = 12, "ping", limit 64;
    /// Source: bytes that nothing is done with, to measure what the link takes. Only where nothing is moved.
    Probe = 13, "probe", limit PROBE_SIZE as u32;
    /// Target: [`Accepted`].
    Accepted = 32, "accepted", limit 4 << 10;
    /// Target: [`Refusal`].
    Refused = 33, "refused", limit 256 << 10;
    /// Target: [`RoundDone`].
    RoundDone = 34, "round-done", limit 64;
    /// Target: [`Prepared`].
    Prepared = 35, "prepared", limit 256;
    /// Target: [`Running`].
    Running = 36, "running", limit 256;
    /// Target: [`Pong`].
    Pong = 37, "pong", limit 64;
    /// Target: [`OutcomeAnswer`].
    Outcome = 38, "outcome", limit 64 << 10;
    /// Either: [`GivingUp`].
    GivingUp = 48, "giving-up", limit 64 << 10;
}

impl Kind {
    /// Its number on the wire.
    pub const fn number(self) -> u16 {
        self as u16
    }

    /// Version of its payload in this build. A record of another one is refused.
    pub const fn version(self) -> u16 {
        1
    }
}

/// A payload that goes through the codec.
pub trait Payload: Serialize + DeserializeOwned {
    /// Its kind.
    const KIND: Kind;
}

macro_rules! payloads {
    ($($type:ty => $kind:ident),* $(,)?) => {
        $(impl Payload for $type {
            const KIND: Kind = Kind::$kind;
        })*
    };
}

payloads! {
    VmDescription => Describe,
    RoundEnd => RoundEnd,
    Paused => Paused,
    VcpuRecord => Vcpu,
    ChipsetRecord => Chipset,
    ClockRecord => Clock,
    DeviceRecord => Device,
    UserDeviceState => UserDevice,
    StateEnd => StateEnd,
    Commit => Commit,
    Ping => Ping,
    Accepted => Accepted,
    Refusal => Refused,
    RoundDone => RoundDone,
    Prepared => Prepared,
    Running => Running,
    Pong => Pong,
    OutcomeAnswer => Outcome,
    GivingUp => GivingUp,
}

/// All pages of a round have been sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoundEnd {
    /// The round, from 1.
    pub round: u64,
    /// No pages follow.
    pub last: bool,
}

/// The answer to [`RoundEnd`]: all its pages are in the guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoundDone {
    /// The round.
    pub round: u64,
}

/// The guest has just been paused. Sent at once and with nothing before it on the way, so that the target's own clock can
/// measure the pause from here; see [`crate::clock`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paused {
    /// Rounds before it; 0 for stop-and-copy.
    pub rounds: u64,
}

/// All state has been sent. The counts are those of the records before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateEnd {
    /// [`Kind::Vcpu`] records.
    pub vcpus: u32,
    /// [`Kind::Device`] records.
    pub devices: u32,
    /// [`Kind::UserDevice`] records.
    pub user_devices: u32,
}

/// From here on only the target may run the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    /// The session once more: a commit is never taken for another guest.
    pub session: crate::session::SessionId,
}

/// Asks for a [`Pong`], to measure the round trip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ping {
    /// Comes back.
    pub sequence: u32,
}

/// The answer to [`Ping`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pong {
    /// That of the ping.
    pub sequence: u32,
}

/// The guest fits; memory is allocated, devices are claimed, pages may come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// Who receives, for the log.
    pub producer: String,
}

/// Everything is restored and verified; the target waits for the commit. Times are in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepared {
    /// Restoring vCPUs.
    pub cpu_us: u64,
    /// Restoring and verifying chipset, devices and clock.
    pub device_us: u64,
}

/// The guest runs at the target. Times are in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// From the receipt of [`Paused`] to the guest's start, by the target's clock.
    pub paused_us: u64,
    /// From the receipt of the commit to the guest's start.
    pub start_us: u64,
}

/// What became of the session that the preamble names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutcomeAnswer {
    /// The outcome.
    pub outcome: Outcome,
}

/// This side ends the move. From the target it also says that the guest has not run there and will not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivingUp {
    /// Why.
    pub reason: String,
}
