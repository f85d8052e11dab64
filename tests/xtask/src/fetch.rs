//! `cargo xtask fetch` and `clean`: the cache.

use std::fs;
use std::process::ExitCode;

use pvmm_lab::cache::Cache;
use pvmm_lab::progress::Step;

use crate::error::{file, Result};
use crate::paths;
use crate::prepare::Base;

/// Prepares everything that doesn't depend on the checkout.
pub fn fetch() -> Result<ExitCode> {
    let base = Base::ensure()?;
    println!(
        "ready: Linux {} and its tools, in {}",
        base.kernel.release(),
        base.tree.root().display()
    );
    Ok(ExitCode::SUCCESS)
}

/// Removes the cache and the lab's build output.
pub fn clean() -> Result<ExitCode> {
    let cache = Cache::open()?;
    let step = Step::begin(format!("removing {}", cache.root().display()), "10 s");
    let lock = cache.lock()?;
    cache.clear(&lock)?;
    let lab = paths::lab();
    if lab.exists() {
        fs::remove_dir_all(&lab).map_err(file("can't remove", &lab))?;
    }
    step.done();
    Ok(ExitCode::SUCCESS)
}
