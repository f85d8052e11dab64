// SPDX-License-Identifier: GPL-2.0
//! The receiving side.
//!
//! Place on the path: takes the stream, writes pages, turns device records into restore plans, executes and verifies them, and
//! starts the guest when, and only when, the source has committed. Phases: see [`crate::phase`].
//!
//! Everything that arrives is from a peer: it is taken only in the order and in the amount that the guest's description
//! announced, and what is missing, left over or out of place refuses the move by name. Until the commit a failure discards
//! the guest here and tells the source so.

use crate::channel::{printable, truncated, Channel};
use crate::clock;
use crate::compat;
use crate::description::VmDescription;
use crate::devices;
use crate::error::Error;
use crate::job::{whole_ms, Job};
use crate::message::{
    Accepted, Commit, Kind, OutcomeAnswer, Paused, Ping, Pong, Prepared, RoundDone, RoundEnd,
    Running, StateEnd,
};
use crate::options::TargetOptions;
use crate::pages::{parse, Frames};
use crate::phase::{run_phase, Bounds, Scope, TargetPhase};
use crate::refusal::{Reason, Refusal};
use crate::session::{Outcome, SessionId, Sessions};
use crate::state::{ChipsetRecord, ClockRecord, DeviceRecord, VcpuRecord};
use crate::statistics::{Breakdown, DeviceStatistics, Statistics, Status};
use crate::transport::Link;
use crate::vm::{RunState, TargetHost, TargetVm, UserDeviceState, PAGE_SIZE};
use crate::wire::{Purpose, WireError, PROTOCOL_VERSIONS};
use pvmm_uapi::{ChipsetState, Clock};
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
        Ok(Served::Asked { .. }) => job.finish(Status::None, None),
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
        begin,
        paused_at: None,
        times: Times::default(),
    };
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
        let description: VmDescription = loop {
            scope.check()?;
            let record = self.channel.receive(&handshake)?;
            match record.kind {
                Kind::Ping => self.pong(&handshake, &record)?,
                Kind::Describe => break self.channel.decode(&record)?,
                _ => return Err(self.channel.unexpected(&record, "describe")),
            }
        };
        let taken = self.take(&description);
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

    /// Compares, and makes the guest.
    fn take(&self, description: &VmDescription) -> Result<(H::Vm, String), Refusal> {
        // Before the host is asked for anything.
        description
            .validate()
            .map_err(|why| Refusal::from(Reason::Description(why)))?;
        let host = self.host.describe_host().map_err(|error| {
            Refusal::other(format!("the target cannot say what it offers: {error}"))
        })?;
        compat::check(description, &host)?;
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

    /// Takes rounds until the guest is paused; returns how many there were.
    fn precopy(&mut self, scope: &Scope<'_>, seen: &mut Frames) -> Result<u64, Error> {
        let mut rounds = 0;
        loop {
            let record = self.channel.receive(scope)?;
            match record.kind {
                Kind::Pages => self.store(&record.payload, seen)?,
                Kind::Ping => self.pong(scope, &record)?,
                Kind::RoundEnd => {
                    let end: RoundEnd = self.channel.decode(&record)?;
                    rounds += 1;
                    self.end_round(scope, end, rounds, false)?;
                }
                Kind::Paused => {
                    self.paused_at = Some(Instant::now());
                    let paused: Paused = self.channel.decode(&record)?;
                    if paused.rounds != rounds {
                        let text = format!(
                            "{rounds} rounds have arrived, the source has sent {}",
                            paused.rounds
                        );
                        return Err(self.channel.wire(WireError::Missing(text)));
                    }
                    return Ok(rounds);
                }
                _ => {
                    return Err(self
                        .channel
                        .unexpected(&record, "pages, round-end or paused"))
                }
            }
        }
    }

    fn last_pages(
        &mut self,
        scope: &Scope<'_>,
        seen: &mut Frames,
        rounds: u64,
    ) -> Result<(), Error> {
        let before = self.times.memory;
        loop {
            let record = self.channel.receive(scope)?;
            match record.kind {
                Kind::Pages => self.store(&record.payload, seen)?,
                Kind::RoundEnd => {
                    let end: RoundEnd = self.channel.decode(&record)?;
                    self.end_round(scope, end, rounds + 1, true)?;
                    break;
                }
                _ => return Err(self.channel.unexpected(&record, "pages or round-end")),
            }
        }
        self.times.last_pages = self.times.memory - before;
        let missing = seen.total() - seen.len();
        if missing != 0 {
            let text = format!("{missing} of {} pages were never sent", seen.total());
            return Err(self.channel.wire(WireError::Missing(text)));
        }
        Ok(())
    }

    fn end_round(
        &mut self,
        scope: &Scope<'_>,
        end: RoundEnd,
        round: u64,
        last: bool,
    ) -> Result<(), Error> {
        if (end.round, end.last) != (round, last) {
            let kind = |last| if last { "the last round" } else { "a round" };
            let text = format!(
                "the end of {} number {} has arrived where {} number {round} was due",
                kind(end.last),
                end.round,
                kind(last)
            );
            return Err(self.channel.wire(WireError::Missing(text)));
        }
        self.job
            .update(|statistics| statistics.ram.dirty_sync_count = round);
        self.channel.send(scope, &RoundDone { round })
    }

    /// Puts a batch of pages into the guest's memory.
    fn store(&mut self, payload: &[u8], seen: &mut Frames) -> Result<(), Error> {
        let begin = Instant::now();
        let runs = parse(payload).map_err(|source| self.channel.wire(source))?;
        let (mut zero, mut normal) = (0u64, 0u64);
        for run in runs {
            let new = seen
                .insert(run.gfn, run.pages)
                .map_err(|source| self.channel.wire(source))?;
            // Memory is zero until it is written: a zero page that comes first costs nothing and stays unpopulated.
            let wipe = new < run.pages;
            let vm = self
                .vm
                .as_mut()
                .ok_or_else(|| Error::Inconsistent("pages came before the guest".into()))?;
            match run.data {
                Some(data) => {
                    normal += run.pages;
                    vm.write_pages(run.gfn, data)
                        .map_err(Error::vm("write guest memory"))?;
                }
                None => {
                    zero += run.pages;
                    if wipe {
                        vm.zero_pages(run.gfn, run.pages)
                            .map_err(Error::vm("zero guest memory"))?;
                    }
                }
            }
        }
        self.times.memory += begin.elapsed();
        let (arrived, left) = (seen.len(), seen.total() - seen.len());
        self.job.update(|statistics| {
            let ram = &mut statistics.ram;
            ram.duplicate += zero;
            ram.normal += normal;
            ram.normal_bytes = ram.normal.saturating_mul(PAGE_SIZE as u64);
            ram.remaining = left.saturating_mul(PAGE_SIZE as u64);
            ram.transferred += payload.len() as u64;
        });
        self.job.progress(arrived, left);
        Ok(())
    }

    fn cpu_state(&mut self, scope: &Scope<'_>, description: &VmDescription) -> Result<(), Error> {
        for vcpu in 0..description.vcpus {
            let record: VcpuRecord = self.channel.expect(scope)?;
            let begin = Instant::now();
            if record.vcpu != vcpu {
                let text = format!("vCPU {} has arrived where {vcpu} was due", record.vcpu);
                return Err(self.channel.wire(WireError::Missing(text)));
            }
            let state = record
                .to_state()
                .map_err(|reason| self.payload(Kind::Vcpu, reason))?;
            self.vm()?
                .restore_vcpu(vcpu, &state)
                .map_err(Error::vm("restore a vCPU"))?;
            self.times.cpu += begin.elapsed();
        }
        Ok(())
    }

    fn payload(&self, kind: Kind, reason: String) -> Error {
        self.channel.wire(WireError::Payload {
            kind: kind.name(),
            reason,
        })
    }

    fn device_state(
        &mut self,
        scope: &Scope<'_>,
        description: &VmDescription,
    ) -> Result<Clock, Error> {
        let record: ClockRecord = self.channel.expect(scope)?;
        let clock = Clock::from(&record);
        if clock.tsc_khz != description.tsc_khz {
            let reason = format!(
                "a TSC rate of {} kHz, the guest was described with {} kHz",
                clock.tsc_khz, description.tsc_khz
            );
            return Err(self.payload(Kind::Clock, reason));
        }
        let record: ChipsetRecord = self.channel.expect(scope)?;
        let chipset = ChipsetState::from(&record);
        let begin = Instant::now();
        let vm = self.vm()?;
        vm.restore_clock(&clock)
            .map_err(Error::vm("restore the clock"))?;
        vm.restore_chipset(&chipset)
            .map_err(Error::vm("restore the chipset"))?;
        self.times.device += begin.elapsed();
        for described in &description.devices {
            let record: DeviceRecord = self.channel.expect(scope)?;
            let begin = Instant::now();
            self.recorded_device(
                &record,
                (described.device, described.kind, described.version),
            )?;
            self.times.device += begin.elapsed();
        }
        for described in &description.user_devices {
            let state: UserDeviceState = self.channel.expect(scope)?;
            let begin = Instant::now();
            if (&state.name, state.version) != (&described.name, described.version) {
                let reason = format!(
                    "{:?} version {} has arrived where {:?} version {} was due",
                    state.name, state.version, described.name, described.version
                );
                return Err(self.payload(Kind::UserDevice, reason));
            }
            self.vm()?
                .restore_user_device(&state)
                .map_err(Error::vm("restore a userspace device"))?;
            self.times.device += begin.elapsed();
            self.note_device(state.name, None, 0, state.data.len() as u64);
        }
        self.state_end(scope, description)?;
        Ok(clock)
    }

    fn recorded_device(
        &mut self,
        record: &DeviceRecord,
        due: (u32, u32, u32),
    ) -> Result<(), Error> {
        let captured = record
            .to_captured()
            .map_err(|reason| self.payload(Kind::Device, reason))?;
        let device = record.device;
        if (device, captured.kind, captured.version) != due {
            let reason = format!(
                "device {device} of kind {} version {} has arrived where device {} of kind {} version {} was due",
                captured.kind, captured.version, due.0, due.1, due.2
            );
            return Err(self.payload(Kind::Device, reason));
        }
        let steps = devices::plan(device, &captured)?;
        let executed = self
            .vm()?
            .execute(device, &steps)
            .map_err(Error::vm("execute a device's restore plan"))?;
        devices::check(device, captured.kind, &steps, executed)?;
        let name = devices::kind_name(captured.kind).unwrap_or("unknown");
        self.note_device(
            name.to_owned(),
            Some(device),
            captured.records.len() as u64,
            0,
        );
        Ok(())
    }

    fn note_device(&self, name: String, device: Option<u32>, registers_saved: u64, bytes: u64) {
        self.job.update(|statistics| {
            statistics.devices.push(DeviceStatistics {
                name,
                device,
                registers_saved,
                bytes,
            });
        });
    }

    fn state_end(&mut self, scope: &Scope<'_>, description: &VmDescription) -> Result<(), Error> {
        let end: StateEnd = self.channel.expect(scope)?;
        let due = StateEnd {
            vcpus: description.vcpus,
            // Limited by the description's validation.
            devices: description.devices.len() as u32,
            user_devices: description.user_devices.len() as u32,
        };
        if end != due {
            let text = format!("the source counts {end:?}, what has arrived is {due:?}");
            return Err(self.channel.wire(WireError::Missing(text)));
        }
        Ok(())
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
