//! PID 1 as a checker sees it: findings go to standard output, orders come from standard input.
//!
//! On the path: see `message` in the library.
#![forbid(unsafe_code)]

use std::fmt::Display;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use pvmm_guest::echo::LineBuffer;
use pvmm_guest::message::{Detail, Message, Order, Stat};
use rustix::event::{poll, PollFd, PollFlags, Timespec};

/// A checker ends when PID 1 has closed a pipe, which is how PID 1 tells it to.
#[derive(Debug)]
pub struct Ended;

/// A checker's connection with PID 1.
pub struct Reporter {
    lines: LineBuffer,
    period: Duration,
    next_stat: Instant,
}

impl Reporter {
    /// Statistics are sent every `period`.
    pub fn new(period: Duration) -> Self {
        Reporter {
            lines: LineBuffer::default(),
            period,
            next_stat: Instant::now(),
        }
    }

    /// Sends a message.
    ///
    /// # Errors
    /// PID 1 doesn't listen any more.
    pub fn send(&mut self, message: &Message) -> Result<(), Ended> {
        io::stdout()
            .write_all(format!("{message}\n").as_bytes())
            .map_err(|_| Ended)
    }

    /// A check failed.
    ///
    /// # Errors
    /// As [`Reporter::send`].
    pub fn fail(&mut self, what: &str, detail: impl Display) -> Result<(), Ended> {
        self.send(&Message::Fail(Detail::new(what, detail)))
    }

    /// Something is worth knowing.
    ///
    /// # Errors
    /// As [`Reporter::send`].
    pub fn note(&mut self, what: &str, detail: impl Display) -> Result<(), Ended> {
        self.send(&Message::Note(Detail::new(what, detail)))
    }

    /// Sends the statistics if it is time to.
    ///
    /// # Errors
    /// As [`Reporter::send`].
    pub fn stat(&mut self, stat: Stat) -> Result<(), Ended> {
        let now = Instant::now();
        if now < self.next_stat {
            return Ok(());
        }
        self.next_stat = now + self.period;
        self.send(&Message::Stat(stat))
    }

    /// What to poll for orders.
    pub fn input(&self) -> OrderInput {
        OrderInput(io::stdin())
    }

    /// Reads orders; to be called when there are some, or it blocks.
    ///
    /// # Errors
    /// PID 1 closed the pipe.
    pub fn orders(&mut self) -> Result<Vec<Order>, Ended> {
        let mut bytes = [0; 256];
        // Unbuffered: what a buffer holds can't be polled for. The lock's buffer is always empty
        // as nobody reads by it.
        let count = rustix::io::read(io::stdin().as_fd(), &mut bytes).map_err(|_| Ended)?;
        if count == 0 {
            return Err(Ended);
        }
        let mut orders = Vec::new();
        for line in self.lines.push(&bytes[..count]) {
            match line.parse() {
                Ok(order) => orders.push(order),
                Err(error) => self.fail("checker", error)?,
            }
        }
        Ok(orders)
    }

    /// Waits until there is an order or `limit` is over; the orders.
    ///
    /// # Errors
    /// As [`Reporter::orders`].
    pub fn wait(&mut self, limit: Duration) -> Result<Vec<Order>, Ended> {
        let input = self.input();
        let mut fds = [PollFd::from_borrowed_fd(input.fd(), PollFlags::IN)];
        match poll(&mut fds, Some(&timespec(limit))) {
            Ok(0) | Err(rustix::io::Errno::INTR) => Ok(Vec::new()),
            Ok(_) => self.orders(),
            Err(_) => Err(Ended),
        }
    }
}

/// Standard input, to be polled.
pub struct OrderInput(io::Stdin);

impl OrderInput {
    /// Its descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A duration for the kernel; longer than it can express is the longest possible.
pub fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}

/// When to do again what was due at `due` and is to be done every `period`. What was missed while
/// the guest stood still isn't made up for.
pub fn following(due: Instant, now: Instant, period: Duration) -> Instant {
    let next = due + period;
    if next > now {
        next
    } else {
        now + period
    }
}

/// Puts what `read` returns into the buffer's lines.
pub fn read_lines(mut input: impl Read, lines: &mut LineBuffer) -> io::Result<Option<Vec<String>>> {
    let mut bytes = [0; 4096];
    match input.read(&mut bytes) {
        Ok(0) => Ok(None),
        Ok(count) => Ok(Some(lines.push(&bytes[..count]))),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Some(Vec::new())),
        Err(error) => Err(error),
    }
}
