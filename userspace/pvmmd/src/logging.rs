// SPDX-License-Identifier: GPL-2.0
//! The log: lines on standard error, in the detail that `RUST_LOG` selects.

use std::io::IsTerminal;
use tracing_subscriber::filter::{EnvFilter, LevelFilter};

/// Sends this process's log to standard error. Once a process.
pub fn to_stderr() {
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .from_env_lossy();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        // It would report a log that cannot be written by writing there, and panic: on a full disk, any thread of a guest.
        .log_internal_errors(false)
        .init();
}
