//! `cargo xtask bench`: what exits, guests and moves cost, in ticks that repeat.
//!
//! Bochs counts one tick of the time-stamp counter per instruction, so figures from one build repeat within a few per cent
//! on any machine that runs it. They leave out what the emulated hardware charges nothing for: the switch between guest
//! and host, page-table walks, caches. The stream's speed alone is this machine's, and counts as a ratio.

mod compare;
mod cycles;
mod moves;
mod results;
mod stream;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use pvmm_lab::image::{self, GuestFile};
use pvmm_lab::machine::Pace;
use pvmm_lab::{sandbox, PREPARED};

use crate::error::{file, Error, Result};
use crate::lab::again_inside;
use crate::paths;
use crate::prepare::{compile, Base};
use results::Results;

/// What to measure.
#[derive(Args)]
pub struct Arguments {
    /// Measure nothing: say what changed from one run to another, given as files of results
    #[arg(long, num_args = 2, value_names = ["BEFORE", "AFTER"])]
    compare: Option<Vec<PathBuf>>,
    /// Only some of it; can be repeated
    #[arg(long, value_enum, value_name = "PART")]
    only: Vec<Part>,
    /// Write the results to this file instead of one in the build folder
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Parts of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// The speed of memory between two daemons on this machine, plain and over TLS
    Stream,
    /// Ticks of exits and of a guest's work (about 10 min)
    Cycles,
    /// Where the time of a move goes, by the guest's memory (about 10 min)
    Moves,
}

/// The program that measures from inside.
const PROGRAM: &str = "pvmm-bench";
/// Where hosts have it as a guest's initramfs.
const INITRD: &str = "/guest/bench-initrd";

/// Measures, or compares.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    if let Some([before, after]) = arguments.compare.as_deref() {
        let (before, after) = (Results::load(before)?, Results::load(after)?);
        print!("{}", compare::table(&before, &after));
        return Ok(ExitCode::SUCCESS);
    }
    if !sandbox::is_inside() {
        let prepared = prepare()?;
        stream::prepare()?;
        return again_inside(&prepared);
    }
    let wanted = |part| arguments.only.is_empty() || arguments.only.contains(&part);
    let mut results = Results::default();
    if wanted(Part::Stream) {
        stream::measure(&mut results)?;
    }
    if wanted(Part::Cycles) {
        cycles::measure(&mut results)?;
    }
    if wanted(Part::Moves) {
        moves::measure(&mut results)?;
    }
    print!("{results}");
    let out = match &arguments.out {
        Some(out) => out.clone(),
        None => paths::lab().join("bench").join(results::file_name()),
    };
    results.save(&out)?;
    println!("\nkept in {}", out.display());
    Ok(ExitCode::SUCCESS)
}

/// Builds the image of the host whose ticks are counted.
fn prepare() -> Result<PathBuf> {
    if let Some(prepared) = std::env::var_os(PREPARED) {
        return Ok(prepared.into());
    }
    let base = Base::ensure()?;
    let module = base.module()?.ok_or_else(|| {
        Error::Usage("there is no Kbuild file in the checkout, so no module to measure".to_owned())
    })?;
    let program = compile(&[PROGRAM])?.join(PROGRAM);
    let initrd = paths::lab().join("bench-initrd");
    let archive = image::guest_initramfs(&program)?;
    std::fs::write(&initrd, archive).map_err(file("can't write", &initrd))?;
    let mut extra = moves::kernels()?;
    extra.extend(
        [
            (format!("/bin/{PROGRAM}"), program),
            (INITRD.to_owned(), initrd),
        ]
        .map(|(path, source)| GuestFile { path, source }),
    );
    Ok(base.image_at(Pace::Alone, Some(&module), extra)?.save()?)
}
