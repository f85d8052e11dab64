// SPDX-License-Identifier: GPL-2.0
//! What a guest is made of, and what a host offers: the two sides that the handshake compares.
//!
//! Place on the path: the first record of a move, before any page. [`crate::compat`] compares, the result is a list of
//! reasons ([`crate::refusal`]).

use crate::vm::{RunState, PAGE_SIZE};
use pvmm_uapi::CpuidEntry;
use serde::{Deserialize, Serialize};

/// Highest number of memory regions in a description.
pub const MAX_REGIONS: usize = 16;
/// Highest number of recorded devices in a description.
pub const MAX_DEVICES: usize = 64;
/// Highest number of userspace devices in a description.
pub const MAX_USER_DEVICES: usize = 16;
/// Longest name of a guest or device, in bytes.
pub const MAX_NAME: usize = 64;
/// Highest guest-physical address plus one: 52 bits, the most that a page-table entry can hold (SDM volume 3, 4.1.4).
pub const MAX_GPA: u64 = 1 << 52;

/// One range of guest RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryRange {
    /// First guest-physical address, page aligned.
    pub gpa: u64,
    /// Size in bytes, a multiple of the page size, not 0.
    pub size: u64,
}

/// One CPUID (sub)leaf of the guest's table; see [`pvmm_uapi::CpuidEntry`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuidLeaf {
    /// EAX on input.
    pub leaf: u32,
    /// ECX on input, if `flags` has `CPUID_SUBLEAF`.
    pub subleaf: u32,
    /// `pvmm_uapi::CPUID_*` bits.
    pub flags: u32,
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

impl From<&CpuidEntry> for CpuidLeaf {
    fn from(entry: &CpuidEntry) -> Self {
        let CpuidEntry {
            leaf,
            subleaf,
            flags,
            eax,
            ebx,
            ecx,
            edx,
            reserved: _,
        } = *entry;
        Self {
            leaf,
            subleaf,
            flags,
            eax,
            ebx,
            ecx,
            edx,
        }
    }
}

impl From<&CpuidLeaf> for CpuidEntry {
    fn from(leaf: &CpuidLeaf) -> Self {
        Self {
            leaf: leaf.leaf,
            subleaf: leaf.subleaf,
            flags: leaf.flags,
            eax: leaf.eax,
            ebx: leaf.ebx,
            ecx: leaf.ecx,
            edx: leaf.edx,
            reserved: 0,
        }
    }
}

/// What stands behind a recorded device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// The host's own hardware.
    Physical,
    /// A model in the monitor.
    Modelled,
}

/// A recorded device of a guest, as the guest sees it. Where it really is on the source does not matter to the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceDescription {
    /// Its number in the ioctls, the same on both hosts.
    pub device: u32,
    /// `pvmm_uapi::KIND_*`.
    pub kind: u32,
    /// What stands behind it.
    pub backend: Backend,
    /// First port that the guest sees; 0 for a device that every VM has. Other ranges of the device are where a PC has them.
    pub guest_port: u32,
    /// ISA interrupt that the guest sees; 0 for a device without one, and for a device that every VM has.
    pub guest_irq: u32,
    /// Version of the kind's state layout that the source will send.
    pub version: u32,
}

/// A device of the guest that lives in the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserDeviceDescription {
    /// Its name, e.g. `com1`.
    pub name: String,
    /// Version of the state layout that the source will send.
    pub version: u32,
}

/// A guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmDescription {
    /// Its name, unique on a host. Letters, digits, `-`, `_`, `.`; at most [`MAX_NAME`] bytes.
    pub name: String,
    /// Who sends it, for the log of the other side: daemon and module version, kernel.
    pub producer: String,
    /// `pvmm_uapi::API_VERSION` of the module that it runs on.
    pub api_version: u32,
    /// `pvmm_uapi::VM_*` bits that it was made with.
    pub flags: u32,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// The guest's TSC rate in kHz.
    pub tsc_khz: u32,
    /// XCR0 bits that the guest may set.
    pub xcr0: u64,
    /// Its CPUID table.
    pub cpuid: Vec<CpuidLeaf>,
    /// Its RAM, ascending, without overlap.
    pub memory: Vec<MemoryRange>,
    /// Its recorded devices, in the order in which they are restored.
    pub devices: Vec<DeviceDescription>,
    /// Its devices in the daemon, in the order in which they are restored.
    pub user_devices: Vec<UserDeviceDescription>,
    /// Whether it executes.
    pub state: RunState,
}

impl VmDescription {
    /// Size of the guest's RAM in bytes. Saturates; a description that passed [`Self::validate`] is far below.
    pub fn memory_size(&self) -> u64 {
        self.memory
            .iter()
            .fold(0, |sum: u64, range| sum.saturating_add(range.size))
    }

