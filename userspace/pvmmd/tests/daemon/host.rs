// SPDX-License-Identifier: GPL-2.0
//! One host with its daemon on a fake hypervisor, as its clients see it: [`Host`] has it in this process, and
//! [`crate::process::Process`] in one of its own.

use pvmm_control::request::{Console, Migrate, Name, Run};
use pvmm_control::{
    Client, ClientError, ControlError, Event, GuestInfo, GuestState, Reply, Request,
};
use pvmm_migrate::{Security, Statistics, TargetOptions, Url};
use pvmm_vmm::boot::bzimage::made_up_image;
use pvmm_vmm::fake::FakeHypervisor;
use pvmm_vmm::host_device::HostDevices;
use pvmm_vmm::IrqChip;
use pvmmd::daemon::control::{Access, ControlSocket};
use pvmmd::daemon::server::MoveListener;
use pvmmd::daemon::{Daemon, Options};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub const LIMIT: Duration = Duration::from_secs(60);
/// The device that the fake machine has.
pub const SERIAL: &str = "serial,port=0x2f8,irq=3";

/// A host with a daemon.
pub trait Machine {
    /// Memory of its guests, in bytes.
    const MEMORY: u64 = 16 << 20;

    /// The daemon's control socket.
    fn socket(&self) -> PathBuf;

    /// A kernel.
    fn kernel(&self) -> PathBuf;

    fn client(&self) -> Client {
        Client::connect(&self.socket()).expect("the daemon runs")
    }

    fn call(&self, request: Request) -> Result<Reply, ClientError> {
        self.client().call(request)
    }

    fn run(&self, name: &str, devices: &[&str]) -> Result<Reply, ClientError> {
        self.call(Request::Run(Box::new(Run {
            name: name.into(),
            kernel: self.kernel(),
            initrd: None,
            cmdline: "console=ttyS0".into(),
            memory: Self::MEMORY,
            irqchip: IrqChip::Apic,
            devices: devices
                .iter()
                .map(|device| device.parse().expect("a valid option"))
                .collect(),
        })))
    }

    fn guests(&self) -> Vec<GuestInfo> {
        match self.call(Request::List).expect("the daemon answers") {
            Reply::Guests(guests) => guests,
            other => panic!("{other:?}"),
        }
    }

