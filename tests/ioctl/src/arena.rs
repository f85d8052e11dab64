//! The addresses that the device is given: memory for guests, for structures and for arrays, and places where nothing is.
//!
//! All of it is one reservation in which Rust has no object, so that whatever the kernel, a guest or another thread does to
//! it does no harm to this program.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use nix::libc;
use nix::sys::memfd::{memfd_create, MFdFlags};
use nix::unistd::ftruncate;
use pvmm_hostile::Random;
use pvmm_uapi::Pod;

use crate::system::{self, READ_WRITE};

/// Size of a page in bytes.
pub const PAGE: u64 = 4096;
/// Pages of the guests' ordinary memory.
pub const GUEST_PAGES: u64 = 256;
/// Pages of guest memory that is shared, and of guest memory in a file.
pub const EXTRA_PAGES: u64 = 32;
/// Pages of one thread: one for the structure, the others for arrays.
const THREAD_PAGES: u64 = 8;
/// Most threads.
pub const MAX_THREADS: u64 = 8;

/// All places, as addresses.
pub struct Arena {
    /// Ordinary private memory.
    pub guest: u64,
    /// Shared memory.
    pub shared: u64,
    /// Memory of a file that shrinks and grows.
    pub filed: u64,
    /// A page that can only be read.
    pub read_only: u64,
    /// A page without access.
    pub none: u64,
    threads: u64,
    file: File,
    memory: File,
}

/// A thread's own part.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Where its structure is.
    pub structure: u64,
    /// Where its array is.
    pub array: u64,
    /// The end of what is mapped of it.
    pub end: u64,
}

impl Arena {
    /// Maps everything.
    ///
    /// # Errors
    /// Those of the system calls.
    pub fn new() -> io::Result<Self> {
        // A page without access follows each thread's part.
        let threads_pages = MAX_THREADS * (THREAD_PAGES + 1);
        let total = GUEST_PAGES + 2 * EXTRA_PAGES + 2 + threads_pages;
        let base = system::reserve((total * PAGE) as usize)?;
        let shared = base + GUEST_PAGES * PAGE;
        let filed = shared + EXTRA_PAGES * PAGE;
        let read_only = filed + EXTRA_PAGES * PAGE;
        let none = read_only + PAGE;
        let file = File::from(memfd_create(c"guest", MFdFlags::MFD_CLOEXEC)?);
        let arena = Self {
            guest: base,
            shared,
            filed,
            read_only,
            none,
            threads: none + PAGE,
            file,
            memory: OpenOptions::new()
                .read(true)
                .write(true)
                .open("/proc/self/mem")?,
        };
        arena.renew();
        system::map_at(
            read_only,
            PAGE as usize,
            libc::PROT_READ,
            libc::MAP_PRIVATE,
            None,
        )?;
        for thread in 0..MAX_THREADS {
            let place = arena.place(thread);
            let length = (place.end - place.structure) as usize;
            system::map_at(place.structure, length, READ_WRITE, libc::MAP_PRIVATE, None)?;
        }
        Ok(arena)
    }

    /// All of it.
    pub fn range(&self) -> Range<u64> {
        self.guest..self.place(MAX_THREADS).structure
    }

    /// The part of a thread, below [`MAX_THREADS`].
    pub fn place(&self, thread: u64) -> Place {
        let structure = self.threads + thread * (THREAD_PAGES + 1) * PAGE;
        Place {
            structure,
            array: structure + PAGE,
            end: structure + THREAD_PAGES * PAGE,
        }
    }

    /// Maps all guest memory anew.
    pub fn renew(&self) {
        let extra = (EXTRA_PAGES * PAGE) as usize;
        // What fails leaves what was there, and the guest finds out.
        let _ = ftruncate(&self.file, extra as i64);
        let _ = system::map_at(
            self.guest,
            (GUEST_PAGES * PAGE) as usize,
            READ_WRITE,
            libc::MAP_PRIVATE,
            None,
        );
        let _ = system::map_at(self.shared, extra, READ_WRITE, libc::MAP_SHARED, None);
        let _ = system::map_at(
            self.filed,
            extra,
            READ_WRITE,
            libc::MAP_SHARED,
            Some(self.file.as_raw_fd()),
        );
    }

    /// Does something to guest memory that a monitor must not mind.
    pub fn disturb(&self, random: &Random) {
        let pages = GUEST_PAGES + 2 * EXTRA_PAGES;
        let first = random.below(pages);
        let count = 1 + random.below((pages - first).min(48));
        let (at, length) = (self.guest + first * PAGE, (count * PAGE) as usize);
        // None of it need succeed: something else may be there by now.
        let _ = match random.below(12) {
            0 => system::unmap(at, length),
            1 => system::map_at(at, length, READ_WRITE, libc::MAP_PRIVATE, None),
            2 => system::map_at(at, length, libc::PROT_NONE, libc::MAP_PRIVATE, None),
            3 => system::protect(at, length, libc::PROT_READ),
            4 => system::protect(at, length, libc::PROT_NONE),
            5 => system::protect(at, length, READ_WRITE),
            6 | 7 => system::advise(at, length, libc::MADV_DONTNEED),
            8 => system::advise(at, length, libc::MADV_REMOVE),
            9 => system::advise(at, length, libc::MADV_PAGEOUT),
            10 => {
                let length = random.below(EXTRA_PAGES + 1) * PAGE;
                ftruncate(&self.file, length as i64).map(|()| 0)
            }
            _ => {
                self.renew();
                Ok(0)
            }
        };
    }

    /// Copies to the arena. Where nothing is mapped, nothing happens.
    pub fn store(&self, at: u64, bytes: &[u8]) {
        let _ = self.memory.write_at(bytes, at);
    }

    /// Copies a structure from the arena; `None` if it isn't there.
    pub fn load<T: Pod + Default>(&self, at: u64) -> Option<T> {
        let mut value = T::default();
        self.memory.read_exact_at(value.as_bytes_mut(), at).ok()?;
        Some(value)
    }

    /// An address that a request should not like, or at least not expect.
    pub fn odd_address(&self, place: &Place, random: &Random) -> u64 {
        match random.below(12) {
            0 => 0,
            1 => 8,
            2 => self.none,
            3 => self.read_only,
            4 => place.end - 1 - random.below(64),
            5 => place.end - 8 * (1 + random.below(512)),
            // The kernel's half: its direct map, its end.
            6 => 0xffff_8880_0000_0000 + random.below(1 << 20),
            7 => u64::MAX - random.below(64),
            // Not canonical, and the last page of a process and the one above.
            8 => 1 << 47,
            9 => (1 << 47) - PAGE - random.below(64),
            10 => self.guest + random.below(GUEST_PAGES * PAGE),
            _ => place.array + random.below(PAGE),
        }
    }
}
