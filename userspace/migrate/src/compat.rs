// SPDX-License-Identifier: GPL-2.0
//! Whether a host can take a guest: the pure comparison of the two descriptions. All reasons are found, not only the
//! first, and before the first page.
//!
//! CPUID follows the SDM, volume 2A. A guest keeps the table that it started with, so the question is only whether this host
//! can keep its promises: feature bits must be a subset of the host's, limits must not be higher, the vendor must be the
//! same. What only describes (cache topology, brand string, stepping, performance hints) may differ.

use crate::cpuid::REGISTERS;
use crate::description::{
    Backend, CpuidLeaf, DeviceDescription, HostDescription, UserDeviceDescription, VmDescription,
};
use crate::devices;
use crate::refusal::{Reason, Refusal};
use pvmm_uapi::FEATURE_TSC_SCALING;

/// How far the TSC rates of two hosts may lie apart before they count as different, in parts per million: measured rates
/// of the same part differ by a few, and a guest's NTP takes up to 500.
pub const TSC_TOLERANCE_PPM: u64 = 250;

/// Compares a guest with a host.
///
/// # Errors
///
/// Every reason why this host cannot run this guest.
pub fn check(guest: &VmDescription, host: &HostDescription) -> Result<(), Refusal> {
    if let Err(reason) = guest.validate() {
        // Nothing else in it can be trusted.
        return Err(Reason::Description(reason).into());
    }
    let mut reasons = Vec::new();
    check_machine(guest, host, &mut reasons);
    check_cpuid(&guest.cpuid, &host.cpuid, &mut reasons);
    check_devices(&guest.devices, host, &mut reasons);
    check_user_devices(&guest.user_devices, host, &mut reasons);
    if reasons.is_empty() {
        Ok(())
    } else {
        Err(Refusal { reasons })
    }
}

fn check_machine(guest: &VmDescription, host: &HostDescription, reasons: &mut Vec<Reason>) {
    if guest.api_version != host.api_version {
        reasons.push(Reason::ApiVersion {
            need: guest.api_version,
            have: host.api_version,
        });
    }
    if host.names.contains(&guest.name) {
        reasons.push(Reason::Name(guest.name.clone()));
    }
    if guest.memory_size() > host.free_memory {
        reasons.push(Reason::Memory {
            need: guest.memory_size(),
            have: host.free_memory,
        });
    }
    if guest.vcpus > host.max_vcpus {
        reasons.push(Reason::Vcpus {
            need: guest.vcpus,
            have: host.max_vcpus,
        });
    }
    let missing = guest.flags & !host.vm_flags;
    if missing != 0 {
        reasons.push(Reason::Flags { missing });
    }
    let missing = guest.xcr0 & !host.supported_xcr0;
    if missing != 0 {
        reasons.push(Reason::Xcr0 { missing });
    }
    if !same_rate(guest.tsc_khz, host.tsc_khz) && host.features & FEATURE_TSC_SCALING == 0 {
        reasons.push(Reason::TscRate {
            need: guest.tsc_khz,
            have: host.tsc_khz,
        });
    }
}

/// Whether two TSC rates count as the same.
pub fn same_rate(one: u32, other: u32) -> bool {
    u64::from(one.abs_diff(other)) * 1_000_000 <= u64::from(one) * TSC_TOLERANCE_PPM
}

/// What a register of a CPUID leaf means for a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// Feature bits: the guest's must be a subset, except for the bits given, which are harmless or not the host's.
    Subset { harmless: u32 },
    /// A number that must not be higher than the host's.
    NotGreater,
    /// Must be the same.
    Equal,
    /// Only describes.
    Free,
}

const fn subset(harmless: u32) -> Rule {
    Rule::Subset { harmless }
}

/// The rules of EAX to EDX of a leaf.
fn rules(leaf: u32, subleaf: u32) -> [Rule; 4] {
    use Rule::{Equal, Free, NotGreater};
    let all = subset(0);
    match (leaf, subleaf) {
        // Highest leaf; vendor.
        (0, _) => [NotGreater, Equal, Equal, Equal],
        // Model and APIC id only describe. OSXSAVE (27) mirrors CR4, bit 31 says "hypervisor", HTT (EDX 28) counts ids.
        (1, _) => [Free, Free, subset(1 << 27 | 1 << 31), subset(1 << 28)],
        // Thermal and power: ARAT (EAX 2) is a promise about the APIC timer, which the monitor keeps.
        (6, _) => [Free; 4],
        // Highest subleaf; ERMS (EBX 9) and FSRM (EDX 4) only say what is fast.
        (7, 0) => [NotGreater, subset(1 << 9), all, subset(1 << 4)],
        (7, 1) => [all, all, all, all],
        // XCR0 bits; sizes in EBX depend on the present XCR0, in ECX on all supported.
        (0xd, 0) => [all, Free, NotGreater, all],
        (0xd, 1) => [all, Free, all, all],
        // Size and offset of a component in the standard format: memory layout that the guest relies on.
        (0xd, 2..) => [Equal, Equal, Free, Free],
        (0x8000_0000, _) => [NotGreater, Free, Free, Free],
        (0x8000_0001, _) => [Free, Free, all, subset(1 << 28)],
        // Invariant TSC.
        (0x8000_0007, _) => [Free, Free, Free, all],
        // Physical-address width in bits 7:0 of EAX is compared by `check_leaf`.
        (0x8000_0008, _) => [Free, all, Free, Free],
        // Caches, topology, brand string, TSC and frequency information, hypervisor leaves.
        _ => [Free; 4],
    }
}

