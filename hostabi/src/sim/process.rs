// SPDX-License-Identifier: GPL-2.0
//! The simulated host's processes: address spaces whose pages come, go and move as a kernel's do.
//!
//! A page that was never written is one shared frame of zeros; writing it gives it a frame of its own, which is an
//! invalidation. Taking a page back ([`SimAddressSpace::take_back`]) saves its bytes and frees the frame, so that who
//! still uses the frame is found out; the next access brings the bytes back, in another frame.

use super::frames::{OwnedFrame, Words};
use super::lock;
use super::machine::{Counted, Kind};
use super::mem::SimShared;
use super::thread::{allocate, current, process_context, Running, Task};
use super::SimHost;
use crate::{
    Fault, GuestMem, Hva, InvalidateSink, OutOfMemory, ResolveError, Resolved, UserCopy,
    WatchError, PAGE_SHIFT, PAGE_SIZE,
};
use core::ops::Range;
use std::boxed::Box;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::vec::Vec;

/// Where a process's first mapping lies.
const FIRST: u64 = 0x7f00_0000_0000;
/// Addresses from here on are not the process's.
const LIMIT: u64 = 0x7fff_ffff_f000;

/// What a page holds.
enum Content {
    /// Zeros, and nobody has been given a frame.
    Untouched,
    /// Zeros; the shared frame of zeros may be in use.
    Zero,
    /// Bytes in a frame.
    Frame(OwnedFrame),
    /// Bytes that were taken out of their frame.
    Saved(Box<[u64; 512]>),
}

struct Page {
    writable: bool,
    content: Content,
}

#[derive(Default)]
struct SpaceState {
    /// Pages by number.
    pages: BTreeMap<u64, Page>,
    watchers: Vec<Arc<dyn Watcher>>,
    /// Invalidations that have started and not ended.
    open: u32,
    /// Bytes of address space given out so far.
    mapped: u64,
}

#[derive(Default)]
struct Space {
    state: Mutex<SpaceState>,
    /// The number of open invalidations has fallen.
    settled: Condvar,
}

/// The address space of a process. Cheap to clone; a clone is the same space.
#[derive(Clone, Default)]
pub struct SimAddressSpace(Arc<Space>);

/// The one frame of zeros. Whoever writes it has ignored [`Resolved::writable`].
fn zeros() -> &'static OwnedFrame {
    static ZEROS: OnceLock<OwnedFrame> = OnceLock::new();
    let frame = ZEROS.get_or_init(OwnedFrame::zeroed);
    assert!(
        frame.words().iter().all(|word| word.load(Relaxed) == 0),
        "somebody has written a frame that was resolved for reading only"
    );
    frame
}

fn page_numbers(range: &Range<Hva>) -> Range<u64> {
    range.start.0 >> PAGE_SHIFT..range.end.0.div_ceil(PAGE_SIZE)
}

/// How a page is asked for.
#[derive(Clone, Copy)]
struct Access {
    write: bool,
    /// An absent page's arrival may be cut short by a signal.
    interruptible: bool,
}

impl SimAddressSpace {
    /// An empty address space.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the calling thread run in this space.
    pub fn adopt(&self) {
        current(|thread| thread.set_process(Some(self.clone())));
    }

    /// Maps `pages` pages of zeros, readable and writable, with unmapped pages on both sides.
    ///
    /// # Panics
    ///
    /// If the address space has no room.
    pub fn map(&self, pages: u64) -> Range<Hva> {
        let mut state = lock(&self.0.state);
        let start = FIRST + state.mapped + PAGE_SIZE;
        let end = start + pages * PAGE_SIZE;
        assert!(end < LIMIT, "no room for {pages} pages");
        state.mapped = end - FIRST;
        for number in page_numbers(&(Hva(start)..Hva(end))) {
            let page = Page {
                writable: true,
                content: Content::Untouched,
            };
            state.pages.insert(number, page);
        }
        Hva(start)..Hva(end)
    }

