// SPDX-License-Identifier: GPL-2.0
//! What the conformance suite cannot see through the host ABI, shown for the simulated host: failures and events on request,
//! and that misuse is found.
#![forbid(unsafe_code)]

mod cpu;
mod dev;
mod mem;
mod process;

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

/// Longer than any step takes; a test that reaches it fails.
const LIMIT: Duration = Duration::from_secs(20);

/// A lock of the test's own.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder panics")
}