fn check_cpuid(guest: &[CpuidLeaf], host: &[CpuidLeaf], reasons: &mut Vec<Reason>) {
    for leaf in guest {
        let there = host.iter().find(|there| {
            there.leaf == leaf.leaf
                && (there.subleaf == leaf.subleaf || leaf.flags & pvmm_uapi::CPUID_SUBLEAF == 0)
        });
        // A leaf that the host lacks reads as zero there.
        let there = there.map_or([0; 4], |there| [there.eax, there.ebx, there.ecx, there.edx]);
        check_leaf(leaf, there, reasons);
    }
}

fn check_leaf(leaf: &CpuidLeaf, there: [u32; 4], reasons: &mut Vec<Reason>) {
    let here = [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx];
    let rules = rules(leaf.leaf, leaf.subleaf);
    // An absent XSAVE component has size 0 in the guest; it then does not matter where the host keeps it.
    let absent = leaf.leaf == 0xd && leaf.subleaf >= 2 && here == [0; 4];
    for (((need, have), rule), register) in here.into_iter().zip(there).zip(rules).zip(REGISTERS) {
        let complaint = match rule {
            Rule::Subset { harmless } => {
                let missing = need & !have & !harmless;
                if missing != 0 {
                    reasons.push(Reason::CpuidBits {
                        leaf: leaf.leaf,
                        subleaf: leaf.subleaf,
                        register: register.into(),
                        missing,
                    });
                }
                None
            }
            Rule::NotGreater if need > have => Some("it must not be higher than the host's"),
            Rule::Equal if need != have && !absent => Some("it must be equal"),
            _ => None,
        };
        if let Some(rule) = complaint {
            reasons.push(Reason::CpuidValue {
                leaf: leaf.leaf,
                subleaf: leaf.subleaf,
                register: register.into(),
                need,
                have,
                rule: rule.into(),
            });
        }
    }
    if leaf.leaf == 0x8000_0008 && leaf.eax & 0xff > there[0] & 0xff {
        reasons.push(Reason::CpuidValue {
            leaf: leaf.leaf,
            subleaf: leaf.subleaf,
            register: "EAX".into(),
            need: leaf.eax & 0xff,
            have: there[0] & 0xff,
            rule: "the guest's physical addresses must not be wider than the host's".into(),
        });
    }
}

fn check_devices(devices: &[DeviceDescription], host: &HostDescription, reasons: &mut Vec<Reason>) {
    let mut taken = vec![false; host.granted.len()];
    for device in devices {
        let (Some(kind), Some(version)) = (
            devices::kind_name(device.kind),
            devices::state_version(device.kind),
        ) else {
            reasons.push(Reason::DeviceKind {
                device: device.device,
                kind: device.kind,
            });
            continue;
        };
        if device.version != version {
            reasons.push(Reason::DeviceVersion {
                device: device.device,
                kind: kind.into(),
                need: device.version,
                have: version,
            });
        }
        if device.backend == Backend::Modelled {
            continue;
        }
        let fits = |(index, grant): &(usize, &crate::description::GrantedDevice)| {
            !taken[*index]
                && grant.kind == device.kind
                && grant.guest_port == device.guest_port
                && grant.guest_irq == device.guest_irq
        };
        let candidates = host.granted.iter().enumerate();
        let found = candidates.clone().find(|it| fits(it) && !it.1.in_use);
        match found {
            Some((index, _)) => taken[index] = true,
            None => reasons.push(Reason::DeviceNotGranted {
                kind: kind.into(),
                port: device.guest_port,
                irq: device.guest_irq,
                why: if candidates.clone().any(|it| fits(&it)) {
                    "has granted one that another guest uses".into()
                } else {
                    "has not granted one".into()
                },
            }),
        }
    }
}

fn check_user_devices(
    devices: &[UserDeviceDescription],
    host: &HostDescription,
    reasons: &mut Vec<Reason>,
) {
    for device in devices {
        let there = host
            .user_devices
            .iter()
            .find(|there| there.name == device.name);
        let have = match there {
            Some(there) if there.version == device.version => continue,
            Some(there) => format!("restores version {}", there.version),
            None => "has no such device".into(),
        };
        reasons.push(Reason::UserDevice {
            name: device.name.clone(),
            need: device.version,
            have,
        });
    }
}
