//! What an emulated host boots: one initramfs with everything, and a CD image around it.
//!
//! All hosts of a run boot the same image. What differs between them (their addresses) they derive
//! from the hardware addresses of their network cards, which the lab sets.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cpio::CpioWriter;
use crate::error::{file, Result};
use crate::kernel::Kernel;
use crate::process::{output_of, run_logged};
use crate::tree::{Bind, Tree};

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
    /// The kernel, for emulators that load it themselves.
    pub vmlinuz: PathBuf,
    /// The initramfs.
    pub initrd: PathBuf,
    /// CD image that boots both.
    pub iso: PathBuf,
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
insmod /lib/modules/e1000.ko
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

/// Boot loader configuration; the append line is patched in place for each host.
const ISOLINUX: &str = "default lab\nlabel lab\n  kernel /vmlinuz\n  append initrd=/initrd ";

/// Makes the image in `out`.
///
/// `modules` and `files` are in every host; `command_line` is the kernel's.
///
/// # Errors
/// [`crate::LabError::Command`] if the CD image can't be made; [`crate::LabError::File`].
pub fn build(
    tree: &Tree,
    kernel: &Kernel,
    files: &[GuestFile],
    command_line: &str,
    mtu: u32,
    out: &Path,
) -> Result<Image> {
    let _ = fs::remove_dir_all(out);
    let cd = out.join("cd");
    fs::create_dir_all(cd.join("isolinux")).map_err(file("can't make", &cd))?;
    let log = out.join("image.log");
    let initrd = out.join("initrd");
    let archive = initramfs(tree, kernel, files, mtu, &log)?;
    fs::write(&initrd, archive).map_err(file("can't write", &initrd))?;
    let config = cd.join("isolinux/isolinux.cfg");
    fs::write(&config, format!("{ISOLINUX}{command_line}\n"))
        .map_err(file("can't write", &config))?;
    for (from, to) in [(&initrd, "initrd"), (&kernel.vmlinuz(), "vmlinuz")] {
        // A second name for the same file; copied where the cache is on another file system.
        let to = cd.join(to);
        if fs::hard_link(from, &to).is_err() {
            fs::copy(from, &to).map_err(file("can't copy", from))?;
        }
    }
    let script = "cp /usr/lib/ISOLINUX/isolinux.bin /usr/lib/syslinux/modules/bios/ldlinux.c32 \
                  /pvmm/image/cd/isolinux/\n\
                  xorriso -as mkisofs -quiet -o /pvmm/image/lab.iso -b isolinux/isolinux.bin \
                  -c isolinux/boot.cat -no-emul-boot -boot-load-size 4 -boot-info-table /pvmm/image/cd";
    let mut command = tree.script(&[Bind::rw(out, "/pvmm/image")], script);
    run_logged(&mut command, "making the CD image", &log)?;
    Ok(Image {
        vmlinuz: kernel.vmlinuz(),
        initrd,
        iso: out.join("lab.iso"),
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
