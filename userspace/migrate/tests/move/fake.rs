// SPDX-License-Identifier: GPL-2.0
//! The guest and its two hosts.

use crate::devices::{fresh, programmed, Device, PIC, UART};
use pvmm_migrate::description::{
    Backend, CpuidLeaf, DeviceDescription, GrantedDevice, HostDescription, MemoryRange,
    UserDeviceDescription, VmDescription,
};
use pvmm_migrate::refusal::Refusal;
use pvmm_migrate::vm::{
    CapturedDevice, Executed, RunState, SourceVm, TargetHost, TargetVm, UserDeviceState, VmError,
    PAGE_SIZE,
};
use pvmm_migrate::Job;
use pvmm_uapi::{
    ChipsetState, Clock, DirtyRange, PlanStep, VcpuState, API_VERSION, KIND_I8259, KIND_UART16550,
    VM_APIC,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
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
    fn set(&self, change: impl FnOnce(&mut Sides)) {
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

    fn call(&self, operation: Operation) -> Result<(), VmError> {
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
    fn write(&mut self, gfn: u64, data: &[u8]) {
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
    reserved: 0,
};

/// The guest at the source.
pub struct FakeSource {
    pub world: Arc<World>,
    pub faults: Arc<Faults>,
    pub description: VmDescription,
    pub memory: Memory,
    pub machine: Machine,
    pub clock: Clock,
    /// Pages that the guest writes for each 256 pages that the engine reads, and at each fetch.
    pub writes_per_step: usize,
    /// Halves the writes at each fetch.
    pub calms_down: bool,
    read: usize,
    pub dirty: Option<BTreeSet<u64>>,
    pub released: bool,
    pub devices: BTreeMap<u32, Device>,
    /// Captured states name a register that does not exist.
    pub spoil_records: bool,
    /// The clock with which it was resumed.
    pub resumed: Option<Option<Clock>>,
    /// Read at every step, to see the progress grow.
    pub job: Option<Arc<Job>>,
    pub progress: Vec<u8>,
    pub random: u64,
}

impl FakeSource {
    pub fn new(world: &Arc<World>, faults: &Arc<Faults>) -> Self {
        world.set(|sides| sides.source = true);
        let mut source = Self {
            world: world.clone(),
            faults: faults.clone(),
            description: description(),
            memory: Memory::default(),
            machine: machine(),
            clock: START_CLOCK,
            writes_per_step: 5,
            calms_down: false,
            read: 0,
            dirty: None,
            released: false,
            devices: programmed(),
            spoil_records: false,
            resumed: None,
            job: None,
            progress: Vec::new(),
            random: 0x9e37_79b9_7f4a_7c15,
        };
        for gfn in frames().filter(|gfn| gfn % 3 != 0) {
            source.memory.write(gfn, &page(gfn));
        }
        source
    }

    /// As its operator left it: not running.
    pub fn paused(mut self) -> Self {
        self.description.state = RunState::Paused;
        self.world.set(|sides| sides.source = false);
        self
    }

    pub fn runs(&self) -> bool {
        self.world.sides().source
    }

    fn next_random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    /// The guest does some work: writes pages, some of them back to zero.
    fn step(&mut self) {
        if !self.runs() {
            return;
        }
        let all: Vec<u64> = frames().collect();
        for _ in 0..self.writes_per_step {
            let random = self.next_random();
            let gfn = all[random as usize % all.len()];
            let page = if random & (1 << 40) != 0 {
                vec![0; PAGE_SIZE]
            } else {
                page(random)
            };
            self.memory.write(gfn, &page);
            if let Some(dirty) = &mut self.dirty {
                dirty.insert(gfn);
            }
        }
    }
}

/// A page with contents of its own.
pub fn page(seed: u64) -> Vec<u8> {
    let mut page = vec![0xa5; PAGE_SIZE];
    page[..8].copy_from_slice(&seed.to_le_bytes());
    page
}

impl SourceVm for FakeSource {
    fn describe(&mut self) -> Result<VmDescription, VmError> {
        self.faults.call(Operation::Describe)?;
        Ok(self.description.clone())
    }

    fn start_dirty_log(&mut self) -> Result<(), VmError> {
        self.faults.call(Operation::StartDirtyLog)?;
        self.dirty = Some(BTreeSet::new());
        Ok(())
    }

    fn fetch_dirty(&mut self) -> Result<Vec<DirtyRange>, VmError> {
        self.faults.call(Operation::FetchDirty)?;
        let dirty = self.dirty.as_mut().ok_or("the log is off")?;
        let dirty = std::mem::take(dirty);
        if self.calms_down {
            self.writes_per_step /= 2;
        }
        self.step();
        Ok(dirty
            .into_iter()
            .map(|gfn| DirtyRange { gfn, pages: 1 })
            .collect())
    }

    fn stop_dirty_log(&mut self) -> Result<(), VmError> {
        self.dirty = None;
        self.faults.call(Operation::StopDirtyLog)
    }

    fn read_pages(&mut self, gfn: u64, buffer: &mut [u8]) -> Result<(), VmError> {
        self.faults.call(Operation::ReadPages)?;
        let zero = vec![0; PAGE_SIZE];
        for (gfn, page) in (gfn..).zip(buffer.chunks_exact_mut(PAGE_SIZE)) {
            page.copy_from_slice(self.memory.0.get(&gfn).unwrap_or(&zero));
        }
        self.read += buffer.len() / PAGE_SIZE;
        while self.read >= 256 {
            self.read -= 256;
            self.step();
        }
        if let Some(job) = &self.job {
            self.progress.push(job.statistics().progress_percent);
        }
        Ok(())
    }

    fn pause(&mut self) -> Result<(), VmError> {
        self.faults.call(Operation::Pause)?;
        self.step();
        self.world.set(|sides| sides.source = false);
        Ok(())
    }

    fn resume(&mut self, clock: Option<Clock>) -> Result<(), VmError> {
        self.faults.call(Operation::Resume)?;
        self.resumed = Some(clock);
        self.world.set(|sides| sides.source = true);
        Ok(())
    }

    fn capture_vcpu(&mut self, vcpu: u32) -> Result<VcpuState, VmError> {
        assert_eq!(vcpu, 0);
        self.faults.call(Operation::CaptureVcpu)?;
        Ok(self.machine.vcpu)
    }

    fn capture_chipset(&mut self) -> Result<ChipsetState, VmError> {
        self.faults.call(Operation::CaptureChipset)?;
        Ok(self.machine.chipset)
    }

    fn capture_clock(&mut self) -> Result<Clock, VmError> {
        self.faults.call(Operation::CaptureClock)?;
        Ok(self.clock)
    }

    fn capture_device(&mut self, device: u32) -> Result<CapturedDevice, VmError> {
        assert!(!self.runs(), "a device is captured while the guest runs");
        self.faults.call(Operation::CaptureDevice)?;
        let device = self.devices.get_mut(&device).ok_or("no such device")?;
        let mut captured = device.capture();
        if self.spoil_records {
            captured.records[0].register = 9999;
        }
        Ok(captured)
    }

    fn execute(&mut self, device: u32, steps: &[PlanStep]) -> Result<Executed, VmError> {
        self.faults.call(Operation::PutBack)?;
        let device = self.devices.get_mut(&device).ok_or("no such device")?;
        Ok(device.execute(steps))
    }

    fn capture_user_devices(&mut self) -> Result<Vec<UserDeviceState>, VmError> {
        self.faults.call(Operation::CaptureUserDevices)?;
        Ok(self.machine.user_devices.clone())
    }

    fn release(&mut self) -> Result<(), VmError> {
        assert!(!self.runs(), "a guest is released while it runs");
        self.released = true;
        self.faults.call(Operation::Release)
    }
}

/// The receiving host.
pub struct FakeHost {
    pub world: Arc<World>,
    pub faults: Arc<Faults>,
    pub description: HostDescription,
    /// What stands there for the guest.
    pub devices: BTreeMap<u32, Device>,
}

impl FakeHost {
    pub fn new(world: &Arc<World>, faults: &Arc<Faults>) -> Self {
        Self {
            world: world.clone(),
            faults: faults.clone(),
            description: host_description(),
            devices: fresh(),
        }
    }
}

/// The guest at the target.
#[derive(Debug)]
pub struct FakeTarget {
    pub world: Arc<World>,
    pub faults: Arc<Faults>,
    pub memory: Memory,
    pub vcpu: Option<VcpuState>,
    pub chipset: Option<ChipsetState>,
    pub devices: BTreeMap<u32, Device>,
    pub executed: usize,
    pub user_devices: Vec<UserDeviceState>,
    pub restored_clock: Option<Clock>,
    pub started: Option<(Clock, RunState)>,
}

impl TargetHost for FakeHost {
    type Vm = FakeTarget;

    fn describe_host(&self) -> Result<HostDescription, VmError> {
        self.faults.call(Operation::DescribeHost)?;
        Ok(self.description.clone())
    }

    fn prepare(&self, _description: &VmDescription) -> Result<FakeTarget, Refusal> {
        self.faults
            .call(Operation::Prepare)
            .map_err(|error| Refusal::other(error.to_string()))?;
        self.world.made.fetch_add(1, Ordering::SeqCst);
        Ok(FakeTarget {
            world: self.world.clone(),
            faults: self.faults.clone(),
            memory: Memory::default(),
            vcpu: None,
            chipset: None,
            devices: self.devices.clone(),
            executed: 0,
            user_devices: Vec::new(),
            restored_clock: None,
            started: None,
        })
    }
}

impl TargetVm for FakeTarget {
    fn write_pages(&mut self, gfn: u64, data: &[u8]) -> Result<(), VmError> {
        self.faults.call(Operation::WritePages)?;
        self.memory.write(gfn, data);
        Ok(())
    }

    fn zero_pages(&mut self, gfn: u64, pages: u64) -> Result<(), VmError> {
        self.faults.call(Operation::ZeroPages)?;
        for gfn in gfn..gfn + pages {
            self.memory.0.remove(&gfn);
        }
        Ok(())
    }

    fn restore_vcpu(&mut self, vcpu: u32, state: &VcpuState) -> Result<(), VmError> {
        assert_eq!(vcpu, 0);
        self.faults.call(Operation::RestoreVcpu)?;
        self.vcpu = Some(*state);
        Ok(())
    }

    fn restore_chipset(&mut self, state: &ChipsetState) -> Result<(), VmError> {
        self.faults.call(Operation::RestoreChipset)?;
        self.chipset = Some(*state);
        Ok(())
    }

    fn restore_clock(&mut self, clock: &Clock) -> Result<(), VmError> {
        self.faults.call(Operation::RestoreClock)?;
        assert_eq!(self.executed, 0, "the clock comes before the devices");
        self.restored_clock = Some(*clock);
        Ok(())
    }

    fn execute(&mut self, device: u32, steps: &[PlanStep]) -> Result<Executed, VmError> {
        self.faults.call(Operation::ExecutePlan)?;
        self.executed += 1;
        let device = self.devices.get_mut(&device).ok_or("no such device")?;
        Ok(device.execute(steps))
    }

    fn restore_user_device(&mut self, state: &UserDeviceState) -> Result<(), VmError> {
        self.faults.call(Operation::RestoreUserDevice)?;
        self.user_devices.push(state.clone());
        Ok(())
    }

    fn verify(&mut self) -> Result<(), VmError> {
        self.faults.call(Operation::Verify)
    }

    fn start(&mut self, clock: &Clock, state: RunState) -> Result<(), VmError> {
        self.faults.call(Operation::Start)?;
        self.started = Some((*clock, state));
        self.world.set(|sides| {
            sides.target = state == RunState::Running;
            sides.starts += 1;
        });
        Ok(())
    }

    fn discard(&mut self) {
        assert!(
            self.started.is_none(),
            "a guest is discarded that was started"
        );
        self.world.made.fetch_sub(1, Ordering::SeqCst);
    }
}
