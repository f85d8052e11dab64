// SPDX-License-Identifier: GPL-2.0
//! The guest and its two hosts.

use crate::devices::{PIC, UART};
use pvmm_migrate::description::{
    Backend, CpuidLeaf, DeviceDescription, GrantedDevice, HostDescription, MemoryRange,
    UserDeviceDescription, VmDescription,
};
use pvmm_migrate::vm::{RunState, UserDeviceState, VmError, PAGE_SIZE};
use pvmm_uapi::{ChipsetState, Clock, VcpuState, API_VERSION, KIND_I8259, KIND_UART16550, VM_APIC};
use std::collections::BTreeMap;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};

/// Sees who runs the guest.
#[derive(Debug, Default)]
pub struct World {
    state: Mutex<Sides>,
    /// Guests at the target that were made and not discarded.
    pub made: AtomicUsize,
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Sides {
    pub source: bool,
    pub target: bool,
    /// Set for good as soon as both run.
    pub violated: bool,
    /// How often the target has started the guest.
    pub starts: usize,
}

impl World {
    pub fn set(&self, change: impl FnOnce(&mut Sides)) {
        let mut sides = self.state.lock().expect("no holder panics");
        change(&mut sides);
        sides.violated |= sides.source && sides.target;
    }

    pub fn sides(&self) -> Sides {
        self.state.lock().expect("no holder panics").clone()
    }
}

macro_rules! operations {
    ($($name:ident),* $(,)?) => {
        /// A call of the engine into the daemon, on either side.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Operation { $($name),* }
        impl Operation {
            pub const ALL: &'static [Self] = &[$(Self::$name),*];
        }
    };
}

operations! {
    Describe, StartDirtyLog, FetchDirty, StopDirtyLog, ReadPages, Pause, Resume, CaptureVcpu, CaptureChipset, CaptureClock,
    CaptureDevice, CaptureUserDevices, PutBack, Release,
    DescribeHost, Prepare, WritePages, ZeroPages, RestoreVcpu, RestoreChipset, RestoreClock, ExecutePlan,
    RestoreUserDevice, Verify, Start,
}

/// Fails one operation, the `skip + 1`st time that it is called.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    pub operation: Operation,
    pub skip: usize,
}

#[derive(Debug, Default)]
pub struct Faults {
    fault: Option<Fault>,
    calls: Mutex<BTreeMap<Operation, usize>>,
}

impl Faults {
    pub fn new(fault: Option<Fault>) -> Arc<Self> {
        Arc::new(Self {
            fault,
            calls: Mutex::default(),
        })
    }

    pub fn call(&self, operation: Operation) -> Result<(), VmError> {
        let mut calls = self.calls.lock().expect("no holder panics");
        let count = calls.entry(operation).or_default();
        *count += 1;
        match self.fault {
            Some(fault) if fault.operation == operation && *count == fault.skip + 1 => {
                Err(format!("injected failure of {operation:?}").into())
            }
            _ => Ok(()),
        }
    }

    pub fn count(&self, operation: Operation) -> usize {
        let calls = self.calls.lock().expect("no holder panics");
        calls.get(&operation).copied().unwrap_or(0)
    }
}

/// Guest memory by frame; a frame that is not there is zero.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory(pub BTreeMap<u64, Vec<u8>>);

impl Memory {
    pub fn write(&mut self, gfn: u64, data: &[u8]) {
        for (gfn, page) in (gfn..).zip(data.chunks_exact(PAGE_SIZE)) {
            if page.iter().all(|byte| *byte == 0) {
                self.0.remove(&gfn);
            } else {
                self.0.insert(gfn, page.to_vec());
            }
        }
    }
}

/// Low memory and a region above 4 GiB.
pub fn memory_ranges() -> Vec<MemoryRange> {
    vec![
        MemoryRange {
            gpa: 0,
            size: 700 * PAGE_SIZE as u64,
        },
        MemoryRange {
            gpa: 1 << 32,
            size: 40 * PAGE_SIZE as u64,
        },
    ]
}

pub fn frames() -> impl Iterator<Item = u64> {
    (0..700).chain((1 << 20)..(1 << 20) + 40)
}

