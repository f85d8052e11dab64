// SPDX-License-Identifier: GPL-2.0
//! A [`Link`] inside of TLS.
//!
//! Reads and writes of the link below may end at any byte, by a timeout or because it takes no more. Nothing is lost then:
//! what has arrived waits in `incoming` or in the TLS connection, what has been encrypted waits in `outgoing`. A record that is
//! encrypted once must leave once, so `write` takes nothing new while a part of the old is still here.

use super::error::TlsError;
use crate::channel::is_poll;
use crate::transport::Link;
use rustls::Connection;
use std::io::{self, ErrorKind, Read, Write};
use std::ops::Range;

/// Bytes that are read from the link below at once.
const READ_SIZE: usize = 256 << 10;
/// Most bytes that one `write` takes, so that no more than this waits to be sent.
const WRITE_SIZE: usize = 256 << 10;

/// A link inside of TLS.
#[derive(Debug)]
pub struct TlsLink<L> {
    inner: L,
    connection: Connection,
    /// From the link below; what lies in `unread` has not been given to TLS yet.
    incoming: Box<[u8]>,
    unread: Range<usize>,
    /// Encrypted; the first `sent` bytes have left.
    outgoing: Vec<u8>,
    sent: usize,
    /// The link below has come to its end.
    ended: bool,
}

impl<L: Link> TlsLink<L> {
    /// TLS over `inner`, before its handshake.
    pub fn new(inner: L, mut connection: Connection) -> Self {
        // `outgoing` is what bounds it.
        connection.set_buffer_limit(None);
        Self {
            inner,
            connection,
            incoming: vec![0; READ_SIZE].into(),
            unread: 0..0,
            outgoing: Vec::new(),
            sent: 0,
            ended: false,
        }
    }

    /// The TLS connection.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// The link below.
    pub fn inner_mut(&mut self) -> &mut L {
        &mut self.inner
    }

    /// What the last read of the link below has brought.
    pub(super) fn arrived(&self) -> &[u8] {
        self.incoming.get(..self.unread.end).unwrap_or_default()
    }

    /// Sends what waits, and makes one step of the handshake if it is not over. Returns whether it is; fails with `WouldBlock`
    /// or `TimedOut` if the peer is not ready.
    pub(super) fn step(&mut self) -> io::Result<bool> {
        self.push()?;
        if !self.connection.is_handshaking() {
            return Ok(true);
        }
        self.fill()?;
        if self.ended {
            return Err(TlsError::Closed.into());
        }
        Ok(false)
    }

    /// Gives everything that has to be sent to the link below.
    fn push(&mut self) -> io::Result<()> {
        loop {
            while self.sent < self.outgoing.len() {
                let rest = self.outgoing.get(self.sent..).unwrap_or_default();
                let (offered, taken) = (rest.len(), self.inner.write(rest)?);
                if taken == 0 {
                    return Err(ErrorKind::WriteZero.into());
                }
                self.sent = self.sent.saturating_add(taken);
                if taken < offered {
                    // Its time is over, or it is full; the caller has limits to look at.
                    return Err(ErrorKind::WouldBlock.into());
                }
            }
            self.outgoing.clear();
            self.sent = 0;
            if !self.connection.wants_write() {
                return self.inner.flush();
            }
            while self.connection.wants_write() {
                self.connection.write_tls(&mut self.outgoing)?;
            }
        }
    }

    /// Reads from the link below once.
    fn fill(&mut self) -> io::Result<()> {
        if self.unread.is_empty() {
            let count = self.inner.read(&mut self.incoming)?;
            self.unread = 0..count;
            self.ended = count == 0;
        }
        self.take()
    }

    /// Gives TLS a part of what has arrived.
    fn take(&mut self) -> io::Result<()> {
        let mut rest = self.incoming.get(self.unread.clone()).unwrap_or_default();
        let taken = self.connection.read_tls(&mut rest)?;
        self.unread.start = self.unread.start.saturating_add(taken);
        match self.connection.process_new_packets() {
            Ok(_) => Ok(()),
            Err(error) => {
                // TLS has an alert for the peer ready; if it does not get through, the error is what counts.
                let _ = self.push();
                Err(TlsError::from(error).into())
            }
        }
    }
}

impl<L: Link> Read for TlsLink<L> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut asked = false;
        loop {
            match self.connection.reader().read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // The peer is gone without saying so. A stream that was cut is no danger here: it ends in the middle of a
                // move, and the engine takes no end for a success.
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(0),
                result => return result,
            }
            if !self.unread.is_empty() {
                self.take()?;
                continue;
            }
            if asked {
                // What came was no whole record.
                return Err(ErrorKind::WouldBlock.into());
            }
            // The peer may wait for what is still here. An error shows in what is read: the peer's reason, or the end.
            let _ = self.push();
            self.fill()?;
            asked = true;
        }
    }
}

impl<L: Link> Write for TlsLink<L> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        // It is not known before the handshake is over to whom these bytes would go.
        if !self.step()? {
            return Err(ErrorKind::WouldBlock.into());
        }
        let piece = buffer.get(..WRITE_SIZE).unwrap_or(buffer);
        let taken = self.connection.writer().write(piece)?;
        match self.push() {
            // It is ours now, and leaves with what follows.
            Err(error) if !is_poll(error.kind()) => Err(error),
            _ => Ok(taken),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.push()
    }
}

impl<L: Link> Link for TlsLink<L> {
    fn set_timeout(&mut self, limit: std::time::Duration) -> io::Result<()> {
        self.inner.set_timeout(limit)
    }

    fn unsent(&self) -> usize {
        self.outgoing.len().saturating_sub(self.sent)
    }

    fn end_sending(&mut self) -> io::Result<()> {
        if !self.connection.is_handshaking() {
            self.connection.send_close_notify();
        }
        self.push()?;
        self.inner.end_sending()
    }

    fn is_bounded(&self) -> bool {
        self.inner.is_bounded()
    }

    fn peer(&self) -> String {
        let certificates = self.connection.peer_certificates();
        let own = certificates.and_then(|certificates| certificates.first());
        match own.map(|der| super::Certificate::parse(der)) {
            Some(Ok(certificate)) if !certificate.common_name.is_empty() => {
                format!("{} ({})", self.inner.peer(), certificate.common_name)
            }
            _ => self.inner.peer(),
        }
    }
}
