// SPDX-License-Identifier: GPL-2.0
//! A whole virtual machine on the fake hypervisor: its vCPU's thread, its console, its end.

use pvmm_vmm::boot::{bzimage::made_up_image, BootSource};
use pvmm_vmm::fake::FakeHypervisor;
use pvmm_vmm::host_device::HostDevices;
use pvmm_vmm::vcpu::End;
use pvmm_vmm::vm::VCPU;
use pvmm_vmm::{IrqChip, Vm, VmConfig, VmmError};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

fn vm(devices: &[&str]) -> Result<Vm, VmmError> {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let kernel = directory.path().join("vmlinuz");
    std::fs::write(&kernel, made_up_image(b"code", 1 << 20)).expect("writable");
    let config = VmConfig {
        name: "test".into(),
        memory: 64 << 20,
        irqchip: IrqChip::Apic,
        devices: devices
            .iter()
            .map(|spec| spec.parse().expect("a valid option"))
            .collect(),
        tsc_khz: 0,
        cpuid: None,
    };
    let source = BootSource {
        kernel,
        initrd: None,
        cmdline: "console=ttyS0".into(),
    };
    Vm::boot(
        &FakeHypervisor::default(),
        &HostDevices::none(),
        config,
        &source,
    )
}

/// Follows the console until `text` appears after `position`; returns where it had read to.
fn wait_for(vm: &Vm, mut position: u64, text: &str) -> u64 {
    let limit = std::time::Instant::now() + LIMIT;
    let mut seen = String::new();
    while !seen.contains(text) {
        assert!(std::time::Instant::now() < limit, "no \"{text}\" in {seen}");
        let chunk = vm.console().read(position, Duration::from_secs(1));
        seen.push_str(&String::from_utf8_lossy(&chunk.bytes));
        position = chunk.next;
    }
    position
}

#[test]
fn a_guest_runs_only_between_resume_and_pause() {
    let vm = vm(&[]).expect("the fake has no objection");
    assert!(vm.is_paused());
    assert_eq!(vm.console().position(), 0, "a new guest has not run");
    vm.resume(None).expect("it can run");
    wait_for(&vm, 0, "beat 3\n");
    for _ in 0..20 {
        vm.pause().expect("it can be paused");
        let fd = vm.fd().expect("it has not ended");
        // The fake refuses this while the vCPU runs or an access is unfinished.
        let state = fd
            .vcpu_state(VCPU)
            .expect("it is stopped between instructions");
        let position = vm.console().position();
        assert_eq!(fd.vcpu_state(VCPU).expect("it is stopped"), state);
        assert_eq!(vm.console().position(), position);
        vm.resume(None).expect("it can run");
        wait_for(&vm, position, "beat");
    }
}

#[test]
fn time_stands_still_while_a_guest_is_paused() {
    let vm = vm(&[]).expect("the fake has no objection");
    vm.resume(None).expect("it can run");
    wait_for(&vm, 0, "beat");
    vm.pause().expect("it can be paused");
    let paused = vm.clock().expect("it has a clock");
    assert_eq!(vm.clock().expect("it has a clock"), paused);
    vm.resume(None).expect("it can run");
    wait_for(&vm, vm.console().position(), "beat");
    assert!(vm.clock().expect("it has a clock").vm_ns > paused.vm_ns);
}

#[test]
fn input_reaches_the_guest() {
    let vm = vm(&[]).expect("the fake has no objection");
    vm.resume(None).expect("it can run");
    wait_for(&vm, 0, "beat 1\n");
    assert_eq!(vm.com1().input(b"ABC"), 3);
    let mut seen = String::new();
    let mut position = 0;
    while seen.matches(['A', 'B', 'C']).collect::<String>() != "ABC" {
        let chunk = vm.console().read(position, LIMIT);
        assert!(!chunk.bytes.is_empty(), "no echo in {seen}");
        seen.push_str(&String::from_utf8_lossy(&chunk.bytes));
        position = chunk.next;
    }
}

#[test]
fn a_guest_ends_as_it_wants_and_the_reason_is_kept() {
    let mut cases = 0;
    for (key, end) in [
        (b'q', End::Shutdown),
        (b'r', End::Reset),
        (b'k', End::Reset),
        (b't', End::TripleFault),
        (b'h', End::Halted),
        (b'x', End::Error("unknown exit reason 0x4d".into())),
    ] {
        let vm = vm(&[]).expect("the fake has no objection");
        vm.resume(None).expect("it can run");
        vm.com1().input(&[key]);
        assert_eq!(vm.wait_end(LIMIT), Some(end.clone()));
        assert!(vm.pause().is_err(), "an ended guest cannot be paused");
        assert_eq!(vm.finish(End::Stopped), end);
        assert_eq!(vm.end(), Some(end));
        assert!(vm.fd().is_err(), "nothing is left of it");
        cases += 1;
    }
    assert_eq!(cases, 6);
}

#[test]
fn a_guest_that_is_stopped_gives_back_everything() {
    let vm = vm(&["serial,port=0x2f8,irq=3"]).expect("the fake has this port");
    assert_eq!(vm.devices().len(), 1);
    vm.resume(None).expect("it can run");
    wait_for(&vm, 0, "beat");
    assert_eq!(vm.finish(End::Stopped), End::Stopped);
    assert_eq!(vm.finish(End::Moved), End::Stopped, "it ends once");
    assert!(vm.console().read(0, LIMIT).end);
}

#[test]
fn a_device_that_the_host_has_not_is_an_error_that_names_it() {
    let error = vm(&["serial,port=0x3e8,irq=5"])
        .map(drop)
        .expect_err("no such port");
    assert!(error.to_string().contains("ATTACH_DEVICE"), "{error}");
}

#[test]
fn a_pause_right_after_a_resume_leaves_the_guest_stopped() {
    // The thread may see the wish to run before or after it first says that it is paused.
    for _ in 0..50 {
        let vm = vm(&[]).expect("the fake has no objection");
        for _ in 0..20 {
            vm.resume(None).expect("it can run");
            vm.pause().expect("it can be paused");
            let fd = vm.fd().expect("it has not ended");
            fd.vcpu_state(VCPU).expect("it is stopped");
        }
    }
}
