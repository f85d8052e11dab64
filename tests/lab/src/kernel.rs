//! The kernel of the emulated hosts: Debian's own binary, and what it takes to compile modules for it; or a debug kernel.
//!
//! Debian's header packages lack the kernel's Rust metadata, so the kernel's source is configured with
//! Debian's configuration and prepared as far as modules need it. The result must equal what Debian
//! compiled: [`check_symbols`] compares the hashes in all Rust symbol names with those that Debian's
//! kernel exports, because nothing else would notice a wrong compiler before the host crashes.
//!
//! The debug kernel is compiled whole from the same source, with a small configuration of its own (`debug.config`) that
//! has the kernel watch itself and the module: locks, memory, contexts, undefined behaviour.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::cache::{self, Cache, CacheLock};
use crate::debkernel::KernelPackages;
use crate::error::{file, LabError, Result};
use crate::process::run_logged;
use crate::progress::Step;
use crate::tree::{Bind, Tree};

/// Where a kernel's folder appears inside the tree. Kbuild writes absolute paths into what it makes,
/// so it must be the same at each use.
pub const KERNEL_DIR: &str = "/pvmm/kernel";

/// Modules of Debian's package that hosts load (compressed there, not here), in load order.
const DEBIAN_MODULES: [&str; 5] = [
    "kernel/virt/lib/irqbypass.ko",
    "kernel/arch/x86/kvm/kvm.ko",
    "kernel/arch/x86/kvm/kvm-intel.ko",
    "kernel/arch/x86/kvm/kvm-amd.ko",
    "kernel/arch/x86/kernel/msr.ko",
];

/// Prepares `$K` from the tree's source and configuration packages.
const PREPARE: &str = r#"
cd "$K"
xz -dc "/usr/src/$SOURCE.tar.xz" | tar -x
mv "$SOURCE" source
mkdir out modules
xz -dc "$CONFIG" > out/.config
cd source
scripts/config --file "$K/out/.config" --set-str BUILD_SALT "$RELEASE"
export KBUILD_OUTPUT="$K/out" LOCALVERSION
make olddefconfig
make -j"$(nproc)" prepare modules_prepare
"#;

/// For the hosts' kernel, which is installed in the tree. The cloud kernel has no e1000 driver, which both
/// emulators' network card needs: it is compiled from the same source.
const HOSTS: &str = r#"cp "/usr/src/linux-headers-$RELEASE/Module.symvers" "$K/out/"
unset KBUILD_OUTPUT
make -C "$K/out" M="$K/source/drivers/net/ethernet/intel/e1000" MO="$K/e1000" CONFIG_E1000=m modules
strip -g -o "$K/modules/e1000.ko" "$K/e1000/e1000.ko"
rm -r "$K/e1000"
for module in $MODULES; do
    from="/usr/lib/modules/$RELEASE/$module"
    to="$K/modules/$(basename "$module")"
    if [ -e "$from.xz" ]; then xz -dc "$from.xz" > "$to"; elif [ -e "$from" ]; then cp "$from" "$to"; fi
done
"$K/source/scripts/extract-vmlinux" "/usr/lib/modules/$RELEASE/vmlinuz" > "$K/vmlinux"
"#;

/// For another kernel: only the hashes of its exported symbols are needed beside the source.
const OTHERS: &str = r#"
cd "$K"
apt-get -q download "$HEADERS"
dpkg-deb -x linux-headers-*.deb headers
cp "headers/usr/src/linux-headers-$RELEASE/Module.symvers" "$K/out/"
rm -r headers linux-headers-*.deb
"#;

/// What the debug kernel has beyond `make tinyconfig`.
const DEBUG_CONFIG: &str = include_str!("debug.config");
/// The debug kernel's suffix behind the upstream version.
const DEBUG_VERSION: &str = "-pvmm-debug";

