//! PID 1: starts the checkers, collects what they find, speaks on COM1.
//!
//! On the path this is what a test sees of the guest. It never ends but by ending the guest, and
//! goes on whatever fails: a guest that has noticed a move has to be able to tell.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use pvmm_guest::config::{Command, Exit};
use pvmm_guest::heartbeat::{Heartbeat, Port};
use pvmm_guest::message::{Detail, Message, Order, Stat};
use pvmm_guest::pattern::PAGE_SIZE;
use pvmm_guest::transcript::PREFIX;
use pvmm_guest::Config;
use rustix::event::{poll, PollFd, PollFlags};
use rustix::time::{clock_gettime, ClockId};

use crate::arch;
use crate::boot;
use crate::checkers::Role;
use crate::console::Console;
use crate::kmsg::KernelLog;
use crate::process::{Checker, State};
use crate::report::{following, timespec};

/// Failures of one kind that are printed; more are counted only.
const PRINTED: u64 = 50;
/// How long a checker may be silent beyond the period of its statistics and the gap allowed. One
/// that rewrites memory at the lowest priority and is then told to verify all of it is slow.
const SILENCE: Duration = Duration::from_secs(30);
/// How long all of memory may take to be verified.
const VERIFYING: Duration = Duration::from_secs(120);

/// Runs PID 1. Returns only where there is no console to speak on.
pub fn run() -> ExitCode {
    let mounted = boot::mount_all();
    let Ok(console) = Console::open() else {
        return ExitCode::FAILURE;
    };
    let (config, errors) = boot::config();
    let mut supervisor = Supervisor::new(console, config);
    if let Err(error) = mounted {
        supervisor.fail("checker", error);
    }
    for error in errors {
        supervisor.fail("config", error);
    }
    supervisor.run()
}

/// What a verification of all memory was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Verify,
    Report,
    Exit(Option<Exit>),
}

/// A verification of all memory under way.
struct Verification {
    purposes: Vec<Purpose>,
    /// Checkers that haven't answered.
    outstanding: usize,
    pages: u64,
    bad: u64,
    deadline: Instant,
}

struct Supervisor {
    console: Console,
    kernel_log: Option<KernelLog>,
    config: Config,
    checkers: Vec<Checker>,
    memory_started: bool,
    /// `MemAvailable` before any of it was put under the pattern.
    available_mib: u64,
    booted: bool,
    failures: BTreeMap<String, u64>,
    verification: Option<Verification>,
    beats: u64,
    status: u64,
    next_beat: Instant,
    next_status: Instant,
    exit_at: Option<Instant>,
}

impl Supervisor {
    fn new(console: Console, config: Config) -> Self {
        let now = Instant::now();
        Supervisor {
            console,
            kernel_log: None,
            checkers: Vec::new(),
            memory_started: false,
            available_mib: 0,
            booted: false,
            failures: BTreeMap::new(),
            verification: None,
            beats: 0,
            status: 0,
            next_beat: now,
            next_status: now + config.status,
            exit_at: None,
            config,
        }
    }

    fn run(mut self) -> ! {
        if let Err(error) = boot::silence_kernel() {
            self.note("kernel", format_args!("messages stay on COM1: {error}"));
        }
        match KernelLog::open() {
            Ok(log) => self.kernel_log = Some(log),
            Err(error) => self.fail("kernel", format_args!("/dev/kmsg: {error}")),
        }
        self.start(Role::Clock);
        self.start(Role::Registers);
        if self.config.com2 {
            if boot::has_uart("ttyS1") {
                self.start(Role::Com2);
            } else {
                self.note("com2", "the kernel found no UART at 2F8h");
            }
        }
        loop {
            self.deadlines();
            self.wait();
            self.progress();
        }
    }

    // Output

    fn say(&mut self, text: impl Display) {
        self.console.line(&format!("{PREFIX}{text}"));
    }

