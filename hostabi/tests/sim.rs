// SPDX-License-Identifier: GPL-2.0
//! What the conformance suite cannot see through the host ABI, shown for the simulated host: failures and events on request,
//! and that misuse is found.
#![forbid(unsafe_code)]

use proptest::prelude::*;
use pvmm_hostabi::sim::{
    each_allocation_fails, fail_allocations_after, physical, spawn, Machine, PortDevice,
    SimAddressSpace, SimHost, SimPage, Task,
};
use pvmm_hostabi::{
    ClaimError, CpuId, GuestMem, HostCpu, HostDev, HostLog, HostMem, HostPage, HostSync, HostTime,
    HostVmx, Hpa, Hva, Interrupted, InvalidateSink, IrqSink, Level, Mutex as _, Ns, OutOfMemory,
    Ports, ResolveError, SpinLock, TscKhz, UserCopy, VmxUnavailable, WaitQueue, Waited, PAGE_SIZE,
};
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::{channel, Sender};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// Longer than any step takes; a test that reaches it fails.
const LIMIT: Duration = Duration::from_secs(20);

/// A lock of the test's own.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder panics")
}

/// A page's range.
fn page_at(hva: Hva) -> Range<Hva> {
    hva..Hva(hva.0 + PAGE_SIZE)
}

#[test]
fn a_page_given_up_keeps_its_content_and_can_be_taken_back_once() {
    let page = SimHost::page().unwrap();
    let phys = page.phys();
    page.words()[9].store(99, SeqCst);
    assert_eq!(
        SimPage::given_up(phys).map(|_| ()),
        None,
        "it has its handle"
    );
    assert_eq!(page.into_raw(), phys);
    assert_eq!(Machine::current().live().pages, 1);
    assert_eq!(SimPage::given_up(phys).unwrap()[9].load(SeqCst), 99);
    let page = SimPage::take_back(phys).unwrap();
    assert_eq!(page.words()[9].load(SeqCst), 99);
    assert!(SimPage::take_back(phys).is_none());
    drop(page);
    assert_eq!(Machine::current().live().pages, 0);
}

#[test]
fn a_reference_to_a_freed_page_does_not_see_its_old_content() {
    let page = SimHost::page().unwrap();
    page.words()[0].store(1234, SeqCst);
    let stale = physical(page.phys()).unwrap();
    drop(page);
    assert_ne!(stale[0].load(SeqCst), 1234);
}

#[test]
fn no_frame_begins_inside_of_a_page() {
    let page = SimHost::page().unwrap();
    assert!(physical(page.phys()).is_some());
    assert!(physical(Hpa(page.phys().0 + 8)).is_none());
}

/// Several allocations, each of which may fail.
fn build(drops: &Arc<AtomicU32>) -> Result<u32, OutOfMemory> {
    struct Tell(Arc<AtomicU32>);
    impl Drop for Tell {
        fn drop(&mut self) {
            self.0.fetch_add(1, SeqCst);
        }
    }
    let _page = SimHost::page()?;
    let _words = SimHost::words(3)?;
    let _boxed = SimHost::boxed(Tell(drops.clone()))?;
    let _shared = SimHost::shared(Tell(drops.clone()))?;
    let _mutex = SimHost::mutex(Tell(drops.clone()))?;
    let _space = SimHost::current_address_space()?;
    Ok(7)
}

#[test]
fn each_allocation_can_be_made_to_fail_and_drops_its_value() {
    let drops = Arc::default();
    assert_eq!(each_allocation_fails(|| build(&drops)), 7);
    // Six failing runs drop 0, 0, 1 (refused), 2, 3, 3 values, the last one 3.
    assert_eq!(drops.load(SeqCst), 12);
    assert_eq!(Machine::current().live(), Default::default());
}

#[test]
#[should_panic(expected = "memory was left behind")]
fn memory_left_behind_by_a_failure_is_found() {
    each_allocation_fails(|| {
        std::mem::forget(SimHost::page()?);
        SimHost::page().map(drop)
    });
}

#[test]
fn allocations_of_other_threads_do_not_fail() {
    let _failures = fail_allocations_after(0);
    assert!(SimHost::page().is_err());
    assert!(spawn(|| SimHost::page().is_ok()).join().unwrap());
}

#[test]
#[should_panic(expected = "needs process context, but interrupts are off")]
fn allocating_with_interrupts_off_is_found() {
    let _irq = SimHost::irq_off();
    let _page = SimHost::page();
}

