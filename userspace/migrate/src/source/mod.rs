// SPDX-License-Identifier: GPL-2.0
//! The sending side.
//!
//! Place on the path: reads guest memory, captures state, and hands the guest over. Phases: see [`crate::phase`]; the memory
//! rounds are in `rounds.rs`, the choice of the moment in `rest.rs`, state in `capture.rs`, what follows a failure in
//! `recovery.rs`.
//!
//! Whatever fails before the commit is sent, the guest goes on here: devices are put back, the clock is advanced by the
//! pause, dirty tracking stops. Once the commit has been sent, only the target's word decides ([`crate::session`]).

mod capture;
mod check;
mod recovery;
mod rest;
mod rounds;

pub use check::{check, Check, Prediction};
pub use recovery::{discard, recover, resume_here, Recovered};

use crate::channel::{truncated, Channel};
use crate::description::VmDescription;
use crate::error::{Error, Failure, Guest};
use crate::job::{whole_ms, Job};
use crate::message::{
    Accepted, Commit, Kind, Paused, Ping, Pong, Prepared, RoundDone, RoundEnd, Running,
};
use crate::options::{Mode, SourceOptions, TimeoutAction};
use crate::pages::Frames;
use crate::phase::{run_phase, Bounds, Scope, SourcePhase};
use crate::refusal::Refusal;
use crate::session::{Held, InDoubt, Outcome, Sending, SessionId};
use crate::statistics::{Breakdown, Statistics, Status};
use crate::transport::Connect;
use crate::vm::{RunState, SourceVm, PAGE_SIZE};
use crate::wire::{Offer, Purpose, PROTOCOL_VERSIONS};
use rounds::Measured;
use std::time::{Duration, Instant};

/// A move that succeeded.
#[derive(Debug, Clone)]
pub struct Report {
    /// How it went.
    pub statistics: Statistics,
    /// What went wrong after the commit, without harm to the guest: something here could not be released, ...
    pub notes: Vec<String>,
}

/// Moves a guest to `target`. Blocks until it is over; `job` shows how it stands and cancels it.
///
/// # Errors
///
/// The move failed; [`Failure::guest`] says where the guest is. It never runs on both sides.
pub fn migrate(
    vm: &mut dyn SourceVm,
    target: &dyn Connect,
    options: &SourceOptions,
    job: &Job,
) -> Result<Report, Box<Failure>> {
    let mut source = Source {
        vm,
        target,
        options,
        job,
        phase: SourcePhase::Connect,
        session: SessionId([0; 16]),
        sending: None,
        channel: None,
        commit_sent: false,
        suspended: false,
        busy_since: None,
        name: String::new(),
        round_trip: Duration::ZERO,
        held: Held {
            state: RunState::Paused,
            dirty_log: false,
            paused_at: None,
            clock: None,
            captured: Vec::new(),
        },
        times: Times::default(),
    };
    job.enter(Status::Setup);
    match source.attempt() {
        Ok(()) => Ok(source.complete()),
        Err(error) => source.fail(error),
    }
}

/// Durations that the breakdown is made of.
#[derive(Debug, Default)]
struct Times {
    precopy: Duration,
    last_pages: Duration,
    cpu: Duration,
    device: Duration,
    stop: Duration,
    downtime: Option<Duration>,
}

struct Source<'a> {
    vm: &'a mut dyn SourceVm,
    target: &'a dyn Connect,
    options: &'a SourceOptions,
    job: &'a Job,
    phase: SourcePhase,
    session: SessionId,
    /// Lets this daemon recognise the move if it comes back.
    sending: Option<Sending<'a>>,
    channel: Option<Channel>,
    /// The commit, or a part of it, may have reached the target.
    commit_sent: bool,
    /// The timeout has passed, and the operator wanted the guest paused then.
    suspended: bool,
    /// When a device of the host was first found in the middle of something.
    busy_since: Option<Instant>,
    name: String,
    round_trip: Duration,
    held: Held,
    times: Times,
}

/// The shortest of a few round trips: the first one may pay for the connection's start.
fn round_trip(channel: &mut Channel, scope: &Scope<'_>) -> Result<Duration, Error> {
    let mut shortest = Duration::MAX;
    for sequence in 0..3 {
        let begin = Instant::now();
        ping(channel, scope, sequence)?;
        shortest = shortest.min(begin.elapsed());
    }
    Ok(shortest)
}

