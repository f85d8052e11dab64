// SPDX-License-Identifier: GPL-2.0
//! The log of one device: the shortest sequence of accesses that brings a fresh device into the same state.
//!
//! On the path it stands in the recorder: the classifier of the kind decides what an access means, and compacts with
//! the operations here, so that the log's size is bounded by the device and not by time. Order is kept across all
//! ranges of the device.
#![forbid(unsafe_code)]

use crate::iospace::{Access, Location, Width};

/// One remembered access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The register that the classifier found, numbered by the kind's table.
    pub register: u16,
    /// The access.
    pub access: Access,
}

const EMPTY: Entry = Entry {
    register: 0,
    access: Access::read(Location::new(0, 0), Width::W1, 0),
};

/// A log as it is seen by those who do not know its bound at compile time.
#[derive(Debug, Clone, Copy)]
pub struct LogView<'a> {
    /// The entries, oldest first.
    pub entries: &'a [Entry],
    /// How many there can be.
    pub bound: usize,
    /// Whether an entry was lost because there was no room.
    pub overflowed: bool,
    /// Whether it has all that it should: the recorder sees the guest's accesses, and nothing was lost.
    pub is_complete: bool,
    /// How often an entry was put in, or found no room, modulo 2^32.
    pub appended: u32,
}

impl<'a> LogView<'a> {
    /// The youngest entry of `register`.
    pub fn last_of(&self, register: u16) -> Option<&'a Entry> {
        self.entries
            .iter()
            .rev()
            .find(|entry| entry.register == register)
    }
}

/// At most `N` entries, oldest first.
///
/// A kind chooses `N` so that its compaction never needs more. Should it happen nevertheless, the entry is not taken
/// and the log stays marked: a device with an incomplete log must not be moved.
#[derive(Debug, Clone, Copy)]
pub struct Log<const N: usize> {
    entries: [Entry; N],
    len: usize,
    overflowed: bool,
    appended: u32,
}

impl<const N: usize> Default for Log<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> Log<N> {
    /// An empty log.
    pub const fn new() -> Self {
        Self {
            entries: [EMPTY; N],
            len: 0,
            overflowed: false,
            appended: 0,
        }
    }

    /// The log, for those who do not know its bound.
    pub fn view(&self) -> LogView<'_> {
        LogView {
            entries: self.entries(),
            bound: N,
            overflowed: self.overflowed,
            is_complete: !self.overflowed,
            appended: self.appended,
        }
    }

    /// The entries, oldest first.
    pub fn entries(&self) -> &[Entry] {
        self.entries.get(..self.len).unwrap_or(&[])
    }

    /// Whether an entry was lost because there was no room. Stays so.
    pub const fn overflowed(&self) -> bool {
        self.overflowed
    }

    /// The youngest entry of `register`.
    pub fn last_of(&self, register: u16) -> Option<&Entry> {
        self.view().last_of(register)
    }

    /// Puts an entry behind all others.
    pub fn append(&mut self, register: u16, access: Access) {
        self.appended = self.appended.wrapping_add(1);
        match self.entries.get_mut(self.len) {
            Some(place) => {
                *place = Entry { register, access };
                self.len += 1;
            }
            None => self.overflowed = true,
        }
    }

    /// The last write wins: drops the entries of `register` and puts this one behind all others.
    pub fn replace(&mut self, register: u16, access: Access) {
        self.drop_where(|entry| entry.register == register);
        self.append(register, access);
    }

    /// Drops the entries for which `drop` holds, for example a whole group when its sequence starts again.
    pub fn drop_where(&mut self, drop: impl Fn(&Entry) -> bool) {
        let mut kept = 0;
        for index in 0..self.len {
            let Some(entry) = self
                .entries
                .get(index)
                .copied()
                .filter(|entry| !drop(entry))
            else {
                continue;
            };
            if let Some(place) = self.entries.get_mut(kept) {
                *place = entry;
                kept += 1;
            }
        }
        self.len = kept;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn write(value: u64) -> Access {
        Access::write(Location::new(0, 0), Width::W1, value)
    }

    fn shown<const N: usize>(log: &Log<N>) -> Vec<(u16, u64)> {
        log.entries()
            .iter()
            .map(|entry| (entry.register, entry.access.value))
            .collect()
    }

    #[test]
    fn the_last_write_of_a_register_wins_and_moves_to_the_end() {
        let mut log = Log::<4>::new();
        log.replace(1, write(10));
        log.replace(2, write(20));
        log.replace(1, write(11));
        assert_eq!(shown(&log), [(2, 20), (1, 11)]);
        assert_eq!(log.last_of(1).map(|entry| entry.access.value), Some(11));
        assert_eq!(log.last_of(3), None);
    }

    #[test]
    fn a_sequence_that_starts_again_drops_its_group_and_keeps_the_order_of_the_others() {
        let mut log = Log::<8>::new();
        for register in [1, 10, 2, 11, 3] {
            log.append(register, write(register.into()));
        }
        log.drop_where(|entry| entry.register < 10);
        assert_eq!(shown(&log), [(10, 10), (11, 11)]);
    }

    #[test]
    fn an_entry_without_room_marks_the_log_for_good() {
        let mut log = Log::<2>::new();
        log.append(1, write(1));
        log.append(2, write(2));
        assert!(!log.overflowed());
        log.append(3, write(3));
        assert!(log.overflowed());
        assert_eq!(shown(&log), [(1, 1), (2, 2)]);
        log.drop_where(|_| true);
        assert!(log.overflowed());
    }
}
