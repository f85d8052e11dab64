// SPDX-License-Identifier: GPL-2.0
//! Takes a serial port from the host's 8250 driver, so that the module can give it to a guest, and puts it back.
//!
//! The host's ports are found in `/sys/class/tty/ttyS*` (Documentation/ABI/testing/sysfs-tty): `port`, `irq`, `type`. A
//! port of type 0 is held by nobody. A port that is a console is refused: the host would go on writing to it.
//!
//! What is taken is noted in a directory, so that after a daemon was killed the next one gives it back.

use crate::error::VmmError;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the module may take to let a port go before the host's driver gets it back.
const GIVE_BACK_LIMIT: Duration = Duration::from_secs(2);
const GIVE_BACK_INTERVAL: Duration = Duration::from_millis(20);

/// The host's serial ports.
#[derive(Debug, Clone)]
pub struct HostSerialPorts {
    sysfs: PathBuf,
    /// Where what is taken is noted.
    notes: PathBuf,
}

/// A port that was taken from the host's driver. Dropping it gives it back.
#[derive(Debug)]
pub struct HostSerial {
    tty: String,
    /// The driver's directory, with `bind`.
    driver: PathBuf,
    /// The device's name there.
    device: String,
    note: PathBuf,
}

impl HostSerialPorts {
    /// The ports of the host whose sysfs is at `sysfs`. `notes` is a directory that outlives the daemon but not the host.
    pub fn new(sysfs: &Path, notes: &Path) -> Self {
        Self {
            sysfs: sysfs.to_owned(),
            notes: notes.to_owned(),
        }
    }

    /// Gives back what a daemon took that is gone. Call it when no other daemon runs.
    pub fn give_back_leftovers(&self) {
        // Without the directory nothing was taken.
        let Ok(entries) = fs::read_dir(&self.notes) else {
            return;
        };
        for note in entries.flatten().map(|entry| entry.path()) {
            let text = fs::read_to_string(&note).unwrap_or_default();
            if let [tty, driver, device] = text.lines().collect::<Vec<_>>()[..] {
                tracing::info!(tty, "was left taken by a daemon that is gone");
                drop(HostSerial {
                    tty: tty.to_owned(),
                    driver: PathBuf::from(driver),
                    device: device.to_owned(),
                    note,
                });
            }
        }
    }

    /// Takes the port from its driver. `None` if no driver has it.
    pub fn claim(&self, port: u16) -> Result<Option<HostSerial>, VmmError> {
        let refused = |reason: String| VmmError::HostDevice { port, reason };
        let Some((tty, directory)) = self.find(port) else {
            return Ok(None);
        };
        if self.consoles().contains(&tty)
            || attribute(&directory, "console").as_deref() == Some("Y")
        {
            return Err(refused(format!(
                "it is {tty}, a console of this host; boot the host without console={tty}, or choose another port"
            )));
        }
        let (device, driver) = bound_device(&directory).ok_or_else(|| {
            refused(format!(
                "it is {tty}, but sysfs names no driver that could let it go"
            ))
        })?;
        let name = file_name(&device);
        if file_name(&driver) == "serial8250" {
            return Err(refused(format!(
                "it is {tty}, which shares its driver with the host's other ports; take it from the driver by \
                 `setserial /dev/{tty} uart none` and start the guest again"
            )));
        }
        let note = self.notes.join(&name);
        fs::create_dir_all(&self.notes)
            .and_then(|()| fs::write(&note, format!("{tty}\n{}\n{name}\n", driver.display())))
            .map_err(|error| {
                refused(format!(
                    "{tty} cannot be noted as taken in {}: {error}",
                    note.display()
                ))
            })?;
        fs::write(driver.join("unbind"), &name).map_err(|error| {
            refused(format!(
                "{tty} cannot be taken from the host's driver: {error} (writing {name} to {}/unbind); run pvmmd as root",
                driver.display()
            ))
        })?;
        tracing::info!(%tty, device = %name, "taken from the host's driver");
        Ok(Some(HostSerial {
            tty,
            driver,
            device: name,
            note,
        }))
    }

    /// The tty that drives `port`, and its directory.
    fn find(&self, port: u16) -> Option<(String, PathBuf)> {
        let entries = fs::read_dir(self.sysfs.join("class/tty")).ok()?;
        entries.flatten().find_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            let directory = entry.path();
            let matches = name.starts_with("ttyS")
                && attribute(&directory, "port").and_then(|text| number(&text))
                    == Some(port.into())
                && attribute(&directory, "type").as_deref() != Some("0");
            matches.then_some((name, directory))
        })
    }

    fn consoles(&self) -> Vec<String> {
        attribute(&self.sysfs.join("class/tty/console"), "active")
            .unwrap_or_default()
            .split_whitespace()
            .map(str::to_owned)
            .collect()
    }
}

