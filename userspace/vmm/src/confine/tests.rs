// SPDX-License-Identifier: GPL-2.0
//! The filters, in threads of this test program: each thread has its own.

use super::list::{Filter, OnMismatch};
use super::{daemon, refused, vcpu, Rule};
use nix::errno::Errno;
use nix::libc::{self, c_long};
use nix::sys::socket::{socket, AddressFamily, SockFlag, SockType};
use std::collections::BTreeSet;
use std::fs::File;

/// What `body` says in a thread with this filter.
fn under<T: Send + 'static>(
    list: &'static [&'static [Rule]],
    body: impl FnOnce() -> T + Send + 'static,
) -> T {
    refused::install().expect("a valid signal");
    let filter = Filter::new(list, OnMismatch::Refuse).expect("a valid list");
    let confined = move || {
        filter.apply().expect("this kernel filters system calls");
        body()
    };
    std::thread::spawn(confined).join().expect("no panic")
}

fn numbers(list: &[&[Rule]]) -> BTreeSet<c_long> {
    let rules = list.iter().copied().flatten();
    rules
        .flat_map(|rule| match rule {
            Rule::Any(numbers) => numbers.to_vec(),
            Rule::If(number, _) | Rule::OwnProcess(number) => vec![*number],
        })
        .collect()
}

#[test]
fn a_vcpu_needs_no_call_that_the_daemon_does_not() {
    let (all, vcpu) = (numbers(daemon::CALLS), numbers(vcpu::CALLS));
    assert!(vcpu.len() > 10);
    assert!(vcpu.is_subset(&all), "{:?}", vcpu.difference(&all));
    assert!(vcpu.len() < all.len() / 2);
}

#[test]
fn no_list_has_a_call_that_starts_programs_or_looks_into_others() {
    let dangerous = [
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_fork,
        libc::SYS_vfork,
        libc::SYS_ptrace,
        libc::SYS_process_vm_writev,
        libc::SYS_mount,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_setuid,
        libc::SYS_setresuid,
        libc::SYS_bpf,
        libc::SYS_io_uring_setup,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_kexec_load,
        libc::SYS_kill,
        libc::SYS_listen,
        libc::SYS_iopl,
        libc::SYS_ioperm,
    ];
    for list in [daemon::CALLS, vcpu::CALLS] {
        let numbers = numbers(list);
        for call in dangerous {
            assert!(!numbers.contains(&call), "{call}");
        }
    }
}

#[test]
fn the_daemon_opens_files_and_starts_threads_and_a_vcpu_does_not() {
    let open = || File::open("/dev/null").map(drop);
    under(daemon::CALLS, open).expect("the daemon may");
    let error = under(vcpu::CALLS, open).expect_err("a vCPU may not");
    assert_eq!(error.raw_os_error(), Some(libc::ENOSYS));
    let answer = under(daemon::CALLS, || std::thread::spawn(|| 5).join());
    assert_eq!(answer.expect("no panic"), 5);
}

#[test]
fn a_socket_is_of_a_family_that_guests_move_by() {
    let open =
        |family| move || socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).map(drop);
    for family in [AddressFamily::Unix, AddressFamily::Inet] {
        assert_eq!(under(daemon::CALLS, open(family)), Ok(()), "{family:?}");
    }
    for family in [
        AddressFamily::Packet,
        AddressFamily::Vsock,
        AddressFamily::Alg,
    ] {
        assert_eq!(
            under(daemon::CALLS, open(family)),
            Err(Errno::ENOSYS),
            "{family:?}"
        );
    }
    let any = open(AddressFamily::Unix);
    assert_eq!(under(vcpu::CALLS, any), Err(Errno::ENOSYS));
}
