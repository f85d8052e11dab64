//! `cargo xtask module`: `pvmm.ko` for the lab's kernel, the running one, one of Debian's, or any.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use clap::Args;
use pvmm_lab::cache::Cache;
use pvmm_lab::kernel::Kernel;
use pvmm_lab::module::Module;
use pvmm_lab::progress::Step;
use pvmm_lab::sandbox;
use pvmm_lab::tree::Tree;

use crate::error::{start, Error, Result};
use crate::paths;
use crate::prepare::Base;

/// Which kernel to build for.
#[derive(Args)]
pub struct Arguments {
    /// `lab` for the emulated hosts' kernel, `running` for this machine's, or a Debian package such as
    /// linux-image-7.2.12+deb13-amd64
    #[arg(long, value_name = "lab|running|PACKAGE", default_value = "lab")]
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
        (None, package) if package != "running" => {
            return for_package(package, arguments.deny_warnings)
        }
        (None, _) => PathBuf::from(format!("/lib/modules/{}/build", running()?)),
    };
    // Debian's header packages look like a build folder, but a Rust module needs more.
    if !kdir.join("rust/libkernel.rmeta").exists() {
        return Err(Error::Usage(format!(
            "{} isn't the build folder of a kernel with CONFIG_RUST: rust/libkernel.rmeta is missing \
             (Debian's header packages lack it: for a kernel of Debian, name its package with --kernel; otherwise \
             configure and prepare the kernel's source, `make prepare modules_prepare`, and name that folder with --kdir)",
            kdir.display()
        )));
    }
    let out = paths::target().join("module");
    let status = Command::new("make")
        .arg("-C")
        .arg(&kdir)
        .arg(format!("M={}", paths::workspace().display()))
        .arg(format!("MO={}", out.display()))
        .arg(pvmm_lab::module::compiler(&kdir)?)
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
    Ok(finish(&module, deny_warnings))
}

/// For a kernel of Debian, whose metadata is made as the lab's is.
fn for_package(package: &str, deny_warnings: bool) -> Result<ExitCode> {
    sandbox::check_machine()?;
    let cache = Cache::open()?;
    let lock = cache.lock()?;
    let tree = Tree::ensure(&cache, &lock)?;
    let kernel = Kernel::of_package(&cache, &lock, &tree, package)?;
    let step = Step::begin(format!("pvmm.ko for Linux {}", kernel.release()), "20 s");
    let out = paths::target().join("module").join(kernel.release());
    let module = pvmm_lab::module::build(&tree, &kernel, &paths::workspace(), "pvmm", &out)?;
    step.done();
    Ok(finish(&module, deny_warnings))
}

/// Says where the module is, and whether its build was clean.
fn finish(module: &Module, deny_warnings: bool) -> ExitCode {
    println!("{}", module.full.display());
    if deny_warnings && !module.warnings.is_empty() {
        eprintln!(
            "error: the module's build printed {} warnings",
            module.warnings.len()
        );
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn running() -> Result<String> {
    let out = Command::new("uname")
        .arg("-r")
        .output()
        .map_err(start("uname"))?;
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}
