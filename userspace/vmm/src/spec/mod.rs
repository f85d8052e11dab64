// SPDX-License-Identifier: GPL-2.0
//! What an operator says about a guest's devices, as text: `serial,port=0x2f8,irq=3,backend=physical`.

pub mod kind;

pub use kind::{DeviceKind, Interrupt, KINDS};

use crate::com1;
use pvmm_uapi::MAX_PORT_RANGES;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// A guest's interrupt controllers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IrqChip {
    /// The 8259 pair alone, and no ACPI tables.
    Pic,
    /// Local APIC and I/O APIC beside it.
    #[default]
    Apic,
}

/// A device of the host that a guest is given. As JSON it is its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DeviceSpec {
    /// What it is.
    pub kind: &'static DeviceKind,
    /// First port that the guest sees.
    pub port: u16,
    /// ISA interrupt that the guest sees, if it has one.
    pub irq: Option<u8>,
    /// First port of each range of the host's device.
    pub host_ports: [u16; MAX_PORT_RANGES],
    /// ISA interrupt of the host's device; there is one if the guest has one.
    pub host_irq: Option<u8>,
    /// Whether the guest's accesses are recorded; without that the guest cannot move.
    pub recorded: bool,
}

impl DeviceSpec {
    /// First port of the host's device.
    pub fn host_port(&self) -> u16 {
        self.host_ports[0]
    }

    /// First port of each range, as the guest sees it.
    pub fn guest_ports(&self) -> [u16; MAX_PORT_RANGES] {
        self.kind.ports(self.port)
    }

    /// The host's port ranges.
    pub fn host_ranges(&self) -> impl Iterator<Item = Range<u32>> + '_ {
        ranges(self.host_ports, self.kind)
    }

    /// Whether another device would use the same hardware.
    pub fn shares_hardware(&self, other: &Self) -> bool {
        let ports = self
            .host_ranges()
            .any(|one| other.host_ranges().any(|two| overlap(&one, &two)));
        ports || self.host_irq.is_some() && self.host_irq == other.host_irq
    }
}

/// The ranges of a kind whose first ports these are.
fn ranges(
    ports: [u16; MAX_PORT_RANGES],
    kind: &'static DeviceKind,
) -> impl Iterator<Item = Range<u32>> {
    ports
        .into_iter()
        .zip(kind.lengths())
        .map(|(first, length)| {
            let first = u32::from(first);
            first..first + u32::from(length)
        })
}

fn overlap(one: &Range<u32>, other: &Range<u32>) -> bool {
    one.start < other.end && other.start < one.end
}

/// What is wrong with a device option.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("device option \"{option}\": {reason}")]
pub struct SpecError {
    /// The whole option.
    pub option: String,
    /// What is wrong, and what would be right.
    pub reason: String,
}

impl TryFrom<String> for DeviceSpec {
    type Error = SpecError;

    fn try_from(option: String) -> Result<Self, SpecError> {
        option.parse()
    }
}

impl From<DeviceSpec> for String {
    fn from(spec: DeviceSpec) -> Self {
        spec.to_string()
    }
}

/// The values of an option's keys.
#[derive(Default)]
struct Values<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Values<'a> {
    fn get(&self, key: &str) -> Option<&'a str> {
        let found = self.0.iter().find(|(known, _)| *known == key);
        found.map(|(_, value)| *value)
    }

    /// The value of a key, read by `parse`, whose error says what is wrong with the value.
    fn parsed<T>(
        &self,
        key: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, String> {
        let parsed = self.get(key).map(parse).transpose();
        parsed.map_err(|reason| format!("{key}: {reason}"))
    }
}

impl FromStr for DeviceSpec {
    type Err = SpecError;

    fn from_str(option: &str) -> Result<Self, SpecError> {
        parse(option).map_err(|reason| SpecError {
            option: option.to_owned(),
            reason,
        })
    }
}

