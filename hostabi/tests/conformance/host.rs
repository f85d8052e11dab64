// SPDX-License-Identifier: GPL-2.0
//! The simulated host with one defect: every function of the host ABI goes through a hook of [`Defect`].
// Declaring what a page of such a host does takes the words `unsafe fn`; nothing unsafe is done.
#![allow(unsafe_code)]

use super::defect::{Defect, Section};
use pvmm_hostabi::sim::{
    SimAddressSpace, SimBox, SimFpu, SimHost, SimIrq, SimIrqOff, SimMutex, SimMutexGuard, SimPage,
    SimPorts, SimShared, SimSpinGuard, SimSpinLock, SimVmxOperation, SimWaitQueue, SimWatch,
    SimWords,
};
use pvmm_hostabi::{
    ClaimError, CpuId, Fault, GuestMem, Host, HostCpu, HostDev, HostLog, HostMem, HostPage,
    HostSync, HostTime, HostVmx, Hpa, Hva, Interrupted, InvalidateSink, IrqSink, Level, Mutex, Ns,
    OutOfMemory, Ports, ResolveError, Resolved, SpinLock, TscKhz, UserCopy, VmxUnavailable,
    WaitQueue, Waited, WatchError,
};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Range};
use std::sync::atomic::AtomicU64;

type Oom<T> = Result<T, OutOfMemory>;

thread_local! {
    static SECTION: Section = Section::default();
}

/// The simulated host with the defect `D`.
pub struct HostWith<D>(PhantomData<D>);

impl<D: Defect> Host for HostWith<D> {}

/// A value whose drop goes through a hook. It is there until then.
macro_rules! wrapper {
    ($name:ident<$($lifetime:lifetime,)? D $(, $t:ident $(: $bound:path)?)?>, $inner:ty, $drop:ident) => {
        pub struct $name<$($lifetime,)? D: Defect $(, $t $(: $bound)?)?>(Option<$inner>, PhantomData<D>);

        impl<$($lifetime,)? D: Defect $(, $t $(: $bound)?)?> Drop for $name<$($lifetime,)? D $(, $t)?> {
            fn drop(&mut self) {
                if let Some(inner) = self.0.take() {
                    D::$drop(inner);
                }
            }
        }

        impl<$($lifetime,)? D: Defect $(, $t $(: $bound)?)?> $name<$($lifetime,)? D $(, $t)?> {
            fn new(inner: $inner) -> Self {
                Self(Some(inner), PhantomData)
            }
        }
    };
}

/// What a wrapper holds until its drop.
fn held<T>(inner: &Option<T>) -> &T {
    inner.as_ref().expect("only drop takes it")
}

wrapper!(Page<D>, SimPage, drop_page);
wrapper!(Words<D>, SimWords, drop_words);
wrapper!(Boxed<D, T>, SimBox<T>, drop_box);
wrapper!(Shared<D, T>, SimShared<T>, drop_shared);
wrapper!(Watch<D, S: InvalidateSink>, SimWatch<Sink<D, S>>, drop_watch);
wrapper!(LockedMutex<D, T>, SimMutex<T>, drop_mutex);
wrapper!(VmxOperation<'a, D>, SimVmxOperation<'a>, drop_vmx);

impl<D: Defect> HostPage for Page<D> {
    fn phys(&self) -> Hpa {
        D::phys(held(&self.0))
    }

    fn words(&self) -> &[AtomicU64; 512] {
        held(&self.0).words()
    }

    fn into_raw(mut self) -> Hpa {
        self.0.take().expect("only drop takes it").into_raw()
    }

    unsafe fn from_raw(phys: Hpa) -> Self {
        Self::new(SimPage::take_back(phys).expect("the caller promises it"))
    }

    unsafe fn words_at<'a>(phys: Hpa) -> &'a [AtomicU64; 512] {
        SimPage::given_up(phys).expect("the caller promises it")
    }
}

impl<D: Defect> Deref for Words<D> {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        self.0.as_ref().expect("only drop takes it")
    }
}

impl<D: Defect, T> Deref for Boxed<D, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("only drop takes it")
    }
}

impl<D: Defect, T> DerefMut for Boxed<D, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().expect("only drop takes it")
    }
}

impl<D: Defect, T> Clone for Shared<D, T> {
    fn clone(&self) -> Self {
        Self::new(held(&self.0).clone())
    }
}

impl<D: Defect, T> Deref for Shared<D, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("only drop takes it")
    }
}

impl<D: Defect, T> Shared<D, T> {
    fn into_inner(mut self) -> SimShared<T> {
        self.0.take().expect("only drop takes it")
    }
}

impl<D: Defect> HostMem for HostWith<D> {
    type Page = Page<D>;
    type Words = Words<D>;
    type Box<T: Send + 'static> = Boxed<D, T>;
    type Shared<T: Send + Sync + 'static> = Shared<D, T>;

    fn page() -> Oom<Page<D>> {
        D::page().map(Page::new)
    }