/// Compiles the debug kernel in `$K`, with LLVM: only so its checks of memory accesses cover Rust code. It has frame
/// pointers, since it records a stack with each allocation and each object that it watches. All drivers are built in, so
/// what it exports is what `vmlinux` does. An option that the fragment asks for and that doesn't come out
/// would make tests blind; an error is better.
const DEBUG: &str = r#"
cd "$K"
xz -dc "/usr/src/$SOURCE.tar.xz" | tar -x
mv "$SOURCE" source
mkdir out modules
cat > debug.config <<'END'
@CONFIG@END
cd source
export KBUILD_OUTPUT="$K/out" LLVM=1 LOCALVERSION
make tinyconfig
scripts/kconfig/merge_config.sh -m -O "$K/out" "$K/out/.config" "$K/debug.config"
make olddefconfig
while read -r option; do
    case $option in
    *=n) ! grep "^${option%=n}=" "$K/out/.config" ;;
    *) grep -qxF "$option" "$K/out/.config" ;;
    esac || { echo "the configuration has not taken $option"; exit 1; }
done < "$K/debug.config"
make -j"$(nproc)" vmlinux modules_prepare
cp "$K/out/vmlinux.symvers" "$K/out/Module.symvers"
strip -g -o "$K/vmlinux" "$K/out/vmlinux"
# The largest part of the output, which no module needs.
find "$K/out" -name '*.o' ! -path "$K/out/scripts/*" ! -path "$K/out/tools/*" -delete
rm -f "$K/out/vmlinux" "$K/out/vmlinux.unstripped" "$K/out/vmlinux.a"
"#;

/// A kernel that modules can be compiled for; the tree's own and the debug kernel are also ones that hosts can boot.
#[derive(Debug, Clone)]
pub struct Kernel {
    root: PathBuf,
    packages: KernelPackages,
    release: String,
}

impl Kernel {
    /// Returns the tree's kernel, prepared first if the cache doesn't hold it.
    ///
    /// # Errors
    /// [`LabError::Command`], [`LabError::DiskFull`], [`LabError::File`].
    pub fn ensure(cache: &Cache, lock: &CacheLock, tree: &Tree) -> Result<Self> {
        Self::prepared(cache, lock, tree, tree.kernel()?, HOSTS)
    }

    /// Returns the kernel of a Debian package of the same series, prepared first if the cache doesn't hold it.
    ///
    /// # Errors
    /// [`LabError::OtherKernel`]; [`LabError::Command`], [`LabError::DiskFull`], [`LabError::File`].
    pub fn of_package(cache: &Cache, lock: &CacheLock, tree: &Tree, package: &str) -> Result<Self> {
        Self::prepared(cache, lock, tree, tree.kernel()?.sibling(package)?, OTHERS)
    }

    /// Returns the debug kernel, compiled first if the cache doesn't hold it.
    ///
    /// # Errors
    /// [`LabError::Command`], [`LabError::DiskFull`], [`LabError::File`].
    pub fn debug(cache: &Cache, lock: &CacheLock, tree: &Tree) -> Result<Self> {
        let packages = tree.kernel()?;
        let upstream = packages.release.split('+').next().unwrap_or_default();
        let release = format!("{upstream}{DEBUG_VERSION}");
        let script = DEBUG.replace("@CONFIG@", DEBUG_CONFIG);
        let hash = cache::hash(
            [tree.hash(), &packages.note(), &script]
                .iter()
                .map(|s| s.as_bytes()),
        );
        let root = cache.make(lock, "kernel-debug", &hash, |root| {
            let step = Step::begin(format!("Linux {release}, compiled"), "40 min");
            let log = cache.root().join("kernel-debug.log");
            // A log of an earlier try would only confuse.
            let _ = fs::remove_file(&log);
            let variables = format!(
                "K={KERNEL_DIR} SOURCE='{}' LOCALVERSION='{DEBUG_VERSION}'",
                packages.source_name()
            );
            let mut command = tree.script(
                &[Bind::rw(root, KERNEL_DIR)],
                &format!("{variables}\n{script}"),
            );
            run_logged(&mut command, "compiling the debug kernel", &log)?;
            step.done();
            Ok(())
        })?;
        Ok(Kernel {
            root,
            packages,
            release,
        })
    }

