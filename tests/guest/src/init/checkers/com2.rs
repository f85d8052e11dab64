//! Heartbeats on COM2 and answers to what arrives there.
//!
//! On the path this is the device that is passed through: its writes are recorded on one host and
//! replayed on the other, and none of its bytes may be lost, doubled or changed in between.
#![forbid(unsafe_code)]

use std::convert::Infallible;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Instant;

use pvmm_guest::echo::{Echo, LineBuffer};
use pvmm_guest::heartbeat::{Heartbeat, Port};
use pvmm_guest::message::{Message, Stat};
use pvmm_guest::Config;
use rustix::event::{poll, PollFd, PollFlags};
use rustix::fs::OFlags;
use rustix::termios::{tcdrain, tcgetattr, tcsetattr, ControlModes, OptionalActions};
use rustix::time::{clock_gettime, ClockId};

use crate::report::{following, timespec, Ended, Reporter};

/// Bytes that may wait for the port: several seconds at 115200 baud.
const QUEUE_MAX: usize = 64 * 1024;

fn open(baud: u32) -> io::Result<File> {
    let tty = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags((OFlags::NOCTTY | OFlags::NONBLOCK).bits() as i32)
        .open("/dev/ttyS1")?;
    let mut modes = tcgetattr(&tty)?;
    modes.make_raw();
    modes.control_modes |= ControlModes::CLOCAL | ControlModes::CREAD;
    // Three wires: no flow control.
    modes.control_modes &= !(ControlModes::CRTSCTS | ControlModes::HUPCL);
    modes.set_speed(baud)?;
    tcsetattr(&tty, OptionalActions::Now, &modes)?;
    Ok(tty)
}

/// Counters of the second port in `/proc/tty/driver/serial`: frame and parity errors (a divisor or
/// line control register that was restored wrongly), then overruns and breaks.
fn line_errors() -> (u64, u64) {
    let text = fs::read_to_string("/proc/tty/driver/serial").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("1:"));
    let count = |key: &str| -> u64 {
        line.unwrap_or_default()
            .split(' ')
            .find_map(|word| word.strip_prefix(key)?.strip_prefix(':')?.parse().ok())
            .unwrap_or(0)
    };
    (count("fe") + count("pe"), count("oe") + count("brk"))
}

/// Checks until PID 1 has enough.
pub fn run(reporter: &mut Reporter, config: &Config) -> Result<Infallible, Ended> {
    let tty = match open(config.baud) {
        Ok(tty) => tty,
        Err(error) => {
            reporter.fail("com2", format_args!("/dev/ttyS1: {error}"))?;
            return Err(Ended);
        }
    };
    reporter.send(&Message::Ready)?;
    let mut port = Com2 {
        tty,
        queue: Vec::new(),
        received: LineBuffer::default(),
        echo: Echo::default(),
        beats: 0,
        errors: line_errors(),
    };
    let result = port.run(reporter, config);
    // What was begun is finished, so that the last line on the port is a whole one.
    port.finish();
    result
}

struct Com2 {
    tty: File,
    queue: Vec<u8>,
    received: LineBuffer,
    echo: Echo,
    beats: u64,
    errors: (u64, u64),
}

impl Com2 {
    fn run(&mut self, reporter: &mut Reporter, config: &Config) -> Result<Infallible, Ended> {
        let mut next_beat = Instant::now();
        let mut next_look = Instant::now();
        loop {
            let now = Instant::now();
            if now >= next_beat {
                self.beat(reporter)?;
                next_beat = following(next_beat, now, config.heartbeat);
            }
            if now >= next_look {
                self.look_for_errors(reporter)?;
                next_look = now + config.status;
            }
            reporter.stat(Stat {
                checks: self.beats + self.echo.answered(),
                ..Stat::default()
            })?;

            let input = reporter.input();
            let mut wanted = PollFlags::IN;
            wanted.set(PollFlags::OUT, !self.queue.is_empty());
            let mut fds = [
                PollFd::from_borrowed_fd(self.tty.as_fd(), wanted),
                PollFd::from_borrowed_fd(input.fd(), PollFlags::IN),
            ];
            let limit = next_beat.saturating_duration_since(Instant::now());
            if poll(&mut fds, Some(&timespec(limit))).is_err() {
                continue;
            }
            let [port, orders] = fds.map(|fd| fd.revents());
            if port.contains(PollFlags::IN) {
                self.receive(reporter)?;
            }
            if port.intersects(PollFlags::HUP | PollFlags::ERR) {
                reporter.fail("com2", "/dev/ttyS1 hung up")?;
                return Err(Ended);
            }
            self.transmit(reporter)?;
            if !orders.is_empty() {
                reporter.orders()?;
            }
        }
    }

