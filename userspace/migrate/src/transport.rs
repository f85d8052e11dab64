// SPDX-License-Identifier: GPL-2.0
//! How the two daemons reach each other: addresses (`tcp:HOST:PORT`, `unix:PATH`), connecting, listening, and the byte
//! stream that the engine needs ([`Link`]).

use socket2::{Domain, SockRef, Socket, TcpKeepalive, Type};
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// Longest time that one read or write of a [`Link`] blocks, so that a cancel or a deadline is seen in time.
pub const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// How long a connection attempt may take.
pub const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long the kernel keeps trying to deliver data before it breaks a TCP connection (`TCP_USER_TIMEOUT`). Longer than
/// the engine's default stall limit, which reports better.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(45);

/// An address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Url {
    /// `tcp:HOST:PORT`; an IPv6 address in brackets.
    Tcp {
        /// Name or address, without brackets.
        host: String,
        /// Port.
        port: u16,
    },
    /// `unix:PATH`.
    Unix(PathBuf),
}

/// Why a text is not an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is not an address for a move: {why}; tcp:HOST:PORT, tcp:[IPV6]:PORT and unix:PATH are possible")]
pub struct UrlError {
    /// The text.
    pub text: String,
    /// What is wrong.
    pub why: &'static str,
}

impl FromStr for Url {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        parse(text).map_err(|why| UrlError {
            text: text.to_owned(),
            why,
        })
    }
}

