// SPDX-License-Identifier: GPL-2.0
//! Requests to a VM of the simulated host, whose VT-x is always taken: as far as they go without a window.

use super::*;
use crate::arch::x86::vmx::capability::VmxCapability;
use pvmm_hostabi::sim::{Machine, SimAddressSpace, SimHost, Task};
use pvmm_hostabi::{HostDev, HostMem, Hva, VmxUnavailable, PAGE_SIZE};
use pvmm_uapi::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::vec;
use std::vec::Vec;

/// Index of the task priority in `LocalApicState::registers`.
const TPR: usize = 8;
/// Index of the processor priority, which is the task's while no interrupt is in service.
const PPR: usize = 10;

/// A process with a VM that has memory and a vCPU.
struct Owner {
    space: SimAddressSpace,
    /// Two pages for the structures of requests.
    structure: u64,
    vm: Vm<SimHost>,
}

impl Owner {
    /// On the machine that was entered; `flags` are the VM's.
    fn new(flags: u32) -> Self {
        let owner = Self::without_vcpu(flags);
        owner
            .request(CREATE_VCPU, &CreateVcpu::default())
            .expect("memory is there");
        owner
    }

    /// The same, with nothing that would use the memory yet.
    fn without_vcpu(flags: u32) -> Self {
        let space = SimAddressSpace::new();
        space.adopt();
        let structure = space.map(4).start.0;
        let guest = space.map(16).start.0;
        let monitor =
            SimHost::shared(Monitor::of(VmxCapability::WITHOUT_CPU, 7)).expect("there is memory");
        let vm = Vm::new(monitor).expect("there is memory");
        let owner = Self {
            space,
            structure,
            vm,
        };
        let create = CreateVm { flags, tsc_khz: 0 };
        let region = MemoryRegion {
            gpa: 0,
            size: 16 * PAGE_SIZE,
            hva: guest,
            reserved: 0,
        };
        owner.request(CREATE_VM, &create).expect("none is there");
        owner
            .request(SET_MEMORY_REGION, &region)
            .expect("it is mapped");
        owner
    }

    fn store(&self, address: u64, value: &impl Pod) {
        self.space
            .store(Hva(address), value.as_bytes())
            .expect("it is mapped");
    }

    fn request(&self, request: u32, value: &impl Pod) -> Result<i64, Error> {
        self.store(self.structure, value);
        self.vm.ioctl(request, self.structure)
    }

    fn set_state(&self, state: &VcpuState) -> Result<i64, Error> {
        let at = self.structure + PAGE_SIZE;
        self.store(at, state);
        let request = VcpuStateRequest {
            state: at,
            vcpu: 0,
            size: size_of::<VcpuState>() as u32,
        };
        self.request(SET_VCPU_STATE, &request)
    }

    /// What the last request has left in its structure.
    fn answer<T: Pod + Default>(&self) -> T {
        let mut value = T::default();
        self.space
            .load(Hva(self.structure), value.as_bytes_mut())
            .expect("it is mapped");
        value
    }

    fn clock(&self) -> Clock {
        self.request(GET_CLOCK, &Clock::default())
            .expect("there is one");
        self.answer()
    }

    /// A state as the vCPU could have it, with this task priority.
    fn state(&self, priority: u32) -> VcpuState {
        let mut state = VcpuState {
            xcr0: 1,
            ..VcpuState::default()
        };
        state.apic = self
            .vm
            .with_vcpu(|vcpu, _| Ok(vcpu.platform.chipset_mut().save_local_apic(0)))
            .expect("nobody runs it");
        state.apic.registers[TPR] = priority;
        state.apic.registers[PPR] = priority;
        state
    }

    fn cr8(&self) -> u64 {
        self.vm
            .with_vcpu(|vcpu, _| Ok(vcpu.platform.chipset().cr8()))
            .expect("nobody runs it")
    }
}

fn on_a_machine_without_vtx(flags: u32, body: impl FnOnce(&Owner)) {
    let machine = Machine::new(1);
    let _entered = machine.enter();
    machine.set_vmx(Some(VmxUnavailable::Busy));
    body(&Owner::new(flags));
}

#[test]
fn a_vm_with_a_stopped_clock_does_not_run() {
    on_a_machine_without_vtx(VM_APIC, |owner| {
        let stopped = Clock {
            flags: CLOCK_STOPPED,
            ..owner.clock()
        };
        owner
            .request(SET_CLOCK, &stopped)
            .expect("the rate is the VM's");
        assert_eq!(owner.request(RUN, &Run::default()), Err(Error::NotReady));
        let going = Clock {
            flags: 0,
            ..stopped
        };
        owner
            .request(SET_CLOCK, &going)
            .expect("the rate is the VM's");
        // It gets as far as the first window, for which there is no VT-x.
        assert_eq!(owner.request(RUN, &Run::default()), Ok(0));
    });
}

