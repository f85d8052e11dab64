// SPDX-License-Identifier: GPL-2.0
//! Whether a move would succeed and what it would cost, found out without moving or pausing anything.
//!
//! Place on the path: beside [`super::migrate`], with which it shares handshake, description and answer. The target compares the
//! guest with its host as for a move. What a move would take is computed from what can be measured in a moment: what the
//! link takes, how much of the guest's memory is not zero, and how fast the guest writes pages.

use super::rounds::{fixed_cost, per_second, transfer_time};
use super::{ping, round_trip};
use crate::channel::Channel;
use crate::description::VmDescription;
use crate::error::Error;
use crate::message::{Accepted, Kind, PROBE_SIZE};
use crate::options::{Mode, SourceOptions};
use crate::phase::Scope;
use crate::refusal::Refusal;
use crate::session::SessionId;
use crate::transport::Connect;
use crate::vm::{RunState, SourceVm, PAGE_SIZE};
use crate::wire::{Offer, Purpose, PROTOCOL_VERSIONS};
use std::time::{Duration, Instant};

/// How long it may take altogether.
const LIMIT: Duration = Duration::from_secs(30);
/// The link is measured with ever more bytes until they take this long.
const PROBE_TIME: Duration = Duration::from_millis(100);
/// The first and the last number of records that the link is measured with.
const PROBE_RECORDS: (u32, u32) = (1, 128);
/// How long the guest's writes are watched.
const WATCH_TIME: Duration = Duration::from_millis(400);
/// Pages that are looked at to estimate how many are not zero.
const SAMPLES: u64 = 2048;
/// Rounds after which pre-copy is taken to go on for ever.
const MAX_ROUNDS: u32 = 64;

/// What was found out.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    /// What the guest is made of.
    pub description: VmDescription,
    /// Who would receive the guest, or every reason why it would not be taken.
    pub answer: Result<String, Refusal>,
    /// The shortest of a few round trips.
    pub round_trip: Duration,
    /// Bytes per second that the link and the target take, or that the operator allows.
    pub bandwidth: u64,
    /// Bytes of the guest's pages that are not zero, estimated from some of them.
    pub content: u64,
    /// Bytes of pages that the guest writes to per second; 0 if it does not run, or would be paused first.
    pub dirty_rate: u64,
    /// What the move would take.
    pub prediction: Prediction,
}

/// What a move would take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prediction {
    /// Until the guest runs at the target.
    pub total: Duration,
    /// How long it would be paused.
    pub downtime: Duration,
    /// Whether pre-copy would come within the downtime limit. If not, the move would take until its timeout, and
    /// `downtime` is what a pause would mean then.
    pub converges: bool,
}

/// Asks `target` whether it would take the guest, and measures. The guest runs on; nobody may move it meanwhile.
///
/// # Errors
///
/// It cannot be found out. The guest is as before.
pub fn check(
    vm: &mut dyn SourceVm,
    target: &dyn Connect,
    options: &SourceOptions,
) -> Result<Check, Error> {
    let scope = Scope::with_limit("check", LIMIT);
    let description = vm.describe().map_err(Error::vm("describe the guest"))?;
    description.validate().map_err(|why| {
        Error::Inconsistent(format!("the guest's own description is wrong: {why}"))
    })?;
    let session = SessionId::random().map_err(Error::Inconsistent)?;
    // So that a target that is this very daemon says so.
    let _sending = options
        .sessions
        .as_deref()
        .map(|sessions| sessions.sending(session));
    let link = target
        .connect()
        .map_err(|source| Error::connect(target.name(), source))?;
    let mut channel = Channel::new(link, options.stall_limit)?;
    let offer = Offer {
        purpose: Purpose::Check,
        versions: PROTOCOL_VERSIONS.to_vec(),
        session,
    };
    channel.offer(&scope, &offer)?;
    let round_trip = round_trip(&mut channel, &scope)?;
    let measured = probe(&mut channel, &scope, session)?;
    channel.send(&scope, &description)?;
    let answer = answer(&mut channel, &scope)?;
    drop(channel);

    let bandwidth = options.bandwidth.unwrap_or(u64::MAX).min(measured);
    let content = content(vm, &description)?;
    let writes = description.state == RunState::Running && options.mode == Mode::Precopy;
    let dirty_rate = match writes {
        true => dirty_rate(vm)?,
        false => 0,
    };
    let prediction = predict(
        &Figures {
            memory: description.memory_size(),
            content,
            bandwidth,
            dirty_rate,
            fixed: fixed_cost(options, round_trip),
        },
        description.state,
        options,
    );
    Ok(Check {
        description,
        answer,
        round_trip,
        bandwidth,
        content,
        dirty_rate,
        prediction,
    })
}