    fn note(&mut self, what: &str, detail: impl Display) {
        self.say(format_args!("NOTE {}", Detail::new(what, detail)));
    }

    fn fail(&mut self, what: &str, detail: impl Display) {
        let count = self.failures.entry(what.to_owned()).or_default();
        *count += 1;
        if *count <= PRINTED {
            let last = *count == PRINTED;
            self.say(format_args!("FAIL {}", Detail::new(what, detail)));
            if last {
                self.note(what, "further failures are only counted");
            }
        }
    }

    fn fails(&self) -> u64 {
        self.failures.values().sum()
    }

    fn stat(&self) -> Stat {
        let all = self.checkers.iter().map(|checker| checker.stat);
        let stat = all.fold(Stat::default(), Stat::plus);
        // All of memory was rewritten as often as the slowest of its owners has done it.
        let passes = self.memory().map(|checker| checker.stat.passes).min();
        Stat {
            passes: passes.unwrap_or(0),
            ..stat
        }
    }

    /// `mem=... checks=... ...`, the end of several lines.
    fn figures(&self) -> String {
        let stat = self.stat();
        format!(
            "mem={} checks={} maxgap_us={} late_us={} fails={} t={}",
            stat.passes,
            stat.checks,
            stat.gap_us,
            stat.late_us,
            self.fails(),
            uptime_ms()
        )
    }

    // Checkers

    fn start(&mut self, role: Role) {
        match Checker::start(role) {
            Ok(checker) => self.checkers.push(checker),
            Err(error) => self.fail("checker", format_args!("{role} can't be started: {error}")),
        }
    }

    fn memory(&self) -> impl Iterator<Item = &Checker> {
        let is_memory = |checker: &&Checker| matches!(checker.role, Role::Memory(..));
        self.checkers.iter().filter(is_memory)
    }

    /// Last of all, as they take a share of what is free then.
    fn start_memory(&mut self) {
        self.memory_started = true;
        let Some(available) = boot::meminfo_kib("MemAvailable") else {
            self.fail("memory", "/proc/meminfo has no MemAvailable");
            return;
        };
        self.available_mib = available >> 10;
        let workers = self.config.workers;
        let bytes = available.saturating_mul(1024) / 100 * u64::from(self.config.memory);
        let pages = bytes / PAGE_SIZE as u64 / u64::from(workers.max(1));
        for number in 0..workers {
            let pages = u32::try_from(pages).unwrap_or(u32::MAX);
            self.start(Role::Memory(number, pages));
        }
    }

    /// Takes the next step of starting, once all checkers of the step before are at work.
    fn progress(&mut self) {
        let starting = |checker: &Checker| checker.state == State::Starting;
        if self.booted || self.checkers.iter().any(starting) {
            return;
        }
        if !self.memory_started {
            self.start_memory();
            return;
        }
        self.booted = true;
        self.exit_at = self.config.exit_after.map(|after| Instant::now() + after);
        let owned = self.memory().map(|checker| match checker.role {
            Role::Memory(_, pages) if checker.state == State::Ready => u64::from(pages),
            _ => 0,
        });
        let mib = (owned.sum::<u64>() * PAGE_SIZE as u64) >> 20;
        let total = boot::meminfo_kib("MemTotal").unwrap_or(0) >> 10;
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let (clocksource, load) = (boot::clocksource(), self.config.load);
        // The TSC counts from the reset of the machine: what the boot has cost.
        let (available, ms, tsc) = (self.available_mib, uptime_ms(), arch::tsc());
        self.say(format_args!(
            "READY memory={mib} total={total} available={available} cpus={cpus} \
             clocksource={clocksource} load={load} t={ms} tsc={tsc}"
        ));
    }

