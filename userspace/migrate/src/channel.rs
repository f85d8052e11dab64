// SPDX-License-Identifier: GPL-2.0
//! Records over a byte stream: framing, checksums, pacing, and never waiting longer than allowed.
//!
//! Place on the path: between the engine's roles and the [`Link`]. Every blocking step asks the phase's [`Scope`], and a link
//! that carries nothing for the stall limit counts as lost.

use crate::codec;
use crate::error::Error;
use crate::message::{GivingUp, Kind, Payload};
use crate::phase::Scope;
use crate::transport::{Link, POLL_INTERVAL};
use crate::wire::{Answer, Offer, RecordHeader, WireError, PREAMBLE_LEN, RECORD_HEADER_LEN};
use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

/// Largest piece that is written at once, so that pacing is smooth and limits are seen.
const WRITE_PIECE: usize = 64 << 10;
/// Longest payload that is copied behind its header, so that both leave in one packet.
const COPIED_PAYLOAD: usize = 16 << 10;
/// How long a side that gives up listens, so that its last word is not overtaken by a reset of the connection.
pub(crate) const LINGER: Duration = Duration::from_secs(2);
/// Longest reason that is sent, in bytes.
const MAX_REASON: usize = 16 << 10;

/// A record that has arrived whole.
#[derive(Debug)]
pub(crate) struct Record {
    pub kind: Kind,
    pub payload: Vec<u8>,
}

/// One connection.
pub(crate) struct Channel {
    link: Box<dyn Link>,
    peer: String,
    stall_limit: Duration,
    /// Memory for the next record.
    spare: Vec<u8>,
    /// Bytes written so far.
    pub sent: u64,
    /// Bytes per second, and when the next byte may leave.
    pace: Option<(u64, Instant)>,
}

impl Channel {
    pub fn new(mut link: Box<dyn Link>, stall_limit: Duration) -> Result<Self, Error> {
        let peer = link.peer();
        link.set_timeout(POLL_INTERVAL)
            .map_err(|source| Error::link(&peer, source))?;
        Ok(Self {
            link,
            peer,
            stall_limit,
            spare: Vec::new(),
            sent: 0,
            pace: None,
        })
    }

    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// Limits what is sent to `rate` bytes per second; `None` lifts the limit.
    pub fn set_rate(&mut self, rate: Option<u64>) {
        self.pace = rate
            .filter(|rate| *rate > 0)
            .map(|rate| (rate, Instant::now()));
    }

    /// Wraps what is wrong with the peer's bytes.
    pub fn wire(&self, source: WireError) -> Error {
        Error::Wire {
            peer: self.peer.clone(),
            source,
        }
    }

    /// Sends a record.
    pub fn send<P: Payload>(&mut self, scope: &Scope<'_>, payload: &P) -> Result<(), Error> {
        let bytes = codec::encode(payload).map_err(|reason| {
            Error::Inconsistent(format!(
                "a \"{}\" record cannot be encoded: {reason}",
                P::KIND.name()
            ))
        })?;
        self.send_raw(scope, P::KIND, &bytes)
    }

    /// Sends a record whose payload is ready.
    pub fn send_raw(&mut self, scope: &Scope<'_>, kind: Kind, payload: &[u8]) -> Result<(), Error> {
        let header = RecordHeader::new(kind, kind.version(), payload).ok_or_else(|| {
            Error::Inconsistent(format!(
                "a \"{}\" record of {} bytes, at most {} are possible",
                kind.name(),
                payload.len(),
                kind.limit()
            ))
        })?;
        if payload.len() > COPIED_PAYLOAD {
            self.write(scope, &header.encode())?;
            return self.write_all(scope, payload);
        }
        let mut bytes = Vec::with_capacity(RECORD_HEADER_LEN + payload.len());
        bytes.extend(header.encode());
        bytes.extend_from_slice(payload);
        self.write_all(scope, &bytes)
    }