    fn beat(&mut self, reporter: &mut Reporter) -> Result<(), Ended> {
        self.beats += 1;
        let time = clock_gettime(ClockId::Monotonic);
        let beat = Heartbeat {
            port: Port::Com2,
            number: self.beats,
            ms: (time.tv_sec.max(0).unsigned_abs() * 1000)
                + time.tv_nsec.max(0).unsigned_abs() / 1_000_000,
        };
        self.enqueue(&beat.to_string(), reporter)
    }

    fn enqueue(&mut self, line: &str, reporter: &mut Reporter) -> Result<(), Ended> {
        if self.queue.len() + line.len() + 2 > QUEUE_MAX {
            reporter.fail("com2", "the port doesn't send: queue full, line dropped")?;
            return Ok(());
        }
        self.queue.extend_from_slice(line.as_bytes());
        self.queue.extend_from_slice(b"\r\n");
        Ok(())
    }

    fn transmit(&mut self, reporter: &mut Reporter) -> Result<(), Ended> {
        if self.queue.is_empty() {
            return Ok(());
        }
        match self.tty.write(&self.queue) {
            Ok(count) => {
                self.queue.drain(..count);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                reporter.fail("com2", format_args!("write: {error}"))?;
                return Err(Ended);
            }
        }
        Ok(())
    }

    fn receive(&mut self, reporter: &mut Reporter) -> Result<(), Ended> {
        let mut bytes = [0; 1024];
        let count = match self.tty.read(&mut bytes) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(error) => {
                reporter.fail("com2", format_args!("read: {error}"))?;
                return Err(Ended);
            }
        };
        for line in self.received.push(&bytes[..count]) {
            let (answer, sequence) = self.echo.answer(&line);
            if let Err(error) = sequence {
                reporter.fail("com2", error)?;
            }
            self.enqueue(&answer, reporter)?;
        }
        Ok(())
    }

    fn look_for_errors(&mut self, reporter: &mut Reporter) -> Result<(), Ended> {
        let errors = line_errors();
        let (wrong, lost) = (
            errors.0.saturating_sub(self.errors.0),
            errors.1.saturating_sub(self.errors.1),
        );
        self.errors = errors;
        if wrong > 0 {
            reporter.fail("com2", format_args!("{wrong} frame or parity errors"))?;
        }
        if lost > 0 {
            // Bytes that arrive while the guest stands still are lost on any machine.
            reporter.note("com2", format_args!("{lost} overruns or breaks"))?;
        }
        Ok(())
    }

    fn finish(&mut self) {
        // A port that doesn't send must not hold up the end of the guest for ever.
        let deadline = Instant::now() + std::time::Duration::from_secs(2);
        while !self.queue.is_empty() && Instant::now() < deadline {
            let mut fds = [PollFd::from_borrowed_fd(self.tty.as_fd(), PollFlags::OUT)];
            let left = deadline.saturating_duration_since(Instant::now());
            if poll(&mut fds, Some(&timespec(left))).is_err() {
                break;
            }
            match self.tty.write(&self.queue) {
                Ok(count) => {
                    self.queue.drain(..count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => break,
            }
        }
        let _unreportable = tcdrain(&self.tty);
    }
}