fn parse(text: &str) -> Result<Url, &'static str> {
    let (scheme, rest) = text.split_once(':').ok_or("it has no scheme")?;
    match scheme {
        "unix" if rest.is_empty() => Err("the path is missing"),
        "unix" => Ok(Url::Unix(rest.into())),
        "tcp" => {
            let (host, port) = if let Some(bracketed) = rest.strip_prefix('[') {
                let (host, port) = bracketed
                    .split_once("]:")
                    .ok_or("the bracket is not followed by a port")?;
                host.parse::<Ipv6Addr>()
                    .map_err(|_| "what stands in brackets is not an IPv6 address")?;
                (host, port)
            } else {
                let (host, port) = rest.rsplit_once(':').ok_or("the port is missing")?;
                if host.contains(':') {
                    return Err("an IPv6 address must stand in brackets");
                }
                (host, port)
            };
            if host.is_empty() {
                return Err("the host is missing");
            }
            let port = port
                .parse()
                .map_err(|_| "the port is not a number from 0 to 65535")?;
            Ok(Url::Tcp {
                host: host.to_owned(),
                port,
            })
        }
        _ => Err("its scheme is not known"),
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Url {
    /// The socket addresses of a TCP URL. `localhost` and numbers need no resolver.
    fn addresses(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        if host == "localhost" {
            let v4 = IpAddr::V4(Ipv4Addr::LOCALHOST);
            let v6 = IpAddr::V6(Ipv6Addr::LOCALHOST);
            return Ok(vec![(v4, port).into(), (v6, port).into()]);
        }
        if let Ok(address) = host.parse::<IpAddr>() {
            return Ok(vec![(address, port).into()]);
        }
        Ok((host, port).to_socket_addrs()?.collect())
    }
}

/// A byte stream between the two sides.
pub trait Link: Read + Write + Send {
    /// Bounds every following read and write; one that takes longer fails with `WouldBlock` or `TimedOut`.
    ///
    /// # Errors
    ///
    /// The system's.
    fn set_timeout(&mut self, limit: Duration) -> io::Result<()>;

    /// Ends the sending direction, so that the other side sees the end after what was sent.
    ///
    /// # Errors
    ///
    /// The system's.
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

impl Connect for Url {
    fn connect(&self) -> io::Result<Box<dyn Link>> {
        match self {
            Self::Unix(path) => Ok(Box::new(UnixStream::connect(path)?)),
            Self::Tcp { host, port } => {
                let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
                for address in Self::addresses(host, *port)? {
                    match TcpStream::connect_timeout(&address, CONNECT_LIMIT) {
                        Ok(stream) => {
                            tune(&stream)?;
                            return Ok(Box::new(stream));
                        }
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
        }
    }

    fn name(&self) -> String {
        self.to_string()
    }
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
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// A Unix socket.
    Unix(UnixListener),
}

impl Listener {
    /// Listens at an address. A Unix socket that nobody serves any more is replaced; port 0 takes a free port.
    ///
    /// # Errors
    ///
    /// The system's, e.g. `AddrInUse`.
    pub fn bind(url: &Url) -> io::Result<Self> {
        match url {
            Url::Unix(path) => match UnixListener::bind(path) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                    if UnixStream::connect(path).is_ok() {
                        return Err(error);
                    }
                    std::fs::remove_file(path)?;
                    Ok(Self::Unix(UnixListener::bind(path)?))
                }
                other => Ok(Self::Unix(other?)),
            },
            Url::Tcp { host, port } => {
                let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
                for address in Url::addresses(host, *port)? {
                    match bind_tcp(address) {
                        Ok(listener) => return Ok(Self::Tcp(listener)),
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
        }
    }

    /// Waits for the next move.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn accept(&self) -> io::Result<Box<dyn Link>> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                tune(&stream)?;
                Ok(Box::new(stream))
            }
            Self::Unix(listener) => Ok(Box::new(listener.accept()?.0)),
        }
    }

    /// Where it listens, with the port that was really taken.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn url(&self) -> io::Result<Url> {
        match self {
            Self::Tcp(listener) => {
                let address = listener.local_addr()?;
                Ok(Url::Tcp {
                    host: address.ip().to_string(),
                    port: address.port(),
                })
            }
            Self::Unix(listener) => {
                let address = listener.local_addr()?;
                Ok(Url::Unix(
                    address.as_pathname().unwrap_or("".as_ref()).into(),
                ))
            }
        }
    }
}

fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
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
    fn addresses_are_read_and_printed_the_same() {
        for text in [
            "tcp:127.0.0.1:4321",
            "tcp:[::1]:4321",
            "tcp:peer.example:1",
            "unix:/run/pvmm/peer.sock",
            "unix:relative",
        ] {
            let url: Url = text.parse().expect(text);
            assert_eq!(url.to_string(), text);
        }
        assert_eq!(
            "tcp:[fe80::1]:9".parse(),
            Ok(Url::Tcp {
                host: "fe80::1".into(),
                port: 9
            })
        );
    }

    #[test]
    fn what_is_not_an_address_is_refused_with_its_reason() {
        for (text, why) in [
            ("peer", "it has no scheme"),
            ("rdma:peer:1", "its scheme is not known"),
            ("tcp:peer", "the port is missing"),
            ("tcp::1", "the host is missing"),
            ("tcp:peer:", "the port is not a number from 0 to 65535"),
            ("tcp:peer:65536", "the port is not a number from 0 to 65535"),
            ("tcp:::1:80", "an IPv6 address must stand in brackets"),
            ("tcp:[::1]80", "the bracket is not followed by a port"),
            (
                "tcp:[peer]:80",
                "what stands in brackets is not an IPv6 address",
            ),
            ("unix:", "the path is missing"),
        ] {
            let error = text.parse::<Url>().expect_err(text);
            assert_eq!(error.why, why, "{text}");
            assert!(error.to_string().contains(text));
        }
    }

    #[test]
    fn a_listener_is_reached_at_the_address_that_it_names() {
        let listener =
            Listener::bind(&"tcp:localhost:0".parse().expect("an address")).expect("a free port");
        let url = listener.url().expect("it is bound");
        let mut near = url.connect().expect("somebody listens");
        let mut far = listener.accept().expect("somebody connects");
        near.write_all(b"x").expect("a fresh connection");
        let mut byte = [0];
        far.read_exact(&mut byte).expect("a byte was sent");
        assert_eq!(&byte, b"x");
    }
}