    /// The next record, whatever it is.
    pub fn receive(&mut self, scope: &Scope<'_>) -> Result<Record, Error> {
        let mut head = [0; RECORD_HEADER_LEN];
        self.read_exact(scope, &mut head)?;
        let header = RecordHeader::decode(&head).map_err(|source| self.wire(source))?;
        // Within the kind's limit, so at most 2 MiB.
        let mut payload = std::mem::take(&mut self.spare);
        payload.resize(header.length as usize, 0);
        self.read_exact(scope, &mut payload)?;
        header.check(&payload).map_err(|source| self.wire(source))?;
        Ok(Record {
            kind: header.kind,
            payload,
        })
    }

    /// Takes back the memory of a record that is done with, for the next one: large ones come in quick succession, and
    /// fresh memory would have to be zeroed each time.
    pub fn recycle(&mut self, record: Record) {
        self.spare = record.payload;
    }

    /// The next record, which must be a `P`.
    pub fn expect<P: Payload>(&mut self, scope: &Scope<'_>) -> Result<P, Error> {
        let record = self.receive(scope)?;
        if record.kind != P::KIND {
            return Err(self.unexpected(&record, P::KIND.name()));
        }
        self.decode(&record)
    }

    /// The payload of a record of kind `P`.
    pub fn decode<P: Payload>(&self, record: &Record) -> Result<P, Error> {
        codec::decode(&record.payload).map_err(|reason| {
            self.wire(WireError::Payload {
                kind: record.kind.name(),
                reason,
            })
        })
    }

    /// What a record means that was not due: the peer's last word, or an error of its own.
    pub fn unexpected(&self, record: &Record, expected: &'static str) -> Error {
        if record.kind == Kind::GivingUp {
            return match self.decode::<GivingUp>(record) {
                Ok(word) => Error::Peer {
                    peer: self.peer.clone(),
                    reason: printable(&word.reason),
                },
                Err(error) => error,
            };
        }
        self.wire(WireError::Unexpected {
            got: record.kind.name(),
            expected,
        })
    }

    /// Sends the source's preamble and reads the target's; returns the protocol version that both speak.
    pub fn offer(&mut self, scope: &Scope<'_>, offer: &Offer) -> Result<u16, Error> {
        self.write_all(scope, &offer.encode())?;
        let (header, body) = self.read_preamble(scope)?;
        let answer = Answer::decode(&header, &body).map_err(|source| self.wire(source))?;
        if !offer.versions.contains(&answer.chosen) {
            return Err(self.wire(WireError::NoCommonVersion {
                ours: offer.versions.clone(),
                theirs: answer.versions,
            }));
        }
        Ok(answer.chosen)
    }

    /// Reads the source's preamble and answers it.
    pub fn answer(&mut self, scope: &Scope<'_>, versions: &[u16]) -> Result<Offer, Error> {
        let (header, body) = self.read_preamble(scope)?;
        let offer = Offer::decode(&header, &body).map_err(|source| self.wire(source))?;
        let answer = Answer::choose(versions, &offer.versions);
        self.write_all(scope, &answer.encode())?;
        if answer.chosen == 0 {
            return Err(self.wire(WireError::NoCommonVersion {
                ours: versions.to_vec(),
                theirs: offer.versions,
            }));
        }
        Ok(offer)
    }

    /// Answers an offer that could not be read: no version is chosen.
    pub fn decline(&mut self, scope: &Scope<'_>, versions: &[u16]) -> Result<(), Error> {
        let answer = Answer::choose(versions, &[]);
        self.write_all(scope, &answer.encode())
    }

    fn read_preamble(&mut self, scope: &Scope<'_>) -> Result<([u8; PREAMBLE_LEN], Vec<u8>), Error> {
        let mut header = [0; PREAMBLE_LEN];
        self.read_exact(scope, &mut header)?;
        let length = crate::wire::body_length(&header).map_err(|source| self.wire(source))?;
        let mut body = vec![0; length];
        self.read_exact(scope, &mut body)?;
        Ok((header, body))
    }

    /// Tells the peer that this side ends the move, and why; then listens for a moment. Best effort.
    pub fn give_up(mut self, reason: &str) {
        let word = GivingUp {
            reason: truncated(&printable(reason)).to_owned(),
        };
        let scope = Scope::with_limit("giving-up", LINGER);
        if self.send(&scope, &word).is_ok() {
            self.linger();
        }
    }