fn answer(channel: &mut Channel, scope: &Scope<'_>) -> Result<Result<String, Refusal>, Error> {
    let record = channel.receive(scope)?;
    match record.kind {
        Kind::Accepted => Ok(Ok(channel.decode::<Accepted>(&record)?.producer)),
        Kind::Refused => Ok(Err(channel.decode(&record)?)),
        _ => Err(channel.unexpected(&record, "accepted or refused")),
    }
}

/// Bytes per second that the link takes.
fn probe(channel: &mut Channel, scope: &Scope<'_>, session: SessionId) -> Result<u64, Error> {
    let payload = noise(session);
    let mut records = PROBE_RECORDS.0;
    loop {
        let (begin, before) = (Instant::now(), channel.sent);
        for _ in 0..records {
            channel.send_raw(scope, Kind::Probe, &payload)?;
        }
        // What waits in sockets has arrived when the answer comes.
        ping(channel, scope, records)?;
        let took = begin.elapsed();
        if took >= PROBE_TIME || records >= PROBE_RECORDS.1 {
            return Ok(per_second(channel.sent - before, took).max(1));
        }
        records *= 2;
    }
}

/// Bytes without a pattern, which no tunnel can make shorter.
fn noise(session: SessionId) -> Vec<u8> {
    // Never 0, which would stay.
    let mut state = session.0.iter().fold(1_u64, |state, byte| {
        state << 7 ^ state >> 57 ^ u64::from(*byte)
    }) | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(PROBE_SIZE / 8).flatten().collect()
}

/// Bytes of pages that are not zero, estimated from some that lie evenly in the guest's memory.
fn content(vm: &mut dyn SourceVm, description: &VmDescription) -> Result<u64, Error> {
    let page_size = PAGE_SIZE as u64;
    let total = description.memory_size() / page_size;
    let step = total.div_ceil(SAMPLES).max(1);
    let (mut looked, mut full) = (0_u64, 0_u64);
    let mut page = vec![0; PAGE_SIZE];
    // Of the first page of each range on, as far as the last one's step reaches into it.
    let mut skip = 0;
    for range in &description.memory {
        let (first, pages) = (range.gpa / page_size, range.size / page_size);
        let mut at = skip;
        while at < pages {
            vm.read_pages(first + at, &mut page)
                .map_err(Error::vm("read guest memory"))?;
            looked += 1;
            full += u64::from(page.iter().any(|byte| *byte != 0));
            at += step;
        }
        skip = at - pages;
    }
    Ok((total * full).checked_div(looked).unwrap_or(0) * page_size)
}

/// Bytes of pages that the guest writes to per second.
fn dirty_rate(vm: &mut dyn SourceVm) -> Result<u64, Error> {
    vm.start_dirty_log()
        .map_err(Error::vm("start dirty tracking"))?;
    let begin = Instant::now();
    std::thread::sleep(WATCH_TIME);
    let fetched = vm.fetch_dirty();
    let took = begin.elapsed();
    // Also if nothing could be fetched.
    vm.stop_dirty_log()
        .map_err(Error::vm("stop dirty tracking"))?;
    let ranges = fetched.map_err(Error::vm("fetch dirty pages"))?;
    let pages = ranges
        .iter()
        .fold(0_u64, |sum, range| sum.saturating_add(range.pages));
    Ok(per_second(pages.saturating_mul(PAGE_SIZE as u64), took))
}

