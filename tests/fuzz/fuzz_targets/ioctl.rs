// SPDX-License-Identifier: GPL-2.0
//! The requests of `/dev/pvmm` with hostile structures, on the simulated host. None panics, none touches a port that no
//! ATTACH_DEVICE named, and when the file is closed nothing is left.
//!
//! The host's VT-x is always taken, so a RUN gets as far as the first window and reports that.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pvmm_core::arch::x86::vmx::capability::VmxCapability;
use pvmm_core::monitor::Monitor;
use pvmm_core::vm::Vm;
use pvmm_fuzz::input::Input;
use pvmm_fuzz::ports::Granted;
use pvmm_hostabi::sim::{Machine, SimAddressSpace, SimHost, Task};
use pvmm_hostabi::{HostMem, Hva, VmxUnavailable, PAGE_SIZE};
use pvmm_uapi::*;
use std::mem::{offset_of, size_of};

/// Most requests of one run.
const MOST_REQUESTS: usize = 32;
/// Longest delay and poll that a plan really makes: the simulated host waits in real time.
const MOST_DELAY_NS: u64 = 1_000;

const REQUESTS: [u32; 22] = [
    GET_API_VERSION,
    GET_CAPABILITIES,
    GET_SUPPORTED_CPUID,
    CREATE_VM,
    SET_MEMORY_REGION,
    CREATE_VCPU,
    SET_CPUID,
    RUN,
    GET_VCPU_STATE,
    SET_VCPU_STATE,
    GET_CLOCK,
    SET_CLOCK,
    GET_CHIPSET_STATE,
    SET_CHIPSET_STATE,
    IRQ_LINE,
    DIRTY_LOG,
    DIRTY_FETCH,
    ATTACH_DEVICE,
    DEVICE_CAPTURE,
    DEVICE_EXECUTE,
    DEVICE_PEEK,
    DEVICE_TRACE,
];

fuzz_target!(|data: &[u8]| {
    let machine = Machine::new(1);
    let _entered = machine.enter();
    machine.set_vmx(Some(VmxUnavailable::Busy));
    let ports = Granted::plug(&machine);
    let before = machine.live();
    {
        let monitor =
            SimHost::shared(Monitor::of(VmxCapability::WITHOUT_CPU, 7)).expect("there is memory");
        let vm = Vm::<SimHost>::new(monitor).expect("there is memory");
        let mut caller = Caller::new();
        let mut input = Input::new(data);
        if input.u8() & 1 == 0 {
            caller.prepare(&vm);
        }
        for _ in 0..MOST_REQUESTS {
            if input.is_empty() {
                break;
            }
            caller.request(&vm, &ports, &mut input);
        }
    }
    assert_eq!(machine.live(), before, "something was left");
});

/// The process that makes the requests.
struct Caller {
    space: SimAddressSpace,
    /// Where structures are.
    structure: u64,
    /// Where the arrays are that structures point at.
    array: u64,
    /// The end of the last page that is mapped.
    end: u64,
    /// A page that can't be written.
    read_only: u64,
    /// The guest's memory.
    guest: u64,
}

/// Pages of the guest that is prepared.
const GUEST_PAGES: u64 = 16;
const ARRAY_PAGES: u64 = 4;

impl Caller {
    fn new() -> Self {
        let space = SimAddressSpace::new();
        space.adopt();
        let structure = space.map(1).start.0;
        let array = space.map(ARRAY_PAGES);
        let read_only = space.map(1);
        space.protect(read_only.clone(), false);
        let guest = space.map(GUEST_PAGES).start.0;
        Self {
            space,
            structure,
            array: array.start.0,
            end: array.end.0,
            read_only: read_only.start.0,
            guest,
        }
    }

    fn store(&self, address: u64, bytes: &[u8]) {
        // What runs off the end is not there, as the caller wanted it.
        let _ = self.space.store(Hva(address), bytes);
    }

    fn ioctl(&self, vm: &Vm<SimHost>, request: u32, structure: &[u8]) {
        self.store(self.structure, structure);
        vm.ioctl(request, self.structure)
            .expect("the request is in order");
    }

    /// A VM with memory, a vCPU and its dirty log on.
    fn prepare(&self, vm: &Vm<SimHost>) {
        let create = CreateVm {
            flags: VM_APIC,
            tsc_khz: 0,
        };
        self.ioctl(vm, CREATE_VM, create.as_bytes());
        let region = MemoryRegion {
            gpa: 0,
            size: GUEST_PAGES * PAGE_SIZE,
            hva: self.guest,
            reserved: 0,
        };
        self.ioctl(vm, SET_MEMORY_REGION, region.as_bytes());
        self.ioctl(vm, CREATE_VCPU, CreateVcpu::default().as_bytes());
        let log = DirtyLog {
            enable: 1,
            reserved: 0,
        };
        self.ioctl(vm, DIRTY_LOG, log.as_bytes());
    }

