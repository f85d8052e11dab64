//! One fuzz target: how it is built, run, and understood.

use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use pvmm_lab::process::tail_of;

use super::size_of;
use crate::error::{file, start, Error, Result};
use crate::paths::{self, TRIPLE};

/// What makes rustc instrument for libFuzzer: counters of edges, and comparisons, so that the fuzzer sees what would have
/// to be equal. These are the flags of cargo-fuzz without a sanitizer, which only nightly compilers have.
const INSTRUMENTATION: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
     -Cllvm-args=-sanitizer-coverage-trace-compares";

/// Longest input, in bytes: a whole move fits, with a page or two of memory.
const MAX_LEN: &str = "-max_len=16384";
/// A run that takes longer, in seconds, is a finding. A run takes milliseconds, but the machine may have other work.
const TIMEOUT: &str = "-timeout=100";
/// Longest input that was found and is kept in the checkout, in bytes. What takes more is there from the beginning.
const KEPT_BYTES: u64 = 512;
/// Runs in `cargo xtask test` of a target that says nothing else.
const BRIEF: u64 = 20_000;

/// A target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Name of its program.
    pub name: String,
    /// How often it runs in `cargo xtask test`.
    pub brief: u64,
}

/// When a run ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// After so many runs.
    Runs(u64),
    /// After a time.
    Seconds(u64),
}

/// How a run went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The program ended well.
    pub success: bool,
    /// Runs, and runs per second.
    pub runs: u64,
    /// As libFuzzer counts.
    pub rate: u64,
    /// Edges that were reached.
    pub coverage: u64,
    /// Inputs in the corpus at the end.
    pub inputs: String,
    /// Files of the corpus in the checkout, and their bytes.
    pub kept: (usize, u64),
    /// The input that made it fail.
    pub crash: Option<PathBuf>,
    /// The last lines that it printed.
    pub tail: String,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (files, bytes) = self.kept;
        write!(
            f,
            "{} runs, {}/s, coverage {}, corpus {} (in the checkout {files} files, {} KiB)",
            self.runs,
            self.rate,
            self.coverage,
            self.inputs,
            bytes.div_ceil(1024)
        )
    }
}

/// The targets, as the manifest names them.
pub fn all(manifest: &Path) -> Result<Vec<Target>> {
    let out = paths::cargo(&["metadata", "--no-deps", "--format-version=1", "--quiet"])
        .arg("--manifest-path")
        .arg(manifest)
        .output()
        .map_err(start("cargo"))?;
    let wrong = |why: String| Error::CargoOutput {
        command: "metadata",
        why,
    };
    if !out.status.success() {
        return Err(wrong(String::from_utf8_lossy(&out.stderr).into_owned()));
    }
    let metadata = serde_json::from_slice(&out.stdout).map_err(|e| wrong(e.to_string()))?;
    let targets = named(&metadata);
    if targets.is_empty() {
        return Err(wrong("no fuzz targets".to_owned()));
    }
    Ok(targets)
}

fn named(metadata: &serde_json::Value) -> Vec<Target> {
    let package = &metadata["packages"][0];
    let programs = package["targets"].as_array().cloned().unwrap_or_default();
    programs
        .iter()
        .filter(|program| program["kind"][0] == "bin")
        .filter_map(|program| program["name"].as_str())
        .map(|name| Target {
            name: name.to_owned(),
            brief: package["metadata"]["runs"][name].as_u64().unwrap_or(BRIEF),
        })
        .collect()
}

/// Builds all targets.
pub fn build(manifest: &Path) -> Result<()> {
    let mut command = paths::cargo(&["build", "--quiet", "--release", "--bins"]);
    command
        .args(["--target", TRIPLE])
        .arg("--manifest-path")
        .arg(manifest)
        .arg("--target-dir")
        .arg(paths::fuzz().join("target"))
        .env("RUSTFLAGS", INSTRUMENTATION)
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    if !command.status().map_err(start("cargo"))?.success() {
        return Err(Error::Cargo("build of the fuzz targets".to_owned()));
    }
    Ok(())
}

