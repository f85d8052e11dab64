// SPDX-License-Identifier: GPL-2.0
//! Checks of [`HostMem`]: memory of the monitor itself.

use super::{ensure, equal, holds, succeeds, Contract, Failure, Fixture};
use crate::{Host, HostMem, HostPage, PAGE_SIZE};
use core::marker::PhantomData;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Physical addresses have at most 52 bits (SDM vol. 3, 4.1.4).
const PHYSICAL_LIMIT: u64 = 1 << 52;
/// Pages that a check holds at the same time.
const PAGES: usize = 32;
/// A large array: 2 MiB.
const LARGE: usize = 256 * 1024;
const DIRT: u64 = 0xa5a5_5a5a_c3c3_3c3c;

/// The checks for host `H`.
pub(super) struct Checks<H>(PhantomData<H>);

impl<H: Host> Checks<H> {
    pub(super) const LIST: &'static [Contract] = &[
        Contract {
            name: "a page has an aligned physical address that stays",
            check: page_is_aligned::<H>,
        },
        Contract {
            name: "pages do not share memory",
            check: pages_are_distinct::<H>,
        },
        Contract {
            name: "an array of words has its length and is zeroed",
            check: words_are_zeroed::<H>,
        },
        Contract {
            name: "an array of words may be megabytes large",
            check: words_may_be_large::<H>,
        },
        Contract {
            name: "more words than an address space holds are refused",
            check: impossible_words_are_refused::<H>,
        },
        Contract {
            name: "a box holds its value and drops it once",
            check: box_drops_once::<H>,
        },
        Contract {
            name: "a shared value is dropped once, by its last owner",
            check: shared_drops_once::<H>,
        },
    ];
}

/// Counts its drops, where its maker can still see it.
pub(super) struct Counted<H: HostMem> {
    drops: H::Shared<AtomicU64>,
    pub(super) value: u64,
}

impl<H: HostMem> Counted<H> {
    /// A value and its count of drops.
    pub(super) fn new(value: u64) -> Result<(Self, H::Shared<AtomicU64>), Failure> {
        let drops = succeeds("a shared value can be made", H::shared(AtomicU64::new(0)))?;
        Ok((
            Self {
                drops: drops.clone(),
                value,
            },
            drops,
        ))
    }
}

impl<H: HostMem> Drop for Counted<H> {
    fn drop(&mut self) {
        self.drops.fetch_add(1, Relaxed);
    }
}

fn page<H: Host>() -> Result<H::Page, Failure> {
    succeeds("a page can be allocated", H::page())
}

fn first_not<'a>(
    words: impl IntoIterator<Item = &'a AtomicU64>,
    value: u64,
) -> Option<(usize, u64)> {
    words
        .into_iter()
        .map(|word| word.load(Relaxed))
        .enumerate()
        .find(|&(_, found)| found != value)
}

fn all_are<'a>(
    what: &'static str,
    words: impl IntoIterator<Item = &'a AtomicU64>,
    value: u64,
) -> Result<(), Failure> {
    match first_not(words, value) {
        None => Ok(()),
        Some((_, found)) => equal(what, value, found),
    }
}

fn fill<'a>(words: impl IntoIterator<Item = &'a AtomicU64>, value: u64) {
    for word in words {
        word.store(value, Relaxed);
    }
}

/// Gives dirty pages back and looks at what comes next.
pub(super) fn page_is_zeroed<H: Host>(_: &Fixture) -> Result<(), Failure> {
    for _ in 0..3 {
        let mut dirty: [Option<H::Page>; PAGES] = [const { None }; PAGES];
        for slot in &mut dirty {
            let page = page::<H>()?;
            all_are("a new page holds zeros", page.words(), 0)?;
            fill(page.words(), DIRT);
            *slot = Some(page);
        }
    }
    Ok(())
}

fn page_is_aligned<H: Host>(_: &Fixture) -> Result<(), Failure> {
    let page = page::<H>()?;
    let phys = page.phys().0;
    equal("a page is page aligned", 0, phys % PAGE_SIZE)?;
    ensure(
        "a page lies in physical memory",
        phys < PHYSICAL_LIMIT,
        PHYSICAL_LIMIT,
        phys,
    )?;
    fill(page.words(), DIRT);
    equal("a page's physical address stays", phys, page.phys().0)
}

