//! The content of one page of guest memory, a function of (seed, page, generation).
//!
//! On the path this is the data: a page that a move left behind, delivered twice, delivered to a
//! wrong place or delivered in an older version is recognised as such by what it holds.
//!
//! Word `i` of a page is `mix(seed ^ (page << 32 | generation)) + i * STRIDE`, modulo 2^64. `mix`
//! is a bijection (the finaliser of SplitMix64), so that a wrong word can be decoded into the page
//! and the generation that it comes from.

use core::fmt;

/// Bytes in a page.
pub const PAGE_SIZE: usize = 4096;
/// 64-bit words in a page.
pub const WORDS: usize = PAGE_SIZE / 8;

/// Distance of neighbouring words: 2^64 divided by the golden ratio, odd, all bits in use.
const STRIDE: u64 = 0x9e37_79b9_7f4a_7c15;
const MULTIPLY_1: u64 = 0xbf58_476d_1ce4_e5b9;
const MULTIPLY_2: u64 = 0x94d0_49bb_1331_11eb;

/// Multiplicative inverse of an odd number modulo 2^64, by Newton's iteration.
const fn inverse(odd: u64) -> u64 {
    // Right for 3 bits to start with; each step doubles the number of right bits.
    let mut x = odd;
    let mut step = 0;
    while step < 5 {
        x = x.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(x)));
        step += 1;
    }
    x
}

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(MULTIPLY_1);
    x = (x ^ (x >> 27)).wrapping_mul(MULTIPLY_2);
    x ^ (x >> 31)
}

/// Undoes [`mix`].
fn unmix(mut x: u64) -> u64 {
    x = x ^ (x >> 31) ^ (x >> 62);
    x = x.wrapping_mul(const { inverse(MULTIPLY_2) });
    x = x ^ (x >> 27) ^ (x >> 54);
    x = x.wrapping_mul(const { inverse(MULTIPLY_1) });
    x ^ (x >> 30) ^ (x >> 60)
}

/// Says what a page holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// Differs between owners of memory (one per checker process).
    pub seed: u64,
    /// Index of the page within its owner's memory.
    pub page: u32,
    /// How often the page was rewritten; wraps.
    pub generation: u32,
}

impl Tag {
    /// Word 0 of the page.
    fn base(self) -> u64 {
        mix(self.seed ^ (u64::from(self.page) << 32 | u64::from(self.generation)))
    }

    /// The tag of the page that holds `word` at `index`, for the same seed. Any word decodes to
    /// some tag; it is for the caller to judge whether that tag is plausible.
    fn decode(seed: u64, index: usize, word: u64) -> Tag {
        let base = word.wrapping_sub(STRIDE.wrapping_mul(index as u64));
        let joined = unmix(base) ^ seed;
        Tag {
            seed,
            page: (joined >> 32) as u32,
            generation: joined as u32,
        }
    }
}

/// What is wrong with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// What the page should hold.
    pub expected: Tag,
    /// Number of words that differ, 1 to [`WORDS`].
    pub words: usize,
    /// Index of the first word that differs.
    pub first: usize,
    /// The first differing word as found.
    pub found: u64,
    /// Where that word comes from.
    pub origin: Origin,
}

/// Where a wrong word comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Zero, as in a page that was never delivered.
    Zero,
    /// An older (or, if the number is larger, newer) version of the same page.
    Generation(u32),
    /// Another page of the same owner.
    Page(u32, u32),
    /// None of these.
    Unknown,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tag {
            page, generation, ..
        } = self.expected;
        let (words, first, found) = (self.words, self.first, self.found);
        write!(
            f,
            "page {page} generation {generation}: {words} of {WORDS} words wrong from word {first}, "
        )?;
        match self.origin {
            Origin::Zero => write!(f, "zero"),
            Origin::Generation(other) => write!(f, "holding its generation {other}"),
            Origin::Page(other, of) => write!(f, "holding page {other} generation {of}"),
            Origin::Unknown => write!(f, "holding {found:#018x}"),
        }
    }
}

/// One page of memory, aligned like one, so that a page of the pattern is a page of the guest.
#[derive(Clone)]
#[repr(C, align(4096))]
pub struct Page([u64; WORDS]);

impl Page {
    /// A page of zeroes.
    pub const ZERO: Page = Page([0; WORDS]);

    /// Writes what `tag` says.
    pub fn fill(&mut self, tag: Tag) {
        let mut value = tag.base();
        for word in &mut self.0 {
            *word = value;
            value = value.wrapping_add(STRIDE);
        }
    }

    /// Compares with what `tag` says.
    ///
    /// # Errors
    /// What differs, and where it comes from.
    pub fn verify(&self, tag: Tag) -> Result<(), Mismatch> {
        let mut value = tag.base();
        let mut difference = 0;
        // Without a branch per word, so that it compiles to vector instructions: the guest runs
        // inside of a CPU emulator.
        for word in &self.0 {
            difference |= word ^ value;
            value = value.wrapping_add(STRIDE);
        }
        if difference == 0 {
            Ok(())
        } else {
            Err(self.explain(tag))
        }
    }

