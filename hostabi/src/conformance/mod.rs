// SPDX-License-Identifier: GPL-2.0
//! The conformance suite: one check per sentence of the host ABI's contracts.
//!
//! It stands before the path: what every step of it takes for granted of a host is checked here, by `cargo test` on the
//! simulated host and by `insmod pvmm.ko selftest=1` in a kernel. It follows the doc comments of this crate's traits.
//!
//! The list begins with the five promises that the host layers of an older monitor (HAXM) broke without a word: flags
//! of an allocation ignored, a partial copy taken for success, a failure that was only logged, a free of the wrong
//! memory, a deliberate leak.
//!
//! What the suite cannot see through a host, and who looks after it instead:
//! - that a value is dropped when its allocation fails, that a wait and a resolve end with a signal, that an invalidation
//!   reaches every watch and [`HostCpu::run_on_all`](crate::HostCpu::run_on_all) waits for windows, that a wake from
//!   another thread is not lost: these need a host that fails or acts on request. The simulated host's own tests show
//!   them for it; a port shows them end to end.
//! - that a resolved frame holds the page's bytes, that the raw forms of a page keep its content, that an interrupt reaches
//!   its sink, that an access inside a claimed range reaches the device: the core's own tests and the end-to-end tests.
//! - that [`HostCpu::deliver_nmi`](crate::HostCpu::deliver_nmi) delivers, that a kick ends a guest's run, that FPU registers
//!   and descriptor tables are preserved: only a guest can tell; the end-to-end tests run one.
#![forbid(unsafe_code)]

mod cpu;
mod dev;
mod guest_mem;
mod log;
mod mem;
mod sync;
mod time;
mod user_copy;
mod vmx;

use crate::{Host, Hva, PAGE_SIZE};
use core::fmt;
use core::marker::PhantomData;
use core::ops::Range;

/// Pages that [`Fixture::user`] must have.
pub const USER_PAGES: u64 = 4;

/// What the suite needs and cannot get through the traits.
#[derive(Debug, Clone)]
pub struct Fixture {
    /// Reads this CPU's TSC, after all earlier loads (`LFENCE; RDTSC`). Any context.
    pub tsc: fn() -> u64,
    /// Counts the pages and word arrays that the host has handed out and not got back. A host counts one up where it
    /// takes memory from its allocator and down where it gives it back. Nobody else may allocate through the
    /// host while the suite runs.
    pub live: fn() -> u64,
    /// At least [`USER_PAGES`] pages of the calling process: private, readable, writable, never touched, used by nobody
    /// else. The page after the last must be unmapped.
    pub user: Range<Hva>,
}

impl Fixture {
    /// The address of page `index` of the user memory.
    fn user_page(&self, index: u64) -> Result<Hva, Failure> {
        let pages = self.user.end.0.saturating_sub(self.user.start.0) / PAGE_SIZE;
        ensure(
            "the fixture must give enough user memory",
            self.user.start.0 % PAGE_SIZE == 0 && pages >= USER_PAGES && index < USER_PAGES,
            USER_PAGES,
            pages,
        )?;
        Ok(Hva(self.user.start.0 + index * PAGE_SIZE))
    }

    /// The first address after the user memory.
    fn user_end(&self) -> Result<u64, Failure> {
        self.user_page(0)?;
        Ok(self.user.end.0 & !(PAGE_SIZE - 1))
    }

    /// Nanoseconds that the TSC says have gone by since it showed `start`.
    fn elapsed_ns<H: Host>(&self, start: u64) -> u64 {
        let ticks = (self.tsc)().saturating_sub(start);
        let khz = u64::from(H::tsc_khz().0).max(1);
        // Checks last seconds at most: what saturates here is far above every limit.
        ticks.saturating_mul(1_000_000) / khz
    }

    /// Waits until `done`, at most `limit_ns`; says whether it came. Any context.
    fn spin_until<H: Host>(&self, limit_ns: u64, done: impl Fn() -> bool) -> bool {
        let start = (self.tsc)();
        loop {
            if done() {
                return true;
            }
            if self.elapsed_ns::<H>(start) > limit_ns {
                return done();
            }
            core::hint::spin_loop();
        }
    }
}

