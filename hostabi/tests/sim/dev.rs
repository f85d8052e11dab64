// SPDX-License-Identifier: GPL-2.0
//! Devices, VT-x, clock and log: the machine around the core.

use super::held;
use pvmm_hostabi::sim::{Machine, PortDevice, SimHost, Task};
use pvmm_hostabi::{
    ClaimError, HostCpu, HostDev, HostLog, HostMem, HostSync, HostTime, HostVmx, IrqSink, Level,
    Ns, Ports, SpinLock, TscKhz, VmxUnavailable,
};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

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