pub fn cpuid() -> Vec<CpuidLeaf> {
    let leaf = |leaf, subleaf, eax, ebx, ecx, edx| CpuidLeaf {
        leaf,
        subleaf,
        flags: u32::from(matches!(leaf, 7 | 0xd)),
        eax,
        ebx,
        ecx,
        edx,
    };
    vec![
        leaf(0, 0, 0xd, 0x756e_6547, 0x6c65_746e, 0x4965_6e69),
        leaf(1, 0, 0x406e3, 0x0010_0800, 0x7ffa_fbbf, 0xbfeb_fbff),
        leaf(7, 0, 0, 0x029c_67af, 0, 0),
        leaf(0xd, 0, 7, 832, 832, 0),
        leaf(0xd, 1, 1, 0, 0, 0),
        leaf(0xd, 2, 256, 576, 0, 0),
        leaf(0x8000_0000, 0, 0x8000_0008, 0, 0, 0),
        leaf(0x8000_0001, 0, 0, 0, 0x21, 0x2c10_0800),
        leaf(0x8000_0007, 0, 0, 0, 0, 0x100),
        leaf(0x8000_0008, 0, 0x3027, 0, 0, 0),
    ]
}

pub fn description() -> VmDescription {
    VmDescription {
        name: "guest-1".into(),
        producer: "pvmmd test".into(),
        api_version: API_VERSION,
        flags: VM_APIC,
        vcpus: 1,
        tsc_khz: 2_000_000,
        xcr0: 7,
        cpuid: cpuid(),
        memory: memory_ranges(),
        devices: vec![
            DeviceDescription {
                device: PIC,
                kind: KIND_I8259,
                backend: Backend::Modelled,
                guest_port: 0,
                guest_irq: 0,
                version: version(KIND_I8259),
            },
            DeviceDescription {
                device: UART,
                kind: KIND_UART16550,
                backend: Backend::Physical,
                guest_port: 0x2f8,
                guest_irq: 3,
                version: version(KIND_UART16550),
            },
        ],
        user_devices: vec![
            UserDeviceDescription {
                name: "com1".into(),
                version: 1,
            },
            UserDeviceDescription {
                name: "rtc".into(),
                version: 4,
            },
        ],
        state: RunState::Running,
    }
}

fn version(kind: u32) -> u32 {
    pvmm_migrate::devices::state_version(kind).expect("the kind is known")
}

pub fn host_description() -> HostDescription {
    HostDescription {
        producer: "pvmmd test target".into(),
        api_version: API_VERSION,
        features: 0,
        vm_flags: VM_APIC,
        max_vcpus: 1,
        tsc_khz: 2_000_000,
        supported_xcr0: 7,
        cpuid: cpuid(),
        free_memory: 1 << 30,
        granted: vec![GrantedDevice {
            kind: KIND_UART16550,
            guest_port: 0x2f8,
            guest_irq: 3,
            in_use: false,
        }],
        user_devices: vec![
            UserDeviceDescription {
                name: "com1".into(),
                version: 1,
            },
            UserDeviceDescription {
                name: "rtc".into(),
                version: 4,
            },
        ],
        names: vec!["another".into()],
    }
}

/// The state of the guest beside memory and recorded devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    pub vcpu: VcpuState,
    pub chipset: ChipsetState,
    pub user_devices: Vec<UserDeviceState>,
}

pub fn machine() -> Machine {
    let vcpu = VcpuState {
        rip: 0x1234_5678,
        ..VcpuState::default()
    };
    let chipset = ChipsetState {
        isa_levels: 0x18,
        ..ChipsetState::default()
    };
    let user = |name: &str, version, data: &[u8]| UserDeviceState {
        name: name.into(),
        version,
        data: data.to_vec(),
    };
    Machine {
        vcpu,
        chipset,
        user_devices: vec![user("com1", 1, b"fifo"), user("rtc", 4, &[9; 128])],
    }
}

pub const START_CLOCK: Clock = Clock {
    vm_ns: 60_000_000_000,
    tsc: 120_000_000_000,
    tsc_khz: 2_000_000,
    flags: 0,
};
