// SPDX-License-Identifier: GPL-2.0
//! Checks of [`HostTime`](crate::HostTime): what the host knows about its TSC.

use super::{ensure, equal, holds, succeeds, Contract, Failure, Fixture};
use crate::{Host, Ns, SpinLock};
use core::marker::PhantomData;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// Rates that a TSC may have, in kHz: 10 MHz (an emulator) to 20 GHz. A rate in Hz or MHz is outside.
const RATES: core::ops::RangeInclusive<u64> = 10_000..=20_000_000;
/// Readings of the TSC that each CPU makes.
const READINGS: u32 = 500;

/// The checks for host `H`.
pub(super) struct Checks<H>(PhantomData<H>);

impl<H: Host> Checks<H> {
    pub(super) const LIST: &'static [Contract] = &[
        Contract {
            name: "the TSC is stable and never goes back, on whichever CPU",
            check: tsc_is_monotonic::<H>,
        },
        Contract {
            name: "the TSC has one plausible rate",
            check: rate_is_plausible::<H>,
        },
        Contract {
            name: "a delay lasts at least its time",
            check: delay_lasts::<H>,
        },
    ];
}

/// The CPUs read in turns under a lock: a reading that is older than the one before, made elsewhere, shows a skew.
fn tsc_is_monotonic<H: Host>(fixture: &Fixture) -> Result<(), Failure> {
    holds("the host says that it is stable", H::tsc_is_stable())?;
    let last = succeeds("a spin lock can be made", H::spin_lock(0u64))?;
    let back = AtomicU64::new(0);
    H::run_on_all(&|| {
        for _ in 0..READINGS {
            let mut last = last.lock();
            let now = (fixture.tsc)();
            back.fetch_max(last.saturating_sub(now), SeqCst);
            *last = now;
        }
    });
    equal(
        "no reading is older than one before it",
        0,
        back.load(SeqCst),
    )?;
    let start = (fixture.tsc)();
    let moved = fixture.spin_until::<H>(1_000_000, || (fixture.tsc)() > start);
    holds("the TSC moves", moved)
}

fn rate_is_plausible<H: Host>(_: &Fixture) -> Result<(), Failure> {
    let rate = u64::from(H::tsc_khz().0);
    ensure(
        "the rate is one that a TSC may have",
        RATES.contains(&rate),
        *RATES.start(),
        rate,
    )?;
    let others = AtomicU64::new(0);
    H::run_on_all(&|| {
        if u64::from(H::tsc_khz().0) != rate {
            others.fetch_add(1, SeqCst);
        }
    });
    equal("it is the same on all CPUs", 0, others.load(SeqCst))?;
    equal("and stays", rate, H::tsc_khz().0.into())
}

fn delay_lasts<H: Host>(fixture: &Fixture) -> Result<(), Failure> {
    for ns in [0, 1_000, 30_000, 1_000_000] {
        let start = (fixture.tsc)();
        H::delay(Ns(ns));
        let took = fixture.elapsed_ns::<H>(start);
        // A host may calibrate its delays by another clock than the TSC.
        ensure("the time has gone by", took >= ns - ns / 16, ns, took)?;
    }
    Ok(())
}
