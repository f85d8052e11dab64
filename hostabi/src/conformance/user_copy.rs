// SPDX-License-Identifier: GPL-2.0
//! Checks of [`UserCopy`](crate::UserCopy): copies from and to the caller.

use super::guest_mem::FORBIDDEN;
use super::{ensure, equal, succeeds, Contract, Failure, Fixture};
use crate::Host;
use core::marker::PhantomData;

/// The checks for host `H`.
pub(super) struct Checks<H>(PhantomData<H>);

impl<H: Host> Checks<H> {
    pub(super) const LIST: &'static [Contract] = &[
        Contract {
            name: "what was copied out is copied in",
            check: copies_are_exact::<H>,
        },
        Contract {
            name: "a copy in is all or a fault",
            check: copy_in_is_all_or_fault::<H>,
        },
        Contract {
            name: "a copy out beyond the mapping faults",
            check: copy_out_beyond_faults::<H>,
        },
        Contract {
            name: "a copy with an address outside of user memory faults",
            check: forbidden_faults::<H>,
        },
    ];
}

fn copies_are_exact<H: Host>(fixture: &Fixture) -> Result<(), Failure> {
    let address = fixture.user_page(2)?.0 + 4093;
    let text = *b"from the monitor";
    succeeds("a copy out succeeds", H::copy_out(address, &text[..]))?;
    // A copy must not touch what lies beside it.
    succeeds("one byte can be copied", H::copy_out(address - 1, b"<"))?;
    let mut back = [0; 17];
    succeeds("a copy in succeeds", H::copy_in(address - 1, &mut back))?;
    for (expected, found) in b"<from the monitor".iter().zip(back) {
        equal(
            "what was copied out is copied in",
            u64::from(*expected),
            u64::from(found),
        )?;
    }
    Ok(())
}

fn copy_in_is_all_or_fault<H: Host>(fixture: &Fixture) -> Result<(), Failure> {
    let end = fixture.user_end()?;
    let mut buffer = [0; 16];
    for inside in [1, 8, 15] {
        ensure(
            "a copy in that leaves the mapping faults",
            H::copy_in(end - inside, &mut buffer).is_err(),
            0,
            inside,
        )?;
    }
    succeeds(
        "a copy in up to the end succeeds",
        H::copy_in(end - 16, &mut buffer),
    )
}

fn copy_out_beyond_faults<H: Host>(fixture: &Fixture) -> Result<(), Failure> {
    let end = fixture.user_end()?;
    for inside in [1, 8, 15] {
        ensure(
            "a copy out that leaves the mapping faults",
            H::copy_out(end - inside, &[1; 16]).is_err(),
            0,
            inside,
        )?;
    }
    succeeds(
        "a copy out up to the end succeeds",
        H::copy_out(end - 16, &[1; 16]),
    )
}

fn forbidden_faults<H: Host>(_: &Fixture) -> Result<(), Failure> {
    for address in FORBIDDEN.into_iter().chain([u64::MAX - 7]) {
        ensure(
            "a copy in faults",
            H::copy_in(address, &mut [0; 16]).is_err(),
            0,
            address,
        )?;
        ensure(
            "a copy out faults",
            H::copy_out(address, &[0; 16]).is_err(),
            0,
            address,
        )?;
    }
    Ok(())
}
