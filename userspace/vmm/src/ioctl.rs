// SPDX-License-Identifier: GPL-2.0
//! `/dev/pvmm`: the requests of `pvmm-uapi` as system calls. Beside [`crate::confine::refused`] the one file of this crate with
//! `unsafe`.
//!
//! Every request passes the address of one structure whose size is part of the request number, and some of these
//! structures carry the address and length of an array. The kernel accesses nothing else of this process than these
//! while a request lasts, and the guest memory that was registered, until the virtual machine ends.
#![allow(unsafe_code)]

use crate::hypervisor::{CapturedDevice, Hypervisor, HypervisorError, PeekedDevice, VmFd};
use crate::memory::GuestRegion;
use nix::errno::Errno;
use pvmm_uapi::*;
use std::fs::{File, OpenOptions};
use std::mem::size_of;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use vm_memory::GuestMemoryRegion;

/// Where the module's device file is.
pub const DEV_PVMM: &str = "/dev/pvmm";

/// The module, through its device file.
#[derive(Debug, Clone)]
pub struct DevPvmm {
    path: PathBuf,
}

impl Default for DevPvmm {
    fn default() -> Self {
        Self::new(Path::new(DEV_PVMM))
    }
}

impl DevPvmm {
    /// The module whose device file is `path`. Nothing is opened yet.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    /// Opens the device file and checks the ABI version.
    fn open(&self) -> Result<File, HypervisorError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&self.path)
            .map_err(|error| {
                let reason = Errno::from_raw(error.raw_os_error().unwrap_or(0));
                HypervisorError::Open {
                    path: self.path.display().to_string(),
                    reason,
                    advice: match reason {
                        Errno::ENOENT | Errno::ENXIO | Errno::ENODEV => {
                            "load the module (insmod pvmm.ko; the kernel log says why if that is refused)"
                        }
                        Errno::EACCES | Errno::EPERM => "run pvmmd as root",
                        _ => "see the kernel log",
                    },
                }
            })?;
        let version = request_without_argument(&file, "GET_API_VERSION", GET_API_VERSION)?;
        if version != API_VERSION {
            return Err(HypervisorError::Version {
                module: version,
                daemon: API_VERSION,
            });
        }
        Ok(file)
    }
}

impl Hypervisor for DevPvmm {
    fn capabilities(&self) -> Result<Capabilities, HypervisorError> {
        let file = self.open()?;
        let mut capabilities = Capabilities::default();
        request_mut(
            &file,
            "GET_CAPABILITIES",
            GET_CAPABILITIES,
            &mut capabilities,
        )?;
        Ok(capabilities)
    }

    fn supported_cpuid(&self) -> Result<Vec<CpuidEntry>, HypervisorError> {
        let file = self.open()?;
        let mut entries = vec![CpuidEntry::default(); MAX_CPUID_ENTRIES as usize];
        let mut table = CpuidTable {
            entries: entries.as_mut_ptr() as u64,
            count: MAX_CPUID_ENTRIES,
            ..Default::default()
        };
        // SAFETY: `table` names `entries`, which is writable for `count` elements and outlives the call.
        unsafe {
            request(
                &file,
                "GET_SUPPORTED_CPUID",
                GET_SUPPORTED_CPUID,
                &mut table,
            )?
        };
        entries.truncate(table.count as usize);
        Ok(entries)
    }

    fn create_vm(&self, arguments: &CreateVm) -> Result<Box<dyn VmFd>, HypervisorError> {
        let file = self.open()?;
        request_ref(&file, "CREATE_VM", CREATE_VM, arguments)?;
        Ok(Box::new(DevVm {
            file,
            regions: Mutex::new(Vec::new()),
        }))
    }
}

/// A virtual machine: an open `/dev/pvmm`.
struct DevVm {
    /// Declared, and so dropped, before the memory that the kernel uses through it.
    file: File,
    regions: Mutex<Vec<Arc<GuestRegion>>>,
}

