// SPDX-License-Identifier: GPL-2.0
//! Daemons in processes of their own, on a fake hypervisor, that can be killed at a chosen phase of a move.
//!
//! A daemon is this very test program, told by its environment to run only the one test that serves. It reports every phase
//! that it enters to a [`Gate`] and waits there until it may go on.

use crate::host::{Machine, LIMIT};
use clap::Parser;
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use pvmm_control::{Client, Reply, Request};
use pvmm_migrate::options::PhaseHook;
use pvmm_migrate::phase::{SourcePhase, TargetPhase};
use pvmm_migrate::Url;
use pvmm_vmm::boot::bzimage::made_up_image;
use pvmm_vmm::fake::FakeHypervisor;
use pvmm_vmm::host_device::HostDevices;
use pvmmd::cli::{Cli, Command as Subcommand};
use pvmmd::commands::serve::{serve, Base};
use pvmmd::daemon::SourceHook;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// The arguments of the daemon, one a line. Set: this program is a daemon.
const ARGUMENTS: &str = "PVMM_TEST_DAEMON";
/// Where it reports its phases.
const GATE: &str = "PVMM_TEST_GATE";
/// Set: the daemon tries what its filter refuses at the start of every phase of a move to it.
pub const TRESPASS: &str = "PVMM_TEST_TRESPASS";
/// What the log says of a system call that was refused.
pub const REFUSED: &str = "refused system call";
/// Between two looks at something that cannot be waited for.
const POLL: Duration = Duration::from_millis(5);
/// The test that serves.
const ENTRY: &str =
    "process::a_daemon_in_its_own_process_ends_at_sigterm_and_takes_its_socket_along";

/// A phase of either side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Source(SourcePhase),
    Target(TargetPhase),
}

impl Step {
    fn text(self) -> String {
        match self {
            Self::Source(phase) => format!("source {phase}"),
            Self::Target(phase) => format!("target {phase}"),
        }
    }
}

#[derive(Default)]
struct GateState {
    held: Vec<String>,
    seen: Vec<String>,
    waiting: Vec<UnixStream>,
}

/// Where daemons report the phases that they enter, and are held at some.
pub struct Gate {
    path: PathBuf,
    _directory: tempfile::TempDir,
    state: Mutex<GateState>,
    changed: Condvar,
}

impl Gate {
    pub fn new() -> Arc<Self> {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let path = directory.path().join("gate.sock");
        let listener = UnixListener::bind(&path).expect("a new socket");
        open_to_all(directory.path());
        open_to_all(&path);
        let gate = Arc::new(Self {
            path,
            _directory: directory,
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let this = Arc::downgrade(&gate);
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let mut step = String::new();
                let read = BufReader::new(&stream).read_line(&mut step);
                let Some(gate) = this.upgrade() else { return };
                read.expect("a daemon says where it is");
                gate.arrive(step.trim_end().to_owned(), stream);
            }
        });
        gate
    }

    fn arrive(&self, step: String, mut stream: UnixStream) {
        let mut state = self.state.lock().expect("no panic");
        if state.held.contains(&step) {
            state.waiting.push(stream);
        } else {
            // It may have been killed in this moment.
            let _ = stream.write_all(b"go\n");
        }
        state.seen.push(step);
        self.changed.notify_all();
    }

    /// Whoever enters this phase waits there.
    pub fn hold(&self, step: Step) {
        self.state.lock().expect("no panic").held.push(step.text());
    }

    /// Waits until somebody has entered a phase.
    pub fn wait_for(&self, step: Step) {
        self.wait_for_times(step, 1);
    }

    /// Waits until a phase has been entered so many times.
    pub fn wait_for_times(&self, step: Step, times: usize) {
        let text = step.text();
        let fewer =
            |state: &mut GateState| state.seen.iter().filter(|seen| **seen == text).count() < times;
        let state = self.state.lock().expect("no panic");
        let (state, over) = self
            .changed
            .wait_timeout_while(state, LIMIT, fewer)
            .expect("no panic");
        assert!(!over.timed_out(), "{text} is not among {:?}", state.seen);
    }

    /// Reports what a daemon in this process does when it sends.
    pub fn source_hook(&self) -> SourceHook {
        let gate = self.path.clone();
        SourceHook(Arc::new(move |phase| report(&gate, Step::Source(phase))))
    }

    /// Reports what a daemon in this process does when it receives.
    pub fn target_hook(&self) -> Box<PhaseHook<TargetPhase>> {
        let gate = self.path.clone();
        Box::new(move |phase| report(&gate, Step::Target(phase)))
    }

    /// Lets everybody go on, and holds nobody any more.
    pub fn open(&self) {
        let mut state = self.state.lock().expect("no panic");
        state.held.clear();
        state.seen.clear();
        for mut stream in state.waiting.drain(..) {
            // It may have been killed.
            let _ = stream.write_all(b"go\n");
        }
    }
}

