//! Where the checkout and the build's output are, and how cargo is called.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Target triple of programs for the emulated hosts. Naming it keeps their flags from build scripts.
pub const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// The checkout.
pub fn workspace() -> PathBuf {
    // Set by cargo when it runs this program; otherwise where this program was compiled.
    let own = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    own.ancestors().nth(2).unwrap_or(Path::new(".")).to_owned()
}

/// Cargo's output folder.
pub fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR")
        .filter(|v| !v.is_empty())
        .map_or_else(|| workspace().join("target"), PathBuf::from)
}

/// The lab's part of the output folder.
pub fn lab() -> PathBuf {
    target().join("lab")
}

/// The fuzzer's part of the output folder.
pub fn fuzz() -> PathBuf {
    target().join("fuzz")
}

/// A cargo command in the checkout.
pub fn cargo(arguments: &[&str]) -> Command {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(cargo);
    command.current_dir(workspace()).args(arguments);
    // What cargo set for this program isn't for the programs that it builds.
    for name in ["CARGO_MANIFEST_DIR", "CARGO_PKG_NAME"] {
        command.env_remove(name);
    }
    command
}
