// SPDX-License-Identifier: GPL-2.0
//! Pages and allocations.

use pvmm_hostabi::sim::{
    each_allocation_fails, fail_allocations_after, physical, spawn, Machine, SimHost, SimPage,
};
use pvmm_hostabi::{GuestMem, HostMem, HostPage, HostSync, Hpa, OutOfMemory};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::Arc;

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
