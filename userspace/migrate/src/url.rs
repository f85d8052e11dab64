// SPDX-License-Identifier: GPL-2.0
//! Addresses at which guests are taken: `tcp:HOST:PORT`, `unix:PATH`.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::str::FromStr;

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
    /// Whether it says that it is on this host: `localhost`, or an address of the loopback network. A name that a resolver
    /// turns into one does not.
    pub fn is_loopback(&self) -> bool {
        match self {
            Self::Tcp { host, .. } => {
                let address = host.parse::<IpAddr>();
                host == "localhost" || address.is_ok_and(|ip| ip.to_canonical().is_loopback())
            }
            Self::Unix(_) => false,
        }
    }

    /// The socket addresses of a TCP URL. `localhost` and numbers need no resolver.
    pub(crate) fn addresses(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
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
}
