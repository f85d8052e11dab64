//! The two emulators, and how each is told to be the same host.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::bootdisk::GEOMETRY;
use crate::error::{file, Result};
use crate::image::Image;
use crate::tree::{Bind, Tree};

/// How the clock of a Bochs host goes. Bochs counts one tick of the time-stamp counter per instruction, so instructions
/// per emulated second are the counter's rate, too, and [`Pace::command_line`] tells the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Pace {
    /// Not more instructions in a second than a real core manages: cards take packets, and timers fire, by emulated time,
    /// which would otherwise crawl, and each idle tick costs real time, too. Emulated time doesn't run ahead of real time:
    /// otherwise an idle host's clock races (and keeps a core busy), and all limits of its daemons are over before
    /// a busy peer has done anything.
    Together,
    /// A clock rate like a real machine's, so that what happens a thousand times a second has the weight that it has there, and
    /// no regard to real time: for one host on which ticks are counted.
    Alone,
}

impl Pace {
    /// Instructions per emulated second.
    const fn ips(self) -> u32 {
        match self {
            Self::Together => 50_000_000,
            Self::Alone => 1_000_000_000,
        }
    }

    const fn sync(self) -> &'static str {
        match self {
            Self::Together => "slowdown",
            Self::Alone => "none",
        }
    }

    /// The hosts' kernel command line under Bochs.
    ///
    /// - `tsc_early_khz`: the emulated CPU says that its counter runs at 2.4 GHz, which would make each
    ///   second of a delay loop take 2.4 billion emulated instructions
    /// - `cryptomgr.notests`: 0.4 billion instructions of self tests
    /// - `initcall_blacklist`: 0.2 billion instructions that verify certificates for module signatures
    /// - `mitigations=off`: the emulated CPU doesn't speculate, and pays for each instruction
    /// - `panic=0`, so that the console's last words stay the last
    pub fn command_line(self) -> String {
        let khz = self.ips() / 1000;
        format!(
            "console=ttyS0,115200 quiet panic=0 tsc_early_khz={khz} no_timer_check cryptomgr.notests mitigations=off \
             initcall_blacklist=load_system_certificate_list"
        )
    }
}

/// The hosts' kernel command line under QEMU.
const QEMU_COMMAND_LINE: &str = "console=ttyS0,115200 quiet panic=0 cryptomgr.notests";

/// Which emulator plays the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Emulator {
    /// An Intel CPU with VT-x.
    Bochs,
    /// An AMD CPU, without VT-x; several times as fast.
    Qemu,
}

/// One network card.
#[derive(Debug, Clone)]
pub struct Card {
    /// The tap that it's plugged into.
    pub tap: String,
    /// Its hardware address.
    pub mac: String,
}

/// All that makes one emulated machine.
#[derive(Debug)]
pub struct MachineConfig<'a> {
    /// Which emulator.
    pub emulator: Emulator,
    /// Number of CPUs.
    pub cpus: u8,
    /// Which CPU Bochs plays, by its name there.
    pub model: &'static str,
    /// Memory in MB.
    pub memory_mb: u32,
    /// The cards, in PCI order.
    pub cards: &'a [Card],
    /// TCP port of the loopback device that the second serial port connects to.
    pub com2_port: u16,
    /// What it boots.
    pub image: &'a Image,
    /// Folder for configuration and logs: `console.log`, `bochs.log`.
    pub folder: &'a Path,
}

/// Where a machine's folder and its image appear inside the tree.
const FOLDER: &str = "/pvmm/machine";
const IMAGE: &str = "/pvmm/image";
/// Name of a host's disk in the machine's folder.
const DISK: &str = "boot.disk";

