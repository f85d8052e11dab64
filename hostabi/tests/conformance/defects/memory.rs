// SPDX-License-Identifier: GPL-2.0
//! Defects of the monitor's memory and of the process's.

use crate::defect::Defect;
use pvmm_hostabi::sim::{
    physical, SimAddressSpace, SimBox, SimHost, SimPage, SimShared, SimWatch, SimWords,
};
use pvmm_hostabi::{
    Fault, GuestMem, HostLog, HostMem, HostPage, Hpa, Hva, InvalidateSink, Level, OutOfMemory, Pfn,
    ResolveError, Resolved, UserCopy,
};
use std::cell::RefCell;
use std::mem::forget;
use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;

type Oom<T> = Result<T, OutOfMemory>;

/// The addresses that processes use.
const USER_HALF: Range<u64> = 4096..1 << 47;

defect! {
    /// The allocator's flag that asks for zeros is ignored.
    PagesAreDirty breaks ["a page is zeroed"] {
        fn page() -> Oom<SimPage> {
            let page = SimHost::page()?;
            page.words()[500].store(1, Relaxed);
            Ok(page)
        }
    }
}

defect! {
    /// What could be read is taken for all.
    PartialReadSucceeds breaks ["a guest read is all or an error"] {
        fn read(space: &SimAddressSpace, hva: Hva, buffer: &mut [u8]) -> Result<(), ResolveError> {
            SimHost::read(space, hva, buffer)
                .or_else(|_| SimHost::read(space, hva, &mut buffer[..1]))
        }
    }
}

defect! {
    /// The failure is written to the log, and the caller goes on with frame 0.
    UnmappedIsOnlyLogged breaks ["an unmapped address is refused, not only logged"] {
        fn resolve(space: &SimAddressSpace, hva: Hva, write: bool) -> Result<Resolved, ResolveError> {
            match SimHost::resolve(space, hva, write) {
                Err(ResolveError::Unmapped) if USER_HALF.contains(&hva.0) => {
                    SimHost::log(Level::Error, format_args!("nothing is mapped at {hva:#x}"));
                    Ok(Resolved { pfn: Pfn(0), writable: write })
                }
                other => other,
            }
        }
    }
}

thread_local! {
    /// Pages of this thread that live.
    static PAGES: RefCell<Vec<Hpa>> = const { RefCell::new(Vec::new()) };
}

defect! {
    /// The free destroys another page than the one that was meant.
    WrongPageIsFreed breaks ["dropping a page leaves the others alone"] {
        fn page() -> Oom<SimPage> {
            let page = SimHost::page()?;
            PAGES.with_borrow_mut(|pages| pages.push(page.phys()));
            Ok(page)
        }

        fn drop_page(page: SimPage) {
            PAGES.with_borrow_mut(|pages| pages.retain(|other| *other != page.phys()));
            let victim = PAGES.with_borrow(|pages| pages.last().copied());
            if let Some(words) = victim.and_then(physical) {
                words[7].store(0xdead, Relaxed);
            }
        }
    }
}

defect! {
    /// The free is left out because it crashed.
    PagesLeak breaks ["what is dropped is freed"] {
        fn drop_page(page: SimPage) {
            forget(page);
        }
    }
}

defect! {
    WordsLeak breaks ["what is dropped is freed"] {
        fn drop_words(words: SimWords) {
            forget(words);
        }
    }
}

defect! {
    PagesAreMisaligned breaks ["a page has an aligned physical address that stays"] {
        fn phys(page: &SimPage) -> Hpa {
            Hpa(page.phys().0 + 8)
        }
    }
}

defect! {
    /// A page that is written moves.
    PagesMove breaks ["a page has an aligned physical address that stays"] {
        fn phys(page: &SimPage) -> Hpa {
            Hpa(page.phys().0 ^ (page.words()[0].load(Relaxed) >> 63 << 40))
        }
    }
}

defect! {
    PagesAlias breaks ["pages do not share memory"] {
        fn phys(_: &SimPage) -> Hpa {
            Hpa(0x1000)
        }
    }
}

defect! {
    WordsAreDirty breaks ["an array of words has its length and is zeroed"] {
        fn words(count: usize) -> Oom<SimWords> {
            let words = SimHost::words(count)?;
            // The suite's own arrays of counters are spared.
            if let ([.., last], ..8192) = (&*words, count) {
                last.store(1, Relaxed);
            }
            Ok(words)
        }
    }
}

defect! {
    /// Only whole pages are allocated.
    WordsAreTooMany breaks ["an array of words has its length and is zeroed"] {
        fn words(count: usize) -> Oom<SimWords> {
            SimHost::words(count.checked_next_multiple_of(512).ok_or(OutOfMemory)?)
        }
    }
}

