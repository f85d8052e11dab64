// SPDX-License-Identifier: GPL-2.0
//! Defects of CPUs, locks, time, devices, VT-x and the log.

use crate::defect::{Defect, Section};
use pvmm_hostabi::sim::{
    SimHost, SimIrqOff, SimMutex, SimMutexGuard, SimPorts, SimShared, SimVmxOperation, SimWaitQueue,
};
use pvmm_hostabi::{
    ClaimError, CpuId, HostCpu, HostTime, IrqSink, Level, Ns, Ports, TscKhz, VmxUnavailable,
    WaitQueue, Waited,
};
use std::cell::Cell;
use std::mem::forget;
use std::sync::Mutex;

defect! {
    /// A thread that stays long is moved to another CPU.
    CurrentWanders breaks ["a thread with interrupts off stays on its CPU"] {
        fn has_moved(section: &Section) -> bool {
            section.asked.get() > 3
        }
    }
}

defect! {
    InnerSectionEndsOuter breaks ["irq_off nests and returns the former state"] {
        fn has_moved(section: &Section) -> bool {
            section.inner_ended.get()
        }
    }
}

defect! {
    RunsTwice breaks ["run_on_all runs once on each online CPU"] {
        fn run_on_all(f: &(dyn Fn() + Sync)) {
            SimHost::run_on_all(&|| {
                f();
                f();
            });
        }
    }
}

defect! {
    /// Only the other CPUs are called. They then are not all there at the same time either.
    LeavesOneOut breaks ["run_on_all runs once on each online CPU", "run_on_all runs at the same time"] {
        fn run_on_all(f: &(dyn Fn() + Sync)) {
            SimHost::run_on_all(&|| {
                if SimHost::current(&SimHost::irq_off()).0 != 0 {
                    f();
                }
            });
        }
    }
}

defect! {
    RunsWithInterruptsOn breaks ["run_on_all runs with interrupts off"] {
        fn has_moved(section: &Section) -> bool {
            section.on_all.get() && section.begun_on_all.get() > 2
        }
    }
}

defect! {
    RunsInTurn breaks ["run_on_all runs at the same time"] {
        fn run_on_all(f: &(dyn Fn() + Sync)) {
            let turn = Mutex::new(());
            SimHost::run_on_all(&|| {
                let _turn = turn.lock();
                f();
            });
        }
    }
}

defect! {
    KickWaits breaks ["a kick does not wait"] {
        fn kick(cpu: CpuId) {
            SimHost::kick(cpu);
            SimHost::delay(Ns(150_000_000));
        }
    }
}

defect! {
    WorkIsEndless breaks ["work that was done is no longer pending"] {
        fn work_pending(_: &SimIrqOff) -> bool {
            true
        }
    }
}

defect! {
    FpuTurnsInterruptsOn breaks ["the FPU can be had again and again, with interrupts off"] {
        fn has_moved(section: &Section) -> bool {
            section.fpu_taken.get()
        }
    }
}

defect! {
    /// Its release turns interrupts on, whatever they were.
    SpinLockTurnsInterruptsOn breaks ["a spin lock works with interrupts on and off"] {
        fn has_moved(section: &Section) -> bool {
            section.lock_taken.get() && section.depth.get() > 0
        }
    }
}

defect! {
    TryLockFails breaks ["a mutex can be taken if and only if it is free"] {
        fn try_lock<T: Send>(_: &SimMutex<T>) -> Option<SimMutexGuard<'_, T>> {
            None
        }
    }
}

defect! {
    LocksLeak breaks ["a lock drops its value once"] {
        fn drop_mutex<T>(mutex: SimMutex<T>) {
            forget(mutex);
        }
    }
}

defect! {
    /// A short wait is a delay.
    SleepsFirst breaks ["a wait asks before it sleeps"] {
        fn wait(queue: &SimWaitQueue, timeout: Option<Ns>, ready: &mut dyn FnMut() -> bool) -> Waited {
            match timeout {
                Some(time) if time < Ns(100_000_000) => {
                    SimHost::delay(time);
                    Waited::TimedOut
                }
                _ => queue.wait(timeout, ready),
            }
        }
    }
}

