//! Linux's drivers for printers on parallel ports, which Debian's cloud kernel lacks: compiled from the same source, for guests.

use std::fs;
use std::path::PathBuf;

use crate::cache::{self, Cache, CacheLock};
use crate::error::{file, Result};
use crate::kernel::{Kernel, KERNEL_DIR};
use crate::process::run_logged;
use crate::progress::Step;
use crate::tree::{Bind, Tree};

/// Where the folder appears inside the tree.
const FOLDER: &str = "/pvmm/printer";

/// The drivers, in the order in which they are loaded; the numbers in the files' names keep it.
pub const MODULES: [&str; 3] = ["1-parport.ko", "2-parport_pc.ko", "3-lp.ko"];

/// Compiles them beside the kernel, which stays as it is.
const COMPILE: &str = r#"
cp -r "$K/source/drivers/parport" "$P/source"
cp "$K/source/drivers/char/lp.c" "$P/source/"
echo 'obj-m += lp.o' >> "$P/source/Makefile"
make -C "$K/out" M="$P/source" CONFIG_PARPORT=m CONFIG_PARPORT_PC=m modules
number=1
for module in parport parport_pc lp; do
    strip -g -o "$P/$number-$module.ko" "$P/source/$module.ko"
    number=$((number + 1))
done
rm -r "$P/source"
"#;

/// Returns the folder with [`MODULES`], made first if the cache doesn't hold it.
///
/// # Errors
/// [`crate::LabError::Command`], [`crate::LabError::DiskFull`], [`crate::LabError::File`].
pub fn ensure(cache: &Cache, lock: &CacheLock, tree: &Tree, kernel: &Kernel) -> Result<PathBuf> {
    let kernel_root = kernel.root().to_string_lossy().into_owned();
    let parts = [tree.hash(), &kernel_root, COMPILE];
    let hash = cache::hash(parts.iter().map(|part| part.as_bytes()));
    cache.make(lock, "printer", &hash, |root| {
        let step = Step::begin("printer drivers for guests", "20 s");
        let log = cache.root().join("printer.log");
        // A log of an earlier try would only confuse.
        fs::remove_file(&log).or_else(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Ok(()),
            _ => Err(file("can't remove", &log)(error)),
        })?;
        let mut command = tree.script(
            &[Bind::ro(kernel.root(), KERNEL_DIR), Bind::rw(root, FOLDER)],
            &format!("K={KERNEL_DIR} P={FOLDER}\n{COMPILE}"),
        );
        run_logged(&mut command, "compiling the printer drivers", &log)?;
        step.done();
        Ok(())
    })
}
