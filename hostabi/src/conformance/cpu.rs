// SPDX-License-Identifier: GPL-2.0
//! Checks of [`HostCpu`](crate::HostCpu): CPUs, interrupts and the FPU.
//!
//! Whether interrupts are off cannot be asked through a host. What can be seen is what the core needs of it: that the thread
//! stays on its CPU.

use super::{ensure, equal, holds, succeeds, Contract, Failure, Fixture};
use crate::{CpuId, Host, Interrupted, Ns};
use core::marker::PhantomData;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// CPU numbers below this are counted one by one.
const CPUS: u32 = 8192;
/// A stay on a CPU that gives an unruly host time to move the thread, in ns.
const STAY: Ns = Ns(20_000);
/// How long CPUs wait for each other before they give up, in ns.
const MEET: u64 = 2_000_000_000;
/// More than what two kicks that wait for nobody take, in ns, even on a busy machine.
const KICKS: u64 = 200_000_000;

/// The checks for host `H`.
pub(super) struct Checks<H>(PhantomData<H>);

impl<H: Host> Checks<H> {
    pub(super) const LIST: &'static [Contract] = &[
        Contract {
            name: "a thread with interrupts off stays on its CPU",
            check: current_is_stable::<H>,
        },
        Contract {
            name: "irq_off nests and returns the former state",
            check: irq_off_nests::<H>,
        },
        Contract {
            name: "run_on_all runs once on each online CPU",
            check: run_on_all_reaches_each::<H>,
        },
        Contract {
            name: "run_on_all runs with interrupts off",
            check: run_on_all_stays::<H>,
        },
        Contract {
            name: "run_on_all runs at the same time",
            check: run_on_all_is_simultaneous::<H>,
        },
        Contract {
            name: "run_on_all waits for all",
            check: run_on_all_waits::<H>,
        },
        Contract {
            name: "a kick does not wait",
            check: kick_does_not_wait::<H>,
        },
        Contract {
            name: "work that was done is no longer pending",
            check: work_gets_done::<H>,
        },
        Contract {
            name: "the FPU can be had again and again, with interrupts off",
            check: fpu_can_be_had_again::<H>,
        },
    ];
}

fn stays<H: Host>(what: &'static str, irq: &H::IrqOff, cpu: CpuId) -> Result<(), Failure> {
    equal(what, cpu.0.into(), H::current(irq).0.into())
}

fn current_is_stable<H: Host>(_: &Fixture) -> Result<(), Failure> {
    for _ in 0..8 {
        let irq = H::irq_off();
        let cpu = H::current(&irq);
        for _ in 0..4 {
            H::delay(STAY);
            stays::<H>("the thread is still on its CPU", &irq, cpu)?;
        }
    }
    Ok(())
}

fn irq_off_nests<H: Host>(_: &Fixture) -> Result<(), Failure> {
    for _ in 0..4 {
        let outer = H::irq_off();
        let cpu = H::current(&outer);
        for _ in 0..4 {
            let inner = H::irq_off();
            let innermost = H::irq_off();
            stays::<H>("nested sections are on the same CPU", &innermost, cpu)?;
            drop(innermost);
            stays::<H>("the end of one leaves the next", &inner, cpu)?;
            drop(inner);
            H::delay(STAY);
            stays::<H>("the end of the inner ones leaves the outer", &outer, cpu)?;
        }
    }
    Ok(())
}

fn run_on_all_reaches_each<H: Host>(_: &Fixture) -> Result<(), Failure> {
    let online = H::online();
    ensure("a CPU is online", online > 0, 1, online.into())?;
    let seen = succeeds("words can be allocated", H::words(CPUS as usize))?;
    let beyond = AtomicU64::new(0);
    H::run_on_all(&|| {
        let cpu = H::current(&H::irq_off());
        seen.get(cpu.0 as usize)
            .unwrap_or(&beyond)
            .fetch_add(1, SeqCst);
    });
    equal("CPU numbers are small", 0, beyond.load(SeqCst))?;
    let (mut reached, mut calls) = (0, 0);
    for count in seen.iter().map(|word| word.load(SeqCst)) {
        reached += u64::from(count > 0);
        calls += count;
    }
    equal("each online CPU is reached", online.into(), reached)?;
    equal("each is reached once", online.into(), calls)
}