    /// Checks everything that can be checked without a host: a description that comes from a peer is used only after
    /// this. The error says what is wrong with it.
    pub fn validate(&self) -> Result<(), String> {
        validate_name("guest name", &self.name)?;
        if self.producer.len() > 4 * MAX_NAME {
            return Err(format!(
                "the producer's name has {} bytes",
                self.producer.len()
            ));
        }
        if self.vcpus == 0 || self.vcpus > pvmm_uapi::MAX_VCPUS {
            return Err(format!(
                "{} vCPUs; between 1 and {} are possible",
                self.vcpus,
                pvmm_uapi::MAX_VCPUS
            ));
        }
        if self.tsc_khz == 0 {
            return Err("a TSC rate of 0 kHz".into());
        }
        if self.cpuid.is_empty() || self.cpuid.len() > pvmm_uapi::MAX_CPUID_ENTRIES as usize {
            return Err(format!(
                "a CPUID table of {} entries; between 1 and {} are possible",
                self.cpuid.len(),
                pvmm_uapi::MAX_CPUID_ENTRIES
            ));
        }
        self.validate_memory()?;
        self.validate_devices()
    }

    fn validate_memory(&self) -> Result<(), String> {
        if self.memory.is_empty() || self.memory.len() > MAX_REGIONS {
            return Err(format!(
                "{} memory regions; between 1 and {MAX_REGIONS} are possible",
                self.memory.len()
            ));
        }
        let page = PAGE_SIZE as u64;
        let mut free_from = 0;
        for range in &self.memory {
            let end = range.gpa.checked_add(range.size);
            match end {
                Some(end)
                    if range.size != 0
                        && range.gpa % page == 0
                        && range.size % page == 0
                        && range.gpa >= free_from
                        && end <= MAX_GPA =>
                {
                    free_from = end;
                }
                _ => {
                    return Err(format!(
                        "a memory region of {:#x} bytes at {:#x} (regions are page aligned, ascending, not empty, without \
                         overlap and below {MAX_GPA:#x})",
                        range.size, range.gpa
                    ));
                }
            }
        }
        Ok(())
    }

    fn validate_devices(&self) -> Result<(), String> {
        if self.devices.len() > MAX_DEVICES {
            return Err(format!(
                "{} devices; at most {MAX_DEVICES} are possible",
                self.devices.len()
            ));
        }
        for (index, device) in self.devices.iter().enumerate() {
            if self.devices[..index]
                .iter()
                .any(|other| other.device == device.device)
            {
                return Err(format!("two devices with the number {}", device.device));
            }
        }
        if self.user_devices.len() > MAX_USER_DEVICES {
            return Err(format!(
                "{} userspace devices; at most {MAX_USER_DEVICES} are possible",
                self.user_devices.len()
            ));
        }
        for (index, device) in self.user_devices.iter().enumerate() {
            validate_name("userspace device name", &device.name)?;
            if self.user_devices[..index]
                .iter()
                .any(|other| other.name == device.name)
            {
                return Err(format!("two userspace devices named \"{}\"", device.name));
            }
        }
        Ok(())
    }
}

/// Checks a name of a guest or a userspace device: letters, digits, `-`, `_` and `.`, not first `.` or `-`.
pub fn validate_name(what: &str, name: &str) -> Result<(), String> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty()
        || name.len() > MAX_NAME
        || !name.chars().all(good)
        || name.starts_with(['.', '-'])
    {
        return Err(format!(
            "{what} {name:?}: 1 to {MAX_NAME} letters, digits, '-', '_' or '.' are possible, the first a letter, a digit \
             or '_'"
        ));
    }
    Ok(())
}

/// A device of the host that its operator has granted to incoming guests (`--grant`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantedDevice {
    /// `pvmm_uapi::KIND_*`.
    pub kind: u32,
    /// First port at which a guest may see it.
    pub guest_port: u32,
    /// ISA interrupt at which a guest may see it; 0 for none.
    pub guest_irq: u32,
    /// Whether another guest has it now.
    pub in_use: bool,
}

/// What a host offers an incoming guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostDescription {
    /// Who receives, for the log of the other side.
    pub producer: String,
    /// `pvmm_uapi::API_VERSION` of the module.
    pub api_version: u32,
    /// `pvmm_uapi::FEATURE_*` bits of the module.
    pub features: u64,
    /// `pvmm_uapi::VM_*` bits that a guest here can have.
    pub vm_flags: u32,
    /// Highest number of vCPUs of a guest.
    pub max_vcpus: u32,
    /// The host's TSC rate in kHz.
    pub tsc_khz: u32,
    /// XCR0 bits that a guest here may set.
    pub supported_xcr0: u64,
    /// The widest CPUID table that a guest here can have (`GET_SUPPORTED_CPUID`).
    pub cpuid: Vec<CpuidLeaf>,
    /// RAM in bytes that incoming guests may still take.
    pub free_memory: u64,
    /// Physical devices for incoming guests.
    pub granted: Vec<GrantedDevice>,
    /// Userspace devices that this daemon can restore, with the version of their state layout.
    pub user_devices: Vec<UserDeviceDescription>,
    /// Names of the guests that are here; a name can be there only once.
    pub names: Vec<String>,
}