#[test]
#[should_panic(expected = "needs process context, but a spin lock is held")]
fn taking_a_mutex_under_a_spin_lock_is_found() {
    let spin = SimHost::spin_lock(()).unwrap();
    let mutex = SimHost::mutex(()).unwrap();
    let _spin = spin.lock();
    let _mutex = mutex.lock();
}

#[test]
#[should_panic(expected = "needs process context, but a wait queue asks its condition")]
fn a_condition_that_sleeps_is_found() {
    let queue = SimHost::wait_queue().unwrap();
    queue.wait(None, &mut || SimHost::copy_in(0, &mut [0]).is_err());
}

#[test]
#[should_panic(expected = "holds the lock already")]
fn taking_a_lock_twice_is_found() {
    let spin = SimHost::spin_lock(()).unwrap();
    let _first = spin.lock();
    let _second = spin.lock();
}

#[test]
#[should_panic(expected = "must nest")]
fn ending_the_outer_section_first_is_found() {
    let _machine = Machine::new(1).enter();
    let outer = SimHost::irq_off();
    let _inner = SimHost::irq_off();
    drop(outer);
}

#[test]
#[should_panic(expected = "the FPU is taken already")]
fn taking_the_fpu_twice_is_found() {
    let irq = SimHost::irq_off();
    let _first = SimHost::fpu_enter(&irq);
    let _second = SimHost::fpu_enter(&irq);
}

#[test]
#[should_panic(expected = "in another address space")]
fn resolving_for_another_process_is_found() {
    let other = SimAddressSpace::new();
    let range = other.map(1);
    let _ = SimHost::resolve(&other, range.start, false);
}

#[test]
fn a_space_is_current_only_in_its_own_process() {
    let space = SimHost::current_address_space().unwrap();
    assert!(SimHost::is_current(&space));
    let inherited = space.clone();
    assert!(spawn(move || SimHost::is_current(&inherited))
        .join()
        .unwrap());
    SimAddressSpace::new().adopt();
    assert!(!SimHost::is_current(&space));
}

/// Remembers what it was told.
#[derive(Default)]
struct Witness {
    told: Mutex<Vec<(bool, Range<Hva>)>>,
}

impl Witness {
    fn take(&self) -> Vec<(bool, Range<Hva>)> {
        std::mem::take(&mut held(&self.told))
    }
}

impl InvalidateSink for Witness {
    fn invalidate_start(&self, range: Range<Hva>) {
        held(&self.told).push((true, range));
    }

    fn invalidate_end(&self, range: Range<Hva>) {
        held(&self.told).push((false, range));
    }
}

#[test]
fn a_page_taken_back_comes_again_in_another_frame_with_its_bytes() {
    let space = SimHost::current_address_space().unwrap();
    let range = space.map(3);
    let witness = SimHost::shared(Witness::default()).unwrap();
    let watch = SimHost::watch(&space, witness.clone()).unwrap();
    let page = Hva(range.start.0 + PAGE_SIZE);
    space.store(Hva(page.0 - 2), b"abcd").unwrap();
    assert_eq!(witness.take(), []);

    let before = SimHost::resolve(&space, page, true).unwrap();
    assert!(before.writable);
    let stale = physical(before.pfn.hpa()).unwrap();
    assert_eq!(stale[0].load(SeqCst), u64::from(u16::from_le_bytes(*b"cd")));

    let open = space.invalidate(page_at(page));
    assert_eq!(witness.take(), [(true, page_at(page))]);
    assert!(physical(before.pfn.hpa()).is_none(), "its frame is free");
    assert_ne!(stale[0].load(SeqCst), u64::from(u16::from_le_bytes(*b"cd")));

    drop(open);
    assert_eq!(witness.take(), [(false, page_at(page))]);
    let after = SimHost::resolve(&space, page, false).unwrap();
    assert_ne!(after.pfn, before.pfn);
    let mut bytes = [0; 4];
    space.load(Hva(page.0 - 2), &mut bytes).unwrap();
    assert_eq!(&bytes, b"abcd");
    drop(watch);
}

#[test]
fn what_a_guest_writes_to_a_frame_is_what_the_process_reads() {
    let space = SimHost::current_address_space().unwrap();
    let range = space.map(1);
    let frame = SimHost::resolve(&space, range.start, true).unwrap().pfn;
    physical(frame.hpa()).unwrap()[2].store(u64::from_le_bytes(*b"guestram"), SeqCst);
    let mut bytes = [0; 4];
    SimHost::copy_in(range.start.0 + 18, &mut bytes).unwrap();
    assert_eq!(&bytes, b"estr");
}