/// Makes the command that is the running machine.
///
/// # Errors
/// [`crate::LabError::File`] if a configuration file can't be written.
pub fn command(tree: &Tree, config: &MachineConfig<'_>) -> Result<Command> {
    let image = config.image.initrd.parent().unwrap_or(Path::new("/"));
    let binds = [
        Bind::rw(config.folder, FOLDER),
        Bind::ro(image, IMAGE),
        Bind::ro(
            config.image.vmlinux.parent().unwrap_or(Path::new("/")),
            crate::kernel::KERNEL_DIR,
        ),
    ];
    let script = match config.emulator {
        Emulator::Bochs => {
            let rc = config.folder.join("bochsrc");
            fs::write(&rc, bochsrc(config)).map_err(file("can't write", &rc))?;
            // Bochs locks a disk by a file beside it: each host needs the disk in its own folder.
            let disk = config.folder.join(DISK);
            if fs::hard_link(&config.image.disk, &disk).is_err() {
                fs::copy(&config.image.disk, &disk).map_err(file("can't copy to", &disk))?;
            }
            // Debian's Bochs has the debugger: it waits for this word before it starts.
            let go = config.folder.join("debugger.rc");
            fs::write(&go, "c\n").map_err(file("can't write", &go))?;
            format!("cd {FOLDER} && exec bochs -q -f bochsrc -rc debugger.rc")
        }
        Emulator::Qemu => format!("cd {FOLDER} && exec {}", qemu(config)),
    };
    Ok(tree.script(&binds, &script))
}

fn bochsrc(config: &MachineConfig<'_>) -> String {
    let cards: String = config
        .cards
        .iter()
        .enumerate()
        .map(|(number, Card { tap, mac })| {
            format!(
                "e1000: card={number}, enabled=1, mac={mac}, ethmod=tuntap, \
                 ethdev=/dev/net/tun:{tap}, script=none\n"
            )
        })
        .collect();
    let slots: String = (1..=config.cards.len())
        .map(|n| format!(", slot{n}=e1000"))
        .collect();
    let (heads, spt) = GEOMETRY;
    format!(
        "plugin_ctrl: unmapped=1, biosdev=1, speaker=0, extfpuirq=1, parallel=1, serial=1, e1000=1\n\
         config_interface: textconfig\n\
         display_library: rfb, options=\"timeout=0\"\n\
         cpu: model={}, count={}, ips={}, reset_on_triple_fault=0\n\
         memory: guest={memory}, host={memory}\n\
         romimage: file=/usr/share/bochs/BIOS-bochs-latest\n\
         vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest\n\
         pci: enabled=1, chipset=i440fx{slots}\n\
         {cards}\
         optromimage1: file={IMAGE}/{rom}, address=0xd0000\n\
         ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14\n\
         ata0-master: type=disk, mode=flat, path={DISK}, cylinders=0, heads={heads}, spt={spt}\n\
         boot: disk\n\
         com1: enabled=1, mode=file, dev=console.log\n\
         com2: enabled=1, mode=socket-client, dev=127.0.0.1:{}\n\
         parport1: enabled=1, file=parport.out\n\
         clock: sync={}\n\
         log: bochs.log\n\
         error: action=ignore\n\
         panic: action=fatal\n",
        config.model,
        config.cpus,
        config.image.pace.ips(),
        config.com2_port,
        config.image.pace.sync(),
        rom = name_of(&config.image.rom),
        memory = config.memory_mb,
    )
}

fn qemu(config: &MachineConfig<'_>) -> String {
    let cards: String = config
        .cards
        .iter()
        .enumerate()
        .map(|(number, Card { tap, mac })| {
            format!(
                " -netdev tap,id=n{number},ifname={tap},script=no,downscript=no \
                 -device e1000,netdev=n{number},mac={mac}"
            )
        })
        .collect();
    format!(
        "qemu-system-x86_64 -machine pc -accel tcg -cpu max -smp {} -m {} -display none \
         -no-reboot -nodefaults -serial file:console.log -serial tcp:127.0.0.1:{} \
         -kernel {}/{} -initrd {IMAGE}/{} -append '{QEMU_COMMAND_LINE}'{cards}",
        config.cpus,
        config.memory_mb,
        config.com2_port,
        crate::kernel::KERNEL_DIR,
        name_of(&config.image.vmlinux),
        name_of(&config.image.initrd),
    )
}

fn name_of(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}
