// SPDX-License-Identifier: GPL-2.0
//! The receiving side.
//!
//! Place on the path: takes the stream, writes pages, turns device records into restore plans, executes and verifies them, and
//! starts the guest when, and only when, the source has committed. Phases: see [`crate::phase`].
//!
//! Everything that arrives is from a peer: it is taken only in the order and in the amount that the guest's description
//! announced, and what is missing, left over or out of place refuses the move by name. Until the commit a failure discards
//! the guest here and tells the source so. Memory is received in `memory.rs`, state in `restore.rs`.

mod check;
mod memory;
mod restore;

use crate::channel::{printable, truncated, Channel};
use crate::clock;
use crate::compat;
use crate::description::{HostDescription, VmDescription};
use crate::error::Error;
use crate::job::{whole_ms, Job};
use crate::message::{Accepted, Commit, Kind, OutcomeAnswer, Ping, Pong, Prepared, Running};
use crate::options::TargetOptions;
use crate::pages::Frames;
use crate::phase::{run_phase, Bounds, Scope, TargetPhase};
use crate::refusal::{Reason, Refusal};
use crate::session::{Outcome, SessionId, Sessions};
use crate::statistics::{Breakdown, Statistics, Status};
use crate::tls::TlsError;
use crate::transport::{Admitted, Arrival, Link};
use crate::vm::{RunState, TargetHost, TargetVm, PAGE_SIZE};
use crate::wire::{Purpose, WireError, PROTOCOL_VERSIONS};
use pvmm_uapi::Clock;
use std::time::{Duration, Instant};

/// How long an answer about a session that is being started may be delayed.
const OUTCOME_WAIT: Duration = Duration::from_secs(1);

/// What a connection was about.
#[derive(Debug)]
pub enum Served<V> {
    /// A guest has arrived and is this host's.
    Arrived(Box<Arrived<V>>),
    /// The source asked for the outcome of an earlier move.
    Asked {
        /// Which.
        session: SessionId,
        /// What it was told.
        outcome: Outcome,
    },
    /// The source asked whether a guest would be taken, and was told.
    Checked,
}

/// A guest that has arrived: started, or paused if it came paused.
#[derive(Debug)]
pub struct Arrived<V> {
    /// The guest.
    pub vm: V,
    /// What it is made of.
    pub description: VmDescription,
    /// How it went.
    pub statistics: Statistics,
}

/// What a peer is told that begins without TLS.
const TLS_IS_DUE: &str =
    "guests are taken here over TLS only; use pvmmd with certificates and without --insecure";

/// Serves a connection that has just been made: lets the peer show who it is, then as [`serve`].
///
/// # Errors
///
/// The peer was turned away, or the move failed; nothing of a guest is left here.
pub fn receive<H: TargetHost>(
    arrival: Arrival,
    host: &H,
    sessions: &Sessions,
    options: &TargetOptions,
    job: &Job,
) -> Result<Served<H::Vm>, Error> {
    let peer = arrival.peer();
    let refused = |error: Error| {
        job.finish(Status::Failed, Some(error.to_string()));
        error
    };
    match arrival.admit(options.handshake_limit) {
        Ok(Admitted::Link(link)) => serve(link, host, sessions, options, job),
        Ok(Admitted::Plain(link)) => {
            turn_away(link, options);
            let source = TlsError::Plain;
            Err(refused(Error::Tls { peer, source }))
        }
        Err(source) => Err(refused(Error::link(&peer, source))),
    }
}

/// Tells a peer in its own way that it is not heard without TLS. Nothing of what it sends is used. Best effort.
fn turn_away(link: Box<dyn Link>, options: &TargetOptions) {
    let scope = Scope::with_limit("handshake", options.handshake_limit);
    let told = Channel::new(link, options.stall_limit).and_then(|mut channel| {
        channel.answer(&scope, PROTOCOL_VERSIONS)?;
        channel.give_up(TLS_IS_DUE);
        Ok(())
    });
    if let Err(error) = told {
        tracing::debug!(%error, "the peer could not be told");
    }
}