impl VmFd for DevVm {
    fn set_memory_region(&self, region: &Arc<GuestRegion>) -> Result<(), HypervisorError> {
        let argument = MemoryRegion {
            gpa: region.start_addr().0,
            size: region.len(),
            hva: region.get_mmap().as_ptr() as u64,
            reserved: 0,
        };
        // The reference is taken first, so that the memory stays mapped whatever the request answers.
        self.regions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Arc::clone(region));
        request_ref(
            &self.file,
            "SET_MEMORY_REGION",
            SET_MEMORY_REGION,
            &argument,
        )
    }

    fn create_vcpu(&self, vcpu: u32) -> Result<(), HypervisorError> {
        request_ref(
            &self.file,
            "CREATE_VCPU",
            CREATE_VCPU,
            &CreateVcpu { vcpu, reserved: 0 },
        )
    }

    fn set_cpuid(&self, vcpu: u32, entries: &[CpuidEntry]) -> Result<(), HypervisorError> {
        let mut table = CpuidTable {
            entries: entries.as_ptr() as u64,
            count: length(entries)?,
            vcpu,
            refused_entry: u32::MAX,
            ..Default::default()
        };
        // SAFETY: `table` names `entries`, which the kernel only reads, for `count` elements; it outlives the call.
        let result = unsafe { request(&self.file, "SET_CPUID", SET_CPUID, &mut table) };
        match (result, entries.get(table.refused_entry as usize)) {
            (Err(_), Some(entry)) => Err(HypervisorError::Cpuid {
                leaf: entry.leaf,
                subleaf: entry.subleaf,
                register: ["EAX", "EBX", "ECX", "EDX"][(table.refused_register & 3) as usize],
                bits: table.refused_bits,
            }),
            (result, _) => result,
        }
    }

    fn run(&self, run: &mut Run) -> Result<(), HypervisorError> {
        request_mut(&self.file, "RUN", RUN, run)
    }

    fn vcpu_state(&self, vcpu: u32) -> Result<Box<VcpuState>, HypervisorError> {
        let mut state = Box::<VcpuState>::default();
        let mut argument = VcpuStateRequest {
            state: &mut *state as *mut VcpuState as u64,
            vcpu,
            size: size_of::<VcpuState>() as u32,
        };
        // SAFETY: the argument names `state`, exclusively ours, with its size; it outlives the call, and any bytes
        // make a valid `VcpuState`.
        unsafe { request(&self.file, "GET_VCPU_STATE", GET_VCPU_STATE, &mut argument)? };
        Ok(state)
    }

    fn set_vcpu_state(&self, vcpu: u32, state: &VcpuState) -> Result<(), HypervisorError> {
        let mut argument = VcpuStateRequest {
            state: state as *const VcpuState as u64,
            vcpu,
            size: size_of::<VcpuState>() as u32,
        };
        // SAFETY: the argument names `state`, which the kernel only reads, with its size; it outlives the call.
        unsafe { request(&self.file, "SET_VCPU_STATE", SET_VCPU_STATE, &mut argument) }
    }

    fn clock(&self) -> Result<Clock, HypervisorError> {
        let mut clock = Clock::default();
        request_mut(&self.file, "GET_CLOCK", GET_CLOCK, &mut clock)?;
        Ok(clock)
    }

    fn set_clock(&self, clock: &Clock) -> Result<(), HypervisorError> {
        request_ref(&self.file, "SET_CLOCK", SET_CLOCK, clock)
    }

    fn chipset_state(&self) -> Result<ChipsetState, HypervisorError> {
        let mut state = ChipsetState::default();
        request_mut(
            &self.file,
            "GET_CHIPSET_STATE",
            GET_CHIPSET_STATE,
            &mut state,
        )?;
        Ok(state)
    }

    fn set_chipset_state(&self, state: &ChipsetState) -> Result<(), HypervisorError> {
        request_ref(&self.file, "SET_CHIPSET_STATE", SET_CHIPSET_STATE, state)
    }

    fn irq_line(&self, line: IrqLine) -> Result<(), HypervisorError> {
        request_ref(&self.file, "IRQ_LINE", IRQ_LINE, &line)
    }

    fn dirty_log(&self, enable: bool) -> Result<(), HypervisorError> {
        let argument = DirtyLog {
            enable: enable.into(),
            reserved: 0,
        };
        request_ref(&self.file, "DIRTY_LOG", DIRTY_LOG, &argument)
    }

    fn dirty_fetch(&self, ranges: &mut [DirtyRange]) -> Result<(usize, bool), HypervisorError> {
        let mut argument = DirtyFetch {
            ranges: ranges.as_mut_ptr() as u64,
            count: length(ranges)?,
            more: 0,
        };
        // SAFETY: the argument names `ranges`, exclusively ours, writable for `count` elements for the whole call.
        unsafe { request(&self.file, "DIRTY_FETCH", DIRTY_FETCH, &mut argument)? };
        Ok((
            (argument.count as usize).min(ranges.len()),
            argument.more != 0,
        ))
    }

    fn attach_device(&self, device: &AttachDevice) -> Result<u32, HypervisorError> {
        let mut argument = *device;
        request_mut(&self.file, "ATTACH_DEVICE", ATTACH_DEVICE, &mut argument)?;
        Ok(argument.device)
    }

    fn device_capture(&self, device: u32) -> Result<CapturedDevice, HypervisorError> {
        let mut records = vec![StateRecord::default(); MAX_STATE_RECORDS as usize];
        let mut argument = DeviceCapture {
            device,
            records: records.as_mut_ptr() as u64,
            count: MAX_STATE_RECORDS,
            ..Default::default()
        };
        // SAFETY: the argument names `records`, exclusively ours, writable for `count` elements for the whole call.
        let captured =
            unsafe { request(&self.file, "DEVICE_CAPTURE", DEVICE_CAPTURE, &mut argument) };
        captured.map_err(|error| match error {
            HypervisorError::Request {
                errno: Errno::EAGAIN,
                ..
            } => HypervisorError::NotAtRest {
                device,
                // Register numbers have 16 bits.
                register: argument.register as u16,
            },
            error => error,
        })?;
        records.truncate(argument.count as usize);
        Ok(CapturedDevice {
            kind: argument.kind,
            version: argument.version,
            records,
        })
    }

    fn device_execute(
        &self,
        device: u32,
        steps: &[PlanStep],
    ) -> Result<DeviceExecute, HypervisorError> {
        let mut argument = DeviceExecute {
            device,
            count: length(steps)?,
            steps: steps.as_ptr() as u64,
            ..Default::default()
        };
        // SAFETY: the argument names `steps`, which the kernel only reads, for `count` elements for the whole call.
        unsafe { request(&self.file, "DEVICE_EXECUTE", DEVICE_EXECUTE, &mut argument)? };
        Ok(argument)
    }

    fn device_peek(&self, device: u32) -> Result<PeekedDevice, HypervisorError> {
        let mut records = vec![StateRecord::default(); MAX_STATE_RECORDS as usize];
        let mut argument = DevicePeek {
            device,
            records: records.as_mut_ptr() as u64,
            count: MAX_STATE_RECORDS,
            ..Default::default()
        };
        // SAFETY: the argument names `records`, exclusively ours, writable for `count` elements for the whole call.
        unsafe { request(&self.file, "DEVICE_PEEK", DEVICE_PEEK, &mut argument)? };
        records.truncate(argument.count as usize);
        Ok(PeekedDevice::new(&argument, records))
    }

    fn trace_start(&self, device: u32) -> Result<(), HypervisorError> {
        self.trace(device, TRACE_START)
    }

    fn trace_fetch(
        &self,
        device: u32,
        entries: &mut [TraceEntry],
    ) -> Result<(usize, u64), HypervisorError> {
        let mut argument = DeviceTrace {
            device,
            operation: TRACE_FETCH,
            entries: entries.as_mut_ptr() as u64,
            count: length(entries)?,
            ..Default::default()
        };
        // SAFETY: the argument names `entries`, exclusively ours, writable for `count` elements for the whole call.
        unsafe { request(&self.file, "DEVICE_TRACE", DEVICE_TRACE, &mut argument)? };
        Ok(((argument.count as usize).min(entries.len()), argument.lost))
    }

    fn trace_stop(&self, device: u32) -> Result<(), HypervisorError> {
        self.trace(device, TRACE_STOP)
    }
}

