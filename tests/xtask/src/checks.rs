//! The results of `cargo xtask test`, counted.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use pvmm_lab::progress::Step;

use crate::error::{start, Result};

/// What has passed and what hasn't.
#[derive(Debug, Default)]
pub struct Checks {
    passed: usize,
    failed: Vec<String>,
}

impl Checks {
    /// Runs one check, which says whether it passed.
    ///
    /// An error counts as a failure and doesn't stop the checks behind it.
    pub fn check(&mut self, name: &str, usually: &str, check: impl FnOnce() -> Result<bool>) {
        let step = Step::begin(name, usually);
        match check() {
            Ok(true) => {
                self.passed += 1;
                step.done();
            }
            Ok(false) => self.failed.push(name.to_owned()),
            Err(e) => {
                eprintln!("error: {e}");
                self.failed.push(name.to_owned());
            }
        }
    }

    /// Runs one command as a check.
    pub fn command(&mut self, name: &str, usually: &str, command: &mut Command) {
        self.check(name, usually, || {
            Ok(command.status().map_err(start("cargo"))?.success())
        });
    }

    /// Runs a command that runs tests, and counts those.
    ///
    /// A command that succeeds without having run a test is a failure: a set of tests that is empty
    /// by mistake passes for ever.
    pub fn tests(&mut self, name: &str, usually: &str, command: &mut Command) {
        let step = Step::begin(name, usually);
        match count(command) {
            Ok((true, passed, failed)) if passed > 0 && failed.is_empty() => {
                self.passed += passed;
                step.done();
            }
            Ok((success, passed, failed)) => {
                self.passed += passed;
                if failed.is_empty() {
                    let why = if success {
                        "ran no test"
                    } else {
                        "ended with an error"
                    };
                    self.failed.push(format!("{name}: {why}"));
                }
                self.failed.extend(failed);
            }
            Err(e) => {
                eprintln!("error: {e}");
                self.failed.push(name.to_owned());
            }
        }
    }

    /// Counts something that couldn't even be tried.
    pub fn fail(&mut self, name: &str) {
        self.failed.push(name.to_owned());
    }

    /// Prints the result, ending with the line that says how many passed and failed.
    pub fn report(&self) -> bool {
        if !self.failed.is_empty() {
            println!("\nfailed:");
            for name in &self.failed {
                println!("  {name}");
            }
        }
        println!("\n{} passed, {} failed", self.passed, self.failed.len());
        // A filter that fits nothing must not look like success.
        self.failed.is_empty() && self.passed > 0
    }
}

/// Runs a test command, passes its output on, and returns whether it succeeded, how many tests passed
/// and which failed.
fn count(command: &mut Command) -> Result<(bool, usize, Vec<String>)> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .map_err(start("cargo"))?;
    let (mut passed, mut failed) = (0, Vec::new());
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout)
            .lines()
            .map_while(std::result::Result::ok)
        {
            println!("{line}");
            match result_of(&line) {
                Some((_, true)) => passed += 1,
                Some((name, false)) => failed.push(name.to_owned()),
                None => {}
            }
        }
    }
    let status = child.wait().map_err(start("cargo"))?;
    Ok((status.success(), passed, failed))
}

/// The test and whether it passed, from a line of libtest's output: `test NAME ... ok`.
fn result_of(line: &str) -> Option<(&str, bool)> {
    let (name, result) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
    match result.split_whitespace().next()? {
        "ok" => Some((name, true)),
        "FAILED" => Some((name, false)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_read_from_the_lines_of_the_test_harness() {
        assert_eq!(result_of("test a::b ... ok"), Some(("a::b", true)));
        assert_eq!(result_of("test a::b ... FAILED"), Some(("a::b", false)));
        assert_eq!(
            result_of("test src/lib.rs - x (line 3) ... ok"),
            Some(("src/lib.rs - x (line 3)", true))
        );
        assert_eq!(result_of("test result: ok. 3 passed; 0 failed"), None);
    }
}
