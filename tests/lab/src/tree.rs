//! The Debian 13 tree: compilers, emulators and kernel packages, in a folder of the cache.
//!
//! Nothing of the lab depends on what the machine itself has installed beyond `mmdebstrap`: the
//! kernel is compiled, and the emulators run, inside this tree. Programs are started in it by
//! [`Tree::command`], in mount and process namespaces of their own, so that no mount and no process
//! stays behind however the lab ends.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::apt::{self, Archive};
use crate::cache::{self, Cache, CacheLock};
use crate::debkernel::KernelPackages;
use crate::error::{file, Result};
use crate::package::{self, no_network};
use crate::process::{output_of, run_logged};
use crate::progress::Step;

/// The Debian release of the tree.
const RELEASE: &str = "trixie";
/// Suites of that release that the tree takes packages from; the kernels are in backports.
const SUITES: [&str; 3] = ["trixie", "trixie-updates", "trixie-backports"];

/// What the tree holds beyond apt itself.
const PACKAGES: &[&str] = &[
    // to compile a kernel module, with the kernel's own Rust toolchain
    "bc",
    "bindgen",
    "bison",
    "build-essential",
    "clang",
    "flex",
    "libelf-dev",
    "libssl-dev",
    "lld",
    "llvm",
    "pahole",
    "python3-minimal",
    "rust-src",
    "rustc",
    "rustfmt",
    "kmod",
    "cpio",
    "rsync",
    "xz-utils",
    "zstd",
    // the machines, and what they boot
    "bochs",
    "bochsbios",
    "vgabios",
    "busybox-static",
    "qemu-system-x86",
    "seabios",
    // inb and outb: a look at a host's devices that doesn't go through this project's own code
    "ioport",
    "memtest86+",
];

/// Binds the tree's mounts, then becomes the program. Arguments: tree, `SOURCE:TARGET:ro|rw`..., `--`,
/// program and its arguments.
const ENTER: &str = r#"
tree=$1; shift
mount --rbind /dev "$tree/dev"
mount -t proc proc "$tree/proc"
while [ "$1" != -- ]; do
    mkdir -p "$tree$2"
    mount --bind "$1" "$tree$2"
    if [ "$3" = ro ]; then mount -o remount,bind,ro "$tree$2"; fi
    shift 3
done
shift
exec chroot "$tree" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 \
    DEBIAN_FRONTEND=noninteractive "$@"
"#;

/// The tree, complete.
#[derive(Debug, Clone)]
pub struct Tree {
    root: PathBuf,
    hash: String,
}

/// A folder of the machine made visible inside the tree.
#[derive(Debug, Clone, Copy)]
pub struct Bind<'a> {
    /// The folder outside.
    pub source: &'a Path,
    /// Where it appears inside, an absolute path.
    pub target: &'a str,
    /// Whether programs inside may write to it.
    pub writable: bool,
}

impl<'a> Bind<'a> {
    /// Read-only.
    pub fn ro(source: &'a Path, target: &'a str) -> Self {
        Bind {
            source,
            target,
            writable: false,
        }
    }

    /// Read and write.
    pub fn rw(source: &'a Path, target: &'a str) -> Self {
        Bind {
            source,
            target,
            writable: true,
        }
    }
}

impl Tree {
    /// Returns the tree, made first if the cache doesn't hold it.
    ///
    /// # Errors
    /// [`LabError::MissingTool`], [`LabError::NoNetwork`], [`LabError::NoKernel`],
    /// [`LabError::DiskFull`], [`LabError::Command`].
    pub fn ensure(cache: &Cache, lock: &CacheLock) -> Result<Self> {
        let recipe = [RELEASE, &SUITES.join(" "), &PACKAGES.join(" "), "1"];
        let hash = cache::hash(recipe.iter().map(|s| s.as_bytes()));
        let root = cache.entry("tree", &hash);
        if !root.exists() {
            package::ensure(cache, "mmdebstrap", "mmdebstrap")?;
            cache.make(lock, "tree", &hash, |root| {
                let tree = Tree {
                    root: root.to_owned(),
                    hash: hash.clone(),
                };
                tree.bootstrap(cache)?;
                tree.install(cache)
            })?;
        }
        Ok(Tree { root, hash })
    }

    /// The tree that [`Tree::ensure`] made earlier, by the name of its recipe.
    ///
    /// # Errors
    /// [`LabError::File`] if the cache doesn't hold it any more.
    pub fn existing(cache: &Cache, hash: &str) -> Result<Self> {
        let root = cache.entry("tree", hash);
        fs::metadata(&root).map_err(file("can't find", &root))?;
        Ok(Tree {
            root,
            hash: hash.to_owned(),
        })
    }

