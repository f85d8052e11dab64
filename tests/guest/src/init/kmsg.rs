//! The messages of the guest's kernel, read as they come.
//!
//! On the path: see `kernel_log` in the library, which judges them.
#![forbid(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use pvmm_guest::kernel_log::Record;
use rustix::fs::OFlags;

/// `/dev/kmsg`, from the first message of the boot.
pub struct KernelLog {
    file: File,
}

impl KernelLog {
    /// Opens it.
    ///
    /// # Errors
    /// The kernel has none.
    pub fn open() -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(OFlags::NONBLOCK.bits() as i32)
            .open("/dev/kmsg")?;
        Ok(KernelLog { file })
    }

    /// The next message, if there is one.
    ///
    /// # Errors
    /// A broken pipe if messages were overwritten before they were read; reading goes on behind
    /// them. Others: `/dev/kmsg` is of no use any more.
    pub fn next(&mut self) -> io::Result<Option<Record>> {
        // One read returns one message; they are at most 8 KiB (CONSOLE_EXT_LOG_MAX).
        let mut bytes = [0; 8192];
        loop {
            match self.file.read(&mut bytes) {
                Ok(count) => {
                    let text = String::from_utf8_lossy(&bytes[..count]);
                    if let Some(record) = Record::parse(&text) {
                        return Ok(Some(record));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// What to poll for new messages.
    pub fn input(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
