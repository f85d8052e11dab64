// SPDX-License-Identifier: GPL-2.0
//! What the process gives up once its sockets are open: capabilities, the way back to them, and system calls.
//!
//! [`enter`] comes before the first thread is started and the first request is answered: capabilities and filters belong to
//! a thread, and a thread that is started later inherits them. A vCPU's thread, the one nearest to the guest, then gives up
//! more ([`vcpu_thread`]).
//!
//! | given up | when | what stays, and why |
//! |---|---|---|
//! | gaining privileges by `execve` | always | nothing: the daemon starts no program |
//! | capabilities | if it has some | none: see below |
//! | system calls | `Seccomp::Enforce` | [`daemon`]'s list, for vCPU threads [`vcpu`]'s |
//! | the user | never | root owns `/dev/pvmm`, `/sys/bus/*/drivers/*/{un,}bind` and the keys |
//!
//! No capability is left, since everything that the daemon opens later it opens as the owner of the file:
//!
//! | capability | what might want it | why not |
//! |---|---|---|
//! | `CAP_SYS_RAWIO` | ports and interrupts of a passed-through device | the module claims them; it asks for no capability, only for the right to open its file |
//! | `CAP_SYS_ADMIN` | `unbind` and `bind` of the host's serial driver | these files are written by their owner, root; the driver core checks nothing else |
//! | `CAP_IPC_LOCK`, `CAP_SYS_RESOURCE` | guest memory | it is neither locked nor pinned |
//! | `CAP_SYS_NICE` | vCPU threads | they run with the priority that the daemon was started with |
//! | `CAP_KILL` | the kick of a vCPU's thread | a thread of the same process |
//! | `CAP_NET_BIND_SERVICE`, `CAP_CHOWN` | ports below 1024, `--socket-group` | needed before this, no more after |
//! | `CAP_DAC_OVERRIDE`, `CAP_DAC_READ_SEARCH`, `CAP_FOWNER` | kernels, console logs and keys that belong to others | those who may use the control socket could have the daemon read what they may not: it reads and writes only what its user may |
//!
//! A daemon that was started by another user, with a right to `/dev/pvmm`, has no capabilities to give up. Without
//! `CAP_SETPCAP` the bounding set cannot be cleared; it bounds nothing then that could still be gained.
//!
//! # A system call that is on no list
//!
//! It is not carried out and fails with `ENOSYS`, as on a kernel that does not have it, and the log says its number and
//! arguments ([`refused`]). Firecracker and Cloud Hypervisor end the process instead. That protects no better, since
//! what is refused has no effect either way, and here the process is many guests: a libc of next year that tries a new call
//! first, and falls back to the old one when it gets `ENOSYS`, must not end them. A panic, too, says what it has to say,
//! although its backtrace finds no files in a vCPU's thread. Only a call that libc makes while it blocks all signals, such as
//! that of `posix_spawn`, ends the process by `SIGSYS` (and is in the kernel's log): the kernel cannot tell us of it. Calls of
//! another architecture's table end it, too.

mod capabilities;
pub mod daemon;
mod list;
pub mod refused;
#[cfg(test)]
mod tests;
pub mod vcpu;

pub use capabilities::CapabilitySet;
pub use list::{Argument, Rule};

use list::{Filter, OnMismatch};
use std::io;
use std::sync::OnceLock;

/// What is done about system calls that the daemon does not need.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Seccomp {
    /// They fail, and the log names them.
    #[default]
    Enforce,
    /// They work, and the kernel's log names them.
    Log,
    /// They work.
    Off,
}

/// Why the process cannot be confined.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// Privileges cannot be given up.
    #[error("cannot give up {what}: {reason}")]
    Privileges {
        /// Which.
        what: &'static str,
        /// The system's reason.
        reason: io::Error,
    },
    /// The system calls cannot be filtered.
    #[error("cannot filter system calls: {0}; --seccomp=off does without it")]
    Filter(seccompiler::Error),
    /// Nothing would say which call was refused.
    #[error("cannot install the handler that names refused system calls: {0}; --seccomp=off does without it")]
    Handler(io::Error),
}

/// The filter of vCPU threads, if there is one.
static VCPU: OnceLock<Filter> = OnceLock::new();

/// Gives up, for this thread and those that it starts, what the daemon does not need when its sockets are open. Says so in
/// the log. Once a process.
///
/// # Errors
///
/// Something cannot be given up. What came before it in the module's table is gone.
pub fn enter(seccomp: Seccomp) -> Result<(), ConfineError> {
    rustix::thread::set_no_new_privs(true).map_err(|reason| ConfineError::Privileges {
        what: "gaining privileges",
        reason: reason.into(),
    })?;
    let gone = capabilities::drop_all()?;
    let capabilities = match gone.is_empty() {
        true => "none were there",
        false => "all",
    };
    let on_mismatch = match seccomp {
        Seccomp::Enforce => OnMismatch::Refuse,
        Seccomp::Log => OnMismatch::Log,
        Seccomp::Off => {
            tracing::warn!(capabilities, seccomp = "off", "privileges are given up");
            return Ok(());
        }
    };
    let filter = Filter::new(daemon::CALLS, on_mismatch)?;
    let vcpu = Filter::new(vcpu::CALLS, on_mismatch)?;
    refused::install().map_err(ConfineError::Handler)?;
    match filter.apply() {
        Ok(()) => {
            // This is the only place, and it is reached once; a second filter would only be narrower.
            let _ = VCPU.set(vcpu);
            tracing::info!(
                capabilities,
                ?seccomp,
                calls = filter.calls(),
                "privileges are given up"
            );
            Ok(())
        }
        Err(error) if is_unknown(&error) => {
            tracing::warn!(
                capabilities,
                "privileges are given up, except system calls: this kernel cannot filter them (CONFIG_SECCOMP_FILTER)"
            );
            Ok(())
        }
        Err(error) => Err(ConfineError::Filter(error)),
    }
}

/// Gives up what a vCPU's thread does not need, if the process is confined. Called by the thread.
///
/// # Errors
///
/// It is confined, but this thread cannot be.
pub fn vcpu_thread() -> Result<(), ConfineError> {
    match VCPU.get() {
        Some(filter) => filter.apply().map_err(ConfineError::Filter),
        None => Ok(()),
    }
}

/// Whether an error means that the kernel has no filters.
fn is_unknown(error: &seccompiler::Error) -> bool {
    use nix::libc::{EINVAL, ENOSYS};
    match error {
        seccompiler::Error::Prctl(reason) | seccompiler::Error::Seccomp(reason) => {
            matches!(reason.raw_os_error(), Some(EINVAL | ENOSYS))
        }
        _ => false,
    }
}
