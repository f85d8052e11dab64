// SPDX-License-Identifier: GPL-2.0
//! The other side of a move, which says what the fuzzer makes up and listens to nothing. No thread and no socket: a run
//! takes as long as the engine itself.

use pvmm_migrate::message::Kind;
use pvmm_migrate::session::SessionId;
use pvmm_migrate::transport::Link;
use pvmm_migrate::wire::{Offer, Purpose, RecordHeader, RECORD_HEADER_LEN};
use std::io::{self, Read, Write};
use std::time::Duration;

/// The session that a hostile source names; the corpus holds commits for it.
pub const SESSION: SessionId = SessionId(*b"0123456789abcdef");

/// A link on which the peer has said everything already, and has closed its side.
#[derive(Debug)]
pub struct Script {
    words: io::Cursor<Vec<u8>>,
    /// How long it takes to close the link.
    closing: Duration,
}

impl Script {
    /// A peer that says `words`.
    pub const fn new(words: Vec<u8>) -> Self {
        Self {
            words: io::Cursor::new(words),
            closing: Duration::ZERO,
        }
    }

    /// A peer whose link takes this long to close.
    pub fn closing_in(mut self, closing: Duration) -> Self {
        self.closing = closing;
        self
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        if !self.closing.is_zero() {
            std::thread::sleep(self.closing);
        }
    }
}

impl Read for Script {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.words.read(buffer)
    }
}

impl Write for Script {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Link for Script {
    fn set_timeout(&mut self, _limit: Duration) -> io::Result<()> {
        Ok(())
    }

    fn end_sending(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn peer(&self) -> String {
        "the fuzzer".into()
    }
}

/// The preamble of an honest source.
pub fn offer() -> Vec<u8> {
    let offer = Offer {
        purpose: Purpose::Migrate,
        versions: vec![1],
        session: SESSION,
    };
    offer.encode()
}

/// Records with the lengths and checksums that they should have. A fuzzer doesn't find a CRC-32, and would never get
/// beyond the first record. What is not a record of a known kind stays as it is.
pub fn mended(mut records: &[u8]) -> Vec<u8> {
    let mut stream = Vec::with_capacity(records.len());
    while let Some((head, rest)) = records.split_first_chunk::<RECORD_HEADER_LEN>() {
        let [k0, k1, v0, v1, l0, l1, l2, l3, ..] = *head;
        let announced = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        let (payload, later) = rest.split_at(announced.min(rest.len()));
        let version = u16::from_le_bytes([v0, v1]);
        let header = Kind::from_number(u16::from_le_bytes([k0, k1]))
            .and_then(|kind| RecordHeader::new(kind, version, payload));
        match header {
            Some(header) => stream.extend(header.encode()),
            None => stream.extend(head),
        }
        stream.extend(payload);
        records = later;
    }
    stream.extend(records);
    stream
}