/// Tells the gate where this daemon is, and waits until it may go on.
fn report(gate: &Path, step: Step) -> Result<(), String> {
    let report = || {
        let mut stream = UnixStream::connect(gate)?;
        writeln!(stream, "{}", step.text())?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer)
    };
    report()
        .map(drop)
        .map_err(|error| format!("the gate: {error}"))
}

/// A daemon in a process of its own. Killed when dropped.
pub struct Process {
    child: Child,
    pub directory: tempfile::TempDir,
    /// Whether it may have system calls refused. Otherwise that fails the test: it needs one that is on no list.
    pub trespasses: bool,
    plan: Plan,
    /// It reports there until its end.
    _gate: Arc<Gate>,
    pub url: Url,
}

/// Some daemons run as another user than the test.
pub fn open_to_all(path: &Path) {
    let all = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(path, all).expect("it is ours");
}

/// A copy of a program that any user can run, wherever the original is.
pub fn copy_for_all(program: &Path, directory: &Path) -> PathBuf {
    let copy = directory.join(program.file_name().expect("a program is a file"));
    std::fs::copy(program, &copy).expect("the directory is writable");
    open_to_all(&copy);
    copy
}

/// How a daemon is started.
struct Plan {
    options: Vec<String>,
    through: Vec<String>,
    program: PathBuf,
    gate: PathBuf,
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

impl Plan {
    fn spawn(&self, directory: &Path, listen: &str) -> Child {
        let socket = directory.join("control.sock");
        let socket = socket.to_str().expect("a plain path");
        let log = directory.to_str().expect("a plain path");
        let mut arguments = words(&["pvmmd", "serve", "--listen", listen]);
        arguments.extend(words(&["--max-memory", "64M", "--recover-limit", "1"]));
        arguments.extend(words(&["--console-log", log, "--socket", socket]));
        arguments.extend_from_slice(&self.options);
        let stderr = File::options()
            .create(true)
            .append(true)
            .open(directory.join("stderr"))
            .expect("writable");
        // As `pvmmd serve` does itself before its first thread; here there are some already.
        let mut command = Command::new("env");
        command
            .args(["--block-signal=TERM", "--block-signal=INT"])
            .args(&self.through)
            .arg(&self.program);
        command
            .args(["--exact", ENTRY, "--nocapture"])
            .env(ARGUMENTS, arguments.join("\n"))
            .env(GATE, &self.gate)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .expect("this program can be started again")
    }
}

impl Process {
    /// A daemon with these options beside the usual ones. `through` is a program that starts it, with its arguments.
    pub fn start(gate: &Arc<Gate>, options: &[&str], through: &[&str]) -> Self {
        let program = std::env::current_exe().expect("this program runs");
        Self::start_program(&program, gate, options, through, "tcp:127.0.0.1:0")
    }

    /// A daemon with these options that takes guests at `listen`.
    pub fn start_at(listen: &str, gate: &Arc<Gate>, options: &[&str]) -> Self {
        let program = std::env::current_exe().expect("this program runs");
        Self::start_program(&program, gate, options, &[], listen)
    }

    /// A daemon that another user runs.
    pub fn start_as(uid: u32, gate: &Arc<Gate>) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        open_to_all(directory.path());
        let program = std::env::current_exe().expect("this program runs");
        let program = copy_for_all(&program, directory.path());
        let uid = uid.to_string();
        let through = ["setpriv", "--reuid", &uid, "--clear-groups"];
        // The program may go once it runs.
        Self::start_program(&program, gate, &[], &through, "tcp:127.0.0.1:0")
    }