    fn hear(&mut self, index: usize) {
        let messages = self.checkers[index].messages();
        let role = self.checkers[index].role;
        for message in messages {
            match message {
                Ok(Message::Ready) => self.checkers[index].state = State::Ready,
                Ok(Message::Fail(Detail { what, detail })) => self.fail(&what, detail),
                Ok(Message::Note(Detail { what, detail })) => self.note(&what, detail),
                Ok(Message::Stat(stat)) => self.checkers[index].stat = stat,
                Ok(Message::Verified(pages, bad)) => self.verified(pages, bad),
                Err(error) => self.fail("checker", format_args!("{role}: {error}")),
            }
        }
        if self.checkers[index].state == State::Ended {
            let how = self.checkers[index].reap(Duration::from_secs(1));
            self.fail("checker", format_args!("{role} ended: {how}"));
            if matches!(role, Role::Memory(..)) && self.verification.is_some() {
                // It may have answered already; then the verification ends early, with a failure.
                self.verified(0, 0);
            }
        }
    }

    // Commands

    fn obey(&mut self, line: &str) {
        match line.parse() {
            Ok(Command::Load(load, rate)) => {
                self.config.load = load;
                self.config.rate = rate.unwrap_or(self.config.rate);
                let rate = self.config.rate;
                let share = rate / self.config.workers.max(1);
                self.order_memory(Order::Load(load, share.max(1)));
                self.say(format_args!("LOAD {load} rate={rate}"));
            }
            Ok(Command::Verify) => self.verify(Purpose::Verify),
            Ok(Command::Report) => self.verify(Purpose::Report),
            Ok(Command::Exit(exit)) => self.verify(Purpose::Exit(exit)),
            Err(error) => self.note("command", error),
        }
    }

    /// Gives an order to all owners of memory; how many took it.
    fn order_memory(&mut self, order: Order) -> usize {
        let mut taken = 0;
        for checker in &mut self.checkers {
            let ready = checker.state == State::Ready && matches!(checker.role, Role::Memory(..));
            if ready && checker.order(order) {
                taken += 1;
            }
        }
        taken
    }

    fn verify(&mut self, purpose: Purpose) {
        if let Some(verification) = &mut self.verification {
            verification.purposes.push(purpose);
            return;
        }
        let outstanding = self.order_memory(Order::Verify);
        self.verification = Some(Verification {
            purposes: vec![purpose],
            outstanding,
            pages: 0,
            bad: 0,
            deadline: Instant::now() + VERIFYING,
        });
        if outstanding == 0 {
            self.fail("memory", "no checker that could verify it");
            self.finish_verification();
        }
    }

    fn verified(&mut self, pages: u64, bad: u64) {
        let Some(verification) = &mut self.verification else {
            return;
        };
        verification.pages += pages;
        verification.bad += bad;
        verification.outstanding = verification.outstanding.saturating_sub(1);
        if verification.outstanding == 0 {
            self.finish_verification();
        }
    }

    fn finish_verification(&mut self) {
        let Some(verification) = self.verification.take() else {
            return;
        };
        let (pages, bad) = (verification.pages, verification.bad);
        self.say(format_args!("VERIFIED pages={pages} bad={bad}"));
        for purpose in verification.purposes {
            match purpose {
                Purpose::Verify => {}
                Purpose::Report => self.report(),
                Purpose::Exit(exit) => self.end(exit.or(self.config.exit)),
            }
        }
    }

    fn report(&mut self) {
        let (figures, beats) = (self.figures(), self.beats);
        let (khz, clocksource) = (self.stat().tsc_khz, boot::clocksource());
        self.say(format_args!(
            "REPORT {figures} heartbeats={beats} tsc_khz={khz} clocksource={clocksource}"
        ));
    }

    fn end(&mut self, exit: Option<Exit>) {
        self.report();
        for checker in &mut self.checkers {
            checker.dismiss();
        }
        for checker in &mut self.checkers {
            if checker.state != State::Ended {
                checker.reap(Duration::from_secs(3));
                checker.state = State::Ended;
            }
        }
        let (fails, beats) = (self.fails(), self.beats);
        self.say(format_args!("DONE fails={fails} heartbeats={beats}"));
        self.console.drain();
        let error = boot::end(exit);
        self.fail("checker", format_args!("the guest doesn't end: {error}"));
    }

