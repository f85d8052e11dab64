//! `cargo xtask fuzz`: strangers' bytes for every decoder, made up by libFuzzer.
//!
//! The targets are the programs of the crate in `tests/fuzz`, laid out as cargo-fuzz wants it. They are built here without
//! cargo-fuzz: a stable rustc instruments for libFuzzer when it gets the same flags, and nothing has to be installed but a
//! C++ compiler, which libFuzzer is built with.

mod target;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use pvmm_lab::cache::Cache;
use pvmm_lab::package;
use pvmm_lab::progress::Step;

use crate::checks::Checks;
use crate::error::{file, Error, Result};
use crate::paths;
use target::{Limit, Report, Target};

/// What to fuzz, and how long.
#[derive(Args)]
pub struct Arguments {
    /// The targets; all of them if none is named
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
    /// Seconds for each target
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u64,
    /// Runs for each target, instead of a time
    #[arg(long, value_name = "N", conflicts_with = "seconds")]
    runs: Option<u64>,
    /// Where the random numbers begin; otherwise taken from the clock
    #[arg(long, value_name = "N")]
    seed: Option<u32>,
    /// Only name the targets
    #[arg(long)]
    list: bool,
    /// Run one target once, with this file, and show what it prints
    #[arg(long, value_name = "FILE", requires = "targets")]
    repeat: Option<PathBuf>,
    /// Add what was found to the corpus in the checkout, as few and as small files as will do
    #[arg(long)]
    keep: bool,
}

/// Cargo's manifest of the targets.
const MANIFEST: &str = "tests/fuzz/Cargo.toml";
/// Seed of the brief runs: the same each time, so that a change of the code is what makes a difference.
const BRIEF_SEED: u32 = 1;

/// Fuzzes.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let targets = chosen(&arguments.targets)?;
    if arguments.list {
        for target in &targets {
            println!("{}", target.name);
        }
        return Ok(ExitCode::SUCCESS);
    }
    build()?;
    if let Some(input) = &arguments.repeat {
        let [target] = targets.as_slice() else {
            return Err(Error::Usage("--repeat takes one target".to_owned()));
        };
        return target.repeat(input);
    }
    let seed = arguments.seed.unwrap_or_else(clock_seed);
    let limit = match arguments.runs {
        Some(runs) => Limit::Runs(runs),
        None => Limit::Seconds(arguments.seconds),
    };
    let mut good = true;
    for target in &targets {
        let usually = match limit {
            Limit::Runs(runs) => format!("{runs} runs"),
            Limit::Seconds(seconds) => format!("{seconds} s"),
        };
        let step = Step::begin(
            format!("fuzzing {} from seed {seed}", target.name),
            &usually,
        );
        let report = target.fuzz(
            &paths::fuzz().join("corpus").join(&target.name),
            limit,
            seed,
        )?;
        if tell(target, &report) {
            step.done();
            if arguments.keep {
                target.keep()?;
            }
        } else {
            good = false;
        }
    }
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The part of `cargo xtask test`: format and lints of the targets, and each of them briefly.
pub fn check(checks: &mut Checks) {
    let manifest = ["--manifest-path", MANIFEST];
    checks.command(
        "formatting of the fuzz targets",
        "1 s",
        paths::cargo(&["fmt", "--check"]).args(manifest),
    );
    // Lints build libFuzzer, too.
    checks.check("a C++ compiler", "0 s", || compiler().map(|()| true));
    checks.command(
        "lints of the fuzz targets",
        "1 min the first time",
        paths::cargo(&["clippy", "--quiet", "--all-targets"])
            .args(manifest)
            .arg("--target-dir")
            .arg(paths::target())
            .args(["--", "-D", "warnings"]),
    );
    let mut targets = Vec::new();
    checks.check("building the fuzz targets", "2 min the first time", || {
        build()?;
        targets = chosen(&[])?;
        Ok(true)
    });
    for target in &targets {
        checks.check(
            &format!("fuzzing {} from seed {BRIEF_SEED}", target.name),
            "5 s",
            || {
                // An empty folder: what earlier runs found isn't the same on every machine.
                let found = target::empty(paths::fuzz().join("brief").join(&target.name))?;
                let report = target.fuzz(&found, Limit::Runs(target.brief), BRIEF_SEED)?;
                Ok(tell(target, &report))
            },
        );
    }
}

/// Prints how a target's run went; false if it found something.
fn tell(target: &Target, report: &Report) -> bool {
    println!("    {}: {report}", target.name);
    let Some(input) = &report.crash else {
        return report.success;
    };
    eprintln!("{}", report.tail);
    eprintln!(
        "error: {} fails with {}; to repeat it:\n    cargo xtask fuzz {} --repeat {}",
        target.name,
        input.display(),
        target.name,
        input.display()
    );
    false
}

/// The targets of these names, or all.
fn chosen(names: &[String]) -> Result<Vec<Target>> {
    let all = target::all(&paths::workspace().join(MANIFEST))?;
    if names.is_empty() {
        return Ok(all);
    }
    let known: Vec<&str> = all.iter().map(|target| target.name.as_str()).collect();
    if let Some(name) = names.iter().find(|name| !known.contains(&name.as_str())) {
        return Err(Error::Usage(format!(
            "there is no target {name:?}; there are {}",
            known.join(", ")
        )));
    }
    Ok(all
        .into_iter()
        .filter(|target| names.contains(&target.name))
        .collect())
}

fn build() -> Result<()> {
    compiler()?;
    let step = Step::begin("fuzz targets", "2 min the first time, then 1 s");
    target::build(&paths::workspace().join(MANIFEST))?;
    step.done();
    Ok(())
}

/// What libFuzzer is built with. A compiler that the user names is the user's business.
fn compiler() -> Result<()> {
    if std::env::var_os("CXX").is_some() {
        return Ok(());
    }
    Ok(package::ensure(&Cache::open()?, "c++", "g++")?)
}

fn clock_seed() -> u32 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    // libFuzzer takes 0 for "choose one".
    now.map_or(1, |now| now.subsec_nanos()).max(1)
}

/// Number of files in a folder and their bytes.
fn size_of(folder: &Path) -> Result<(usize, u64)> {
    let mut size = (0, 0);
    for entry in fs::read_dir(folder).map_err(file("can't read", folder))? {
        let entry = entry.map_err(file("can't read", folder))?;
        let metadata = entry.metadata().map_err(file("can't read", folder))?;
        size = (size.0 + 1, size.1 + metadata.len());
    }
    Ok(size)
}
