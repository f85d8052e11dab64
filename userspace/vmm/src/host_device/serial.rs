// SPDX-License-Identifier: GPL-2.0
//! The host's serial ports, which are found in `/sys/class/tty/ttyS*` (Documentation/ABI/testing/sysfs-tty): `port`, `irq`,
//! `type`. A port of type 0 is held by nobody. A port that is a console is refused: the host would go on writing to it.

use super::{attribute, file_name, number, refused, HostDevices, Taken};
use crate::error::VmmError;
use std::fs;
use std::path::{Path, PathBuf};

impl HostDevices {
    /// Takes the port from its driver. `None` if no driver has it.
    pub(super) fn claim_serial(&self, port: u16) -> Result<Option<Taken>, VmmError> {
        let refused = |reason| refused(port, reason);
        let Some((tty, directory)) = self.find(port) else {
            return Ok(None);
        };
        match self.letting_go(&tty, &directory) {
            Ok((device, driver)) => self.take(port, &tty, &device, driver).map(Some),
            Err(reason) => Err(refused(reason)),
        }
    }

    /// Which device has to be taken from which driver, or why it can't be.
    fn letting_go(&self, tty: &str, directory: &Path) -> Result<(PathBuf, PathBuf), String> {
        let is_console = self.consoles().iter().any(|console| console == tty)
            || attribute(directory, "console").as_deref() == Some("Y");
        if is_console {
            return Err(format!(
                "it is {tty}, a console of this host; boot the host without console={tty}, or choose another port"
            ));
        }
        let (device, driver) = bound_device(directory).ok_or_else(|| {
            format!("it is {tty}, but sysfs names no driver that could let it go")
        })?;
        if file_name(&driver) == "serial8250" {
            return Err(format!(
                "it is {tty}, which shares its driver with the host's other ports; take it from the driver by \
                 `setserial /dev/{tty} uart none` and start the guest again"
            ));
        }
        Ok((device, driver))
    }

    /// The name of the tty that has a port.
    pub(super) fn tty(&self, port: u16) -> Option<String> {
        self.find(port).map(|(tty, _)| tty)
    }

    /// What stands against giving a port away that a tty has.
    pub(super) fn serial_obstacle(&self, port: u16) -> Option<String> {
        let (tty, directory) = self.find(port)?;
        self.letting_go(&tty, &directory).err()
    }

    /// First port and interrupt of every port that a tty has.
    pub(super) fn serial_ports(&self) -> Vec<(u16, Option<u8>)> {
        let attribute_number = |directory: &Path, name| number(&attribute(directory, name)?);
        let ports = self.ttys().into_iter().filter_map(|(_, directory)| {
            let port = u16::try_from(attribute_number(&directory, "port")?).ok()?;
            let irq = attribute_number(&directory, "irq").and_then(|irq| u8::try_from(irq).ok());
            Some((port, irq.filter(|irq| *irq != 0)))
        });
        ports.collect()
    }

    /// The ttys that have hardware, and their directories.
    fn ttys(&self) -> Vec<(String, PathBuf)> {
        let Ok(entries) = fs::read_dir(self.sysfs.join("class/tty")) else {
            return Vec::new();
        };
        let ttys = entries.flatten().filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            let directory = entry.path();
            let real = name.starts_with("ttyS")
                && attribute(&directory, "port").is_some()
                && attribute(&directory, "type").as_deref() != Some("0");
            real.then_some((name, directory))
        });
        ttys.collect()
    }

    /// The tty that drives `port`, and its directory.
    fn find(&self, port: u16) -> Option<(String, PathBuf)> {
        self.ttys().into_iter().find(|(_, directory)| {
            attribute(directory, "port").and_then(|text| number(&text)) == Some(port.into())
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
