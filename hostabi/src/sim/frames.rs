// SPDX-License-Identifier: GPL-2.0
//! The simulated host's physical memory: page frames whose physical address is the address at which they really lie.
//!
//! Frames are never given back to the allocator, so that a reference to one stays valid; freed ones are filled with a
//! pattern and used again after a rest, the longest unused first. A stale use thus shows as the pattern, or as another page's words.

use super::lock;
use crate::{Hpa, Pfn, PAGE_SIZE};
use std::boxed::Box;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError, RwLock};

/// Freed frames that are left alone.
const RESTING: usize = 64;
/// What a freed frame holds.
const FREED: u64 = 0xfeed_dead_feed_dead;

/// The words of a frame.
pub(super) type Words = [AtomicU64; 512];

#[repr(C, align(4096))]
struct Frame(Words);

/// Who has a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// A handle: [`OwnedFrame`].
    Handle,
    /// Nobody: the handle was given up.
    Address,
}

static FREE: Mutex<VecDeque<&'static Frame>> = Mutex::new(VecDeque::new());
static USED: RwLock<BTreeMap<u64, (&'static Frame, Owner)>> = RwLock::new(BTreeMap::new());

/// A frame in use; freed on drop.
pub(super) struct OwnedFrame(&'static Frame);

fn address(frame: &'static Frame) -> u64 {
    core::ptr::from_ref(frame).addr() as u64
}

impl OwnedFrame {
    /// A frame of zeros.
    pub(super) fn zeroed() -> Self {
        let free = {
            let mut free = lock(&FREE);
            (free.len() > RESTING).then(|| free.pop_front()).flatten()
        };
        let frame = free
            .unwrap_or_else(|| Box::leak(Box::new(Frame([const { AtomicU64::new(FREED) }; 512]))));
        for word in &frame.0 {
            word.store(0, Relaxed);
        }
        let mut used = USED.write().unwrap_or_else(PoisonError::into_inner);
        used.insert(address(frame), (frame, Owner::Handle));
        Self(frame)
    }

    pub(super) fn words(&self) -> &'static Words {
        &self.0 .0
    }

    pub(super) fn hpa(&self) -> Hpa {
        Hpa(address(self.0))
    }

    pub(super) fn pfn(&self) -> Pfn {
        self.hpa().pfn()
    }

    /// Gives up the handle; the frame stays in use.
    pub(super) fn give_up(self) -> Hpa {
        let hpa = self.hpa();
        let mut used = USED.write().unwrap_or_else(PoisonError::into_inner);
        used.insert(hpa.0, (self.0, Owner::Address));
        std::mem::forget(self);
        hpa
    }

    /// Takes a frame back; `None` if no handle to it was given up.
    pub(super) fn take_back(hpa: Hpa) -> Option<Self> {
        let mut used = USED.write().unwrap_or_else(PoisonError::into_inner);
        let (frame, owner) = used.get_mut(&hpa.0)?;
        if *owner != Owner::Address {
            return None;
        }
        *owner = Owner::Handle;
        Some(Self(frame))
    }
}

impl Drop for OwnedFrame {
    fn drop(&mut self) {
        let mut used = USED.write().unwrap_or_else(PoisonError::into_inner);
        used.remove(&address(self.0));
        drop(used);
        for word in &self.0 .0 {
            word.store(FREED, Relaxed);
        }
        lock(&FREE).push_back(self.0);
    }
}

/// The words of the frame in use at `hpa`, as hardware would see them: to walk page tables, or to act as a guest that
/// reads and writes its memory. `None` if no frame in use begins there.
pub fn physical(hpa: Hpa) -> Option<&'static Words> {
    if hpa.0 % PAGE_SIZE != 0 {
        return None;
    }
    let used = USED.read().unwrap_or_else(PoisonError::into_inner);
    used.get(&hpa.0).map(|(frame, _)| &frame.0)
}

/// The words of a frame whose handle was given up.
pub(super) fn given_up(hpa: Hpa) -> Option<&'static Words> {
    let used = USED.read().unwrap_or_else(PoisonError::into_inner);
    match used.get(&hpa.0) {
        Some((frame, Owner::Address)) => Some(&frame.0),
        _ => None,
    }
}
