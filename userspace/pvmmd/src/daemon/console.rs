// SPDX-License-Identifier: GPL-2.0
//! A guest's console on a client's connection and in a log file.

use super::guest::Guest;
use super::spawn;
use pvmm_control::ControlError;
use pvmm_vmm::console::{Chunk, Console};
use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Read, Write};
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
/// How long to wait before a log that could not be written, most often because the disk is full, is tried again.
const LOG_RETRY: Duration = Duration::from_secs(1);
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

/// Writes what a guest prints to `NAME.log` in `directory`, until it ends, in a thread of its own. The guest never waits for
/// it: what a full disk does not take is written later, as far as the console keeps it.
pub fn log(guest: &Guest, directory: &Path) -> Result<JoinHandle<()>, ControlError> {
    let path = directory.join(format!("{}.log", guest.name()));
    let failed = |error: io::Error| {
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
    let shown = path.display().to_string();
    std::thread::Builder::new()
        .name(format!("log {}", guest.name()))
        .spawn(move || follow(&console, &mut file, &shown, LOG_RETRY))
        .map_err(failed)
}

fn follow(console: &Console, file: &mut impl Write, path: &str, retry: Duration) {
    let mut position = 0;
    let mut failing = false;
    loop {
        let chunk = console.read(position, LOG_WAIT);
        let (written, result) = append(file, &chunk);
        position = written.unwrap_or(position);
        match result {
            Ok(()) => {
                if failing {
                    tracing::info!(path, "the console log can be written again");
                }
                failing = false;
                if chunk.end {
                    return;
                }
            }
            Err(error) if chunk.end => {
                tracing::error!(path, %error, "the end of the console log is lost");
                return;
            }
            Err(error) => {
                if !failing {
                    tracing::error!(
                        path, %error,
                        "the console log cannot be written; the guest goes on, and the log when there is room again"
                    );
                }
                failing = true;
                std::thread::sleep(retry);
            }
        }
    }
}

/// Appends a chunk. Returns where to read on; `None` is where it was read from.
fn append(file: &mut impl Write, chunk: &Chunk) -> (Option<u64>, io::Result<()>) {
    if chunk.missed > 0 {
        // A line that was written in part is written again: better than a gap that nobody sees.
        let note = format!("\n[pvmmd: {} bytes are missing here]\n", chunk.missed);
        if let Err(error) = file.write_all(note.as_bytes()) {
            return (None, Err(error));
        }
    }
    let mut rest = chunk.bytes.as_slice();
    let result = loop {
        if rest.is_empty() {
            break Ok(());
        }
        match file.write(rest) {
            Ok(0) => break Err(ErrorKind::WriteZero.into()),
            // A writer cannot take more than it was given.
            Ok(count) => rest = rest.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => break Err(error),
        }
    };
    (Some(chunk.next.saturating_sub(rest.len() as u64)), result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pvmm_vmm::console::CAPACITY;
    use std::sync::Mutex;

    /// A disk with so much room, shared with the test.
    struct Disk {
        written: Arc<Mutex<Vec<u8>>>,
        room: Arc<Mutex<usize>>,
        full: std::sync::mpsc::Sender<()>,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut room = self.room.lock().expect("no panic");
            if *room == 0 {
                // The test may have seen enough.
                let _ = self.full.send(());
                return Err(ErrorKind::StorageFull.into());
            }
            let count = bytes.len().min(*room);
            *room -= count;
            let mut written = self.written.lock().expect("no panic");
            written.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What a log has in the end that had room for 5 bytes, then, after `print` was printed, for all.
    fn logged(print: &[u8]) -> Vec<u8> {
        let console = Console::default();
        let (full, is_full) = std::sync::mpsc::channel();
        let (written, room) = (Arc::default(), Arc::new(Mutex::new(5)));
        let mut disk = Disk {
            written: Arc::clone(&written),
            room: Arc::clone(&room),
            full,
        };
        let writer = {
            let console = console.clone();
            std::thread::spawn(move || {
                follow(&console, &mut disk, "test", Duration::from_millis(1));
            })
        };
        console.print(b"0123456789");
        is_full.recv().expect("the disk has room for 5 bytes");
        console.print(print);
        // Again, so that it has failed with the new bytes, too.
        is_full.recv().expect("nobody has made room");
        *room.lock().expect("no panic") = usize::MAX;
        console.close();
        writer.join().expect("no panic");
        let written = written.lock().expect("no panic");
        written.clone()
    }

    #[test]
    fn a_log_on_a_full_disk_goes_on_without_a_gap_when_there_is_room_again() {
        assert_eq!(logged(b"abc"), b"0123456789abc");
    }

    #[test]
    fn what_the_console_no_longer_has_is_marked_in_the_log() {
        let flood = vec![b'x'; CAPACITY];
        let written = logged(&flood);
        let text = String::from_utf8(written).expect("ASCII");
        assert!(
            text.starts_with("01234\n[pvmmd: 5 bytes are missing here]\nxxx"),
            "{}",
            &text[..80]
        );
        assert!(text.ends_with("xxx"));
    }
}
