// SPDX-License-Identifier: GPL-2.0
//! Daemons on a fake hypervisor, with real control sockets and real connections between them.

use pvmm_control::request::{Console, Decision, Migrate, Name, Recover, Run};
use pvmm_control::{Client, ClientError, ErrorClass, Event, GuestInfo, GuestState, Reply, Request};
use pvmm_migrate::statistics::Status;
use pvmm_migrate::{Statistics, TargetOptions, Url};
use pvmm_vmm::boot::bzimage::made_up_image;
use pvmm_vmm::fake::FakeHypervisor;
use pvmm_vmm::host_serial::HostSerialPorts;
use pvmm_vmm::vcpu::End;
use pvmm_vmm::IrqChip;
use pvmmd::daemon::server::{serve_control, serve_moves, ControlSocket};
use pvmmd::daemon::{Daemon, Options};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);
const SERIAL: &str = "serial,port=0x2f8,irq=3";

/// One host with its daemon.
struct Host {
    directory: tempfile::TempDir,
    daemon: Arc<Daemon>,
    url: Url,
    _control: ControlSocket,
}

impl Host {
    fn new(grants: &[&str], target_options: TargetOptions) -> Self {
        Self::with(FakeHypervisor::default(), grants, target_options)
    }

    fn with(hypervisor: FakeHypervisor, grants: &[&str], target_options: TargetOptions) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        std::fs::write(
            directory.path().join("vmlinuz"),
            made_up_image(b"code", 1 << 20),
        )
        .expect("writable");
        let daemon = Daemon::new(
            Arc::new(hypervisor),
            HostSerialPorts::new(Path::new("/nonexistent")),
            Options {
                grants: grants
                    .iter()
                    .map(|grant| grant.parse().expect("a valid option"))
                    .collect(),
                max_memory: Some(256 << 20),
                console_log: Some(directory.path().to_owned()),
            },
        );
        let url = "tcp:127.0.0.1:0".parse().expect("a valid address");
        let url = serve_moves(&daemon, &url, Arc::new(target_options)).expect("a free port");
        let control =
            serve_control(&daemon, &directory.path().join("control.sock")).expect("a new socket");
        Self {
            directory,
            daemon,
            url,
            _control: control,
        }
    }

    fn plain() -> Self {
        Self::new(&[], TargetOptions::default())
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("control.sock")
    }

    fn client(&self) -> Client {
        Client::connect(&self.socket()).expect("the daemon runs")
    }

    fn call(&self, request: Request) -> Result<Reply, ClientError> {
        self.client().call(request)
    }

    fn run(&self, name: &str, devices: &[&str]) -> Result<Reply, ClientError> {
        self.call(Request::Run(Box::new(Run {
            name: name.into(),
            kernel: self.directory.path().join("vmlinuz"),
            initrd: None,
            cmdline: "console=ttyS0".into(),
            memory: 64 << 20,
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

    fn migrate(&self, name: &str, to: &Url) -> (Result<Reply, ClientError>, Vec<Statistics>) {
        let mut events = Vec::new();
        let request = Migrate {
            name: name.into(),
            url: to.to_string(),
            mode: None,
            downtime_limit: Some(5000),
            max_bandwidth: None,
            timeout: None,
            timeout_action: None,
        };
        let result = self
            .client()
            .call_with_events(Request::Migrate(Box::new(request)), |event| {
                let Event::Migration(statistics) = event;
                events.push(*statistics);
            });
        (result, events)
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

impl Drop for Host {
    fn drop(&mut self) {
        self.daemon.stop_all();
    }
}

struct ConsoleReader {
    stream: std::io::BufReader<std::os::unix::net::UnixStream>,
    seen: String,
}

impl ConsoleReader {
    fn read(&mut self) -> usize {
        let mut buffer = [0; 1024];
        let count = self.stream.read(&mut buffer).expect("output in time");
        self.seen
            .push_str(&String::from_utf8_lossy(&buffer[..count]));
        count
    }

    fn wait_for(&mut self, text: &str) {
        while !self.seen.contains(text) {
            assert!(
                self.read() > 0,
                "the console ended without \"{text}\": {}",
                self.seen
            );
        }
    }

    fn wait_end(&mut self) {
        while self.read() > 0 {}
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream
            .get_mut()
            .write_all(bytes)
            .expect("the daemon takes it");
    }

    /// The numbers of the complete beats seen.
    fn beats(&self) -> Vec<u64> {
        assert!(!self.seen.contains("LOST"), "{}", self.seen);
        beats(&self.seen)
    }
}

/// The numbers of the lines `beat N` that are complete.
fn beats(text: &str) -> Vec<u64> {
    let end = text.rfind('\n').map_or(0, |end| end + 1);
    text[..end]
        .lines()
        .filter_map(|line| line.strip_prefix("beat ")?.parse().ok())
        .collect()
}

fn error(result: Result<Reply, ClientError>) -> pvmm_control::ControlError {
    match result {
        Err(ClientError::Control(error)) => error,
        other => panic!("an error of the daemon was expected: {other:?}"),
    }
}

fn name(name: &str) -> Name {
    Name { name: name.into() }
}

#[test]
fn guests_are_started_listed_paused_resumed_and_stopped() {
    let host = Host::plain();
    assert_eq!(host.guests(), []);
    host.run("one", &[SERIAL]).expect("nothing against it");
    host.run("two", &[]).expect("nothing against it");
    let names: Vec<_> = host.guests().into_iter().map(|guest| guest.name).collect();
    assert_eq!(names, ["one", "two"]);
    let one = host.info("one");
    assert_eq!((one.state, one.memory), (GuestState::Running, 64 << 20));
    assert_eq!(one.devices, ["serial,port=0x2f8,irq=3,backend=physical"]);
    host.call(Request::Pause(name("one"))).expect("it runs");
    assert_eq!(host.info("one").state, GuestState::Paused);
    assert_eq!(host.info("two").state, GuestState::Running);
    host.call(Request::Resume(name("one")))
        .expect("it is paused");
    assert_eq!(host.info("one").state, GuestState::Running);
    host.call(Request::Stop(name("one"))).expect("it runs");
    let one = host.info("one");
    assert_eq!(
        (one.state, one.end),
        (GuestState::Ended, Some(End::Stopped))
    );
    let again = error(host.call(Request::Stop(name("one"))));
    assert!(again.desc.contains("has ended (stopped)"), "{again}");
    host.run("one", &[SERIAL])
        .expect("its name and its device are free again");
}

#[test]
fn a_name_memory_or_device_that_is_taken_is_refused() {
    let host = Host::plain();
    host.run("one", &[SERIAL]).expect("nothing against it");
    let error = |result| error(result);
    let taken = error(host.run("one", &[]));
    assert_eq!(taken.class, ErrorClass::Refused);
    assert!(taken.desc.contains("already here"), "{taken}");
    let device = error(host.run("two", &[SERIAL]));
    assert!(
        device.desc.contains("0x2f8") && device.desc.contains("another guest"),
        "{device}"
    );
    for number in 0..3 {
        host.run(&format!("more{number}"), &[])
            .expect("256 MiB are four of 64");
    }
    let memory = error(host.run("last", &[]));
    assert!(memory.desc.contains("--max-memory"), "{memory}");
    assert_eq!(host.guests().len(), 4, "a refused guest leaves nothing");
}

#[test]
fn requests_that_make_no_sense_are_answered_with_what_is_wrong() {
    let host = Host::plain();
    let missing = error(host.call(Request::Info(name("none"))));
    assert_eq!(missing.class, ErrorClass::NotFound);
    assert!(missing.desc.contains("pvmmd list"), "{missing}");
    assert_eq!(error(host.run("../etc", &[])).class, ErrorClass::Invalid);
    let mut stream = std::os::unix::net::UnixStream::connect(host.socket()).expect("it listens");
    stream
        .write_all(b"{\"version\":2,\"execute\":\"list\"}\nnonsense\n")
        .expect("it reads");
    let mut text = String::new();
    stream
        .read_to_string(&mut text)
        .expect("it answers and closes");
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(lines[0].contains("\"class\":\"version\""), "{text}");
    assert!(lines[1].contains("\"class\":\"invalid\""), "{text}");
}

#[test]
fn a_console_shows_the_past_carries_input_and_ends_with_the_guest() {
    let host = Host::plain();
    host.run("one", &[]).expect("nothing against it");
    let mut console = host.console("one");
    console.wait_for("beat 0\n");
    let mut second = host.console("one");
    second.wait_for("beat 0\n");
    console.send(b"Z");
    console.wait_for("Z");
    second.wait_for("Z");
    console.send(b"q");
    console.wait_end();
    let limit = Instant::now() + LIMIT;
    while host.info("one").state != GuestState::Ended {
        assert!(Instant::now() < limit, "the guest has not ended");
        std::thread::yield_now();
    }
    assert_eq!(host.info("one").end, Some(End::Shutdown));
    let mut late = host.console("one");
    late.wait_end();
    assert!(late.seen.starts_with("beat 0\n"), "{}", late.seen);
    host.daemon.stop_all();
    let log = std::fs::read_to_string(host.directory.path().join("one.log")).expect("a log");
    assert_eq!(log, late.seen);
}

#[test]
fn a_running_guest_moves_there_and_back_and_loses_no_beat() {
    let here = Host::plain();
    let there = Host::plain();
    here.run("one", &[]).expect("nothing against it");
    let mut text = String::new();
    let mut moves = 0;
    for (from, to) in [(&here, &there), (&there, &here), (&here, &there)] {
        let mut console = from.console("one");
        console.wait_for("beat");
        let (result, _) = from.migrate("one", &to.url);
        let Ok(Reply::Job(statistics)) = result else {
            panic!("{result:?}");
        };
        assert_eq!(statistics.status, Status::Completed);
        assert_eq!(statistics.progress_percent, 100);
        assert!(statistics.downtime.is_some() && statistics.downtime_breakdown.is_some());
        console.wait_end();
        console.beats();
        text += &console.seen;
        let left = from.info("one");
        assert_eq!(
            (left.state, left.end),
            (GuestState::Ended, Some(End::Moved))
        );
        assert_eq!(to.info("one").state, GuestState::Running);
        moves += 1;
    }
    assert_eq!(moves, 3);
    let mut console = there.console("one");
    let last = beats(&text).last().copied().expect("it has beaten");
    console.wait_for(&format!("beat {}\n", last + 20));
    text += &console.seen;
    // The text of the moves is one stream, even where a line was cut by a move.
    let beats = beats(&text);
    assert!(beats.len() as u64 > last, "{text}");
    for (index, beat) in beats.iter().enumerate() {
        assert_eq!(*beat, index as u64, "{text}");
    }
    assert!(!text.contains("LOST"), "{text}");
}

#[test]
fn a_paused_guest_moves_and_stays_paused() {
    let here = Host::plain();
    let there = Host::plain();
    here.run("one", &[]).expect("nothing against it");
    here.call(Request::Pause(name("one"))).expect("it runs");
    here.migrate("one", &there.url)
        .0
        .expect("nothing against it");
    assert_eq!(there.info("one").state, GuestState::Paused);
    there
        .call(Request::Resume(name("one")))
        .expect("it is paused");
    there.console("one").wait_for("beat");
}

#[test]
fn a_guest_with_a_device_goes_only_where_it_is_granted() {
    let here = Host::plain();
    let closed = Host::plain();
    let open = Host::new(&[SERIAL], TargetOptions::default());
    here.run("one", &[SERIAL]).expect("nothing against it");
    let refused = error(here.migrate("one", &closed.url).0);
    assert_eq!(refused.class, ErrorClass::Refused);
    assert_eq!(refused.exit_code(), 4);
    assert!(
        refused.desc.contains("--grant serial,port=0x2f8,irq=3"),
        "{refused}"
    );
    assert_eq!(here.info("one").state, GuestState::Running);
    assert_eq!(closed.guests(), [], "a refused guest leaves nothing");
    here.migrate("one", &open.url).0.expect("it is granted");
    assert_eq!(
        open.info("one").devices,
        ["serial,port=0x2f8,irq=3,backend=physical"]
    );
    here.run("two", &[SERIAL])
        .expect("the device is free here again");
    let taken = error(here.migrate("two", &open.url).0);
    assert_eq!(taken.class, ErrorClass::Refused);
    assert_eq!(here.info("two").state, GuestState::Running);
}

#[test]
fn a_host_that_cannot_take_the_guest_says_why() {
    let here = Host::plain();
    let full = Host::plain();
    for number in 0..4 {
        full.run(&format!("guest{number}"), &[])
            .expect("256 MiB are four of 64");
    }
    here.run("guest0", &[]).expect("nothing against it");
    let refused = error(here.migrate("guest0", &full.url).0);
    assert_eq!(refused.class, ErrorClass::Refused);
    assert!(refused.desc.contains("already on this host"), "{refused}");
    assert!(
        refused.desc.contains("--max-memory"),
        "every reason at once: {refused}"
    );
    let nobody = error(
        here.migrate("guest0", &"tcp:127.0.0.1:1".parse().expect("valid"))
            .0,
    );
    assert_eq!(nobody.class, ErrorClass::Failed);
    assert_eq!(here.info("guest0").state, GuestState::Running);
}

#[test]
fn a_move_that_fails_at_the_peer_leaves_the_guest_running_here() {
    let mut phases = 0;
    for &phase in pvmm_migrate::phase::TargetPhase::ALL {
        let options = TargetOptions {
            hook: Some(Box::new(move |now| match now == phase {
                true => Err("injected".into()),
                false => Ok(()),
            })),
            ..TargetOptions::default()
        };
        let here = Host::plain();
        let there = Host::new(&[], options);
        here.run("one", &[]).expect("nothing against it");
        let (result, _) = here.migrate("one", &there.url);
        let running = |host: &Host| {
            host.guests()
                .iter()
                .filter(|guest| guest.state == GuestState::Running)
                .count()
        };
        assert_eq!(running(&here) + running(&there), 1, "{phase:?}: {result:?}");
        if result.is_err() {
            let mut console = here.console("one");
            console.wait_for("beat");
            let last = console.beats().last().copied().unwrap_or(0);
            console.wait_for(&format!("beat {}\n", last + 20));
            console.beats();
            assert_eq!(there.guests(), [], "{phase:?}");
        }
        phases += 1;
    }
    assert!(phases > 3);
}

#[test]
fn a_move_can_be_cancelled_and_the_guest_goes_on() {
    let here = Host::plain();
    let there = Host::plain();
    here.run("one", &[]).expect("nothing against it");
    let mut client = here.client();
    let request = Migrate {
        name: "one".into(),
        url: there.url.to_string(),
        mode: None,
        // No limit can be kept, so pre-copy goes on until it is cancelled.
        downtime_limit: Some(1000),
        max_bandwidth: Some(4096),
        timeout: None,
        timeout_action: None,
    };
    let mut asked = false;
    let result = client.call_with_events(Request::Migrate(Box::new(request)), |_| {
        if !asked {
            let busy = error(here.call(Request::Pause(name("one"))));
            assert!(busy.desc.contains("migrate-cancel"), "{busy}");
            assert!(here.info("one").migrating);
            here.call(Request::MigrateCancel(name("one")))
                .expect("it is being moved");
            asked = true;
        }
    });
    let cancelled = error(result);
    assert_eq!(
        (cancelled.class, cancelled.exit_code()),
        (ErrorClass::Cancelled, 3)
    );
    assert!(asked, "the move was over before it could be cancelled");
    assert_eq!(here.info("one").state, GuestState::Running);
    let again = error(here.call(Request::MigrateCancel(name("one"))));
    assert!(again.desc.contains("not being moved"), "{again}");
    let Reply::Job(job) = here
        .call(Request::JobInfo(name("one")))
        .expect("it is there")
    else {
        panic!("a job was asked for");
    };
    assert_eq!(job.status, Status::Cancelled);
    here.migrate("one", &there.url)
        .0
        .expect("it can be moved later");
}

#[test]
fn there_is_nothing_to_recover_without_a_doubt() {
    let host = Host::plain();
    host.run("one", &[]).expect("nothing against it");
    let request = Request::MigrateRecover(Recover {
        name: "one".into(),
        decision: Decision::Discard,
    });
    let refused = error(host.call(request));
    assert!(refused.desc.contains("no doubt"), "{refused}");
    assert_eq!(host.info("one").state, GuestState::Running);
}

#[test]
fn the_socket_of_a_daemon_that_is_gone_is_replaced_and_a_living_one_is_not() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let path = directory.path().join("sub/control.sock");
    std::fs::create_dir(directory.path().join("sub")).expect("a directory");
    // A listener that is dropped leaves its file.
    drop(std::os::unix::net::UnixListener::bind(&path).expect("a new socket"));
    let daemon = Daemon::new(
        Arc::new(FakeHypervisor::default()),
        HostSerialPorts::new(Path::new("/nonexistent")),
        Options::default(),
    );
    let control = serve_control(&daemon, &path).expect("the old socket is dead");
    let error = serve_control(&daemon, &path)
        .map(drop)
        .expect_err("it is served");
    assert!(error.to_string().contains("already running"), "{error}");
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(&path).expect("it exists").permissions(),
    );
    assert_eq!(mode & 0o777, 0o660);
    drop(control);
    assert!(!path.exists(), "a daemon that ends removes its socket");
}