    /// The tree's folder outside.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Name of the recipe that made it.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// A command that runs `argv` inside the tree, as root, with a minimal environment.
    ///
    /// It ends, with everything that it started, when the returned command's process is killed, and
    /// when the thread that started that ends.
    pub fn command(&self, binds: &[Bind<'_>], argv: &[&str]) -> Command {
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--", "unshare"])
            .args(["--mount", "--pid", "--fork", "--kill-child=KILL", "--"])
            .args(["sh", "-euc", ENTER, "enter-tree"])
            .arg(&self.root);
        for bind in binds {
            command
                .arg(bind.source)
                .arg(bind.target)
                .arg(if bind.writable { "rw" } else { "ro" });
        }
        command.arg("--").args(argv);
        command
    }

    /// A shell script run inside the tree, which stops at the first error.
    pub fn script(&self, binds: &[Bind<'_>], script: &str) -> Command {
        self.command(binds, &["sh", "-euc", script])
    }

    /// The kernel that was chosen when the tree was made.
    ///
    /// # Errors
    /// [`LabError::File`] if the tree's note of it can't be read.
    pub fn kernel(&self) -> Result<KernelPackages> {
        let note = self.root.join(KERNEL_NOTE);
        let text = fs::read_to_string(&note).map_err(file("can't read", &note))?;
        KernelPackages::from_note(&text)
            .ok_or_else(|| file("can't understand", &note)(std::io::ErrorKind::InvalidData.into()))
    }

    fn bootstrap(&self, cache: &Cache) -> Result<()> {
        let step = Step::begin("a minimal Debian 13 tree", "20 s");
        let log = cache.root().join("tree.log");
        // A log of an earlier try would only confuse.
        let _ = fs::remove_file(&log);
        let archives = apt::archives(Path::new("/etc/apt"));
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "mmdebstrap"]);
        command.args(["--variant=apt", "--mode=root", "--include=ca-certificates"]);
        for Archive { keyring, .. } in &archives {
            if let Some(keyring) = keyring.as_ref().filter(|path| path.exists()) {
                command.arg(format!("--keyring={}", keyring.display()));
            }
        }
        for option in proxies() {
            command.arg(format!("--aptopt={option}"));
        }
        command.arg(RELEASE).arg(&self.root);
        // With none named, mmdebstrap takes its default mirror; then backports is added below.
        for line in source_lines(&archives) {
            command.arg(line);
        }
        run_logged(&mut command, "mmdebstrap", &log).map_err(no_network)?;
        self.name_sources(&archives)?;
        step.done();
        Ok(())
    }

    /// The tree's own `sources.list`: all suites, checked against the tree's own keyring.
    fn name_sources(&self, archives: &[Archive]) -> Result<()> {
        let path = self.root.join("etc/apt/sources.list");
        let mut lines = source_lines(archives);
        if lines.is_empty() {
            let made = fs::read_to_string(&path).map_err(file("can't read", &path))?;
            let uri = made
                .lines()
                .filter(|line| line.starts_with("deb "))
                .flat_map(str::split_whitespace)
                .find(|word| word.contains("://"));
            lines = uri.map(lines_of).unwrap_or_default();
        }
        fs::write(&path, lines.join("\n") + "\n").map_err(file("can't write", &path))
    }

    fn install(&self, cache: &Cache) -> Result<()> {
        let log = cache.root().join("tree.log");
        let step = Step::begin(
            "compilers, emulators and kernel packages (about 700 MB)",
            "2 min",
        );
        run_logged(
            &mut self.command(&[], &["apt-get", "-q", "update"]),
            "apt-get update",
            &log,
        )
        .map_err(no_network)?;
        let names = output_of(
            &mut self.command(&[], &["apt-cache", "pkgnames", "linux-"]),
            "apt-cache pkgnames",
            &log,
        )?;
        let candidates = KernelPackages::names(&names);
        let mut madison = vec!["apt-cache", "madison"];
        madison.extend(candidates.iter().map(String::as_str));
        let versions = output_of(&mut self.command(&[], &madison), "apt-cache madison", &log)?;
        let kernel = KernelPackages::newest(&versions)?;
        let mut install = vec!["apt-get", "-q", "-y", "--no-install-recommends", "install"];
        install.extend(PACKAGES);
        let packages = kernel.packages();
        install.extend(packages.iter().map(String::as_str));
        run_logged(&mut self.command(&[], &install), "apt-get install", &log)
            .map_err(no_network)?;
        run_logged(
            &mut self.command(&[], &["apt-get", "clean"]),
            "apt-get clean",
            &log,
        )?;
        let note = self.root.join(KERNEL_NOTE);
        fs::write(&note, kernel.note()).map_err(file("can't write", &note))?;
        step.done();
        Ok(())
    }
}

/// Where the tree remembers its kernel's name and version.
const KERNEL_NOTE: &str = "etc/pvmm-kernel";

fn source_lines(archives: &[Archive]) -> Vec<String> {
    archives.iter().flat_map(|a| lines_of(&a.uri)).collect()
}

fn lines_of(uri: &str) -> Vec<String> {
    SUITES
        .iter()
        .map(|suite| format!("deb {uri} {suite} main"))
        .collect()
}

/// Proxies of the machine's apt; without them the archive may be out of reach.
fn proxies() -> Vec<String> {
    let Ok(out) = Command::new("apt-config").arg("dump").output() else {
        return Vec::new();
    };
    String::from_utf8_lossy(&out.stdout)
        .lines()
        .filter(|line| {
            let key = line.split(' ').next().unwrap_or_default();
            key.starts_with("Acquire::http") && key.contains("Proxy") && !line.contains(" \"\"")
        })
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_suite_of_every_archive_is_listed() {
        let archives = [Archive {
            uri: "http://mirror.example/debian".to_owned(),
            keyring: None,
        }];
        let lines = source_lines(&archives);
        assert_eq!(lines.len(), SUITES.len());
        assert!(
            lines.contains(&"deb http://mirror.example/debian trixie-backports main".to_owned())
        );
    }
}