fn parse(option: &str) -> Result<DeviceSpec, String> {
    let mut parts = option.split(',');
    let name = parts.next().unwrap_or_default();
    let kind = DeviceKind::named(name).ok_or_else(|| {
        format!(
            "\"{name}\" is not a kind of device; this version knows: {}, for example {}; see `pvmmd device-kinds`",
            DeviceKind::names(),
            KINDS[0]
        )
    })?;
    let keys = kind.keys();
    let mut values = Values::default();
    for part in parts {
        let (key, value) = part
            .split_once('=')
            .ok_or_else(|| format!("\"{part}\" should be KEY=VALUE ({kind})"))?;
        if !keys.iter().any(|known| known == key) {
            return Err(format!(
                "\"{key}\" is not a key; a {} device has {}",
                kind.name(),
                keys.join(", ")
            ));
        }
        if values.get(key).is_some() {
            return Err(format!("{key} is given twice"));
        }
        values.0.push((key, value));
    }
    let first = |value: &str| parse_port(kind, value, kind.alignment);
    let port = values.parsed("port", first)?;
    let host_port = values.parsed("host-port", first)?;
    let irq = values.parsed("irq", |value| parse_irq(kind, value))?;
    let host_irq = values.parsed("host-irq", |value| parse_irq(kind, value))?;
    let recorded = values.parsed("record", parse_switch)?;
    values.parsed("backend", parse_backend)?;
    let port = port.ok_or_else(|| format!("port is missing ({kind})"))?;
    let irq = irq.ok_or_else(|| format!("irq is missing ({kind})"))?;
    let host_irq = host_irq.unwrap_or(irq);
    if irq.is_some() != host_irq.is_some() {
        return Err("irq and host-irq must both be none, or neither".into());
    }
    let mut host_ports = kind.ports(host_port.unwrap_or(port));
    for (place, other) in host_ports.iter_mut().skip(1).zip(kind.others) {
        let key = format!("host-{}-port", other.name);
        if let Some(port) = values.parsed(&key, |value| parse_port(kind, value, 1))? {
            *place = port;
        }
    }
    let console = u32::from(com1::PORT)..u32::from(com1::PORT) + u32::from(com1::PORTS);
    let on_console = ranges(kind.ports(port), kind).any(|range| overlap(&range, &console));
    if on_console || irq.is_some_and(|irq| u32::from(irq) == com1::IRQ) {
        return Err(format!(
            "ports 0x3f8 to 0x3ff and irq 4 are the guest's console; give the device another place in the guest, for \
             example {}, and the host's with host-port= and host-irq=",
            kind.example
        ));
    }
    Ok(DeviceSpec {
        kind,
        port,
        irq,
        host_ports,
        host_irq,
        recorded: recorded.unwrap_or(true),
    })
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let irq = |irq: Option<u8>| irq.map_or("none".into(), |irq| irq.to_string());
        write!(
            f,
            "{},port={:#x},irq={},backend=physical",
            self.kind.name(),
            self.port,
            irq(self.irq)
        )?;
        if self.host_port() != self.port {
            write!(f, ",host-port={:#x}", self.host_port())?;
        }
        let usual = self.kind.ports(self.host_port());
        let others = self.host_ports.iter().zip(usual).skip(1);
        for ((port, usual), other) in others.zip(self.kind.others) {
            if *port != usual {
                write!(f, ",host-{}-port={port:#x}", other.name)?;
            }
        }
        if self.host_irq != self.irq {
            write!(f, ",host-irq={}", irq(self.host_irq))?;
        }
        if !self.recorded {
            f.write_str(",record=off")?;
        }
        Ok(())
    }
}

/// The first port of a range.
fn parse_port(kind: &DeviceKind, value: &str, alignment: u16) -> Result<u16, String> {
    let parsed = match value.strip_prefix("0x") {
        Some(digits) => u16::from_str_radix(digits, 16),
        None => value.parse(),
    };
    let last = kind.ports(0)[kind.others.len()].saturating_add(8);
    let limit = (u16::MAX - last) / alignment * alignment;
    match parsed {
        Ok(port) if port >= 0x100 && port % alignment == 0 && port <= limit => Ok(port),
        _ => Err(format!(
            "\"{value}\" is not the first port of a {} device; give a multiple of {alignment} from 0x100 to {limit:#x}, \
             such as {}",
            kind.name(),
            kind.example
        )),
    }
}

fn parse_irq(kind: &DeviceKind, value: &str) -> Result<Option<u8>, String> {
    if value == "none" && kind.interrupt == Interrupt::Optional {
        return Ok(None);
    }
    match value.parse() {
        Ok(irq) if kind.irqs.contains(&irq) => Ok(Some(irq)),
        _ => Err(format!(
            "\"{value}\" is not an ISA interrupt that a {} device can have; give {}",
            kind.name(),
            kind.irq_choice()
        )),
    }
}