    /// Removes the pages of `range`.
    pub fn unmap(&self, range: Range<Hva>) {
        let _invalidation = self.change(range, |pages, number| {
            pages.remove(&number);
        });
    }

    /// Lets the pages of `range` be written, or only read.
    pub fn protect(&self, range: Range<Hva>, writable: bool) {
        let _invalidation = self.change(range, |pages, number| {
            if let Some(page) = pages.get_mut(&number) {
                page.writable = writable;
            }
        });
    }

    /// Takes the frames of `range` away, as a host short of memory does. The bytes stay.
    pub fn take_back(&self, range: Range<Hva>) {
        drop(self.invalidate(range));
    }

    /// Like [`SimAddressSpace::take_back`], but the invalidation stays open until the result is dropped.
    pub fn invalidate(&self, range: Range<Hva>) -> Invalidation {
        self.change(range, |pages, number| {
            if let Some(page) = pages.get_mut(&number) {
                page.content = match std::mem::replace(&mut page.content, Content::Untouched) {
                    Content::Frame(frame) => {
                        let words = frame.words();
                        Content::Saved(Box::new(std::array::from_fn(|i| words[i].load(Relaxed))))
                    }
                    Content::Zero => Content::Untouched,
                    other => other,
                };
            }
        })
    }

    /// Ends the process: nothing is mapped any more, and the invalidation that says so does not end.
    pub fn exit(&self) {
        self.change(Hva(0)..Hva(LIMIT), |pages, number| {
            pages.remove(&number);
        })
        .close_silently();
    }

    /// Reads as the process itself does.
    pub fn load(&self, hva: Hva, buffer: &mut [u8]) -> Result<(), Fault> {
        self.read_bytes(hva, buffer, false).map_err(|_| Fault)
    }

    /// Writes as the process itself does.
    pub fn store(&self, hva: Hva, buffer: &[u8]) -> Result<(), Fault> {
        self.write_bytes(hva, buffer, false).map_err(|_| Fault)
    }

    fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Tells the watchers, then applies `change` to the number of each mapped page of `range`.
    #[track_caller]
    fn change(
        &self,
        range: Range<Hva>,
        change: impl Fn(&mut BTreeMap<u64, Page>, u64),
    ) -> Invalidation {
        process_context("an invalidation");
        let watchers = {
            let mut state = lock(&self.0.state);
            state.open += 1;
            state.watchers.clone()
        };
        for watcher in &watchers {
            watcher.start(&range);
        }
        let mut state = lock(&self.0.state);
        let numbers: Vec<u64> = state
            .pages
            .range(page_numbers(&range))
            .map(|(number, _)| *number)
            .collect();
        for number in numbers {
            change(&mut state.pages, number);
        }
        drop(state);
        Invalidation {
            space: self.clone(),
            watchers,
            range,
        }
    }

    /// Brings a page in and shows its frame to `f`. Whether it may be written is told beside it.
    fn with_frame<R>(
        &self,
        number: u64,
        access: Access,
        f: impl FnOnce(&OwnedFrame, bool) -> R,
    ) -> Result<R, ResolveError> {
        loop {
            let mut state = lock(&self.0.state);
            let page = state.pages.get_mut(&number).ok_or(ResolveError::Unmapped)?;
            if access.write && !page.writable {
                return Err(ResolveError::Unmapped);
            }
            match &mut page.content {
                Content::Frame(frame) => return Ok(f(frame, page.writable)),
                Content::Untouched | Content::Zero if !access.write => {
                    page.content = Content::Zero;
                    return Ok(f(zeros(), false));
                }
                Content::Zero => {
                    // Whoever uses the frame of zeros must let go of it before the page gets its own.
                    drop(state);
                    let start = Hva(number << PAGE_SHIFT);
                    self.take_back(start..Hva(start.0 + PAGE_SIZE));
                }
                absent => {
                    if access.interruptible && Task::current().has_signal() {
                        return Err(ResolveError::Interrupted);
                    }
                    allocate("a page of the process").map_err(|_| ResolveError::OutOfMemory)?;
                    let frame = OwnedFrame::zeroed();
                    if let Content::Saved(saved) = absent {
                        for (word, value) in frame.words().iter().zip(saved.iter()) {
                            word.store(*value, Relaxed);
                        }
                    }
                    *absent = Content::Frame(frame);
                }
            }
        }
    }

