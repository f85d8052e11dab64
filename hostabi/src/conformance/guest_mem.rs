// SPDX-License-Identifier: GPL-2.0
//! Checks of [`GuestMem`](crate::GuestMem): memory of the process that owns the VM.

use super::{ensure, equal, holds, succeeds, Contract, Failure, Fixture};
use crate::{Host, Hva, InvalidateSink, ResolveError, Resolved, PAGE_SIZE};
use core::marker::PhantomData;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// How long an invalidation by somebody else may stay open, in ns.
const SETTLE: u64 = 100_000_000;

/// Addresses that no process of any x86-64 host may use: the first page, where the kernel's half begins, an address that is
/// not canonical, and the last page.
pub(super) const FORBIDDEN: [u64; 5] = [
    0,
    0xffff_8000_0000_0000,
    0xffff_ffff_8100_0000,
    1 << 62,
    !(PAGE_SIZE - 1),
];

/// The checks for host `H`.
pub(super) struct Checks<H>(PhantomData<H>);

impl<H: Host> Checks<H> {
    pub(super) const LIST: &'static [Contract] = &[
        Contract {
            name: "the caller runs in its own address space",
            check: own_space_is_current::<H>,
        },
        Contract {
            name: "an address outside of user memory does not resolve",
            check: forbidden_is_refused::<H>,
        },
        Contract {
            name: "a page resolved for writing is writable and keeps its frame until told",
            check: frame_stays_until_invalidated::<H>,
        },
        Contract {
            name: "a dropped watch hears nothing",
            check: dropped_watch_is_silent::<H>,
        },
        Contract {
            name: "a guest read returns what a guest write stored",
            check: read_returns_what_was_written::<H>,
        },
        Contract {
            name: "a guest write beyond the mapping is an error",
            check: write_beyond_is_refused::<H>,
        },
    ];
}

/// Counts invalidations that touch one page.
struct Witness {
    page: Hva,
    starts: AtomicU64,
    ends: AtomicU64,
}

impl Witness {
    fn concerns(&self, range: &Range<Hva>) -> bool {
        range.start.0 < self.page.0 + PAGE_SIZE && self.page.0 < range.end.0
    }

    fn starts(&self) -> u64 {
        self.starts.load(SeqCst)
    }

    fn ends(&self) -> u64 {
        self.ends.load(SeqCst)
    }
}

impl InvalidateSink for Witness {
    fn invalidate_start(&self, range: Range<Hva>) {
        if self.concerns(&range) {
            self.starts.fetch_add(1, SeqCst);
        }
    }

    fn invalidate_end(&self, range: Range<Hva>) {
        if self.concerns(&range) {
            self.ends.fetch_add(1, SeqCst);
        }
    }
}

fn space<H: Host>() -> Result<H::AddressSpace, Failure> {
    succeeds(
        "the caller's address space can be had",
        H::current_address_space(),
    )
}

fn witness<H: Host>(page: Hva) -> Result<H::Shared<Witness>, Failure> {
    succeeds(
        "a shared value can be made",
        H::shared(Witness {
            page,
            starts: AtomicU64::new(0),
            ends: AtomicU64::new(0),
        }),
    )
}

fn resolve<H: Host>(space: &H::AddressSpace, hva: Hva, write: bool) -> Result<Resolved, Failure> {
    succeeds("mapped memory resolves", H::resolve(space, hva, write))
}

fn own_space_is_current<H: Host>(_: &Fixture) -> Result<(), Failure> {
    holds("the space is current", H::is_current(&space::<H>()?))
}

fn refuse<H: Host>(space: &H::AddressSpace, address: u64) -> Result<(), Failure> {
    for write in [false, true] {
        ensure(
            "resolving fails with Unmapped",
            H::resolve(space, Hva(address), write) == Err(ResolveError::Unmapped),
            0,
            address,
        )?;
    }
    Ok(())
}

/// The page after the fixture's memory: a whole page that simply isn't there.
pub(super) fn unmapped_is_refused<H: Host>(fixture: &Fixture) -> Result<(), Failure> {
    refuse::<H>(&space::<H>()?, fixture.user_end()?)
}

