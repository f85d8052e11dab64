//! Debian packages that the machine itself must have: few, because the lab works in a tree of its own (see
//! [`crate::tree`]).

use std::process::Command;

use crate::cache::Cache;
use crate::error::{LabError, Result};
use crate::process::{is_installed, run_logged};
use crate::progress::Step;

/// Makes sure that the machine has `program`: root gets its `package` installed by apt, others are asked for it.
///
/// # Errors
/// [`LabError::MissingTool`], [`LabError::NoNetwork`], [`LabError::Command`].
pub fn ensure(cache: &Cache, program: &'static str, package: &'static str) -> Result<()> {
    if is_installed(program) {
        return Ok(());
    }
    if !is_installed("apt-get") || !nix::unistd::geteuid().is_root() {
        return Err(LabError::MissingTool { program, package });
    }
    let step = Step::begin(format!("{package}, by apt"), "10 s");
    let log = cache.root().join("packages.log");
    for arguments in [
        &["-q", "update"][..],
        &["-q", "-y", "--no-install-recommends", "install", package],
    ] {
        run_logged(
            Command::new("apt-get")
                .env("DEBIAN_FRONTEND", "noninteractive")
                .args(arguments),
            "apt-get on this machine",
            &log,
        )
        .map_err(no_network)?;
    }
    step.done();
    Ok(())
}

/// Tells a network that isn't there from other failures of apt.
pub(crate) fn no_network(error: LabError) -> LabError {
    const SIGNS: [&str; 6] = [
        "Could not resolve",
        "Temporary failure resolving",
        "Could not connect",
        "Connection timed out",
        "Network is unreachable",
        "Unable to connect",
    ];
    if let LabError::Command { tail, .. } = &error {
        let sign = tail
            .lines()
            .find(|line| SIGNS.iter().any(|sign| line.contains(sign)));
        if let Some(line) = sign {
            return LabError::NoNetwork(line.trim().to_owned());
        }
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn failed(tail: &str) -> LabError {
        LabError::Command {
            what: "apt-get update".to_owned(),
            status: "exit status: 100".to_owned(),
            tail: tail.to_owned(),
            log: PathBuf::from("tree.log"),
        }
    }

    #[test]
    fn an_archive_out_of_reach_is_told_from_other_failures_of_apt() {
        let offline = failed("Err:1 x\n  Temporary failure resolving 'deb.example'\nE: failed");
        assert!(matches!(no_network(offline), LabError::NoNetwork(_)));
        let broken = failed("E: Unable to locate package bochs");
        assert!(matches!(no_network(broken), LabError::Command { .. }));
    }
}
