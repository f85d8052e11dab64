// SPDX-License-Identifier: GPL-2.0
//! The dirty bitmap: one bit per guest frame, with two levels of summary above, so that taking the dirty pages costs in
//! proportion to them and not to the guest's size.
//!
//! Setting goes up from the page's bit, taking goes down from the summary: a bit that is set while its word is
//! taken either comes out now or stands, summary and all, for the next time.
#![forbid(unsafe_code)]

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};
use pvmm_hostabi::{Gfn, Host, OutOfMemory};

const BITS: u64 = u64::BITS as u64;

/// Most frames of a run.
pub const MAX_RUN: u64 = BITS;

/// The dirty bitmap.
pub struct DirtyBitmap<H: Host> {
    pages: H::Words,
    groups: H::Words,
    summary: H::Words,
    end: u64,
}

fn set(words: &[AtomicU64], bit: u64) {
    if let Some(word) = words.get((bit / BITS) as usize) {
        word.fetch_or(1 << (bit % BITS), Ordering::SeqCst);
    }
}

fn take_word(words: &[AtomicU64], index: u64) -> u64 {
    words
        .get(index as usize)
        .map_or(0, |word| word.swap(0, Ordering::SeqCst))
}

/// The set bits of `word`, lowest first.
fn bits(mut word: u64) -> impl Iterator<Item = u64> {
    core::iter::from_fn(move || {
        if word == 0 {
            return None;
        }
        let bit = u64::from(word.trailing_zeros());
        word &= word - 1;
        Some(bit)
    })
}

impl<H: Host> DirtyBitmap<H> {
    /// A clean bitmap for the frames below `end`.
    pub fn new(end: u64) -> Result<Self, OutOfMemory> {
        let pages = end.div_ceil(BITS);
        let groups = pages.div_ceil(BITS);
        let summary = groups.div_ceil(BITS);
        Ok(Self {
            pages: H::words(pages as usize)?,
            groups: H::words(groups as usize)?,
            summary: H::words(summary as usize)?,
            end,
        })
    }

    /// Marks a frame. One beyond the end is ignored: it is no memory.
    pub fn set(&self, gfn: Gfn) {
        if gfn.0 < self.end {
            set(&self.pages, gfn.0);
            set(&self.groups, gfn.0 / BITS);
            set(&self.summary, gfn.0 / BITS / BITS);
        }
    }

    /// Marks every frame clean.
    pub fn clear(&self) {
        self.take(|_| true);
    }

    /// Takes runs of dirty frames in ascending order until there are none or `accept` returns false, in which case the
    /// run that it refused and all after it stay dirty. Returns whether all were taken. A run lies within one word, so it
    /// has at most [`MAX_RUN`] frames.
    pub fn take(&self, mut accept: impl FnMut(Range<u64>) -> bool) -> bool {
        for top in 0..self.summary.len() as u64 {
            for group_bit in bits(take_word(&self.summary, top)) {
                let group = top * BITS + group_bit;
                for page_bit in bits(take_word(&self.groups, group)) {
                    let base = (group * BITS + page_bit) * BITS;
                    let word = take_word(&self.pages, group * BITS + page_bit);
                    if !self.take_runs(base, word, &mut accept) {
                        return self.restore_summary(group, top);
                    }
                }
            }
        }
        true
    }

    fn take_runs(
        &self,
        base: u64,
        mut word: u64,
        accept: &mut impl FnMut(Range<u64>) -> bool,
    ) -> bool {
        while word != 0 {
            let start = u64::from(word.trailing_zeros());
            let length = u64::from((word >> start).trailing_ones());
            if !accept(base + start..base + start + length) {
                for bit in bits(word) {
                    self.set(Gfn(base + bit));
                }
                return false;
            }
            word = if start + length == BITS {
                0
            } else {
                word & (u64::MAX << (start + length))
            };
        }
        true
    }

    /// Sets the summary bits that were taken but not followed: a set bit over a clean word does no harm.
    fn restore_summary(&self, group: u64, top: u64) -> bool {
        for (index, word) in self
            .pages
            .iter()
            .enumerate()
            .skip((group * BITS) as usize)
            .take(BITS as usize)
        {
            if word.load(Ordering::SeqCst) != 0 {
                set(&self.groups, index as u64);
            }
        }
        for (index, word) in self
            .groups
            .iter()
            .enumerate()
            .skip((top * BITS) as usize)
            .take(BITS as usize)
        {
            if word.load(Ordering::SeqCst) != 0 {
                set(&self.summary, index as u64);
            }
        }
        false
    }
}