defect! {
    /// Arrays are physically contiguous, and so cannot be large.
    WordsAreSmall breaks ["an array of words may be megabytes large"] {
        fn words(count: usize) -> Oom<SimWords> {
            if count > 65536 {
                return Err(OutOfMemory);
            }
            SimHost::words(count)
        }
    }
}

defect! {
    /// The size in bytes is computed without a check.
    WordsWrap breaks ["more words than an address space holds are refused"] {
        fn words(count: usize) -> Oom<SimWords> {
            SimHost::words(count.wrapping_mul(8) / 8)
        }
    }
}

defect! {
    BoxesLeak breaks ["a box holds its value and drops it once"] {
        fn drop_box<T>(value: SimBox<T>) {
            forget(value);
        }
    }
}

defect! {
    SharedLeak breaks ["a shared value is dropped once, by its last owner"] {
        fn drop_shared<T>(value: SimShared<T>) {
            forget(value);
        }
    }
}

defect! {
    NoSpaceIsCurrent breaks ["the caller runs in its own address space"] {
        fn is_current(_: &SimAddressSpace) -> bool {
            false
        }
    }
}

defect! {
    /// The kernel's own mappings are looked at too.
    KernelResolves breaks ["an address outside of user memory does not resolve"] {
        fn resolve(space: &SimAddressSpace, hva: Hva, write: bool) -> Result<Resolved, ResolveError> {
            if hva.0 >> 63 == 1 {
                return Ok(Resolved { pfn: Pfn(1), writable: write });
            }
            SimHost::resolve(space, hva, write)
        }
    }
}

defect! {
    /// Copy-on-write is not broken.
    ResolvedReadOnly breaks ["a page resolved for writing is writable and keeps its frame until told"] {
        fn resolve(space: &SimAddressSpace, hva: Hva, _: bool) -> Result<Resolved, ResolveError> {
            SimHost::resolve(space, hva, false)
        }
    }
}

defect! {
    WatchIsDeaf breaks ["a page resolved for writing is writable and keeps its frame until told"] {
        fn watched(_: &SimAddressSpace) -> SimAddressSpace {
            SimAddressSpace::new()
        }
    }
}

defect! {
    InvalidationNeverEnds breaks ["a page resolved for writing is writable and keeps its frame until told"] {
        fn invalidate_end<S: InvalidateSink>(_: &S, _: Range<Hva>) {}
    }
}

defect! {
    WatchOutlivesDrop breaks ["a dropped watch hears nothing"] {
        fn drop_watch<S: InvalidateSink>(watch: SimWatch<S>) {
            forget(watch);
        }
    }
}

defect! {
    GuestWritesAreLost breaks ["a guest read returns what a guest write stored"] {
        fn write(space: &SimAddressSpace, hva: Hva, buffer: &[u8]) -> Result<(), ResolveError> {
            SimHost::read(space, hva, &mut vec![0; buffer.len()])
        }
    }
}

defect! {
    PartialWriteSucceeds breaks ["a guest write beyond the mapping is an error"] {
        fn write(space: &SimAddressSpace, hva: Hva, buffer: &[u8]) -> Result<(), ResolveError> {
            SimHost::write(space, hva, buffer)
                .or_else(|_| SimHost::write(space, hva, &buffer[..1]))
        }
    }
}

defect! {
    /// The last byte is not copied.
    CopyOutIsShort breaks ["what was copied out is copied in"] {
        fn copy_out(address: u64, buffer: &[u8]) -> Result<(), Fault> {
            let last = address.saturating_add(buffer.len() as u64 - 1);
            let mut before = [0];
            SimHost::copy_in(last, &mut before)?;
            SimHost::copy_out(address, buffer)?;
            SimHost::copy_out(last, &before)
        }
    }
}

defect! {
    PartialCopyInSucceeds breaks ["a copy in is all or a fault"] {
        fn copy_in(address: u64, buffer: &mut [u8]) -> Result<(), Fault> {
            SimHost::copy_in(address, buffer)
                .or_else(|_| SimHost::copy_in(address, &mut buffer[..1]))
        }
    }
}

defect! {
    PartialCopyOutSucceeds breaks ["a copy out beyond the mapping faults"] {
        fn copy_out(address: u64, buffer: &[u8]) -> Result<(), Fault> {
            SimHost::copy_out(address, buffer)
                .or_else(|_| SimHost::copy_out(address, &buffer[..1]))
        }
    }
}

defect! {
    /// The check of the address is left out.
    KernelIsCopied breaks ["a copy with an address outside of user memory faults"] {
        fn copy_in(address: u64, buffer: &mut [u8]) -> Result<(), Fault> {
            if address >> 63 == 1 {
                return Ok(());
            }
            SimHost::copy_in(address, buffer)
        }
    }
}