/// Serves one connection. Blocks until it is over.
///
/// # Errors
///
/// The move failed, and nothing of the guest is left here.
pub fn serve<H: TargetHost>(
    link: Box<dyn Link>,
    host: &H,
    sessions: &Sessions,
    options: &TargetOptions,
    job: &Job,
) -> Result<Served<H::Vm>, Error> {
    job.enter(Status::Setup);
    let result = serve_connection(link, host, sessions, options, job);
    match &result {
        Ok(Served::Arrived(_)) => {}
        Ok(Served::Asked { .. } | Served::Checked) => job.finish(Status::None, None),
        Err(Error::Cancelled) => job.finish(Status::Cancelled, Some("cancelled here".into())),
        Err(error) => job.finish(Status::Failed, Some(error.to_string())),
    }
    result
}

fn serve_connection<H: TargetHost>(
    link: Box<dyn Link>,
    host: &H,
    sessions: &Sessions,
    options: &TargetOptions,
    job: &Job,
) -> Result<Served<H::Vm>, Error> {
    let mut channel = Channel::new(link, options.stall_limit)?;
    let begin = Instant::now();
    let bounds = Bounds {
        cancellable: true,
        deadline: deadline(begin, options.handshake_limit),
    };
    let hook = options.hook.as_deref();
    let offer = run_phase(job, hook, TargetPhase::Handshake, bounds, |scope| {
        channel.answer(scope, PROTOCOL_VERSIONS)
    });
    let offer = match offer {
        Ok((offer, _)) => offer,
        Err(error) => {
            refuse_handshake(channel, &error);
            return Err(error);
        }
    };
    if offer.purpose == Purpose::Outcome {
        let session = offer.session;
        let outcome = sessions.outcome(session, OUTCOME_WAIT);
        tracing::info!(%session, ?outcome, "told the outcome of a move");
        let answer = OutcomeAnswer {
            outcome: outcome.clone(),
        };
        let scope = Scope::with_limit("outcome", options.handshake_limit);
        channel.send(&scope, &answer)?;
        channel.linger();
        return Ok(Served::Asked { session, outcome });
    }

    let mut target = Target {
        host,
        sessions,
        options,
        job,
        channel,
        session: offer.session,
        vm: None,
        sent_tsc_khz: 0,
        begin,
        paused_at: None,
        times: Times::default(),
    };
    if offer.purpose == Purpose::Check {
        return target.check();
    }
    match target.attempt() {
        Ok(description) => target.arrived(description),
        Err(error) => Err(target.fail(error)),
    }
}

/// The handshake failed: says so in the way that the peer can read at that point. Best effort.
fn refuse_handshake(mut channel: Channel, error: &Error) {
    let scope = Scope::with_limit("giving-up", crate::channel::LINGER);
    match error {
        // It has our answer already, and reads from it that there is no common version.
        Error::Wire {
            source: WireError::NoCommonVersion { .. },
            ..
        } => channel.linger(),
        // A peer of ours reads from this what is spoken here; others will not mind.
        Error::Wire { .. } => match channel.decline(&scope, PROTOCOL_VERSIONS) {
            Ok(()) => channel.linger(),
            Err(error) => tracing::debug!(%error, "the peer could not be told"),
        },
        // The reason is here: the peer's offer is still to be read and answered, so that it takes a record.
        Error::Hook { .. } | Error::Cancelled => match channel.answer(&scope, PROTOCOL_VERSIONS) {
            Ok(_) => channel.give_up(&error.to_string()),
            Err(error) => tracing::debug!(%error, "the peer could not be told"),
        },
        // Nobody is there any more.
        _ => {}
    }
}

fn deadline(from: Instant, limit: Duration) -> Option<(Instant, Duration)> {
    from.checked_add(limit).map(|at| (at, limit))
}

/// Durations that the answers and the breakdown are made of.
#[derive(Debug, Default)]
struct Times {
    /// Writing pages.
    memory: Duration,
    last_pages: Duration,
    cpu: Duration,
    device: Duration,
    /// From the marker of the pause to the guest's start.
    paused: Duration,
}

struct Target<'a, H: TargetHost> {
    host: &'a H,
    sessions: &'a Sessions,
    options: &'a TargetOptions,
    job: &'a Job,
    channel: Channel,
    session: SessionId,
    vm: Option<H::Vm>,
    /// The guest's TSC rate as the source described it, in kHz.
    sent_tsc_khz: u32,
    begin: Instant,
    paused_at: Option<Instant>,
    times: Times,
}

