// SPDX-License-Identifier: GPL-2.0
//! The system calls of the daemon, for all its threads.
//!
//! Found by reading what it does and by running the tests of `userspace/pvmmd` and `tests/e2e` under it, with Debian's
//! dynamic glibc and with the static one of the lab's hosts. Where libc has several calls for one purpose, all are here.
//!
//! Not here, on purpose: `execve`, `ptrace`, `mount`, `setns`, `unshare`, `setuid` and their kin, `listen` (it listens
//! before), `kill`, `bpf`, `io_uring_setup`, `userfaultfd`, `perf_event_open`, `keyctl`, `init_module`.

use super::list::{Argument, Rule};
use nix::libc::*;
use pvmm_uapi as uapi;

/// Flags of `clone` that make a thread of this process.
const THREAD: u32 = (CLONE_VM | CLONE_THREAD | CLONE_SIGHAND) as u32;
/// Flags of `clone` that make a namespace.
const NAMESPACES: u32 = (CLONE_NEWNS
    | CLONE_NEWCGROUP
    | CLONE_NEWUTS
    | CLONE_NEWIPC
    | CLONE_NEWUSER
    | CLONE_NEWPID
    | CLONE_NEWNET) as u32;
const EXEC: u32 = PROT_EXEC as u32;
const WRITE: u32 = PROT_WRITE as u32;
/// `prctl` that names a mapping (include/uapi/linux/prctl.h); libc does so when its tunables say so.
const PR_SET_VMA: u32 = 0x5356_4d41;

macro_rules! one_of {
    ($call:expr, $index:expr, [$($value:expr),* $(,)?]) => {
        [$(Rule::If($call, &[Argument::is($index, $value as u32)])),*]
    };
}

/// The requests of `/dev/pvmm`; RUN is looked for first.
const REQUESTS: &[Rule] = &one_of!(
    SYS_ioctl,
    1,
    [
        uapi::RUN,
        uapi::IRQ_LINE,
        uapi::GET_API_VERSION,
        uapi::GET_CAPABILITIES,
        uapi::GET_SUPPORTED_CPUID,
        uapi::CREATE_VM,
        uapi::SET_MEMORY_REGION,
        uapi::CREATE_VCPU,
        uapi::SET_CPUID,
        uapi::GET_VCPU_STATE,
        uapi::SET_VCPU_STATE,
        uapi::GET_CLOCK,
        uapi::SET_CLOCK,
        uapi::GET_CHIPSET_STATE,
        uapi::SET_CHIPSET_STATE,
        uapi::DIRTY_LOG,
        uapi::DIRTY_FETCH,
        uapi::ATTACH_DEVICE,
        uapi::DEVICE_CAPTURE,
        uapi::DEVICE_EXECUTE,
        uapi::DEVICE_PEEK,
        uapi::DEVICE_TRACE,
        // Sockets that do not block, and whether a file is a terminal.
        FIONBIO,
        TCGETS,
    ]
);

/// Files: kernels, console logs, keys, `/sys`, `/proc/meminfo`, and what libc reads to look up a name.
const FILES: &[Rule] = &[
    Rule::Any(&[
        SYS_open,
        SYS_openat,
        SYS_read,
        SYS_readv,
        SYS_pread64,
        SYS_write,
        SYS_writev,
        SYS_pwrite64,
        SYS_lseek,
        SYS_close,
        SYS_stat,
        SYS_lstat,
        SYS_fstat,
        SYS_newfstatat,
        SYS_statx,
        SYS_access,
        SYS_faccessat,
        SYS_faccessat2,
        SYS_readlink,
        SYS_readlinkat,
        SYS_getdents64,
        SYS_getcwd,
        // Notes of taken ports; the control socket at the end.
        SYS_mkdir,
        SYS_mkdirat,
        SYS_unlink,
        SYS_unlinkat,
        // Guest memory.
        SYS_memfd_create,
        SYS_ftruncate,
    ]),
    Rule::If(SYS_fcntl, &[Argument::is(1, F_DUPFD_CLOEXEC as u32)]),
    Rule::If(SYS_fcntl, &[Argument::is(1, F_GETFD as u32)]),
    Rule::If(SYS_fcntl, &[Argument::is(1, F_SETFD as u32)]),
    Rule::If(SYS_fcntl, &[Argument::is(1, F_GETFL as u32)]),
    Rule::If(SYS_fcntl, &[Argument::is(1, F_SETFL as u32)]),
];

