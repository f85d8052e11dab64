// SPDX-License-Identifier: GPL-2.0
//! The command line on a real terminal: ^C during a move, and a console that sets the terminal raw and restores it.

use crate::host::{Host, Machine, LIMIT};
use crate::process::{Gate, Process, Step};
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::pty::{openpty, OpenptyResult};
use nix::sys::signal::{kill, Signal};
use nix::sys::termios::{tcgetattr, LocalFlags};
use nix::unistd::Pid;
use pvmm_control::{GuestState, Reply, Request};
use pvmm_migrate::phase::SourcePhase;
use pvmm_migrate::statistics::Status;
use pvmm_migrate::TargetOptions;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const HELD: Step = Step::Source(SourcePhase::Precopy);

/// A program on a terminal of its own.
struct Terminal {
    child: Child,
    /// What the user types and sees.
    keyboard: File,
    /// The terminal as the program has it; kept, so that it stays when the program ends.
    line: OwnedFd,
    seen: String,
}

/// A command that takes SIGINT as from a terminal, even if these tests run where it is ignored, as a background job does.
fn interruptible(command: &Command) -> Command {
    let mut env = Command::new("env");
    env.arg("--default-signal=INT")
        .arg(command.get_program())
        .args(command.get_args());
    env
}

impl Terminal {
    fn run(command: &Command) -> Self {
        let OpenptyResult { master, slave } = openpty(None, None).expect("a terminal can be made");
        let line = || Stdio::from(slave.try_clone().expect("a descriptor"));
        // A session of its own, whose terminal this is, so that ^C makes a signal.
        let command = interruptible(command);
        let child = Command::new("setsid")
            .arg("--ctty")
            .arg(command.get_program())
            .args(command.get_args())
            .stdin(line())
            .stdout(line())
            .stderr(line())
            .spawn()
            .expect("setsid is part of util-linux");
        Self {
            child,
            keyboard: master.into(),
            line: slave,
            seen: String::new(),
        }
    }

    fn type_in(&mut self, bytes: &[u8]) {
        self.keyboard.write_all(bytes).expect("a terminal");
    }

    /// Waits until the user sees a text.
    fn wait_for(&mut self, text: &str) {
        let limit = Instant::now() + LIMIT;
        while !self.seen.contains(text) {
            let mut ready = [PollFd::new(self.keyboard.as_fd(), PollFlags::POLLIN)];
            let count = poll(&mut ready, PollTimeout::from(100u8)).expect("a terminal");
            if count > 0 {
                let mut buffer = [0; 4096];
                let count = self.keyboard.read(&mut buffer).expect("a terminal");
                let new = String::from_utf8_lossy(&buffer[..count]);
                self.seen.push_str(&new);
            }
            assert!(Instant::now() < limit, "no \"{text}\" in {}", self.seen);
        }
    }

    fn is_raw(&self) -> bool {
        let flags = tcgetattr(&self.line).expect("a terminal").local_flags;
        let cooked = LocalFlags::ECHO | LocalFlags::ICANON | LocalFlags::ISIG;
        assert!(
            flags.contains(cooked) || !flags.intersects(cooked),
            "half raw: {flags:?}"
        );
        !flags.contains(cooked)
    }