fn parse_switch(value: &str) -> Result<bool, String> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("\"{value}\" is neither on nor off")),
    }
}

fn parse_backend(value: &str) -> Result<(), String> {
    match value {
        "physical" => Ok(()),
        _ => Err(format!(
            "\"{value}\" is not a backend; this version knows: physical"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_option_survives_the_way_through_text() {
        for text in [
            "serial,port=0x2f8,irq=3,backend=physical",
            "serial,port=0x2f8,irq=3,backend=physical,host-port=0x3f8,host-irq=4",
            "serial,port=0x3e8,irq=10,backend=physical,host-port=0x2f8",
            "serial,port=0x2f8,irq=3,backend=physical,record=off",
            "parallel,port=0x378,irq=7,backend=physical",
            "parallel,port=0x378,irq=5,backend=physical,host-port=0x3bc,host-irq=7",
            "parallel,port=0x278,irq=none,backend=physical,record=off",
        ] {
            let spec: DeviceSpec = text.parse().expect(text);
            assert_eq!(spec.to_string(), text);
        }
        let short: DeviceSpec = "serial,irq=3,port=760".parse().expect("decimal is fine");
        assert_eq!(
            (short.port, short.host_port(), short.host_irq),
            (0x2f8, 0x2f8, Some(3))
        );
        assert!(short.recorded);
    }

    #[test]
    fn devices_that_would_use_the_same_hardware_are_found() {
        let spec = |text: &str| text.parse::<DeviceSpec>().expect(text);
        let one = spec("parallel,port=0x378,irq=7");
        for (other, shares) in [
            ("parallel,port=0x278,irq=5,host-port=0x378", true),
            ("parallel,port=0x278,irq=7", true),
            ("parallel,port=0x278,irq=none", false),
            ("serial,port=0x378,irq=3", true),
            ("serial,port=0x370,irq=3", false),
        ] {
            assert_eq!(one.shares_hardware(&spec(other)), shares, "{other}");
        }
    }

    #[test]
    fn an_error_names_the_option_the_value_and_what_would_be_right() {
        for (text, parts) in [
            ("", &["not a kind", "serial"][..]),
            ("nic,port=0x300,irq=5", &["\"nic\"", "serial"]),
            ("serial", &["port is missing"]),
            ("serial,port=0x2f8", &["irq is missing"]),
            ("serial,port", &["\"port\" should be KEY=VALUE"]),
            ("serial,port=0x2f9,irq=3", &["\"0x2f9\"", "multiple of 8"]),
            ("serial,port=0x20,irq=3", &["\"0x20\"", "0x100"]),
            ("serial,port=0x12f80,irq=3", &["\"0x12f80\""]),
            ("serial,port=0x2f8,irq=2", &["\"2\"", "3, 4, 5"]),
            ("serial,port=0x2f8,irq=three", &["\"three\""]),
            ("serial,port=0x2f8,irq=3,irq=5", &["irq is given twice"]),
            (
                "serial,port=0x2f8,irq=3,backend=modelled",
                &["\"modelled\"", "physical"],
            ),
            (
                "serial,port=0x2f8,irq=3,speed=9600",
                &["\"speed\"", "host-irq"],
            ),
            (
                "serial,port=0x2f8,irq=3,record=0",
                &["record", "\"0\"", "off"],
            ),
            ("serial,port=0x3f8,irq=3", &["console", "port=0x2f8"]),
            (
                "parallel,port=0x378",
                &["irq is missing", "parallel,port=0x378"],
            ),
            ("parallel,port=0x37a,irq=7", &["\"0x37a\"", "multiple of 4"]),
            ("parallel,port=0x378,irq=9", &["\"9\"", "15 or none"]),
            ("parallel,port=0x3f8,irq=7", &["console", "port=0x378"]),
            ("serial,port=0x2f8,irq=none", &["\"none\"", "3, 4, 5"]),
            ("parallel,port=0x378,irq=7,host-irq=none", &["both be none"]),
            ("serial,port=0x2f8,irq=4", &["console"]),
        ] {
            let error = text.parse::<DeviceSpec>().expect_err(text).to_string();
            assert!(error.contains(&format!("\"{text}\"")), "{error}");
            for part in parts {
                assert!(error.contains(part), "{error} lacks {part}");
            }
        }
    }
}