fn pages_are_distinct<H: Host>(_: &Fixture) -> Result<(), Failure> {
    let mut pages: [Option<H::Page>; PAGES] = [const { None }; PAGES];
    for (mark, slot) in (1..).zip(&mut pages) {
        let page = page::<H>()?;
        fill(page.words(), mark);
        *slot = Some(page);
    }
    for (mark, page) in (1..).zip(pages.iter().flatten()) {
        all_are("a page keeps what was written to it", page.words(), mark)?;
        let same = pages
            .iter()
            .flatten()
            .filter(|other| other.phys() == page.phys())
            .count() as u64;
        equal("no two pages have one physical address", 1, same)?;
    }
    Ok(())
}

/// A free of the wrong memory shows in what the other pages hold, or in a new page that lies where one of them is.
pub(super) fn drop_leaves_others_alone<H: Host>(_: &Fixture) -> Result<(), Failure> {
    let before = page::<H>()?;
    let dropped = page::<H>()?;
    let after = page::<H>()?;
    fill(before.words(), DIRT);
    fill(after.words(), !DIRT);
    drop(dropped);
    let mut fresh: [Option<H::Page>; PAGES] = [const { None }; PAGES];
    for slot in &mut fresh {
        let page = page::<H>()?;
        fill(page.words(), 1);
        *slot = Some(page);
    }
    all_are("an earlier page keeps its content", before.words(), DIRT)?;
    all_are("a later page keeps its content", after.words(), !DIRT)
}

pub(super) fn dropped_is_freed<H: Host>(fixture: &Fixture) -> Result<(), Failure> {
    let before = (fixture.live)();
    {
        let _page = page::<H>()?;
        equal("a page is counted", before + 1, (fixture.live)())?;
        let _words = succeeds("words can be allocated", H::words(1000))?;
        equal("words are counted", before + 2, (fixture.live)())?;
    }
    equal("a page and words are freed", before, (fixture.live)())?;
    for _ in 0..100 {
        drop(page::<H>()?);
        drop(succeeds("words can be allocated", H::words(100))?);
    }
    equal("each of many is freed", before, (fixture.live)())
}

fn words_are_zeroed<H: Host>(_: &Fixture) -> Result<(), Failure> {
    for count in [0, 1, 511, 513, 5000] {
        for _ in 0..3 {
            let words = succeeds("words can be allocated", H::words(count))?;
            equal(
                "there are as many words as were asked for",
                count as u64,
                words.len() as u64,
            )?;
            all_are("new words are zero", words.iter(), 0)?;
            fill(words.iter(), DIRT);
        }
    }
    Ok(())
}

/// Looks at a word of each page: the check shall cost little.
fn words_may_be_large<H: Host>(_: &Fixture) -> Result<(), Failure> {
    let words = succeeds("2 MiB of words can be allocated", H::words(LARGE))?;
    equal("all words are there", LARGE as u64, words.len() as u64)?;
    for (mark, word) in (1..).zip(words.iter().step_by(509)) {
        equal("new words are zero", 0, word.load(Relaxed))?;
        word.store(mark, Relaxed);
    }
    for (mark, word) in (1..).zip(words.iter().step_by(509)) {
        equal("a word keeps its value", mark, word.load(Relaxed))?;
    }
    Ok(())
}

/// Sizes whose number of bytes does not fit 64 bits, so that no allocator is bothered; the second wraps to 0.
fn impossible_words_are_refused<H: Host>(_: &Fixture) -> Result<(), Failure> {
    for count in [usize::MAX, usize::MAX / 8 + 1] {
        let refused = H::words(count).is_err();
        ensure(
            "the request fails with OutOfMemory",
            refused,
            0,
            count as u64,
        )?;
    }
    Ok(())
}

fn box_drops_once<H: Host>(_: &Fixture) -> Result<(), Failure> {
    let (value, drops) = Counted::<H>::new(DIRT)?;
    let mut boxed = succeeds("a box can be made", H::boxed(value))?;
    equal("the value moved into the box", DIRT, boxed.value)?;
    boxed.value = 7;
    equal("a box can be written", 7, boxed.value)?;
    equal("a boxed value lives", 0, drops.load(Relaxed))?;
    drop(boxed);
    equal("a box drops its value once", 1, drops.load(Relaxed))
}

fn shared_drops_once<H: Host>(_: &Fixture) -> Result<(), Failure> {
    let (value, drops) = Counted::<H>::new(DIRT)?;
    let first = succeeds("a shared value can be made", H::shared(value))?;
    let second = first.clone();
    let third = second.clone();
    drop(first);
    drop(third);
    equal("a shared value lives", 0, drops.load(Relaxed))?;
    equal("its last owner sees it", DIRT, second.value)?;
    holds("owners share one value", {
        let other = second.clone();
        core::ptr::eq(&*other, &*second)
    })?;
    drop(second);
    equal("the last owner drops it once", 1, drops.load(Relaxed))
}
