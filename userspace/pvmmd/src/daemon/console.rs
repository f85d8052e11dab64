// SPDX-License-Identifier: GPL-2.0
//! A guest's console on a client's connection and in a log file.

use super::guest::Guest;
use super::spawn;
use pvmm_control::ControlError;
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// How often a writer without output looks if it is still wanted.
const WAIT: Duration = Duration::from_millis(500);
/// How long a log waits for output in one go. It waits again.
const LOG_WAIT: Duration = Duration::from_secs(3600);
/// How long to wait before input is offered again to a guest that has not taken the last.
const INPUT_WAIT: Duration = Duration::from_millis(10);

/// Carries bytes between a client and a guest until either is gone. `input` is the client's stream, with what was read from
/// it already; `backlog` begins with what was printed before.
pub fn attach(guest: &Arc<Guest>, mut input: impl Read, stream: &UnixStream, backlog: bool) {
    let console = guest.console().clone();
    let from = if backlog { 0 } else { console.position() };
    let closed = Arc::new(AtomicBool::new(false));
    let output = {
        let closed = Arc::clone(&closed);
        stream
            .try_clone()
            .map_err(ControlError::failed)
            .and_then(|mut stream| {
                spawn(format!("console {}", guest.name()), move || {
                    let mut position = from;
                    while !closed.load(Ordering::Relaxed) {
                        let chunk = console.read(position, WAIT);
                        position = chunk.next;
                        if stream.write_all(&chunk.bytes).is_err()
                            || (chunk.end && chunk.bytes.is_empty())
                        {
                            break;
                        }
                    }
                    // Wakes the reader below; the connection may be gone already.
                    let _ = stream.shutdown(Shutdown::Both);
                })
            })
    };
    if let Err(error) = output {
        tracing::warn!(%error, "a console cannot be attached");
        return;
    }
    let mut buffer = [0; 1024];
    while let Ok(count @ 1..) = input.read(&mut buffer) {
        let mut rest = &buffer[..count];
        while !rest.is_empty() {
            let Ok(vm) = guest.vm() else { return };
            let taken = vm.com1().input(rest);
            rest = &rest[taken..];
            if taken == 0 {
                std::thread::sleep(INPUT_WAIT);
            }
        }
    }
    closed.store(true, Ordering::Relaxed);
}

/// Writes what a guest prints to `NAME.log` in `directory`, until it ends, in a thread of its own.
pub fn log(guest: &Guest, directory: &Path) -> Result<JoinHandle<()>, ControlError> {
    let path = directory.join(format!("{}.log", guest.name()));
    let failed = |error: std::io::Error| {
        ControlError::failed(format!(
            "cannot write the console log {}: {error}",
            path.display()
        ))
    };
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .map_err(failed)?;
    let console = guest.console().clone();
    let name = format!("log {}", guest.name());
    let follow = move || {
        let mut position = 0;
        loop {
            let chunk = console.read(position, LOG_WAIT);
            position = chunk.next;
            if let Err(error) = file.write_all(&chunk.bytes) {
                tracing::error!(%error, "the console log ends here");
                return;
            }
            if chunk.end && chunk.bytes.is_empty() {
                return;
            }
        }
    };
    std::thread::Builder::new()
        .name(name)
        .spawn(follow)
        .map_err(failed)
}
