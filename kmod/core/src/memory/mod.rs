// SPDX-License-Identifier: GPL-2.0
//! Guest memory: which guest frames are RAM, where the host has them, and which were written.
//!
//! Lock order: the map's spin lock is innermost; nothing is called with it held but the page tables.
#![forbid(unsafe_code)]

pub mod dirty;
pub mod regions;

use crate::arch::x86::vmx::ept::{Ept, TablePages};
use core::ops::Range;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use dirty::DirtyBitmap;
use pvmm_hostabi::{
    Gfn, Gpa, Host, Hva, InvalidateSink, OutOfMemory, ResolveError, SpinLock, PAGE_SHIFT, PAGE_SIZE,
};
use regions::Regions;

/// How often a fault is tried again because the host took the page back in between.
const MAX_RETRIES: u32 = 1000;

/// Frames that are looked at with the map's lock held: some hundred microseconds' worth if all are mapped.
const FRAMES_AT_ONCE: usize = 1 << 16;

/// Why a guest page could not be mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultError {
    /// No memory is registered there: it is a device's, or nobody's.
    NotMemory,
    /// The host could not provide the page.
    Resolve(ResolveError),
    /// The host has no memory for the tables.
    OutOfMemory,
}

impl From<OutOfMemory> for FaultError {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

/// The map from guest frames to host frames, shared between the vCPU, the host's invalidations and the ioctls.
pub struct GuestMemory<H: Host> {
    regions: Regions,
    map: H::SpinLock<Ept<H::Page>>,
    ept_pointer: u64,
    /// Invalidations that have started, ever. A frame that was resolved before a change of it is stale.
    invalidations: AtomicU64,
    /// Invalidations that have started and not ended.
    invalidating: AtomicU32,
    /// Counts the changes after which cached translations must be dropped.
    flush_epoch: AtomicU64,
    /// vCPUs inside a window.
    windows: AtomicU32,
    logging: AtomicU32,
    dirty: DirtyBitmap<H>,
}

/// Cuts frames into parts that the map's lock may be held for.
fn parts(gfns: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let end = gfns.end;
    gfns.step_by(FRAMES_AT_ONCE)
        .map(move |start| start..end.min(start + FRAMES_AT_ONCE as u64))
}

impl<H: Host> GuestMemory<H> {
    /// The map of `regions`, with nothing mapped yet.
    pub fn new(regions: Regions) -> Result<Self, OutOfMemory> {
        let ept = Ept::new(H::page()?);
        let ept_pointer = ept.pointer();
        Ok(Self {
            dirty: DirtyBitmap::new(regions.end())?,
            regions,
            map: H::spin_lock(ept)?,
            ept_pointer,
            invalidations: AtomicU64::new(0),
            invalidating: AtomicU32::new(0),
            flush_epoch: AtomicU64::new(0),
            windows: AtomicU32::new(0),
            logging: AtomicU32::new(0),
        })
    }

    /// The memory's layout.
    pub const fn regions(&self) -> &Regions {
        &self.regions
    }

    /// The EPT pointer for a VMCS.
    pub const fn ept_pointer(&self) -> u64 {
        self.ept_pointer
    }

    /// A vCPU enters a window; afterwards it asks for [`GuestMemory::flush_epoch`]. The order of the two is what
    /// [`GuestMemory::flush`] relies on.
    pub fn window_opens(&self) {
        self.windows.fetch_add(1, Ordering::SeqCst);
    }

    /// A vCPU has left its window.
    pub fn window_closed(&self) {
        self.windows.fetch_sub(1, Ordering::SeqCst);
    }

    /// A vCPU must drop its cached translations before it enters the guest if this differs from when it last did.
    pub fn flush_epoch(&self) -> u64 {
        self.flush_epoch.load(Ordering::SeqCst)
    }

    /// Makes sure that no CPU uses a translation from before the call.
    ///
    /// A vCPU that is outside its window sees the new epoch before it enters the guest; one inside is brought out by an
    /// interrupt on every CPU.
    fn flush(&self) {
        self.flush_epoch.fetch_add(1, Ordering::SeqCst);
        if self.windows.load(Ordering::SeqCst) != 0 {
            H::run_on_all(&|| ());
        }
    }

    /// Maps the page of `gpa`. Process context of the owner.
    pub fn fault(&self, space: &H::AddressSpace, gpa: Gpa, write: bool) -> Result<(), FaultError> {
        let hva = self.regions.hva(gpa).ok_or(FaultError::NotMemory)?;
        let page = Hva(hva.0 & !(PAGE_SIZE - 1));
        let mut tables = TablePages::allocate(H::page)?;
        for _ in 0..MAX_RETRIES {
            let seen = self.invalidations.load(Ordering::SeqCst);
            let resolved = H::resolve(space, page, write).map_err(FaultError::Resolve)?;
            let mut map = self.map.lock();
            if self.invalidating.load(Ordering::SeqCst) == 0
                && self.invalidations.load(Ordering::SeqCst) == seen
            {
                map.map(gpa.gfn(), resolved.pfn, resolved.writable, &mut tables)?;
                return Ok(());
            }
        }
        // The host keeps taking the page back; let the guest run into the fault again rather than loop here.
        Ok(())
    }