/// How a host breaks its contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    /// What should have been so.
    pub what: &'static str,
    /// The value that was expected; 0 where there is none.
    pub expected: u64,
    /// The value that was found; 0 where there is none.
    pub found: u64,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} (expected {:#x}, found {:#x})",
            self.what, self.expected, self.found
        )
    }
}

/// One sentence of the host ABI's contracts and its check.
#[derive(Debug, Clone, Copy)]
pub struct Contract {
    /// The sentence.
    pub name: &'static str,
    /// Checks it. Process context.
    pub check: fn(&Fixture) -> Result<(), Failure>,
}

/// What a run of the suite found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Contracts that the host keeps.
    pub passed: u32,
    /// Contracts that it breaks.
    pub failed: u32,
}

/// The contracts of one theme, as checks of the host `H`.
struct Theme<H>(PhantomData<H>);

impl<H: Host> Theme<H> {
    /// The promises that HAXM's host layers broke silently.
    const BROKEN_BEFORE: &'static [Contract] = &[
        Contract {
            name: "a page is zeroed",
            check: mem::page_is_zeroed::<H>,
        },
        Contract {
            name: "a guest read is all or an error",
            check: guest_mem::read_is_all_or_error::<H>,
        },
        Contract {
            name: "an unmapped address is refused, not only logged",
            check: guest_mem::unmapped_is_refused::<H>,
        },
        Contract {
            name: "dropping a page leaves the others alone",
            check: mem::drop_leaves_others_alone::<H>,
        },
        Contract {
            name: "what is dropped is freed",
            check: mem::dropped_is_freed::<H>,
        },
    ];

    const ALL: [&'static [Contract]; 10] = [
        Self::BROKEN_BEFORE,
        mem::Checks::<H>::LIST,
        guest_mem::Checks::<H>::LIST,
        user_copy::Checks::<H>::LIST,
        cpu::Checks::<H>::LIST,
        sync::Checks::<H>::LIST,
        time::Checks::<H>::LIST,
        dev::Checks::<H>::LIST,
        vmx::Checks::<H>::LIST,
        log::Checks::<H>::LIST,
    ];

    /// An empty theme would let every host pass it.
    const NONE_IS_EMPTY: () = {
        let mut theme = 0;
        while theme < Self::ALL.len() {
            assert!(!Self::ALL[theme].is_empty());
            theme += 1;
        }
    };
}

/// All contracts, as checks of the host `H`.
pub fn contracts<H: Host>() -> impl Iterator<Item = &'static Contract> {
    // Naming the constant makes the compiler evaluate it for this host.
    let () = Theme::<H>::NONE_IS_EMPTY;
    Theme::<H>::ALL.into_iter().flatten()
}

/// Checks all contracts of the host `H` and tells `report` each one's name and result, in order. Takes less than a second
/// on a host that keeps them. Process context of the process whose memory the fixture names; one run at a time.
pub fn run<H: Host>(
    fixture: &Fixture,
    report: &mut dyn FnMut(&'static str, Result<(), Failure>),
) -> Summary {
    let mut summary = Summary::default();
    for contract in contracts::<H>() {
        let result = (contract.check)(fixture);
        match result {
            Ok(()) => summary.passed += 1,
            Err(_) => summary.failed += 1,
        }
        report(contract.name, result);
    }
    summary
}

/// Fails with the two values unless `holds`.
fn ensure(what: &'static str, holds: bool, expected: u64, found: u64) -> Result<(), Failure> {
    if holds {
        return Ok(());
    }
    Err(Failure {
        what,
        expected,
        found,
    })
}

/// Fails unless `found` is `expected`.
fn equal(what: &'static str, expected: u64, found: u64) -> Result<(), Failure> {
    ensure(what, expected == found, expected, found)
}

/// Fails without values unless `holds`.
fn holds(what: &'static str, holds: bool) -> Result<(), Failure> {
    ensure(what, holds, 1, 0)
}

/// A step that the check needs must succeed.
fn succeeds<T, E>(what: &'static str, result: Result<T, E>) -> Result<T, Failure> {
    result.map_err(|_| Failure {
        what,
        expected: 0,
        found: 0,
    })
}