    fn prepared(
        cache: &Cache,
        lock: &CacheLock,
        tree: &Tree,
        packages: KernelPackages,
        rest: &str,
    ) -> Result<Self> {
        let modules = DEBIAN_MODULES.join(" ");
        let script = format!("{PREPARE}{rest}");
        let hash = cache::hash(
            [tree.hash(), &packages.note(), &script, &modules]
                .iter()
                .map(|s| s.as_bytes()),
        );
        let root = cache.make(lock, "kernel", &hash, |root| {
            let step = Step::begin(
                format!("Linux {} made ready for Rust modules", packages.release),
                "3 min",
            );
            let log = cache.root().join("kernel.log");
            // A log of an earlier try would only confuse.
            let _ = fs::remove_file(&log);
            let variables = format!(
                "K={KERNEL_DIR} RELEASE='{}' SOURCE='{}' CONFIG='{}' LOCALVERSION='{}' HEADERS='{}' MODULES='{modules}'",
                packages.release,
                packages.source_name(),
                packages.config_path(),
                packages.local_version(),
                packages.headers(),
            );
            let mut command = tree.script(
                &[Bind::rw(root, KERNEL_DIR)],
                &format!("{variables}\n{script}"),
            );
            run_logged(&mut command, "preparing the kernel", &log)?;
            check_symbols(&root.join("out"))?;
            step.done();
            Ok(())
        })?;
        let release = packages.release.clone();
        Ok(Kernel {
            root,
            packages,
            release,
        })
    }

    /// The kernel's folder outside: `source`, `out`, `modules`, `vmlinux`.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What `uname -r` says on a host.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// The kernel, unpacked: as it is in memory when it runs.
    pub fn vmlinux(&self) -> PathBuf {
        self.root.join("vmlinux")
    }

    /// The tree's kernel as Debian ships it, packed: what a guest boots. A path inside `tree`.
    pub fn vmlinuz(&self, tree: &Tree) -> PathBuf {
        tree.root()
            .join("usr/lib/modules")
            .join(&self.packages.release)
            .join("vmlinuz")
    }

    /// Whether it is the debug kernel.
    pub fn is_debug(&self) -> bool {
        self.release != self.packages.release
    }

    /// A module for hosts to load, by its file name.
    pub fn module(&self, name: &str) -> PathBuf {
        self.root.join("modules").join(name)
    }
}

/// Checks that the prepared tree's Rust symbols are those of Debian's binary kernel.
///
/// # Errors
/// [`LabError::Command`] with the number of differences; [`LabError::File`].
fn check_symbols(out: &Path) -> Result<()> {
    let symvers = out.join("Module.symvers");
    let text = fs::read_to_string(&symvers).map_err(file("can't read", &symvers))?;
    let theirs = rust_symbols(&text);
    let mut ours = BTreeSet::new();
    for name in ["core", "bindings", "kernel"] {
        let path = out.join(format!("rust/exports_{name}_generated.h"));
        let text = fs::read_to_string(&path).map_err(file("can't read", &path))?;
        ours.extend(rust_symbols(&text));
    }
    let missing: Vec<&String> = ours.difference(&theirs).take(3).collect();
    if ours.is_empty() || !missing.is_empty() {
        return Err(LabError::Command {
            what: "comparing the kernel's Rust symbols with Debian's binary".to_owned(),
            status: format!("{} symbols compared", ours.len()),
            tail: format!("not in Debian's kernel, among others: {missing:?}"),
            log: symvers,
        });
    }
    Ok(())
}

/// All mangled Rust names (`_R...`) in a text.
fn rust_symbols(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '$' || c == '.'))
        .filter(|word| word.starts_with("_R"))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rust_symbols_are_found_in_both_kinds_of_file() {
        let symvers =
            "0x00000000\t_RNvCs1_4core3foo\tvmlinux\tEXPORT_SYMBOL_GPL\t\n0x0\tprintk\tvmlinux";
        let exports = "EXPORT_SYMBOL_RUST_GPL(_RNvCs1_4core3foo);\n";
        assert_eq!(rust_symbols(symvers), rust_symbols(exports));
        assert_eq!(rust_symbols(symvers).len(), 1);
    }
}