#[test]
fn a_page_that_was_read_first_moves_when_it_is_written() {
    let space = SimHost::current_address_space().unwrap();
    let page = space.map(1).start;
    let witness = SimHost::shared(Witness::default()).unwrap();
    let _watch = SimHost::watch(&space, witness.clone()).unwrap();
    let zeros = SimHost::resolve(&space, page, false).unwrap();
    assert!(!zeros.writable);
    let own = SimHost::resolve(&space, page, true).unwrap();
    assert!(own.writable && own.pfn != zeros.pfn);
    assert_eq!(
        witness.take(),
        [(true, page_at(page)), (false, page_at(page))]
    );
}

#[test]
fn a_protected_page_can_be_read_but_not_resolved_for_writing() {
    let space = SimHost::current_address_space().unwrap();
    let range = space.map(1);
    space.store(range.start, b"x").unwrap();
    space.protect(range.clone(), false);
    let resolved = SimHost::resolve(&space, range.start, false).unwrap();
    assert!(!resolved.writable);
    assert_eq!(
        SimHost::resolve(&space, range.start, true),
        Err(ResolveError::Unmapped)
    );
    assert!(SimHost::copy_out(range.start.0, b"y").is_err());
}

#[test]
fn a_process_that_exits_loses_all_pages_and_says_so() {
    let space = SimHost::current_address_space().unwrap();
    let range = space.map(2);
    space.store(range.start, b"x").unwrap();
    let witness = SimHost::shared(Witness::default()).unwrap();
    let _watch = SimHost::watch(&space, witness.clone()).unwrap();
    space.exit();
    let told = witness.take();
    let [(true, gone)] = &told[..] else {
        panic!("one start and no end: {told:?}");
    };
    assert!(gone.start <= range.start && range.end <= gone.end);
    assert_eq!(
        SimHost::resolve(&space, range.start, false),
        Err(ResolveError::Unmapped)
    );
}

#[test]
fn a_signal_ends_a_resolve_only_if_the_page_is_absent() {
    let space = SimHost::current_address_space().unwrap();
    let range = space.map(1);
    Task::current().signal();
    assert_eq!(
        SimHost::resolve(&space, range.start, true),
        Err(ResolveError::Interrupted)
    );
    Task::current().clear_signal();
    SimHost::resolve(&space, range.start, true).unwrap();
    Task::current().signal();
    SimHost::resolve(&space, range.start, true).unwrap();
}

#[test]
fn a_resolve_fails_when_memory_is_short() {
    let space = SimHost::current_address_space().unwrap();
    let range = space.map(1);
    let _failures = fail_allocations_after(0);
    assert_eq!(
        SimHost::resolve(&space, range.start, true),
        Err(ResolveError::OutOfMemory)
    );
}

/// Allocates in the wrong place.
struct Allocating;

impl InvalidateSink for Allocating {
    fn invalidate_start(&self, _: Range<Hva>) {
        let _page = SimHost::page();
    }

    fn invalidate_end(&self, _: Range<Hva>) {}
}

#[test]
#[should_panic(expected = "an InvalidateSink must not do")]
fn a_sink_that_allocates_is_found() {
    let space = SimHost::current_address_space().unwrap();
    let range = space.map(1);
    let sink = SimHost::shared(Allocating).unwrap();
    let _watch = SimHost::watch(&space, sink).unwrap();
    space.take_back(range);
}

/// Blocks in its first call until told to go on.
struct Slow {
    entered: Mutex<Sender<()>>,
    go_on: AtomicBool,
    left: AtomicBool,
}

impl InvalidateSink for Slow {
    fn invalidate_start(&self, _: Range<Hva>) {
        held(&self.entered).send(()).expect("the test waits for it");
        while !self.go_on.load(SeqCst) {
            std::thread::yield_now();
        }
        self.left.store(true, SeqCst);
    }

    fn invalidate_end(&self, _: Range<Hva>) {}
}