    fn words(count: usize) -> Oom<Words<D>> {
        D::words(count).map(Words::new)
    }

    fn boxed<T: Send + 'static>(value: T) -> Oom<Boxed<D, T>> {
        SimHost::boxed(value).map(Boxed::new)
    }

    unsafe fn boxed_zeroed<T: Send + 'static>() -> Oom<Boxed<D, T>> {
        // SAFETY: the caller's obligation is passed on.
        unsafe { SimHost::boxed_zeroed().map(Boxed::new) }
    }

    fn shared<T: Send + Sync + 'static>(value: T) -> Oom<Shared<D, T>> {
        SimHost::shared(value).map(Shared::new)
    }
}

/// Passes invalidations on, through the hooks.
pub struct Sink<D, S>(SimShared<S>, PhantomData<D>);

impl<D: Defect, S: InvalidateSink> InvalidateSink for Sink<D, S> {
    fn invalidate_start(&self, range: Range<Hva>) {
        self.0.invalidate_start(range);
    }

    fn invalidate_end(&self, range: Range<Hva>) {
        D::invalidate_end(&*self.0, range);
    }
}

impl<D: Defect> GuestMem for HostWith<D> {
    type AddressSpace = SimAddressSpace;
    type Watch<S: InvalidateSink> = Watch<D, S>;

    fn current_address_space() -> Oom<SimAddressSpace> {
        SimHost::current_address_space()
    }

    fn is_current(space: &SimAddressSpace) -> bool {
        D::is_current(space)
    }

    fn watch<S: InvalidateSink>(
        space: &SimAddressSpace,
        sink: Shared<D, S>,
    ) -> Result<Watch<D, S>, WatchError> {
        let sink = SimHost::shared(Sink(sink.into_inner(), PhantomData))?;
        SimHost::watch(&D::watched(space), sink).map(Watch::new)
    }

    fn resolve(space: &SimAddressSpace, hva: Hva, write: bool) -> Result<Resolved, ResolveError> {
        D::resolve(space, hva, write)
    }

    fn read(space: &SimAddressSpace, hva: Hva, buffer: &mut [u8]) -> Result<(), ResolveError> {
        D::read(space, hva, buffer)
    }

    fn write(space: &SimAddressSpace, hva: Hva, buffer: &[u8]) -> Result<(), ResolveError> {
        D::write(space, hva, buffer)
    }
}

impl<D: Defect> UserCopy for HostWith<D> {
    fn copy_in(address: u64, buffer: &mut [u8]) -> Result<(), Fault> {
        D::copy_in(address, buffer)
    }

    fn copy_out(address: u64, buffer: &[u8]) -> Result<(), Fault> {
        D::copy_out(address, buffer)
    }
}

pub struct IrqOff(SimIrqOff);

impl Drop for IrqOff {
    fn drop(&mut self) {
        SECTION.with(|section| {
            let depth = section.depth.get() - 1;
            section.depth.set(depth);
            section.inner_ended.set(depth > 0);
        });
    }
}

impl<D: Defect> HostCpu for HostWith<D> {
    type IrqOff = IrqOff;
    type Fpu<'a> = SimFpu<'a>;

    fn online() -> u32 {
        SimHost::online()
    }

    fn irq_off() -> IrqOff {
        SECTION.with(|section| {
            section.asked.set(0);
            if section.depth.get() == 0 {
                section.inner_ended.set(false);
                section.fpu_taken.set(false);
                section.lock_taken.set(false);
            }
            section.depth.set(section.depth.get() + 1);
            section.begun_on_all.set(section.begun_on_all.get() + 1);
        });
        IrqOff(SimHost::irq_off())
    }

    fn current(irq: &IrqOff) -> CpuId {
        let moved = SECTION.with(|section| {
            section.asked.set(section.asked.get() + 1);
            D::has_moved(section)
        });
        CpuId(SimHost::current(&irq.0).0 + u32::from(moved))
    }

    fn work_pending(irq: &IrqOff) -> bool {
        D::work_pending(&irq.0)
    }

    fn do_work() -> Result<(), Interrupted> {
        SimHost::do_work()
    }

    fn kick(cpu: CpuId) {
        D::kick(cpu);
    }

    fn run_on_all(f: &(dyn Fn() + Sync)) {
        D::run_on_all(&|| {
            SECTION.with(|section| {
                section.on_all.set(true);
                section.begun_on_all.set(0);
            });
            f();
            SECTION.with(|section| section.on_all.set(false));
        });
    }

    fn deliver_nmi(irq: &IrqOff) {
        SimHost::deliver_nmi(&irq.0);
    }

    fn fpu_enter(irq: &IrqOff) -> SimFpu<'_> {
        SECTION.with(|section| {
            section.asked.set(0);
            section.fpu_taken.set(true);
        });
        SimHost::fpu_enter(&irq.0)
    }
}

impl<D: Defect> HostVmx for HostWith<D> {
    type VmxOperation<'a> = VmxOperation<'a, D>;

