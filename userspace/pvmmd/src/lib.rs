// SPDX-License-Identifier: GPL-2.0
//! pvmmd: one program that is the daemon (`pvmmd serve`) and its command line.
//!
//! The daemon ([`daemon`]) owns the guests, answers requests on the control socket and moves guests to and from peers; the
//! commands ([`commands`]) are clients of it. Both are a library so that tests can run daemons on a fake hypervisor.
#![forbid(unsafe_code)]

pub mod cert;
pub mod cli;
pub mod commands;
pub mod daemon;
pub mod logging;
