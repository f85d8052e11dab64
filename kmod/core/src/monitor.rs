// SPDX-License-Identifier: GPL-2.0
//! What is known once per loaded module: the host's VT-x and its features.
#![forbid(unsafe_code)]

use crate::arch::x86::vmx::capability::{Missing, VmxCapability};
use crate::arch::x86::{host_xcr0, read_capability};
use core::marker::PhantomData;
use core::sync::atomic::{AtomicU32, Ordering};
use pvmm_hostabi::{Host, TscKhz, VmxUnavailable};
use pvmm_uapi::{Capabilities, API_VERSION, MAX_VCPUS};

/// Why the monitor can't work on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadError {
    /// VT-x is not to be had.
    Vmx(VmxUnavailable),
    /// A part of VT-x is missing.
    Missing(&'static str),
    /// The TSC differs between CPUs, stops, or has no known rate.
    UnstableTsc,
}

impl core::fmt::Display for LoadError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Vmx(VmxUnavailable::Absent) => {
                write!(f, "this CPU has no VT-x (CPUID.1:ECX.VMX is 0)")
            }
            Self::Vmx(VmxUnavailable::DisabledByFirmware) => write!(
                f,
                "VT-x is disabled by firmware (IA32_FEATURE_CONTROL); enable it in the firmware's setup"
            ),
            Self::Vmx(VmxUnavailable::Busy) => write!(
                f,
                "VT-x is owned by another hypervisor (CR4.VMXE is set); unload it first, for KVM: rmmod kvm_intel"
            ),
            Self::Vmx(VmxUnavailable::Failed) => write!(f, "VMXON failed on a CPU"),
            Self::Missing(name) => write!(f, "this CPU's VT-x lacks {name}"),
            Self::UnstableTsc => write!(
                f,
                "the TSC of this host is not stable; guests could not keep time"
            ),
        }
    }
}

/// The monitor on one host.
pub struct Monitor<H: Host> {
    /// The host's VT-x.
    pub capability: VmxCapability,
    /// The host's XCR0.
    pub host_xcr0: u64,
    next_vcpu: AtomicU32,
    host: PhantomData<fn() -> H>,
}

impl<H: Host> Monitor<H> {
    /// Checks the host. Process context.
    pub fn new() -> Result<Self, LoadError> {
        H::probe().map_err(LoadError::Vmx)?;
        if !H::tsc_is_stable() || H::tsc_khz().0 == 0 {
            return Err(LoadError::UnstableTsc);
        }
        let capability =
            read_capability::<H>().map_err(|Missing(name)| LoadError::Missing(name))?;
        Ok(Self::of(capability, host_xcr0::<H>()))
    }

    /// The monitor of a host whose VT-x is known already. Where it isn't what the CPU has, only what opens no window works:
    /// enough to try requests on a simulated host.
    pub const fn of(capability: VmxCapability, host_xcr0: u64) -> Self {
        Self {
            capability,
            host_xcr0,
            next_vcpu: AtomicU32::new(0),
            host: PhantomData,
        }
    }

    /// A number for a vCPU's VPID, below 2^16 - 1.
    pub fn vcpu_number(&self) -> u16 {
        (self.next_vcpu.fetch_add(1, Ordering::Relaxed) % 0xffff) as u16
    }

    /// The host's TSC rate.
    pub fn tsc_khz(&self) -> TscKhz {
        H::tsc_khz()
    }

    /// What [`pvmm_uapi::GET_CAPABILITIES`] answers.
    pub fn capabilities(&self) -> Capabilities {
        let mut module_version = [0; 32];
        for (place, byte) in module_version.iter_mut().zip(crate::VERSION.bytes()) {
            *place = byte;
        }
        Capabilities {
            features: self.capability.features(),
            api_version: API_VERSION,
            max_vcpus: MAX_VCPUS,
            host_cpus: H::online(),
            tsc_khz: H::tsc_khz().0,
            supported_xcr0: self.host_xcr0 & crate::arch::x86::xsave::GUEST_XCR0,
            vmx_basic: self.capability.basic,
            vmx_ept_vpid_cap: self.capability.ept_vpid,
            vmx_procbased_ctls2: self.capability.secondary_allowed,
            module_version,
        }
    }
}
