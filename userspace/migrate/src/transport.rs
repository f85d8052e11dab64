// SPDX-License-Identifier: GPL-2.0
//! How the two daemons reach each other: connecting ([`Peer`]), listening ([`Listener`]), and the byte stream that the engine
//! needs ([`Link`]). What is protected by TLS, and how, is in [`crate::tls`].

use crate::tls::{self, Security, Tls};
pub use crate::url::{Url, UrlError};
use socket2::{Domain, SockRef, Socket, TcpKeepalive, Type};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

/// Longest time that one read or write of a [`Link`] blocks, so that a cancel or a deadline is seen in time.
pub const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// How long a connection attempt may take.
pub const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long the kernel keeps trying to deliver data before it breaks a TCP connection (`TCP_USER_TIMEOUT`). Longer than
/// the engine's default stall limit, which reports better.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(45);

/// A byte stream between the two sides.
pub trait Link: Read + Write + Send {
    /// Bounds every following read and write; one that takes longer fails with `WouldBlock` or `TimedOut`.
    ///
    /// # Errors
    ///
    /// The system's.
    fn set_timeout(&mut self, limit: Duration) -> io::Result<()>;

    /// Bytes that a write has taken and that have not left yet; `flush` sends them, as far as they go in the time of
    /// [`Self::set_timeout`]. Zero where nothing is buffered.
    fn unsent(&self) -> usize {
        0
    }

    /// Ends the sending direction, so that the other side sees the end after what was sent.
    ///
    /// # Errors
    ///
    /// The system's. `WouldBlock` and `TimedOut` mean that it is to be called again: something had to be sent before.
    fn end_sending(&mut self) -> io::Result<()>;

    /// Whether [`Self::set_timeout`] has an effect. Nobody waits for the end of a link that cannot be bounded.
    fn is_bounded(&self) -> bool {
        true
    }

    /// The other side, for messages.
    fn peer(&self) -> String;
}

impl Link for TcpStream {
    fn set_timeout(&mut self, limit: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(limit))?;
        self.set_write_timeout(Some(limit))
    }

    fn end_sending(&mut self) -> io::Result<()> {
        self.shutdown(std::net::Shutdown::Write)
    }

    fn peer(&self) -> String {
        match self.peer_addr() {
            Ok(address) => format!("tcp:{address}"),
            Err(_) => "the peer".into(),
        }
    }
}

impl Link for UnixStream {
    fn set_timeout(&mut self, limit: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(limit))?;
        self.set_write_timeout(Some(limit))
    }

    fn end_sending(&mut self) -> io::Result<()> {
        self.shutdown(std::net::Shutdown::Write)
    }

    fn peer(&self) -> String {
        let address = self.peer_addr().ok();
        match address.as_ref().and_then(|address| address.as_pathname()) {
            Some(path) => format!("unix:{}", path.display()),
            None => "the local peer".into(),
        }
    }
}

/// Any pair of a reader and a writer as a [`Link`], e.g. the pipes of an `ssh` that tunnels the move. Such a link cannot
/// bound its reads and writes: a cancel and the limits are seen only when bytes move.
#[derive(Debug)]
pub struct Duplex<R, W> {
    /// Where bytes come from.
    pub reader: R,
    /// Where they go.
    pub writer: W,
    /// The other side, for messages.
    pub name: String,
}

impl<R: Read, W> Read for Duplex<R, W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reader.read(buffer)
    }
}

impl<R, W: Write> Write for Duplex<R, W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.writer.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

impl<R: Read + Send, W: Write + Send> Link for Duplex<R, W> {
    fn set_timeout(&mut self, _limit: Duration) -> io::Result<()> {
        Ok(())
    }

    fn end_sending(&mut self) -> io::Result<()> {
        self.writer.flush()
    }

    fn is_bounded(&self) -> bool {
        false
    }

    fn peer(&self) -> String {
        self.name.clone()
    }
}

/// Where a move goes: the source connects once for the move itself, and again if it must ask for the outcome.
pub trait Connect {
    /// A new connection.
    ///
    /// # Errors
    ///
    /// The system's.
    fn connect(&self) -> io::Result<Box<dyn Link>>;

    /// The target, for messages.
    fn name(&self) -> String;
}

/// A daemon that takes guests, at its address.
#[derive(Debug, Clone)]
pub struct Peer {
    /// The address.
    pub url: Url,
    /// How connections to it are protected.
    pub security: Security,
}

impl Connect for Peer {
    fn connect(&self) -> io::Result<Box<dyn Link>> {
        match &self.url {
            Url::Unix(path) => Ok(Box::new(UnixStream::connect(path)?)),
            Url::Tcp { host, port } => {
                // Before anything is sent: what stands against TLS here has nothing to do with the peer.
                let config = match self.security.tls(&self.url) {
                    Some(tls) => Some(tls::client(tls)?),
                    None => None,
                };
                let stream = dial(host, *port)?;
                Ok(match config {
                    Some(config) => Box::new(tls::connect(stream, host, config)?),
                    None => Box::new(stream),
                })
            }
        }
    }