#[test]
fn a_refused_state_changes_nothing() {
    on_a_machine_without_vtx(VM_APIC, |owner| {
        owner.set_state(&owner.state(0x50)).expect("it is in order");
        assert_eq!(owner.cr8(), 5);

        let mut unknown = owner.state(0x70);
        unknown.msr_count = 1;
        unknown.msrs[0].index = 0x1234_5678;
        let mut reserved = owner.state(0x70);
        // MXCSR's upper half.
        reserved.xsave[27] = 1;
        let mut too_many = owner.state(0x70);
        too_many.msr_count = u32::MAX;
        for refused in [unknown, reserved, too_many] {
            assert_eq!(owner.set_state(&refused), Err(Error::Invalid));
            assert_eq!(owner.cr8(), 5);
        }
        owner.set_state(&owner.state(0x70)).expect("it is in order");
        assert_eq!(owner.cr8(), 7);
    });
}

#[test]
fn a_vcpu_that_is_restored_halted_can_be_woken_if_it_takes_interrupts() {
    on_a_machine_without_vtx(0, |owner| {
        let mut halted = VcpuState {
            activity: ACTIVITY_HLT,
            rflags: 1 << 9 | 2,
            ..VcpuState::default()
        };
        owner.set_state(&halted).expect("it is in order");
        // So that it doesn't wait for what nobody sends.
        Task::current().signal();
        assert_eq!(owner.request(RUN, &Run::default()), Err(Error::Interrupted));

        halted.rflags = 2;
        owner.set_state(&halted).expect("it is in order");
        assert_eq!(owner.request(RUN, &Run::default()), Ok(0));
        assert_eq!(owner.answer::<Run>().exit, EXIT_HALTED_FOREVER);
    });
}

#[test]
fn a_device_that_is_not_recorded_has_no_state_to_capture() {
    on_a_machine_without_vtx(VM_APIC, |owner| {
        let _uart = crate::platform::attached_tests::plugged();
        let attach = AttachDevice {
            kind: KIND_UART16550,
            backend: BACKEND_PHYSICAL,
            guest_ports: [0x2f8, 0, 0, 0],
            host_ports: [0x2f8, 0, 0, 0],
            guest_irq: 3,
            host_irq: 3,
            flags: ATTACH_UNRECORDED,
            ..AttachDevice::default()
        };
        let unknown = AttachDevice {
            flags: ATTACH_UNRECORDED << 1,
            ..attach
        };
        assert_eq!(owner.request(ATTACH_DEVICE, &unknown), Err(Error::Invalid));
        for wrong in [
            // What the chipset has is a model.
            AttachDevice {
                kind: KIND_I8254,
                ..attach
            },
            AttachDevice { kind: 99, ..attach },
            // The kind has one range.
            AttachDevice {
                host_ports: [0x2f8, 0x3e8, 0, 0],
                ..attach
            },
            AttachDevice {
                guest_ports: [0x1_02f8, 0, 0, 0],
                ..attach
            },
            AttachDevice {
                guest_irq: NO_IRQ,
                ..attach
            },
            AttachDevice {
                host_irq: 2,
                ..attach
            },
        ] {
            assert_eq!(
                owner.request(ATTACH_DEVICE, &wrong),
                Err(Error::Invalid),
                "{wrong:?}"
            );
        }
        owner
            .request(ATTACH_DEVICE, &attach)
            .expect("the port is free");
        let capture = |device| DeviceCapture {
            device,
            records: owner.structure + PAGE_SIZE,
            count: 64,
            ..DeviceCapture::default()
        };
        let device = owner.answer::<AttachDevice>().device;
        assert_eq!(
            owner.request(DEVICE_CAPTURE, &capture(device)),
            Err(Error::NotSupported)
        );
        owner
            .request(DEVICE_CAPTURE, &capture(DEVICE_I8254))
            .expect("that one is recorded");
        assert_eq!(
            owner.request(DEVICE_CAPTURE, &capture(device + 1)),
            Err(Error::Invalid)
        );
    });
}

/// A UART of the host, given to the guest at its own ports; its number.
fn attached(owner: &Owner, flags: u32) -> u32 {
    let attach = AttachDevice {
        kind: KIND_UART16550,
        backend: BACKEND_PHYSICAL,
        guest_ports: [0x2f8, 0, 0, 0],
        host_ports: [0x2f8, 0, 0, 0],
        guest_irq: 3,
        host_irq: 3,
        flags,
        ..AttachDevice::default()
    };
    owner
        .request(ATTACH_DEVICE, &attach)
        .expect("the port is free");
    owner.answer::<AttachDevice>().device
}

