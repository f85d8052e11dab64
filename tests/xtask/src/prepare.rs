//! What commands need before they can start: tree and kernel, then module, programs and image.

use std::fs;
use std::path::{Path, PathBuf};

use pvmm_lab::cache::Cache;
use pvmm_lab::image::{self, GuestFile};
use pvmm_lab::kernel::Kernel;
use pvmm_lab::machine::Pace;
use pvmm_lab::module::{self, Module};
use pvmm_lab::progress::Step;
use pvmm_lab::sandbox;
use pvmm_lab::tree::Tree;
use pvmm_lab::Prepared;

use crate::error::{file, start, Error, Result};
use crate::paths::{self, TRIPLE};

/// What doesn't depend on the checkout.
pub struct Base {
    /// The Debian 13 tree.
    pub tree: Tree,
    /// Its kernel, which guests boot, and hosts unless there is another for them.
    pub kernel: Kernel,
    /// The debug kernel, if hosts are to boot that.
    debug: Option<Kernel>,
}

impl Base {
    /// Makes what the cache lacks.
    ///
    /// # Errors
    /// Those of the lab.
    pub fn ensure() -> Result<Self> {
        Self::ensure_for(false)
    }

    /// The same, and the debug kernel for the hosts if `debug`.
    ///
    /// # Errors
    /// As [`Base::ensure`].
    pub fn ensure_for(debug: bool) -> Result<Self> {
        sandbox::check_machine()?;
        let cache = Cache::open()?;
        let lock = cache.lock()?;
        let tree = Tree::ensure(&cache, &lock)?;
        let kernel = Kernel::ensure(&cache, &lock, &tree)?;
        let debug = if debug {
            Some(Kernel::debug(&cache, &lock, &tree)?)
        } else {
            None
        };
        Ok(Base {
            tree,
            kernel,
            debug,
        })
    }

    /// The kernel that hosts boot.
    fn hosts(&self) -> &Kernel {
        self.debug.as_ref().unwrap_or(&self.kernel)
    }

    /// A folder for what is made for the hosts' kernel.
    fn folder(&self, name: &str) -> PathBuf {
        let suffix = if self.debug.is_some() { "-debug" } else { "" };
        paths::lab().join(format!("{name}{suffix}"))
    }

    /// Compiles the checkout's module for the hosts' kernel; none while the checkout has no module.
    ///
    /// # Errors
    /// Those of the lab.
    pub fn module(&self) -> Result<Option<Module>> {
        let checkout = paths::workspace();
        if !checkout.join("Kbuild").exists() {
            eprintln!("    (no Kbuild file in the checkout: no pvmm.ko)");
            return Ok(None);
        }
        let step = if self.debug.is_some() {
            Step::begin("pvmm.ko for the debug kernel", "40 s")
        } else {
            Step::begin("pvmm.ko for the lab's kernel", "20 s")
        };
        let out = self.folder("module");
        let module = module::build(&self.tree, self.hosts(), &checkout, "pvmm", &out)?;
        step.done();
        for line in &module.warnings {
            eprintln!("    {line}");
        }
        Ok(Some(module))
    }

    /// Makes the image that hosts boot, with `module`, the checkout's programs and `extra` files.
    ///
    /// # Errors
    /// [`Error::Cargo`]; those of the lab.
    pub fn image(&self, module: Option<&Module>, extra: Vec<GuestFile>) -> Result<Prepared> {
        self.image_at(Pace::Together, module, extra)
    }

    /// The same, for hosts whose clocks go at this pace.
    ///
    /// # Errors
    /// As [`Base::image`].
    pub fn image_at(
        &self,
        pace: Pace,
        module: Option<&Module>,
        extra: Vec<GuestFile>,
    ) -> Result<Prepared> {
        let (mut files, guest) = programs()?;
        if let Some(init) = guest {
            files.extend(self.guest(&init)?);
        }
        files.extend(hostile_guest()?);
        files.extend(module.map(|module| GuestFile {
            path: "/lib/modules/pvmm.ko".to_owned(),
            source: module.stripped.clone(),
        }));
        files.extend(extra);
        let image = image::build(
            &self.tree,
            self.hosts(),
            &files,
            pace,
            pvmm_lab::MTU,
            &self.folder("image"),
        )?;
        Ok(Prepared {
            tree: self.tree.hash().to_owned(),
            image,
            runs: self.folder("runs"),
        })
    }
}

impl Base {
    /// What hosts need to run a guest: Debian's kernel as it is, an initramfs with `init`, and Memtest86+.
    fn guest(&self, init: &Path) -> Result<[GuestFile; 4]> {
        let folder = paths::lab().join("guest");
        fs::create_dir_all(&folder).map_err(file("can't make", &folder))?;
        let initrd = folder.join("initrd");
        let archive = image::guest_initramfs(init)?;
        fs::write(&initrd, archive).map_err(file("can't write", &initrd))?;
        Ok([
            GuestFile {
                path: GUEST_KERNEL.to_owned(),
                source: self.kernel.vmlinuz(&self.tree),
            },
            GuestFile {
                path: GUEST_VMLINUX.to_owned(),
                source: self.kernel.vmlinux(),
            },
            GuestFile {
                path: GUEST_INITRD.to_owned(),
                source: initrd,
            },
            GuestFile {
                path: GUEST_MEMTEST.to_owned(),
                source: self.tree.root().join("boot/memtest86+x64.bin"),
            },
        ])
    }
}