fn forbidden_is_refused<H: Host>(_: &Fixture) -> Result<(), Failure> {
    let space = space::<H>()?;
    for address in FORBIDDEN {
        refuse::<H>(&space, address)?;
        let mut buffer = [0; 16];
        ensure(
            "reading it fails",
            H::read(&space, Hva(address), &mut buffer).is_err(),
            0,
            address,
        )?;
        ensure(
            "writing it fails",
            H::write(&space, Hva(address), &buffer).is_err(),
            0,
            address,
        )?;
    }
    ensure(
        "a range that wraps around is refused",
        H::read(&space, Hva(u64::MAX - 7), &mut [0; 16]).is_err(),
        0,
        u64::MAX - 7,
    )
}

/// A never-touched page that is read and then written gets another frame on hosts that share one page of zeros; whoever
/// moves a page must say so first.
fn frame_stays_until_invalidated<H: Host>(fixture: &Fixture) -> Result<(), Failure> {
    let space = space::<H>()?;
    let hva = fixture.user_page(0)?;
    let witness = witness::<H>(hva)?;
    let watch = succeeds("a watch can be made", H::watch(&space, witness.clone()))?;
    let mut told = witness.starts();
    let mut frame = resolve::<H>(&space, hva, false)?.pfn;
    for write in [true, false, true] {
        let now = resolve::<H>(&space, hva, write)?;
        ensure(
            "a page resolved for writing is writable",
            now.writable || !write,
            1,
            u64::from(now.writable),
        )?;
        let starts = witness.starts();
        ensure(
            "a page changes its frame only when it was invalidated",
            now.pfn == frame || starts > told,
            frame.0,
            now.pfn.0,
        )?;
        (told, frame) = (starts, now.pfn);
    }
    // The host may be at work on the page by itself; every start has its end.
    fixture.spin_until::<H>(SETTLE, || witness.starts() == witness.ends());
    equal(
        "each invalidation that starts ends",
        witness.starts(),
        witness.ends(),
    )?;
    drop(watch);
    Ok(())
}

fn dropped_watch_is_silent<H: Host>(fixture: &Fixture) -> Result<(), Failure> {
    let space = space::<H>()?;
    let hva = fixture.user_page(1)?;
    let witness = witness::<H>(hva)?;
    drop(succeeds(
        "a watch can be made",
        H::watch(&space, witness.clone()),
    )?);
    let told = witness.starts();
    resolve::<H>(&space, hva, false)?;
    resolve::<H>(&space, hva, true)?;
    equal(
        "no invalidation is heard after the drop",
        told,
        witness.starts(),
    )
}

/// Across a page boundary, at odd addresses.
fn read_returns_what_was_written<H: Host>(fixture: &Fixture) -> Result<(), Failure> {
    let space = space::<H>()?;
    let hva = Hva(fixture.user_page(3)?.0 - 5);
    let text = *b"guest memory";
    succeeds(
        "mapped memory can be written",
        H::write(&space, hva, &text[..]),
    )?;
    let mut back = [0xff; 12];
    succeeds("mapped memory can be read", H::read(&space, hva, &mut back))?;
    for (expected, found) in text.iter().zip(back) {
        equal(
            "what was written is read",
            u64::from(*expected),
            u64::from(found),
        )?;
    }
    let mut inner = [0; 1];
    succeeds(
        "a single byte can be read",
        H::read(&space, Hva(hva.0 + 6), &mut inner),
    )?;
    equal("it is the right one", u64::from(text[6]), inner[0].into())
}

/// A copy whose first half succeeds must not pass for a whole one.
pub(super) fn read_is_all_or_error<H: Host>(fixture: &Fixture) -> Result<(), Failure> {
    let space = space::<H>()?;
    let end = fixture.user_end()?;
    let mut buffer = [0; 16];
    for inside in [1, 8, 15] {
        ensure(
            "a read that leaves the mapping fails",
            H::read(&space, Hva(end - inside), &mut buffer).is_err(),
            0,
            inside,
        )?;
    }
    succeeds(
        "a read up to the end succeeds",
        H::read(&space, Hva(end - 16), &mut buffer),
    )
}

fn write_beyond_is_refused<H: Host>(fixture: &Fixture) -> Result<(), Failure> {
    let space = space::<H>()?;
    let end = fixture.user_end()?;
    for inside in [1, 8, 15] {
        ensure(
            "a write that leaves the mapping fails",
            H::write(&space, Hva(end - inside), &[1; 16]).is_err(),
            0,
            inside,
        )?;
    }
    succeeds(
        "a write up to the end succeeds",
        H::write(&space, Hva(end - 16), &[1; 16]),
    )
}
