// SPDX-License-Identifier: GPL-2.0
//! Pre-copy: rounds over the guest's memory while it runs, and the decision when to pause it.
//!
//! Each round sends the pages that are left, waits until the target has stored them, and then asks for those that the guest
//! wrote meanwhile. The guest is paused when
//!
//! ```text
//! bytes left / measured bandwidth + CPU and device state + round trips  <=  downtime limit
//! ```
//!
//! Bandwidth is measured from the first byte of a round to the target's answer, so it counts what the target can store and
//! not what fits into socket buffers. A round of less than [`MEASURABLE`] bytes says more about the round trip than about the
//! bandwidth; it never lowers the estimate. Where this never comes true, the timeout decides: fail with the numbers, or
//! pause anyway (`--timeout-action suspend`).

use super::Source;
use crate::error::Error;
use crate::job::whole_ms;
use crate::message::Kind;
use crate::options::{SourceOptions, TimeoutAction};
use crate::pages::{Batch, Frames, BATCH_PAGES};
use crate::phase::Scope;
use crate::vm::PAGE_SIZE;
use std::time::{Duration, Instant};

/// A round of fewer bytes does not lower the bandwidth estimate.
const MEASURABLE: u64 = 1 << 20;
/// Round trips inside the downtime: last pages, state, commit, and one for the marker.
const ROUND_TRIPS: u32 = 4;
/// Before a round is this old, what it has sent tells the size of socket buffers and not a throughput.
const SHOWABLE: Duration = Duration::from_millis(500);
/// How long pages that were read may wait for others, at most. Zero pages need next to no room, so that a batch could take in
/// all of a large guest, while the target hears nothing and takes the link for lost.
const SEND_AT_LEAST: Duration = Duration::from_millis(500);

/// What the last round taught.
#[derive(Debug, Default)]
pub(super) struct Measured {
    /// Bytes per second that the link and the target take.
    bandwidth: u64,
    /// Pages that the guest dirties per second.
    dirty_rate: u64,
    pub(super) rounds: u64,
}