impl Drop for HostSerial {
    fn drop(&mut self) {
        let limit = Instant::now() + GIVE_BACK_LIMIT;
        loop {
            match fs::write(self.driver.join("bind"), &self.device) {
                Ok(()) => {
                    tracing::info!(tty = %self.tty, "given back to the host's driver");
                    // It may have been removed by hand; a note too many is harmless.
                    let _ = fs::remove_file(&self.note);
                    return;
                }
                Err(error) if Instant::now() > limit => {
                    tracing::error!(
                        tty = %self.tty, %error,
                        "cannot be given back to the host's driver; do it by: echo {} > {}/bind",
                        self.device, self.driver.display()
                    );
                    return;
                }
                // The module's claim ends with the last use of its file, which may be in another thread.
                Err(_) => std::thread::sleep(GIVE_BACK_INTERVAL),
            }
        }
    }
}

/// The nearest device above a tty that a bus driver is bound to, and that driver. Between the tty and it stand the devices
/// of the serial core ("serial-base" bus), which must not be unbound by hand.
fn bound_device(tty: &Path) -> Option<(PathBuf, PathBuf)> {
    let mut device = fs::canonicalize(tty.join("device")).ok()?;
    loop {
        let bus = fs::canonicalize(device.join("subsystem")).ok();
        let driver = fs::canonicalize(device.join("driver")).ok();
        if let (Some(bus), Some(driver)) = (bus, driver) {
            if file_name(&bus) != "serial-base" {
                return Some((device, driver));
            }
        }
        if !device.pop() {
            return None;
        }
    }
}

fn attribute(directory: &Path, name: &str) -> Option<String> {
    Some(
        fs::read_to_string(directory.join(name))
            .ok()?
            .trim()
            .to_owned(),
    )
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A sysfs with one serial port at 2F8h, driven by the PNP driver "serial".
    fn sysfs() -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a temporary directory can be made");
        let device = root.path().join("devices/pnp0/00:05");
        let port = device.join("00:05:0/00:05:0.0");
        let tty = port.join("tty/ttyS1");
        let driver = root.path().join("bus/pnp/drivers/serial");
        let core = root.path().join("bus/serial-base/drivers/port");
        for directory in [&tty, &driver, &core, &root.path().join("class/tty/console")] {
            fs::create_dir_all(directory).expect("a directory can be made");
        }
        for (link, target) in [
            (device.join("driver"), driver.clone()),
            (device.join("subsystem"), root.path().join("bus/pnp")),
            (port.join("driver"), core),
            (port.join("subsystem"), root.path().join("bus/serial-base")),
            (tty.join("device"), port),
            (root.path().join("class/tty/ttyS1"), tty.clone()),
        ] {
            symlink(target, link).expect("a link can be made");
        }
        for (file, text) in [
            (tty.join("port"), "0x2F8\n"),
            (tty.join("irq"), "3\n"),
            (tty.join("type"), "4\n"),
            (tty.join("console"), "N\n"),
            (root.path().join("class/tty/console/active"), "tty0 ttyS0\n"),
        ] {
            fs::write(file, text).expect("a file can be written");
        }
        root
    }

    fn ports(root: &tempfile::TempDir) -> HostSerialPorts {
        HostSerialPorts::new(root.path(), &root.path().join("notes"))
    }

    fn written(root: &tempfile::TempDir, file: &str) -> Option<String> {
        fs::read_to_string(root.path().join("bus/pnp/drivers/serial").join(file)).ok()
    }

    #[test]
    fn a_port_is_taken_from_its_driver_and_given_back() {
        let root = sysfs();
        let ports = ports(&root);
        let claimed = ports.claim(0x2f8).expect("not a console");
        assert_eq!(written(&root, "unbind").as_deref(), Some("00:05"));
        assert_eq!(written(&root, "bind"), None);
        drop(claimed.expect("a driver has it"));
        assert_eq!(written(&root, "bind").as_deref(), Some("00:05"));
    }

    #[test]
    fn a_port_that_no_driver_has_needs_nothing() {
        let root = sysfs();
        let ports = ports(&root);
        assert!(ports.claim(0x3e8).expect("free").is_none());
        fs::write(root.path().join("class/tty/ttyS1/type"), "0\n").expect("writable");
        assert!(ports.claim(0x2f8).expect("free").is_none());
        assert_eq!(written(&root, "unbind"), None);
    }

    #[test]
    fn a_console_of_the_host_is_refused() {
        let root = sysfs();
        fs::write(root.path().join("class/tty/console/active"), "ttyS1\n").expect("writable");
        let error = ports(&root).claim(0x2f8).expect_err("it is a console");
        assert!(error.to_string().contains("console=ttyS1"), "{error}");
        assert_eq!(written(&root, "unbind"), None);
    }

    #[test]
    fn what_a_killed_daemon_had_taken_is_given_back_by_the_next() {
        let root = sysfs();
        let claimed = ports(&root).claim(0x2f8).expect("not a console");
        // A killed process drops nothing.
        std::mem::forget(claimed);
        assert_eq!(written(&root, "bind"), None);
        ports(&root).give_back_leftovers();
        assert_eq!(written(&root, "bind").as_deref(), Some("00:05"));
        let notes = fs::read_dir(root.path().join("notes")).expect("a directory");
        assert_eq!(notes.count(), 0);
        ports(&root).give_back_leftovers();
    }
}
