//! `pvmm.ko` for the emulated hosts, compiled from the checkout inside the tree.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{file, LabError, Result};
use crate::kernel::{Kernel, KERNEL_DIR};
use crate::process::run_logged;
use crate::tree::{Bind, Tree};

/// A compiled module.
#[derive(Debug, Clone)]
pub struct Module {
    /// The module as hosts load it, without debugging information.
    pub stripped: PathBuf,
    /// The module as the kernel's build made it.
    pub full: PathBuf,
    /// Lines of the build's output that are warnings, of the compilers, objtool or modpost.
    pub warnings: Vec<String>,
}

/// Compiles the module in `checkout` (a folder with a `Kbuild` or `Makefile` file) against `kernel`, in
/// `out`, which keeps what can be used again by the next build.
///
/// # Errors
/// [`LabError::Command`] if the build fails; [`LabError::File`].
pub fn build(
    tree: &Tree,
    kernel: &Kernel,
    checkout: &Path,
    name: &str,
    out: &Path,
) -> Result<Module> {
    fs::create_dir_all(out).map_err(file("can't make", out))?;
    let log = out.join("build.log");
    let full = out.join("obj").join(format!("{name}.ko"));
    let stripped = out.join(format!("{name}.ko"));
    fs::write(&log, "").map_err(file("can't write", &log))?;
    let compiler = compiler(&kernel.root().join("out"))?;
    let script = format!(
        "mkdir -p /pvmm/module/obj\n\
         make -C {KERNEL_DIR}/out M=/pvmm/checkout MO=/pvmm/module/obj {compiler} modules\n\
         strip -g -o /pvmm/module/{name}.ko /pvmm/module/obj/{name}.ko"
    );
    let mut command = tree.script(
        &[
            Bind::ro(kernel.root(), KERNEL_DIR),
            Bind::ro(checkout, "/pvmm/checkout"),
            Bind::rw(out, "/pvmm/module"),
        ],
        &script,
    );
    run_logged(&mut command, "building the module", &log)?;
    let output = fs::read_to_string(&log).map_err(file("can't read", &log))?;
    if !full.exists() {
        return Err(LabError::Command {
            what: format!("building the module: no {name}.ko came out of it"),
            status: "make succeeded".to_owned(),
            tail: crate::process::tail_of(&log),
            log,
        });
    }
    Ok(Module {
        stripped,
        full,
        warnings: warnings(&output),
    })
}

/// What `make` has to be told of the compiler: a module's must be the one of the kernel whose build folder this is, and Kbuild
/// takes GCC unless told otherwise (Documentation/kbuild/llvm.rst).
///
/// # Errors
/// [`LabError::File`] if the folder has no configuration.
pub fn compiler(build: &Path) -> Result<&'static str> {
    let config = build.join(".config");
    let text = fs::read_to_string(&config).map_err(file("can't read", &config))?;
    let clang = text.lines().any(|line| line == "CONFIG_CC_IS_CLANG=y");
    Ok(if clang { "LLVM=1" } else { "LLVM=" })
}

/// The lines of a build's output that warn of something.
fn warnings(output: &str) -> Vec<String> {
    output
        .lines()
        .filter(|line| line.to_ascii_lowercase().contains("warning"))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_of_every_tool_of_the_build_are_found() {
        let output = "  RUSTC [M] a.o\nwarning: unused variable: `x`\n\
            vmlinux.o: warning: objtool: foo()+0x1: unreachable instruction\n\
            WARNING: modpost: missing MODULE_DESCRIPTION()\n\
            Skipping BTF generation for a.ko due to unavailability of vmlinux";
        assert_eq!(warnings(output).len(), 3);
    }
}
