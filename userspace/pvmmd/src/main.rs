// SPDX-License-Identifier: GPL-2.0
//! The entry point: parses the command line, sets up logging, runs the command, gives its exit code.
#![forbid(unsafe_code)]

use clap::Parser;
use pvmmd::cli::Cli;
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    pvmmd::logging::to_stderr();
    match pvmmd::commands::execute(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.is_closed_output() {
                // Nobody may listen; the exit code says it too.
                let _ = writeln!(std::io::stderr(), "pvmmd: {failure}");
            }
            ExitCode::from(failure.exit_code())
        }
    }
}
