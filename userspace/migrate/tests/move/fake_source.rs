// SPDX-License-Identifier: GPL-2.0
//! The guest at the source.

use crate::devices::{programmed, Device, Hardware, UART};
use crate::fake::{
    description, frames, machine, Faults, Machine, Memory, Operation, World, START_CLOCK,
};
use pvmm_core::devices::uart16550::LSR;
use pvmm_migrate::description::VmDescription;
use pvmm_migrate::vm::{
    CaptureFailure, CapturedDevice, Executed, RunState, SourceVm, UserDeviceState, VmError,
    PAGE_SIZE,
};
use pvmm_migrate::Job;
use pvmm_uapi::{ChipsetState, Clock, DirtyRange, PlanStep, VcpuState};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

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
    /// How long a read of memory takes, as of pages that are swapped out.
    pub read_takes: Duration,
    /// Halves the writes at each fetch.
    pub calms_down: bool,
    read: usize,
    pub dirty: Option<BTreeSet<u64>>,
    pub released: bool,
    pub devices: BTreeMap<u32, Device>,
    /// Captured states name a register that does not exist.
    pub spoil_records: bool,
    /// A character that the UART receives when it has just been captured.
    pub arrives_after_capture: Option<u8>,
    /// How often the UART is found in the middle of something.
    pub busy_captures: u32,
    /// After how many captures it is found so once.
    pub busy_after: Option<u32>,
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
            read_takes: Duration::ZERO,
            calms_down: false,
            read: 0,
            dirty: None,
            released: false,
            devices: programmed(),
            spoil_records: false,
            arrives_after_capture: None,
            busy_captures: 0,
            busy_after: None,
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
        std::thread::sleep(self.read_takes);
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

    fn capture_device(&mut self, device: u32) -> Result<CapturedDevice, CaptureFailure> {
        assert!(!self.runs(), "a device is captured while the guest runs");
        self.faults.call(Operation::CaptureDevice)?;
        if device == UART && self.busy_after == Some(0) {
            self.busy_after = None;
            self.busy_captures = 1;
        }
        if device == UART {
            self.busy_after = self.busy_after.map(|captures| captures - 1);
        }
        if device == UART && self.busy_captures > 0 {
            self.busy_captures -= 1;
            return Err(CaptureFailure::Busy { register: LSR });
        }
        let device = self.devices.get_mut(&device);
        let device = device.ok_or_else(|| VmError::from("no such device"))?;
        let mut captured = device.capture();
        if let Hardware::Uart(uart) = &mut device.hardware {
            uart.received.extend(self.arrives_after_capture.take());
        }
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
