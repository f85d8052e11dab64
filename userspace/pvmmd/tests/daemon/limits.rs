// SPDX-License-Identifier: GPL-2.0
//! Hosts that run out of something: memory for a guest that comes, room for logs, threads for a move.

use crate::host::{error, move_of, Machine};
use crate::process::{Gate, Process};
use pvmm_control::{ErrorClass, GuestState};
use std::process::Command;

/// A user other than root, with no other process.
const OTHER: u32 = 54321;

/// Sets a limit of a daemon that runs, e.g. `--as=1000`.
fn limit(process: &Process, what: &str) {
    limit_as(0, process, what);
}

fn limit_as(uid: u32, process: &Process, what: &str) {
    let status = Command::new("setpriv")
        // Only its own user may, in a container without CAP_SYS_RESOURCE.
        .args(["--reuid", &uid.to_string(), "--clear-groups", "prlimit"])
        .args(["--pid", &process.pid().to_string(), what])
        .status();
    let status = status.expect("prlimit is part of util-linux");
    assert!(status.success(), "{what}");
}

/// Its address space, in bytes.
fn address_space(process: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid()));
    let status = status.expect("it runs");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmSize:"))
        .expect("a line of proc(5)");
    let kib = line.trim().strip_suffix("kB").expect("its unit").trim();
    kib.parse::<u64>().expect("a number") * 1024
}

fn two() -> (Process, Process) {
    let gate = Gate::new();
    let here = Process::start(&gate, &[], &[]);
    here.run("one", &[]).expect("nothing against it");
    (here, Process::start(&gate, &[], &[]))
}

#[test]
fn a_target_that_cannot_map_the_guest_s_memory_refuses_it_before_the_first_page() {
    let gate = Gate::new();
    let here = Process::start(&gate, &[], &[]);
    here.run("one", &[]).expect("nothing against it");
    // Otherwise each new thread reserves address space for a heap of its own, many times the guest's memory.
    let there = Process::start(&gate, &[], &["env", "MALLOC_ARENA_MAX=1"]);
    // Room for threads, not for the guest.
    let room = address_space(&there) + Process::MEMORY - (2 << 20);
    limit(&there, &format!("--as={room}:"));
    let (result, events) = here.migrate("one", &there.url);
    let refused = error(result);
    assert_eq!(refused.class, ErrorClass::Refused, "{refused}");
    for part in ["cannot map 16777216 bytes", "free memory", "goes on here"] {
        assert!(refused.desc.contains(part), "{refused}");
    }
    assert!(events.iter().all(|event| event.ram.transferred == 0));
    assert_eq!(there.guests(), []);
    here.goes_on("one");
    limit(&there, "--as=unlimited:");
    let (again, _) = here.migrate("one", &there.url);
    again.expect("there is memory again");
    there.goes_on("one");
}

#[test]
fn a_file_size_limit_ends_neither_a_daemon_nor_its_guests() {
    let (here, there) = two();
    there.run("two", &[]).expect("nothing against it");
    // Neither a console log nor a guest's memory may become larger than this.
    limit(&there, "--fsize=100:");
    let refused = error(here.migrate("one", &there.url).0);
    assert_eq!(refused.class, ErrorClass::Refused, "{refused}");
    assert!(refused.desc.contains("cannot map"), "{refused}");
    there.goes_on("two");
    here.goes_on("one");
}

#[test]
fn full_disks_under_the_logs_stop_no_guest_and_no_move() {
    let gate = Gate::new();
    let here = Process::start(&gate, &[], &["sh", "-c", "exec \"$0\" \"$@\" 2> /dev/full"]);
    let there = Process::start(&gate, &[], &[]);
    for process in [&here, &there] {
        let log = process.directory.path().join("one.log");
        std::os::unix::fs::symlink("/dev/full", log).expect("the directory is writable");
    }
    here.run("one", &[]).expect("nothing against it");
    here.goes_on("one");
    let (moved, _) = here.migrate("one", &there.url);
    moved.expect("nothing against it");
    there.goes_on("one");
    let said = there.said();
    let complaints = said.matches("the console log cannot be written").count();
    assert_eq!(complaints, 1, "{said}");
}

#[test]
fn a_move_whose_thread_cannot_be_started_leaves_the_guest_free() {
    let gate = Gate::new();
    let there = Process::start(&gate, &[], &[]);
    // Root may have any number of threads.
    let here = Process::start_as(OTHER, &gate);
    here.run("one", &[]).expect("nothing against it");
    // Its own thread must be there already.
    let mut client = here.client();
    client
        .call(pvmm_control::Request::List)
        .expect("nothing against it");
    limit_as(OTHER, &here, "--nproc=1:");
    let failed = error(client.call(move_of("one", &there.url)));
    assert!(failed.desc.contains("cannot start a thread"), "{failed}");
    limit_as(OTHER, &here, "--nproc=500:");
    let info = here.info("one");
    assert_eq!((info.state, info.migrating), (GuestState::Running, false));
    let (again, _) = here.migrate("one", &there.url);
    again.expect("there are threads again");
    there.goes_on("one");
}