impl DevVm {
    /// A trace's start or end, which has no array.
    fn trace(&self, device: u32, operation: u32) -> Result<(), HypervisorError> {
        let argument = DeviceTrace {
            device,
            operation,
            ..Default::default()
        };
        request_ref(&self.file, "DEVICE_TRACE", DEVICE_TRACE, &argument)
    }
}

/// An array's length as the ABI has it.
fn length<T>(array: &[T]) -> Result<u32, HypervisorError> {
    u32::try_from(array.len())
        .map_err(|_| HypervisorError::request("an array argument", Errno::E2BIG))
}

/// A request that carries nothing and answers with its result.
fn request_without_argument(
    file: &File,
    name: &'static str,
    number: u32,
) -> Result<u32, HypervisorError> {
    debug_assert_eq!(request_size(number), 0);
    // SAFETY: the request has size 0, so the kernel does not take its argument for an address.
    let result = unsafe { nix::libc::ioctl(file.as_raw_fd(), number.into(), 0) };
    let result = Errno::result(result).map_err(|errno| HypervisorError::request(name, errno))?;
    // `Errno::result` passes only values that are not -1, and the kernel answers with a version.
    Ok(result.unsigned_abs())
}

/// A request whose structure, without addresses in it, the kernel only reads.
fn request_ref<T: Pod>(
    file: &File,
    name: &'static str,
    number: u32,
    argument: &T,
) -> Result<(), HypervisorError> {
    let mut copy = *argument;
    request_mut(file, name, number, &mut copy)
}