/// Sends a ping and waits for its answer.
fn ping(channel: &mut Channel, scope: &Scope<'_>, sequence: u32) -> Result<(), Error> {
    channel.send(scope, &Ping { sequence })?;
    let pong: Pong = channel.expect(scope)?;
    if pong.sequence == sequence {
        return Ok(());
    }
    Err(Error::Inconsistent(
        "the target answered another ping than the one that was sent".into(),
    ))
}

impl Source<'_> {
    /// Everything up to the target's word that the guest runs there.
    fn attempt(&mut self) -> Result<(), Error> {
        use SourcePhase as P;
        self.run(P::Connect, Self::connect)?;
        self.run(P::Handshake, Self::handshake)?;
        let description = self.run(P::Prepare, Self::prepare)?;
        self.job.update(|statistics| {
            statistics.setup_time = whole_ms(self.job.started().elapsed());
            statistics.ram.total = description.memory_size();
            statistics.ram.remaining = description.memory_size();
            statistics.ram.page_size = PAGE_SIZE as u64;
        });
        self.job.enter(Status::Active);

        let mut left = Frames::all(&description.memory);
        let mut measured = Measured::default();
        loop {
            if self.held.dirty_log {
                let begin = Instant::now();
                self.run(P::Precopy, |source, scope| {
                    source.precopy(scope, &mut left, &mut measured)
                })?;
                self.times.precopy += begin.elapsed();
            }
            self.job.enter(Status::Device);
            let at_rest = self.run(P::Pause, |source, scope| {
                source.pause(scope, &description, measured.rounds)
            })?;
            if at_rest {
                break;
            }
            self.job.enter(Status::Active);
        }
        let rounds = measured.rounds;
        let begin = Instant::now();
        self.run(P::LastPages, |source, scope| {
            source.last_pages(scope, &mut left, rounds + 1)
        })?;
        self.times.last_pages = begin.elapsed();
        let begin = Instant::now();
        self.run(P::CpuState, |source, scope| {
            source.cpu_state(scope, &description)
        })?;
        self.times.cpu = begin.elapsed();
        let begin = Instant::now();
        self.run(P::DeviceState, |source, scope| {
            source.device_state(scope, &description)
        })?;
        self.times.device = begin.elapsed();
        let prepared = self.run(P::Verify, |source, scope| {
            source.channel()?.expect::<Prepared>(scope)
        })?;
        self.times.cpu += Duration::from_micros(prepared.cpu_us);
        self.times.device += Duration::from_micros(prepared.device_us);
        let running = self.run(P::Commit, Self::commit)?;
        // All by this host's clock, so that the parts fit the whole. It includes the way of the target's last word, so the
        // guest has seen a little less.
        self.times.downtime = self.paused_for();
        tracing::info!(
            downtime_us = self.times.downtime.unwrap_or_default().as_micros(),
            by_targets_clock_us = running.paused_us,
            "the guest runs at the target"
        );
        Ok(())
    }

    /// Runs a phase; see [`run_phase`].
    fn run<T>(
        &mut self,
        phase: SourcePhase,
        body: impl FnOnce(&mut Self, &Scope<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.phase = phase;
        let bounds = Bounds {
            cancellable: phase < SourcePhase::Commit,
            deadline: self.deadline(phase),
        };
        let (job, hook) = (self.job, self.options.hook.as_deref());
        let (value, _) = run_phase(job, hook, phase, bounds, |scope| body(self, scope))?;
        Ok(value)
    }

    /// Before the guest is paused the operator's timeout bounds a phase (pre-copy looks at it itself), afterwards the limit
    /// of the pause, unless the operator asked for a pause of any length.
    fn deadline(&self, phase: SourcePhase) -> Option<(Instant, Duration)> {
        let (from, limit) = match phase {
            SourcePhase::Connect | SourcePhase::Handshake | SourcePhase::Prepare => {
                (self.job.started(), self.options.timeout?)
            }
            SourcePhase::LastPages
            | SourcePhase::CpuState
            | SourcePhase::DeviceState
            | SourcePhase::Verify
                if self.options.mode == Mode::Precopy && !self.suspended =>
            {
                (self.held.paused_at?, self.options.pause_limit)
            }
            _ => return None,
        };
        from.checked_add(limit).map(|at| (at, limit))
    }

    fn channel(&mut self) -> Result<&mut Channel, Error> {
        self.channel
            .as_mut()
            .ok_or_else(|| Error::Inconsistent("the link was used before it was made".into()))
    }

    /// How long the guest has been paused by this move.
    fn paused_for(&self) -> Option<Duration> {
        let since_pause = self.held.paused_at?.elapsed();
        Some(self.times.stop.saturating_add(since_pause))
    }

    fn connect(&mut self, scope: &Scope<'_>) -> Result<(), Error> {
        self.session = SessionId::random().map_err(Error::Inconsistent)?;
        let sessions = self.options.sessions.as_deref();
        self.sending = sessions.map(|sessions| sessions.sending(self.session));
        let link = self
            .target
            .connect()
            .map_err(|source| Error::connect(self.target.name(), source))?;
        scope.check()?;
        self.channel = Some(Channel::new(link, self.options.stall_limit)?);
        Ok(())
    }

    fn handshake(&mut self, scope: &Scope<'_>) -> Result<(), Error> {
        let offer = Offer {
            purpose: Purpose::Migrate,
            versions: PROTOCOL_VERSIONS.to_vec(),
            session: self.session,
        };
        let session = self.session;
        let channel = self.channel()?;
        let version = channel.offer(scope, &offer)?;
        let shortest = round_trip(channel, scope)?;
        tracing::info!(%session, version, round_trip_us = shortest.as_micros(), peer = channel.peer(), "connected");
        self.round_trip = shortest;
        Ok(())
    }

    fn prepare(&mut self, scope: &Scope<'_>) -> Result<VmDescription, Error> {
        let description = self
            .vm
            .describe()
            .map_err(Error::vm("describe the guest"))?;
        description.validate().map_err(|why| {
            Error::Inconsistent(format!("the guest's own description is wrong: {why}"))
        })?;
        self.name.clone_from(&description.name);
        self.held.state = description.state;
        let channel = self.channel()?;
        channel.send(scope, &description)?;
        let record = channel.receive(scope)?;
        match record.kind {
            Kind::Accepted => {
                let accepted: Accepted = channel.decode(&record)?;
                tracing::info!(producer = ?accepted.producer, "the target takes the guest");
            }
            Kind::Refused => {
                let refusal: Refusal = channel.decode(&record)?;
                return Err(Error::Refused(refusal));
            }
            _ => return Err(channel.unexpected(&record, "accepted or refused")),
        }
        if self.options.mode == Mode::Precopy && description.state == RunState::Running {
            // Set first: a log that may be half on is stopped when the move fails.
            self.held.dirty_log = true;
            self.vm
                .start_dirty_log()
                .map_err(Error::vm("start dirty tracking"))?;
        }
        Ok(description)
    }

    /// Stops the guest where every device of the host is at rest. `false` if one was not: then the guest has run on a little,
    /// and still runs.
    fn pause(
        &mut self,
        scope: &Scope<'_>,
        description: &VmDescription,
        rounds: u64,
    ) -> Result<bool, Error> {
        let begin = Instant::now();
        if self.held.state == RunState::Running {
            // Set first: a guest that may be half paused is resumed when the move fails.
            self.held.paused_at = Some(begin);
            self.vm.pause().map_err(Error::vm("pause the guest"))?;
            self.held.paused_at = Some(Instant::now());
            self.times.stop = begin.elapsed();
        }
        if let Some(busy) = self.busy_device(description)? {
            self.run_on(scope, busy)?;
            return Ok(false);
        }
        let channel = self.channel()?;
        channel.set_rate(None);
        channel.send(scope, &Paused { rounds })?;
        Ok(true)
    }

    fn last_pages(
        &mut self,
        scope: &Scope<'_>,
        left: &mut Frames,
        round: u64,
    ) -> Result<(), Error> {
        if self.held.dirty_log {
            self.fetch_dirty(left)?;
        }
        self.job.update(|statistics| {
            statistics.ram.dirty_sync_count += 1;
            statistics.ram.remaining = left.len().saturating_mul(PAGE_SIZE as u64);
        });
        self.send_frames(scope, left, None)?;
        self.end_round(scope, round, true)
    }

    /// Ends a round and waits until the target has stored its pages.
    fn end_round(&mut self, scope: &Scope<'_>, round: u64, last: bool) -> Result<(), Error> {
        let channel = self.channel()?;
        channel.send(scope, &RoundEnd { round, last })?;
        let done: RoundDone = channel.expect(scope)?;
        if done.round != round {
            return Err(Error::Inconsistent(format!(
                "the target finished round {} when round {round} was sent",
                done.round
            )));
        }
        Ok(())
    }

    fn commit(&mut self, scope: &Scope<'_>) -> Result<Running, Error> {
        if !self.job.commit() {
            return Err(Error::Cancelled);
        }
        let session = self.session;
        // Set first: a part of the record may get through.
        self.commit_sent = true;
        let channel = self.channel()?;
        channel.send(scope, &Commit { session })?;
        channel.expect(scope)
    }

    /// The guest runs at the target: gives up what it held here.
    fn complete(mut self) -> Report {
        let mut notes = Vec::new();
        let downtime = self.times.downtime.or_else(|| self.paused_for());
        self.note_times(downtime.unwrap_or_default());
        let released = self.run(SourcePhase::Release, |source, _| {
            source
                .vm
                .release()
                .map_err(Error::vm("release the guest that has moved"))
        });
        if let Err(error) = released {
            tracing::warn!(%error, "the guest runs at the target");
            notes.push(error.to_string());
        }
        self.job.finish(Status::Completed, None);
        Report {
            statistics: self.job.statistics(),
            notes,
        }
    }

    fn note_times(&self, downtime: Duration) {
        let times = &self.times;
        let sent = self.channel.as_ref().map(|channel| channel.sent);
        let total = Breakdown::new(
            times.precopy + times.last_pages,
            times.cpu,
            times.device,
            self.job.started().elapsed(),
            downtime,
        );
        let pause = Breakdown::new(
            times.last_pages,
            times.cpu,
            times.device,
            downtime,
            downtime,
        );
        self.job.update(|statistics| {
            statistics.downtime = Some(whole_ms(downtime));
            statistics.breakdown = Some(total);
            statistics.downtime_breakdown = Some(pause);
            if let Some(sent) = sent {
                statistics.ram.transferred = sent;
            }
        });
    }

    /// The attempt failed: back to the guest running here, or, after the commit, to what the target says.
    fn fail(mut self, error: Error) -> Result<Report, Box<Failure>> {
        // `GivingUp` after the commit is the target's word that it has not run the guest and will not.
        let answered = matches!(error, Error::Peer { .. });
        if self.commit_sent && !answered {
            tracing::warn!(%error, "the commit was sent and not answered; asking the target");
            self.channel = None;
            let asked = recovery::ask(
                self.target,
                self.session,
                self.options.recover_limit,
                self.options.stall_limit,
            );
            match asked {
                Ok(Outcome::Committed) => return Ok(self.complete()),
                Ok(Outcome::NotCommitted { .. }) => {}
                Ok(Outcome::Unknown | Outcome::Starting) => {
                    return Err(self.doubt(error, "it does not know this move".into()))
                }
                Err(why) => {
                    let why = format!("it cannot be asked: {why}");
                    return Err(self.doubt(error, why));
                }
            }
        }
        Err(self.roll_back(error))
    }

    fn roll_back(self, error: Error) -> Box<Failure> {
        let mut notes = Vec::new();
        // The guest first; the target waits, and cannot start it without a commit.
        let guest = recovery::let_go_on(self.vm, self.held, &mut notes);
        let failure = Box::new(Failure {
            error,
            phase: self.phase.name(),
            guest,
            notes,
        });
        let status = match failure.error {
            Error::Cancelled => Status::Cancelled,
            _ => Status::Failed,
        };
        self.job.finish(status, Some(failure.to_string()));
        if let Some(channel) = self.channel {
            match &failure.error {
                Error::Peer { .. } | Error::Refused(_) | Error::Closed { .. } => channel.linger(),
                error => channel.give_up(truncated(&error.to_string())),
            }
        }
        failure
    }

    fn doubt(self, error: Error, reason: String) -> Box<Failure> {
        let in_doubt = InDoubt {
            session: self.session,
            name: self.name,
            peer: self.target.name(),
            reason,
            held: self.held,
        };
        let failure = Box::new(Failure {
            error,
            phase: self.phase.name(),
            guest: Guest::InDoubt(Box::new(in_doubt)),
            notes: Vec::new(),
        });
        self.job.finish(Status::InDoubt, Some(failure.to_string()));
        failure
    }

    /// Whether pre-copy's time is over.
    fn timeout(&self, memory: u64) -> Option<(Duration, TimeoutAction)> {
        let action = self.options.timeout_action;
        if action == TimeoutAction::Ignore {
            return None;
        }
        let limit = self.options.timeout.unwrap_or_else(|| {
            let for_size = Duration::from_secs(150).mul_f64(memory as f64 / (1u64 << 30) as f64);
            for_size.max(Duration::from_secs(300))
        });
        (self.job.started().elapsed() >= limit).then_some((limit, action))
    }
}
