// SPDX-License-Identifier: GPL-2.0
//! Checks of [`HostVmx`](crate::HostVmx): the right to use the virtualisation hardware.

use super::{equal, Contract, Failure, Fixture};
use crate::{Host, VmxUnavailable};
use core::marker::PhantomData;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// Times that each CPU enters.
const TURNS: u32 = 3;

/// The checks for host `H`.
pub(super) struct Checks<H>(PhantomData<H>);

impl<H: Host> Checks<H> {
    pub(super) const LIST: &'static [Contract] = &[
        Contract {
            name: "VT-x is available, and a probe changes nothing",
            check: probe_succeeds::<H>,
        },
        Contract {
            name: "every CPU that was probed enters VMX operation, again and again",
            check: every_cpu_enters::<H>,
        },
    ];
}

fn number(error: VmxUnavailable) -> u64 {
    match error {
        VmxUnavailable::Absent => 1,
        VmxUnavailable::DisabledByFirmware => 2,
        VmxUnavailable::Busy => 3,
        VmxUnavailable::Failed => 4,
    }
}

/// Without VT-x nothing can be said about a port, so its absence fails.
fn probe_succeeds<H: Host>(_: &Fixture) -> Result<(), Failure> {
    for _ in 0..2 {
        let reason = H::probe().err().map_or(0, number);
        equal("the probe finds VT-x ready on every CPU", 0, reason)?;
    }
    Ok(())
}

fn every_cpu_enters<H: Host>(_: &Fixture) -> Result<(), Failure> {
    // Entering is allowed only after a successful probe.
    let reason = H::probe().err().map_or(0, number);
    equal("VT-x is ready", 0, reason)?;
    let (calls, entered) = (AtomicU64::new(0), AtomicU64::new(0));
    let refused = AtomicU64::new(0);
    H::run_on_all(&|| {
        calls.fetch_add(1, SeqCst);
        let irq = H::irq_off();
        let cpu = H::current(&irq);
        for _ in 0..TURNS {
            match H::enter_vmx(&irq) {
                Ok(operation) => {
                    if H::current(&irq) == cpu {
                        entered.fetch_add(1, SeqCst);
                    }
                    drop(operation);
                }
                Err(error) => {
                    refused.fetch_max(number(error), SeqCst);
                }
            }
        }
    });
    equal("no CPU is refused", 0, refused.load(SeqCst))?;
    equal(
        "each CPU entered each time and stayed itself",
        u64::from(TURNS) * calls.load(SeqCst),
        entered.load(SeqCst),
    )
}