impl Source<'_> {
    /// Copies memory until the rest fits into the downtime. `left` is what is to be sent, and afterwards what was left;
    /// `measured` what earlier rounds taught.
    pub(super) fn precopy(
        &mut self,
        scope: &Scope<'_>,
        left: &mut Frames,
        measured: &mut Measured,
    ) -> Result<(), Error> {
        let rate = self.options.bandwidth;
        self.channel()?.set_rate(rate);
        loop {
            measured.rounds += 1;
            let begin = Instant::now();
            let before = self.channel()?.sent;
            self.job
                .update(|statistics| statistics.ram.dirty_sync_count += 1);
            self.send_frames(scope, left, Some(measured))?;
            self.end_round(scope, measured.rounds, false)?;
            let bytes = self.channel()?.sent - before;
            let took = begin.elapsed();
            measured.bandwidth = bandwidth(measured.bandwidth, bytes, took);

            let unsent = left.len();
            self.fetch_dirty(left)?;
            // What an interrupted round left is not what the guest dirtied.
            measured.dirty_rate = per_second(left.len().saturating_sub(unsent), took);
            let expected = self.publish(measured, left, bytes, took);
            if self.suspended {
                return Ok(());
            }
            let limit = self.options.downtime_limit;
            if expected <= limit {
                return Ok(());
            }
            if self.fixed_cost() >= limit {
                return Err(Error::LimitTooLow {
                    limit_ms: whole_ms(limit),
                    fixed_ms: whole_ms(self.fixed_cost()),
                });
            }
            self.check_timeout(left, measured)?;
        }
    }

    /// What a pause costs without any memory.
    fn fixed_cost(&self) -> Duration {
        fixed_cost(self.options, self.round_trip)
    }

    /// The downtime that a pause now would mean.
    fn expected_downtime(&self, measured: &Measured, left: &Frames) -> Duration {
        let bytes = left.len().saturating_mul(PAGE_SIZE as u64);
        self.fixed_cost()
            .saturating_add(transfer_time(bytes, measured.bandwidth))
    }

    fn publish(&self, measured: &Measured, left: &Frames, bytes: u64, took: Duration) -> Duration {
        let expected = self.expected_downtime(measured, left);
        tracing::debug!(
            round = measured.rounds,
            bytes,
            left = left.len(),
            bandwidth = measured.bandwidth,
            expected_ms = whole_ms(expected),
            "round done"
        );
        self.job.update(|statistics| {
            statistics.expected_downtime = Some(whole_ms(expected));
            statistics.ram.dirty_pages_rate = measured.dirty_rate;
            statistics.ram.mbps = mbps(bytes, took);
        });
        expected
    }

    /// Acts on the timeout: an error, or the decision to pause.
    fn check_timeout(&mut self, left: &Frames, measured: &Measured) -> Result<(), Error> {
        let memory = left.total().saturating_mul(PAGE_SIZE as u64);
        match self.timeout(memory) {
            None | Some((_, TimeoutAction::Ignore)) => Ok(()),
            Some((_, TimeoutAction::Suspend)) => {
                if !self.suspended {
                    tracing::warn!("the timeout has passed: pausing the guest");
                }
                self.suspended = true;
                Ok(())
            }
            Some((timeout, TimeoutAction::Cancel)) => Err(Error::NotConverging {
                timeout,
                rounds: measured.rounds,
                remaining: left.len().saturating_mul(PAGE_SIZE as u64),
                dirty_rate: measured.dirty_rate.saturating_mul(PAGE_SIZE as u64),
                bandwidth: measured.bandwidth,
                expected_ms: whole_ms(self.expected_downtime(measured, left)),
                limit_ms: whole_ms(self.options.downtime_limit),
            }),
        }
    }

    /// Adds the pages that the guest has written since the last call.
    pub(super) fn fetch_dirty(&mut self, frames: &mut Frames) -> Result<(), Error> {
        let ranges = self
            .vm
            .fetch_dirty()
            .map_err(Error::vm("fetch the dirty pages"))?;
        for range in ranges {
            frames.insert(range.gfn, range.pages).map_err(|_| {
                Error::Inconsistent(format!(
                    "the monitor reports dirty pages outside the guest's memory: {} from frame {:#x} on",
                    range.pages, range.gfn
                ))
            })?;
        }
        Ok(())
    }

    /// Sends frames and takes them out of the set. With `precopy`, looks at the timeout between batches and, if the guest is
    /// to be paused, leaves the rest in the set.
    pub(super) fn send_frames(
        &mut self,
        scope: &Scope<'_>,
        frames: &mut Frames,
        precopy: Option<&Measured>,
    ) -> Result<(), Error> {
        let runs = frames.runs(BATCH_PAGES as u64);
        let mut unsent = frames.len();
        let start = (Instant::now(), self.channel()?.sent);
        let mut batch = Batch::default();
        let mut runs = runs.into_iter();
        let mut sent_at = Instant::now();
        for run in runs.by_ref() {
            scope.check()?;
            let (mut done, mut zero) = (0, 0);
            while done < run.pages {
                if batch.room() == 0 {
                    self.send_batch(scope, &mut batch, start)?;
                }
                let gfn = run.gfn + done;
                let count = (run.pages - done).min(batch.room() as u64);
                zero += batch
                    .add(gfn, count as usize, |buffer| {
                        self.vm.read_pages(gfn, buffer)
                    })
                    .map_err(Error::vm("read guest memory"))?;
                done += count;
            }
            if sent_at.elapsed() >= SEND_AT_LEAST {
                self.send_batch(scope, &mut batch, start)?;
                sent_at = Instant::now();
            }
            unsent -= run.pages;
            self.count(run.pages, zero, unsent);
            if let Some(measured) = precopy {
                self.check_timeout(frames, measured)?;
                if self.suspended {
                    break;
                }
            }
        }
        if !batch.is_empty() {
            self.send_batch(scope, &mut batch, start)?;
        }
        frames.clear();
        for run in runs {
            // They came out of this very set.
            let _ = frames.insert(run.gfn, run.pages);
        }
        Ok(())
    }

    /// Sends a batch of a round that began at `start`, when so many bytes had been sent.
    fn send_batch(
        &mut self,
        scope: &Scope<'_>,
        batch: &mut Batch,
        start: (Instant, u64),
    ) -> Result<(), Error> {
        let channel = self.channel()?;
        channel.send_raw(scope, Kind::Pages, batch.payload())?;
        batch.clear();
        let sent = channel.sent;
        let took = start.0.elapsed();
        self.job.update(|statistics| {
            statistics.ram.transferred = sent;
            if took >= SHOWABLE {
                statistics.ram.mbps = mbps(sent - start.1, took);
            }
        });
        Ok(())
    }

    fn count(&self, pages: u64, zero: u64, unsent: u64) {
        let page = PAGE_SIZE as u64;
        let mut processed = 0;
        self.job.update(|statistics| {
            let ram = &mut statistics.ram;
            ram.duplicate += zero;
            ram.normal += pages - zero;
            ram.normal_bytes = ram.normal.saturating_mul(page);
            ram.remaining = unsent.saturating_mul(page);
            processed = ram.duplicate + ram.normal;
        });
        self.job.progress(processed, unsent);
    }
}

/// The new estimate in bytes per second after a round.
fn bandwidth(before: u64, bytes: u64, took: Duration) -> u64 {
    let now = per_second(bytes, took).max(1);
    if bytes < MEASURABLE {
        before.max(now)
    } else {
        now
    }
}

/// Megabits per second, to the thousandth.
fn mbps(bytes: u64, took: Duration) -> f64 {
    let seconds = took.as_secs_f64().max(1e-6);
    (bytes as f64 * 8.0 / seconds / 1e3).round() / 1e3
}

/// What a pause costs without any memory.
pub(super) fn fixed_cost(options: &SourceOptions, round_trip: Duration) -> Duration {
    options.state_estimate + round_trip.saturating_mul(ROUND_TRIPS)
}

pub(super) fn per_second(count: u64, took: Duration) -> u64 {
    let nanos = took.as_nanos().max(1);
    u64::try_from(u128::from(count) * 1_000_000_000 / nanos).unwrap_or(u64::MAX)
}

/// How long `bytes` take at a bandwidth of bytes per second.
pub(super) fn transfer_time(bytes: u64, bandwidth: u64) -> Duration {
    let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(bandwidth.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_round_never_lowers_the_bandwidth_estimate() {
        let long = bandwidth(0, 100 << 20, Duration::from_secs(1));
        assert_eq!(long, 100 << 20);
        assert_eq!(bandwidth(long, 4096, Duration::from_millis(10)), long);
        assert_eq!(bandwidth(long, 50 << 20, Duration::from_secs(1)), 50 << 20);
    }

    #[test]
    fn a_transfer_takes_bytes_over_bandwidth() {
        assert_eq!(transfer_time(5 << 20, 10 << 20), Duration::from_millis(500));
        assert_eq!(transfer_time(0, 0), Duration::ZERO);
        assert_eq!(transfer_time(u64::MAX, 0), Duration::from_nanos(u64::MAX));
    }
}