    /// Calls `f` with each page's words, the first byte's offset in them, and the bytes' place in the buffer.
    fn for_each_page(
        &self,
        hva: Hva,
        length: usize,
        access: Access,
        mut f: impl FnMut(&Words, usize, Range<usize>),
    ) -> Result<(), ResolveError> {
        let end = hva.0.checked_add(length as u64);
        if end.is_none_or(|end| end > LIMIT) {
            return Err(ResolveError::Unmapped);
        }
        let mut done = 0;
        while done < length {
            let address = hva.0 + done as u64;
            let offset = (address % PAGE_SIZE) as usize;
            let count = (PAGE_SIZE as usize - offset).min(length - done);
            self.with_frame(address >> PAGE_SHIFT, access, |frame, _| {
                f(frame.words(), offset, done..done + count);
            })?;
            done += count;
        }
        Ok(())
    }

    fn read_bytes(
        &self,
        hva: Hva,
        buffer: &mut [u8],
        interruptible: bool,
    ) -> Result<(), ResolveError> {
        let access = Access {
            write: false,
            interruptible,
        };
        self.for_each_page(hva, buffer.len(), access, |words, offset, place| {
            for (at, byte) in (offset..).zip(&mut buffer[place]) {
                *byte = words[at / 8].load(Relaxed).to_le_bytes()[at % 8];
            }
        })
    }

    fn write_bytes(
        &self,
        hva: Hva,
        buffer: &[u8],
        interruptible: bool,
    ) -> Result<(), ResolveError> {
        let access = Access {
            write: true,
            interruptible,
        };
        self.for_each_page(hva, buffer.len(), access, |words, offset, place| {
            for (at, byte) in (offset..).zip(&buffer[place]) {
                let (shift, mask) = (8 * (at % 8), 0xff << (8 * (at % 8)));
                let value = u64::from(*byte) << shift;
                // A guest may write the word's other bytes at the same time.
                let _always_some =
                    words[at / 8].fetch_update(Relaxed, Relaxed, |old| Some(old & !mask | value));
            }
        })
    }
}

/// An invalidation that has started; ends when dropped.
pub struct Invalidation {
    space: SimAddressSpace,
    watchers: Vec<Arc<dyn Watcher>>,
    range: Range<Hva>,
}

impl Invalidation {
    /// Ends it without telling the watchers.
    fn close_silently(mut self) {
        self.watchers.clear();
    }
}

impl Drop for Invalidation {
    fn drop(&mut self) {
        for watcher in &self.watchers {
            watcher.end(&self.range);
        }
        lock(&self.space.0.state).open -= 1;
        self.space.0.settled.notify_all();
    }
}

/// An [`InvalidateSink`] of any type.
trait Watcher: Send + Sync {
    fn start(&self, range: &Range<Hva>);
    fn end(&self, range: &Range<Hva>);
}

struct Watched<S: InvalidateSink> {
    /// `None` once the watch is dropped.
    sink: Mutex<Option<SimShared<S>>>,
    running: Running,
}

impl<S: InvalidateSink> Watched<S> {
    fn call(&self, f: impl FnOnce(&S)) {
        // Counted before the sink is looked for, so that a drop that comes now waits for the call.
        let _call = self.running.begin();
        let sink = lock(&self.sink).clone();
        if let Some(sink) = &sink {
            let before = current(|thread| thread.in_sink.replace(true));
            f(sink);
            current(|thread| thread.in_sink.set(before));
        }
    }
}

