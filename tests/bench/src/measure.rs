//! How ticks are counted: the least of many, as everything that comes between only adds.
#![forbid(unsafe_code)]

use crate::arch::ticks;

/// Operations between two looks at the counter.
const BATCH: u64 = 32;
/// Batches, of which the quickest counts: timer interrupts fall into the others.
const BATCHES: u64 = 64;

/// Ticks of one `operation`, without the loop around it.
pub fn operation(mut operation: impl FnMut()) -> u64 {
    let with = least(&mut operation);
    let without = least(&mut || {
        std::hint::black_box(());
    });
    with.saturating_sub(without) / BATCH
}

fn least(operation: &mut impl FnMut()) -> u64 {
    (0..BATCHES)
        .map(|_| {
            let begin = ticks();
            for _ in 0..BATCH {
                operation();
            }
            ticks().wrapping_sub(begin)
        })
        .min()
        .unwrap_or_default()
}

/// Ticks of a whole piece of `work`, interrupts and all: what a user of the machine waits.
pub fn whole(work: impl FnOnce()) -> u64 {
    let begin = ticks();
    work();
    ticks().wrapping_sub(begin)
}