impl Target {
    fn program(&self) -> PathBuf {
        let release = paths::fuzz().join("target").join(TRIPLE).join("release");
        release.join(&self.name)
    }

    /// The corpus in the checkout.
    fn kept(&self) -> PathBuf {
        paths::workspace()
            .join("tests/fuzz/corpus")
            .join(&self.name)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.program());
        command.arg(MAX_LEN).arg(TIMEOUT);
        command
    }

    /// Lets it run, from the kept corpus on; what it finds beyond goes to the folder `found`.
    pub fn fuzz(&self, found: &Path, limit: Limit, seed: u32) -> Result<Report> {
        let artifacts = paths::fuzz().join("artifacts");
        for folder in [found, &artifacts] {
            fs::create_dir_all(folder).map_err(file("can't make", folder))?;
        }
        let kept = self.kept();
        let size = size_of(&kept)?;
        if size.0 == 0 {
            return Err(Error::Usage(format!("{} is empty", kept.display())));
        }
        let log = paths::fuzz().join(format!("{}.log", self.name));
        let out = File::create(&log).map_err(file("can't write", &log))?;
        let limit = match limit {
            Limit::Runs(runs) => format!("-runs={runs}"),
            Limit::Seconds(seconds) => format!("-max_total_time={seconds}"),
        };
        let prefix = artifacts.join(format!("{}-", self.name));
        let status = self
            .command()
            .args([&limit, &format!("-seed={seed}")])
            .arg(format!("-artifact_prefix={}", prefix.display()))
            .args(["-use_value_profile=1", "-print_final_stats=1"])
            .args([found, &kept])
            // What a panic says is then among the last lines; `--repeat` shows the rest.
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .stderr(out)
            .status()
            .map_err(start(&self.name))?;
        let text = fs::read(&log).map_err(file("can't read", &log))?;
        let mut report = understood(&String::from_utf8_lossy(&text));
        report.success = status.success();
        report.kept = size;
        report.tail = tail_of(&log);
        if !report.success && report.crash.is_none() {
            return Err(Error::Usage(format!(
                "{} ended with {status}; the end of its output:\n{}",
                self.name, report.tail
            )));
        }
        Ok(report)
    }

    /// Runs it once, with one input.
    pub fn repeat(&self, input: &Path) -> Result<ExitCode> {
        let status = self
            .command()
            .arg(input)
            .status()
            .map_err(start(&self.name))?;
        Ok(if status.success() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    /// Makes the corpus in the checkout anew, from it and from the short inputs that were found: as few as reach the same
    /// edges.
    pub fn keep(&self) -> Result<()> {
        let (kept, found) = (self.kept(), paths::fuzz().join("corpus").join(&self.name));
        let fewer = empty(paths::fuzz().join("fewer").join(&self.name))?;
        let short = empty(paths::fuzz().join("short").join(&self.name))?;
        copy(&found, &short, KEPT_BYTES)?;
        let log = paths::fuzz().join(format!("{}-merge.log", self.name));
        let out = File::create(&log).map_err(file("can't write", &log))?;
        let status = self
            .command()
            .args(["-set_cover_merge=1", "-use_counters=0", "-use_cmp=0"])
            .args([&fewer, &kept, &short])
            .stdin(Stdio::null())
            .stderr(out)
            .status()
            .map_err(start(&self.name))?;
        if !status.success() || size_of(&fewer)?.0 == 0 {
            return Err(Error::Usage(format!(
                "merging the corpus of {} failed ({status}):\n{}",
                self.name,
                tail_of(&log)
            )));
        }
        copy(&fewer, &empty(kept.clone())?, u64::MAX)?;
        let (files, bytes) = size_of(&kept)?;
        println!(
            "    {}: {files} files, {} KiB are kept",
            self.name,
            bytes.div_ceil(1024)
        );
        Ok(())
    }
}

/// Makes a folder that is empty.
pub fn empty(folder: PathBuf) -> Result<PathBuf> {
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(file("can't remove", &folder))?;
    }
    fs::create_dir_all(&folder).map_err(file("can't make", &folder))?;
    Ok(folder)
}

