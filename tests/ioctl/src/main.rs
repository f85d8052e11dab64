//! Random requests to the real `/dev/pvmm`, as many threads and processes make them at the same time: right ones, wrong ones,
//! in any order, while files are closed, memory goes away, processes fork and die, and guests run.
//!
//! A round is a process of its own that comes to its end or is killed. What the threads do follows from the seed; what
//! comes of it also depends on their timing. All outcomes are counted and printed, a line each; one that the ABI does not
//! know makes the program fail. What has become of the kernel is for its caller to see.

#![deny(unsafe_code)]

mod arena;
mod calls;
mod guest;
mod round;
mod structure;
mod system;
mod tally;
mod walk;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;

use round::{round, Plan};
use tally::Tally;

/// Makes random requests to /dev/pvmm
#[derive(Parser)]
struct Arguments {
    /// Seed of everything random
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Number of the first round, to repeat one
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Number of rounds, each a process of its own
    #[arg(long, default_value_t = 100)]
    rounds: u64,
    /// Threads of each process
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=arena::MAX_THREADS as u64))]
    threads: u64,
    /// Calls, or short sequences of them, of each thread
    #[arg(long, default_value_t = 60)]
    steps: u64,
    /// Begin no round after this time
    #[arg(long)]
    seconds: Option<u64>,
    /// Make the requests as this user (and group)
    #[arg(long)]
    user: Option<u32>,
    /// Open the devices before becoming that user
    #[arg(long)]
    hand_down: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let tally = match Tally::new() {
        Ok(tally) => tally,
        Err(error) => {
            eprintln!("pvmm-ioctl: no memory for the counters: {error}");
            return ExitCode::FAILURE;
        }
    };
    println!(
        "seed {}, rounds {} to {}, threads {}, steps {}",
        arguments.seed,
        arguments.first,
        arguments.first + arguments.rounds,
        arguments.threads,
        arguments.steps
    );
    let plan = Plan {
        seed: arguments.seed,
        threads: arguments.threads,
        steps: arguments.steps,
        user: arguments.user,
        hand_down: arguments.hand_down,
    };
    let begin = Instant::now();
    let limit = arguments.seconds.map(Duration::from_secs);
    for number in arguments.first..arguments.first + arguments.rounds {
        if limit.is_some_and(|limit| begin.elapsed() >= limit) {
            println!("out of time before round {number}");
            break;
        }
        if let Err(error) = round(&plan, number, tally) {
            eprintln!("pvmm-ioctl: {error}");
            tally.report();
            return ExitCode::FAILURE;
        }
    }
    let findings = tally.report();
    for finding in &findings {
        println!("FINDING: {finding}");
    }
    if findings.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