#[test]
fn dropping_a_watch_waits_for_the_running_call() {
    let space = SimHost::current_address_space().unwrap();
    let range = space.map(1);
    let (entered, has_entered) = channel();
    let sink = SimHost::shared(Slow {
        entered: Mutex::new(entered),
        go_on: AtomicBool::new(false),
        left: AtomicBool::new(false),
    })
    .unwrap();
    let watch = SimHost::watch(&space, sink.clone()).unwrap();
    let taker = spawn({
        let space = space.clone();
        move || space.take_back(range)
    });
    has_entered.recv_timeout(LIMIT).unwrap();
    let dropper = spawn({
        let sink = sink.clone();
        move || {
            drop(watch);
            sink.left.load(SeqCst)
        }
    });
    sink.go_on.store(true, SeqCst);
    assert!(
        dropper.join().unwrap(),
        "the call ended before the drop did"
    );
    taker.join().unwrap();
}

#[test]
fn threads_change_their_cpu_between_sections() {
    let _machine = Machine::new(4).enter();
    let cpus: BTreeSet<u32> = (0..4)
        .map(|_| SimHost::current(&SimHost::irq_off()).0)
        .collect();
    assert_eq!(cpus, (0..4).collect());
    Task::stay_on(Some(2));
    assert!((0..4).all(|_| SimHost::current(&SimHost::irq_off()) == CpuId(2)));
}

#[test]
fn run_on_all_interrupts_a_window_and_waits_for_its_end() {
    let machine = Machine::new(2);
    let _machine = machine.enter();
    let (opened, is_open) = channel();
    let closed = Arc::new(AtomicBool::new(false));
    let window = spawn({
        let closed = closed.clone();
        move || {
            let irq = SimHost::irq_off();
            opened.send(()).unwrap();
            assert!(Machine::run_until_interrupt(&irq, LIMIT));
            closed.store(true, SeqCst);
            drop(irq);
        }
    });
    is_open.recv_timeout(LIMIT).unwrap();
    SimHost::run_on_all(&|| {});
    assert!(closed.load(SeqCst), "the window has ended");
    window.join().unwrap();
}

#[test]
fn a_kick_ends_the_run_of_a_guest_and_is_nothing_to_an_idle_cpu() {
    let machine = Machine::new(2);
    let _machine = machine.enter();
    Task::stay_on(Some(1));
    SimHost::kick(CpuId(1));
    {
        let irq = SimHost::irq_off();
        assert!(!Machine::interrupt_pending(&irq), "it was taken before");
        SimHost::kick(CpuId(1));
        assert!(Machine::run_until_interrupt(&irq, LIMIT));
    }
    let irq = SimHost::irq_off();
    assert!(!Machine::interrupt_pending(&irq));
    assert_eq!(machine.kicks(), [0, 2]);
}

#[test]
fn a_thread_that_waits_for_the_cpu_is_pending_work() {
    let machine = Machine::new(1);
    let _machine = machine.enter();
    let irq = SimHost::irq_off();
    assert!(!SimHost::work_pending(&irq));
    let other = spawn(|| drop(SimHost::irq_off()));
    assert!(Machine::run_until_interrupt(&irq, LIMIT));
    assert!(SimHost::work_pending(&irq));
    drop(irq);
    assert_eq!(SimHost::do_work(), Ok(()));
    other.join().unwrap();
}

#[test]
fn a_signal_is_work_until_it_is_handled_and_scheduling_is_done_at_once() {
    Task::current().reschedule();
    assert!(SimHost::work_pending(&SimHost::irq_off()));
    assert_eq!(SimHost::do_work(), Ok(()));
    assert!(!SimHost::work_pending(&SimHost::irq_off()));
    Task::current().signal();
    assert_eq!(SimHost::do_work(), Err(Interrupted));
    assert!(SimHost::work_pending(&SimHost::irq_off()));
    Task::current().clear_signal();
    assert!(!SimHost::work_pending(&SimHost::irq_off()));
}

#[test]
fn a_wake_from_another_thread_ends_a_wait_without_limit() {
    let shared = Arc::new((SimHost::wait_queue().unwrap(), AtomicBool::new(false)));
    let waiter = spawn({
        let shared = shared.clone();
        move || shared.0.wait(None, &mut || shared.1.load(SeqCst))
    });
    shared.1.store(true, SeqCst);
    shared.0.wake();
    assert_eq!(waiter.join().unwrap(), Waited::Ready);
}

#[test]
fn a_signal_ends_a_wait() {
    let (asked, was_asked) = channel();
    let (task, its_task) = channel();
    let waiter = spawn(move || {
        task.send(Task::current()).unwrap();
        let queue = SimHost::wait_queue().unwrap();
        queue.wait(None, &mut || {
            asked.send(()).unwrap();
            false
        })
    });
    was_asked.recv_timeout(LIMIT).unwrap();
    its_task.recv_timeout(LIMIT).unwrap().signal();
    assert_eq!(waiter.join().unwrap(), Waited::Interrupted);
}

