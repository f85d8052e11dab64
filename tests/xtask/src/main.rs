//! `cargo xtask`: everything that is done with this project, by one name.
//!
//! Each command prepares what it needs (see the crate `pvmm-lab`), keeps it for the next time, and
//! says what it does and how long that usually takes.

#![forbid(unsafe_code)]

mod bench;
mod checks;
mod demo;
mod dependencies;
mod docs;
mod error;
mod fetch;
mod fuzz;
mod lab;
mod module;
mod paths;
mod port_size;
mod prepare;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The project's commands.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Watch a Linux guest move between two emulated machines while it runs
    Demo(demo::Arguments),
    /// Check everything: format, lints, tests, the module, and the whole on emulated machines
    Test(test::Arguments),
    /// Measure what guests and moves cost, on emulated machines that count instructions
    Bench(bench::Arguments),
    /// Give every decoder of foreign bytes made-up ones, for a minute each (`test` does so briefly)
    Fuzz(fuzz::Arguments),
    /// Write the documents that are made from the code, after a change of a register table (`test` compares them)
    Docs,
    /// Build pvmm.ko
    Module(module::Arguments),
    /// Boot emulated machines by hand
    Lab(lab::Arguments),
    /// Download and prepare all that the other commands need (about 5 min, 6 GB)
    #[command(alias = "setup")]
    Fetch,
    /// Remove what `fetch` prepared and what the lab built
    Clean,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Test(arguments) => test::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Fuzz(arguments) => fuzz::run(&arguments),
        Command::Docs => docs::write(),
        Command::Module(arguments) => module::run(&arguments),
        Command::Lab(arguments) => lab::run(&arguments),
        Command::Fetch => fetch::fetch(),
        Command::Clean => fetch::clean(),
    };
    match result {
        Ok(code) => code,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}
