// SPDX-License-Identifier: GPL-2.0
//! A hypervisor without hardware, for tests: its virtual machines have the module's interface and one built-in guest.
//!
//! The guest's whole state is its memory and its vCPU's registers, so it can be moved. It prints `beat N` lines on COM1,
//! writes N into a page of memory before each, and echoes what it receives, except: `q` powers it off, `r` resets it,
//! `k` does so by port 64h, `t` is a triple fault, `h` halts it, `x` makes the monitor fail, `f` makes the vCPU's thread open a
//! file and prints `+` or `-`, `p` makes it panic, `w` programs its 8259 and 8254 once more. A beat whose memory does not
//! hold the last one's number prints `LOST`. Its 8259 and 8254 are the core's models behind the core's recorders.

mod devices;

use crate::com1;
use crate::hypervisor::{CapturedDevice, Hypervisor, HypervisorError, PeekedDevice, VmFd};
use crate::memory::GuestRegion;
use devices::{Device, BOOT_WRITES};
use nix::errno::Errno;
use pvmm_uapi::*;
use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestMemoryRegion, MemoryRegionAddress};

/// Where the guest writes its beats: one of [`BEAT_PAGES`] pages, in turn.
const BEAT_MEMORY: u64 = 0x20_0000;
/// How many pages it goes round.
pub const BEAT_PAGES: u64 = 16;
/// How long a beat takes.
const BEAT: Duration = Duration::from_millis(1);
const LSR: u64 = 5;
const RESET_PORT: u64 = 0x64;

// The program counter's values.
const READ_LSR: u64 = 0;
const GOT_LSR: u64 = 1;
const READ_RBR: u64 = 2;
const GOT_RBR: u64 = 3;
const PRINT: u64 = 4;
// Registers: the beat's number, the position in its line, the value that was read.
const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;

/// The hypervisor.
#[derive(Debug, Clone)]
pub struct FakeHypervisor {
    /// What it says of itself.
    pub capabilities: Capabilities,
    /// The CPUID table of its guests.
    pub cpuid: Vec<CpuidEntry>,
    /// First ports of the devices that the machine has; any number of guests, one at a time.
    pub hardware: Arc<Mutex<BTreeSet<u32>>>,
}

impl Default for FakeHypervisor {
    fn default() -> Self {
        let mut module_version = [0; 32];
        module_version[..4].copy_from_slice(b"fake");
        Self {
            capabilities: Capabilities {
                api_version: API_VERSION,
                max_vcpus: MAX_VCPUS,
                host_cpus: 1,
                tsc_khz: 1_000_000,
                supported_xcr0: 3,
                module_version,
                ..Capabilities::default()
            },
            cpuid: vec![
                CpuidEntry {
                    leaf: 0,
                    eax: 1,
                    ..CpuidEntry::default()
                },
                CpuidEntry {
                    leaf: 1,
                    eax: 0x806c1,
                    edx: 0x0000_0301,
                    ..CpuidEntry::default()
                },
            ],
            hardware: Arc::new(Mutex::new(BTreeSet::from([0x2f8, 0x378]))),
        }
    }
}

impl Hypervisor for FakeHypervisor {
    fn capabilities(&self) -> Result<Capabilities, HypervisorError> {
        Ok(self.capabilities)
    }

    fn supported_cpuid(&self) -> Result<Vec<CpuidEntry>, HypervisorError> {
        Ok(self.cpuid.clone())
    }

    fn create_vm(&self, arguments: &CreateVm) -> Result<Box<dyn VmFd>, HypervisorError> {
        Ok(Box::new(FakeVm {
            hardware: Arc::clone(&self.hardware),
            running: Mutex::new(()),
            inner: Mutex::new(Inner {
                tsc_khz: match arguments.tsc_khz {
                    0 => self.capabilities.tsc_khz,
                    khz => khz,
                },
                regions: Vec::new(),
                cpu: VcpuState::default(),
                pending: None,
                clock: Clock::default(),
                clock_set: Instant::now(),
                chipset: ChipsetState::default(),
                dirty: None,
                attached: Vec::new(),
                trace: None,
                devices: [KIND_I8259, KIND_I8254]
                    .into_iter()
                    .filter_map(Device::new)
                    .collect(),
            }),
        }))
    }
}

/// What a vCPU's thread has no business to do. `+` if it can, `-` if that is no system call for it.
fn open_a_file() -> u8 {
    match std::fs::File::open("/dev/null") {
        Ok(_) => b'+',
        Err(error) if error.raw_os_error() == Some(Errno::ENOSYS as i32) => b'-',
        Err(_) => b'?',
    }
}

struct FakeVm {
    hardware: Arc<Mutex<BTreeSet<u32>>>,
    /// Held while the vCPU runs.
    running: Mutex<()>,
    inner: Mutex<Inner>,
}

