//! A checker as PID 1 sees it: a child process with a pipe in each direction.
//!
//! On the path: a checker is a process of its own so that a guest that breaks in one place (a page
//! of code lost, a register wrong) still can say so.
#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use pvmm_guest::echo::LineBuffer;
use pvmm_guest::message::{Message, MessageError, Order, Stat};

use crate::checkers::Role;
use crate::report::read_lines;

/// How far a checker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Setting itself up.
    Starting,
    /// At work.
    Ready,
    /// Its process has ended, or its end was not noticed otherwise but its pipe is closed.
    Ended,
}

/// One checker.
pub struct Checker {
    /// What it checks.
    pub role: Role,
    /// How far it is.
    pub state: State,
    /// What it has done so far.
    pub stat: Stat,
    /// When it was heard of last.
    pub heard: Instant,
    child: Child,
    orders: Option<ChildStdin>,
    output: ChildStdout,
    lines: LineBuffer,
}

impl Checker {
    /// Starts it.
    ///
    /// # Errors
    /// No process could be made.
    pub fn start(role: Role) -> io::Result<Self> {
        let mut child = Command::new("/proc/self/exe")
            .args(role.arguments())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let orders = child.stdin.take();
        let output = child
            .stdout
            .take()
            .ok_or_else(|| io::Error::other("the child has no standard output"))?;
        Ok(Checker {
            role,
            state: State::Starting,
            stat: Stat::default(),
            heard: Instant::now(),
            child,
            orders,
            output,
            lines: LineBuffer::default(),
        })
    }

    /// What to poll for messages, as long as there can be any.
    pub fn input(&self) -> Option<BorrowedFd<'_>> {
        (self.state != State::Ended).then(|| self.output.as_fd())
    }

    /// Reads messages; to be called when there are some, or it blocks. At the end of the pipe the
    /// checker is [`State::Ended`].
    pub fn messages(&mut self) -> Vec<Result<Message, MessageError>> {
        self.heard = Instant::now();
        let Ok(Some(lines)) = read_lines(&mut self.output, &mut self.lines) else {
            self.state = State::Ended;
            return Vec::new();
        };
        lines.iter().map(|line| line.parse()).collect()
    }

    /// Gives an order; false if the checker can't take one any more.
    pub fn order(&mut self, order: Order) -> bool {
        let line = format!("{order}\n");
        self.orders
            .as_mut()
            .is_some_and(|pipe| pipe.write_all(line.as_bytes()).is_ok())
    }

    /// Tells it to end, by closing the pipe.
    pub fn dismiss(&mut self) {
        self.orders = None;
    }

    /// Waits for its process to end, at most `limit`, then ends it by force; how it ended.
    pub fn reap(&mut self, limit: Duration) -> String {
        let deadline = Instant::now() + limit;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return status.to_string(),
                Ok(None) if Instant::now() < deadline => {
                    // Nothing tells of a child's end without a signal handler; it is near.
                    std::thread::sleep(Duration::from_millis(10));
                }
                Ok(None) => {
                    let killed = self.child.kill().and_then(|()| self.child.wait());
                    return match killed {
                        Ok(status) => format!("killed: {status}"),
                        Err(error) => error.to_string(),
                    };
                }
                Err(error) => return error.to_string(),
            }
        }
    }
}
