// SPDX-License-Identifier: GPL-2.0
//! The system calls of a vCPU's thread: of those of the daemon, what running a guest and answering its accesses takes.
//!
//! It opens nothing, connects to nobody, starts nothing, and writes nowhere but to the log. A guest that got hold of this
//! thread would find the guests' memory, which is mapped, and the module's two requests.

use super::list::{Argument, Rule};
use nix::libc::*;
use pvmm_uapi as uapi;

/// Where the log goes.
const LOG: Argument = Argument::is(0, STDERR_FILENO as u32);
const EXEC: u32 = PROT_EXEC as u32;

/// The list.
pub const CALLS: &[&[Rule]] = &[&[
    Rule::If(SYS_ioctl, &[Argument::is(1, uapi::RUN)]),
    // A userspace device interrupts.
    Rule::If(SYS_ioctl, &[Argument::is(1, uapi::IRQ_LINE)]),
    // The locks that it shares with those who pause it and who read the console.
    Rule::Any(&[SYS_futex, SYS_sched_yield]),
    // The kick, and what it has interrupted.
    Rule::Any(&[SYS_rt_sigreturn, SYS_rt_sigprocmask, SYS_restart_syscall]),
    // The RTC, the log's time stamps, and waiting for VT-x.
    Rule::Any(&[
        SYS_clock_gettime,
        SYS_gettimeofday,
        SYS_nanosleep,
        SYS_clock_nanosleep,
    ]),
    Rule::If(SYS_write, &[LOG]),
    Rule::If(SYS_writev, &[LOG]),
    // Seeds of hash tables and of the allocator.
    Rule::Any(&[SYS_getrandom]),
    // The allocator.
    Rule::Any(&[SYS_brk, SYS_munmap, SYS_mremap, SYS_madvise]),
    Rule::If(SYS_mmap, &[Argument::bits(2, EXEC, 0)]),
    Rule::If(SYS_mprotect, &[Argument::bits(2, EXEC, 0)]),
    // Its last use of the virtual machine's files may be the last of all.
    Rule::Any(&[SYS_close]),
    Rule::If(SYS_fcntl, &[Argument::is(1, F_GETFD as u32)]),
    // Its end, and that of the process by `abort`.
    Rule::Any(&[
        SYS_exit,
        SYS_exit_group,
        SYS_sigaltstack,
        SYS_rt_sigaction,
        SYS_gettid,
        SYS_getpid,
    ]),
    Rule::OwnProcess(SYS_tgkill),
]];
