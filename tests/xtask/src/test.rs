//! `cargo xtask test`: all checks, from the quickest to the slowest.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::Args;
use pvmm_lab::{sandbox, PREPARED};

use crate::checks::Checks;
use crate::dependencies;
use crate::docs;
use crate::error::{file, start, Error, Result};
use crate::fuzz;
use crate::paths;
use crate::port_size;
use crate::prepare::{packages, Base};

/// Which checks.
#[derive(Args)]
pub struct Arguments {
    /// Leave out what needs emulated hosts and the module
    #[arg(long)]
    quick: bool,
    /// Only the end-to-end tests whose name contains this
    #[arg(long, value_name = "NAME")]
    e2e: Option<String>,
    /// Only end-to-end tests, on hosts with a kernel that watches itself and the module (lockdep, KASAN, kmemleak, UBSAN)
    ///
    /// Tests of guests, moves and the module, and longer ones than on Debian's kernel. It is compiled the first time. A usual
    /// run leaves this out because of its length.
    #[arg(long, conflicts_with = "quick")]
    debug_kernel: bool,
}

/// Programs with tests for the debug kernel, unless one is asked for by name. The others need Debian's kernel, or take too
/// long.
const ON_DEBUG_KERNEL: [&str; 4] = [SOAK, "module", "guests", "moves"];
/// The program with tests that are made for the debug kernel: elsewhere only by name.
const SOAK: &str = "soak";
/// Of these programs, the test that needs KVM, which the debug kernel is without.
const NEEDS_KVM: &str = "while_kvm_owns_vtx";

/// Package of the end-to-end tests.
const E2E: &str = "pvmm-e2e";

/// Runs the checks.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut checks = Checks::default();
    if arguments.e2e.is_none() && !arguments.debug_kernel {
        source(&mut checks);
    }
    if !arguments.quick {
        if let Err(e) = machines(&mut checks, arguments) {
            eprintln!("error: {e}");
            checks.fail("preparing the emulated hosts");
        }
    }
    Ok(if checks.report() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What needs no emulated host.
fn source(checks: &mut Checks) {
    checks.command(
        "formatting",
        "2 s",
        &mut paths::cargo(&["fmt", "--all", "--check"]),
    );
    checks.check("direction of dependencies", "1 s", dependencies::check);
    checks.check("size of the Linux port", "1 s", port_size::check);
    checks.check("register tables and their document", "1 s", docs::check);
    let lints = [
        "clippy",
        "--quiet",
        "--workspace",
        "--all-targets",
        "--features",
        "pvmm-e2e/lab",
        "--",
        "-D",
        "warnings",
    ];
    checks.command("lints", "1 min the first time", &mut paths::cargo(&lints));
    // The hostile guest itself, which is no program for this machine; only a release build has no unwinding.
    let lints = [
        "clippy",
        "--quiet",
        "--release",
        "--package=pvmm-hostile",
        "--bin=pvmm-hostile",
        "--features=freestanding",
        "--",
        "-D",
        "warnings",
    ];
    checks.command(
        "lints of the hostile guest",
        "5 s",
        &mut paths::cargo(&lints),
    );
    checks.tests(
        "unit and property tests",
        "2 min the first time",
        &mut paths::cargo(&[
            "test",
            "--quiet",
            "--workspace",
            "--no-fail-fast",
            "--",
            "--format=pretty",
        ]),
    );
    fuzz::check(checks);
}

/// The module, and the end-to-end tests.
fn machines(checks: &mut Checks, arguments: &Arguments) -> Result<()> {
    let filter = arguments.e2e.as_deref();
    let debug = arguments.debug_kernel;
    let base = Base::ensure_for(debug)?;
    let module = base.module()?;
    if let Some(module) = &module {
        checks.check("the module builds without a warning", "0 s", || {
            Ok(module.warnings.is_empty())
        });
    }
    let prepared = base.image(module.as_ref(), Vec::new())?.save()?;
    if !packages()?.iter().any(|name| name == E2E) {
        return Ok(());
    }
    let own = env::current_exe().map_err(file("can't find", Path::new("this program")))?;
    for program in test_programs()? {
        if let Some(filter) = filter {
            if !has_test(&program, filter)? {
                continue;
            }
        }
        let mut words = vec![
            OsString::from("--test-threads=2"),
            OsString::from("--format=pretty"),
        ];
        if let Some(filter) = filter {
            words.push(OsString::from(filter));
        }
        let name = program.file_stem().unwrap_or_default().to_string_lossy();
        let name = name.rsplit_once('-').map_or(&*name, |(name, _)| name);
        if !debug && filter.is_none() && name == SOAK {
            continue;
        }
        if debug && filter.is_none() {
            if !ON_DEBUG_KERNEL.contains(&name) {
                continue;
            }
            words.extend([OsString::from("--skip"), OsString::from(NEEDS_KVM)]);
        }
        checks.tests(
            &format!("emulated hosts: {name}"),
            if debug { "20 min" } else { "5 min" },
            sandbox::command(&program.clone().into_os_string(), &words)
                .env(PREPARED, &prepared)
                .env("PVMM_XTASK", &own),
        );
    }
    Ok(())
}

/// Whether a test program has a test with `filter` in its name.
fn has_test(program: &Path, filter: &str) -> Result<bool> {
    let list = Command::new(program)
        .args(["--list", "--format=terse", filter])
        .output()
        .map_err(start("a test program"))?;
    Ok(String::from_utf8_lossy(&list.stdout)
        .lines()
        .any(|line| line.ends_with(": test")))
}

/// Compiles the end-to-end tests; outside of the namespaces, where cargo has the network.
fn test_programs() -> Result<Vec<PathBuf>> {
    let mut command: Command = paths::cargo(&["test", "--quiet", "--no-run", "--package", E2E]);
    let out = command
        .args(["--features", "lab", "--test", "*", "--message-format=json"])
        .stderr(std::process::Stdio::inherit())
        .output()
        .map_err(start("cargo"))?;
    if !out.status.success() {
        return Err(Error::Cargo("test --no-run".to_owned()));
    }
    let mut programs = Vec::new();
    for line in String::from_utf8_lossy(&out.stdout).lines() {
        let message: serde_json::Value =
            serde_json::from_str(line).map_err(|e| Error::CargoOutput {
                command: "test --no-run",
                why: e.to_string(),
            })?;
        programs.extend(message["executable"].as_str().map(PathBuf::from));
    }
    if programs.is_empty() {
        return Err(Error::CargoOutput {
            command: "test --no-run",
            why: "no test programs".to_owned(),
        });
    }
    Ok(programs)
}
