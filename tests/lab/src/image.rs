//! What an emulated host boots: a kernel, and one initramfs with everything.
//!
//! All hosts of a run boot the same image. What differs between them (their addresses) they derive
//! from the hardware addresses of their network cards, which the lab sets.

use std::fs;
use std::path::{Path, PathBuf};

use crate::bootdisk;
use crate::cpio::CpioWriter;
use crate::error::{file, Result};
use crate::kernel::Kernel;
use crate::machine::Pace;
use crate::process::output_of;
use crate::tree::Tree;

/// A file for the initramfs.
#[derive(Debug, Clone)]
pub struct GuestFile {
    /// Where it is in the hosts, for example `/bin/pvmmd`.
    pub path: String,
    /// Where it comes from.
    pub source: PathBuf,
}

/// A bootable image.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Image {
    /// The kernel as it runs, for QEMU, which loads it itself.
    pub vmlinux: PathBuf,
    /// The initramfs.
    pub initrd: PathBuf,
    /// For Bochs: the ROM that loads both from ...
    pub rom: PathBuf,
    /// ... this disk.
    pub disk: PathBuf,
    /// How the clocks of Bochs hosts go that boot it.
    pub pace: Pace,
    /// Whether it is the debug kernel that boots.
    pub debug: bool,
}

/// Names a host's addresses after its network cards and starts the agent.
///
/// A card's address is 52:54:00:NET:LAB:HOST; its IPv4 address becomes 10.NET.LAB.HOST/24. When the
/// agent ends, so does the host.
const INIT: &str = r#"#!/bin/sh
export PATH=/bin HOME=/root
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t debugfs debugfs /sys/kernel/debug
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
hostname host
# Windows of the size that an emulated card needs, which takes one packet in a millisecond: larger ones fill
# the tap's queue until it drops.
for size in /proc/sys/net/ipv4/tcp_rmem /proc/sys/net/ipv4/tcp_wmem; do
    echo 4096 65536 262144 > "$size"
done
[ ! -e /lib/modules/e1000.ko ] || insmod /lib/modules/e1000.ko
ip link set lo up
for card in /sys/class/net/*; do
    read -r mac < "$card/address"
    case $mac in
        52:54:00:*)
            IFS=:; set -- $mac; unset IFS
            name=${card##*/}
            ip addr add "10.$((0x$4)).$((0x$5)).$((0x$6))/24" dev "$name"
            ip link set "$name" MTU up
            ;;
    esac
done
dmesg -n 8
pvmm-agent
echo "the agent ended"
poweroff -f
"#;

/// Programs that access I/O ports, and the C library that they need; from the tree.
const PORT_TOOLS: [(&str, &str); 4] = [
    ("/bin/inb", "usr/bin/inb"),
    ("/bin/outb", "usr/bin/outb"),
    (
        "/lib64/ld-linux-x86-64.so.2",
        "usr/lib64/ld-linux-x86-64.so.2",
    ),
    (
        "/lib/x86_64-linux-gnu/libc.so.6",
        "usr/lib/x86_64-linux-gnu/libc.so.6",
    ),
];

/// Makes the image in `out`.
///
/// `files` are in every host, beside the kernel's modules, the agent, busybox, `inb` and `outb`.
///
/// # Errors
/// [`crate::LabError::Command`] if the boot ROM can't be assembled; [`crate::LabError::File`].
pub fn build(
    tree: &Tree,
    kernel: &Kernel,
    files: &[GuestFile],
    pace: Pace,
    mtu: u32,
    out: &Path,
) -> Result<Image> {
    if out.exists() {
        fs::remove_dir_all(out).map_err(file("can't remove", out))?;
    }
    fs::create_dir_all(out).map_err(file("can't make", out))?;
    let log = out.join("image.log");
    let initrd = out.join("initrd");
    let archive = initramfs(tree, kernel, files, mtu, &log)?;
    fs::write(&initrd, &archive).map_err(file("can't write", &initrd))?;
    let vmlinux = kernel.vmlinux();
    let (rom, disk) = bootdisk::build(tree, &vmlinux, &archive, &pace.command_line(), out)?;
    Ok(Image {
        vmlinux,
        initrd,
        rom,
        disk,
        pace,
        debug: kernel.is_debug(),
    })
}

