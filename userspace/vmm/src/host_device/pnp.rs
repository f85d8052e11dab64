// SPDX-License-Identifier: GPL-2.0
//! The host's plug-and-play devices: `/sys/bus/pnp/devices/*` with `id`, `resources` and `driver`. The firmware names every
//! device of the board there, whether a driver has it or not.

use super::{attribute, number, HostDevices};
use crate::spec::DeviceKind;
use std::fs;
use std::ops::Range;
use std::path::PathBuf;

/// A plug-and-play device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PnpDevice {
    pub(super) path: PathBuf,
    /// Its ids, the own before the compatible ones.
    pub(super) ids: Vec<String>,
    pub(super) ports: Vec<Range<u32>>,
    pub(super) irq: Option<u8>,
    /// The directory of the driver that has it.
    pub(super) driver: Option<PathBuf>,
}

impl PnpDevice {
    /// Whether the firmware calls it a device of this kind.
    pub(super) fn is_a(&self, kind: &DeviceKind) -> bool {
        self.ids
            .iter()
            .any(|id| kind.pnp_ids.contains(&id.as_str()))
    }
}

impl HostDevices {
    pub(super) fn pnp_devices(&self) -> Vec<PnpDevice> {
        let Ok(entries) = fs::read_dir(self.sysfs.join("bus/pnp/devices")) else {
            return Vec::new();
        };
        let mut devices: Vec<PnpDevice> = entries
            .flatten()
            .filter_map(|entry| {
                let path = fs::canonicalize(entry.path()).ok()?;
                let resources = attribute(&path, "resources")?;
                let ids = attribute(&path, "id")?;
                Some(PnpDevice {
                    ids: ids.split_whitespace().map(str::to_owned).collect(),
                    ports: resources.lines().filter_map(ports).collect(),
                    irq: resources.lines().find_map(irq),
                    driver: fs::canonicalize(path.join("driver")).ok(),
                    path,
                })
            })
            .collect();
        devices.sort_by(|one, other| one.path.cmp(&other.path));
        devices
    }
}

/// `io 0x378-0x37f`; a disabled resource has no numbers.
fn ports(line: &str) -> Option<Range<u32>> {
    let (first, last) = line.trim().strip_prefix("io ")?.split_once('-')?;
    let number = |text| u32::try_from(number(text)?).ok();
    Some(number(first)?..number(last)?.checked_add(1)?)
}

fn irq(line: &str) -> Option<u8> {
    let mut words = line.trim().strip_prefix("irq ")?.split_whitespace();
    words.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_read() {
        assert_eq!(ports("io 0x378-0x37f"), Some(0x378..0x380));
        assert_eq!(ports("io disabled"), None);
        assert_eq!(irq("irq 7"), Some(7));
        assert_eq!(irq("irq 7 High-Edge"), Some(7));
        assert_eq!(irq("dma 3"), None);
    }
}