/// Clients and peers. No new place to listen at.
const SOCKETS: &[Rule] = &[
    Rule::If(SYS_socket, &[Argument::is(0, AF_UNIX as u32)]),
    Rule::If(SYS_socket, &[Argument::is(0, AF_INET as u32)]),
    Rule::If(SYS_socket, &[Argument::is(0, AF_INET6 as u32)]),
    // libc asks there for the host's addresses to sort a peer's by.
    Rule::If(
        SYS_socket,
        &[
            Argument::is(0, AF_NETLINK as u32),
            Argument::is(2, NETLINK_ROUTE as u32),
        ],
    ),
    Rule::Any(&[
        SYS_bind,
        SYS_connect,
        SYS_accept,
        SYS_accept4,
        SYS_shutdown,
        SYS_getsockname,
        SYS_getpeername,
        SYS_getsockopt,
        SYS_setsockopt,
        SYS_sendto,
        SYS_sendmsg,
        SYS_sendmmsg,
        SYS_recvfrom,
        SYS_recvmsg,
        SYS_poll,
        SYS_ppoll,
    ]),
];

/// Memory. What can be written cannot be run; libraries that libc loads to look up a name are mapped to be run.
const MEMORY: &[Rule] = &[
    Rule::Any(&[SYS_brk, SYS_munmap, SYS_mremap, SYS_madvise]),
    Rule::If(SYS_mmap, &[Argument::bits(2, EXEC, 0)]),
    Rule::If(SYS_mmap, &[Argument::bits(2, WRITE, 0)]),
    Rule::If(SYS_mprotect, &[Argument::bits(2, EXEC, 0)]),
];

/// Threads, their locks, signals and time.
const THREADS: &[Rule] = &[
    Rule::If(SYS_clone, &[Argument::bits(0, THREAD | NAMESPACES, THREAD)]),
    Rule::Any(&[
        // Answered by ENOSYS: see `Filter::new`.
        SYS_clone3,
        SYS_futex,
        SYS_set_robust_list,
        SYS_rseq,
        SYS_gettid,
        SYS_getpid,
        SYS_sched_yield,
        SYS_sched_getaffinity,
        SYS_exit,
        SYS_exit_group,
        SYS_rt_sigaction,
        SYS_rt_sigprocmask,
        SYS_rt_sigreturn,
        SYS_rt_sigtimedwait,
        SYS_sigaltstack,
        SYS_restart_syscall,
        SYS_clock_gettime,
        SYS_clock_getres,
        SYS_gettimeofday,
        SYS_time,
        SYS_nanosleep,
        SYS_clock_nanosleep,
        SYS_getrandom,
    ]),
    // The kick of a vCPU's thread, and `abort`.
    Rule::OwnProcess(SYS_tgkill),
    Rule::If(SYS_prctl, &[Argument::is(0, PR_SET_NAME as u32)]),
    Rule::If(SYS_prctl, &[Argument::is(0, PR_SET_VMA)]),
    // A vCPU's thread gives up more.
    Rule::If(SYS_prctl, &[Argument::is(0, PR_SET_NO_NEW_PRIVS as u32)]),
    Rule::If(SYS_seccomp, &[Argument::is(0, SECCOMP_SET_MODE_FILTER)]),
];

/// What libc asks of the system for its own decisions: stacks, arenas, sorting, names.
const LIBC: &[Rule] = &[
    Rule::Any(&[
        SYS_getrlimit,
        SYS_sysinfo,
        SYS_uname,
        SYS_getuid,
        SYS_geteuid,
        SYS_getgid,
        SYS_getegid,
        SYS_getcpu,
    ]),
    // Its own limits, which it only reads.
    Rule::If(SYS_prlimit64, &[Argument::is(0, 0), Argument::null(2)]),
];

/// The list.
pub const CALLS: &[&[Rule]] = &[REQUESTS, FILES, SOCKETS, MEMORY, THREADS, LIBC];