/// The guest writes to ports.
fn guest_writes(owner: &Owner, accesses: &[(u16, u64)]) {
    use crate::iospace::{Direction, Width};
    owner
        .vm
        .with_vcpu(|vcpu, _| {
            for (port, value) in accesses {
                vcpu.platform
                    .port(*port, Width::W1, Direction::Write, *value, 0);
            }
            Ok(())
        })
        .expect("nobody runs it");
}

#[test]
fn a_device_can_be_looked_at_recorded_or_not() {
    on_a_machine_without_vtx(VM_APIC, |owner| {
        let _uart = crate::platform::attached_tests::plugged();
        let recorded = attached(owner, 0);
        let array = owner.structure + PAGE_SIZE;
        let peek = |device, count| DevicePeek {
            device,
            records: array,
            count,
            ..DevicePeek::default()
        };
        guest_writes(owner, &[(0x2fb, 0x13), (0x2fa, 0x07), (0x2ff, 0x55)]);
        let look = |device, count| {
            owner.request(DEVICE_PEEK, &peek(device, count))?;
            Ok::<_, Error>(owner.answer::<DevicePeek>())
        };
        let seen = look(recorded, MAX_STATE_RECORDS).expect("there is such a device");
        assert_eq!(
            (seen.kind, seen.backend, seen.flags),
            (KIND_UART16550, BACKEND_PHYSICAL, 0)
        );
        // What the reset wrote is in the log of the guest's recorder too; FCR and LCR were replaced.
        assert_eq!(seen.log_bound, 4);
        assert!((2..=4).contains(&seen.log_length), "{seen:?}");
        let mut records = vec![StateRecord::default(); seen.count as usize];
        for (index, record) in records.iter_mut().enumerate() {
            let at = array + (index * size_of::<StateRecord>()) as u64;
            owner
                .space
                .load(Hva(at), record.as_bytes_mut())
                .expect("it is mapped");
        }
        let value = |register, origin| {
            let mut found = records
                .iter()
                .filter(|record| (record.register, record.origin) == (register, origin));
            found.next().map(|record| record.value)
        };
        use crate::devices::uart16550::{FCR, LCR, RBR, SCR};
        assert_eq!(value(FCR, ORIGIN_LOG), Some(0x01));
        assert_eq!(value(LCR, ORIGIN_READ_BACK), Some(0x13));
        assert_eq!(value(SCR, ORIGIN_READ_BACK), Some(0x55));
        assert_eq!(value(RBR, ORIGIN_READ_BACK), None);

        let model = look(DEVICE_I8254, MAX_STATE_RECORDS).expect("every VM has one");
        assert_eq!(model.backend, BACKEND_MODELLED);
        assert_eq!(look(recorded, 1), Err(Error::NoSpace));
        assert_eq!(look(recorded + 1, 8), Err(Error::Invalid));
        let reserved = DevicePeek {
            reserved: 1,
            ..peek(recorded, 8)
        };
        assert_eq!(owner.request(DEVICE_PEEK, &reserved), Err(Error::Invalid));
        let nowhere = DevicePeek {
            records: 8,
            ..peek(recorded, MAX_STATE_RECORDS)
        };
        assert_eq!(owner.request(DEVICE_PEEK, &nowhere), Err(Error::Fault));
    });
    on_a_machine_without_vtx(VM_APIC, |owner| {
        let _uart = crate::platform::attached_tests::plugged();
        let peek = DevicePeek {
            device: attached(owner, ATTACH_UNRECORDED),
            records: owner.structure + PAGE_SIZE,
            count: MAX_STATE_RECORDS,
            ..DevicePeek::default()
        };
        owner.request(DEVICE_PEEK, &peek).expect("it can be read");
        let seen = owner.answer::<DevicePeek>();
        assert_eq!((seen.flags, seen.log_length), (PEEK_UNRECORDED, 0));
        assert!(seen.count > 0);
    });
}

