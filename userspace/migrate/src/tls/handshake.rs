// SPDX-License-Identifier: GPL-2.0
//! The handshake: before it is over nothing of a move is sent or read, and it is over soon, one way or the other.

use super::error::TlsError;
use super::link::TlsLink;
use crate::channel::{is_poll, LINGER};
use crate::transport::{Link, POLL_INTERVAL};
use crate::wire::is_preamble;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};
use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the source waits for the handshake. The target's limit is
/// [`crate::TargetOptions::handshake_limit`].
pub const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// First byte of a TLS record that carries a handshake message (RFC 8446, section 5.1): what a client begins with.
const HANDSHAKE_RECORD: u8 = 22;

/// The source's end: shows this host's certificate, and makes sure that the peer is `host`.
pub(crate) fn connect<L: Link>(
    inner: L,
    host: &str,
    config: Arc<ClientConfig>,
) -> io::Result<TlsLink<L>> {
    let name =
        ServerName::try_from(host.to_owned()).map_err(|_| TlsError::Name(host.to_owned()))?;
    let connection = ClientConnection::new(config, name).map_err(TlsError::from)?;
    let mut link = TlsLink::new(inner, connection.into());
    run(&mut link, HANDSHAKE_LIMIT)?;
    Ok(link)
}

/// The target's end: takes a peer whose certificate is good and allowed. Should it not be, the peer is told by an alert.
pub(crate) fn accept<L: Link>(
    inner: L,
    config: Arc<ServerConfig>,
    limit: Duration,
) -> io::Result<TlsLink<L>> {
    let connection = ServerConnection::new(config).map_err(TlsError::from)?;
    let mut link = TlsLink::new(inner, connection.into());
    match run(&mut link, limit) {
        Ok(()) => Ok(link),
        Err(error) => {
            drain(link.inner_mut());
            Err(error)
        }
    }
}

/// Whether a peer that has connected begins without TLS. Waits for its first byte.
pub(crate) fn speaks_plain(stream: &TcpStream, limit: Duration) -> io::Result<bool> {
    stream.set_read_timeout(Some(POLL_INTERVAL))?;
    let begin = Instant::now();
    let mut first = [0];
    loop {
        match stream.peek(&mut first) {
            Ok(0) => return Err(TlsError::Closed.into()),
            // Anything else may be garbage, which TLS answers in its way.
            Ok(_) => return Ok(is_preamble(&first)),
            Err(error) if is_poll(error.kind()) => {}
            Err(error) => return Err(error),
        }
        if begin.elapsed() >= limit {
            return Err(TlsError::Stalled(limit).into());
        }
    }
}

/// Whether bytes from a peer are those of TLS.
pub(crate) fn speaks_tls(first: &[u8]) -> bool {
    // The version that every record claims is 3.something.
    matches!(first, [HANDSHAKE_RECORD, 3, ..])
}

fn run<L: Link>(link: &mut TlsLink<L>, limit: Duration) -> io::Result<()> {
    link.set_timeout(POLL_INTERVAL)?;
    let begin = Instant::now();
    loop {
        match link.step() {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(error) if is_poll(error.kind()) => {}
            Err(error) if is_preamble(link.arrived()) => {
                tracing::debug!(%error, "the peer has answered without TLS");
                return Err(TlsError::Plain.into());
            }
            Err(error) => return Err(error),
        }
        if begin.elapsed() >= limit {
            return Err(TlsError::Stalled(limit).into());
        }
    }
}

/// Reads until the peer closes, for a moment: a connection that is closed with unread bytes is reset, and the alert that says
/// why may be lost.
fn drain(inner: &mut impl Link) {
    if inner.end_sending().is_err() {
        return;
    }
    let (begin, mut waste) = (Instant::now(), [0; 4096]);
    while begin.elapsed() < LINGER {
        match inner.read(&mut waste) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if is_poll(error.kind()) => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::RootCertStore;
    use std::os::unix::net::UnixStream;

    fn client(inner: UnixStream) -> TlsLink<UnixStream> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("ring has its suites")
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let name = ServerName::try_from("peer").expect("a name");
        let connection = ClientConnection::new(Arc::new(config), name).expect("a good config");
        TlsLink::new(inner, connection.into())
    }

    fn reason(result: io::Result<()>) -> TlsError {
        let error = result.expect_err("there is no TLS at the other end");
        error.downcast().expect("an error of ours")
    }

    #[test]
    fn a_target_that_does_not_answer_is_given_up() {
        let (near, _far) = UnixStream::pair().expect("a socket pair");
        let limit = Duration::from_millis(150);
        let error = reason(run(&mut client(near), limit));
        assert!(matches!(error, TlsError::Stalled(_)), "{error}");
    }

    #[test]
    fn a_target_that_closes_is_noticed() {
        let (near, far) = UnixStream::pair().expect("a socket pair");
        far.shutdown(std::net::Shutdown::Write).expect("it is open");
        let error = reason(run(&mut client(near), HANDSHAKE_LIMIT));
        assert!(matches!(error, TlsError::Closed), "{error}");
    }

    #[test]
    fn a_client_hello_is_recognised() {
        let (near, mut far) = UnixStream::pair().expect("a socket pair");
        let mut link = client(near);
        link.set_timeout(POLL_INTERVAL).expect("not zero");
        assert!(link.step().is_err(), "nobody answers");
        let mut first = [0; 8];
        io::Read::read_exact(&mut far, &mut first).expect("it was sent");
        assert!(speaks_tls(&first) && !is_preamble(&first));
        assert!(!speaks_tls(b"PVMMMIG\n") && !speaks_tls(b""));
    }
}