    #[cold]
    fn explain(&self, expected: Tag) -> Mismatch {
        let base = expected.base();
        let wanted = |index: usize| base.wrapping_add(STRIDE.wrapping_mul(index as u64));
        let wrong = |(index, word): &(usize, &u64)| **word != wanted(*index);
        let words = self.0.iter().enumerate().filter(wrong).count();
        // A page that differs has a first word that differs; should memory heal between two
        // reads, the page is still reported, with word 0.
        let (first, &found) = self
            .0
            .iter()
            .enumerate()
            .find(wrong)
            .unwrap_or((0, &self.0[0]));
        let origin = Tag::decode(expected.seed, first, found);
        // Chance hits of a random word are 1 in 2^20 or rarer with these bounds.
        let recent = |generation: u32| {
            generation.wrapping_sub(expected.generation) < 16
                || expected.generation.wrapping_sub(generation) < 0x1_0000
        };
        let origin = if found == 0 {
            Origin::Zero
        } else if origin.page == expected.page && recent(origin.generation) {
            Origin::Generation(origin.generation)
        } else if origin.page < 1 << 24 && recent(origin.generation) {
            Origin::Page(origin.page, origin.generation)
        } else {
            Origin::Unknown
        };
        Mismatch {
            expected,
            words,
            first,
            found,
            origin,
        }
    }

    /// The words, for tests that damage them.
    pub fn words_mut(&mut self) -> &mut [u64; WORDS] {
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TAG: Tag = Tag {
        seed: 7,
        page: 300,
        generation: 41,
    };

    fn page(tag: Tag) -> Page {
        let mut page = Page::ZERO;
        page.fill(tag);
        page
    }

    #[test]
    fn mix_is_the_published_splitmix64_finaliser() {
        // First two outputs of SplitMix64 for the seed 0 (java.util.SplittableRandom).
        assert_eq!(mix(STRIDE), 0xe220_a839_7b1d_cdaf);
        assert_eq!(mix(STRIDE.wrapping_mul(2)), 0x6e78_9e6a_a1b9_65f4);
    }

    #[test]
    fn a_page_is_exactly_one_aligned_page_of_memory() {
        assert_eq!(size_of::<Page>(), PAGE_SIZE);
        assert_eq!(align_of::<Page>(), PAGE_SIZE);
    }

    #[test]
    fn an_older_version_of_a_page_is_named_by_its_generation() {
        let old = page(Tag {
            generation: 40,
            ..TAG
        });
        let wrong = old.verify(TAG).unwrap_err();
        assert_eq!(wrong.origin, Origin::Generation(40));
        assert_eq!(wrong.words, WORDS);
    }

    #[test]
    fn a_page_delivered_to_a_wrong_place_is_named_by_its_number() {
        let wrong = page(Tag { page: 301, ..TAG }).verify(TAG).unwrap_err();
        assert_eq!(wrong.origin, Origin::Page(301, 41));
    }

    #[test]
    fn a_page_never_delivered_is_reported_as_zero() {
        assert_eq!(Page::ZERO.verify(TAG).unwrap_err().origin, Origin::Zero);
    }

    #[test]
    fn another_owners_page_is_not_taken_for_ones_own() {
        let wrong = page(Tag { seed: 8, ..TAG }).verify(TAG).unwrap_err();
        // Seeds this close differ only in the low bits, which decode to another generation.
        assert_ne!(wrong.origin, Origin::Generation(41));
    }

    #[test]
    fn the_tail_of_an_older_version_is_found_where_it_starts() {
        let mut half = page(TAG);
        let old = page(Tag {
            generation: 39,
            ..TAG
        });
        half.0[256..].copy_from_slice(&old.0[256..]);
        let wrong = half.verify(TAG).unwrap_err();
        assert_eq!(
            (wrong.first, wrong.words, wrong.origin),
            (256, 256, Origin::Generation(39))
        );
    }

    proptest! {
        #[test]
        fn unmix_undoes_mix(x: u64) {
            prop_assert_eq!(unmix(mix(x)), x);
        }

        #[test]
        fn what_was_filled_verifies_and_nothing_else_does(
            seed: u64, number: u32, generation: u32, other: u32,
        ) {
            let tag = Tag { seed, page: number, generation };
            let filled = page(tag);
            prop_assert!(filled.verify(tag).is_ok());
            prop_assume!(other != generation && other != number);
            let stale = Tag { generation: other, ..tag };
            let misplaced = Tag { page: other, ..tag };
            prop_assert!(filled.verify(stale).is_err());
            prop_assert!(filled.verify(misplaced).is_err());
        }

        #[test]
        fn a_single_flipped_bit_is_found_at_its_word(index in 0..WORDS, bit in 0..64u32) {
            let mut damaged = page(TAG);
            damaged.0[index] ^= 1 << bit;
            let wrong = damaged.verify(TAG).unwrap_err();
            prop_assert_eq!((wrong.first, wrong.words), (index, 1));
        }
    }
}
