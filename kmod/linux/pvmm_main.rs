// SPDX-License-Identifier: GPL-2.0
//! `pvmm.ko`: the Linux port of the pvmm monitor.
//!
//! This crate is the only one that knows Linux: it implements the host ABI (`host/`) over the kernel's functions and gives
//! the monitor its device node. What a request means is decided in the core.

use kernel::prelude::*;

mod device;
mod host;
mod selftest;
mod shim;

use host::Linux;
use pvmm_core::monitor::{LoadError, Monitor};
use pvmm_hostabi::VmxUnavailable;

module! {
    type: Pvmm,
    name: "pvmm",
    authors: ["the pvmm developers"],
    description: "Migration VMM for guests that own physical devices",
    license: "GPL",
    params: {
        selftest: i32 {
            default: 0,
            description: "1 runs the host-ABI conformance suite at load and fails the load if a contract does not hold",
        },
    },
}

/// The loaded module. Fields drop in order: the node first, so that nobody can come in any more, and the check last, when
/// nothing may be left.
struct Pvmm {
    _node: Pin<KBox<device::Node>>,
    _regions: host::vmx::Regions,
    _leaks: host::mem::LeakCheck,
}

/// The error number that `insmod` reports.
fn load_errno(error: LoadError) -> Error {
    match error {
        LoadError::Vmx(VmxUnavailable::Absent) => ENODEV,
        LoadError::Vmx(VmxUnavailable::DisabledByFirmware) => EPERM,
        LoadError::Vmx(VmxUnavailable::Busy) => EBUSY,
        LoadError::Vmx(VmxUnavailable::Failed) => EIO,
        LoadError::Missing(_) | LoadError::UnstableTsc => device::not_supported(),
    }
}

impl kernel::Module for Pvmm {
    fn init(module: &'static ThisModule) -> Result<Self> {
        let regions = host::vmx::Regions::allocate()?;
        let monitor = Monitor::<Linux>::new().map_err(|error| {
            pr_err!("not loaded: {}\n", format_args!("{error}"));
            load_errno(error)
        })?;
        if *module_parameters::selftest.value() != 0 {
            selftest::run()?;
        }
        let node = device::Node::register(module, monitor)?;
        pr_info!(
            "version {}, VT-x with EPT and page-modification logging\n",
            pvmm_core::VERSION
        );
        Ok(Self {
            _node: node,
            _regions: regions,
            _leaks: host::mem::LeakCheck,
        })
    }
}