struct Inner {
    tsc_khz: u32,
    regions: Vec<Arc<GuestRegion>>,
    cpu: VcpuState,
    /// The access that userspace answers.
    pending: Option<Run>,
    clock: Clock,
    clock_set: Instant,
    chipset: ChipsetState,
    dirty: Option<BTreeSet<u64>>,
    attached: Vec<AttachDevice>,
    /// By their numbers.
    devices: Vec<Device>,
    /// The traced device's number, and what it was seen to do.
    trace: Option<(u32, VecDeque<TraceEntry>)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FakeVm {
    /// The state, if no vCPU runs and no access is unanswered.
    fn stopped(&self, request: &'static str) -> Result<MutexGuard<'_, Inner>, HypervisorError> {
        let busy = || HypervisorError::request(request, Errno::EBUSY);
        let _running = self.running.try_lock().map_err(|_| busy())?;
        let inner = lock(&self.inner);
        match inner.pending {
            Some(_) => Err(busy()),
            None => Ok(inner),
        }
    }
}

impl Inner {
    fn now(&self) -> Clock {
        if self.clock.flags & CLOCK_STOPPED != 0 {
            return self.clock;
        }
        let elapsed = self.clock_set.elapsed().as_nanos() as u64;
        Clock {
            vm_ns: self.clock.vm_ns + elapsed,
            tsc: self.clock.tsc + elapsed * u64::from(self.tsc_khz) / 1_000_000,
            tsc_khz: self.tsc_khz,
            flags: 0,
        }
    }

    fn region(&self, gpa: u64) -> Option<(&GuestRegion, MemoryRegionAddress)> {
        self.regions.iter().find_map(|region| {
            let offset = gpa.checked_sub(region.start_addr().0)?;
            (offset < region.len()).then_some((&**region, MemoryRegionAddress(offset)))
        })
    }

    fn load(&self, gpa: u64) -> u64 {
        self.region(gpa)
            .and_then(|(region, offset)| region.read_obj(offset).ok())
            .unwrap_or(u64::MAX)
    }

    fn store(&mut self, gpa: u64, value: u64) {
        if let Some((region, offset)) = self.region(gpa) {
            // A guest of the smallest size has this page.
            let _ = region.write_obj(value, offset);
        }
        if let Some(dirty) = &mut self.dirty {
            dirty.insert(gpa >> 12);
        }
    }

    /// What the guest prints for the present beat.
    fn line(&self) -> Vec<u8> {
        let beat = self.cpu.gpr[RAX];
        let page = |beat: u64| BEAT_MEMORY + (beat % BEAT_PAGES) * 4096;
        match beat.checked_sub(1) {
            Some(last) if self.load(page(last)) != last => format!("LOST {last}\n"),
            _ => format!("beat {beat}\n"),
        }
        .into_bytes()
    }

    /// The guest programs its devices.
    fn program_devices(&mut self) {
        let now = self.now().vm_ns;
        for (number, range, offset, value) in BOOT_WRITES {
            let Some(device) = self.devices.get_mut(*number as usize) else {
                continue;
            };
            let entry = device.write(now, *range, *offset, *value);
            if let Some((traced, entries)) = &mut self.trace {
                if traced == number {
                    entries.push_back(entry);
                }
            }
        }
    }

    /// Advances the guest to its next exit.
    fn step(&mut self, run: &mut Run) -> bool {
        let io = |run: &mut Run, port: u64, write: Option<u8>| {
            run.exit = EXIT_IO;
            run.address = port;
            run.width = 1;
            run.write = write.is_some().into();
            run.value = write.unwrap_or(0).into();
        };
        let port = u64::from(com1::PORT);
        let cpu = &mut self.cpu;
        match cpu.rip {
            GOT_LSR => {
                let received = cpu.gpr[RDX] & 1 != 0;
                cpu.rip = if received { READ_RBR } else { PRINT };
                false
            }
            READ_RBR => {
                io(run, port, None);
                true
            }
            GOT_RBR => {
                cpu.rip = READ_LSR;
                match cpu.gpr[RDX] as u8 {
                    b'q' => run.exit = EXIT_POWER_OFF,
                    b'r' => run.exit = EXIT_RESET,
                    b't' => run.exit = EXIT_SHUTDOWN,
                    b'h' => run.exit = EXIT_HALTED_FOREVER,
                    b'k' => io(run, RESET_PORT, Some(0xfe)),
                    b'x' => {
                        run.exit = EXIT_INTERNAL_ERROR;
                        run.error = ERROR_UNKNOWN_EXIT;
                        run.value = 0x4d;
                    }
                    b'f' => io(run, port, Some(open_a_file())),
                    b'p' => panic!("the guest has asked for it"),
                    b'w' => {
                        self.program_devices();
                        io(run, port, Some(b'w'));
                    }
                    byte => io(run, port, Some(byte)),
                }
                true
            }
            PRINT => {
                let line = self.line();
                let position = self.cpu.gpr[RCX] as usize;
                if let Some(byte) = line.get(position) {
                    self.cpu.gpr[RCX] += 1;
                    io(run, port, Some(*byte));
                    return true;
                }
                let beat = self.cpu.gpr[RAX];
                self.store(BEAT_MEMORY + (beat % BEAT_PAGES) * 4096, beat);
                self.cpu.gpr[RAX] += 1;
                self.cpu.gpr[RCX] = 0;
                self.cpu.rip = READ_LSR;
                false
            }
            READ_LSR => {
                io(run, port + LSR, None);
                true
            }
            // The entry point of whatever kernel was loaded.
            _ => {
                cpu.rip = READ_LSR;
                self.program_devices();
                false
            }
        }
    }
}

impl VmFd for FakeVm {
    fn set_memory_region(&self, region: &Arc<GuestRegion>) -> Result<(), HypervisorError> {
        lock(&self.inner).regions.push(Arc::clone(region));
        Ok(())
    }

    fn create_vcpu(&self, _vcpu: u32) -> Result<(), HypervisorError> {
        Ok(())
    }

    fn set_cpuid(&self, _vcpu: u32, _entries: &[CpuidEntry]) -> Result<(), HypervisorError> {
        Ok(())
    }

    fn run(&self, run: &mut Run) -> Result<(), HypervisorError> {
        let interrupted = |run: &mut Run| {
            run.exit = EXIT_INTERRUPTED;
            Err(HypervisorError::request("RUN", Errno::EINTR))
        };
        let _running = self
            .running
            .try_lock()
            .map_err(|_| HypervisorError::request("RUN", Errno::EBUSY))?;
        if lock(&self.inner).clock.flags & CLOCK_STOPPED != 0 {
            return Err(HypervisorError::request("RUN", Errno::ENXIO));
        }
        loop {
            let mut inner = lock(&self.inner);
            if let Some(pending) = inner.pending.take() {
                if pending.write == 0 {
                    inner.cpu.gpr[RDX] = run.value;
                    inner.cpu.rip += 1;
                }
            }
            if run.immediate_exit == 1 {
                return interrupted(run);
            }
            let beat = inner.cpu.gpr[RAX];
            if inner.step(run) {
                if run.exit == EXIT_IO {
                    inner.pending = Some(*run);
                }
                return Ok(());
            }
            if inner.cpu.gpr[RAX] != beat {
                drop(inner);
                // The kick's signal interrupts the rest of the beat on hardware; here the beat is short.
                std::thread::sleep(BEAT);
                return interrupted(run);
            }
        }
    }

    fn vcpu_state(&self, _vcpu: u32) -> Result<Box<VcpuState>, HypervisorError> {
        Ok(Box::new(self.stopped("GET_VCPU_STATE")?.cpu))
    }

    fn set_vcpu_state(&self, _vcpu: u32, state: &VcpuState) -> Result<(), HypervisorError> {
        self.stopped("SET_VCPU_STATE")?.cpu = *state;
        Ok(())
    }

    fn clock(&self) -> Result<Clock, HypervisorError> {
        Ok(lock(&self.inner).now())
    }

    fn set_clock(&self, clock: &Clock) -> Result<(), HypervisorError> {
        let mut inner = self.stopped("SET_CLOCK")?;
        if clock.tsc_khz != inner.tsc_khz || clock.flags & !CLOCK_STOPPED != 0 {
            return Err(HypervisorError::request("SET_CLOCK", Errno::EINVAL));
        }
        inner.clock = *clock;
        inner.clock_set = Instant::now();
        Ok(())
    }

    fn chipset_state(&self) -> Result<ChipsetState, HypervisorError> {
        Ok(self.stopped("GET_CHIPSET_STATE")?.chipset)
    }

    fn set_chipset_state(&self, state: &ChipsetState) -> Result<(), HypervisorError> {
        self.stopped("SET_CHIPSET_STATE")?.chipset = *state;
        Ok(())
    }

    fn irq_line(&self, line: IrqLine) -> Result<(), HypervisorError> {
        let mut inner = lock(&self.inner);
        let bit = 1 << line.irq;
        match line.level {
            0 => inner.chipset.isa_levels &= !bit,
            _ => inner.chipset.isa_levels |= bit,
        }
        Ok(())
    }

    fn dirty_log(&self, enable: bool) -> Result<(), HypervisorError> {
        lock(&self.inner).dirty = enable.then(BTreeSet::new);
        Ok(())
    }

    fn dirty_fetch(&self, ranges: &mut [DirtyRange]) -> Result<(usize, bool), HypervisorError> {
        let mut inner = lock(&self.inner);
        let dirty = inner
            .dirty
            .as_mut()
            .ok_or(HypervisorError::request("DIRTY_FETCH", Errno::EINVAL))?;
        let mut count = 0;
        while let (Some(range), Some(gfn)) = (ranges.get_mut(count), dirty.pop_first()) {
            *range = DirtyRange { gfn, pages: 1 };
            count += 1;
        }
        Ok((count, !dirty.is_empty()))
    }

    fn attach_device(&self, device: &AttachDevice) -> Result<u32, HypervisorError> {
        let failed = |errno| HypervisorError::request("ATTACH_DEVICE", errno);
        let mut hardware = lock(&self.hardware);
        if !hardware.remove(&device.host_ports[0]) {
            return Err(failed(Errno::EBUSY));
        }
        let mut inner = lock(&self.inner);
        inner.attached.push(*device);
        let new = Device::new(device.kind).ok_or(failed(Errno::ENODEV))?;
        inner.devices.push(new);
        Ok(inner.devices.len() as u32 - 1)
    }

    fn device_capture(&self, device: u32) -> Result<CapturedDevice, HypervisorError> {
        let failed = |errno| HypervisorError::request("DEVICE_CAPTURE", errno);
        let mut inner = self.stopped("DEVICE_CAPTURE")?;
        let now = inner.now().vm_ns;
        let device = inner.devices.get_mut(device as usize);
        device
            .ok_or(failed(Errno::ENODEV))?
            .capture(now)
            .map_err(failed)
    }

    fn device_execute(
        &self,
        device: u32,
        steps: &[PlanStep],
    ) -> Result<DeviceExecute, HypervisorError> {
        let mut inner = self.stopped("DEVICE_EXECUTE")?;
        let now = inner.now().vm_ns;
        let outcome = inner
            .devices
            .get_mut(device as usize)
            .and_then(|device| device.execute(now, steps))
            .ok_or(HypervisorError::request("DEVICE_EXECUTE", Errno::ENODEV))?;
        Ok(DeviceExecute {
            device,
            count: steps.len() as u32,
            steps: 0,
            outcome: outcome.outcome,
            step: outcome.step,
            found: outcome.found,
        })
    }

    fn device_peek(&self, device: u32) -> Result<PeekedDevice, HypervisorError> {
        let failed = |errno| HypervisorError::request("DEVICE_PEEK", errno);
        let _running = self.running.try_lock().map_err(|_| failed(Errno::EBUSY))?;
        let mut inner = lock(&self.inner);
        let now = inner.now().vm_ns;
        let first = inner.devices.len() - inner.attached.len();
        let attached = (device as usize).checked_sub(first);
        let recorded = attached
            .and_then(|index| inner.attached.get(index))
            .is_none_or(|attached| attached.flags & ATTACH_UNRECORDED == 0);
        let device = inner.devices.get_mut(device as usize);
        device
            .ok_or(failed(Errno::EINVAL))?
            .peek(now, recorded)
            .map_err(failed)
    }

    fn trace_start(&self, device: u32) -> Result<(), HypervisorError> {
        let mut inner = lock(&self.inner);
        if inner.trace.is_some() {
            return Err(HypervisorError::request("DEVICE_TRACE", Errno::EEXIST));
        }
        inner.trace = Some((device, VecDeque::new()));
        Ok(())
    }

    fn trace_fetch(
        &self,
        device: u32,
        entries: &mut [TraceEntry],
    ) -> Result<(usize, u64), HypervisorError> {
        self.traced(device, |waiting| {
            let count = entries.len().min(waiting.len());
            for (place, entry) in entries.iter_mut().zip(waiting.drain(..count)) {
                *place = entry;
            }
            (count, 0)
        })
    }

    fn trace_stop(&self, device: u32) -> Result<(), HypervisorError> {
        self.traced(device, |_| ())?;
        lock(&self.inner).trace = None;
        Ok(())
    }
}

impl FakeVm {
    fn traced<T>(
        &self,
        device: u32,
        action: impl FnOnce(&mut VecDeque<TraceEntry>) -> T,
    ) -> Result<T, HypervisorError> {
        match &mut lock(&self.inner).trace {
            Some((traced, entries)) if *traced == device => Ok(action(entries)),
            _ => Err(HypervisorError::request("DEVICE_TRACE", Errno::EINVAL)),
        }
    }
}

impl Drop for FakeVm {
    fn drop(&mut self) {
        let mut hardware = lock(&self.hardware);
        hardware.extend(
            lock(&self.inner)
                .attached
                .iter()
                .map(|device| device.host_ports[0]),
        );
    }
}
