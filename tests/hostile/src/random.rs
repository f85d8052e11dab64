//! Reproducible randomness: SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).

use core::cell::Cell;

/// A stream of random numbers. Taking one needs no exclusive access, so that the choices of a pick can be random themselves.
#[derive(Debug, Clone)]
pub struct Random(Cell<u64>);

impl Random {
    /// The stream of round `round` of a case, for a guest's seed. Rounds don't depend on each other, so that one can be
    /// repeated alone.
    pub fn new(seed: u64, case: u64, round: u64) -> Self {
        let random = Self(Cell::new(seed ^ case.rotate_left(56)));
        random.0.set(random.next() ^ round);
        random.next();
        random
    }

    /// 64 random bits.
    pub fn next(&self) -> u64 {
        let mut z = self.0.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0.set(z);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A random byte.
    pub fn byte(&self) -> u8 {
        (self.next() >> 56) as u8
    }

    /// A number below `bound`; 0 if that is 0.
    pub fn below(&self, bound: u64) -> u64 {
        // The bias is one in 2^64 / bound, which no test can see.
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// True once in `n` times.
    pub fn one_in(&self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of `choices`, which must not be empty.
    pub fn pick<T: Copy>(&self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// A number that is likely to be at a border: few bits, all ones, a power of two, a sign change, or just any.
    pub fn odd_number(&self) -> u64 {
        let any = self.next();
        match self.below(8) {
            0 => self.below(16),
            1 => any & 0xffff,
            2 => any & 0xffff_ffff,
            3 => 1 << (any & 63),
            4 => (1u64 << (any & 63)).wrapping_sub(1),
            5 => !(1u64 << (any & 63)),
            6 => u64::MAX - self.below(16),
            _ => any,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_the_published_generator() {
        // Of the reference implementation in C with seed 1234567.
        let random = Random(Cell::new(1_234_567));
        assert_eq!(random.next(), 6_457_827_717_110_365_317);
        assert_eq!(random.next(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn a_round_is_the_same_each_time_and_rounds_differ() {
        let first = |seed, case, round| Random::new(seed, case, round).next();
        assert_eq!(first(1, 2, 3), first(1, 2, 3));
        assert_ne!(first(1, 2, 3), first(1, 2, 4));
        assert_ne!(first(1, 2, 3), first(1, 3, 3));
        assert_ne!(first(1, 2, 3), first(2, 2, 3));
    }

    #[test]
    fn bounds_are_kept() {
        let random = Random::new(0, 0, 0);
        assert!((0..1000).all(|_| random.below(7) < 7));
        assert_eq!(random.below(0), 0);
    }
}
