// SPDX-License-Identifier: GPL-2.0
//! Guest memory in the stream: batches of page runs, raw, with runs of zero pages as ranges.
//!
//! ```text
//! payload = count:u32, count x (gfn:u64 pages:u32 zero:u32), then the data of all runs with zero = 0, in their order
//! ```
//!
//! Place on the path: pre-copy and last pages. [`Batch`] is the sender's, [`parse`] the receiver's, [`Frames`] the set of
//! a guest's frames in which both keep what is to be sent and what has arrived.

use crate::description::MemoryRange;
use crate::vm::PAGE_SIZE;
use crate::wire::WireError;
use pvmm_uapi::DirtyRange;

/// Most pages with data in one record.
pub const BATCH_PAGES: usize = 256;
/// Most runs in one record.
pub const BATCH_RUNS: usize = 512;
const RUN_LEN: usize = 16;
/// Longest payload.
pub const MAX_PAYLOAD: usize = 4 + BATCH_RUNS * RUN_LEN + BATCH_PAGES * PAGE_SIZE;

/// A run of pages in a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    gfn: u64,
    pages: u32,
    zero: bool,
}

/// Pages on their way out.
#[derive(Debug)]
pub struct Batch {
    runs: Vec<Run>,
    /// [`HEAD`] bytes, which [`Self::payload`] writes the runs into from the back, and then room for the pages: the payload
    /// is one piece without having been copied together.
    bytes: Box<[u8]>,
    /// Where the pages in `bytes` end.
    end: usize,
}

/// Room for the number of runs and as many as there can be.
const HEAD: usize = 4 + BATCH_RUNS * RUN_LEN;

impl Default for Batch {
    fn default() -> Self {
        Self {
            runs: Vec::with_capacity(BATCH_RUNS),
            bytes: vec![0; HEAD + BATCH_PAGES * PAGE_SIZE].into(),
            end: HEAD,
        }
    }
}

impl Batch {
    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Pages that can be added before it must be sent.
    pub fn room(&self) -> usize {
        let pages = (self.end - HEAD) / PAGE_SIZE;
        // In the worst case every page is a run.
        (BATCH_PAGES - pages).min(BATCH_RUNS - self.runs.len())
    }

    /// Adds `pages` frames from `gfn` on, at most [`Self::room`], whose contents `read` puts into the buffer that it gets.
    /// Returns how many were zero.
    ///
    /// # Errors
    ///
    /// Those of `read`; the batch is as before then.
    pub fn add<E>(
        &mut self,
        gfn: u64,
        pages: usize,
        read: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<u64, E> {
        let begin = self.end;
        let pages = pages.min(self.room());
        let buffer = self.bytes.get_mut(begin..begin + pages * PAGE_SIZE);
        read(buffer.unwrap_or_default())?;
        let mut zeros = 0;
        for index in 0..pages {
            let page = begin + index * PAGE_SIZE..begin + (index + 1) * PAGE_SIZE;
            let zero = is_zero(self.bytes.get(page.clone()).unwrap_or_default());
            self.extend_runs(gfn.saturating_add(index as u64), zero);
            if zero {
                zeros += 1;
                continue;
            }
            // Zero pages before it leave a gap.
            if self.end != page.start {
                self.bytes.copy_within(page, self.end);
            }
            self.end += PAGE_SIZE;
        }
        Ok(zeros)
    }

    /// Adds a page that is at hand; nothing if there is no room. Returns whether it was zero.
    pub fn push(&mut self, gfn: u64, page: &[u8]) -> bool {
        let read = |buffer: &mut [u8]| {
            for (place, byte) in buffer.iter_mut().zip(page) {
                *place = *byte;
            }
            Ok::<_, std::convert::Infallible>(())
        };
        matches!(self.add(gfn, 1, read), Ok(1))
    }

    fn extend_runs(&mut self, gfn: u64, zero: bool) {
        match self.runs.last_mut() {
            Some(run)
                if run.zero == zero && run.gfn.checked_add(u64::from(run.pages)) == Some(gfn) =>
            {
                run.pages += 1;
            }
            _ => self.runs.push(Run {
                gfn,
                pages: 1,
                zero,
            }),
        }
    }

    /// The payload with everything that was added.
    pub fn payload(&mut self) -> &[u8] {
        let start = HEAD - 4 - self.runs.len() * RUN_LEN;
        let (head, _) = self.bytes.split_at_mut(HEAD);
        let (count, runs) = head[start..].split_at_mut(4);
        // At most BATCH_RUNS.
        count.copy_from_slice(&(self.runs.len() as u32).to_le_bytes());
        for (place, run) in runs.chunks_exact_mut(RUN_LEN).zip(&self.runs) {
            place[..8].copy_from_slice(&run.gfn.to_le_bytes());
            place[8..12].copy_from_slice(&run.pages.to_le_bytes());
            place[12..].copy_from_slice(&u32::from(run.zero).to_le_bytes());
        }
        &self.bytes[start..self.end]
    }

    /// Empties it, after its payload has been sent.
    pub fn clear(&mut self) {
        self.runs.clear();
        self.end = HEAD;
    }
}

/// A run of pages that has arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received<'a> {
    /// First frame.
    pub gfn: u64,
    /// Number of frames, not 0.
    pub pages: u64,
    /// Their contents; `None` if they are zero.
    pub data: Option<&'a [u8]>,
}

