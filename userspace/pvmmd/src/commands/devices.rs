// SPDX-License-Identifier: GPL-2.0
//! `pvmmd devices`: the device state table and the device location table.

use super::output::out;
use super::show::{ask, json, unexpected};
use super::Failure;
use crate::cli::GuestOutput;
use pvmm_control::reply::{DeviceInfo, DeviceLog};
use pvmm_control::request::Name;
use pvmm_control::{Reply, Request};
use std::path::Path;

/// `pvmmd devices`.
pub fn devices(socket: &Path, options: GuestOutput) -> Result<(), Failure> {
    let Reply::Devices(devices) = ask(socket, Request::Devices(Name { name: options.name }))?
    else {
        return unexpected();
    };
    if options.json {
        return json(&devices);
    }
    for line in states(&devices) {
        out!("{line}")?;
    }
    out!("")?;
    for line in locations(&devices) {
        out!("{line}")?;
    }
    Ok(())
}

/// A line of text in columns, without blanks at its end.
fn columns(cells: &[(&str, usize)]) -> String {
    let mut line = String::new();
    for (cell, width) in cells {
        line.push_str(&format!("{cell:<width$} "));
    }
    line.truncate(line.trim_end().len());
    line
}

/// The kind that is really there, and what it is.
fn really(device: &DeviceInfo) -> String {
    match device.backend.as_str() {
        "physical" => format!("{} (physical)", device.real_kind),
        // There is none beside the program that plays it.
        backend => backend.to_owned(),
    }
}

/// The device state table.
fn states(devices: &[DeviceInfo]) -> Vec<String> {
    let row = |device: &str, kind: &str, real: &str, item: &str, from: &str, state: &str| {
        columns(&[
            (device, 6),
            (kind, 9),
            (real, 17),
            (item, 32),
            (from, 5),
            (state, 0),
        ])
    };
    let mut lines = vec![row("DEVICE", "KIND", "REALLY", "ITEM", "FROM", "STATE")];
    for device in devices {
        let before = lines.len();
        let mut put = |item: &str, from: &str, state: &str| {
            lines.push(row(
                &device.device,
                &device.guest_kind,
                &really(device),
                item,
                from,
                state,
            ));
        };
        for item in &device.state {
            let value = format!("{:02x}h", item.value);
            let state = match item.meaning.as_str() {
                "" => value,
                meaning => format!("{value}  {meaning}"),
            };
            put(&item.item, &item.origin.to_string(), &state);
        }
        if let Some(why) = &device.unknown {
            put("-", "-", why);
        }
        if lines.len() == before {
            lines.push(row(
                &device.device,
                &device.guest_kind,
                &really(device),
                "-",
                "-",
                "nothing that could be shown",
            ));
        }
    }
    lines
}

/// The device location table.
fn locations(devices: &[DeviceInfo]) -> Vec<String> {
    let row = |device: &str, machine: &str, guest: &str, host: &str, log: &str, moves: &str| {
        columns(&[
            (device, 6),
            (machine, 10),
            (guest, 34),
            (host, 20),
            (log, 5),
            (moves, 0),
        ])
    };
    let mut lines = vec![row(
        "DEVICE",
        "MACHINE",
        "IN THE GUEST",
        "ON THE HOST",
        "LOG",
        "MOVES",
    )];
    for device in devices {
        let log = match device.log {
            Some(DeviceLog {
                recorded: false, ..
            }) => "off".into(),
            Some(log) => format!("{}/{}", log.length, log.bound),
            None => "-".into(),
        };
        let moves = match device.obstacles.as_slice() {
            [] => "yes".into(),
            reasons => format!("no: {}", reasons.join("; ")),
        };
        lines.push(row(
            &device.device,
            &device.location,
            &place(device, false),
            &place(device, true),
            &log,
            &moves,
        ));
    }
    lines
}

/// Where a device is: its ports and its interrupt.
fn place(device: &DeviceInfo, on_the_host: bool) -> String {
    let irq = if on_the_host {
        device.host_irq
    } else {
        device.irq
    };
    let ports: Vec<String> = device
        .ranges
        .iter()
        .filter_map(|range| {
            let first = if on_the_host {
                range.host_port?
            } else {
                range.port
            };
            let last = first.saturating_add(range.count.saturating_sub(1));
            Some(match range.count {
                0 | 1 => format!("{first:#x}"),
                _ => format!("{first:#x}-{last:#x}"),
            })
        })
        .collect();
    match (ports.is_empty(), irq) {
        (true, _) => "-".into(),
        (false, None) => ports.join(","),
        (false, Some(irq)) => format!("{} irq {irq}", ports.join(",")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pvmm_control::reply::{Origin, PortRange, StateItem};

    fn serial() -> DeviceInfo {
        DeviceInfo {
            device: "com2".into(),
            number: Some(2),
            guest_kind: "serial".into(),
            real_kind: "serial".into(),
            backend: "physical".into(),
            location: "this host".into(),
            port: 0x2f8,
            irq: Some(3),
            host_port: Some(0x3f8),
            host_irq: Some(4),
            ranges: vec![PortRange {
                port: 0x2f8,
                count: 8,
                host_port: Some(0x3f8),
            }],
            log: Some(DeviceLog {
                length: 2,
                bound: 4,
                recorded: true,
                overflowed: false,
            }),
            obstacles: Vec::new(),
            state: vec![StateItem {
                item: "LCR".into(),
                value: 3,
                meaning: "8n1 DLAB=0".into(),
                origin: Origin::Read,
            }],
            unknown: None,
        }
    }

    #[test]
    fn both_tables_say_all_of_a_device() {
        let lines = states(&[serial()]);
        assert_eq!(lines.len(), 2);
        let words: Vec<&str> = lines[1].split_whitespace().collect();
        assert_eq!(
            words.join(" "),
            "com2 serial serial (physical) LCR read 03h 8n1 DLAB=0"
        );
        let lines = locations(&[serial()]);
        let words: Vec<&str> = lines[1].split_whitespace().collect();
        assert_eq!(
            words.join(" "),
            "com2 this host 0x2f8-0x2ff irq 3 0x3f8-0x3ff irq 4 2/4 yes"
        );
    }

    #[test]
    fn what_is_not_known_and_what_cannot_move_is_said_with_the_reason() {
        let mut device = serial();
        device.state.clear();
        device.unknown = Some("the guest has ended".into());
        device.obstacles = vec!["its log has lost an access".into()];
        let state = states(&[device.clone()]).pop().expect("a line");
        assert!(state.ends_with("the guest has ended"), "{state}");
        let location = locations(&[device]).pop().expect("a line");
        assert!(
            location.ends_with("no: its log has lost an access"),
            "{location}"
        );
    }
}
