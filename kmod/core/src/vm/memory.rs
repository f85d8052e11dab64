// SPDX-License-Identifier: GPL-2.0
//! Memory requests: regions and the dirty log.
#![forbid(unsafe_code)]

use super::dispatch::{element, read, write, Error};
use super::Vm;
use crate::memory::dirty::MAX_RUN;
use crate::memory::regions::RegionError;
use pvmm_hostabi::{Gfn, Host, Mutex};
use pvmm_uapi::{DirtyFetch, DirtyLog, DirtyRange, MemoryRegion};

impl<H: Host> Vm<H> {
    #[inline(never)]
    pub(super) fn set_memory_region(&self, region: &MemoryRegion) -> Result<(), Error> {
        let mut setup = self.setup.lock();
        let setup = setup.as_mut().ok_or(Error::NotReady)?;
        if self.live.lock().is_some() {
            // The layout is fixed once a vCPU uses it.
            return Err(Error::Busy);
        }
        setup.regions.add(region).map_err(|error| match error {
            RegionError::Invalid => Error::Invalid,
            RegionError::Overlap => Error::Exists,
            RegionError::TooMany => Error::NoSpace,
        })
    }

    #[inline(never)]
    pub(super) fn dirty_log(&self, log: &DirtyLog) -> Result<(), Error> {
        if log.enable > 1 || log.reserved != 0 {
            return Err(Error::Invalid);
        }
        self.parts()?.memory.set_logging(log.enable != 0);
        Ok(())
    }

    #[inline(never)]
    pub(super) fn dirty_fetch(&self, argument: u64) -> Result<(), Error> {
        let mut fetch: DirtyFetch = read::<H, _>(argument)?;
        let parts = self.parts()?;
        if !parts.memory.is_logging() {
            return Err(Error::Invalid);
        }
        let room = fetch.count;
        let mut written = 0;
        let mut fault = None;
        let complete = parts.memory.fetch_dirty(|run| {
            if written == room {
                return false;
            }
            let range = DirtyRange {
                gfn: run.start,
                pages: run.end - run.start,
            };
            let copied = element::<DirtyRange>(fetch.ranges, written as usize)
                .and_then(|address| write::<H, _>(address, &range));
            match copied {
                Ok(()) => written += 1,
                Err(error) => fault = Some(error),
            }
            fault.is_none()
        });
        fetch.count = written;
        fetch.more = u32::from(!complete);
        let reported = match fault {
            None => write::<H, _>(argument, &fetch),
            Some(error) => Err(error),
        };
        if let Err(error) = reported {
            self.restore_dirty(&fetch, &parts);
            return Err(error);
        }
        parts.memory.finish_fetch();
        Ok(())
    }

    /// The caller will not learn of what was fetched: it is dirty again. What can't be read back any more is memory that the
    /// caller has made inaccessible itself, and with it the list.
    fn restore_dirty(&self, fetch: &DirtyFetch, parts: &super::Parts<H>) {
        for index in 0..fetch.count as usize {
            let range = element::<DirtyRange>(fetch.ranges, index)
                .and_then(|address| read::<H, DirtyRange>(address));
            let Ok(range) = range else { return };
            // What is read may not be what was written; no run was longer than this.
            let end = range
                .gfn
                .saturating_add(range.pages.min(MAX_RUN))
                .min(parts.memory.regions().end());
            for gfn in range.gfn..end {
                parts.memory.mark_dirty(Gfn(gfn));
            }
        }
    }
}
