// SPDX-License-Identifier: GPL-2.0
//! Takes devices from the host's drivers, so that the module can give them to a guest, and puts them back.
//!
//! Serial ports are found by their tty ([`serial`]), any other device by its plug-and-play resources ([`pnp`]). What no
//! driver has needs nothing. What a driver has that cannot let go of one device is refused, with what to do. What could be
//! given away is in [`list`].
//!
//! What is taken is noted in a directory, so that after a daemon was killed the next one gives it back.

pub mod list;
mod owner;
mod pnp;
mod serial;

use crate::error::VmmError;
use crate::spec::DeviceSpec;
use pvmm_uapi::KIND_UART16550;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the module may take to let a port go before the host's driver gets it back.
const GIVE_BACK_LIMIT: Duration = Duration::from_secs(2);
const GIVE_BACK_INTERVAL: Duration = Duration::from_millis(20);

/// The host's devices.
#[derive(Debug, Clone)]
pub struct HostDevices {
    sysfs: PathBuf,
    procfs: PathBuf,
    /// Where what is taken is noted.
    notes: PathBuf,
}

/// A device that was taken from the host's driver. Dropping it gives it back.
#[derive(Debug)]
pub struct Taken {
    /// Its name for people: `ttyS1`, or the device's.
    label: String,
    /// The driver's directory, with `bind`.
    driver: PathBuf,
    /// The device's name there.
    device: String,
    note: PathBuf,
}

impl HostDevices {
    /// The devices of the host whose sysfs and procfs are at these places. `notes` is a directory that outlives the daemon but
    /// not the host.
    pub fn new(sysfs: &Path, procfs: &Path, notes: &Path) -> Self {
        Self {
            sysfs: sysfs.to_owned(),
            procfs: procfs.to_owned(),
            notes: notes.to_owned(),
        }
    }

    /// No host: nothing has a driver. For tests and benchmarks.
    pub fn none() -> Self {
        let nowhere = Path::new("/nonexistent");
        Self::new(nowhere, nowhere, nowhere)
    }

    /// Gives back what a daemon took that is gone. Call it when no other daemon runs.
    pub fn give_back_leftovers(&self) {
        // Without the directory nothing was taken.
        let Ok(entries) = fs::read_dir(&self.notes) else {
            return;
        };
        for note in entries.flatten().map(|entry| entry.path()) {
            let text = fs::read_to_string(&note).unwrap_or_default();
            if let [label, driver, device] = text.lines().collect::<Vec<_>>()[..] {
                tracing::info!(label, "was left taken by a daemon that is gone");
                drop(Taken {
                    label: label.to_owned(),
                    driver: PathBuf::from(driver),
                    device: device.to_owned(),
                    note,
                });
            }
        }
    }

    /// Takes the host's part of a device from its driver. `None` if no driver has it.
    ///
    /// # Errors
    ///
    /// The host needs it, or its driver cannot let it go.
    pub fn claim(&self, spec: &DeviceSpec) -> Result<Option<Taken>, VmmError> {
        let port = spec.host_port();
        let taken = match spec.kind.number {
            KIND_UART16550 => self.claim_serial(port)?,
            _ => None,
        };
        if taken.is_some() {
            return Ok(taken);
        }
        let pnp = self.pnp_devices().into_iter();
        let mut own = pnp.filter(|device| device.is_a(spec.kind));
        let device = own.find(|device| {
            let mut ranges = spec.host_ranges();
            ranges.any(|range| {
                device
                    .ports
                    .iter()
                    .any(|ports| ports.contains(&range.start))
            })
        });
        if let Some((device, driver)) = device.and_then(|it| Some((it.path, it.driver?))) {
            let label = file_name(&device);
            return self.take(port, &label, &device, driver).map(Some);
        }
        match spec.host_ranges().find_map(|range| self.owner(range)) {
            Some(owner) => Err(refused(port, owner::advice(&owner))),
            None => Ok(None),
        }
    }

    /// Unbinds a device from its driver, and notes it.
    fn take(
        &self,
        port: u16,
        label: &str,
        device: &Path,
        driver: PathBuf,
    ) -> Result<Taken, VmmError> {
        let name = file_name(device);
        let note = self.notes.join(&name);
        fs::create_dir_all(&self.notes)
            .and_then(|()| fs::write(&note, format!("{label}\n{}\n{name}\n", driver.display())))
            .map_err(|error| {
                let note = note.display();
                refused(
                    port,
                    format!("{label} cannot be noted as taken in {note}: {error}"),
                )
            })?;
        fs::write(driver.join("unbind"), &name).map_err(|error| {
            let reason = format!(
                "{label} cannot be taken from the host's driver: {error} (writing {name} to {}/unbind); run pvmmd as root",
                driver.display()
            );
            refused(port, reason)
        })?;
        tracing::info!(label, device = %name, "taken from the host's driver");
        Ok(Taken {
            label: label.to_owned(),
            driver,
            device: name,
            note,
        })
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let limit = Instant::now() + GIVE_BACK_LIMIT;
        loop {
            match fs::write(self.driver.join("bind"), &self.device) {
                Ok(()) => {
                    tracing::info!(label = %self.label, "given back to the host's driver");
                    // It may have been removed by hand; a note too many is harmless.
                    let _ = fs::remove_file(&self.note);
                    return;
                }
                Err(error) if Instant::now() > limit => {
                    tracing::error!(
                        label = %self.label, %error,
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

fn refused(port: u16, reason: String) -> VmmError {
    VmmError::HostDevice { port, reason }
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
mod tests;
