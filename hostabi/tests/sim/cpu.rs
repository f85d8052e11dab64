// SPDX-License-Identifier: GPL-2.0
//! CPUs, contexts, locks and waiting.

use super::LIMIT;
use pvmm_hostabi::sim::{spawn, Machine, SimHost, Task};
use pvmm_hostabi::{
    CpuId, HostCpu, HostMem, HostSync, Interrupted, Mutex, SpinLock, UserCopy, WaitQueue, Waited,
};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::channel;
use std::sync::Arc;

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