/// Copies the files of a folder that have at most so many bytes.
fn copy(from: &Path, to: &Path, most: u64) -> Result<()> {
    for entry in fs::read_dir(from).map_err(file("can't read", from))? {
        let entry = entry.map_err(file("can't read", from))?;
        let metadata = entry.metadata().map_err(file("can't read", from))?;
        if metadata.len() <= most {
            let to = to.join(entry.file_name());
            fs::copy(entry.path(), &to).map_err(file("can't write", &to))?;
        }
    }
    Ok(())
}

/// What libFuzzer printed: lines such as `#4096 pulse cov: 102 ft: 345 corp: 12/3456b lim: 64 exec/s: 2048 rss: 30Mb`,
/// statistics at the end, and the file of an input that failed.
fn understood(text: &str) -> Report {
    let mut report = Report {
        success: false,
        runs: 0,
        rate: 0,
        coverage: 0,
        inputs: String::new(),
        kept: (0, 0),
        crash: None,
        tail: String::new(),
    };
    for line in text.lines() {
        let after = |name: &str| {
            let (_, rest) = line.split_once(name)?;
            rest.split_whitespace().next()
        };
        let number = |name: &str| after(name)?.parse().ok();
        if let Some(numbers) = line.strip_prefix('#') {
            let runs = numbers.split_whitespace().next();
            report.runs = runs.and_then(|n| n.parse().ok()).unwrap_or(report.runs);
            report.coverage = number(" cov: ").unwrap_or(report.coverage);
            report.inputs = after(" corp: ").map_or(report.inputs, str::to_owned);
            report.rate = number(" exec/s: ").unwrap_or(report.rate);
        }
        report.runs = number("stat::number_of_executed_units: ").unwrap_or(report.runs);
        report.rate = number("stat::average_exec_per_sec: ").unwrap_or(report.rate);
        if let Some((_, path)) = line.split_once("Test unit written to ") {
            report.crash = Some(PathBuf::from(path));
        }
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_targets_are_the_programs_of_the_manifest_with_their_runs() {
        let metadata = serde_json::json!({"packages": [{
            "metadata": {"runs": {"wire": 5}},
            "targets": [
                {"kind": ["lib"], "name": "pvmm_fuzz"},
                {"kind": ["bin"], "name": "wire"},
                {"kind": ["bin"], "name": "decode"},
                {"kind": ["example"], "name": "seeds"},
            ],
        }]});
        let target = |name: &str, brief| Target {
            name: name.to_owned(),
            brief,
        };
        assert_eq!(
            named(&metadata),
            [target("wire", 5), target("decode", BRIEF)]
        );
    }

    #[test]
    fn runs_coverage_and_the_failing_input_are_read_from_what_libfuzzer_prints() {
        let text = "INFO: Seed: 1\n\
            #2\tINITED cov: 8 ft: 8 corp: 1/1b exec/s: 0 rss: 27Mb\n\
            #1000\tDONE   cov: 10 ft: 11 corp: 3/9b lim: 4096 exec/s: 500 rss: 27Mb\n\
            stat::number_of_executed_units: 1000\n\
            stat::average_exec_per_sec:     333\n";
        let report = understood(text);
        assert_eq!((report.runs, report.rate, report.coverage), (1000, 333, 10));
        assert_eq!(report.inputs, "3/9b");
        assert_eq!(report.crash, None);
        let text = "#7\tNEW    cov: 9 ft: 9 corp: 2/5b lim: 4 exec/s: 0 rss: 27Mb\n\
            ==1== ERROR: libFuzzer: deadly signal\n\
            artifact_prefix='/a/wire-'; Test unit written to /a/wire-crash-0c\n";
        let report = understood(text);
        assert_eq!(report.crash, Some(PathBuf::from("/a/wire-crash-0c")));
        assert_eq!((report.runs, report.coverage), (7, 9));
    }
}