    fn info(&self, name: &str) -> GuestInfo {
        match self.call(Request::Info(Name { name: name.into() })) {
            Ok(Reply::Guest(guest)) => *guest,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until a guest is in a state.
    fn wait_state(&self, name: &str, state: GuestState) {
        let limit = Instant::now() + LIMIT;
        while self.info(name).state != state {
            assert!(Instant::now() < limit, "{:?}", self.info(name));
            std::thread::yield_now();
        }
    }

    /// How many guests run.
    fn running(&self) -> usize {
        self.guests()
            .iter()
            .filter(|guest| guest.state == GuestState::Running)
            .count()
    }

    fn migrate(&self, name: &str, to: &Url) -> (Result<Reply, ClientError>, Vec<Statistics>) {
        let mut events = Vec::new();
        let result = self.client().call_with_events(move_of(name, to), |event| {
            if let Event::Migration(statistics) = event {
                events.push(*statistics);
            }
        });
        (result, events)
    }

    /// The real program as this daemon's client.
    fn program(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pvmmd"));
        command.arg("--socket").arg(self.socket()).args(arguments);
        command
    }

    /// A guest runs on: its memory is whole, and no beat is repeated or left out. Returns what it has printed here.
    fn goes_on(&self, name: &str) -> String {
        let mut console = self.console(name);
        let last = console.wait_beat();
        console.wait_for(&format!("beat {}\n", last + 20));
        assert_whole(&console.seen);
        console.seen
    }

    /// Waits until nothing is left of a guest that was being received.
    fn wait_empty(&self) {
        let limit = Instant::now() + LIMIT;
        while !self.guests().is_empty() {
            assert!(Instant::now() < limit, "{:?}", self.guests());
            std::thread::yield_now();
        }
    }

    fn console(&self, name: &str) -> ConsoleReader {
        let mut client = self.client();
        let request = Request::Console(Console {
            name: name.into(),
            backlog: true,
        });
        client.call(request).expect("the guest is there");
        let stream = client.into_raw();
        stream
            .get_ref()
            .set_read_timeout(Some(LIMIT))
            .expect("not zero");
        ConsoleReader {
            stream,
            seen: String::new(),
        }
    }
}

/// Nothing in what a guest printed is lost or repeated.
pub fn assert_whole(text: &str) {
    assert!(!text.contains("LOST"), "{text}");
    let beats = beats(text);
    let next = |pair: &[u64]| pair[1] == pair[0] + 1;
    assert!(beats.len() > 1 && beats.windows(2).all(next), "{text}");
}

/// A request to move a guest, under limits that no busy machine exceeds.
pub fn move_of(name: &str, to: &Url) -> Request {
    Request::Migrate(Box::new(Migrate {
        name: name.into(),
        url: to.to_string(),
        mode: None,
        downtime_limit: Some(5000),
        max_bandwidth: None,
        timeout: None,
        timeout_action: None,
    }))
}

/// One host with its daemon.
pub struct Host {
    pub directory: tempfile::TempDir,
    pub daemon: Arc<Daemon>,
    pub url: Url,
    _control: ControlSocket,
}

impl Host {
    pub fn new(grants: &[&str], target_options: TargetOptions) -> Self {
        Self::with_options(target_options, |options| {
            let grant = |grant: &&str| grant.parse().expect("a valid option");
            options.grants = grants.iter().map(grant).collect();
        })
    }

    pub fn with_options(target_options: TargetOptions, change: impl FnOnce(&mut Options)) -> Self {
        Self::with(FakeHypervisor::default(), target_options, change)
    }

    fn with(
        hypervisor: FakeHypervisor,
        target_options: TargetOptions,
        change: impl FnOnce(&mut Options),
    ) -> Self {
        let url = "tcp:127.0.0.1:0".parse().expect("a valid address");
        Self::build(hypervisor, target_options, &url, change)
    }

    /// A host whose connections with peers are protected so.
    pub fn secure(security: Security) -> Self {
        let url = "tcp:127.0.0.1:0".parse().expect("a valid address");
        Self::secure_at(security, &url)
    }

    /// As [`Self::secure`], taking guests at `url`.
    pub fn secure_at(security: Security, url: &Url) -> Self {
        let hypervisor = FakeHypervisor::default();
        Self::build(hypervisor, TargetOptions::default(), url, |options| {
            options.security = security;
        })
    }

    fn build(
        hypervisor: FakeHypervisor,
        target_options: TargetOptions,
        url: &Url,
        change: impl FnOnce(&mut Options),
    ) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        std::fs::write(
            directory.path().join("vmlinuz"),
            made_up_image(b"code", 1 << 20),
        )
        .expect("writable");
        let mut options = Options {
            max_memory: Some(64 << 20),
            console_log: Some(directory.path().to_owned()),
            recover_limit: Some(Duration::from_secs(1)),
            ..Options::default()
        };
        change(&mut options);
        let daemon = Daemon::new(Arc::new(hypervisor), HostDevices::none(), options);
        let url = MoveListener::bind(url, &daemon.options().security)
            .and_then(|listener| listener.serve(&daemon, Arc::new(target_options)))
            .expect("a free port");
        let control = directory.path().join("control.sock");
        let control = ControlSocket::bind(&control, &Access::default()).expect("a new socket");
        control.serve(&daemon).expect("a thread can be started");
        Self {
            directory,
            daemon,
            url,
            _control: control,
        }
    }

    pub fn plain() -> Self {
        Self::new(&[], TargetOptions::default())
    }
}

impl Machine for Host {
    fn socket(&self) -> PathBuf {
        self.directory.path().join("control.sock")
    }

    fn kernel(&self) -> PathBuf {
        self.directory.path().join("vmlinuz")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.daemon.stop_all();
    }
}

pub struct ConsoleReader {
    stream: std::io::BufReader<std::os::unix::net::UnixStream>,
    pub seen: String,
}

impl ConsoleReader {
    pub fn read(&mut self) -> usize {
        let mut buffer = [0; 1024];
        let count = self.stream.read(&mut buffer).expect("output in time");
        self.seen
            .push_str(&String::from_utf8_lossy(&buffer[..count]));
        count
    }

    /// Waits for a whole beat; its number.
    pub fn wait_beat(&mut self) -> u64 {
        loop {
            if let Some(last) = self.beats().last() {
                return *last;
            }
            assert!(self.read() > 0, "the console ended: {}", self.seen);
        }
    }

    pub fn wait_for(&mut self, text: &str) {
        let limit = Instant::now() + LIMIT;
        while !self.seen.contains(text) {
            assert!(Instant::now() < limit, "no \"{text}\" in {}", self.seen);
            assert!(
                self.read() > 0,
                "the console ended without \"{text}\": {}",
                self.seen
            );
        }
    }

    pub fn wait_end(&mut self) {
        while self.read() > 0 {}
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream
            .get_mut()
            .write_all(bytes)
            .expect("the daemon takes it");
    }

    /// The numbers of the complete beats seen.
    pub fn beats(&self) -> Vec<u64> {
        assert!(!self.seen.contains("LOST"), "{}", self.seen);
        beats(&self.seen)
    }
}

/// The numbers of the lines `beat N` that are complete.
pub fn beats(text: &str) -> Vec<u64> {
    let end = text.rfind('\n').map_or(0, |end| end + 1);
    text[..end]
        .lines()
        .filter_map(|line| line.strip_prefix("beat ")?.parse().ok())
        .collect()
}

pub fn error(result: Result<Reply, ClientError>) -> ControlError {
    match result {
        Err(ClientError::Control(error)) => error,
        other => panic!("an error of the daemon was expected: {other:?}"),
    }
}

pub fn name(name: &str) -> Name {
    Name { name: name.into() }
}
