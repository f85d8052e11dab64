//! The system calls: the one file of this program with `unsafe`.
//!
//! Descriptors are plain numbers here, as they must be for a program that closes them under threads that use them, and the
//! numbers that are closed are only those that [`open`] has returned or that were handed down, which nothing else in this
//! program owns.
//!
//! The kernel is given addresses of the [arena](crate::arena), where Rust has nothing, and addresses where nothing is.
//! Structures and arrays in the arena are read and written through `/proc/self/mem`, so that it does not matter what has
//! become of the memory meanwhile.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::num::NonZeroUsize;
use std::sync::atomic::AtomicU64;

use nix::errno::Errno;
use nix::libc;
use nix::sys::mman::{mmap_anonymous, MapFlags, ProtFlags};
use nix::sys::signal::{sigaction, SaFlags, SigAction, SigHandler, SigSet, Signal};
use nix::unistd::{ForkResult, Pid};

/// What a system call answers.
pub type Answer = Result<i64, Errno>;

fn answer(value: i64) -> Answer {
    if value == -1 {
        return Err(Errno::last());
    }
    Ok(value)
}

/// Opens a file for reading and writing.
pub fn open(path: &CStr) -> Result<i32, Errno> {
    // SAFETY: the path is a string with an end that outlives the call.
    Errno::result(unsafe { libc::open(path.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) })
}

/// Closes a descriptor that this program has from [`open`].
pub fn close(file: i32) {
    // SAFETY: the number belongs to this program's own table of devices (see the file's comment); an error means that
    // another thread was faster.
    unsafe { libc::close(file) };
}

/// A request. `argument` is an address of the arena, or one where nothing is.
pub fn ioctl(file: i32, request: u32, argument: u64) -> Answer {
    // SAFETY: the kernel accesses what `argument` points at, and what structures there point at: the arena, in which Rust
    // has no object, or nothing.
    answer(unsafe { libc::ioctl(file, request.into(), argument) }.into())
}

/// Reads up to `length` bytes to an address of the arena.
pub fn read(file: i32, to: u64, length: usize) -> Answer {
    // SAFETY: what is written lies in the arena.
    answer(unsafe { libc::read(file, to as *mut libc::c_void, length) } as i64)
}

/// Writes `length` bytes of the arena.
pub fn write(file: i32, from: u64, length: usize) -> Answer {
    // SAFETY: the kernel only reads.
    answer(unsafe { libc::write(file, from as *const libc::c_void, length) } as i64)
}

/// Moves the file's position.
pub fn seek(file: i32, to: i64, whence: i32) -> Answer {
    // SAFETY: takes numbers only.
    answer(unsafe { libc::lseek(file, to, whence) })
}

/// Asks for all events, without waiting.
pub fn poll(file: i32) -> Answer {
    let mut entry = libc::pollfd {
        fd: file,
        events: !0,
        revents: 0,
    };
    // SAFETY: one entry, which outlives the call.
    answer(unsafe { libc::poll(&mut entry, 1, 0) }.into())
}

/// Maps a file wherever the kernel likes, and unmaps it again.
pub fn map(file: i32, length: usize, protection: i32, flags: i32, offset: i64) -> Answer {
    // SAFETY: without MAP_FIXED nothing that exists is replaced. (`flags` are the caller's choice of MAP_SHARED,
    // MAP_PRIVATE, MAP_POPULATE and MAP_LOCKED.)
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            protection,
            flags & !libc::MAP_FIXED,
            file,
            offset,
        )
    };
    if at == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    // SAFETY: mapped above, and nobody else knows of it.
    unsafe { libc::munmap(at, length) };
    Ok(0)
}

/// Reserves address space of this length, with no access.
///
/// # Errors
/// That of the call.
pub fn reserve(length: usize) -> Result<u64, Errno> {
    let length = NonZeroUsize::new(length).ok_or(Errno::EINVAL)?;
    // SAFETY: a new mapping at a place that the kernel chooses.
    let at = unsafe {
        mmap_anonymous(
            None,
            length,
            ProtFlags::PROT_NONE,
            MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE,
        )?
    };
    Ok(at.as_ptr() as u64)
}

