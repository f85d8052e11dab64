//! What PID 1 does before the checks and after them.
//!
//! On the path: nothing; it makes the guest a system that can be checked, and ends it.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::path::Path;

use pvmm_guest::config::Exit;
use pvmm_guest::Config;
use rustix::mount::{mount, MountFlags};
use rustix::system::{reboot, RebootCommand};

/// Mounts what the checks need. What is mounted already (by the kernel's own choice) stays.
///
/// # Errors
/// Which mount failed.
pub fn mount_all() -> Result<(), String> {
    for (kind, target) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        let failed = |error: io::Error| format!("mounting {kind} on {target} failed: {error}");
        fs::create_dir_all(target).map_err(failed)?;
        match mount(kind, target, kind, MountFlags::NOSUID, None) {
            Ok(()) | Err(rustix::io::Errno::BUSY) => {}
            Err(error) => return Err(failed(error.into())),
        }
    }
    Ok(())
}

/// The parameters on the kernel's command line, and what is wrong with them.
pub fn config() -> (Config, Vec<String>) {
    match fs::read_to_string("/proc/cmdline") {
        Ok(cmdline) => {
            let (config, errors) = Config::from_cmdline(&cmdline);
            (config, errors.iter().map(ToString::to_string).collect())
        }
        Err(error) => {
            let error = format!("/proc/cmdline can't be read: {error}; using defaults");
            (Config::default(), vec![error])
        }
    }
}

/// Keeps the kernel's messages off COM1, so that none is printed into the middle of a line of
/// ours; they are read from `/dev/kmsg` instead. Those of a dying kernel are printed all the same.
///
/// # Errors
/// The kernel refused.
pub fn silence_kernel() -> io::Result<()> {
    fs::write("/proc/sys/kernel/printk", "1")
}

/// A value of `/proc/meminfo` in KiB, `MemTotal` or `MemAvailable`.
pub fn meminfo_kib(key: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// The clocksource in use, such as `tsc`.
pub fn clocksource() -> String {
    let path = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    fs::read_to_string(path).map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

/// Whether the kernel found a UART behind `/dev/<name>`: the device exists in any case, for
/// setserial(8) to attach one later, then of type 0 (PORT_UNKNOWN).
pub fn has_uart(name: &str) -> bool {
    fs::read_to_string(format!("/sys/class/tty/{name}/type")).is_ok_and(|kind| kind.trim() != "0")
}

/// Ends the guest. Without ACPI there is no way to switch it off, but to reset it there is.
///
/// Returns only if the kernel refused.
pub fn end(exit: Option<Exit>) -> io::Error {
    let acpi = Path::new("/sys/firmware/acpi").exists();
    let default = if acpi { Exit::Poweroff } else { Exit::Reboot };
    let command = match exit.unwrap_or(default) {
        Exit::Poweroff => RebootCommand::PowerOff,
        Exit::Reboot => RebootCommand::Restart,
        Exit::Halt => RebootCommand::Halt,
    };
    match reboot(command) {
        Ok(()) => io::Error::other("reboot(2) returned"),
        Err(error) => error.into(),
    }
}
