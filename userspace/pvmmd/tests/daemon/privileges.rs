// SPDX-License-Identifier: GPL-2.0
//! What a daemon gives up before it answers, and that it can do all that it is for without it.
//!
//! [`Process`] fails every test whose daemon had a system call refused, unless the test says that it is to be.

use crate::host::{beats, error, Machine};
use crate::process::{Gate, Process, REFUSED, TRESPASS};
use crate::tls::issue;
use pvmm_control::GuestState;
use pvmm_migrate::Url;
use pvmmd::cert;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

/// A user who is not root.
const OTHER: u32 = 54321;
/// Filters of every thread: the list, and `clone3`.
const FILTERS: &str = "2";
/// Those of a vCPU's thread: its own list besides.
const VCPU_FILTERS: &str = "3";
const NONE: &str = "0000000000000000";

/// The lines of proc(5)'s `status`.
type Status = BTreeMap<String, String>;

/// Every thread of a process.
fn threads(pid: u32) -> Vec<Status> {
    let directory = format!("/proc/{pid}/task");
    let entries = std::fs::read_dir(directory).expect("it runs");
    entries
        .map(|entry| entry.expect("it runs").path().join("status"))
        // It may have ended meanwhile.
        .filter_map(|path| std::fs::read_to_string(path).ok())
        .map(|status| {
            let lines = status.lines().filter_map(|line| line.split_once(':'));
            lines
                .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
                .collect()
        })
        .collect()
}

/// Every thread of a daemon that a test harness runs. The harness's own thread was there before, and waits.
fn daemon_threads(process: &Process) -> Vec<Status> {
    let mut threads = threads(process.pid());
    threads.retain(|thread| thread["Pid"] != thread["Tgid"]);
    threads
}

/// All of these have given up what they do not need. Returns their bounding sets.
fn check(threads: &[Status]) -> Vec<String> {
    for thread in threads {
        let filters = match thread["Name"].as_str() {
            "vcpu0" => VCPU_FILTERS,
            _ => FILTERS,
        };
        for (line, value) in [
            ("NoNewPrivs", "1"),
            ("Seccomp", "2"),
            ("Seccomp_filters", filters),
            ("CapInh", NONE),
            ("CapPrm", NONE),
            ("CapEff", NONE),
            ("CapAmb", NONE),
        ] {
            assert_eq!(thread[line], value, "{line} of {thread:?}");
        }
    }
    threads.iter().map(|t| t["CapBnd"].clone()).collect()
}

/// As [`check`], for a daemon with one guest.
fn check_daemon(process: &Process) -> Vec<String> {
    let threads = daemon_threads(process);
    let vcpus = threads.iter().filter(|t| t["Name"] == "vcpu0").count();
    assert_eq!(vcpus, 1, "{threads:?}");
    // The one that waits for signals, the control socket's, that of moves, the guest's.
    assert!(threads.len() >= 4, "{threads:?}");
    check(&threads)
}

#[test]
fn the_program_itself_gives_up_its_privileges_in_all_its_threads() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let socket = directory.path().join("control.sock");
    let mut daemon = Command::new(env!("CARGO_BIN_EXE_pvmmd"))
        .args(["serve", "--listen", "tcp:127.0.0.1:0", "--socket"])
        .arg(&socket)
        .stderr(Stdio::piped())
        .spawn()
        .expect("it can be started");
    // Where the module is not there, it says so and serves all the same.
    let log = BufReader::new(daemon.stderr.take().expect("a pipe"));
    let mut said = String::new();
    for line in log.lines() {
        said += &line.expect("text");
        said.push('\n');
        if said.contains("ready") {
            break;
        }
    }
    let threads = threads(daemon.id());
    daemon.kill().expect("it is a child");
    daemon.wait().expect("it is a child");
    // The main one, the control socket's, that of moves.
    assert_eq!(threads.len(), 3, "{said}");
    check(&threads);
    assert!(said.contains("privileges are given up"), "{said}");
    assert!(!said.contains(REFUSED), "{said}");
}

#[test]
fn every_thread_has_given_up_its_privileges_and_that_of_a_vcpu_more() {
    let process = Process::start(&Gate::new(), &[], &[]);
    process.run("one", &[]).expect("nothing against it");
    process.console("one").wait_for("beat");
    let bounds = check_daemon(&process);
    // Others cannot.
    if nix::unistd::geteuid().is_root() {
        assert!(bounds.iter().all(|bound| bound == NONE), "{bounds:?}");
        assert!(process.said().contains("capabilities=\"all\""));
    }
    assert!(process.said().contains("seccomp=Enforce"));
}

#[test]
fn a_daemon_of_another_user_starts_and_has_no_capabilities_to_give_up() {
    if !nix::unistd::geteuid().is_root() {
        // Then the test above is this one.
        return;
    }
    let process = Process::start_as(OTHER, &Gate::new());
    process.run("one", &[]).expect("nothing against it");
    process.console("one").wait_for("beat");
    check_daemon(&process);
    assert!(process.said().contains("none were there"));
}