    /// Ends the sending direction and reads until the peer has ended its own, at most [`LINGER`].
    pub fn linger(mut self) {
        let scope = Scope::with_limit("giving-up", LINGER);
        while let Err(error) = self.link.end_sending() {
            if !is_poll(error.kind()) || scope.check().is_err() {
                return;
            }
        }
        if !self.link.is_bounded() {
            return;
        }
        let mut waste = vec![0; WRITE_PIECE];
        while scope.check().is_ok() {
            match self.link.read(&mut waste) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if is_poll(error.kind()) => {}
                Err(_) => return,
            }
        }
    }

    fn write_all(&mut self, scope: &Scope<'_>, bytes: &[u8]) -> Result<(), Error> {
        self.write(scope, bytes)?;
        self.flush(scope)
    }

    fn write(&mut self, scope: &Scope<'_>, mut bytes: &[u8]) -> Result<(), Error> {
        let mut moved = Instant::now();
        while !bytes.is_empty() {
            scope.check()?;
            self.wait_for_pace(scope)?;
            let piece = &bytes[..bytes.len().min(WRITE_PIECE)];
            let unsent = self.link.unsent();
            match self.link.write(piece) {
                Ok(0) => return Err(self.last_word(scope, ErrorKind::WriteZero.into())),
                Ok(count) => {
                    // A writer cannot take more than it was given.
                    bytes = bytes.get(count..).unwrap_or_default();
                    self.sent = self.sent.saturating_add(count as u64);
                    self.spend(count as u64);
                    moved = Instant::now();
                }
                Err(error) if is_poll(error.kind()) => self.check_progress(unsent, &mut moved)?,
                Err(error) => return Err(self.last_word(scope, error)),
            }
        }
        Ok(())
    }

    /// Nothing is buffered by a socket; TLS and a pipe of a tunnel do. What is sent must have left before an answer to it is
    /// waited for.
    fn flush(&mut self, scope: &Scope<'_>) -> Result<(), Error> {
        let mut moved = Instant::now();
        loop {
            let unsent = self.link.unsent();
            match self.link.flush() {
                Ok(()) => return Ok(()),
                Err(error) if is_poll(error.kind()) => {
                    scope.check()?;
                    self.check_progress(unsent, &mut moved)?;
                }
                Err(source) => return Err(self.last_word(scope, source)),
            }
        }
    }

    fn read_exact(&mut self, scope: &Scope<'_>, mut buffer: &mut [u8]) -> Result<(), Error> {
        let mut moved = Instant::now();
        while !buffer.is_empty() {
            scope.check()?;
            match self.link.read(buffer) {
                Ok(0) => {
                    return Err(Error::Closed {
                        peer: self.peer.clone(),
                    })
                }
                Ok(count) => {
                    // A reader cannot return more than there was room for.
                    buffer = buffer.get_mut(count..).unwrap_or_default();
                    moved = Instant::now();
                }
                Err(error) if is_poll(error.kind()) => self.check_stall(moved)?,
                Err(source) => return Err(Error::link(&self.peer, source)),
            }
        }
        Ok(())
    }

    /// A write failed: the peer has probably closed, and what it said before tells more than the error.
    fn last_word(&mut self, scope: &Scope<'_>, source: std::io::Error) -> Error {
        let broken = Error::link(&self.peer, source);
        match self.receive(scope) {
            Ok(record) if record.kind == Kind::GivingUp => self.unexpected(&record, ""),
            Err(reason @ Error::Tls { .. }) => reason,
            _ => broken,
        }
    }

    /// As [`Self::check_stall`], after a write that took nothing; a part of what was taken before may have left.
    fn check_progress(&self, unsent: usize, moved: &mut Instant) -> Result<(), Error> {
        if self.link.unsent() < unsent {
            *moved = Instant::now();
        }
        self.check_stall(*moved)
    }

    fn check_stall(&self, moved: Instant) -> Result<(), Error> {
        if moved.elapsed() < self.stall_limit {
            return Ok(());
        }
        Err(Error::Stalled {
            peer: self.peer.clone(),
            limit: self.stall_limit,
        })
    }

    fn wait_for_pace(&self, scope: &Scope<'_>) -> Result<(), Error> {
        while let Some((_, next)) = self.pace {
            let wait = next.saturating_duration_since(Instant::now());
            if wait.is_zero() {
                break;
            }
            scope.check()?;
            std::thread::sleep(wait.min(POLL_INTERVAL));
        }
        Ok(())
    }

    fn spend(&mut self, bytes: u64) {
        if let Some((rate, next)) = &mut self.pace {
            // The rate is not 0 (`set_rate`), and a piece is small.
            let cost = Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / *rate);
            *next = (*next).max(Instant::now()) + cost;
        }
    }
}