fn run_on_all_stays<H: Host>(_: &Fixture) -> Result<(), Failure> {
    let moved = AtomicU64::new(0);
    H::run_on_all(&|| {
        // Each section begins anew: without `run_on_all`'s own, the thread may move between them.
        let cpu = H::current(&H::irq_off());
        for _ in 0..4 {
            H::delay(STAY);
            if H::current(&H::irq_off()) != cpu {
                moved.fetch_add(1, SeqCst);
            }
        }
    });
    equal("no call is moved to another CPU", 0, moved.load(SeqCst))
}

fn run_on_all_is_simultaneous<H: Host>(fixture: &Fixture) -> Result<(), Failure> {
    let online = u64::from(H::online());
    let (arrived, met) = (AtomicU64::new(0), AtomicU64::new(0));
    H::run_on_all(&|| {
        arrived.fetch_add(1, SeqCst);
        if fixture.spin_until::<H>(MEET, || arrived.load(SeqCst) >= online) {
            met.fetch_add(1, SeqCst);
        }
    });
    let met = met.load(SeqCst);
    ensure("all CPUs meet inside", met >= online, online, met)
}

fn run_on_all_waits<H: Host>(fixture: &Fixture) -> Result<(), Failure> {
    for _ in 0..4 {
        let (begun, ended) = (AtomicU64::new(0), AtomicU64::new(0));
        H::run_on_all(&|| {
            begun.fetch_add(1, SeqCst);
            H::delay(STAY);
            ended.fetch_add(1, SeqCst);
        });
        let calls = ended.load(SeqCst);
        ensure("a call has ended", calls > 0, 1, calls)?;
        equal("what began has ended", begun.load(SeqCst), calls)?;
        fixture.spin_until::<H>(10 * STAY.0, || begun.load(SeqCst) > calls);
        equal("nothing begins afterwards", calls, begun.load(SeqCst))?;
    }
    Ok(())
}

/// All CPUs kick all at once with interrupts off: a host that waits for the kicked CPU never comes back from that, so
/// a CPU that is offline and a kick of the own CPU are tried first, against the clock.
fn kick_does_not_wait<H: Host>(fixture: &Fixture) -> Result<(), Failure> {
    let irq = H::irq_off();
    let cpu = H::current(&irq);
    let start = (fixture.tsc)();
    H::kick(cpu);
    H::kick(CpuId(u32::MAX));
    let took = fixture.elapsed_ns::<H>(start);
    drop(irq);
    ensure("a kick returns at once", took < KICKS, KICKS, took)?;
    let (begun, returned) = (AtomicU64::new(0), AtomicU64::new(0));
    H::run_on_all(&|| {
        begun.fetch_add(1, SeqCst);
        for cpu in 0..H::online() {
            H::kick(CpuId(cpu));
        }
        returned.fetch_add(1, SeqCst);
    });
    equal(
        "CPUs that kick each other all go on",
        begun.load(SeqCst),
        returned.load(SeqCst),
    )
}

fn work_gets_done<H: Host>(_: &Fixture) -> Result<(), Failure> {
    // Other threads may bring new work at any time, but not a thousand times in a row.
    for _ in 0..1000 {
        if !H::work_pending(&H::irq_off()) {
            return Ok(());
        }
        if H::do_work() == Err(Interrupted) {
            return holds(
                "a signal stays pending until the thread returns to userspace",
                H::work_pending(&H::irq_off()),
            );
        }
    }
    holds("work that was done is gone", false)
}

fn fpu_can_be_had_again<H: Host>(_: &Fixture) -> Result<(), Failure> {
    for _ in 0..4 {
        let irq = H::irq_off();
        let cpu = H::current(&irq);
        for _ in 0..4 {
            let fpu = H::fpu_enter(&irq);
            stays::<H>("taking the FPU leaves interrupts off", &irq, cpu)?;
            drop(fpu);
            H::delay(STAY);
            stays::<H>("giving it back leaves interrupts off", &irq, cpu)?;
        }
    }
    Ok(())
}
