// SPDX-License-Identifier: GPL-2.0
//! What a guest has printed: a ring that any number of readers follow at their own pace.
//!
//! The device that prints never waits for a reader. A reader that falls behind by more than the ring misses the oldest
//! bytes and is told how many.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a reader that has waited gives the output to become more. A guest prints byte by byte; a reader woken for each
/// would cost more than the printing.
const GATHER: Duration = Duration::from_millis(10);

/// How much is kept for readers that come later, in bytes.
pub const CAPACITY: usize = 256 << 10;

#[derive(Default)]
struct Ring {
    bytes: VecDeque<u8>,
    /// Bytes printed in all; `bytes` holds the last of them.
    total: u64,
    closed: bool,
}

/// A console's output. Clones are the same console.
#[derive(Clone, Default)]
pub struct Console {
    shared: Arc<(Mutex<Ring>, Condvar)>,
}

/// What a reader gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// The bytes; empty if nothing was printed in time.
    pub bytes: Vec<u8>,
    /// How many bytes before them were lost to this reader.
    pub missed: u64,
    /// Where to read on.
    pub next: u64,
    /// No byte will follow.
    pub end: bool,
}

impl Console {
    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends output.
    pub fn print(&self, bytes: &[u8]) {
        let mut ring = self.ring();
        ring.bytes.extend(bytes);
        let excess = ring.bytes.len().saturating_sub(CAPACITY);
        ring.bytes.drain(..excess);
        ring.total = ring.total.saturating_add(bytes.len() as u64);
        drop(ring);
        self.shared.1.notify_all();
    }

    /// Marks the end of the output and wakes every reader.
    pub fn close(&self) {
        self.ring().closed = true;
        self.shared.1.notify_all();
    }

    /// Where a reader that wants only what comes from now on begins.
    pub fn position(&self) -> u64 {
        self.ring().total
    }

    /// Reads on from `position` (0: the oldest that there is), waiting up to `limit` for output.
    pub fn read(&self, position: u64, limit: Duration) -> Chunk {
        let nothing_new = |ring: &mut Ring| ring.total <= position && !ring.closed;
        let mut ring = self.ring();
        if nothing_new(&mut ring) {
            ring = self
                .shared
                .1
                .wait_timeout_while(ring, limit, nothing_new)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            if !nothing_new(&mut ring) && !ring.closed {
                drop(ring);
                std::thread::sleep(GATHER);
                ring = self.ring();
            }
        }
        let oldest = ring.total - ring.bytes.len() as u64;
        let from = position.clamp(oldest, ring.total);
        // Both are at most the ring's length.
        let skip = (from - oldest) as usize;
        Chunk {
            bytes: ring.bytes.iter().skip(skip).copied().collect(),
            missed: from.saturating_sub(position),
            next: ring.total,
            end: ring.closed,
        }
    }
}

impl std::io::Write for Console {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.print(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::ZERO;
    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn a_late_reader_gets_what_was_printed_before() {
        let console = Console::default();
        console.print(b"early ");
        console.print(b"late");
        let chunk = console.read(0, NOW);
        assert_eq!(chunk.bytes, b"early late");
        assert_eq!((chunk.missed, chunk.next, chunk.end), (0, 10, false));
        assert!(console.read(chunk.next, NOW).bytes.is_empty());
    }

    #[test]
    fn a_slow_reader_is_told_what_it_missed() {
        let console = Console::default();
        console.print(&vec![b'a'; CAPACITY]);
        console.print(b"bc");
        let chunk = console.read(0, NOW);
        assert_eq!(chunk.missed, 2);
        assert_eq!(chunk.bytes.len(), CAPACITY);
        assert!(chunk.bytes.ends_with(b"abc"));
    }

    #[test]
    fn a_waiting_reader_wakes_for_output_and_for_the_end() {
        let console = Console::default();
        let reader = {
            let console = console.clone();
            std::thread::spawn(move || {
                let first = console.read(0, SOON);
                (first.bytes, console.read(first.next, SOON).end)
            })
        };
        console.print(b"x");
        // The reader may take output and end in one chunk or in two; both end it.
        console.close();
        let (bytes, end) = reader.join().expect("the reader does not panic");
        assert_eq!(bytes, b"x");
        assert!(end);
    }
}
