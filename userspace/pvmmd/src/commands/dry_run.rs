// SPDX-License-Identifier: GPL-2.0
//! `pvmmd migrate --dry-run`: shows what was found out.

use super::output::out;
use super::show::json;
use super::Failure;
use pvmm_control::{size, ClientError, ControlError, ErrorClass, MoveCheck};

/// Shows it.
///
/// # Errors
///
/// The guest would be refused, which is the exit code that a move would have had.
pub fn show(check: &MoveCheck, name: &str, url: &str, as_json: bool) -> Result<(), Failure> {
    if as_json {
        json(check)?;
    } else {
        table(check)?;
    }
    if check.accepted {
        return Ok(());
    }
    let text = format!("{name} would not be taken by {url}; nothing was moved");
    let refused = ControlError::new(ErrorClass::Refused, text);
    Err(ClientError::Control(refused).into())
}

fn table(check: &MoveCheck) -> Result<(), Failure> {
    if let Some(target) = &check.target {
        out!("target:             {target}")?;
    }
    for reason in &check.reasons {
        out!("refused:            {reason}")?;
    }
    for device in &check.devices {
        let label = format!("{} ({}):", device.device, device.kind);
        if device.reasons.is_empty() {
            out!("{label:<19} can move")?;
        }
        for reason in &device.reasons {
            out!("{label:<19} {reason}")?;
        }
    }
    let rate = |bytes| format!("{}/s", size::show(bytes));
    out!(
        "memory:             {}, about {} of it not zero",
        size::show(check.memory),
        size::show(check.content)
    )?;
    out!("written:            {}", rate(check.dirty_rate))?;
    out!(
        "link:               {}, round trip {:.1} ms",
        rate(check.bandwidth),
        check.round_trip as f64 / 1000.0
    )?;
    out!("expected total:     {} ms", check.expected_total_time)?;
    out!(
        "expected downtime:  {} ms (limit {} ms)",
        check.expected_downtime,
        check.downtime_limit
    )?;
    if !check.converges {
        out!(
            "The guest writes too fast for this link to come within the limit: raise --downtime-limit, use --timeout-action \
             suspend or --mode stopcopy, or a faster link."
        )?;
    }
    Ok(())
}
