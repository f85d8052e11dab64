// SPDX-License-Identifier: GPL-2.0
//! `/dev/pvmm`.

use crate::host::mem::Shared;
use crate::host::Linux;
use kernel::bindings;
use kernel::error::to_result;
use kernel::fs::File;
use kernel::ioctl::_IOC_SIZE;
use kernel::miscdevice::{MiscDevice, MiscDeviceOptions, MiscDeviceRegistration};
use kernel::prelude::*;
use kernel::sync::Arc;
use kernel::types::Opaque;
use pvmm_core::monitor::Monitor;
use pvmm_core::vm::{Error as RequestError, Vm};

/// The node. Registered while it lives, and pinned, since the kernel links its `miscdevice` into a list.
///
/// The kernel crate's own registration leaves `file_operations.owner` empty, so that the module could be unloaded under an
/// open file. This one sets it: `rmmod` is refused while a VM is open.
#[repr(C)]
pub(crate) struct Node {
    /// First, so that its address is the node's.
    misc: Opaque<bindings::miscdevice>,
    operations: bindings::file_operations,
    monitor: Arc<Monitor<Linux>>,
    registered: bool,
}

// SAFETY: the pointers in a `miscdevice` are followed by the kernel under its own locks; this type only registers and
// deregisters it, and the monitor may be shared between threads.
unsafe impl Send for Node {}
// SAFETY: as above; a shared reference gives access to the monitor only.
unsafe impl Sync for Node {}

impl Node {
    /// Makes the node appear.
    pub(crate) fn register(
        module: &'static ThisModule,
        monitor: Monitor<Linux>,
    ) -> Result<Pin<KBox<Self>>> {
        let mut raw = MiscDeviceOptions { name: c"pvmm" }.into_raw::<OpenFile>();
        raw.mode = 0o600;
        // SAFETY: `into_raw` stores a pointer to a static table.
        let mut operations = unsafe { core::ptr::read(raw.fops) };
        operations.owner = module.as_ptr();
        let monitor = Arc::new(monitor, GFP_KERNEL)?;
        let mut node = KBox::new(
            Self {
                misc: Opaque::new(raw),
                operations,
                monitor,
                registered: false,
            },
            GFP_KERNEL,
        )?;
        // SAFETY: the structure is not registered yet, so nobody else uses it; the table lies in the same box.
        unsafe { (*node.misc.get()).fops = &raw const node.operations };
        // SAFETY: the box is pinned below and stays until `drop` has deregistered the structure in it.
        to_result(unsafe { bindings::misc_register(node.misc.get()) })?;
        node.registered = true;
        Ok(KBox::into_pin(node))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.registered {
            // SAFETY: `register` has registered it, at this address.
            unsafe { bindings::misc_deregister(self.misc.get()) };
        }
    }
}

/// An open file.
pub(crate) struct OpenFile {
    vm: Vm<Linux>,
}

#[vtable]
impl MiscDevice for OpenFile {
    type Ptr = KBox<Self>;

    fn open(_file: &File, misc: &MiscDeviceRegistration<Self>) -> Result<KBox<Self>> {
        // SAFETY: the only `miscdevice` whose operations are this type's is the first field of a `Node`, which outlives
        // the open file: the file holds a reference to the module.
        let node = unsafe { &*misc.as_raw().cast::<Node>() };
        let vm = Vm::new(Shared::from_arc(node.monitor.clone())).map_err(|_| ENOMEM)?;
        Ok(KBox::new(Self { vm }, GFP_KERNEL)?)
    }

    fn ioctl(this: &Self, _file: &File, request: u32, argument: usize) -> Result<isize> {
        debug_assert!(_IOC_SIZE(request) == pvmm_uapi::request_size(request));
        match this.vm.ioctl(request, argument as u64) {
            Ok(value) => Ok(value as isize),
            Err(error) => Err(errno(error)),
        }
    }
}

fn errno(error: RequestError) -> Error {
    match error {
        RequestError::Invalid => EINVAL,
        RequestError::NoSuchRequest => ENOTTY,
        RequestError::Fault => EFAULT,
        RequestError::OutOfMemory => ENOMEM,
        RequestError::Busy => EBUSY,
        RequestError::Exists => EEXIST,
        RequestError::NotReady => ENXIO,
        RequestError::NoDevice => ENODEV,
        RequestError::WrongProcess => EPERM,
        RequestError::NotSupported => not_supported(),
        RequestError::NoSpace => ENOSPC,
        RequestError::Interrupted => EINTR,
        RequestError::NotAtRest => EAGAIN,
        RequestError::Failed => EIO,
    }
}

/// `EOPNOTSUPP`, which the kernel crate has no constant for.
pub(crate) fn not_supported() -> Error {
    Error::from_errno(-(bindings::EOPNOTSUPP as i32))
}