/// A request whose structure, without addresses of ordinary memory in it, the kernel reads and writes.
fn request_mut<T: Pod>(
    file: &File,
    name: &'static str,
    number: u32,
    argument: &mut T,
) -> Result<(), HypervisorError> {
    // SAFETY: the structures passed here hold no address, with one exception: `MemoryRegion`, whose memory is a shared
    // mapping that is accessed only by volatile copies and that `DevVm::regions` keeps until the file is closed.
    unsafe { request(file, name, number, argument) }
}

/// Issues a request.
///
/// # Safety
///
/// Addresses inside `argument` must be valid for what the request does with them, for as long as it does it.
unsafe fn request<T: Pod>(
    file: &File,
    name: &'static str,
    number: u32,
    argument: &mut T,
) -> Result<(), HypervisorError> {
    assert_eq!(
        request_size(number),
        size_of::<T>(),
        "{name} is called with another request's structure"
    );
    let address: *mut T = argument;
    // SAFETY: the kernel copies `request_size(number)` bytes at `address`, which is exactly `*argument` (asserted), and
    // any bytes make a valid value (`Pod`). Addresses inside are the caller's promise.
    let result = unsafe { nix::libc::ioctl(file.as_raw_fd(), number.into(), address) };
    Errno::result(result)
        .map(drop)
        .map_err(|errno| HypervisorError::request(name, errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_device_file_says_to_load_the_module() {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let error = DevPvmm::new(&directory.path().join("pvmm"))
            .capabilities()
            .expect_err("there is no such file");
        assert!(error.to_string().contains("insmod"), "{error}");
    }

    #[test]
    fn a_file_that_is_not_the_module_is_refused() {
        let error = DevPvmm::new(Path::new("/dev/null"))
            .capabilities()
            .map(|_| ())
            .expect_err("/dev/null knows no request");
        assert_eq!(
            error,
            HypervisorError::request("GET_API_VERSION", Errno::ENOTTY)
        );
    }
}