    /// Makes the request that the input describes.
    fn request(&mut self, vm: &Vm<SimHost>, ports: &Granted, input: &mut Input<'_>) {
        let selector = input.u8();
        let how = input.u8();
        let request = match REQUESTS.get(usize::from(selector)) {
            Some(request) => *request,
            None => input.u32(),
        };
        let mut structure = vec![0; request_size(request).min(512)];
        let given = input.take(structure.len());
        structure[..given.len()].copy_from_slice(given);
        self.array(vm, request, how, input);
        if how & 0x40 == 0 {
            self.point(request, how, &mut structure);
        }
        if request == ATTACH_DEVICE {
            let mut attach = AttachDevice::default();
            attach.as_bytes_mut().copy_from_slice(&structure);
            for port in attach.host_ports {
                if let Ok(port) = u16::try_from(port) {
                    ports.grant(port);
                }
            }
        }
        self.store(self.structure, &structure);
        let argument = if how & 0x80 == 0 {
            self.structure
        } else {
            input.u64()
        };
        // A halted vCPU would wait in real time.
        Task::current().signal();
        let _ = vm.ioctl(request, argument);
        Task::current().clear_signal();
    }

    /// Puts the array of a structure into memory: a valid one with some words changed where a made-up one would get
    /// nowhere, else the input's bytes.
    fn array(&self, vm: &Vm<SimHost>, request: u32, how: u8, input: &mut Input<'_>) {
        if how & 0x20 == 0 {
            return;
        }
        let count = usize::from(input.u8());
        match request {
            SET_VCPU_STATE => self.store(self.array, VcpuState::default().as_bytes()),
            SET_CPUID => {
                let table = CpuidTable {
                    entries: self.array,
                    count: MAX_CPUID_ENTRIES,
                    ..CpuidTable::default()
                };
                self.ioctl(vm, GET_SUPPORTED_CPUID, table.as_bytes());
            }
            DEVICE_EXECUTE => {
                for index in 0..count {
                    let mut step = PlanStep::default();
                    let bytes = input.take(size_of::<PlanStep>());
                    step.as_bytes_mut()[..bytes.len()].copy_from_slice(bytes);
                    if step.limit_ns <= MAX_STEP_NS {
                        step.limit_ns %= MOST_DELAY_NS;
                    }
                    let at = self.array + (index * size_of::<PlanStep>()) as u64;
                    self.store(at, step.as_bytes());
                }
                return;
            }
            _ => {
                let bytes = input.take(count * 8);
                self.store(self.array, bytes);
                return;
            }
        }
        for _ in 0..count {
            let offset = u64::from(input.u16()) % (ARRAY_PAGES * PAGE_SIZE);
            self.store(self.array + offset, &input.u64().to_le_bytes());
        }
    }

    /// Puts an address that means something into a structure.
    fn point(&self, request: u32, how: u8, structure: &mut [u8]) {
        let array = match how & 3 {
            0 => self.array,
            1 => self.end - 48,
            2 => self.read_only,
            _ => 0,
        };
        let mut put = |offset: usize, value: u64| {
            structure[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
        };
        match request {
            GET_SUPPORTED_CPUID | SET_CPUID => put(offset_of!(CpuidTable, entries), array),
            GET_VCPU_STATE | SET_VCPU_STATE => {
                put(offset_of!(VcpuStateRequest, state), array);
                let size = (size_of::<VcpuState>() as u32).to_le_bytes();
                let at = offset_of!(VcpuStateRequest, size);
                structure[at..at + 4].copy_from_slice(&size);
            }
            DIRTY_FETCH => put(offset_of!(DirtyFetch, ranges), array),
            DEVICE_CAPTURE => put(offset_of!(DeviceCapture, records), array),
            DEVICE_EXECUTE => put(offset_of!(DeviceExecute, steps), array),
            DEVICE_PEEK => put(offset_of!(DevicePeek, records), array),
            DEVICE_TRACE => put(offset_of!(DeviceTrace, entries), array),
            SET_MEMORY_REGION => {
                put(offset_of!(MemoryRegion, hva), self.guest);
                // The dirty bitmap of a guest of any size would only make the runs slow.
                let at = offset_of!(MemoryRegion, gpa);
                for byte in [at + 4, at + 12] {
                    structure[byte] = 0;
                }
            }
            _ => {}
        }
    }
}
