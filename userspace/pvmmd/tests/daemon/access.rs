// SPDX-License-Identifier: GPL-2.0
//! Who may use a daemon: its control socket's group and mode, users that have no right, and the log of who did what.
//!
//! These tests change users, so they run as root.

use crate::host::{Host, Machine};
use crate::process::{copy_for_all, open_to_all, Gate, Process};
use pvmm_control::GuestState;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Output};

/// A user and a group that nobody else has.
const USER: &str = "54321";
const GROUP: &str = "54322";

/// The real program, run by a user who is in one group.
fn as_user(group: &str, socket: &Path, arguments: &[&str]) -> Output {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    open_to_all(directory.path());
    let program = copy_for_all(Path::new(env!("CARGO_BIN_EXE_pvmmd")), directory.path());
    Command::new("setpriv")
        .args(["--reuid", USER, "--regid", group, "--clear-groups"])
        .arg(program)
        .arg("--socket")
        .arg(socket)
        .args(arguments)
        .output()
        .expect("setpriv is part of util-linux")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn members_of_the_socket_s_group_may_use_it_and_others_are_told_what_to_do() {
    let gate = Gate::new();
    let process = Process::start(&gate, &["--socket-group", GROUP], &[]);
    process.run("one", &[]).expect("nothing against it");
    let file = std::fs::metadata(process.socket()).expect("it exists");
    assert_eq!(file.permissions().mode() & 0o777, 0o660);
    assert_eq!(file.gid().to_string(), GROUP);

    let member = as_user(GROUP, &process.socket(), &["list"]);
    assert!(member.status.success(), "{}", said(&member));
    let other = as_user(USER, &process.socket(), &["list"]);
    assert_eq!(other.status.code(), Some(1));
    for part in [
        "Permission denied",
        "as root",
        "member of the socket's group",
    ] {
        assert!(said(&other).contains(part), "{}", said(&other));
    }
}

#[test]
fn a_mode_without_the_group_s_right_keeps_the_group_out() {
    let gate = Gate::new();
    let options = ["--socket-group", GROUP, "--socket-mode", "0600"];
    let process = Process::start(&gate, &options, &[]);
    let member = as_user(GROUP, &process.socket(), &["list"]);
    assert_eq!(member.status.code(), Some(1));
    assert!(said(&member).contains("as root"), "{}", said(&member));
}

#[test]
fn what_a_client_changes_is_logged_with_who_it_was() {
    let gate = Gate::new();
    let process = Process::start(&gate, &["--socket-group", GROUP], &[]);
    process.run("one", &[]).expect("nothing against it");
    for command in ["list", "pause"] {
        let arguments = match command {
            "list" => vec![command],
            _ => vec![command, "one"],
        };
        let done = as_user(GROUP, &process.socket(), &arguments);
        assert!(done.status.success(), "{}", said(&done));
    }
    assert_eq!(process.info("one").state, GuestState::Paused);
    let log = process.said();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("asked")).collect();
    assert_eq!(lines.len(), 2, "a run and a pause: {log}");
    assert!(lines[0].contains("request=\"run\"") && lines[0].contains("uid=0"));
    for part in [
        "request=\"pause\"",
        "guest=\"one\"",
        "pid=",
        &format!("uid={USER}"),
        &format!("gid={GROUP}"),
    ] {
        assert!(lines[1].contains(part), "{part} is not in {}", lines[1]);
    }
}

#[test]
fn a_daemon_that_may_not_have_its_socket_says_what_to_do() {
    let closed = tempfile::tempdir().expect("a temporary directory can be made");
    let socket = closed.path().join("sub/control.sock");
    let refused = as_user(USER, &socket, &["serve"]);
    assert_eq!(refused.status.code(), Some(1));
    for part in ["control.sock", "run pvmmd as root", "--socket"] {
        assert!(said(&refused).contains(part), "{}", said(&refused));
    }

    let host = Host::plain();
    let socket = host.directory.path().join("other.sock");
    let unknown = Command::new(env!("CARGO_BIN_EXE_pvmmd"))
        .arg("--socket")
        .arg(&socket)
        .args(["serve", "--socket-group", "no-such-group"])
        .output()
        .expect("the program is built");
    assert_eq!(unknown.status.code(), Some(1));
    for part in ["no group \"no-such-group\"", "groupadd", "--socket-group"] {
        assert!(said(&unknown).contains(part), "{}", said(&unknown));
    }
    assert!(!socket.exists());
}
