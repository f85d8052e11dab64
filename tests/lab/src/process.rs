//! Running programs whose output only matters when they fail.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::error::{file, start, LabError, Result};

/// How many of a failed program's last lines an error shows.
const TAIL_LINES: usize = 25;

/// Runs `command` with its output in `log` (appended), and fails if it does.
///
/// # Errors
/// [`LabError::Command`] with the end of the output; [`LabError::Start`]; [`LabError::File`].
pub fn run_logged(command: &mut Command, what: &str, log: &Path) -> Result<()> {
    let mut out = OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .map_err(file("can't open", log))?;
    writeln!(out, "## {what}").map_err(file("can't write", log))?;
    let clone = |f: &File| f.try_clone().map_err(file("can't share", log));
    let status = command
        .stdin(Stdio::null())
        .stdout(clone(&out)?)
        .stderr(out)
        .status()
        .map_err(start(&program(command)))?;
    if status.success() {
        return Ok(());
    }
    Err(LabError::Command {
        what: what.to_owned(),
        status: status.to_string(),
        tail: tail_of(log),
        log: log.to_owned(),
    })
}

/// Runs `command` and returns what it printed; `log` gets the rest if it fails.
///
/// # Errors
/// As [`run_logged`].
pub fn output_of(command: &mut Command, what: &str, log: &Path) -> Result<String> {
    let out = command
        .stdin(Stdio::null())
        .output()
        .map_err(start(&program(command)))?;
    let stdout = String::from_utf8_lossy(&out.stdout).into_owned();
    if out.status.success() {
        return Ok(stdout);
    }
    let text = format!("{stdout}{}", String::from_utf8_lossy(&out.stderr));
    fs::write(log, &text).map_err(file("can't write", log))?;
    Err(LabError::Command {
        what: what.to_owned(),
        status: out.status.to_string(),
        tail: last_lines(&text, TAIL_LINES),
        log: log.to_owned(),
    })
}

/// Whether a program of this name is in `PATH` (or in the folders of the system's own programs).
pub fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|folder| folder.join(program).is_file())
}

/// The last lines of a file, as far as it can be read.
pub fn tail_of(path: &Path) -> String {
    match fs::read(path) {
        Ok(bytes) => last_lines(&String::from_utf8_lossy(&bytes), TAIL_LINES),
        Err(e) => format!("({} can't be read: {e})", path.display()),
    }
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

fn program(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}