/// Puts another mapping at a place of the arena: of `file`, or of new memory.
pub fn map_at(at: u64, length: usize, protection: i32, flags: i32, file: Option<i32>) -> Answer {
    let anonymous = if file.is_none() {
        libc::MAP_ANONYMOUS
    } else {
        0
    };
    // SAFETY: what is replaced lies in the arena, in which Rust has no object.
    let got = unsafe {
        libc::mmap(
            at as *mut libc::c_void,
            length,
            protection,
            flags | anonymous | libc::MAP_FIXED,
            file.unwrap_or(-1),
            0,
        )
    };
    answer(if got == libc::MAP_FAILED { -1 } else { 0 })
}

/// Unmaps a part of the arena.
pub fn unmap(at: u64, length: usize) -> Answer {
    // SAFETY: Rust has no object there.
    answer(unsafe { libc::munmap(at as *mut libc::c_void, length) }.into())
}

/// Changes the rights of a part of the arena.
pub fn protect(at: u64, length: usize, protection: i32) -> Answer {
    // SAFETY: Rust has no object there.
    answer(unsafe { libc::mprotect(at as *mut libc::c_void, length, protection) }.into())
}

/// Advises the kernel of a part of the arena, which may lose its content by that.
pub fn advise(at: u64, length: usize, advice: i32) -> Answer {
    // SAFETY: Rust has no object there.
    answer(unsafe { libc::madvise(at as *mut libc::c_void, length, advice) }.into())
}

/// Counters that this process shares with those that it forks.
///
/// # Errors
/// That of the mapping.
pub fn shared_counters(count: usize) -> Result<&'static [AtomicU64], Errno> {
    let length = NonZeroUsize::new(count * size_of::<AtomicU64>()).ok_or(Errno::EINVAL)?;
    // SAFETY: a new mapping at a place that the kernel chooses, never unmapped; zeroed, which is a valid value, and only
    // accessed atomically, by whichever process.
    unsafe {
        let at = mmap_anonymous(
            None,
            length,
            ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
            MapFlags::MAP_SHARED,
        )?;
        Ok(std::slice::from_raw_parts(at.as_ptr().cast(), count))
    }
}

/// Makes a process that runs `body` and ends. Only for a process with one thread.
///
/// # Errors
/// That of the call.
pub fn fork(body: impl FnOnce() -> i32) -> Result<Pid, Errno> {
    // SAFETY: the caller has one thread, so that the new process has everything in a known state.
    match unsafe { nix::unistd::fork()? } {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let code = body();
            // SAFETY: ends the process at once, whatever it holds.
            unsafe { libc::_exit(code) }
        }
    }
}

/// Makes a process of one of several threads' own: it issues these requests and ends.
///
/// # Errors
/// That of the call.
pub fn fork_for_requests(
    requests: &[(i32, u32, u64)],
    mut note: impl FnMut(u32, Answer),
) -> Result<Pid, Errno> {
    // SAFETY: other threads may have held any lock, so the new process only makes system calls and, in `note`, adds to
    // shared counters, until it ends.
    match unsafe { nix::unistd::fork()? } {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            // SAFETY: takes numbers. The process must not outlive one that is killed.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            // SAFETY: takes a number; a guest that runs for ever is left after a second.
            unsafe { libc::alarm(1) };
            for (file, request, argument) in requests {
                note(*request, ioctl(*file, *request, *argument));
            }
            // SAFETY: ends the process at once.
            unsafe { libc::_exit(0) }
        }
    }
}

extern "C" fn nothing(_signal: i32) {}

/// Makes these signals interrupt system calls and do nothing else.
///
/// # Errors
/// That of the call.
pub fn let_signals_interrupt() -> Result<(), Errno> {
    let action = SigAction::new(
        SigHandler::Handler(nothing),
        SaFlags::empty(),
        SigSet::empty(),
    );
    for signal in [Signal::SIGUSR1, Signal::SIGALRM] {
        // SAFETY: the handler does nothing.
        unsafe { sigaction(signal, &action)? };
    }
    Ok(())
}

/// Protection: reading and writing.
pub const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;
