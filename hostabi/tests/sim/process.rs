// SPDX-License-Identifier: GPL-2.0
//! Address spaces and invalidations.

use super::{held, LIMIT};
use proptest::prelude::*;
use pvmm_hostabi::sim::{fail_allocations_after, physical, spawn, SimAddressSpace, SimHost, Task};
use pvmm_hostabi::{GuestMem, HostMem, Hva, InvalidateSink, ResolveError, UserCopy, PAGE_SIZE};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::{channel, Sender};
use std::sync::Mutex;

/// A page's range.
fn page_at(hva: Hva) -> Range<Hva> {
    hva..Hva(hva.0 + PAGE_SIZE)
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
