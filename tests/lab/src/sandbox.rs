//! Namespaces that everything of a run lives in, so that nothing can stay behind.
//!
//! A run gets network, mount and process namespaces of its own by starting the program again inside
//! them. Its first process is the parent of all others: when it ends, for whatever reason, the kernel
//! ends them, and bridges, taps and mounts vanish with the last user of their namespace. It is itself
//! ended when the program that started it goes away.

use std::env;
use std::ffi::OsString;
use std::process::{Command, ExitStatus};

use crate::error::{start, LabError, Result};
use crate::process::is_installed;

/// Set inside, to the name of what started it.
const INSIDE: &str = "PVMM_LAB_INSIDE";

/// Whether this process is inside.
pub fn is_inside() -> bool {
    env::var_os(INSIDE).is_some()
}

/// Runs `program` inside new namespaces and waits for it.
///
/// # Errors
/// Those of [`check_machine`]; [`LabError::Start`] if the namespaces can't be made.
pub fn run(program: &OsString, arguments: &[OsString]) -> Result<ExitStatus> {
    check_machine()?;
    command(program, arguments)
        .status()
        .map_err(start("setpriv"))
}

/// The command that [`run`] runs: for a caller that wants to do more with it.
pub fn command(program: &OsString, arguments: &[OsString]) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "--"])
        .args(["unshare", "--net", "--mount", "--pid", "--fork"])
        .args(["--kill-child=KILL", "--mount-proc", "--"])
        .args(["sh", "-c", "ip link set lo up && exec \"$@\"", "sandbox"])
        .arg(program)
        .args(arguments)
        .env(INSIDE, "1");
    command
}

/// Checks what the lab needs from the machine, before anything is done.
///
/// # Errors
/// [`LabError::WrongArchitecture`], [`LabError::NotRoot`], [`LabError::MissingTool`].
pub fn check_machine() -> Result<()> {
    if env::consts::ARCH != "x86_64" {
        return Err(LabError::WrongArchitecture(env::consts::ARCH.to_owned()));
    }
    if !nix::unistd::geteuid().is_root() {
        return Err(LabError::NotRoot);
    }
    for (program, package) in [
        ("unshare", "util-linux"),
        ("setpriv", "util-linux"),
        ("ip", "iproute2"),
        ("chroot", "coreutils"),
    ] {
        if !is_installed(program) {
            return Err(LabError::MissingTool { program, package });
        }
    }
    Ok(())
}
