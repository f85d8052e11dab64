// SPDX-License-Identifier: GPL-2.0
//! What a defect can change of the simulated host.

use pvmm_hostabi::sim::{
    SimAddressSpace, SimBox, SimHost, SimIrqOff, SimMutex, SimMutexGuard, SimPage, SimPorts,
    SimShared, SimVmxOperation, SimWaitQueue, SimWatch, SimWords,
};
use pvmm_hostabi::{
    ClaimError, CpuId, Fault, GuestMem, HostCpu, HostLog, HostMem, HostPage, HostTime, Hpa, Hva,
    InvalidateSink, IrqSink, Level, Mutex, Ns, OutOfMemory, Ports, ResolveError, Resolved, TscKhz,
    UserCopy, VmxUnavailable, WaitQueue, Waited,
};
use std::cell::Cell;
use std::ops::Range;

type Oom<T> = Result<T, OutOfMemory>;

/// What a thread has done since it last turned interrupts off, for defects of [`HostCpu`].
#[derive(Default)]
pub struct Section {
    /// Sections that are open.
    pub depth: Cell<u32>,
    /// Times that the CPU was asked for since a section or an operation began.
    pub asked: Cell<u32>,
    /// An inner section has ended.
    pub inner_ended: Cell<bool>,
    /// The FPU was taken.
    pub fpu_taken: Cell<bool>,
    /// A spin lock was taken.
    pub lock_taken: Cell<bool>,
    /// Inside of `run_on_all`.
    pub on_all: Cell<bool>,
    /// Sections that have begun inside of `run_on_all`.
    pub begun_on_all: Cell<u32>,
}

/// A defect: the hooks that it overrides, and the contracts that it thereby breaks.
pub trait Defect: Send + Sync + 'static {
    /// Names of the contracts that this defect breaks, in the suite's order.
    const BREAKS: &'static [&'static str];

    fn page() -> Oom<SimPage> {
        SimHost::page()
    }
    fn phys(page: &SimPage) -> Hpa {
        page.phys()
    }
    fn drop_page(page: SimPage) {
        drop(page);
    }
    fn words(count: usize) -> Oom<SimWords> {
        SimHost::words(count)
    }
    fn drop_words(words: SimWords) {
        drop(words);
    }
    fn drop_box<T>(value: SimBox<T>) {
        drop(value);
    }
    fn drop_shared<T>(value: SimShared<T>) {
        drop(value);
    }

    fn is_current(space: &SimAddressSpace) -> bool {
        SimHost::is_current(space)
    }
    /// The space that is watched instead of `space`.
    fn watched(space: &SimAddressSpace) -> SimAddressSpace {
        space.clone()
    }
    fn invalidate_end<S: InvalidateSink>(sink: &S, range: Range<Hva>) {
        sink.invalidate_end(range);
    }
    fn drop_watch<S: InvalidateSink>(watch: SimWatch<S>) {
        drop(watch);
    }
    fn resolve(space: &SimAddressSpace, hva: Hva, write: bool) -> Result<Resolved, ResolveError> {
        SimHost::resolve(space, hva, write)
    }
    fn read(space: &SimAddressSpace, hva: Hva, buffer: &mut [u8]) -> Result<(), ResolveError> {
        SimHost::read(space, hva, buffer)
    }
    fn write(space: &SimAddressSpace, hva: Hva, buffer: &[u8]) -> Result<(), ResolveError> {
        SimHost::write(space, hva, buffer)
    }
    fn copy_in(address: u64, buffer: &mut [u8]) -> Result<(), Fault> {
        SimHost::copy_in(address, buffer)
    }
    fn copy_out(address: u64, buffer: &[u8]) -> Result<(), Fault> {
        SimHost::copy_out(address, buffer)
    }

    /// Whether the thread is no longer on the CPU where it should be.
    fn has_moved(_section: &Section) -> bool {
        false
    }
    fn work_pending(irq: &SimIrqOff) -> bool {
        SimHost::work_pending(irq)
    }
    fn kick(cpu: CpuId) {
        SimHost::kick(cpu);
    }
    fn run_on_all(f: &(dyn Fn() + Sync)) {
        SimHost::run_on_all(f);
    }

    fn try_lock<T: Send>(mutex: &SimMutex<T>) -> Option<SimMutexGuard<'_, T>> {
        mutex.try_lock()
    }
    fn drop_mutex<T>(mutex: SimMutex<T>) {
        drop(mutex);
    }
    fn wait(queue: &SimWaitQueue, timeout: Option<Ns>, ready: &mut dyn FnMut() -> bool) -> Waited {
        queue.wait(timeout, ready)
    }
    fn wake(queue: &SimWaitQueue) {
        queue.wake();
    }

    fn tsc_khz(_section: &Section) -> TscKhz {
        SimHost::tsc_khz()
    }
    fn tsc_is_stable() -> bool {
        SimHost::tsc_is_stable()
    }
    fn delay(ns: Ns) {
        SimHost::delay(ns);
    }

    /// Whether a claim that was refused for this reason is granted all the same.
    fn grants_ports(_reason: ClaimError) -> bool {
        false
    }
    fn drop_ports(ports: SimPorts) {
        drop(ports);
    }
    fn port_read(ports: &SimPorts, offset: u16, bytes: u8) -> u32 {
        ports.read(offset, bytes)
    }
    /// Whether a claim that was refused for this reason is granted all the same.
    fn grants_line(_reason: ClaimError) -> bool {
        false
    }
    fn drop_refused_sink<S: IrqSink>(sink: SimShared<S>) {
        drop(sink);
    }

    fn vmx() -> Result<(), VmxUnavailable> {
        Ok(())
    }
    fn drop_vmx(operation: SimVmxOperation<'_>) {
        drop(operation);
    }

    fn log(level: Level, message: core::fmt::Arguments<'_>) {
        SimHost::log(level, message);
    }
}