/// Answers reads with the access itself and remembers writes.
#[derive(Default)]
struct Echo(Mutex<Vec<(u16, u8, u32)>>);

impl PortDevice for Echo {
    fn read(&self, port: u16, bytes: u8) -> u32 {
        u32::from(bytes) << 28 | u32::from(port)
    }

    fn write(&self, port: u16, bytes: u8, value: u32) {
        held(&self.0).push((port, bytes, value));
    }
}

#[test]
fn accesses_inside_a_claimed_range_reach_the_device_and_others_nobody() {
    let machine = Machine::current();
    let echo = Arc::new(Echo::default());
    machine.plug(0x378, 6, echo.clone());
    let ports = SimHost::claim_ports(0x378, 4).unwrap();
    assert_eq!(ports.read(0, 4), 4 << 28 | 0x378);
    assert_eq!(ports.read(2, 1), 0x7a);
    assert_eq!(
        ports.read(2, 4),
        u32::MAX,
        "the device is there, the claim is not"
    );
    ports.write(3, 1, 0x1ff);
    ports.write(3, 2, 1);
    ports.write(0, 3, 1);
    assert_eq!(*held(&echo.0), [(0x37b, 1, 0xff)]);
    let beyond = SimHost::claim_ports(0x37c, 4).unwrap();
    assert_eq!(beyond.read(0, 4), u32::MAX, "half of it has no device");
    assert_eq!(
        SimHost::claim_ports(0x37b, 2).map(drop),
        Err(ClaimError::Busy)
    );
}

/// Counts interrupts, and checks that it runs as a handler runs.
#[derive(Default)]
struct Counter(AtomicU64);

impl IrqSink for Counter {
    fn interrupt(&self) {
        self.0.fetch_add(1, SeqCst);
    }
}

#[test]
fn a_raised_line_tells_its_sink_until_the_claim_is_dropped() {
    let machine = Machine::current();
    let counter = SimHost::shared(Counter::default()).unwrap();
    let line = SimHost::claim_irq(5, counter.clone()).unwrap();
    assert!(machine.raise(5));
    assert!(!machine.raise(7));
    drop(line);
    assert!(!machine.raise(5));
    assert_eq!(counter.0.load(SeqCst), 1);
}

/// Takes a lock in a handler.
struct Locking(<SimHost as HostSync>::SpinLock<u32>);

impl IrqSink for Locking {
    fn interrupt(&self) {
        *self.0.lock() += 1;
    }
}

#[test]
fn a_handler_may_take_a_lock_that_is_never_held_with_interrupts_on() {
    let machine = Machine::current();
    let sink = SimHost::shared(Locking(SimHost::spin_lock(0).unwrap())).unwrap();
    let _line = SimHost::claim_irq(5, sink.clone()).unwrap();
    machine.raise(5);
    let irq = SimHost::irq_off();
    assert_eq!(*sink.0.lock(), 1);
    drop(irq);
}

#[test]
#[should_panic(expected = "was held with interrupts on")]
fn a_lock_that_a_handler_takes_and_that_is_held_with_interrupts_on_is_found() {
    let machine = Machine::current();
    let sink = SimHost::shared(Locking(SimHost::spin_lock(0).unwrap())).unwrap();
    let _line = SimHost::claim_irq(5, sink.clone()).unwrap();
    drop(sink.0.lock());
    machine.raise(5);
}

#[test]
fn vt_x_can_be_taken_away_on_one_cpu() {
    let machine = Machine::new(2);
    let _machine = machine.enter();
    assert_eq!(SimHost::probe(), Ok(()));
    for reason in [
        VmxUnavailable::Absent,
        VmxUnavailable::DisabledByFirmware,
        VmxUnavailable::Busy,
        VmxUnavailable::Failed,
    ] {
        machine.set_vmx_of(1, Some(reason));
        assert_eq!(SimHost::probe(), Err(reason));
        Task::stay_on(Some(1));
        let irq = SimHost::irq_off();
        assert_eq!(SimHost::enter_vmx(&irq).map(drop), Err(reason));
        drop(irq);
        Task::stay_on(Some(0));
        assert_eq!(SimHost::enter_vmx(&SimHost::irq_off()).map(drop), Ok(()));
    }
}

