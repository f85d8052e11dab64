// SPDX-License-Identifier: GPL-2.0
//! What an operator says about a guest's devices, as text: `serial,port=0x2f8,irq=3,backend=physical`.

use serde::{Deserialize, Serialize};
use std::fmt;
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

/// A passed-through serial port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DeviceSpec {
    /// First port that the guest sees.
    pub port: u16,
    /// ISA interrupt that the guest sees.
    pub irq: u8,
    /// First port of the host's device.
    pub host_port: u16,
    /// ISA interrupt of the host's device.
    pub host_irq: u8,
    /// Whether the guest's accesses are recorded; without that the guest cannot move.
    #[serde(default = "recorded", skip_serializing_if = "is_recorded")]
    pub recorded: bool,
}

const fn recorded() -> bool {
    true
}

const fn is_recorded(recorded: &bool) -> bool {
    *recorded
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

/// What a right option looks like, for messages.
const FORM: &str =
    "serial,port=0x2f8,irq=3[,backend=physical][,host-port=0x2f8][,host-irq=3][,record=on|off]";

/// ISA interrupts that a serial port can have. 0 and 2 belong to the chipset, 4 to COM1, 8 to the clock, 9 to ACPI, 13 to
/// the coprocessor.
const SERIAL_IRQS: [u8; 10] = [3, 5, 6, 7, 10, 11, 12, 14, 15, 4];

impl FromStr for DeviceSpec {
    type Err = SpecError;

    fn from_str(option: &str) -> Result<Self, SpecError> {
        let wrong = |reason: String| SpecError {
            option: option.to_owned(),
            reason,
        };
        let mut parts = option.split(',');
        let kind = parts.next().unwrap_or_default();
        if kind != "serial" {
            return Err(wrong(format!(
                "\"{kind}\" is not a kind of device; this version knows: serial ({FORM})"
            )));
        }
        let (mut port, mut irq, mut host_port, mut host_irq) = (None, None, None, None);
        let mut recorded = None;
        for part in parts {
            let (key, value) = part
                .split_once('=')
                .ok_or_else(|| wrong(format!("\"{part}\" should be KEY=VALUE ({FORM})")))?;
            let twice = match key {
                "port" => port.replace(parse_port(value).map_err(|e| wrong(format!("port: {e}")))?).is_some(),
                "host-port" => host_port
                    .replace(parse_port(value).map_err(|e| wrong(format!("host-port: {e}")))?)
                    .is_some(),
                "irq" => irq.replace(parse_irq(value).map_err(|e| wrong(format!("irq: {e}")))?).is_some(),
                "host-irq" => host_irq
                    .replace(parse_irq(value).map_err(|e| wrong(format!("host-irq: {e}")))?)
                    .is_some(),
                "record" => recorded
                    .replace(parse_switch(value).map_err(|e| wrong(format!("record: {e}")))?)
                    .is_some(),
                "backend" if value == "physical" => false,
                "backend" => {
                    return Err(wrong(format!(
                        "backend: \"{value}\" is not a backend; this version knows: physical"
                    )))
                }
                _ => {
                    return Err(wrong(format!(
                        "\"{key}\" is not a key; a serial device has port, irq, backend, host-port, host-irq, record"
                    )))
                }
            };
            if twice {
                return Err(wrong(format!("{key} is given twice")));
            }
        }
        let port = port.ok_or_else(|| wrong(format!("port is missing ({FORM})")))?;
        let irq = irq.ok_or_else(|| wrong(format!("irq is missing ({FORM})")))?;
        if port.abs_diff(crate::com1::PORT) < 8 || u32::from(irq) == crate::com1::IRQ {
            return Err(wrong(
                "port 0x3f8 and irq 4 are the guest's console; give the device another place in the guest, for example \
                 port=0x2f8,irq=3, and the host's with host-port= and host-irq="
                    .into(),
            ));
        }
        Ok(Self {
            port,
            irq,
            host_port: host_port.unwrap_or(port),
            host_irq: host_irq.unwrap_or(irq),
            recorded: recorded.unwrap_or(true),
        })
    }
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "serial,port={:#x},irq={},backend=physical",
            self.port, self.irq
        )?;
        if self.host_port != self.port {
            write!(f, ",host-port={:#x}", self.host_port)?;
        }
        if self.host_irq != self.irq {
            write!(f, ",host-irq={}", self.host_irq)?;
        }
        if !self.recorded {
            f.write_str(",record=off")?;
        }
        Ok(())
    }
}

fn parse_port(value: &str) -> Result<u16, String> {
    let parsed = match value.strip_prefix("0x") {
        Some(digits) => u16::from_str_radix(digits, 16),
        None => value.parse(),
    };
    match parsed {
        Ok(port) if port >= 0x100 && port % 8 == 0 && port <= 0xfff8 => Ok(port),
        _ => Err(format!(
            "\"{value}\" is not the first port of a serial device; give a multiple of 8 from 0x100 to 0xfff8, such as \
             0x2f8"
        )),
    }
}

fn parse_irq(value: &str) -> Result<u8, String> {
    match value.parse() {
        Ok(irq) if SERIAL_IRQS.contains(&irq) => Ok(irq),
        _ => Err(format!(
            "\"{value}\" is not an ISA interrupt that a serial device can have; give 3, 4, 5, 6, 7, 10, 11, 12, 14 or 15"
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
        ] {
            let spec: DeviceSpec = text.parse().expect(text);
            assert_eq!(spec.to_string(), text);
        }
        let short: DeviceSpec = "serial,irq=3,port=760".parse().expect("decimal is fine");
        assert_eq!(
            (short.port, short.host_port, short.host_irq),
            (0x2f8, 0x2f8, 3)
        );
        assert!(short.recorded);
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
