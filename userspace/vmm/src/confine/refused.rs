// SPDX-License-Identifier: GPL-2.0
//! What happens when a filter refuses a system call: the kernel sends SIGSYS to the thread instead of carrying the call out
//! (`SECCOMP_RET_TRAP`, seccomp(2)), and the handler here names the call in the log and lets it fail with `ENOSYS`.
//!
//! Each call is named once a process: a libc that always tries it first would fill the log.
//!
//! Beside [`crate::ioctl`] the one file of this crate with `unsafe`: a handler's arguments are raw, and the call's result is
//! set in the thread's saved registers.
#![allow(unsafe_code)]

use nix::libc::{c_int, c_void, siginfo_t, ucontext_t, ENOSYS, SIGSYS};
use nix::libc::{REG_RAX, REG_RDI, REG_RDX, REG_RSI};
use std::fmt::{self, Write};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use vmm_sys_util::signal::{register_signal_handler, unblock_signal};

/// `si_code` of a refused call (include/uapi/asm-generic/siginfo.h).
const SYS_SECCOMP: c_int = 1;
/// Calls with larger numbers are named every time.
const NUMBERS: usize = 1024;

/// The calls that have been named.
static NAMED: [AtomicU64; NUMBERS / 64] = [const { AtomicU64::new(0) }; NUMBERS / 64];

/// Installs the handler, and lets its signal through in this thread and those that it will start.
///
/// # Errors
///
/// The system's.
pub fn install() -> io::Result<()> {
    register_signal_handler(SIGSYS, refused)?;
    // Whoever started this process may have blocked it; a call that is refused then would end the process.
    match unblock_signal(SIGSYS) {
        Ok(()) => Ok(()),
        Err(error) => Err(io::Error::other(error.to_string())),
    }
}

/// Only what is allowed in a signal handler (signal-safety(7)): no allocation, no lock.
extern "C" fn refused(_signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid `siginfo_t` to a handler with SA_SIGINFO, which lives until the handler returns.
    let code = unsafe { (*info).si_code };
    if code != SYS_SECCOMP {
        // Somebody's `kill`.
        return;
    }
    // SAFETY: with SA_SIGINFO the third argument is the interrupted thread's `ucontext_t` (sigaction(2)), on its stack and
    // used by nobody else until the handler returns.
    let registers = unsafe { &mut (*context.cast::<ucontext_t>()).uc_mcontext.gregs };
    let [Some(number), Some(first), Some(second), Some(third)] =
        [REG_RAX, REG_RDI, REG_RSI, REG_RDX].map(|register| {
            let index = usize::try_from(register).ok()?;
            registers.get(index).copied()
        })
    else {
        return;
    };
    if is_new(number) {
        let mut line = Line::default();
        // It is cut at worst.
        let _ = writeln!(
            line,
            "pvmmd: refused system call {number} (arguments {first:#x} {second:#x} {third:#x}; thread {}): it is on no list \
             of what pvmmd needs, and fails with ENOSYS. If something does not work now, report this line; --seccomp=log does \
             without the refusal",
            rustix::thread::gettid()
        );
        // It may be closed or full; there is nothing else to say it to.
        let _ = nix::unistd::write(io::stderr(), line.text());
    }
    // The kernel has left the call's number there (arch/x86, `syscall_rollback`); this is what the call returns.
    if let Some(result) = usize::try_from(REG_RAX)
        .ok()
        .and_then(|index| registers.get_mut(index))
    {
        *result = -i64::from(ENOSYS);
    }
}

/// Whether a call has not been named yet. From now on it has.
fn is_new(number: i64) -> bool {
    let named = usize::try_from(number)
        .ok()
        .and_then(|number| Some((NAMED.get(number / 64)?, 1_u64 << (number % 64))));
    match named {
        Some((word, bit)) => word.fetch_or(bit, Ordering::Relaxed) & bit == 0,
        None => true,
    }
}

/// Text without an allocator.
struct Line {
    bytes: [u8; 400],
    length: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            bytes: [0; 400],
            length: 0,
        }
    }
}

impl Line {
    fn text(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.length.saturating_add(text.len());
        let room = self.bytes.get_mut(self.length..end).ok_or(fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.length = end;
        Ok(())
    }
}
