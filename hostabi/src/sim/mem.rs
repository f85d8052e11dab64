// SPDX-License-Identifier: GPL-2.0
//! The simulated host's [`HostMem`]. Everything is counted by the machine, see [`Machine::live`](super::Machine::live).
// `HostPage` and `HostMem` declare unsafe functions; their implementations here check what callers promise, or pass it on.
#![allow(unsafe_code)]

use super::frames::{given_up, OwnedFrame, Words};
use super::lock;
use super::machine::{Counted, Kind, Machine};
use super::thread::{allocate, process_context};
use super::SimHost;
use crate::{HostMem, HostPage, Hpa, OutOfMemory};
use core::ops::{Deref, DerefMut};
use std::boxed::Box;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::vec::Vec;

/// Words beyond this are more than the machine has: 1 GiB.
const MAX_WORDS: usize = 1 << 27;

/// Which machine counts the pages whose handle was given up.
static GIVEN_UP: Mutex<BTreeMap<u64, Machine>> = Mutex::new(BTreeMap::new());

/// A page.
pub struct SimPage {
    frame: OwnedFrame,
    count: Counted,
}

impl SimPage {
    /// Takes back a page whose handle was given up; `None` if there is none at `phys`.
    pub fn take_back(phys: Hpa) -> Option<Self> {
        let machine = lock(&GIVEN_UP).remove(&phys.0)?;
        Some(Self {
            frame: OwnedFrame::take_back(phys)?,
            count: Counted::resume(machine, Kind::Page),
        })
    }

    /// The words of a page whose handle was given up; `None` if there is none at `phys`.
    pub fn given_up(phys: Hpa) -> Option<&'static [AtomicU64; 512]> {
        given_up(phys)
    }
}

impl HostPage for SimPage {
    fn phys(&self) -> Hpa {
        self.frame.hpa()
    }

    fn words(&self) -> &Words {
        self.frame.words()
    }

    fn into_raw(self) -> Hpa {
        if let Some(machine) = self.count.keep() {
            lock(&GIVEN_UP).insert(self.frame.hpa().0, machine);
        }
        self.frame.give_up()
    }

    #[track_caller]
    unsafe fn from_raw(phys: Hpa) -> Self {
        match Self::take_back(phys) {
            Some(page) => page,
            None => panic!("from_raw({phys:#x}): no page there was given up"),
        }
    }

    #[track_caller]
    unsafe fn words_at<'a>(phys: Hpa) -> &'a Words {
        match given_up(phys) {
            Some(words) => words,
            None => panic!("words_at({phys:#x}): no page there was given up"),
        }
    }
}

/// An array of words.
pub struct SimWords {
    words: Box<[AtomicU64]>,
    _count: Counted,
}

impl Deref for SimWords {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        &self.words
    }
}

impl Drop for SimWords {
    fn drop(&mut self) {
        process_context("dropping an array of words");
    }
}

/// A value on the heap.
pub struct SimBox<T> {
    value: Box<T>,
    _count: Counted,
}

impl<T> Deref for SimBox<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for SimBox<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

struct SharedValue<T> {
    value: T,
    _count: Counted,
}

impl<T> Drop for SharedValue<T> {
    fn drop(&mut self) {
        process_context("the drop of a shared value's last owner");
    }
}

/// A value on the heap with several owners.
pub struct SimShared<T>(Arc<SharedValue<T>>);

impl<T> Clone for SimShared<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Deref for SimShared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.value
    }
}

impl HostMem for SimHost {
    type Page = SimPage;
    type Words = SimWords;
    type Box<T: Send + 'static> = SimBox<T>;
    type Shared<T: Send + Sync + 'static> = SimShared<T>;

    #[track_caller]
    fn page() -> Result<SimPage, OutOfMemory> {
        allocate("HostMem::page")?;
        Ok(SimPage {
            frame: OwnedFrame::zeroed(),
            count: Counted::new(Kind::Page),
        })
    }

    #[track_caller]
    fn words(count: usize) -> Result<SimWords, OutOfMemory> {
        allocate("HostMem::words")?;
        if count > MAX_WORDS {
            return Err(OutOfMemory);
        }
        let mut words = Vec::new();
        words.resize_with(count, AtomicU64::default);
        Ok(SimWords {
            words: words.into_boxed_slice(),
            _count: Counted::new(Kind::Words),
        })
    }

    #[track_caller]
    unsafe fn boxed_zeroed<T: Send + 'static>() -> Result<SimBox<T>, OutOfMemory> {
        // SAFETY: zeroed bytes are a valid `T` by the caller's obligation.
        Self::boxed(unsafe { core::mem::zeroed() })
    }

    fn boxed<T: Send + 'static>(value: T) -> Result<SimBox<T>, OutOfMemory> {
        allocate("HostMem::boxed")?;
        Ok(SimBox {
            value: Box::new(value),
            _count: Counted::new(Kind::Box),
        })
    }

    #[track_caller]
    fn shared<T: Send + Sync + 'static>(value: T) -> Result<SimShared<T>, OutOfMemory> {
        allocate("HostMem::shared")?;
        Ok(SimShared(Arc::new(SharedValue {
            value,
            _count: Counted::new(Kind::Shared),
        })))
    }
}
