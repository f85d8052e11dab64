// SPDX-License-Identifier: GPL-2.0
//! The defects. Each breaks one contract, some of them two that hang together.

use super::host::{Defect, Section};
use pvmm_hostabi::sim::{
    physical, SimAddressSpace, SimBox, SimHost, SimIrqOff, SimMutex, SimMutexGuard, SimPage,
    SimPorts, SimShared, SimVmxOperation, SimWaitQueue, SimWatch, SimWords,
};
use pvmm_hostabi::{
    ClaimError, CpuId, Fault, GuestMem, HostCpu, HostLog, HostMem, HostPage, HostTime, Hpa, Hva,
    InvalidateSink, IrqSink, Level, Ns, OutOfMemory, Pfn, Ports, ResolveError, Resolved, TscKhz,
    UserCopy, VmxUnavailable, WaitQueue, Waited,
};
use std::cell::{Cell, RefCell};
use std::mem::forget;
use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Mutex;

type Oom<T> = Result<T, OutOfMemory>;

/// The addresses that processes use.
const USER_HALF: Range<u64> = 4096..1 << 47;

macro_rules! defect {
    ($(#[$doc:meta])* $name:ident breaks [$($contract:literal),+] $body:tt) => {
        $(#[$doc])*
        pub struct $name;

        impl Defect for $name {
            const BREAKS: &'static [&'static str] = &[$($contract),+];
            defect!(@ $body);
        }
    };
    (@ { $($item:item)* }) => { $($item)* };
}

defect! {
    /// The allocator's flag that asks for zeros is ignored.
    PagesAreDirty breaks ["a page is zeroed"] {
        fn page() -> Oom<SimPage> {
            let page = SimHost::page()?;
            page.words()[500].store(1, Relaxed);
            Ok(page)
        }
    }
}

defect! {
    /// What could be read is taken for all.
    PartialReadSucceeds breaks ["a guest read is all or an error"] {
        fn read(space: &SimAddressSpace, hva: Hva, buffer: &mut [u8]) -> Result<(), ResolveError> {
            SimHost::read(space, hva, buffer)
                .or_else(|_| SimHost::read(space, hva, &mut buffer[..1]))
        }
    }
}

defect! {
    /// The failure is written to the log, and the caller goes on with frame 0.
    UnmappedIsOnlyLogged breaks ["an unmapped address is refused, not only logged"] {
        fn resolve(space: &SimAddressSpace, hva: Hva, write: bool) -> Result<Resolved, ResolveError> {
            match SimHost::resolve(space, hva, write) {
                Err(ResolveError::Unmapped) if USER_HALF.contains(&hva.0) => {
                    SimHost::log(Level::Error, format_args!("nothing is mapped at {hva:#x}"));
                    Ok(Resolved { pfn: Pfn(0), writable: write })
                }
                other => other,
            }
        }
    }
}

thread_local! {
    /// Pages of this thread that live.
    static PAGES: RefCell<Vec<Hpa>> = const { RefCell::new(Vec::new()) };
}

defect! {
    /// The free destroys another page than the one that was meant.
    WrongPageIsFreed breaks ["dropping a page leaves the others alone"] {
        fn page() -> Oom<SimPage> {
            let page = SimHost::page()?;
            PAGES.with_borrow_mut(|pages| pages.push(page.phys()));
            Ok(page)
        }

        fn drop_page(page: SimPage) {
            PAGES.with_borrow_mut(|pages| pages.retain(|other| *other != page.phys()));
            let victim = PAGES.with_borrow(|pages| pages.last().copied());
            if let Some(words) = victim.and_then(physical) {
                words[7].store(0xdead, Relaxed);
            }
        }
    }
}

defect! {
    /// The free is left out because it crashed.
    PagesLeak breaks ["what is dropped is freed"] {
        fn drop_page(page: SimPage) {
            forget(page);
        }
    }
}

defect! {
    WordsLeak breaks ["what is dropped is freed"] {
        fn drop_words(words: SimWords) {
            forget(words);
        }
    }
}

defect! {
    PagesAreMisaligned breaks ["a page has an aligned physical address that stays"] {
        fn phys(page: &SimPage) -> Hpa {
            Hpa(page.phys().0 + 8)
        }
    }
}

defect! {
    /// A page that is written moves.
    PagesMove breaks ["a page has an aligned physical address that stays"] {
        fn phys(page: &SimPage) -> Hpa {
            Hpa(page.phys().0 ^ (page.words()[0].load(Relaxed) >> 63 << 40))
        }
    }
}

defect! {
    PagesAlias breaks ["pages do not share memory"] {
        fn phys(_: &SimPage) -> Hpa {
            Hpa(0x1000)
        }
    }
}

defect! {
    WordsAreDirty breaks ["an array of words has its length and is zeroed"] {
        fn words(count: usize) -> Oom<SimWords> {
            let words = SimHost::words(count)?;
            // The suite's own arrays of counters are spared.
            if let ([.., last], ..8192) = (&*words, count) {
                last.store(1, Relaxed);
            }
            Ok(words)
        }
    }
}

defect! {
    /// Only whole pages are allocated.
    WordsAreTooMany breaks ["an array of words has its length and is zeroed"] {
        fn words(count: usize) -> Oom<SimWords> {
            SimHost::words(count.checked_next_multiple_of(512).ok_or(OutOfMemory)?)
        }
    }
}

defect! {
    /// Arrays are physically contiguous, and so cannot be large.
    WordsAreSmall breaks ["an array of words may be megabytes large"] {
        fn words(count: usize) -> Oom<SimWords> {
            if count > 65536 {
                return Err(OutOfMemory);
            }
            SimHost::words(count)
        }
    }
}

defect! {
    /// The size in bytes is computed without a check.
    WordsWrap breaks ["more words than an address space holds are refused"] {
        fn words(count: usize) -> Oom<SimWords> {
            SimHost::words(count.wrapping_mul(8) / 8)
        }
    }
}

defect! {
    BoxesLeak breaks ["a box holds its value and drops it once"] {
        fn drop_box<T>(value: SimBox<T>) {
            forget(value);
        }
    }
}

defect! {
    SharedLeak breaks ["a shared value is dropped once, by its last owner"] {
        fn drop_shared<T>(value: SimShared<T>) {
            forget(value);
        }
    }
}

defect! {
    NoSpaceIsCurrent breaks ["the caller runs in its own address space"] {
        fn is_current(_: &SimAddressSpace) -> bool {
            false
        }
    }
}

defect! {
    /// The kernel's own mappings are looked at too.
    KernelResolves breaks ["an address outside of user memory does not resolve"] {
        fn resolve(space: &SimAddressSpace, hva: Hva, write: bool) -> Result<Resolved, ResolveError> {
            if hva.0 >> 63 == 1 {
                return Ok(Resolved { pfn: Pfn(1), writable: write });
            }
            SimHost::resolve(space, hva, write)
        }
    }
}

defect! {
    /// Copy-on-write is not broken.
    ResolvedReadOnly breaks ["a page resolved for writing is writable and keeps its frame until told"] {
        fn resolve(space: &SimAddressSpace, hva: Hva, _: bool) -> Result<Resolved, ResolveError> {
            SimHost::resolve(space, hva, false)
        }
    }
}

defect! {
    WatchIsDeaf breaks ["a page resolved for writing is writable and keeps its frame until told"] {
        fn watched(_: &SimAddressSpace) -> SimAddressSpace {
            SimAddressSpace::new()
        }
    }
}

defect! {
    InvalidationNeverEnds breaks ["a page resolved for writing is writable and keeps its frame until told"] {
        fn invalidate_end<S: InvalidateSink>(_: &S, _: Range<Hva>) {}
    }
}

defect! {
    WatchOutlivesDrop breaks ["a dropped watch hears nothing"] {
        fn drop_watch<S: InvalidateSink>(watch: SimWatch<S>) {
            forget(watch);
        }
    }
}

defect! {
    GuestWritesAreLost breaks ["a guest read returns what a guest write stored"] {
        fn write(space: &SimAddressSpace, hva: Hva, buffer: &[u8]) -> Result<(), ResolveError> {
            SimHost::read(space, hva, &mut vec![0; buffer.len()])
        }
    }
}

defect! {
    PartialWriteSucceeds breaks ["a guest write beyond the mapping is an error"] {
        fn write(space: &SimAddressSpace, hva: Hva, buffer: &[u8]) -> Result<(), ResolveError> {
            SimHost::write(space, hva, buffer)
                .or_else(|_| SimHost::write(space, hva, &buffer[..1]))
        }
    }
}

defect! {
    /// The last byte is not copied.
    CopyOutIsShort breaks ["what was copied out is copied in"] {
        fn copy_out(address: u64, buffer: &[u8]) -> Result<(), Fault> {
            let last = address.saturating_add(buffer.len() as u64 - 1);
            let mut before = [0];
            SimHost::copy_in(last, &mut before)?;
            SimHost::copy_out(address, buffer)?;
            SimHost::copy_out(last, &before)
        }
    }
}

defect! {
    PartialCopyInSucceeds breaks ["a copy in is all or a fault"] {
        fn copy_in(address: u64, buffer: &mut [u8]) -> Result<(), Fault> {
            SimHost::copy_in(address, buffer)
                .or_else(|_| SimHost::copy_in(address, &mut buffer[..1]))
        }
    }
}

defect! {
    PartialCopyOutSucceeds breaks ["a copy out beyond the mapping faults"] {
        fn copy_out(address: u64, buffer: &[u8]) -> Result<(), Fault> {
            SimHost::copy_out(address, buffer)
                .or_else(|_| SimHost::copy_out(address, &buffer[..1]))
        }
    }
}

defect! {
    /// The check of the address is left out.
    KernelIsCopied breaks ["a copy with an address outside of user memory faults"] {
        fn copy_in(address: u64, buffer: &mut [u8]) -> Result<(), Fault> {
            if address >> 63 == 1 {
                return Ok(());
            }
            SimHost::copy_in(address, buffer)
        }
    }
}

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
    WaitsAreShort breaks ["a wait lasts at least its time"] {
        fn wait(queue: &SimWaitQueue, timeout: Option<Ns>, ready: &mut dyn FnMut() -> bool) -> Waited {
            queue.wait(timeout.map(|time| Ns(time.0 / 2)), ready)
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