/// Reads a payload. Whether the frames are the guest's is for [`Frames`] to say.
///
/// # Errors
///
/// The payload is not of this format.
pub fn parse(payload: &[u8]) -> Result<Vec<Received<'_>>, WireError> {
    let malformed = |reason: &str| WireError::Payload {
        kind: "pages",
        reason: reason.to_owned(),
    };
    let (count, rest) = payload
        .split_first_chunk::<4>()
        .ok_or_else(|| malformed("it is too short"))?;
    let count = u32::from_le_bytes(*count) as usize;
    if count == 0 || count > BATCH_RUNS {
        return Err(malformed("an impossible number of runs"));
    }
    let (runs, mut data) = rest
        .split_at_checked(count * RUN_LEN)
        .ok_or_else(|| malformed("it ends inside its runs"))?;
    let mut received = Vec::with_capacity(count);
    for run in runs.chunks_exact(RUN_LEN) {
        let [g0, g1, g2, g3, g4, g5, g6, g7, p0, p1, p2, p3, z0, z1, z2, z3] = *run else {
            return Err(malformed("a run of another length"));
        };
        let gfn = u64::from_le_bytes([g0, g1, g2, g3, g4, g5, g6, g7]);
        let pages = u32::from_le_bytes([p0, p1, p2, p3]);
        let zero = u32::from_le_bytes([z0, z1, z2, z3]);
        if pages == 0 {
            return Err(malformed("an empty run"));
        }
        let run_data = match zero {
            1 => None,
            0 => {
                let bytes = (pages as usize)
                    .checked_mul(PAGE_SIZE)
                    .ok_or_else(|| malformed("an impossible run"))?;
                let (now, later) = data
                    .split_at_checked(bytes)
                    .ok_or_else(|| malformed("it ends inside its pages"))?;
                data = later;
                Some(now)
            }
            _ => return Err(malformed("a run that is neither data nor zero")),
        };
        received.push(Received {
            gfn,
            pages: u64::from(pages),
            data: run_data,
        });
    }
    if !data.is_empty() {
        return Err(malformed("bytes are left over"));
    }
    Ok(received)
}

/// Whether all bytes are zero.
fn is_zero(page: &[u8]) -> bool {
    let (chunks, rest) = page.split_at(page.len() / 16 * 16);
    chunks.chunks_exact(16).all(|chunk| chunk == [0; 16]) && rest.iter().all(|byte| *byte == 0)
}

/// A set of guest frames, one bit each.
#[derive(Debug, Clone)]
pub struct Frames {
    regions: Vec<Region>,
    count: u64,
}

#[derive(Debug, Clone)]
struct Region {
    gfn: u64,
    pages: u64,
    bits: Vec<u64>,
}

impl Region {
    fn contains(&self, gfn: u64, pages: u64) -> bool {
        gfn >= self.gfn && pages <= self.pages && gfn - self.gfn <= self.pages - pages
    }
}

impl Frames {
    /// No frame of a guest with this (validated) memory.
    pub fn none(memory: &[MemoryRange]) -> Self {
        let page = PAGE_SIZE as u64;
        let regions = memory.iter().map(|range| {
            let pages = range.size / page;
            Region {
                gfn: range.gpa / page,
                pages,
                bits: vec![0; pages.div_ceil(64) as usize],
            }
        });
        Self {
            regions: regions.collect(),
            count: 0,
        }
    }

