// SPDX-License-Identifier: GPL-2.0
//! Requests that look at devices: their state now, and what the guest does to them.
#![forbid(unsafe_code)]

use super::dispatch::{element, read, write, Error};
use super::Vm;
use crate::arch::x86::registers::rdtsc;
use crate::arch::zeroed;
use crate::devices::Sink;
use crate::record::trace::TraceError;
use pvmm_hostabi::Host;
use pvmm_uapi::*;

impl From<TraceError> for Error {
    fn from(error: TraceError) -> Self {
        match error {
            TraceError::Taken => Self::Exists,
            TraceError::OutOfMemory => Self::OutOfMemory,
        }
    }
}

impl<H: Host> Vm<H> {
    #[inline(never)]
    pub(super) fn device_peek(&self, argument: u64) -> Result<(), Error> {
        let mut request: DevicePeek = read::<H, _>(argument)?;
        if request.reserved != 0 {
            return Err(Error::Invalid);
        }
        let mut storage = zeroed::<H, [StateRecord; MAX_STATE_RECORDS as usize]>()?;
        let room = request.count.min(MAX_STATE_RECORDS) as usize;
        let count = self.with_vcpu(|vcpu, _| {
            let now = vcpu.platform.now(rdtsc());
            let device = request.device;
            let recorded = vcpu.platform.is_recorded(device);
            let peeked = vcpu.platform.with_device(device, now, |recorder, backend| {
                let log = recorder.log();
                request.kind = recorder.number();
                // It may have a log of what the monitor itself did before.
                request.log_length = log.entries.len() as u32;
                request.log_bound = log.bound as u32;
                request.flags = match recorded {
                    true => 0,
                    false => PEEK_UNRECORDED,
                };
                if log.overflowed {
                    request.flags |= PEEK_OVERFLOWED;
                }
                let mut sink = Sink::new(storage.get_mut(..room).unwrap_or(&mut []));
                let result = recorder.peek(recorded, backend, &mut sink);
                result.map(|()| sink.len())
            });
            request.backend = vcpu.platform.backend(device);
            peeked.ok_or(Error::Invalid)?.map_err(|_| Error::NoSpace)
        })?;
        for (index, record) in storage.iter().take(count).enumerate() {
            write::<H, _>(element::<StateRecord>(request.records, index)?, record)?;
        }
        request.count = count as u32;
        write::<H, _>(argument, &request)
    }

    #[inline(never)]
    pub(super) fn device_trace(&self, argument: u64) -> Result<(), Error> {
        let mut request: DeviceTrace = read::<H, _>(argument)?;
        if request.reserved != 0 {
            return Err(Error::Invalid);
        }
        // Not the vCPU, which runs meanwhile.
        let control = self.parts()?.control;
        let tap = control.tap();
        match request.operation {
            TRACE_START => tap.start(request.device)?,
            TRACE_STOP if tap.stop(request.device) => {}
            TRACE_FETCH => {
                let mut entries = zeroed::<H, [TraceEntry; MAX_TRACE_ENTRIES as usize]>()?;
                let room = request.count.min(MAX_TRACE_ENTRIES) as usize;
                let into = entries.get_mut(..room).unwrap_or(&mut []);
                let (count, lost) = tap.fetch(request.device, into).ok_or(Error::Invalid)?;
                for (index, entry) in entries.iter().take(count).enumerate() {
                    write::<H, _>(element::<TraceEntry>(request.entries, index)?, entry)?;
                }
                request.count = count as u32;
                request.lost = lost;
            }
            _ => return Err(Error::Invalid),
        }
        write::<H, _>(argument, &request)
    }
}
