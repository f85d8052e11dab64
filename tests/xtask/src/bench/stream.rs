//! How fast memory moves between two daemons on this machine itself, which needs no emulator.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use pvmm_lab::progress::Step;

use super::results::Results;
use crate::error::{file, start, Error, Result};
use crate::paths;

/// What starts each line of the program.
const PREFIX: &str = "pvmm-stream";
/// The program's name among the daemon's benchmarks.
const BENCH: &str = "stream";
/// A stream may take as many times a bare copy's time.
const GOALS: [(&str, f64); 2] = [("plain", 1.25), ("tls", 1.25)];

/// Where the program is for runs in the lab's namespaces, where cargo can't build.
fn program() -> PathBuf {
    paths::lab().join(PREFIX)
}

/// Builds the program.
pub fn prepare() -> Result<()> {
    let step = Step::begin("the stream's benchmark", "2 min the first time");
    let out = paths::cargo(&["bench", "--quiet", "--no-run", "--package", "pvmmd"])
        .args(["--bench", BENCH, "--message-format=json"])
        .stderr(Stdio::inherit())
        .output()
        .map_err(start("cargo"))?;
    if !out.status.success() {
        return Err(Error::Cargo("bench --no-run".to_owned()));
    }
    let built = String::from_utf8_lossy(&out.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        // The daemon itself is built beside it.
        .filter(|message| message["target"]["name"] == BENCH)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .ok_or_else(|| Error::CargoOutput {
            command: "bench --no-run",
            why: "no program".to_owned(),
        })?;
    fs::copy(&built, program()).map_err(file("can't copy", &built))?;
    step.done();
    Ok(())
}

/// Runs it.
pub fn measure(results: &mut Results) -> Result<()> {
    let step = Step::begin("moving memory between two daemons on this machine", "20 s");
    let program = program();
    let out = Command::new(&program)
        .stderr(Stdio::inherit())
        .output()
        .map_err(start(PREFIX))?;
    if !out.status.success() {
        return Err(Error::Usage(format!(
            "{} ended with {}",
            program.display(),
            out.status
        )));
    }
    let output = String::from_utf8_lossy(&out.stdout);
    let speeds = parse(&output);
    for (name, speed) in &speeds {
        results.add("MiB per second over loopback", name, *speed);
    }
    let speed = |wanted: &str| speeds.iter().find(|(name, _)| name == wanted);
    if let Some((_, copy)) = speed("copy") {
        for (name, goal) in GOALS {
            if let Some((_, stream)) = speed(name) {
                let group = "time of a stream, in times of a bare copy";
                results.add_with_goal(group, name, copy / stream, goal);
            }
        }
    }
    step.done();
    Ok(())
}

/// Names and MiB per second.
fn parse(output: &str) -> Vec<(String, f64)> {
    output
        .lines()
        .filter_map(|line| {
            let mut words = line.strip_prefix(PREFIX)?.split_whitespace();
            Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_are_read_from_the_programs_lines() {
        let speeds = parse("noise\npvmm-stream copy 4000\npvmm-stream tls 3500\npvmm-stream x\n");
        assert_eq!(
            speeds,
            [("copy".to_owned(), 4000.0), ("tls".to_owned(), 3500.0)]
        );
    }
}