/// Where hosts have a kernel for guests.
pub const GUEST_KERNEL: &str = "/guest/vmlinuz";
/// Where hosts have the same kernel unpacked: under emulation, a guest's own unpacking takes long.
pub const GUEST_VMLINUX: &str = "/guest/vmlinux";
/// Where hosts have a guest that does what a guest must not get away with: the program of the crate `pvmm-hostile`.
pub const GUEST_HOSTILE: &str = "/guest/hostile";
/// Where hosts have an initramfs for guests: the verifier of the crate `pvmm-guest`.
pub const GUEST_INITRD: &str = "/guest/initrd";

/// Where hosts have Debian's Memtest86+, an operating system of its own.
const GUEST_MEMTEST: &str = "/guest/memtest";

/// Programs of the workspace that hosts get, when the workspace has them; each is a package's only one.
const PROGRAMS: [&str; 4] = ["pvmm-agent", "pvmmd", "pvmm-ioctl", GUEST];
/// The program that is the init of guests.
const GUEST: &str = "pvmm-guest";

/// Builds the programs for the hosts. Returns those that go into hosts, and the guests' init.
fn programs() -> Result<(Vec<GuestFile>, Option<PathBuf>)> {
    let present = packages()?;
    let wanted: Vec<&str> = PROGRAMS
        .into_iter()
        .filter(|package| present.iter().any(|name| name == package))
        .collect();
    let built = compile(&wanted)?;
    let (guests, hosts): (Vec<&str>, Vec<&str>) =
        wanted.into_iter().partition(|program| *program == GUEST);
    let files = hosts
        .into_iter()
        .map(|program| GuestFile {
            path: format!("/bin/{program}"),
            source: built.join(program),
        })
        .collect();
    Ok((files, guests.first().map(|guest| built.join(guest))))
}

/// Builds the programs of these packages, linked statically, since neither hosts nor guests have libraries. Returns
/// the folder that they are in.
///
/// # Errors
/// [`Error::Cargo`].
pub fn compile(packages: &[&str]) -> Result<PathBuf> {
    let target = paths::lab().join("target");
    let step = Step::begin(
        "programs for the emulated hosts",
        "1 min the first time, then 1 s",
    );
    let mut command = paths::cargo(&["build", "--quiet", "--release", "--target", TRIPLE]);
    command
        .arg("--target-dir")
        .arg(&target)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    for program in packages {
        command.args(["--package", program, "--bin", program]);
    }
    if !command.status().map_err(start("cargo"))?.success() {
        return Err(Error::Cargo("build --release".to_owned()));
    }
    step.done();
    Ok(target.join(TRIPLE).join("release"))
}

/// The package of [`GUEST_HOSTILE`].
const HOSTILE: &str = "pvmm-hostile";

/// Builds the hostile guest, if the workspace has it: a program for no operating system at fixed addresses.
fn hostile_guest() -> Result<Option<GuestFile>> {
    if !packages()?.iter().any(|name| name == HOSTILE) {
        return Ok(None);
    }
    // Other flags than those of the programs, which would otherwise be built anew each time.
    let target = paths::lab().join("target-hostile");
    let mut command = paths::cargo(&["build", "--quiet", "--release", "--target", TRIPLE]);
    command
        .args(["--package", HOSTILE, "--bin", HOSTILE])
        .args(["--features", "freestanding"])
        .arg("--target-dir")
        .arg(&target)
        .env(
            "RUSTFLAGS",
            "-C relocation-model=static -C target-feature=+crt-static",
        )
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    if !command.status().map_err(start("cargo"))?.success() {
        return Err(Error::Cargo("build --release".to_owned()));
    }
    Ok(Some(GuestFile {
        path: GUEST_HOSTILE.to_owned(),
        source: target.join(TRIPLE).join("release").join(HOSTILE),
    }))
}

/// Names of the workspace's packages.
pub fn packages() -> Result<Vec<String>> {
    let metadata = metadata()?;
    let packages = metadata["packages"]
        .as_array()
        .ok_or_else(|| Error::CargoOutput {
            command: "metadata",
            why: "no packages".to_owned(),
        })?;
    Ok(packages
        .iter()
        .filter_map(|package| package["name"].as_str().map(str::to_owned))
        .collect())
}

/// What `cargo metadata --no-deps` says.
pub fn metadata() -> Result<serde_json::Value> {
    let out = paths::cargo(&["metadata", "--no-deps", "--format-version=1", "--quiet"])
        .output()
        .map_err(start("cargo"))?;
    if !out.status.success() {
        return Err(Error::CargoOutput {
            command: "metadata",
            why: String::from_utf8_lossy(&out.stderr).into_owned(),
        });
    }
    serde_json::from_slice(&out.stdout).map_err(|e| Error::CargoOutput {
        command: "metadata",
        why: e.to_string(),
    })
}

/// A local file and its path in the hosts, from `FILE:/PATH`.
pub fn guest_file(argument: &str) -> std::result::Result<GuestFile, String> {
    let (source, path) = argument
        .rsplit_once(':')
        .filter(|(source, path)| !source.is_empty() && path.starts_with('/'))
        .ok_or("expected FILE:/PATH/IN/THE/HOST")?;
    Ok(GuestFile {
        path: path.to_owned(),
        source: PathBuf::from(source),
    })
}