    /// Whether page-modification logging should be on.
    pub fn is_logging(&self) -> bool {
        self.logging.load(Ordering::Relaxed) != 0
    }

    /// Starts dirty tracking, or stops it. When it has started, a write to any page is logged; a few pages that were
    /// written meanwhile may already be dirty.
    pub fn set_logging(&self, on: bool) {
        self.logging.store(u32::from(on), Ordering::SeqCst);
        if on {
            // The bitmap goes first: a page whose flag is cleared below and that is written at once is logged, and
            // that entry must stay, because its flag is set again.
            self.dirty.clear();
            // A vCPU that is in a window may run on without logging; bring it out before the flags are cleared.
            self.flush();
            for region in self.regions.iter() {
                for part in parts(region.gfns()) {
                    self.map.lock().clear_dirty(part);
                }
            }
        }
        self.flush();
    }

    /// Notes that the guest, or the monitor on its behalf, has written to a page. Any context.
    pub fn mark_dirty(&self, gfn: Gfn) {
        self.dirty.set(gfn);
    }

    /// Takes runs of dirty pages until there are no more or `take` returns false, and makes each clean again before the
    /// next is taken. Returns whether all were taken. The caller calls [`GuestMemory::finish_fetch`] before it reads a page.
    ///
    /// `take` is not called with a lock held.
    pub fn fetch_dirty(&self, mut take: impl FnMut(Range<u64>) -> bool) -> bool {
        // What the vCPUs have logged in their own buffers comes out with their windows.
        self.flush();
        self.dirty.take(|run| {
            self.map.lock().clear_dirty(run.clone());
            take(run)
        })
    }

    /// After this, a write to a page that was fetched is logged again.
    pub fn finish_fetch(&self) {
        self.flush();
    }

    /// Copies from guest memory. Stops at the first byte that is not memory. Process context of the owner.
    pub fn read(
        &self,
        space: &H::AddressSpace,
        gpa: Gpa,
        buffer: &mut [u8],
    ) -> Result<(), FaultError> {
        let mut at = gpa.0;
        let mut rest = buffer;
        while !rest.is_empty() {
            let hva = self.regions.hva(Gpa(at)).ok_or(FaultError::NotMemory)?;
            let in_page = (PAGE_SIZE - (at & (PAGE_SIZE - 1))) as usize;
            let (now, later) = rest.split_at_mut(in_page.min(rest.len()));
            H::read(space, hva, now).map_err(FaultError::Resolve)?;
            at = at
                .checked_add(now.len() as u64)
                .ok_or(FaultError::NotMemory)?;
            rest = later;
        }
        Ok(())
    }

    /// Copies to guest memory on the guest's behalf; the pages become dirty. Process context of the owner.
    pub fn write(
        &self,
        space: &H::AddressSpace,
        gpa: Gpa,
        buffer: &[u8],
    ) -> Result<(), FaultError> {
        let mut at = gpa.0;
        let mut rest = buffer;
        while !rest.is_empty() {
            let hva = self.regions.hva(Gpa(at)).ok_or(FaultError::NotMemory)?;
            let in_page = (PAGE_SIZE - (at & (PAGE_SIZE - 1))) as usize;
            let (now, later) = rest.split_at(in_page.min(rest.len()));
            H::write(space, hva, now).map_err(FaultError::Resolve)?;
            self.mark_dirty(Gfn(at >> PAGE_SHIFT));
            at = at
                .checked_add(now.len() as u64)
                .ok_or(FaultError::NotMemory)?;
            rest = later;
        }
        Ok(())
    }
}

impl<H: Host> InvalidateSink for GuestMemory<H> {
    fn invalidate_start(&self, range: Range<Hva>) {
        {
            let _map = self.map.lock();
            self.invalidating.fetch_add(1, Ordering::SeqCst);
            self.invalidations.fetch_add(1, Ordering::SeqCst);
        }
        // Nothing is mapped any more until the invalidation ends, so that the lock may be given up in between.
        let mut changed = false;
        for gfns in self.regions.gfns_of(range) {
            for part in parts(gfns) {
                changed |= self.map.lock().unmap(part);
            }
        }
        if changed {
            self.flush();
        }
    }

    fn invalidate_end(&self, _range: Range<Hva>) {
        self.invalidating.fetch_sub(1, Ordering::SeqCst);
    }
}
