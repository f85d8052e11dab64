//! COM1: lines of the verifier go out, commands come in.
//!
//! On the path this is the guest's first serial port, whose transmitter, receiver and interrupt are
//! moved with the guest. Only PID 1 writes here, always a whole line with one write(2).
#![forbid(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use pvmm_guest::echo::LineBuffer;
use rustix::fs::OFlags;
use rustix::termios::{tcdrain, tcgetattr, tcsetattr, LocalModes, OptionalActions};

use crate::boot;

/// The port and the part of a line that was typed so far.
pub struct Console {
    tty: File,
    typed: LineBuffer,
    input_open: bool,
}

impl Console {
    /// Opens COM1, or, where there is none, the kernel's console. Its speed stays the kernel's.
    ///
    /// # Errors
    /// No console can be opened.
    pub fn open() -> io::Result<Self> {
        let path = if boot::has_uart("ttyS0") {
            "/dev/ttyS0"
        } else {
            "/dev/console"
        };
        let tty = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlags::NOCTTY.bits() as i32)
            .open(path)?;
        // What is typed is not echoed: it would end up in the middle of a line of ours.
        if let Ok(mut modes) = tcgetattr(&tty) {
            modes.local_modes.remove(LocalModes::ECHO);
            tcsetattr(&tty, OptionalActions::Now, &modes)?;
        }
        Ok(Console {
            tty,
            typed: LineBuffer::default(),
            input_open: true,
        })
    }

    /// Writes one line. A console that fails can't be reported anywhere, so it is not.
    pub fn line(&mut self, text: &str) {
        let _unreportable = self.tty.write_all(format!("{text}\n").as_bytes());
    }

    /// Lines typed; to be called when the port is readable, or it blocks.
    pub fn typed(&mut self) -> Vec<String> {
        let mut bytes = [0; 256];
        match self.tty.read(&mut bytes) {
            Ok(0) => self.input_open = false,
            Ok(count) => return self.typed.push(&bytes[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => self.input_open = false,
        }
        Vec::new()
    }

    /// What to poll for input, unless it has ended.
    pub fn input(&self) -> Option<BorrowedFd<'_>> {
        self.input_open.then(|| self.tty.as_fd())
    }

    /// Waits until everything written has left the port.
    pub fn drain(&self) {
        let _unreportable = tcdrain(&self.tty);
    }
}
