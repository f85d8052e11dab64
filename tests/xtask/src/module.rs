//! `cargo xtask module`: `pvmm.ko` for the lab's kernel, the running one, or any.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use clap::Args;

use crate::error::{start, Error, Result};
use crate::paths;
use crate::prepare::Base;

/// Which kernel to build for.
#[derive(Args)]
pub struct Arguments {
    /// `lab` for the emulated hosts' kernel, `running` for this machine's
    #[arg(long, value_name = "lab|running", default_value = "lab")]
    kernel: String,
    /// A kernel's build folder, instead of --kernel
    #[arg(long, value_name = "DIR", conflicts_with = "kernel")]
    kdir: Option<PathBuf>,
    /// Fail if the build prints a warning
    #[arg(long)]
    deny_warnings: bool,
}

/// Builds the module.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let kdir = match (&arguments.kdir, arguments.kernel.as_str()) {
        (Some(kdir), _) => kdir.clone(),
        (None, "lab") => return for_lab(arguments.deny_warnings),
        (None, "running") => PathBuf::from(format!("/lib/modules/{}/build", running()?)),
        (None, other) => {
            return Err(Error::Usage(format!(
                "--kernel {other}: say `lab` or `running`, or give a build folder with --kdir"
            )))
        }
    };
    // Debian's header packages look like a build folder, but a Rust module needs more.
    if !kdir.join("rust/libkernel.rmeta").exists() {
        return Err(Error::Usage(format!(
            "{} isn't the build folder of a kernel with CONFIG_RUST: rust/libkernel.rmeta is missing \
             (Debian's header packages lack it: configure and prepare the kernel's source, \
             `make prepare modules_prepare`, and name that folder with --kdir)",
            kdir.display()
        )));
    }
    let out = paths::target().join("module");
    let status = Command::new("make")
        .arg("-C")
        .arg(&kdir)
        .arg(format!("M={}", paths::workspace().display()))
        .arg(format!("MO={}", out.display()))
        .arg("modules")
        .status()
        .map_err(start("make"))?;
    if !status.success() {
        return Err(Error::Usage("make has failed, see above".to_owned()));
    }
    println!("{}", out.join("pvmm.ko").display());
    Ok(ExitCode::SUCCESS)
}

fn for_lab(deny_warnings: bool) -> Result<ExitCode> {
    let module = Base::ensure()?.module()?.ok_or_else(|| {
        Error::Usage("there is no Kbuild file in the checkout, so no module to build".to_owned())
    })?;
    println!("{}", module.full.display());
    Ok(if deny_warnings && !module.warnings.is_empty() {
        eprintln!(
            "error: the module's build printed {} warnings",
            module.warnings.len()
        );
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn running() -> Result<String> {
    let out = Command::new("uname")
        .arg("-r")
        .output()
        .map_err(start("uname"))?;
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}
