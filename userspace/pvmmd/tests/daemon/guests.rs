// SPDX-License-Identifier: GPL-2.0
//! Guests on one host: their life, their consoles, and requests that are refused.

use crate::host::{error, name, Host, Machine, SERIAL};
use pvmm_control::{ErrorClass, GuestState, Request};
use pvmm_vmm::vcpu::End;
use pvmmd::daemon::control::{Access, ControlSocket};
use std::io::{Read, Write};

#[test]
fn guests_are_started_listed_paused_resumed_and_stopped() {
    let host = Host::plain();
    assert_eq!(host.guests(), []);
    host.run("one", &[SERIAL]).expect("nothing against it");
    host.run("two", &[]).expect("nothing against it");
    let names: Vec<_> = host.guests().into_iter().map(|guest| guest.name).collect();
    assert_eq!(names, ["one", "two"]);
    let one = host.info("one");
    assert_eq!((one.state, one.memory), (GuestState::Running, 16 << 20));
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
            .expect("64 MiB are four of 16");
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
    host.wait_state("one", GuestState::Ended);
    assert_eq!(host.info("one").end, Some(End::Shutdown));
    let mut late = host.console("one");
    late.wait_end();
    assert!(late.seen.starts_with("beat 0\n"), "{}", late.seen);
    host.daemon.stop_all();
    let log = std::fs::read_to_string(host.directory.path().join("one.log")).expect("a log");
    assert_eq!(log, late.seen);
}

#[test]
fn the_socket_of_a_daemon_that_is_gone_is_replaced_and_a_living_one_is_not() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let path = directory.path().join("sub/control.sock");
    std::fs::create_dir(directory.path().join("sub")).expect("a directory");
    // A listener that is dropped leaves its file.
    drop(std::os::unix::net::UnixListener::bind(&path).expect("a new socket"));
    let control = ControlSocket::bind(&path, &Access::default()).expect("the old socket is dead");
    let error = ControlSocket::bind(&path, &Access::default())
        .map(drop)
        .expect_err("somebody has it");
    assert!(error.to_string().contains("already running"), "{error}");
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(&path).expect("it exists").permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
    drop(control);
    assert!(!path.exists(), "a daemon that ends removes its socket");
}