    fn probe() -> Result<(), VmxUnavailable> {
        D::vmx()?;
        SimHost::probe()
    }

    fn enter_vmx(irq: &IrqOff) -> Result<VmxOperation<'_, D>, VmxUnavailable> {
        SECTION.with(|section| section.asked.set(0));
        D::vmx()?;
        SimHost::enter_vmx(&irq.0).map(VmxOperation::new)
    }
}

pub struct LockedSpin<T>(SimSpinLock<T>);

impl<T: Send> SpinLock<T> for LockedSpin<T> {
    type Guard<'a>
        = SimSpinGuard<'a, T>
    where
        Self: 'a;

    fn lock(&self) -> SimSpinGuard<'_, T> {
        SECTION.with(|section| section.lock_taken.set(true));
        self.0.lock()
    }
}

impl<D: Defect, T: Send> Mutex<T> for LockedMutex<D, T> {
    type Guard<'a>
        = SimMutexGuard<'a, T>
    where
        Self: 'a;

    fn lock(&self) -> SimMutexGuard<'_, T> {
        held(&self.0).lock()
    }

    fn try_lock(&self) -> Option<SimMutexGuard<'_, T>> {
        D::try_lock(held(&self.0))
    }
}

pub struct Queue<D>(SimWaitQueue, PhantomData<D>);

impl<D: Defect> WaitQueue for Queue<D> {
    fn wait(&self, timeout: Option<Ns>, ready: &mut dyn FnMut() -> bool) -> Waited {
        D::wait(&self.0, timeout, ready)
    }

    fn wake(&self) {
        D::wake(&self.0);
    }
}

impl<D: Defect> HostSync for HostWith<D> {
    type SpinLock<T: Send + 'static> = LockedSpin<T>;
    type Mutex<T: Send + 'static> = LockedMutex<D, T>;
    type WaitQueue = Queue<D>;

    fn spin_lock<T: Send + 'static>(value: T) -> Oom<LockedSpin<T>> {
        SimHost::spin_lock(value).map(LockedSpin)
    }

    fn mutex<T: Send + 'static>(value: T) -> Oom<LockedMutex<D, T>> {
        SimHost::mutex(value).map(LockedMutex::new)
    }

    fn wait_queue() -> Oom<Queue<D>> {
        SimHost::wait_queue().map(|queue| Queue(queue, PhantomData))
    }
}

impl<D: Defect> HostTime for HostWith<D> {
    fn tsc_khz() -> TscKhz {
        SECTION.with(D::tsc_khz)
    }

    fn tsc_is_stable() -> bool {
        D::tsc_is_stable()
    }

    fn delay(ns: Ns) {
        D::delay(ns);
    }
}

/// A claimed range; without a range of the simulated host behind it if it was granted wrongly.
pub struct PortRange<D: Defect> {
    base: u16,
    count: u16,
    inner: Option<SimPorts>,
    defect: PhantomData<D>,
}

impl<D: Defect> Drop for PortRange<D> {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.take() {
            D::drop_ports(inner);
        }
    }
}

impl<D: Defect> Ports for PortRange<D> {
    fn base(&self) -> u16 {
        self.base
    }

    fn count(&self) -> u16 {
        self.count
    }

    fn read(&self, offset: u16, bytes: u8) -> u32 {
        let ports = self.inner.as_ref();
        ports.map_or(0, |ports| D::port_read(ports, offset, bytes))
    }

    fn write(&self, offset: u16, bytes: u8, value: u32) {
        if let Some(ports) = &self.inner {
            ports.write(offset, bytes, value);
        }
    }
}

/// A claimed line; without a line of the simulated host behind it if it was granted wrongly.
pub struct Line<S: IrqSink> {
    _inner: Option<SimIrq<S>>,
}

impl<D: Defect> HostDev for HostWith<D> {
    type Ports = PortRange<D>;
    type Irq<S: IrqSink> = Line<S>;

    fn claim_ports(base: u16, count: u16) -> Result<PortRange<D>, ClaimError> {
        let inner = match SimHost::claim_ports(base, count) {
            Ok(ports) => Some(ports),
            Err(reason) if D::grants_ports(reason) => None,
            Err(reason) => return Err(reason),
        };
        Ok(PortRange {
            base,
            count,
            inner,
            defect: PhantomData,
        })
    }

    fn claim_irq<S: IrqSink>(irq: u32, sink: Shared<D, S>) -> Result<Line<S>, ClaimError> {
        let sink = sink.into_inner();
        let inner = match SimHost::claim_irq(irq, sink.clone()) {
            Ok(line) => Some(line),
            Err(reason) if D::grants_line(reason) => None,
            Err(reason) => {
                D::drop_refused_sink(sink);
                return Err(reason);
            }
        };
        Ok(Line { _inner: inner })
    }
}

impl<D: Defect> HostLog for HostWith<D> {
    fn log(level: Level, message: core::fmt::Arguments<'_>) {
        D::log(level, message);
    }
}