    // Events

    fn deadlines(&mut self) {
        let now = Instant::now();
        if now >= self.next_beat {
            self.next_beat = following(self.next_beat, now, self.config.heartbeat);
            self.beats += 1;
            let beat = Heartbeat {
                port: Port::Com1,
                number: self.beats,
                ms: uptime_ms(),
            };
            self.console.line(&beat.to_string());
        }
        if now >= self.next_status {
            self.next_status = following(self.next_status, now, self.config.status);
            self.silence(now);
            if self.booted {
                self.status += 1;
                let verdict = if self.fails() == 0 { "OK" } else { "BAD" };
                let (figures, number) = (self.figures(), self.status);
                self.say(format_args!("{verdict} {number} {figures}"));
            }
        }
        if self.exit_at.is_some_and(|at| now >= at) {
            self.exit_at = None;
            self.verify(Purpose::Exit(None));
        }
        if let Some(late) = self.verification.as_ref().filter(|v| now >= v.deadline) {
            let outstanding = late.outstanding;
            self.fail(
                "memory",
                format_args!("{outstanding} checkers don't answer"),
            );
            self.finish_verification();
        }
    }

    /// Reports checkers that have said nothing for too long, once per silence.
    fn silence(&mut self, now: Instant) {
        let gap = Duration::from_millis(self.config.gap_ms.into());
        let limit = self.config.status + gap + SILENCE;
        let mut silent = Vec::new();
        for checker in &mut self.checkers {
            let ended = checker.state == State::Ended;
            if !ended && now.saturating_duration_since(checker.heard) > limit {
                checker.heard = now;
                silent.push(checker.role);
            }
        }
        for role in silent {
            let seconds = limit.as_secs();
            self.fail("checker", format_args!("{role} silent for {seconds} s"));
        }
    }

    /// Waits for something to happen and attends to it.
    fn wait(&mut self) {
        // In the order of the descriptors below; an input that has ended is left out.
        enum Source {
            Console,
            Kernel,
            Checker(usize),
        }
        let mut sources = Vec::new();
        let mut fds = Vec::new();
        let mut add = |source, fd| {
            if let Some(fd) = fd {
                sources.push(source);
                fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
            }
        };
        add(Source::Console, self.console.input());
        let kernel = self.kernel_log.as_ref().map(KernelLog::input);
        add(Source::Kernel, kernel);
        for (index, checker) in self.checkers.iter().enumerate() {
            add(Source::Checker(index), checker.input());
        }
        let next = self.next_beat.min(self.next_status);
        let limit = next.saturating_duration_since(Instant::now());
        if poll(&mut fds, Some(&timespec(limit))).is_err() {
            return;
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        let ready = sources.into_iter().zip(ready).filter(|(_, ready)| *ready);
        for (source, _) in ready {
            match source {
                Source::Console => {
                    for line in self.console.typed() {
                        self.obey(&line);
                    }
                }
                Source::Kernel => self.read_kernel_log(),
                Source::Checker(index) => self.hear(index),
            }
        }
    }

    fn read_kernel_log(&mut self) {
        loop {
            let Some(log) = &mut self.kernel_log else {
                return;
            };
            match log.next() {
                Ok(Some(record)) => {
                    if record.is_failure(self.booted) {
                        self.fail("kernel", record.text);
                    }
                }
                Ok(None) => return,
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                    self.fail("kernel", "messages were lost before they were read");
                }
                Err(error) => {
                    self.fail("kernel", format_args!("/dev/kmsg: {error}"));
                    self.kernel_log = None;
                }
            }
        }
    }
}

fn uptime_ms() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    let (seconds, rest) = (time.tv_sec.max(0), time.tv_nsec.max(0));
    seconds.unsigned_abs() * 1_000 + rest.unsigned_abs() / 1_000_000
}
