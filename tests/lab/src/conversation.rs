//! Listening to a host's agent without waiting for ever.

use std::io::{ErrorKind, Read, Result};
use std::net::TcpStream;
use std::process::Child;
use std::time::{Duration, Instant};

use pvmm_agent::Frame;

/// How often to look whether the emulator still runs.
const GLANCE: Duration = Duration::from_millis(500);

/// Passes the frames of one answer to `show`, up to the last, which it returns.
///
/// # Errors
/// `TimedOut` after `limit`; `UnexpectedEof` when the agent or the emulator has ended; those of the
/// connection.
pub fn answer(
    stream: &mut TcpStream,
    limit: Duration,
    emulator: &mut Child,
    show: &mut dyn FnMut(&Frame),
) -> Result<Frame> {
    let mut reader = PatientReader {
        stream,
        until: Instant::now() + limit,
        emulator,
    };
    loop {
        match Frame::read_from(&mut reader)? {
            frame @ (Frame::Exit(_) | Frame::Done | Frame::Failed(_)) => return Ok(frame),
            frame => show(&frame),
        }
    }
}

/// Reads from the agent until a moment, and notices when the emulator has ended: the connection would
/// not tell.
struct PatientReader<'a> {
    stream: &'a mut TcpStream,
    until: Instant,
    emulator: &'a mut Child,
}

impl Read for PatientReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        use ErrorKind::{TimedOut, UnexpectedEof, WouldBlock};
        loop {
            let left = self.until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(TimedOut.into());
            }
            let slice = left.min(GLANCE);
            self.stream.set_read_timeout(Some(slice))?;
            match self.stream.read(buffer) {
                Err(e) if e.kind() == WouldBlock || e.kind() == TimedOut => {}
                other => return other,
            }
            if self.emulator.try_wait()?.is_some() {
                return Err(UnexpectedEof.into());
            }
        }
    }
}
