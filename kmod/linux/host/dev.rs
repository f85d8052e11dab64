// SPDX-License-Identifier: GPL-2.0
//! Ports and interrupt lines of the host's devices.

use super::mem::Shared;
use super::Linux;
use crate::shim;
use core::ffi::c_void;
use core::marker::PhantomData;
use kernel::prelude::*;
use pvmm_hostabi::{ClaimError, HostDev, IrqSink, Ports};

/// A range of the kernel's port resource.
pub(crate) struct PortRange {
    base: u16,
    count: u16,
}

impl PortRange {
    fn port(&self, offset: u16, bytes: u8) -> Option<u16> {
        let inside = matches!(bytes, 1 | 2 | 4)
            && offset
                .checked_add(u16::from(bytes))
                .is_some_and(|end| end <= self.count);
        if inside {
            self.base.checked_add(offset)
        } else {
            None
        }
    }
}

impl Drop for PortRange {
    fn drop(&mut self) {
        // SAFETY: claimed in `claim_ports`.
        unsafe { shim::pvmm_release_ports(self.base, self.count) };
    }
}

impl Ports for PortRange {
    fn base(&self) -> u16 {
        self.base
    }

    fn count(&self) -> u16 {
        self.count
    }

    fn read(&self, offset: u16, bytes: u8) -> u32 {
        let absent = u32::MAX >> (32 - 8 * u32::from(bytes.clamp(1, 4)));
        // SAFETY: the port is claimed, so no driver of the host is on it.
        self.port(offset, bytes)
            .map_or(absent, |port| unsafe { shim::pvmm_port_in(port, bytes) })
    }

    fn write(&self, offset: u16, bytes: u8, value: u32) {
        if let Some(port) = self.port(offset, bytes) {
            // SAFETY: the port is claimed, so no driver of the host is on it.
            unsafe { shim::pvmm_port_out(port, bytes, value) };
        }
    }
}

/// A requested interrupt.
pub(crate) struct Irq<S: IrqSink> {
    number: u32,
    sink: *const S,
    owns: PhantomData<Shared<S>>,
}

// SAFETY: the sink is `Send + Sync`, and the interrupt may be freed from any thread.
unsafe impl<S: IrqSink> Send for Irq<S> {}
// SAFETY: nothing can be done with a shared reference.
unsafe impl<S: IrqSink> Sync for Irq<S> {}

impl<S: IrqSink> Irq<S> {
    unsafe extern "C" fn handle(_irq: i32, context: *mut c_void) -> u32 {
        // SAFETY: the context is the sink, which lives until `free_irq` has returned.
        unsafe { &*context.cast::<S>() }.interrupt();
        // IRQ_HANDLED
        1
    }
}

impl<S: IrqSink> Drop for Irq<S> {
    fn drop(&mut self) {
        // SAFETY: requested in `claim_irq` with this context. `free_irq` waits for running handlers, after which the
        // reference can be taken back.
        unsafe {
            shim::pvmm_release_irq(self.number, self.sink.cast_mut().cast());
            drop(Shared::from_raw(self.sink));
        }
    }
}

impl HostDev for Linux {
    type Ports = PortRange;
    type Irq<S: IrqSink> = Irq<S>;

    fn claim_ports(base: u16, count: u16) -> Result<PortRange, ClaimError> {
        if count == 0 || base.checked_add(count - 1).is_none() {
            return Err(ClaimError::Invalid);
        }
        // SAFETY: a range inside the port space.
        let resource = unsafe { shim::pvmm_claim_ports(base, count) };
        if resource.is_null() {
            return Err(ClaimError::Busy);
        }
        Ok(PortRange { base, count })
    }

    fn claim_irq<S: IrqSink>(irq: u32, sink: Shared<S>) -> Result<Irq<S>, ClaimError> {
        if irq > 15 {
            return Err(ClaimError::Invalid);
        }
        let sink = sink.into_raw();
        // SAFETY: the context is a reference-counted sink that lives until the interrupt is freed.
        let error = unsafe { shim::pvmm_claim_irq(irq, Irq::<S>::handle, sink.cast_mut().cast()) };
        if error == 0 {
            return Ok(Irq {
                number: irq,
                sink,
                owns: PhantomData,
            });
        }
        // SAFETY: not requested, so nobody else has the reference.
        drop(unsafe { Shared::from_raw(sink) });
        Err(match error {
            error if error == EBUSY.to_errno() => ClaimError::Busy,
            error if error == ENOMEM.to_errno() => ClaimError::OutOfMemory,
            _ => ClaimError::Invalid,
        })
    }
}