defect! {
    /// Not by half: on a busy machine half a short time may last as long as all of it.
    WaitsAreShort breaks ["a wait lasts at least its time"] {
        fn wait(queue: &SimWaitQueue, timeout: Option<Ns>, ready: &mut dyn FnMut() -> bool) -> Waited {
            match timeout {
                Some(time) if time < Ns(100_000_000) => queue.wait(Some(Ns(0)), ready),
                _ => queue.wait(timeout, ready),
            }
        }
    }
}

thread_local! {
    static ASKING: Cell<bool> = const { Cell::new(false) };
}

defect! {
    /// The waiter joins the queue after it has asked.
    WakesAreLost breaks ["a wake-up while the condition is asked is not lost"] {
        fn wait(queue: &SimWaitQueue, timeout: Option<Ns>, ready: &mut dyn FnMut() -> bool) -> Waited {
            queue.wait(timeout, &mut || {
                ASKING.set(true);
                let is_ready = ready();
                ASKING.set(false);
                is_ready
            })
        }

        fn wake(queue: &SimWaitQueue) {
            if !ASKING.get() {
                queue.wake();
            }
        }
    }
}

defect! {
    TscIsUnstable breaks ["the TSC is stable and never goes back, on whichever CPU"] {
        fn tsc_is_stable() -> bool {
            false
        }
    }
}

defect! {
    RateDiffersByCpu breaks ["the TSC has one plausible rate"] {
        fn tsc_khz(section: &Section) -> TscKhz {
            TscKhz(SimHost::tsc_khz().0 + u32::from(section.on_all.get()))
        }
    }
}

defect! {
    /// Everything that is measured with the rate comes out too short.
    RateIsInHz breaks ["a wait lasts at least its time", "the TSC has one plausible rate", "a delay lasts at least its time"] {
        fn tsc_khz(_: &Section) -> TscKhz {
            TscKhz(SimHost::tsc_khz().0 * 1000)
        }
    }
}

defect! {
    DelaysAreShort breaks ["a delay lasts at least its time"] {
        fn delay(_: Ns) {}
    }
}

defect! {
    PortsAreShared breaks ["a port range is claimed exclusively, until it is dropped"] {
        fn grants_ports(reason: ClaimError) -> bool {
            reason == ClaimError::Busy
        }
    }
}

defect! {
    PortsStayClaimed breaks ["a port range is claimed exclusively, until it is dropped"] {
        fn drop_ports(ports: SimPorts) {
            forget(ports);
        }
    }
}

defect! {
    PortsWrap breaks ["a port range that does not exist is refused"] {
        fn grants_ports(reason: ClaimError) -> bool {
            reason == ClaimError::Invalid
        }
    }
}

defect! {
    /// Another device answers.
    PortsLeakOut breaks ["an access that is not wholly inside a claimed range reads all ones"] {
        fn port_read(ports: &SimPorts, offset: u16, bytes: u8) -> u32 {
            if offset < ports.count() {
                return ports.read(offset, bytes);
            }
            0
        }
    }
}

defect! {
    AnyLineIsClaimed breaks ["an interrupt line that does not exist is refused, and the sink dropped"] {
        fn grants_line(reason: ClaimError) -> bool {
            reason == ClaimError::Invalid
        }
    }
}

defect! {
    RefusedSinkStays breaks ["an interrupt line that does not exist is refused, and the sink dropped"] {
        fn drop_refused_sink<S: IrqSink>(sink: SimShared<S>) {
            forget(sink);
        }
    }
}

defect! {
    LinesAreShared breaks ["an interrupt line is claimed exclusively, until it is dropped"] {
        fn grants_line(reason: ClaimError) -> bool {
            reason == ClaimError::Busy
        }
    }
}

defect! {
    VmxIsAbsent breaks ["VT-x is available, and a probe changes nothing", "every CPU that was probed enters VMX operation, again and again"] {
        fn vmx() -> Result<(), VmxUnavailable> {
            Err(VmxUnavailable::Absent)
        }
    }
}

defect! {
    /// VMX operation is not left.
    EntersOnce breaks ["every CPU that was probed enters VMX operation, again and again"] {
        fn drop_vmx(operation: SimVmxOperation<'_>) {
            forget(operation);
        }
    }
}

defect! {
    LogIsMute breaks ["a message of each level is written, from any context"] {
        fn log(_: Level, _: core::fmt::Arguments<'_>) {}
    }
}