    fn name(&self) -> String {
        self.url.to_string()
    }
}

fn dial(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in Url::addresses(host, port)? {
        match TcpStream::connect_timeout(&address, CONNECT_LIMIT) {
            Ok(stream) => {
                tune(&stream)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Small records must leave at once, and a peer that vanished must be noticed.
fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(10))
        .with_interval(Duration::from_secs(5))
        .with_retries(6);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(TCP_USER_TIMEOUT))
}

/// A place where moves arrive.
#[derive(Debug)]
pub struct Listener {
    socket: ListeningSocket,
    tls: Option<Tls>,
}

#[derive(Debug)]
enum ListeningSocket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Listens at an address. A Unix socket that nobody serves any more is replaced; port 0 takes a free port.
    ///
    /// # Errors
    ///
    /// The system's, e.g. `AddrInUse`; with [`tls::TlsError`] inside if TLS is due and this host's certificates are of no use.
    pub fn bind(url: &Url, security: &Security) -> io::Result<Self> {
        let tls = security.tls(url).cloned();
        if let Some(tls) = &tls {
            tls.check_server()?;
        }
        let socket = match url {
            Url::Unix(path) => ListeningSocket::Unix(bind_unix(path)?),
            Url::Tcp { host, port } => ListeningSocket::Tcp(bind_tcp(host, *port)?),
        };
        Ok(Self { socket, tls })
    }

    /// Waits for the next connection.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn accept(&self) -> io::Result<Arrival> {
        let stream = match &self.socket {
            ListeningSocket::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                tune(&stream)?;
                Stream::Tcp(stream)
            }
            ListeningSocket::Unix(listener) => Stream::Unix(listener.accept()?.0),
        };
        Ok(Arrival {
            stream,
            tls: self.tls.clone(),
        })
    }

    /// Whether peers must use TLS.
    pub fn is_secure(&self) -> bool {
        self.tls.is_some()
    }

    /// Where it listens, with the port that was really taken.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn url(&self) -> io::Result<Url> {
        match &self.socket {
            ListeningSocket::Tcp(listener) => {
                let address = listener.local_addr()?;
                Ok(Url::Tcp {
                    host: address.ip().to_string(),
                    port: address.port(),
                })
            }
            ListeningSocket::Unix(listener) => {
                let address = listener.local_addr()?;
                Ok(Url::Unix(
                    address.as_pathname().unwrap_or("".as_ref()).into(),
                ))
            }
        }
    }
}

/// A connection that a peer has made, before it is known who it is.
#[derive(Debug)]
pub struct Arrival {
    stream: Stream,
    tls: Option<Tls>,
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// What came of an [`Arrival`].
pub(crate) enum Admitted {
    /// A peer that may speak.
    Link(Box<dyn Link>),
    /// One that began without the TLS that it needs here; it can be told so.
    Plain(Box<dyn Link>),
}

impl Arrival {
    /// The other side, for messages.
    pub fn peer(&self) -> String {
        match &self.stream {
            Stream::Tcp(stream) => stream.peer(),
            Stream::Unix(stream) => stream.peer(),
        }
    }

    /// Lets the peer show who it is, if it has to. Waits for it, at most `limit`: not for the thread that accepts.
    pub(crate) fn admit(self, limit: Duration) -> io::Result<Admitted> {
        Ok(Admitted::Link(match (self.stream, &self.tls) {
            (Stream::Unix(stream), _) => Box::new(stream),
            (Stream::Tcp(stream), None) => Box::new(stream),
            (Stream::Tcp(stream), Some(tls)) => {
                let (begin, config) = (Instant::now(), tls::server(tls)?);
                if tls::speaks_plain(&stream, limit)? {
                    return Ok(Admitted::Plain(Box::new(stream)));
                }
                let rest = limit.saturating_sub(begin.elapsed());
                Box::new(tls::accept(stream, config, rest)?)
            }
        }))
    }
}

fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if UnixStream::connect(path).is_ok() {
                return Err(error);
            }
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        other => other,
    }
}

fn bind_tcp(host: &str, port: u16) -> io::Result<TcpListener> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in Url::addresses(host, port)? {
        match bind_address(address) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn bind_address(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    // A daemon that restarts must get its port back although old connections linger.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(16)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_reached_at_the_address_that_it_names() {
        let (url, security) = (
            "tcp:localhost:0".parse().expect("an address"),
            Security::default(),
        );
        let listener = Listener::bind(&url, &security).expect("a free port");
        assert!(!listener.is_secure());
        let url = listener.url().expect("it is bound");
        let mut near = Peer { url, security }.connect().expect("somebody listens");
        let arrival = listener.accept().expect("somebody connects");
        let Ok(Admitted::Link(mut far)) = arrival.admit(CONNECT_LIMIT) else {
            panic!("nothing is demanded of it");
        };
        near.write_all(b"x").expect("a fresh connection");
        let mut byte = [0];
        far.read_exact(&mut byte).expect("a byte was sent");
        assert_eq!(&byte, b"x");
    }
}