/// An operation that ran into the poll interval, or was interrupted.
pub(crate) fn is_poll(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}

/// A peer's text without control characters: it goes to a terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// At most [`MAX_REASON`] bytes of a text, cut between characters.
pub(crate) fn truncated(text: &str) -> &str {
    let mut end = text.len().min(MAX_REASON);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Ping, Pong};
    use std::os::unix::net::UnixStream;
    use std::thread;

    fn pair() -> (Channel, UnixStream) {
        let (near, far) = UnixStream::pair().expect("a socket pair");
        let channel = Channel::new(Box::new(near), Duration::from_secs(5)).expect("a socket");
        (channel, far)
    }

    fn scope() -> Scope<'static> {
        Scope::with_limit("test", Duration::from_secs(20))
    }

    #[test]
    fn a_record_that_was_not_due_is_named_together_with_what_was() {
        let (mut near, far) = pair();
        let mut far = Channel::new(Box::new(far), Duration::from_secs(5)).expect("a socket");
        far.send(&scope(), &Ping { sequence: 1 }).expect("room");
        let error = near.expect::<Pong>(&scope()).expect_err("a ping came");
        let text = error.to_string();
        assert!(text.contains("\"ping\"") && text.contains("pong"), "{text}");
    }

    #[test]
    fn the_last_word_of_a_peer_that_closed_is_the_error() {
        let (mut near, far) = pair();
        let far = Channel::new(Box::new(far), Duration::from_secs(5)).expect("a socket");
        let closer = thread::spawn(move || far.give_up("out of \x1b[31mluck"));
        let payload = vec![0; 1 << 20];
        let error = loop {
            // The peer drains for a while, then closes.
            if let Err(error) = near.send_raw(&scope(), Kind::UserDevice, &payload) {
                break error;
            }
        };
        closer.join().expect("it does not panic");
        let text = error.to_string();
        assert!(text.contains("out of  [31mluck"), "{text}");
    }

    #[test]
    fn a_silent_peer_is_noticed_after_the_stall_limit() {
        let (near, _far) = UnixStream::pair().expect("a socket pair");
        let limit = Duration::from_millis(250);
        let mut near = Channel::new(Box::new(near), limit).expect("a socket");
        let error = near.receive(&scope()).expect_err("nobody speaks");
        assert!(matches!(error, Error::Stalled { .. }), "{error}");
    }

    #[test]
    fn a_deadline_ends_a_wait() {
        let (mut near, _far) = pair();
        let scope = Scope::with_limit("test", Duration::from_millis(50));
        let error = near.receive(&scope).expect_err("nobody speaks");
        assert!(matches!(error, Error::Deadline { .. }), "{error}");
    }

    #[test]
    fn a_rate_bounds_what_leaves() {
        let (mut near, mut far) = pair();
        let reader = thread::spawn(move || {
            let mut all = Vec::new();
            far.read_to_end(&mut all).map(|_| all.len())
        });
        near.set_rate(Some(4 << 20));
        let begin = Instant::now();
        near.send_raw(&scope(), Kind::UserDevice, &vec![0; 1 << 20])
            .expect("it is read");
        // 1 MiB at 4 MiB/s; the last piece leaves before its time is over.
        assert!(begin.elapsed() >= Duration::from_millis(200));
        drop(near);
        let read = reader.join().expect("it does not panic");
        assert!(read.is_ok_and(|read| read > 1 << 20));
    }

    #[test]
    fn reasons_are_cut_between_characters() {
        let long = "ä".repeat(MAX_REASON);
        assert!(truncated(&long).len() <= MAX_REASON);
        assert_eq!(truncated("short"), "short");
    }
}
