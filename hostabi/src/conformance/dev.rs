// SPDX-License-Identifier: GPL-2.0
//! Checks of [`HostDev`](crate::HostDev): claiming devices.
//!
//! They claim ranges and lines that are rarely used on a PC, for an instant, and touch no device.

use super::mem::Counted;
use super::{ensure, equal, succeeds, Contract, Failure, Fixture};
use crate::{ClaimError, Host, HostMem, IrqSink, Ports};
use core::marker::PhantomData;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// Ranges of eight ports, of which at least one should be free: sound cards and measuring boards of the ISA age.
const BASES: [u16; 6] = [0x240, 0x260, 0x340, 0x280, 0x2a0, 0x318];
const COUNT: u16 = 8;
/// ISA lines that can be claimed in vain without harm: parallel and serial ports.
const LINES: [u32; 4] = [5, 7, 3, 4];

/// The checks for host `H`.
pub(super) struct Checks<H>(PhantomData<H>);

impl<H: Host> Checks<H> {
    pub(super) const LIST: &'static [Contract] = &[
        Contract {
            name: "a port range is claimed exclusively, until it is dropped",
            check: ports_are_exclusive::<H>,
        },
        Contract {
            name: "a port range that does not exist is refused",
            check: impossible_ports_are_refused::<H>,
        },
        Contract {
            name: "an access that is not wholly inside a claimed range reads all ones",
            check: outside_reads_ones::<H>,
        },
        Contract {
            name: "an interrupt line that does not exist is refused, and the sink dropped",
            check: impossible_lines_are_refused::<H>,
        },
        Contract {
            name: "an interrupt line is claimed exclusively, until it is dropped",
            check: lines_are_exclusive::<H>,
        },
    ];
}

fn number(error: ClaimError) -> u64 {
    match error {
        ClaimError::Busy => 1,
        ClaimError::Invalid => 2,
        ClaimError::OutOfMemory => 3,
    }
}

/// Fails unless the claim was refused for the reason `expected`.
fn refused<T>(
    what: &'static str,
    expected: ClaimError,
    result: Result<T, ClaimError>,
) -> Result<(), Failure> {
    match result {
        Ok(_) => equal(what, number(expected), 0),
        Err(error) => equal(what, number(expected), number(error)),
    }
}

fn free_range<H: Host>() -> Result<H::Ports, Failure> {
    BASES
        .iter()
        .find_map(|base| H::claim_ports(*base, COUNT).ok())
        .ok_or(Failure {
            what: "one of the ranges that the suite tries is free",
            expected: BASES.len() as u64,
            found: 0,
        })
}

fn ports_are_exclusive<H: Host>(_: &Fixture) -> Result<(), Failure> {
    let ports = free_range::<H>()?;
    let base = ports.base();
    ensure(
        "the range begins where it was claimed",
        BASES.contains(&base),
        BASES[0].into(),
        base.into(),
    )?;
    equal(
        "the range has the claimed length",
        COUNT.into(),
        ports.count().into(),
    )?;
    for (other, count) in [(base, COUNT), (base + COUNT - 1, 1), (base + 1, 2)] {
        refused(
            "a range with a port that is claimed is busy",
            ClaimError::Busy,
            H::claim_ports(other, count),
        )?;
    }
    drop(ports);
    let again = H::claim_ports(base, COUNT);
    ensure(
        "a dropped range is free",
        again.is_ok(),
        0,
        again.err().map_or(0, number),
    )
}

fn impossible_ports_are_refused<H: Host>(_: &Fixture) -> Result<(), Failure> {
    for (base, count) in [(BASES[0], 0), (0xfffc, 5), (u16::MAX, u16::MAX)] {
        refused(
            "no port beyond FFFFh and no empty range can be claimed",
            ClaimError::Invalid,
            H::claim_ports(base, count),
        )?;
    }
    Ok(())
}

fn outside_reads_ones<H: Host>(_: &Fixture) -> Result<(), Failure> {
    let ports = free_range::<H>()?;
    for (offset, bytes, ones) in [
        (COUNT, 1, 0xff),
        (COUNT - 1, 2, 0xffff),
        (COUNT - 2, 4, u32::MAX),
        (COUNT, 4, u32::MAX),
        (u16::MAX, 1, 0xff),
        (u16::MAX, 4, u32::MAX),
    ] {
        let found = ports.read(offset, bytes);
        equal("all bits of the width are one", ones.into(), found.into())?;
        ports.write(offset, bytes, 0);
    }
    Ok(())
}

/// Counts nothing: no line is raised here. Its drop is what is watched.
struct Sink<H: HostMem>(Counted<H>);

impl<H: Host> IrqSink for Sink<H> {
    fn interrupt(&self) {
        // A line may have been left pending by whoever had it before; that is not the suite's business.
        core::hint::black_box(self.0.value);
    }
}

/// What came of claiming a line.
struct Claim<H: Host> {
    result: Result<H::Irq<Sink<H>>, ClaimError>,
    /// How often the sink has been dropped.
    drops: H::Shared<AtomicU64>,
}

/// Claims a line with a sink of its own.
fn claim<H: Host>(line: u32) -> Result<Claim<H>, Failure> {
    let (value, drops) = Counted::<H>::new(line.into())?;
    let sink = succeeds("a shared value can be made", H::shared(Sink(value)))?;
    Ok(Claim {
        result: H::claim_irq(line, sink),
        drops,
    })
}

fn impossible_lines_are_refused<H: Host>(_: &Fixture) -> Result<(), Failure> {
    for line in [16, 1000, u32::MAX] {
        let Claim { result, drops } = claim::<H>(line)?;
        refused(
            "an ISA line has a number up to 15",
            ClaimError::Invalid,
            result,
        )?;
        equal(
            "the sink of a refused claim is dropped",
            1,
            drops.load(SeqCst),
        )?;
    }
    Ok(())
}

/// If none of the lines is free, they all must say that they are busy.
fn lines_are_exclusive<H: Host>(_: &Fixture) -> Result<(), Failure> {
    for line in LINES {
        let Claim { result, drops } = claim::<H>(line)?;
        let first = match result {
            Ok(claimed) => claimed,
            Err(error) => {
                equal(
                    "a line that is not free is busy",
                    number(ClaimError::Busy),
                    number(error),
                )?;
                continue;
            }
        };
        let second = claim::<H>(line)?.result;
        refused("a claimed line is busy", ClaimError::Busy, second)?;
        equal("a claimed line keeps its sink", 0, drops.load(SeqCst))?;
        drop(first);
        equal("a dropped line drops its sink", 1, drops.load(SeqCst))?;
        let third = claim::<H>(line)?.result;
        return ensure("a dropped line is free", third.is_ok(), 1, 0);
    }
    Ok(())
}