/// What a prediction is made from, in bytes and bytes per second.
#[derive(Debug, Clone, Copy)]
struct Figures {
    memory: u64,
    content: u64,
    bandwidth: u64,
    dirty_rate: u64,
    /// What a pause costs without any memory.
    fixed: Duration,
}

/// Plays the rounds of [`super::rounds`] with numbers.
fn predict(figures: &Figures, state: RunState, options: &SourceOptions) -> Prediction {
    let time = |bytes| transfer_time(bytes, figures.bandwidth);
    let whole = figures.fixed.saturating_add(time(figures.content));
    if state == RunState::Paused || options.mode == Mode::Stopcopy {
        return Prediction {
            total: whole,
            downtime: match state {
                RunState::Running => whole,
                RunState::Paused => Duration::ZERO,
            },
            converges: true,
        };
    }
    let (mut left, mut total) = (figures.content, Duration::ZERO);
    for _ in 0..MAX_ROUNDS {
        let took = time(left);
        total = total.saturating_add(took);
        let dirtied = u128::from(figures.dirty_rate) * took.as_micros() / 1_000_000;
        let dirtied = u64::try_from(dirtied)
            .unwrap_or(u64::MAX)
            .min(figures.memory);
        let downtime = figures.fixed.saturating_add(time(dirtied));
        let converges = downtime <= options.downtime_limit;
        // A round that is as long as the one before is followed by others.
        if converges || dirtied >= left {
            return Prediction {
                total: total.saturating_add(downtime),
                downtime,
                converges,
            };
        }
        left = dirtied;
    }
    let downtime = figures.fixed.saturating_add(time(left));
    Prediction {
        total: total.saturating_add(downtime),
        downtime,
        converges: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn figures(content: u64, dirty_rate: u64) -> Figures {
        Figures {
            memory: 1024 * MIB,
            content,
            bandwidth: 100 * MIB,
            dirty_rate,
            fixed: Duration::from_millis(30),
        }
    }

    #[test]
    fn a_guest_that_writes_nothing_moves_once_and_pauses_for_its_state() {
        let quiet = predict(
            &figures(100 * MIB, 0),
            RunState::Running,
            &SourceOptions::default(),
        );
        assert_eq!(quiet.downtime, Duration::from_millis(30));
        assert_eq!(quiet.total, Duration::from_millis(1030));
        assert!(quiet.converges);
    }

    #[test]
    fn a_guest_that_writes_faster_than_the_link_never_converges() {
        let busy = predict(
            &figures(100 * MIB, 200 * MIB),
            RunState::Running,
            &SourceOptions::default(),
        );
        assert!(!busy.converges && busy.downtime > Duration::from_secs(1));
    }

    #[test]
    fn stopcopy_pauses_for_everything_and_a_paused_guest_for_nothing() {
        let options = SourceOptions {
            mode: Mode::Stopcopy,
            ..SourceOptions::default()
        };
        let whole = Duration::from_millis(1030);
        let running = predict(&figures(100 * MIB, 0), RunState::Running, &options);
        assert_eq!((running.downtime, running.total), (whole, whole));
        let paused = predict(&figures(100 * MIB, 0), RunState::Paused, &options);
        assert_eq!((paused.downtime, paused.total), (Duration::ZERO, whole));
    }

    proptest! {
        #[test]
        fn a_prediction_that_converges_keeps_the_limit(
            content in 0..1024 * MIB, bandwidth in 0..1024 * MIB, dirty_rate in 0..2048 * MIB, limit in 0..2000_u64,
        ) {
            let options = SourceOptions {
                downtime_limit: Duration::from_millis(limit),
                ..SourceOptions::default()
            };
            let figures = Figures { bandwidth, ..figures(content, dirty_rate) };
            let found = predict(&figures, RunState::Running, &options);
            prop_assert_eq!(found.converges, found.downtime <= options.downtime_limit);
            prop_assert!(found.total >= found.downtime);
        }
    }
}
