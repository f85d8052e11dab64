// SPDX-License-Identifier: GPL-2.0
//! What can go wrong with a virtual machine in userspace. Each message says what failed and what to do.

use crate::hypervisor::HypervisorError;
use std::path::PathBuf;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// The module refused something.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    /// A guest cannot have this much memory.
    #[error("a guest cannot have {size} bytes of memory; give a multiple of 4 KiB from 4 MiB to 1 TiB, such as 128M")]
    MemorySize {
        /// The size asked for.
        size: u64,
    },
    /// Memory could not be mapped.
    #[error("cannot map {size} bytes of guest memory: {reason}; give the guest less or free memory on the host")]
    Memory {
        /// The size asked for.
        size: u64,
        /// The system's reason.
        reason: String,
    },
    /// An access is not inside guest memory.
    #[error("{length} bytes at guest-physical {gpa:#x} are not all guest memory")]
    GuestAddress {
        /// First address.
        gpa: u64,
        /// Length in bytes.
        length: usize,
    },
    /// A file could not be read.
    #[error("cannot read {path}: {reason}{}", whose_right(.reason))]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        reason: std::io::Error,
    },
    /// The kernel image is not one that can be booted.
    #[error("{path} cannot be booted: {reason}")]
    Kernel {
        /// The file.
        path: PathBuf,
        /// What is wrong with it and what would be right.
        reason: String,
    },
    /// Something does not fit into the guest's memory.
    #[error("{what} needs {needed} bytes, but the guest's memory has no room for it; give it more than {memory} bytes")]
    NoRoom {
        /// What.
        what: &'static str,
        /// Its size in bytes.
        needed: u64,
        /// The guest's memory in bytes.
        memory: u64,
    },
    /// The command line is too long.
    #[error("the kernel command line has {length} bytes; this kernel takes at most {limit}")]
    CommandLine {
        /// Its length.
        length: usize,
        /// The kernel's limit.
        limit: usize,
    },
    /// A host device could not be taken from the host.
    #[error("cannot give port {port:#x} to a guest: {reason}")]
    HostDevice {
        /// Its first port.
        port: u16,
        /// Why, and what to do.
        reason: String,
    },
    /// The vCPU's thread did not react.
    #[error("the vCPU did not {action} within {seconds} s; see the kernel log")]
    VcpuStuck {
        /// What it was asked to do.
        action: &'static str,
        /// The limit.
        seconds: u64,
    },
    /// The guest has ended.
    #[error("the guest has ended ({reason})")]
    Ended {
        /// How it ended.
        reason: String,
    },
    /// Saved state of a userspace device does not fit.
    #[error("the state of {device} cannot be used: {reason}")]
    DeviceState {
        /// The device.
        device: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
}

/// What to do about a file that may not be read, as the end of a sentence.
fn whose_right(reason: &std::io::Error) -> &'static str {
    match reason.kind() {
        std::io::ErrorKind::PermissionDenied => {
            "; pvmmd reads only what the user may who runs it, also if that is root: give the file to him or let all read it"
        }
        _ => "",
    }
}
