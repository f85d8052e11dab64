// SPDX-License-Identifier: GPL-2.0
//! What a client is told who asks whether a guest could be moved.

use super::guest::Guest;
use super::moves;
use super::requests::devices;
use pvmm_control::reply::{DeviceCheck, DeviceInfo, MoveCheck};
use pvmm_migrate::refusal::{Concern, Reason, Refusal};
use pvmm_migrate::source::Check;
use pvmm_migrate::SourceOptions;
use std::time::Duration;

/// What was found out about a move, reason by reason at the device that it is about.
pub fn move_check(guest: &Guest, found: Check, downtime_limit: Option<u64>) -> MoveCheck {
    let infos = devices(guest);
    let mut checked: Vec<DeviceCheck> = infos
        .iter()
        .map(|info| DeviceCheck {
            device: info.device.clone(),
            kind: info.guest_kind.clone(),
            reasons: Vec::new(),
        })
        .collect();
    let mut reasons = Vec::new();
    let (target, refusal) = match found.answer {
        Ok(producer) => (Some(producer), Vec::new()),
        Err(refusal) => (None, refusal.reasons),
    };
    let is_about = |info: &DeviceInfo, concern: Concern<'_>| match concern {
        Concern::Device(number) => info.number == Some(number),
        Concern::Port(port) => info.number.is_some() && u32::from(info.port) == port,
        Concern::UserDevice(name) => info.number.is_none() && info.device == name,
    };
    for reason in refusal {
        let index = reason
            .concern()
            .and_then(|concern| infos.iter().position(|info| is_about(info, concern)));
        match index.and_then(|index| checked.get_mut(index)) {
            Some(device) => device.reasons.push(printable(&reason)),
            None => reasons.push(printable(&reason)),
        }
    }
    if let Some((index, why)) = moves::unrecorded(guest) {
        // Attached devices come last, in their order.
        let first = infos.len() - guest.devices().len();
        match checked.get_mut(first + index) {
            Some(device) => device.reasons.push(why),
            None => reasons.push(why),
        }
    }
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    MoveCheck {
        accepted: reasons.is_empty() && checked.iter().all(|device| device.reasons.is_empty()),
        target,
        reasons,
        devices: checked,
        memory: found.description.memory_size(),
        content: found.content,
        dirty_rate: found.dirty_rate,
        bandwidth: found.bandwidth,
        round_trip: u64::try_from(found.round_trip.as_micros()).unwrap_or(u64::MAX),
        expected_total_time: ms(found.prediction.total),
        expected_downtime: ms(found.prediction.downtime),
        downtime_limit: downtime_limit
            .unwrap_or_else(|| ms(SourceOptions::default().downtime_limit)),
        converges: found.prediction.converges,
    }
}

/// A reason without what a peer could do to a terminal.
fn printable(reason: &Reason) -> String {
    Refusal::from(reason.clone()).to_string()
}
