// SPDX-License-Identifier: GPL-2.0
//! A client of the daemon.

use crate::line;
use crate::reply::{ControlError, Event, Message, Reply};
use crate::request::{Envelope, Request};
use std::io::{self, BufReader, ErrorKind};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// Why a request has no result.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no daemon.
    #[error("cannot connect to pvmmd at {path}: {reason}; {advice}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The system's reason.
        reason: io::Error,
        /// What to do.
        advice: &'static str,
    },
    /// The connection broke.
    #[error("the connection to pvmmd broke: {0}; see its log")]
    Connection(#[from] io::Error),
    /// The daemon answered something else than was asked.
    #[error("pvmmd answered something else than was asked; pvmmd and this command are of different versions")]
    Unexpected,
    /// The daemon refused.
    #[error(transparent)]
    Control(#[from] ControlError),
}

impl ClientError {
    /// The exit code that the command line gives it.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Control(error) => error.exit_code(),
            _ => 1,
        }
    }
}

/// A connection to the daemon.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the daemon's socket.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path).map_err(|reason| ClientError::Connect {
            path: path.to_owned(),
            advice: match reason.kind() {
                ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
                    "no daemon is running there: start it with `pvmmd serve`, or name another socket with --socket"
                }
                ErrorKind::PermissionDenied => "run this as root or as a member of the socket's group",
                _ => "see if the daemon is running",
            },
            reason,
        })?;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    /// Sends a request and waits for its result; `on_event` sees what comes before.
    pub fn call_with_events(
        &mut self,
        request: Request,
        mut on_event: impl FnMut(Event),
    ) -> Result<Reply, ClientError> {
        let envelope = Envelope {
            version: crate::VERSION,
            request,
        };
        line::write(self.stream.get_mut(), &envelope)?;
        loop {
            match line::read(&mut self.stream)? {
                Some(Message::Return(reply)) => return Ok(reply),
                Some(Message::Error(error)) => return Err(error.into()),
                Some(Message::Event(event)) => on_event(event),
                None => {
                    return Err(io::Error::new(
                        ErrorKind::UnexpectedEof,
                        "the daemon closed it before answering",
                    )
                    .into())
                }
            }
        }
    }

    /// Sends a request and waits for its result.
    pub fn call(&mut self, request: Request) -> Result<Reply, ClientError> {
        self.call_with_events(request, drop)
    }

    /// The raw connection, after a request that changed it into a console. The first part may hold bytes that came already.
    pub fn into_raw(self) -> BufReader<UnixStream> {
        self.stream
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_daemon_the_error_says_how_to_start_one() {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let error =
            Client::connect(&directory.path().join("none.sock")).expect_err("nobody listens");
        assert!(error.to_string().contains("pvmmd serve"), "{error}");
        assert_eq!(error.exit_code(), 1);
    }
}