#[test]
fn a_cpu_in_vmx_operation_is_busy() {
    let irq = SimHost::irq_off();
    let operation = SimHost::enter_vmx(&irq).unwrap();
    assert_eq!(
        SimHost::enter_vmx(&irq).map(drop),
        Err(VmxUnavailable::Busy)
    );
    drop(operation);
    assert_eq!(SimHost::enter_vmx(&irq).map(drop), Ok(()));
}

#[test]
fn machines_are_apart() {
    let (first, second) = (Machine::new(1), Machine::new(3));
    let page = {
        let _first = first.enter();
        SimHost::log(Level::Info, format_args!("on the {}", "first"));
        SimHost::page().unwrap()
    };
    let _second = second.enter();
    assert_eq!(SimHost::online(), 3);
    assert_eq!((first.live().pages, second.live().pages), (1, 0));
    drop(page);
    assert_eq!(first.live().pages, 0);
    assert_eq!(second.take_log(), []);
    assert_eq!(
        first.take_log(),
        [(Level::Info, String::from("on the first"))]
    );
}

#[test]
fn the_tsc_follows_its_rate() {
    let machine = Machine::new(1);
    let _machine = machine.enter();
    machine.set_tsc_khz(TscKhz(3_000_000));
    let start = SimHost::rdtsc();
    SimHost::delay(Ns(2_000_000));
    assert!(SimHost::rdtsc() - start >= 6_000_000);
}

#[test]
fn nmis_are_counted_on_the_cpu_that_delivers_them() {
    let machine = Machine::new(2);
    let _machine = machine.enter();
    Task::stay_on(Some(1));
    SimHost::deliver_nmi(&SimHost::irq_off());
    assert_eq!(machine.nmis(), [0, 1]);
}

/// A step of a process's life.
#[derive(Debug, Clone)]
enum Step {
    Store { at: u64, byte: u8, length: usize },
    Resolve { page: u64, write: bool },
    GuestStore { page: u64, word: usize, value: u64 },
    TakeBack { page: u64 },
}

const PAGES: u64 = 3;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step =
        prop_oneof![
            (0..PAGES * PAGE_SIZE - 40, any::<u8>(), 1..40usize)
                .prop_map(|(at, byte, length)| Step::Store { at, byte, length }),
            (0..PAGES, any::<bool>()).prop_map(|(page, write)| Step::Resolve { page, write }),
            (0..PAGES, 0..512usize, any::<u64>())
                .prop_map(|(page, word, value)| Step::GuestStore { page, word, value }),
            (0..PAGES).prop_map(|page| Step::TakeBack { page }),
        ];
    prop::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Against a plain array of bytes, and with each frame remembered until its invalidation.
    #[test]
    fn memory_holds_what_was_stored_however_its_pages_move(steps in steps()) {
        let space = SimAddressSpace::new();
        space.adopt();
        let base = space.map(PAGES).start.0;
        let witness = SimHost::shared(Witness::default()).unwrap();
        let _watch = SimHost::watch(&space, witness.clone()).unwrap();
        let mut model = vec![0u8; (PAGES * PAGE_SIZE) as usize];
        let mut frames = [None; PAGES as usize];
        for step in steps {
            match step {
                Step::Store { at, byte, length } => {
                    let text = vec![byte; length];
                    space.store(Hva(base + at), &text).unwrap();
                    model[at as usize..at as usize + length].copy_from_slice(&text);
                }
                Step::Resolve { page, write } => {
                    let hva = Hva(base + page * PAGE_SIZE);
                    let resolved = SimHost::resolve(&space, hva, write).unwrap();
                    for (_, told) in witness.take() {
                        frames[((told.start.0 - base) / PAGE_SIZE) as usize] = None;
                    }
                    let known = frames[page as usize].replace(resolved.pfn);
                    prop_assert!(known.is_none_or(|known| known == resolved.pfn));
                }
                Step::GuestStore { page, word, value } => {
                    let hva = Hva(base + page * PAGE_SIZE);
                    let resolved = SimHost::resolve(&space, hva, true).unwrap();
                    physical(resolved.pfn.hpa()).unwrap()[word].store(value, SeqCst);
                    let at = (page * PAGE_SIZE) as usize + 8 * word;
                    model[at..at + 8].copy_from_slice(&value.to_le_bytes());
                }
                Step::TakeBack { page } => {
                    space.take_back(page_at(Hva(base + page * PAGE_SIZE)));
                }
            }
            let mut bytes = vec![0; model.len()];
            SimHost::read(&space, Hva(base), &mut bytes).unwrap();
            prop_assert!(bytes == model);
        }
    }
}
