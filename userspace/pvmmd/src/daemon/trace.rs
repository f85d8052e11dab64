// SPDX-License-Identifier: GPL-2.0
//! Tells a client what a guest does to a device, while it does it.

use super::device_table;
use super::guest::Guest;
use pvmm_control::reply::{DeviceInfo, TracedAccess, TracedAccesses};
use pvmm_control::{ControlError, Event, Reply};
use pvmm_migrate::devices::describe;
use pvmm_uapi::{TraceEntry, MAX_TRACE_ENTRIES, TRACE_ENTRY_LOGGED};
use pvmm_vmm::VmmError;
use std::time::{Duration, Instant};

/// How often the module is asked. It keeps [`MAX_TRACE_ENTRIES`] accesses meanwhile, and counts the others.
const FETCH_INTERVAL: Duration = Duration::from_millis(20);
/// How often a client is told that there is nothing to tell. An answer that it does not take ends the trace.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);

/// A trace in the module, which ends with this. It does not keep the virtual machine alive.
struct Running<'a> {
    guest: &'a Guest,
    number: u32,
}

impl<'a> Running<'a> {
    fn start(guest: &'a Guest, number: u32) -> Result<Self, ControlError> {
        let started = guest.vm()?.trace_start(number);
        started.map_err(ControlError::failed)?;
        Ok(Self { guest, number })
    }

    /// What has come since the last time, and how much was lost since the start. `None` if the guest has ended.
    fn fetch(&self, entries: &mut [TraceEntry]) -> Result<Option<(usize, u64)>, ControlError> {
        let Ok(vm) = self.guest.vm() else {
            return Ok(None);
        };
        match vm.trace_fetch(self.number, entries) {
            Ok(fetched) => Ok(Some(fetched)),
            Err(VmmError::Ended { .. }) => Ok(None),
            Err(error) => Err(ControlError::failed(error)),
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if let Ok(vm) = self.guest.vm() {
            // It fails only if the trace has ended with the virtual machine.
            let _ = vm.trace_stop(self.number);
        }
    }
}

/// Tells `on_event` each access of `guest` to `device` until the guest ends, or is moved away, or the client goes.
pub fn follow(
    guest: &Guest,
    device: &str,
    on_event: &mut dyn FnMut(Event) -> std::io::Result<()>,
) -> Result<Reply, ControlError> {
    let (info, number, kind) = find(guest, device)?;
    guest.check_here()?;
    let running = Running::start(guest, number)?;
    let mut entries = vec![TraceEntry::default(); MAX_TRACE_ENTRIES as usize];
    // At once for the first time: from here on the client misses nothing.
    let mut told: Option<(Instant, u64)> = None;
    while let Some((count, lost)) = running.fetch(&mut entries)? {
        let news = count > 0
            || told.is_none_or(|(at, before)| at.elapsed() >= IDLE_INTERVAL || lost != before);
        if news {
            let fetched = entries.iter().take(count);
            let accesses = fetched.map(|entry| access(&info, kind, entry)).collect();
            if on_event(Event::Trace(TracedAccesses { accesses, lost })).is_err() {
                return Ok(Reply::Done);
            }
            told = Some((Instant::now(), lost));
        }
        if count < entries.len() {
            std::thread::sleep(FETCH_INTERVAL);
        }
    }
    Ok(Reply::Done)
}

/// The device of this name, its number and its kind.
fn find(guest: &Guest, device: &str) -> Result<(DeviceInfo, u32, u32), ControlError> {
    let name = guest.name();
    let infos = device_table::places(guest);
    let Some(info) = infos.iter().find(|info| info.device == device) else {
        let known: Vec<&str> = infos
            .iter()
            .filter(|info| info.number.is_some())
            .map(|info| info.device.as_str())
            .collect();
        return Err(ControlError::invalid(format!(
            "guest \"{name}\" has no device \"{device}\"; it has {}",
            known.join(", ")
        )));
    };
    match (info.number, pvmm_migrate::devices::kind_number(&info.guest_kind)) {
        (Some(number), Some(kind)) => Ok((info.clone(), number, kind)),
        _ => Err(ControlError::invalid(format!(
            "\"{device}\" lives in pvmmd and has no recorder; only devices of the module can be traced"
        ))),
    }
}

/// An access in a client's words.
fn access(info: &DeviceInfo, kind: u32, entry: &TraceEntry) -> TracedAccess {
    let range = info.ranges.get(usize::from(entry.range));
    // Ports have 16 bits; the module gives offsets within the range.
    let port = range.map_or(0, |range| range.port.wrapping_add(entry.offset as u16));
    let described = describe(kind, entry.register, entry.value);
    let (register, meaning) = match described {
        Some((name, meaning)) => (Some(name.to_owned()), meaning),
        None => (None, String::new()),
    };
    TracedAccess {
        time: entry.vm_ns,
        port,
        write: entry.write != 0,
        value: entry.value,
        register,
        meaning,
        logged: entry.flags & TRACE_ENTRY_LOGGED != 0,
        log_length: entry.log_length,
    }
}