#[test]
fn a_call_that_a_vcpu_does_not_need_fails_and_is_named_once_and_the_guest_goes_on() {
    let mut process = Process::start(&Gate::new(), &[], &[]);
    process.trespasses = true;
    process.run("one", &[]).expect("nothing against it");
    let mut console = process.console("one");
    console.send(b"f");
    console.wait_for("-");
    console.send(b"fZ");
    console.wait_for("Z");
    assert_eq!(console.seen.matches('-').count(), 2, "{}", console.seen);
    let last = beats(&console.seen).last().copied().unwrap_or(0);
    console.wait_for(&format!("beat {}\n", last + 20));
    let said = process.said();
    let named = format!("{REFUSED} {}", nix::libc::SYS_openat);
    assert_eq!(said.matches(&named).count(), 1, "{said}");
    assert!(said.contains("--seccomp=log"), "{said}");
}

#[test]
fn seccomp_log_and_off_refuse_nothing() {
    for (option, filtered) in [("--seccomp=log", "2"), ("--seccomp=off", "0")] {
        let process = Process::start(&Gate::new(), &[option], &[]);
        process.run("one", &[]).expect("nothing against it");
        let mut console = process.console("one");
        console.send(b"f");
        console.wait_for("+");
        for thread in daemon_threads(&process) {
            assert_eq!(thread["Seccomp"], filtered, "{option}");
            // These go whatever is said of system calls.
            assert_eq!(thread["NoNewPrivs"], "1", "{option}");
            assert_eq!(thread["CapPrm"], NONE, "{option}");
        }
    }
}

#[test]
fn a_call_that_the_daemon_does_not_need_fails_and_is_named_and_guests_go_on() {
    let gate = Gate::new();
    let here = Process::start(&gate, &[], &[]);
    here.run("one", &[]).expect("nothing against it");
    let mut there = Process::start(&gate, &[], &["env", &format!("{TRESPASS}=1")]);
    there.trespasses = true;
    there.run("two", &[]).expect("nothing against it");
    let failed = error(here.migrate("one", &there.url).0);
    assert!(failed.desc.contains("os error 38"), "{failed}");
    let named = format!("{REFUSED} {}", nix::libc::SYS_chroot);
    assert!(there.said().contains(&named), "{}", there.said());
    assert_eq!(here.info("one").state, GuestState::Running);
    assert_eq!(there.info("two").state, GuestState::Running);
}

#[test]
fn a_panic_of_a_vcpu_s_thread_says_why_and_ends_its_guest_alone() {
    // Its backtrace looks for files that the thread may not open.
    let through = ["env", "RUST_BACKTRACE=full"];
    let mut process = Process::start(&Gate::new(), &[], &through);
    process.trespasses = true;
    process.run("one", &[]).expect("nothing against it");
    process.run("two", &[]).expect("nothing against it");
    let mut console = process.console("one");
    console.send(b"p");
    console.wait_end();
    process.wait_state("one", GuestState::Ended);
    let said = process.said();
    for part in ["the guest has asked for it", "stack backtrace"] {
        assert!(said.contains(part), "{said}");
    }
    process.console("two").wait_for("beat");
    assert_eq!(process.info("two").state, GuestState::Running);
}

#[test]
fn guests_move_by_every_kind_of_address_and_nothing_is_refused() {
    let gate = Gate::new();
    let ca = tempfile::tempdir().expect("a temporary directory can be made");
    cert::init(ca.path(), "fleet").expect("an empty directory");
    let (one, two) = (issue(ca.path(), "one"), issue(ca.path(), "two"));
    let sockets = tempfile::tempdir().expect("a temporary directory can be made");
    let unix = format!("unix:{}", sockets.path().join("moves").display());
    let of = |directory: &std::path::Path| directory.to_str().expect("a plain path").to_owned();
    let tls = [
        ["--tls-dir".to_owned(), of(&one)],
        ["--tls-dir".to_owned(), of(&two)],
    ];
    let mut kinds = 0;
    for (listen, tls) in [
        ("tcp:localhost:0", None),
        ("tcp:[::1]:0", None),
        (unix.as_str(), None),
        ("tcp:127.0.0.1:0", Some(&tls)),
    ] {
        let options = |side: usize| -> Vec<&str> {
            tls.map(|tls| tls[side].iter().map(String::as_str).collect())
                .unwrap_or_default()
        };
        let here = Process::start(&gate, &options(0), &[]);
        let there = Process::start_at(listen, &gate, &options(1));
        let url = match (&there.url, listen) {
            // By its name, which is looked up.
            (Url::Tcp { port, .. }, "tcp:localhost:0") => {
                format!("tcp:localhost:{port}").parse().expect("an address")
            }
            (url, _) => url.clone(),
        };
        here.run("one", &[]).expect("nothing against it");
        here.console("one").wait_for("beat");
        here.migrate("one", &url).0.expect("nothing against it");
        there.goes_on("one");
        kinds += 1;
    }
    assert_eq!(kinds, 4);
}

#[test]
fn a_kernel_that_only_another_user_may_read_is_not_read_for_a_client() {
    if !nix::unistd::geteuid().is_root() {
        // Only root can give files away.
        return;
    }
    let process = Process::start(&Gate::new(), &[], &[]);
    let own = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(process.kernel(), own).expect("it is ours");
    std::os::unix::fs::chown(process.kernel(), Some(OTHER), None).expect("root may");
    let refused = error(process.run("one", &[]));
    for part in ["Permission denied", "let all read it"] {
        assert!(refused.desc.contains(part), "{refused}");
    }
    assert_eq!(process.guests(), []);
}