fn initramfs(
    tree: &Tree,
    kernel: &Kernel,
    files: &[GuestFile],
    mtu: u32,
    log: &Path,
) -> Result<Vec<u8>> {
    let broken = |what: &'static str| file(what, log);
    let mut cpio = CpioWriter::new(Vec::new());
    let mut folders = Folders::default();
    for folder in ["dev", "proc", "sys", "tmp", "root", "run", "etc", "bin"] {
        folders.ensure(&mut cpio, &format!("{folder}/x"))?;
    }
    // The kernel opens it for /init before anything is mounted.
    cpio.character_device("dev/console", 5, 1)
        .map_err(broken("can't write the archive of"))?;
    let mtu = if mtu == 1500 {
        String::new()
    } else {
        format!("mtu {mtu}")
    };
    cpio.file("init", 0o755, INIT.replace("MTU", &mtu).as_bytes())
        .map_err(broken("can't write the archive of"))?;
    let busybox = tree.root().join("usr/bin/busybox");
    add(&mut cpio, &mut folders, "/bin/busybox", &busybox)?;
    let applets = output_of(
        &mut tree.command(&[], &["busybox", "--list"]),
        "busybox --list",
        log,
    )?;
    for applet in applets.lines().filter(|name| *name != "busybox") {
        cpio.link(&format!("bin/{applet}"), "busybox")
            .map_err(broken("can't write the archive of"))?;
    }
    for (path, source) in PORT_TOOLS {
        add(&mut cpio, &mut folders, path, &tree.root().join(source))?;
    }
    let modules = kernel.root().join("modules");
    for found in fs::read_dir(&modules).map_err(file("can't read", &modules))? {
        let found = found.map_err(file("can't read", &modules))?;
        let name = format!("/lib/modules/{}", found.file_name().to_string_lossy());
        add(&mut cpio, &mut folders, &name, &found.path())?;
    }
    for GuestFile { path, source } in files {
        add(&mut cpio, &mut folders, path, source)?;
    }
    cpio.finish().map_err(broken("can't write the archive of"))
}

/// The initramfs of a guest that runs on a host: nothing but its `init`, linked statically.
///
/// # Errors
/// [`crate::LabError::File`] if `init` can't be read.
pub fn guest_initramfs(init: &Path) -> Result<Vec<u8>> {
    let broken = || file("can't put into an archive", init);
    let content = fs::read(init).map_err(file("can't read", init))?;
    let mut cpio = CpioWriter::new(Vec::new());
    for folder in ["dev", "proc", "sys"] {
        cpio.directory(folder).map_err(broken())?;
    }
    cpio.character_device("dev/console", 5, 1)
        .map_err(broken())?;
    cpio.file("init", 0o755, &content).map_err(broken())?;
    cpio.finish().map_err(broken())
}

/// Folders that the archive has already.
#[derive(Default)]
struct Folders(Vec<String>);

impl Folders {
    /// Adds the folders above `name`.
    fn ensure(&mut self, cpio: &mut CpioWriter<Vec<u8>>, name: &str) -> Result<()> {
        for (at, _) in name.match_indices('/') {
            let folder = &name[..at];
            if !folder.is_empty() && !self.0.iter().any(|known| known == folder) {
                cpio.directory(folder)
                    .map_err(file("can't write the archive's", Path::new(folder)))?;
                self.0.push(folder.to_owned());
            }
        }
        Ok(())
    }
}

fn add(
    cpio: &mut CpioWriter<Vec<u8>>,
    folders: &mut Folders,
    path: &str,
    source: &Path,
) -> Result<()> {
    let name = path.trim_start_matches('/');
    folders.ensure(cpio, name)?;
    let content = fs::read(source).map_err(file("can't read", source))?;
    // Programs keep running, modules and data don't mind.
    cpio.file(name, 0o755, &content)
        .map_err(file("can't write the archive's", source))
}
