//! A stretch of guest memory filled with the pattern, and its rewriting.
//!
//! On the path this makes the dirty pages: the pre-copy of a move races against [`PatternMemory::rewrite`].
//! Every page is verified before it is rewritten, so that nothing wrong is ever covered up.

use std::collections::TryReserveError;

use crate::pattern::{Mismatch, Page, Tag};

/// Result of verifying some pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Pages verified.
    pub pages: u64,
    /// Pages that were wrong.
    pub bad: u64,
    /// The first of them, at most [`Checked::KEEP`].
    pub examples: Vec<Mismatch>,
}

impl Checked {
    /// How many mismatches are kept in full: a lost range of memory would flood the console.
    pub const KEEP: usize = 4;

    fn add(&mut self, result: Result<(), Mismatch>) {
        self.pages += 1;
        if let Err(mismatch) = result {
            self.bad += 1;
            if self.examples.len() < Self::KEEP {
                self.examples.push(mismatch);
            }
        }
    }
}

/// Memory in which every page holds what its number and generation say.
///
/// Pages below the writing cursor are one generation ahead of the others.
pub struct PatternMemory {
    pages: Vec<Page>,
    seed: u64,
    generation: u32,
    /// Next page to be rewritten.
    writing: usize,
    /// Next page to be read by [`PatternMemory::verify`].
    reading: usize,
    passes: u64,
}

impl PatternMemory {
    /// Allocates and fills `pages` pages. All of them are touched, so that they are backed.
    ///
    /// # Errors
    /// The allocator refused.
    pub fn new(pages: u32, seed: u64) -> Result<Self, TryReserveError> {
        let mut memory = PatternMemory {
            pages: Vec::new(),
            seed,
            generation: 0,
            writing: 0,
            reading: 0,
            passes: 0,
        };
        let count = pages as usize;
        memory.pages.try_reserve_exact(count)?;
        for number in 0..count {
            // Filled in place: the page isn't built elsewhere and copied.
            memory.pages.push(Page::ZERO);
            let tag = memory.tag(number);
            if let Some(page) = memory.pages.last_mut() {
                page.fill(tag);
            }
        }
        Ok(memory)
    }

    /// Number of pages.
    pub fn pages(&self) -> usize {
        self.pages.len()
    }

    /// How often all of memory was rewritten.
    pub fn passes(&self) -> u64 {
        self.passes
    }

    fn tag(&self, number: usize) -> Tag {
        let ahead = u32::from(number < self.writing);
        Tag {
            seed: self.seed,
            page: number as u32,
            generation: self.generation.wrapping_add(ahead),
        }
    }

    /// Verifies and rewrites the next `count` pages, starting over at the end.
    pub fn rewrite(&mut self, count: usize) -> Checked {
        let mut checked = Checked::default();
        if self.pages.is_empty() {
            return checked;
        }
        for _ in 0..count {
            let tag = self.tag(self.writing);
            let next = Tag {
                generation: tag.generation.wrapping_add(1),
                ..tag
            };
            let page = &mut self.pages[self.writing];
            checked.add(page.verify(tag));
            page.fill(next);
            self.writing += 1;
            if self.writing == self.pages.len() {
                self.writing = 0;
                self.generation = self.generation.wrapping_add(1);
                self.passes += 1;
            }
        }
        checked
    }

    /// Reads and verifies the next `count` pages, starting over at the end. Only a page that was
    /// wrong is written, with what it should hold, so that it is reported once.
    pub fn verify(&mut self, count: usize) -> Checked {
        let mut checked = Checked::default();
        if self.pages.is_empty() {
            return checked;
        }
        for _ in 0..count {
            let tag = self.tag(self.reading);
            let page = &mut self.pages[self.reading];
            let result = page.verify(tag);
            if result.is_err() {
                page.fill(tag);
            }
            checked.add(result);
            self.reading = (self.reading + 1) % self.pages.len();
        }
        checked
    }

    /// Verifies all of memory once.
    pub fn verify_all(&mut self) -> Checked {
        self.verify(self.pages.len())
    }

    /// A page, for tests that damage it.
    pub fn page_mut(&mut self, number: usize) -> Option<&mut Page> {
        self.pages.get_mut(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_pass_is_complete_when_every_page_was_rewritten() {
        let mut memory = PatternMemory::new(10, 1).unwrap();
        memory.rewrite(9);
        assert_eq!(memory.passes(), 0);
        memory.rewrite(1);
        assert_eq!(memory.passes(), 1);
    }

    #[test]
    fn no_memory_is_no_work() {
        let mut memory = PatternMemory::new(0, 1).unwrap();
        assert_eq!(memory.rewrite(5), Checked::default());
        assert_eq!(memory.verify_all(), Checked::default());
    }

    #[test]
    fn many_bad_pages_are_counted_but_only_some_are_told() {
        let mut memory = PatternMemory::new(20, 1).unwrap();
        for number in 0..20 {
            *memory.page_mut(number).unwrap() = Page::ZERO;
        }
        let checked = memory.verify_all();
        assert_eq!((checked.pages, checked.bad), (20, 20));
        assert_eq!(checked.examples.len(), Checked::KEEP);
        assert_eq!(memory.verify_all().bad, 0, "a bad page is reported once");
    }

    proptest! {
        #[test]
        fn any_order_of_reading_and_rewriting_finds_nothing_wrong(
            steps in prop::collection::vec((any::<bool>(), 0..40usize), 1..40),
        ) {
            let mut memory = PatternMemory::new(17, 99).unwrap();
            for (write, count) in steps {
                let checked = if write { memory.rewrite(count) } else { memory.verify(count) };
                prop_assert_eq!((checked.pages, checked.bad), (count as u64, 0));
            }
        }

        #[test]
        fn a_page_set_back_to_an_older_state_is_found(
            before in 0..60usize, after in 17..60usize, number in 0..17usize,
        ) {
            let mut memory = PatternMemory::new(17, 99).unwrap();
            memory.rewrite(before);
            let old = memory.page_mut(number).unwrap().clone();
            // At least one whole pass, so that the page was rewritten since.
            memory.rewrite(after);
            *memory.page_mut(number).unwrap() = old;
            let checked = memory.verify_all();
            prop_assert_eq!(checked.bad, 1);
            prop_assert_eq!(checked.examples[0].expected.page as usize, number);
        }
    }
}
