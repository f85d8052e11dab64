// SPDX-License-Identifier: GPL-2.0
//! The entry point: parses the command line, sets up logging, runs the command, gives its exit code.
#![forbid(unsafe_code)]

use clap::Parser;
use pvmmd::cli::Cli;
use std::io::IsTerminal;
use std::process::ExitCode;
use tracing_subscriber::filter::{EnvFilter, LevelFilter};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .from_env_lossy();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    match pvmmd::commands::execute(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("pvmmd: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}