    fn start_program(
        program: &Path,
        gate: &Arc<Gate>,
        options: &[&str],
        through: &[&str],
        listen: &str,
    ) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let image = made_up_image(b"code", 1 << 20);
        std::fs::write(directory.path().join("vmlinuz"), image).expect("writable");
        open_to_all(directory.path());
        let plan = Plan {
            options: words(options),
            through: words(through),
            program: program.to_owned(),
            gate: gate.path.clone(),
        };
        let child = plan.spawn(directory.path(), listen);
        let mut process = Self {
            child,
            directory,
            trespasses: false,
            plan,
            _gate: Arc::clone(gate),
            url: Url::Unix(PathBuf::new()),
        };
        process.url = process.wait_url();
        process
    }

    /// Waits until it serves; where it takes guests.
    fn wait_url(&mut self) -> Url {
        let limit = Instant::now() + LIMIT;
        loop {
            let ended = self.child.try_wait().expect("it is a child");
            assert!(ended.is_none(), "{ended:?}: {}", self.said());
            assert!(Instant::now() < limit, "it does not serve: {}", self.said());
            // Not before it can answer; until then nobody listens, or an old socket is dead.
            let answer =
                Client::connect(&self.socket()).and_then(|mut c| c.call(Request::Capabilities));
            match answer {
                Ok(Reply::Capabilities(host)) => {
                    let url = host.listen.first().expect("it listens for guests");
                    return url.parse().expect("its own address");
                }
                _ => std::thread::sleep(POLL),
            }
        }
    }

    /// Its log.
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("stderr")).expect("a log")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills it as a crash would.
    pub fn kill(&mut self) {
        self.child.kill().expect("it is a child");
        self.child.wait().expect("it is a child");
    }

    /// Asks it to end, and waits.
    pub fn end(&mut self) -> ExitStatus {
        // A pid is positive and fits.
        let pid = Pid::from_raw(self.pid() as i32);
        kill(pid, Signal::SIGTERM).expect("it runs");
        self.child.wait().expect("it is a child")
    }

    /// Kills it and starts it again, at the same addresses.
    pub fn again(&mut self) {
        self.kill();
        self.child = self
            .plan
            .spawn(self.directory.path(), &self.url.to_string());
        self.url = self.wait_url();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if !self.trespasses && !std::thread::panicking() {
            assert!(!self.said().contains(REFUSED), "{}", self.said());
        }
    }
}

impl Machine for Process {
    fn socket(&self) -> PathBuf {
        self.directory.path().join("control.sock")
    }

    fn kernel(&self) -> PathBuf {
        self.directory.path().join("vmlinuz")
    }
}

/// What no daemon needs, if the environment asks for it.
fn trespass() -> Result<(), String> {
    match std::env::var_os(TRESPASS) {
        Some(_) => std::os::unix::fs::chroot("/").map_err(|error| format!("chroot: {error}")),
        None => Ok(()),
    }
}

/// Serves as the environment says. Does not return if it says so.
fn serve_if_told() {
    let (Ok(arguments), Ok(gate)) = (std::env::var(ARGUMENTS), std::env::var(GATE)) else {
        return;
    };
    pvmmd::logging::to_stderr();
    let cli = Cli::try_parse_from(arguments.lines()).expect("a valid command line");
    let Subcommand::Serve(options) = cli.command else {
        panic!("a daemon was asked for: {arguments}");
    };
    let gate = PathBuf::from(gate);
    let (source, target) = (gate.clone(), gate);
    let base = Base {
        hypervisor: Arc::new(FakeHypervisor::default()),
        ports: HostDevices::none(),
        source_hook: Some(SourceHook(Arc::new(move |phase| {
            report(&source, Step::Source(phase))
        }))),
        target_hook: Some(Box::new(move |phase| {
            trespass()?;
            report(&target, Step::Target(phase))
        })),
    };
    let code = match serve(&cli.socket, options, base) {
        Ok(()) => 0,
        Err(failure) => {
            eprintln!("pvmmd: {failure}");
            failure.exit_code().into()
        }
    };
    std::process::exit(code);
}

#[test]
fn a_daemon_in_its_own_process_ends_at_sigterm_and_takes_its_socket_along() {
    serve_if_told();
    let mut process = Process::start(&Gate::new(), &[], &[]);
    process.run("one", &[]).expect("nothing against it");
    process.console("one").wait_for("beat 3\n");
    assert!(process.end().success(), "{}", process.said());
    assert!(!process.socket().exists());
}
