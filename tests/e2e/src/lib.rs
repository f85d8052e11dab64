//! What all end-to-end tests share.
//!
//! A test is a function that gets a [`Lab`] and returns a result; [`on_lab`] gives it one and takes it
//! away again, keeping the consoles of its hosts if it fails.

#![forbid(unsafe_code)]

use std::error::Error;

pub mod guest;

use pvmm_lab::Lab;

/// Result of a test.
pub type TestResult = Result<(), Box<dyn Error>>;

/// Runs `test` on a lab of its own that holds at most `hosts` hosts at the same time.
///
/// Waits until the machine has a core for each of these hosts.
///
/// # Errors
/// Those of the lab and of the test; what a debug kernel has reported meanwhile.
pub fn on_lab(name: &str, hosts: usize, test: impl FnOnce(&Lab) -> TestResult) -> TestResult {
    let lab = Lab::with_room(name, hosts)?;
    test(&lab)?;
    if lab.is_debug() {
        let reports = lab.kernel_reports()?;
        if !reports.is_empty() {
            return Err(format!("kernels have reported:\n{}", reports.join("\n")).into());
        }
    }
    lab.finish();
    Ok(())
}

/// A number from the environment, or `default`.
///
/// # Errors
/// It isn't a number.
pub fn from_environment(name: &str, default: u64) -> Result<u64, Box<dyn Error>> {
    match std::env::var(name) {
        Ok(value) => Ok(value.parse()?),
        Err(_) => Ok(default),
    }
}
