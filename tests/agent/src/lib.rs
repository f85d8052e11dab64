//! What the lab and the agent inside an emulated host say to each other.
//!
//! The lab is not on the path of a guest access; it is the bench on which that path is tested. This
//! file is the contract of the bench's only cable: a TCP connection per request over the control
//! network. The lab sends one [`Request`], the agent answers with any number of [`Frame`]s and ends
//! with exactly one [`Frame::Exit`], [`Frame::Done`] or [`Frame::Failed`].
//!
//! A frame on the wire is: kind (1 byte), payload length (4 bytes, little endian), payload. Requests
//! are JSON in a frame of their own, so that adding a request doesn't change the framing.

#![forbid(unsafe_code)]

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

/// TCP port on which the agent listens, in every emulated host.
pub const PORT: u16 = 7086;

/// Longest payload of one frame, in bytes. Longer data is sent as several frames.
pub const MAX_PAYLOAD: usize = 64 * 1024;

/// What the lab can ask of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Is anybody there? Answered with [`Frame::Done`].
    Ping,
    /// Runs a command and streams its output. Ends with [`Frame::Exit`].
    /// The command is killed when the lab closes the connection first.
    Run {
        /// Program and arguments; the program is looked up in `PATH`.
        argv: Vec<String>,
    },
    /// Starts a command in the background, with standard output and standard error in `log`.
    /// Answered with the process id in decimal as one [`Frame::Data`], then [`Frame::Done`].
    Spawn {
        /// Program and arguments.
        argv: Vec<String>,
        /// File in the host that receives the output; replaced when it exists.
        log: String,
    },
    /// Waits for the end of a command started by [`Request::Spawn`]; ends with [`Frame::Exit`].
    Wait {
        /// The process id that `Spawn` returned.
        pid: u32,
    },
    /// Writes a file: the lab sends [`Frame::Data`] frames and one [`Frame::Done`] behind the request.
    Put {
        /// Path in the host; parent folders are made.
        path: String,
        /// Permission bits, for example `0o755`.
        mode: u32,
    },
    /// Reads a file: answered with [`Frame::Data`] frames and [`Frame::Done`].
    Get {
        /// Path in the host.
        path: String,
    },
}

/// One message of an answer (or, for [`Request::Put`], of the file that follows the request).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A request, as JSON.
    Request(Vec<u8>),
    /// Bytes that the command wrote to standard output.
    Stdout(Vec<u8>),
    /// Bytes that the command wrote to standard error.
    Stderr(Vec<u8>),
    /// Bytes of a file, or a short answer.
    Data(Vec<u8>),
    /// The command ended: its exit code, or 128 + the number of the signal that killed it.
    Exit(i32),
    /// The request was carried out.
    Done,
    /// The request failed; the text says why.
    Failed(String),
}

impl Frame {
    fn kind(&self) -> u8 {
        match self {
            Frame::Request(_) => b'R',
            Frame::Stdout(_) => b'O',
            Frame::Stderr(_) => b'E',
            Frame::Data(_) => b'D',
            Frame::Exit(_) => b'X',
            Frame::Done => b'.',
            Frame::Failed(_) => b'F',
        }
    }

    /// Writes the frame with one `write_all`.
    ///
    /// # Errors
    /// Those of `out`; `InvalidInput` if the payload is longer than [`MAX_PAYLOAD`].
    pub fn write_to(&self, out: &mut impl Write) -> io::Result<()> {
        let number;
        let payload: &[u8] = match self {
            Frame::Request(b) | Frame::Stdout(b) | Frame::Stderr(b) | Frame::Data(b) => b,
            Frame::Exit(code) => {
                number = code.to_le_bytes();
                &number
            }
            Frame::Done => &[],
            Frame::Failed(text) => text.as_bytes(),
        };
        if payload.len() > MAX_PAYLOAD {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "frame payload too long",
            ));
        }
        let mut bytes = Vec::with_capacity(5 + payload.len());
        bytes.push(self.kind());
        // MAX_PAYLOAD fits in 32 bits.
        bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        bytes.extend_from_slice(payload);
        out.write_all(&bytes)
    }

    /// Reads one frame.
    ///
    /// # Errors
    /// Those of `input`; `UnexpectedEof` when the peer closed; `InvalidData` for an unknown kind, a
    /// payload longer than [`MAX_PAYLOAD`] or one that doesn't fit its kind.
    pub fn read_from(input: &mut impl Read) -> io::Result<Frame> {
        let mut head = [0u8; 5];
        input.read_exact(&mut head)?;
        let [kind, length @ ..] = head;
        let length = u32::from_le_bytes(length) as usize;
        if length > MAX_PAYLOAD {
            return Err(invalid("frame payload too long"));
        }
        let mut payload = vec![0u8; length];
        input.read_exact(&mut payload)?;
        match kind {
            b'R' => Ok(Frame::Request(payload)),
            b'O' => Ok(Frame::Stdout(payload)),
            b'E' => Ok(Frame::Stderr(payload)),
            b'D' => Ok(Frame::Data(payload)),
            b'X' => match <[u8; 4]>::try_from(payload.as_slice()) {
                Ok(number) => Ok(Frame::Exit(i32::from_le_bytes(number))),
                Err(_) => Err(invalid("exit frame of a wrong length")),
            },
            b'.' if payload.is_empty() => Ok(Frame::Done),
            b'F' => Ok(Frame::Failed(
                String::from_utf8_lossy(&payload).into_owned(),
            )),
            _ => Err(invalid("unknown frame kind")),
        }
    }

    /// Wraps a request.
    ///
    /// # Errors
    /// `InvalidData` if the request can't be encoded.
    pub fn request(request: &Request) -> io::Result<Frame> {
        serde_json::to_vec(request)
            .map(Frame::Request)
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
    }
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_kinds() -> Vec<Frame> {
        vec![
            Frame::Request(b"{}".to_vec()),
            Frame::Stdout(b"out".to_vec()),
            Frame::Stderr(Vec::new()),
            Frame::Data(vec![0xff; MAX_PAYLOAD]),
            Frame::Exit(-7),
            Frame::Done,
            Frame::Failed("no such file".to_owned()),
        ]
    }

    #[test]
    fn every_frame_is_read_back_as_it_was_written() -> io::Result<()> {
        let mut wire = Vec::new();
        for frame in all_kinds() {
            frame.write_to(&mut wire)?;
        }
        let mut input = wire.as_slice();
        for frame in all_kinds() {
            assert_eq!(Frame::read_from(&mut input)?, frame);
        }
        assert!(input.is_empty());
        Ok(())
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_anything_is_allocated() {
        let wire = [b'D', 0xff, 0xff, 0xff, 0xff];
        let kind = Frame::read_from(&mut wire.as_slice()).map_err(|e| e.kind());
        assert_eq!(kind, Err(io::ErrorKind::InvalidData));
    }

    #[test]
    fn an_unknown_kind_is_refused() {
        let wire = [b'?', 0, 0, 0, 0];
        let kind = Frame::read_from(&mut wire.as_slice()).map_err(|e| e.kind());
        assert_eq!(kind, Err(io::ErrorKind::InvalidData));
    }
}
