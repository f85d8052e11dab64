// SPDX-License-Identifier: GPL-2.0
//! What is known about a move while it goes on and afterwards, in the shape and with the keys of QMP's `query-migrate`,
//! so that programs that read QEMU's answer read this one.
//!
//! Times are in milliseconds, sizes in bytes. Keys that QMP lacks: `in-doubt` (a status), `progress-percent`, `phase`,
//! `phases`, `breakdown`, `downtime-breakdown`, `devices`.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// QMP's `MigrationStatus`, as far as it applies, and `in-doubt`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// Nothing was started.
    #[default]
    None,
    /// Connecting, comparing, preparing the target.
    Setup,
    /// Memory is being copied, the guest runs at the source.
    Active,
    /// The guest is paused; last pages, CPU and device state are on their way.
    Device,
    /// The guest runs at the target.
    Completed,
    /// The move failed; the guest runs at the source.
    Failed,
    /// Somebody asked to cancel.
    Cancelling,
    /// Cancelled; the guest runs at the source.
    Cancelled,
    /// The source has committed and does not know whether the target did: the guest is paused at the source until the
    /// target answers or the operator decides.
    InDoubt,
}

impl Status {
    /// Whether the move is over, one way or the other.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

/// `ram` of `query-migrate`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Ram {
    /// Bytes on the wire so far.
    pub transferred: u64,
    /// Bytes of memory that are still to be sent.
    pub remaining: u64,
    /// Bytes of memory of the guest.
    pub total: u64,
    /// Pages that were zero and therefore not sent.
    pub duplicate: u64,
    /// Pages sent.
    pub normal: u64,
    /// Bytes of pages sent.
    pub normal_bytes: u64,
    /// Pages that the guest dirtied per second, in the last round.
    pub dirty_pages_rate: u64,
    /// Throughput of this round so far, or of the last one, in megabits per second.
    pub mbps: f64,
    /// Number of rounds begun.
    pub dirty_sync_count: u64,
    /// Bytes of a page.
    pub page_size: u64,
}

/// Where the time went, in milliseconds: the split of the papers on migration by I/O recording.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Breakdown {
    /// Guest memory.
    pub memory: f64,
    /// vCPU state: capture, transfer, restore.
    pub cpu_state: f64,
    /// Chipset, recorded and userspace devices: capture, transfer, restore, verification.
    pub device_state: f64,
    /// Everything else: handshake, preparation, stopping, commit, round trips.
    pub other: f64,
    /// The sum.
    pub total: f64,
    /// How much of it the guest was paused.
    pub downtime: f64,
}

impl Breakdown {
    /// Splits `total`; what the three parts leave is `other`. The parts of the two hosts overlap a little, so `other`
    /// stops at 0.
    pub fn new(
        memory: Duration,
        cpu_state: Duration,
        device_state: Duration,
        total: Duration,
        downtime: Duration,
    ) -> Self {
        let other = total
            .saturating_sub(memory)
            .saturating_sub(cpu_state)
            .saturating_sub(device_state);
        Self {
            memory: ms(memory),
            cpu_state: ms(cpu_state),
            device_state: ms(device_state),
            other: ms(other),
            total: ms(total),
            downtime: ms(downtime),
        }
    }
}

/// Milliseconds to the microsecond.
pub fn ms(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

/// One phase and how long it took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PhaseTime {
    /// Its name.
    pub phase: String,
    /// Milliseconds.
    pub ms: f64,
}

/// What was moved of one device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DeviceStatistics {
    /// The kind's name, or the userspace device's.
    pub name: String,
    /// Its number; absent for a userspace device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<u32>,
    /// State records captured, or 0 for a userspace device.
    pub registers_saved: u64,
    /// Bytes of state.
    pub bytes: u64,
}

/// The answer to `query-migrate`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Statistics {
    /// How the move stands.
    pub status: Status,
    /// The phase that it is in or that it ended in.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub phase: String,
    /// Milliseconds since the start.
    pub total_time: u64,
    /// Milliseconds until the first page.
    pub setup_time: u64,
    /// Milliseconds that the guest was paused; absent until it has been.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub downtime: Option<u64>,
    /// Milliseconds that the pause would take now; absent until there is a measurement.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub expected_downtime: Option<u64>,
    /// Memory.
    pub ram: Ram,
    /// How far the move is, 0 to 100. Never goes back.
    pub progress_percent: u8,
    /// Where the time of the whole move went.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub breakdown: Option<Breakdown>,
    /// Where the time of the pause went.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub downtime_breakdown: Option<Breakdown>,
    /// The devices that were moved.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub devices: Vec<DeviceStatistics>,
    /// The phases so far.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub phases: Vec<PhaseTime>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error_desc: Option<String>,
}
