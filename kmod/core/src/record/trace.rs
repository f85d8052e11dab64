// SPDX-License-Identifier: GPL-2.0
//! A trace of what the guest does to one device, for people: each access that exits, and what the recorder took it for.
//!
//! Beside the path: the exit asks [`Tap::is_on`] before it shows an access to the recorder, and nothing more while nobody
//! watches. Who watches takes the entries out while the guest runs; what finds no room is counted and dropped.
#![forbid(unsafe_code)]

use super::Recorder;
use crate::arch::zeroed;
use crate::devices::RecorderState;
use crate::iospace::{Access, Direction};
use core::sync::atomic::{AtomicU32, Ordering};
use pvmm_hostabi::{Host, OutOfMemory, SpinLock};
use pvmm_uapi::{TraceEntry, MAX_TRACE_ENTRIES, TRACE_ENTRY_LOGGED, TRACE_NO_REGISTER};

/// Room for the entries that wait.
type Entries = [TraceEntry; MAX_TRACE_ENTRIES as usize];

/// Entries that wait to be taken, oldest first, in a ring.
struct Ring<H: Host> {
    entries: H::Box<Entries>,
    /// Where the oldest is.
    first: usize,
    len: usize,
    lost: u64,
}

impl<H: Host> Ring<H> {
    fn push(&mut self, entry: TraceEntry) {
        let room = self.entries.len();
        let at = (self.first + self.len) % room;
        match self.entries.get_mut(at) {
            Some(place) if self.len < room => {
                *place = entry;
                self.len += 1;
            }
            _ => self.lost += 1,
        }
    }

    fn pop(&mut self) -> Option<TraceEntry> {
        if self.len == 0 {
            return None;
        }
        let entry = self.entries.get(self.first).copied();
        self.first = (self.first + 1) % self.entries.len();
        self.len -= 1;
        entry
    }
}

/// Why a trace can't be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TraceError {
    /// A device is traced already.
    Taken,
    /// The host has no memory left.
    OutOfMemory,
}

impl From<OutOfMemory> for TraceError {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

/// Where a VM's accesses can be watched.
pub struct Tap<H: Host> {
    /// The traced device's number plus 1; 0 if none is.
    device: AtomicU32,
    /// Taken in windows with interrupts off and by requests, never by interrupt handlers.
    ring: H::SpinLock<Option<Ring<H>>>,
}

impl<H: Host> Tap<H> {
    /// A tap that nobody watches. Process context.
    pub fn new() -> Result<Self, OutOfMemory> {
        Ok(Self {
            device: AtomicU32::new(0),
            ring: H::spin_lock(None)?,
        })
    }

    /// Whether device `number` is watched. Costs a load.
    #[inline]
    pub fn is_on(&self, number: u32) -> bool {
        // The ring has its lock; a watcher who comes or goes just now misses an access or makes one look in vain.
        self.device.load(Ordering::Relaxed) == number.wrapping_add(1)
    }

    /// Watches device `number` from now on. Process context.
    ///
    /// # Errors
    ///
    /// [`TraceError`].
    pub fn start(&self, number: u32) -> Result<(), TraceError> {
        // Made before the lock is taken, under which nobody may sleep.
        let new = Ring {
            entries: zeroed::<H, Entries>()?,
            first: 0,
            len: 0,
            lost: 0,
        };
        let refused = {
            let mut ring = self.ring.lock();
            if ring.is_some() {
                Some(new)
            } else {
                *ring = Some(new);
                self.device.store(number.wrapping_add(1), Ordering::Relaxed);
                None
            }
        };
        match refused {
            None => Ok(()),
            Some(_) => Err(TraceError::Taken),
        }
    }

    /// Takes the oldest entries into `into`: how many, and how many were lost since the start. `None` if the device is not
    /// watched.
    pub fn fetch(&self, number: u32, into: &mut [TraceEntry]) -> Option<(usize, u64)> {
        let mut ring = self.ring.lock();
        if !self.is_on(number) {
            return None;
        }
        let ring = ring.as_mut()?;
        let mut count = 0;
        for place in into {
            let Some(entry) = ring.pop() else { break };
            *place = entry;
            count += 1;
        }
        Some((count, ring.lost))
    }

    /// Watches no longer. `false` if the device was not watched. Process context.
    pub fn stop(&self, number: u32) -> bool {
        let ended = {
            let mut ring = self.ring.lock();
            if !self.is_on(number) {
                return false;
            }
            self.device.store(0, Ordering::Relaxed);
            ring.take()
        };
        ended.is_some()
    }

    /// Notes an access.
    pub fn note(&self, entry: TraceEntry) {
        if let Some(ring) = self.ring.lock().as_mut() {
            ring.push(entry);
        }
    }
}

/// What a recorder takes an access for before it has seen it.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    register: Option<u16>,
    appended: u32,
}

impl Seen {
    /// Asks the recorder, whose device has not had `access` yet; for a read its value does not matter. `shown` says whether
    /// the recorder sees the guest's accesses at all.
    pub fn before(recorder: &RecorderState, shown: bool, access: &Access) -> Self {
        Self {
            register: if shown {
                recorder.classify(access)
            } else {
                recorder.only_register(access)
            },
            appended: recorder.log().appended,
        }
    }

    /// The entry, once the recorder has seen `access`.
    pub fn after(self, recorder: &RecorderState, access: &Access, vm_ns: u64) -> TraceEntry {
        let log = recorder.log();
        TraceEntry {
            vm_ns,
            value: access.value,
            offset: access.at.offset,
            register: self.register.unwrap_or(TRACE_NO_REGISTER),
            log_length: u16::try_from(log.entries.len()).unwrap_or(u16::MAX),
            range: access.at.range,
            width: access.width.bytes(),
            write: u8::from(access.direction == Direction::Write),
            flags: match log.appended == self.appended {
                true => 0,
                false => TRACE_ENTRY_LOGGED,
            },
        }
    }
}

#[cfg(test)]
mod tests;
