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
}

/// Names a host's addresses after its network cards and starts the agent.
///
/// A card's address is 52:54:00:NET:LAB:HOST; on the control network (NET 86) its IPv4 address becomes
/// 10.NET.LAB.HOST/24. The cards of the migration network's lanes (NET 87 and on) are bundled under the
/// address of the first. When the agent ends, so does the host.
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
insmod /lib/modules/e1000.ko
insmod /lib/modules/tls.ko
insmod /lib/modules/bonding.ko mode=balance-rr miimon=100
ip link set bond0 MTU up
ip link set lo up
for card in /sys/class/net/*; do
    read -r mac < "$card/address"
    case $mac in
        52:54:00:*)
            IFS=:; set -- $mac; unset IFS
            name=${card##*/}
            case $4 in
                56) device=$name ;;
                57) device=bond0 ;;
                *) device= ;;
            esac
            [ "$4" = 56 ] || echo "+$name" > /sys/class/net/bond0/bonding/slaves
            [ -z "$device" ] || ip addr add "10.$((0x$4)).$((0x$5)).$((0x$6))/24" dev "$device"
            ip link set "$name" MTU up
            ;;
    esac
done
dmesg -n 8
pvmm-agent
echo "the agent ended"
poweroff -f
"#;

/// Makes the image in `out`.
///
/// `files` are in every host, beside the kernel's modules, the agent and busybox.
///
/// # Errors
/// [`crate::LabError::Command`] if the boot ROM can't be assembled; [`crate::LabError::File`].
pub fn build(
    tree: &Tree,
    kernel: &Kernel,
    files: &[GuestFile],
    command_line: &str,
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
    let (rom, disk) = bootdisk::build(tree, &vmlinux, &archive, command_line, out)?;
    Ok(Image {
        vmlinux,
        initrd,
        rom,
        disk,
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