#[test]
fn what_the_guest_does_to_a_device_can_be_watched() {
    on_a_machine_without_vtx(VM_APIC, |owner| {
        let _uart = crate::platform::attached_tests::plugged();
        let device = attached(owner, 0);
        let array = owner.structure + PAGE_SIZE;
        let trace = |device, operation| DeviceTrace {
            device,
            operation,
            entries: array,
            count: 2,
            ..DeviceTrace::default()
        };
        let fetch = |device| {
            owner.request(DEVICE_TRACE, &trace(device, TRACE_FETCH))?;
            let answer = owner.answer::<DeviceTrace>();
            let mut entries = [TraceEntry::default(); 2];
            owner
                .space
                .load(Hva(array), entries.as_bytes_mut())
                .expect("it is mapped");
            let values: Vec<(u16, u64)> = entries
                .iter()
                .take(answer.count as usize)
                .map(|entry| (entry.register, entry.value))
                .collect();
            Ok::<_, Error>(values)
        };
        let writes = [(0x2fb, 0x83), (0x2f8, 0x0c), (0x2fb, 0x03)];
        assert_eq!(fetch(device), Err(Error::Invalid));
        guest_writes(owner, &writes);
        owner
            .request(DEVICE_TRACE, &trace(device, TRACE_START))
            .expect("nobody watches");
        for device in [device, DEVICE_I8259] {
            let twice = owner.request(DEVICE_TRACE, &trace(device, TRACE_START));
            assert_eq!(twice, Err(Error::Exists));
        }
        guest_writes(owner, &writes);
        // Another device's.
        guest_writes(owner, &[(0x20, 0x11)]);
        use crate::devices::i8259::OCW2_EOI;
        use crate::devices::uart16550::{DLL, LCR};
        assert_eq!(fetch(device), Ok(vec![(LCR, 0x83), (DLL, 0x0c)]));
        assert_eq!(fetch(device), Ok(vec![(LCR, 0x03)]));
        assert_eq!(fetch(device), Ok(vec![]));
        assert_eq!(fetch(DEVICE_I8259), Err(Error::Invalid));
        let stop = |device| owner.request(DEVICE_TRACE, &trace(device, TRACE_STOP));
        assert_eq!(stop(DEVICE_I8259), Err(Error::Invalid));
        assert_eq!(stop(device), Ok(0));
        assert_eq!(stop(device), Err(Error::Invalid));

        owner
            .request(DEVICE_TRACE, &trace(DEVICE_I8259, TRACE_START))
            .expect("nobody watches any more");
        guest_writes(owner, &[(0x20, 0x20), (0x2ff, 0)]);
        assert_eq!(fetch(DEVICE_I8259), Ok(vec![(OCW2_EOI, 0x20)]));
        let wrong = [
            trace(DEVICE_I8259, 0),
            trace(DEVICE_I8259, 4),
            DeviceTrace {
                reserved: 1,
                ..trace(DEVICE_I8259, TRACE_FETCH)
            },
        ];
        for wrong in wrong {
            assert_eq!(owner.request(DEVICE_TRACE, &wrong), Err(Error::Invalid));
        }
        guest_writes(owner, &[(0x20, 0x20)]);
        let nowhere = DeviceTrace {
            entries: 8,
            ..trace(DEVICE_I8259, TRACE_FETCH)
        };
        assert_eq!(owner.request(DEVICE_TRACE, &nowhere), Err(Error::Fault));
    });
}

#[test]
fn a_device_without_an_interrupt_claims_none() {
    on_a_machine_without_vtx(VM_APIC, |owner| {
        let _uart = crate::platform::attached_tests::plugged();
        let line = || SimHost::claim_irq(3, SimHost::shared(Ignored).expect("memory"));
        let attach = AttachDevice {
            kind: KIND_UART16550,
            backend: BACKEND_PHYSICAL,
            guest_ports: [0x2f8, 0, 0, 0],
            host_ports: [0x2f8, 0, 0, 0],
            guest_irq: NO_IRQ,
            host_irq: NO_IRQ,
            ..AttachDevice::default()
        };
        owner
            .request(ATTACH_DEVICE, &attach)
            .expect("the port is free");
        assert!(line().is_ok(), "the line is free");
    });
}

/// Hears an interrupt and does nothing.
struct Ignored;

impl pvmm_hostabi::dev::IrqSink for Ignored {
    fn interrupt(&self) {}
}

#[test]
fn memory_may_be_registered_while_the_vcpu_is_made() {
    // As often as the two requests need to meet.
    for _ in 0..200 {
        let machine = Machine::new(1);
        let _entered = machine.enter();
        machine.set_vmx(Some(VmxUnavailable::Busy));
        let owner = Owner::without_vcpu(VM_APIC);
        let region = MemoryRegion {
            gpa: 1 << 30,
            size: PAGE_SIZE,
            hva: owner.structure,
            reserved: 0,
        };
        let vm = &owner.vm;
        let made = AtomicBool::new(false);
        let added = std::thread::scope(|scope| {
            let others = scope.spawn(|| {
                let _entered = machine.enter();
                let mut added = 0;
                while !made.load(Ordering::SeqCst) {
                    let region = MemoryRegion {
                        gpa: region.gpa + added * PAGE_SIZE,
                        ..region
                    };
                    added += u64::from(vm.set_memory_region(&region).is_ok());
                }
                added
            });
            vm.create_vcpu(&CreateVcpu::default())
                .expect("memory is there");
            made.store(true, Ordering::SeqCst);
            others.join().expect("it does not panic")
        });
        // What was accepted is there.
        let parts = vm.parts().expect("the vCPU was made");
        for page in 0..added {
            let gpa = pvmm_hostabi::Gpa(region.gpa + page * PAGE_SIZE);
            assert!(parts.memory.regions().hva(gpa).is_some(), "page {page}");
        }
    }
}