    /// All of them.
    pub fn all(memory: &[MemoryRange]) -> Self {
        let mut frames = Self::none(memory);
        let ranges: Vec<_> = frames
            .regions
            .iter()
            .map(|region| (region.gfn, region.pages))
            .collect();
        for (gfn, pages) in ranges {
            // The region's own frames are inside it.
            let _ = frames.insert(gfn, pages);
        }
        frames
    }

    /// How many are in the set.
    pub fn len(&self) -> u64 {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// How many there could be.
    pub fn total(&self) -> u64 {
        self.regions.iter().map(|region| region.pages).sum()
    }

    /// Adds a range and returns how many of it were new.
    ///
    /// # Errors
    ///
    /// It is not inside one region; then nothing was added.
    pub fn insert(&mut self, gfn: u64, pages: u64) -> Result<u64, WireError> {
        let region = self
            .regions
            .iter_mut()
            .find(|region| region.contains(gfn, pages))
            .ok_or(WireError::OutsideMemory { gfn, pages })?;
        let mut new = 0;
        let first = gfn - region.gfn;
        for frame in first..first + pages {
            let (word, bit) = ((frame / 64) as usize, 1u64 << (frame % 64));
            // `frame` is below `pages` of the region, which has a bit for each.
            if region.bits[word] & bit == 0 {
                region.bits[word] |= bit;
                new += 1;
            }
        }
        self.count += new;
        Ok(new)
    }

    /// Takes all out.
    pub fn clear(&mut self) {
        for region in &mut self.regions {
            region.bits.fill(0);
        }
        self.count = 0;
    }

    /// Whether a frame is in the set.
    pub fn contains(&self, gfn: u64) -> bool {
        self.regions
            .iter()
            .find(|region| region.contains(gfn, 1))
            .is_some_and(|region| {
                let frame = gfn - region.gfn;
                region.bits[(frame / 64) as usize] & (1 << (frame % 64)) != 0
            })
    }

    /// The set as runs of at most `most` frames, ascending.
    pub fn runs(&self, most: u64) -> Vec<DirtyRange> {
        let mut runs: Vec<DirtyRange> = Vec::new();
        for region in &self.regions {
            for (word_index, word) in region.bits.iter().enumerate() {
                let mut left = *word;
                while left != 0 {
                    let gfn =
                        region.gfn + word_index as u64 * 64 + u64::from(left.trailing_zeros());
                    left &= left - 1;
                    match runs.last_mut() {
                        // A run never crosses from one region into the next: their memory need not be adjacent.
                        Some(run)
                            if run.gfn + run.pages == gfn
                                && run.pages < most
                                && run.gfn >= region.gfn =>
                        {
                            run.pages += 1;
                        }
                        _ => runs.push(DirtyRange { gfn, pages: 1 }),
                    }
                }
            }
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn memory() -> Vec<MemoryRange> {
        vec![
            MemoryRange {
                gpa: 0,
                size: 100 * 4096,
            },
            MemoryRange {
                gpa: 100 * 4096,
                size: 30 * 4096,
            },
            MemoryRange {
                gpa: 1 << 32,
                size: 70 * 4096,
            },
        ]
    }

    proptest! {
        #[test]
        fn pages_arrive_as_they_left(pages in prop::collection::vec((0u64..300, any::<u8>()), 1..100)) {
            let mut batch = Batch::default();
            for (gfn, fill) in &pages {
                prop_assert!(batch.room() > 0);
                let zero = batch.push(*gfn, &[*fill; PAGE_SIZE]);
                prop_assert_eq!(zero, *fill == 0);
            }
            let payload = batch.payload().to_vec();
            batch.clear();
            prop_assert!(batch.is_empty());
            prop_assert!(payload.len() <= MAX_PAYLOAD);
            let mut arrived = Vec::new();
            for run in parse(&payload).expect("we wrote it") {
                for page in 0..run.pages {
                    let at = page as usize * PAGE_SIZE;
                    let fill = run.data.map_or(0, |data| data[at]);
                    prop_assert!(run.data.is_none_or(|data| data[at..at + PAGE_SIZE] == [fill; PAGE_SIZE]));
                    arrived.push((run.gfn + page, fill));
                }
            }
            prop_assert_eq!(arrived, pages);
        }

        #[test]
        fn runs_arrive_as_they_left_whatever_is_zero_in_them(
            runs in prop::collection::vec(prop::collection::vec(0..3u8, 1..40), 1..30),
        ) {
            let mut batch = Batch::default();
            let mut expected = Vec::new();
            for (index, fills) in runs.iter().enumerate() {
                let gfn = 100 * index as u64;
                let room = batch.room().min(fills.len());
                let zeros = batch.add(gfn, fills.len(), |buffer| {
                    for (page, fill) in buffer.chunks_exact_mut(PAGE_SIZE).zip(fills) {
                        page.fill(*fill);
                    }
                    Ok::<_, ()>(())
                });
                let added = &fills[..room];
                prop_assert_eq!(zeros, Ok(added.iter().filter(|fill| **fill == 0).count() as u64));
                expected.extend((gfn..).zip(added.iter().copied()));
                // What cannot be read changes nothing.
                prop_assert_eq!(batch.add(gfn, 1, |_| Err("unreadable")).is_err(), true);
            }
            let mut arrived = Vec::new();
            for run in parse(batch.payload()).expect("we wrote it") {
                for page in 0..run.pages {
                    let data = run.data.map(|data| &data[page as usize * PAGE_SIZE..][..PAGE_SIZE]);
                    let fill = data.map_or(0, |data| data[0]);
                    prop_assert!(data.is_none_or(|data| data.iter().all(|byte| *byte == fill)));
                    arrived.push((run.gfn + page, fill));
                }
            }
            prop_assert_eq!(arrived, expected);
        }

        #[test]
        fn no_payload_makes_the_parser_panic(
            count in prop_oneof![0u32..6, any::<u32>()],
            runs in prop::collection::vec((any::<u64>(), prop_oneof![0u32..4, any::<u32>()], 0u32..3), 0..6),
            data in 0usize..4 * PAGE_SIZE,
            noise in prop::collection::vec(any::<u8>(), 0..20),
        ) {
            let mut payload = count.to_le_bytes().to_vec();
            for (gfn, pages, zero) in runs {
                payload.extend(gfn.to_le_bytes());
                payload.extend(pages.to_le_bytes());
                payload.extend(zero.to_le_bytes());
            }
            payload.extend(noise);
            payload.resize(payload.len() + data / 3 * 3, 0);
            if let Ok(runs) = parse(&payload) {
                let data: usize = runs.iter().filter_map(|run| run.data).map(<[u8]>::len).sum();
                prop_assert!(data <= payload.len());
            }
        }

        #[test]
        fn a_set_of_frames_is_a_set(ranges in prop::collection::vec((0u64..140, 1u64..40), 0..20), most in 1u64..70) {
            let mut frames = Frames::none(&memory());
            let mut reference = BTreeSet::new();
            for (gfn, pages) in ranges {
                let inside = (gfn + pages <= 100) || (gfn >= 100 && gfn + pages <= 130);
                let before = reference.len() as u64;
                if inside {
                    reference.extend(gfn..gfn + pages);
                }
                let new = frames.insert(gfn, pages);
                prop_assert_eq!(new.is_ok(), inside);
                if inside {
                    prop_assert_eq!(new, Ok(reference.len() as u64 - before));
                }
            }
            prop_assert_eq!(frames.len(), reference.len() as u64);
            let runs = frames.runs(most);
            prop_assert!(runs.iter().all(|run| run.pages <= most));
            prop_assert!(runs.iter().all(|run| run.gfn >= 100 || run.gfn + run.pages <= 100));
            let listed: Vec<u64> = runs.iter().flat_map(|run| run.gfn..run.gfn + run.pages).collect();
            prop_assert_eq!(listed, reference.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn all_frames_are_listed_once() {
        let frames = Frames::all(&memory());
        assert_eq!(frames.len(), 200);
        assert_eq!(frames.total(), 200);
        assert!(frames.contains(0) && frames.contains((1 << 20) + 69));
        assert!(!frames.contains(130) && !frames.contains((1 << 20) + 70));
    }

    #[test]
    fn numbers_at_the_end_of_the_range_are_outside_and_do_not_overflow() {
        let mut frames = Frames::none(&memory());
        for (gfn, pages) in [(u64::MAX, 1), (0, u64::MAX), (u64::MAX, u64::MAX), (99, 2)] {
            assert_eq!(
                frames.insert(gfn, pages),
                Err(WireError::OutsideMemory { gfn, pages })
            );
        }
        assert!(frames.is_empty());
    }

    #[test]
    fn a_page_with_one_bit_set_is_not_zero() {
        for at in [0, 15, 16, 4080, 4095] {
            let mut page = [0; PAGE_SIZE];
            page[at] = 1;
            assert!(!is_zero(&page));
        }
        assert!(is_zero(&[0; PAGE_SIZE]));
    }
}
