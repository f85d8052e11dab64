// SPDX-License-Identifier: GPL-2.0
//! Commands whose output goes where nobody reads, or where there is no room.

use crate::host::{Host, Machine};
use nix::unistd::pipe;
use std::fs::OpenOptions;
use std::process::Output;

/// What a command says on standard error when its output is `stdout`.
fn with_output(host: &Host, arguments: &[&str], stdout: impl Into<std::process::Stdio>) -> Output {
    host.program(arguments)
        .stdout(stdout)
        .output()
        .expect("the program is built")
}

#[test]
fn a_command_whose_reader_has_gone_ends_quietly() {
    let host = Host::plain();
    host.run("one", &[]).expect("nothing against it");
    for arguments in [&["list"][..], &["info", "one"], &["list", "--json"]] {
        let (reader, writer) = pipe().expect("a descriptor");
        drop(reader);
        let ended = with_output(&host, arguments, writer);
        assert_eq!(ended.status.code(), Some(1), "{arguments:?}");
        assert_eq!(String::from_utf8_lossy(&ended.stderr), "", "{arguments:?}");
    }
}

#[test]
fn a_full_disk_is_named_and_does_not_make_a_move_a_failure() {
    let (host, there) = (Host::plain(), Host::plain());
    host.run("one", &[]).expect("nothing against it");
    let full = || {
        OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .expect("a device of every Linux")
    };
    let ended = with_output(&host, &["list"], full());
    assert_eq!(ended.status.code(), Some(1));
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(said.contains("cannot print: No space left"), "{said}");
    let url = there.url.to_string();
    let moved = with_output(&host, &["migrate", "one", &url], full());
    assert_eq!(moved.status.code(), Some(0), "the guest has moved");
    there.goes_on("one");
}
