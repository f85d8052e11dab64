// SPDX-License-Identifier: GPL-2.0
//! What a client is told of a guest's devices: the *device state table* (kind in the guest, kind really there, item, state)
//! and the *device location table* (machine, ports, interrupt), and whether a device could move.
//!
//! Looking stops the guest for the length of some requests and changes nothing; see [`pvmm_vmm::Vm::peek_devices`].

use super::guest::Guest;
use super::requests::devices;
use pvmm_control::reply::{DeviceInfo, DeviceLog, Origin, PortRange, StateItem};
use pvmm_migrate::devices::{describe, uart16550 as uart};
use pvmm_uapi::*;
use pvmm_vmm::hypervisor::PeekedDevice;
use pvmm_vmm::{com1, rtc, Vm};

/// A guest's devices with their state. If that cannot be had, it is said why.
pub fn table(guest: &Guest) -> Vec<DeviceInfo> {
    let mut table = places(guest);
    obstacles_of_records(guest, &mut table);
    let numbers: Vec<u32> = table.iter().filter_map(|info| info.number).collect();
    let looked = guest.vm().and_then(|vm| {
        // An arriving guest's devices are being restored.
        guest.check_here()?;
        let peeked = vm.peek_devices(&numbers);
        let peeked = peeked.map_err(pvmm_control::ControlError::failed)?;
        Ok((vm, peeked))
    });
    match looked {
        Ok((vm, peeked)) => {
            let mut peeked = peeked.iter();
            for info in &mut table {
                match (info.number, info.device.as_str()) {
                    (Some(_), _) => {
                        if let Some(peeked) = peeked.next() {
                            tell(info, peeked);
                        }
                    }
                    (None, com1::STATE_NAME) => info.state = com1_items(&vm),
                    (None, rtc::STATE_NAME) => info.state = rtc_items(&vm),
                    (None, _) => {}
                }
            }
        }
        Err(error) => {
            for info in &mut table {
                info.unknown = Some(error.to_string());
            }
        }
    }
    table
}

/// A guest's devices and where they are, without their state.
pub fn places(guest: &Guest) -> Vec<DeviceInfo> {
    let mut places = devices(guest);
    for info in &mut places {
        info.ranges = port_ranges(guest, info);
    }
    places
}

/// Where the guest, and the host, has a device's ranges.
fn port_ranges(guest: &Guest, info: &DeviceInfo) -> Vec<PortRange> {
    let range = |port, count| PortRange {
        port,
        count,
        host_port: None,
    };
    match info.number {
        Some(DEVICE_I8259) => vec![range(0x20, 2), range(0xa0, 2), range(0x4d0, 2)],
        Some(DEVICE_I8254) => vec![range(0x40, 4), range(0x61, 1)],
        None if info.device == com1::STATE_NAME => vec![range(com1::PORT, com1::PORTS)],
        None => vec![range(rtc::PORT, rtc::PORTS)],
        Some(number) => {
            let mut attached = guest.devices().iter();
            let spec = attached
                .find(|attached| attached.number == number)
                .map(|attached| attached.spec);
            spec.iter()
                .flat_map(|spec| {
                    let places = spec.guest_ports().into_iter().zip(spec.host_ports);
                    places
                        .zip(spec.kind.lengths())
                        .map(|((port, host), count)| PortRange {
                            host_port: Some(host),
                            ..range(port, count)
                        })
                })
                .collect()
        }
    }
}

/// Devices of which the operator said that they are not recorded.
fn obstacles_of_records(guest: &Guest, table: &mut [DeviceInfo]) {
    for attached in guest.devices() {
        let mut infos = table.iter_mut();
        let info = infos.find(|info| info.number == Some(attached.number));
        if let (Some(info), false) = (info, attached.spec.recorded) {
            info.obstacles.push(
                "what the guest did to it is not known; start guests that are to move without record=off"
                    .into(),
            );
        }
    }
}

/// Fills in what was seen.
fn tell(info: &mut DeviceInfo, peeked: &PeekedDevice) {
    info.log = Some(DeviceLog {
        length: peeked.log_length,
        bound: peeked.log_bound,
        recorded: peeked.recorded,
        overflowed: peeked.overflowed,
    });
    if peeked.overflowed {
        info.obstacles.push(
            "its recorder had no room for an access, which is a bug in pvmm; it can move again after the guest was started anew"
                .into(),
        );
    }
    info.state = items(peeked);
}

/// The items of a look. What was read is told instead of a log entry with the same value.
fn items(peeked: &PeekedDevice) -> Vec<StateItem> {
    let is_read = |record: &StateRecord| {
        peeked.records.iter().any(|other| {
            other.origin == ORIGIN_READ_BACK
                && (other.register, other.value) == (record.register, record.value)
        })
    };
    let shown = peeked
        .records
        .iter()
        .filter(|record| record.origin != ORIGIN_LOG || !is_read(record));
    shown
        .map(|record| {
            let described = describe(peeked.kind, record.register, record.value);
            let (name, meaning) = match described {
                Some((name, meaning)) => (name.to_owned(), meaning),
                None => (format!("register {}", record.register), String::new()),
            };
            StateItem {
                item: name,
                value: record.value,
                meaning,
                origin: match record.origin {
                    ORIGIN_LOG => Origin::Log,
                    ORIGIN_READ_BACK => Origin::Read,
                    _ => Origin::Model,
                },
            }
        })
        .collect()
}

/// What COM1's model knows, by the names of a UART's registers.
fn com1_items(vm: &Vm) -> Vec<StateItem> {
    let state = vm.com1().save();
    let registers = [
        (uart::DLL, state.dll),
        (uart::DLM, state.dlm),
        (uart::IER, state.ier),
        (uart::LCR, state.lcr),
        (uart::MCR, state.mcr),
        (uart::LSR, state.lsr),
        (uart::MSR, state.msr),
        (uart::SCR, state.scr),
    ];
    let mut items: Vec<StateItem> = registers
        .into_iter()
        .filter_map(|(register, value)| {
            let (name, meaning) = describe(KIND_UART16550, register, value.into())?;
            Some(user(name, value.into(), meaning))
        })
        .collect();
    for (name, count) in [
        ("characters received", state.fifo.len()),
        ("characters that wait behind", state.queue.len()),
    ] {
        items.push(user(name, count as u64, count.to_string()));
    }
    items.push(user("interrupt line", state.line.into(), String::new()));
    items
}

/// What the clock's model knows.
fn rtc_items(vm: &Vm) -> Vec<StateItem> {
    let state = vm.rtc().save();
    let seconds = u64::try_from(state.time).unwrap_or(0);
    let mut items = vec![
        user("time", seconds, format!("{seconds} s since 1970")),
        user("address", state.address.into(), String::new()),
    ];
    for (name, cell) in [("register A", 0x0a), ("register B", 0x0b)] {
        let value = state.cells.get(cell).copied().unwrap_or(0);
        items.push(user(name, value.into(), String::new()));
    }
    items
}

fn user(item: &str, value: u64, meaning: String) -> StateItem {
    StateItem {
        item: item.into(),
        value,
        meaning,
        origin: Origin::User,
    }
}
