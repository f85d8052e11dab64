// SPDX-License-Identifier: GPL-2.0
//! Checks of [`HostLog`](crate::HostLog): the host's log.

use super::{ensure, Contract, Failure, Fixture};
use crate::{Host, Level};
use core::fmt;
use core::marker::PhantomData;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// The checks for host `H`.
pub(super) struct Checks<H>(PhantomData<H>);

impl<H: Host> Checks<H> {
    pub(super) const LIST: &'static [Contract] = &[Contract {
        name: "a message of each level is written, from any context",
        check: messages_are_written::<H>,
    }];
}

/// Notices that it is written. A host may format a line more than once.
struct Witness<'a>(&'a AtomicU64);

impl fmt::Display for Witness<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fetch_add(1, SeqCst);
        f.write_str("conformance")
    }
}

fn messages_are_written<H: Host>(_: &Fixture) -> Result<(), Failure> {
    let written = AtomicU64::new(0);
    for level in [Level::Error, Level::Warning, Level::Info] {
        for interrupts_off in [false, true] {
            let irq = interrupts_off.then(H::irq_off);
            let before = written.load(SeqCst);
            H::log(
                level,
                format_args!("self-test: {} of the log", Witness(&written)),
            );
            drop(irq);
            ensure(
                "the host formats the message",
                written.load(SeqCst) > before,
                before + 1,
                written.load(SeqCst),
            )?;
        }
    }
    Ok(())
}