impl<S: InvalidateSink> Watcher for Watched<S> {
    fn start(&self, range: &Range<Hva>) {
        self.call(|sink| sink.invalidate_start(range.clone()));
    }

    fn end(&self, range: &Range<Hva>) {
        self.call(|sink| sink.invalidate_end(range.clone()));
    }
}

/// A registration of an [`InvalidateSink`].
pub struct SimWatch<S: InvalidateSink> {
    space: SimAddressSpace,
    watched: Arc<Watched<S>>,
    _count: Counted,
}

impl<S: InvalidateSink> Drop for SimWatch<S> {
    fn drop(&mut self) {
        process_context("dropping a watch");
        let me = Arc::as_ptr(&self.watched).addr();
        lock(&self.space.0.state)
            .watchers
            .retain(|watcher| Arc::as_ptr(watcher).addr() != me);
        let sink = lock(&self.watched.sink).take();
        self.watched.running.wait();
        drop(sink);
    }
}

impl GuestMem for SimHost {
    type AddressSpace = SimAddressSpace;
    type Watch<S: InvalidateSink> = SimWatch<S>;

    #[track_caller]
    fn current_address_space() -> Result<SimAddressSpace, OutOfMemory> {
        allocate("GuestMem::current_address_space")?;
        Ok(current(|thread| thread.process()))
    }

    fn is_current(space: &SimAddressSpace) -> bool {
        current(|thread| thread.process()).is_same(space)
    }

    #[track_caller]
    fn watch<S: InvalidateSink>(
        space: &SimAddressSpace,
        sink: SimShared<S>,
    ) -> Result<SimWatch<S>, WatchError> {
        allocate("GuestMem::watch")?;
        let watched = Arc::new(Watched {
            sink: Mutex::new(Some(sink)),
            running: Running::default(),
        });
        let mut state = lock(&space.0.state);
        // A watcher that never heard the start of an invalidation would take its frames for good.
        while state.open > 0 {
            state = space
                .0
                .settled
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.watchers.push(watched.clone());
        drop(state);
        Ok(SimWatch {
            space: space.clone(),
            watched,
            _count: Counted::new(Kind::Registration),
        })
    }

    #[track_caller]
    fn resolve(space: &SimAddressSpace, hva: Hva, write: bool) -> Result<Resolved, ResolveError> {
        process_context("GuestMem::resolve");
        assert!(Self::is_current(space), "resolve in another address space");
        let access = Access {
            write,
            interruptible: true,
        };
        space.with_frame(hva.0 >> PAGE_SHIFT, access, |frame, writable| Resolved {
            pfn: frame.pfn(),
            writable,
        })
    }

    #[track_caller]
    fn read(space: &SimAddressSpace, hva: Hva, buffer: &mut [u8]) -> Result<(), ResolveError> {
        process_context("GuestMem::read");
        assert!(Self::is_current(space), "read in another address space");
        space.read_bytes(hva, buffer, true)
    }

    #[track_caller]
    fn write(space: &SimAddressSpace, hva: Hva, buffer: &[u8]) -> Result<(), ResolveError> {
        process_context("GuestMem::write");
        assert!(Self::is_current(space), "write in another address space");
        space.write_bytes(hva, buffer, true)
    }
}

impl UserCopy for SimHost {
    #[track_caller]
    fn copy_in(address: u64, buffer: &mut [u8]) -> Result<(), Fault> {
        process_context("UserCopy::copy_in");
        current(|thread| thread.process()).load(Hva(address), buffer)
    }

    #[track_caller]
    fn copy_out(address: u64, buffer: &[u8]) -> Result<(), Fault> {
        process_context("UserCopy::copy_out");
        current(|thread| thread.process()).store(Hva(address), buffer)
    }
}