    fn wait_raw(&self) {
        let limit = Instant::now() + LIMIT;
        while !self.is_raw() {
            assert!(Instant::now() < limit, "{}", self.seen);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn end(mut self) -> (ExitStatus, Self) {
        let limit = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.child.try_wait().expect("it is a child") {
                return (status, self);
            }
            // What it prints must go somewhere.
            let mut ready = [PollFd::new(self.keyboard.as_fd(), PollFlags::POLLIN)];
            if poll(&mut ready, PollTimeout::from(10u8)).expect("a terminal") > 0 {
                let mut buffer = [0; 4096];
                let count = self.keyboard.read(&mut buffer).expect("a terminal");
                let new = String::from_utf8_lossy(&buffer[..count]);
                self.seen.push_str(&new);
            }
            assert!(Instant::now() < limit, "it does not end: {}", self.seen);
        }
    }

    fn signal(&self, signal: Signal) {
        // A pid is positive and fits.
        let pid = Pid::from_raw(self.child.id() as i32);
        kill(pid, signal).expect("it runs");
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A guest whose move is held, and where it goes.
fn held() -> (Arc<Gate>, Host, Host) {
    held_at(HELD)
}

fn held_at(step: Step) -> (Arc<Gate>, Host, Host) {
    let gate = Gate::new();
    let hook = gate.source_hook();
    let here = Host::with_options(TargetOptions::default(), |options| {
        options.source_hook = Some(hook);
    });
    gate.hold(step);
    here.run("one", &[]).expect("nothing against it");
    (gate, here, Host::plain())
}

fn status(host: &Host) -> Status {
    match host.call(Request::JobInfo(crate::host::name("one"))) {
        Ok(Reply::Job(job)) => job.status,
        other => panic!("{other:?}"),
    }
}

fn wait_status(host: &Host, due: Status) {
    let limit = Instant::now() + LIMIT;
    while status(host) != due {
        assert!(Instant::now() < limit, "{:?}", status(host));
        std::thread::yield_now();
    }
}

#[test]
fn one_control_c_cancels_the_move_and_waits_until_the_guest_goes_on() {
    let (gate, here, there) = held();
    let url = there.url.to_string();
    let mut terminal = Terminal::run(&here.program(&["migrate", "one", &url]));
    gate.wait_for(HELD);
    terminal.type_in(b"\x03");
    terminal.wait_for("cancelling the move; ^C again");
    wait_status(&here, Status::Cancelling);
    gate.open();
    let (ended, terminal) = terminal.end();
    assert_eq!(ended.code(), Some(3), "{}", terminal.seen);
    assert_eq!(status(&here), Status::Cancelled);
    here.goes_on("one");
    assert_eq!(there.running(), 0);
}

#[test]
fn a_second_control_c_leaves_without_waiting() {
    let (gate, here, there) = held();
    let url = there.url.to_string();
    let mut terminal = Terminal::run(&here.program(&["migrate", "one", &url]));
    gate.wait_for(HELD);
    terminal.type_in(b"\x03");
    terminal.wait_for("cancelling the move");
    // What was not asked yet when the program ends is not asked any more.
    wait_status(&here, Status::Cancelling);
    terminal.type_in(b"\x03");
    terminal.wait_for("pvmmd job-info one");
    let (ended, _) = terminal.end();
    assert_eq!(ended.code(), Some(1));
    gate.open();
    wait_status(&here, Status::Cancelled);
    here.goes_on("one");
}

#[test]
fn an_interrupt_before_the_daemon_knows_the_move_still_cancels_it() {
    let first = Step::Source(SourcePhase::Connect);
    let (gate, here, there) = held_at(first);
    let client = here.program(&["migrate", "one", &there.url.to_string()]);
    let mut client = interruptible(&client)
        .spawn()
        .expect("the program is built");
    let limit = Instant::now() + LIMIT;
    // As soon as it can take the signal: the program itself, since a child on its way there blocks all signals too.
    let is_ready = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", client.id()));
        let status = status.expect("it runs");
        let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        let mask = line("SigBlk:").expect("a line of proc(5)").trim();
        let blocked = u64::from_str_radix(mask, 16).expect("a mask");
        line("Name:").is_some_and(|name| name.trim() == "pvmmd") && blocked & 2 != 0
    };
    while !is_ready() {
        assert!(Instant::now() < limit, "it never blocks SIGINT");
    }
    let pid = Pid::from_raw(client.id() as i32);
    kill(pid, Signal::SIGINT).expect("it runs");
    gate.wait_for(first);
    wait_status(&here, Status::Cancelling);
    gate.open();
    assert_eq!(client.wait().expect("it is a child").code(), Some(3));
    here.goes_on("one");
}

#[test]
fn a_background_job_that_ignores_interrupts_is_not_cancelled_by_one() {
    let (gate, here, there) = held();
    let program = here.program(&["migrate", "one", &there.url.to_string()]);
    let mut client = Command::new("sh")
        .args(["-c", "trap '' INT; exec \"$0\" \"$@\""])
        .arg(program.get_program())
        .args(program.get_args())
        .spawn()
        .expect("there is a shell");
    gate.wait_for(HELD);
    let pid = Pid::from_raw(client.id() as i32);
    kill(pid, Signal::SIGINT).expect("it runs");
    gate.open();
    assert_eq!(client.wait().expect("it is a child").code(), Some(0));
    there.goes_on("one");
}

#[test]
fn a_terminal_that_is_closed_leaves_the_move_to_the_daemon() {
    let (gate, here, there) = held();
    let url = there.url.to_string();
    let terminal = Terminal::run(&here.program(&["migrate", "one", &url]));
    gate.wait_for(HELD);
    terminal.signal(Signal::SIGHUP);
    let (ended, _) = terminal.end();
    assert!(!ended.success());
    gate.open();
    there.wait_state("one", GuestState::Running);
    there.goes_on("one");
}

/// A console on a terminal, connected and raw.
fn console(machine: &impl Machine) -> Terminal {
    let mut terminal = Terminal::run(&machine.program(&["console", "one"]));
    terminal.wait_for("^] leaves it");
    terminal.wait_raw();
    terminal.wait_for("beat");
    terminal
}

#[test]
fn a_console_is_raw_carries_control_c_and_restores_the_terminal_at_the_escape() {
    let host = Host::plain();
    host.run("one", &[]).expect("nothing against it");
    let mut terminal = console(&host);
    terminal.type_in(b"Z\x03");
    // The guest echoes what it gets.
    terminal.wait_for("Z");
    terminal.wait_for("\x03");
    terminal.type_in(b"\x1d");
    let (ended, mut terminal) = terminal.end();
    assert!(ended.success(), "{}", terminal.seen);
    assert!(!terminal.is_raw());
    terminal.wait_for("Left the console of one");
    assert_eq!(host.info("one").state, GuestState::Running);
}

#[test]
fn a_console_restores_the_terminal_when_the_guest_ends() {
    let host = Host::plain();
    host.run("one", &[]).expect("nothing against it");
    let mut terminal = console(&host);
    terminal.type_in(b"q");
    let (ended, mut terminal) = terminal.end();
    assert!(ended.success());
    assert!(!terminal.is_raw());
    terminal.wait_for("Disconnected from the console of one");
}

#[test]
fn a_console_restores_the_terminal_when_the_daemon_is_killed() {
    let mut process = Process::start(&Gate::new(), &[], &[]);
    process.run("one", &[]).expect("nothing against it");
    let terminal = console(&process);
    process.kill();
    let (_, mut terminal) = terminal.end();
    assert!(!terminal.is_raw());
    terminal.wait_for("Disconnected from the console of one");
}

#[test]
fn a_console_restores_the_terminal_when_it_is_killed_itself() {
    let host = Host::plain();
    host.run("one", &[]).expect("nothing against it");
    for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT] {
        let terminal = console(&host);
        terminal.signal(signal);
        let (ended, mut terminal) = terminal.end();
        assert_eq!(ended.code(), Some(1), "{signal}");
        assert!(!terminal.is_raw(), "{signal}");
        terminal.wait_for(&format!("ended by {signal}"));
    }
    assert_eq!(host.info("one").state, GuestState::Running);
}