impl<H: TargetHost> Target<'_, H> {
    fn attempt(&mut self) -> Result<VmDescription, Error> {
        use TargetPhase as P;
        let description = self.run(P::Prepare, Self::prepare)?;
        let memory = description.memory_size();
        self.job.update(|statistics| {
            statistics.setup_time = whole_ms(self.job.started().elapsed());
            statistics.ram.total = memory;
            statistics.ram.remaining = memory;
            statistics.ram.page_size = PAGE_SIZE as u64;
        });
        self.job.enter(Status::Active);
        let mut seen = Frames::none(&description.memory);
        let rounds = self.run(P::Precopy, |target, scope| target.precopy(scope, &mut seen))?;
        self.job.enter(Status::Device);
        self.run(P::LastPages, |target, scope| {
            target.last_pages(scope, &mut seen, rounds)
        })?;
        self.run(P::CpuState, |target, scope| {
            target.cpu_state(scope, &description)
        })?;
        let clock = self.run(P::DeviceState, |target, scope| {
            target.device_state(scope, &description)
        })?;
        self.run(P::Verify, Self::verify)?;
        self.run(P::Commit, Self::commit)?;
        let commit_at = Instant::now();
        self.run(P::Start, |target, _| {
            target.start(&clock, description.state)
        })?;

        // The guest runs here. Nothing below may fail the move: a source that does not hear this asks.
        self.sessions.committed(self.session);
        let running = Running {
            paused_us: micros(self.times.paused),
            start_us: micros(commit_at.elapsed()),
        };
        let scope = Scope::with_limit("start", self.options.stall_limit);
        if let Err(error) = self.channel.send(&scope, &running) {
            tracing::warn!(%error, "the guest runs here, but the source could not be told; it will ask");
        }
        Ok(description)
    }

    fn run<T>(
        &mut self,
        phase: TargetPhase,
        body: impl FnOnce(&mut Self, &Scope<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let bounds = Bounds {
            cancellable: phase < TargetPhase::Start,
            deadline: None,
        };
        let (job, hook) = (self.job, self.options.hook.as_deref());
        let (value, _) = run_phase(job, hook, phase, bounds, |scope| body(self, scope))?;
        Ok(value)
    }

    fn vm(&mut self) -> Result<&mut H::Vm, Error> {
        self.vm
            .as_mut()
            .ok_or_else(|| Error::Inconsistent("the guest was used before it was made".into()))
    }

    fn prepare(&mut self, scope: &Scope<'_>) -> Result<VmDescription, Error> {
        // A peer that has connected must not keep the thread for ever; only its own part is bounded.
        let elapsed = self.begin.elapsed();
        let limit = self.options.handshake_limit.saturating_sub(elapsed);
        let handshake = Scope::with_limit("prepare", limit);
        let mut description: VmDescription = loop {
            scope.check()?;
            let record = self.channel.receive(&handshake)?;
            match record.kind {
                Kind::Ping => self.pong(&handshake, &record)?,
                Kind::Describe => break self.channel.decode(&record)?,
                _ => return Err(self.channel.unexpected(&record, "describe")),
            }
        };
        self.sent_tsc_khz = description.tsc_khz;
        let taken = self.take(&mut description);
        let producer = match taken {
            Ok((vm, producer)) => {
                self.vm = Some(vm);
                producer
            }
            Err(refusal) => {
                self.refuse(scope, &refusal);
                return Err(Error::Refused(refusal));
            }
        };
        tracing::info!(
            guest = ?description.name,
            producer = ?description.producer,
            session = %self.session,
            peer = self.channel.peer(),
            "a guest is coming"
        );
        self.channel.send(scope, &Accepted { producer })?;
        Ok(description)
    }

    /// Compares. Returns what this host offers. A TSC rate that counts as this host's becomes exactly this host's; see
    /// [`crate::clock`].
    fn compare(&self, description: &mut VmDescription) -> Result<HostDescription, Refusal> {
        // Before the host is asked for anything.
        if self.sessions.is_own(self.session) {
            return Err(Refusal::other(
                "the address leads back to the daemon that sends the guest, so it would move nowhere; give the address of \
                 another host's pvmmd (`pvmmd capabilities` lists those at which a daemon listens)",
            ));
        }
        description
            .validate()
            .map_err(|why| Refusal::from(Reason::Description(why)))?;
        let host = self.host.describe_host().map_err(|error| {
            Refusal::other(format!("the target cannot say what it offers: {error}"))
        })?;
        compat::check(description, &host)?;
        if compat::same_rate(description.tsc_khz, host.tsc_khz) {
            description.tsc_khz = host.tsc_khz;
        }
        Ok(host)
    }

    /// Compares, and makes the guest.
    fn take(&self, description: &mut VmDescription) -> Result<(H::Vm, String), Refusal> {
        let host = self.compare(description)?;
        let vm = self.host.prepare(description)?;
        Ok((vm, host.producer))
    }

    /// Tells the source the reasons; as one text if they are too many for a record. Best effort.
    fn refuse(&mut self, scope: &Scope<'_>, refusal: &Refusal) {
        if self.channel.send(scope, refusal).is_err() {
            let text = refusal.to_string();
            let short = Refusal::other(truncated(&text));
            if let Err(error) = self.channel.send(scope, &short) {
                tracing::warn!(%error, "the source could not be told of the refusal");
            }
        }
    }

    fn pong(&mut self, scope: &Scope<'_>, record: &crate::channel::Record) -> Result<(), Error> {
        let ping: Ping = self.channel.decode(record)?;
        let sequence = ping.sequence;
        self.channel.send(scope, &Pong { sequence })
    }

    fn verify(&mut self, scope: &Scope<'_>) -> Result<(), Error> {
        let begin = Instant::now();
        self.vm()?
            .verify()
            .map_err(Error::vm("verify the restored guest"))?;
        self.times.device += begin.elapsed();
        if !self.sessions.prepared(self.session) {
            return Err(Error::Inconsistent(format!(
                "session {} has been here before",
                self.session
            )));
        }
        let prepared = Prepared {
            cpu_us: micros(self.times.cpu),
            device_us: micros(self.times.device),
        };
        self.channel.send(scope, &prepared)
    }

    fn commit(&mut self, scope: &Scope<'_>) -> Result<(), Error> {
        let commit: Commit = self.channel.expect(scope)?;
        if commit.session != self.session {
            return Err(self.payload(Kind::Commit, "it is for another session".into()));
        }
        if !self.job.commit() {
            return Err(Error::Cancelled);
        }
        self.sessions
            .starting(self.session)
            .map_err(|why| Error::Outcome(format!("the commit came too late: {why}")))
    }

    fn start(&mut self, clock: &Clock, state: RunState) -> Result<(), Error> {
        let clock = match (state, self.paused_at) {
            (RunState::Running, Some(paused_at)) => clock::advance(clock, paused_at.elapsed()),
            _ => *clock,
        };
        self.vm()?
            .start(&clock, state)
            .map_err(Error::vm("start the guest"))?;
        if let Some(paused_at) = self.paused_at {
            self.times.paused = paused_at.elapsed();
        }
        Ok(())
    }

    fn arrived(self, description: VmDescription) -> Result<Served<H::Vm>, Error> {
        let downtime = match description.state {
            RunState::Running => self.times.paused,
            RunState::Paused => Duration::ZERO,
        };
        let times = &self.times;
        let total = Breakdown::new(
            times.memory,
            times.cpu,
            times.device,
            self.begin.elapsed(),
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
        });
        self.job.finish(Status::Completed, None);
        let vm = self
            .vm
            .ok_or_else(|| Error::Inconsistent("the guest was lost after its start".into()))?;
        Ok(Served::Arrived(Box::new(Arrived {
            vm,
            description,
            statistics: self.job.statistics(),
        })))
    }

    /// Discards what was made here, closes the session, and tells the source: in this order, so that a source that hears of it
    /// finds nothing of the guest here.
    fn fail(mut self, error: Error) -> Error {
        let reason = printable(&error.to_string());
        self.sessions
            .not_committed(self.session, truncated(&reason));
        if let Some(mut vm) = self.vm.take() {
            vm.discard();
        }
        match &error {
            Error::Refused(_) | Error::Peer { .. } | Error::Closed { .. } => self.channel.linger(),
            _ => self.channel.give_up(&reason),
        }
        error
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
