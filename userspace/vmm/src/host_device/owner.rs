// SPDX-License-Identifier: GPL-2.0
//! Who has ports on the host, by `/proc/ioports`. Without the right to see addresses there, nobody.

use super::HostDevices;
use std::fs;
use std::ops::Range;

impl HostDevices {
    /// The driver that has some of these ports.
    pub(super) fn owner(&self, ports: Range<u32>) -> Option<String> {
        let text = fs::read_to_string(self.procfs.join("ioports")).ok()?;
        let overlapping = text.lines().filter_map(entry).filter(|(taken, name)| {
            taken.start < ports.end && ports.start < taken.end && is_driver(name)
        });
        // What is nested comes last, and is the driver's.
        overlapping.map(|(_, name)| name.to_owned()).next_back()
    }
}

/// One line: `  0378-037a : parport0`.
fn entry(line: &str) -> Option<(Range<u32>, &str)> {
    let (ports, name) = line.split_once(" : ")?;
    let (first, last) = ports.trim().split_once('-')?;
    let number = |digits| u32::from_str_radix(digits, 16).ok();
    Some((number(first)?..number(last)?.checked_add(1)?, name.trim()))
}

/// Whether a name is not a bridge's or a board's mere reservation. The module's own claims are the module's to refuse.
fn is_driver(name: &str) -> bool {
    !name.starts_with("PCI") && !name.starts_with("pnp ") && !name.starts_with("pvmm")
}

/// What to do so that a driver lets its ports go.
pub(super) fn advice(owner: &str) -> String {
    let how = if owner.starts_with("parport") {
        // Its platform device has no way to be unbound.
        "remove the driver by `modprobe -r lp ppdev parport_pc`"
    } else {
        "remove its driver (see /proc/ioports)"
    };
    format!("the host's {owner} has it, which cannot let go of one device; {how} and start the guest again")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_ioports_is_read() {
        assert_eq!(
            entry("  0378-037a : parport0"),
            Some((0x378..0x37b, "parport0"))
        );
        assert_eq!(
            entry("fffe-ffff : x : y"),
            Some((0xfffe..0x1_0000, "x : y"))
        );
        assert_eq!(entry("nonsense"), None);
    }
}
