//! What a thread does: a random walk that mostly gets virtual machines to run and sometimes does anything else.

use std::sync::atomic::{AtomicI32, AtomicU32, AtomicUsize, Ordering};

use nix::errno::Errno;
use nix::libc;
use nix::sys::wait::waitpid;
use pvmm_hostile::Random;
use pvmm_uapi::*;

use crate::arena::{Arena, Place, PAGE};
use crate::calls::{of_request, Other, REQUESTS};
use crate::guest;
use crate::structure;
use crate::system::{self, Answer};
use crate::tally::{Event, Tally};

/// Devices that are open at the same time, at most.
pub const SLOTS: usize = 3;
/// The device.
const DEVICE: &std::ffi::CStr = c"/dev/pvmm";

/// How far an open file is on its way to a running guest. What another thread has done meanwhile shows as an error.
const CLOSED: u32 = 0;
const OPEN: u32 = 1;
const VM: u32 = 2;
const MEMORY: u32 = 3;
const VCPU: u32 = 4;
const READY: u32 = 5;

/// A place for an open device.
struct Slot {
    /// The descriptor; -1 if there is none.
    file: AtomicI32,
    stage: AtomicU32,
}

/// What all threads of a process share.
pub struct World {
    /// All addresses.
    pub arena: Arena,
    slots: [Slot; SLOTS],
    /// Devices that were opened for this process, if it can't open any itself, and how many of them are used up.
    handed_down: Option<(Vec<i32>, AtomicUsize)>,
    /// Files that are no device of the module.
    others: Vec<i32>,
    tally: Tally,
}

impl World {
    /// A world with nothing open. Without devices that are handed down, it opens its own.
    ///
    /// # Errors
    /// Those of the system calls.
    pub fn new(tally: Tally, handed_down: Option<Vec<i32>>) -> std::io::Result<Self> {
        let mut others = Vec::new();
        for path in [c"/dev/null", c"/dev/zero"] {
            others.push(system::open(path)?);
        }
        Ok(Self {
            arena: Arena::new()?,
            slots: [const {
                Slot {
                    file: AtomicI32::new(-1),
                    stage: AtomicU32::new(CLOSED),
                }
            }; SLOTS],
            handed_down: handed_down.map(|files| (files, AtomicUsize::new(0))),
            others,
            tally,
        })
    }

    /// A thread's walk of so many steps.
    pub fn walk(&self, thread: u64, steps: u64, random: &Random) {
        let walker = Walker {
            world: self,
            place: self.arena.place(thread),
            random,
        };
        for _ in 0..steps {
            walker.step();
        }
    }
}

struct Walker<'a> {
    world: &'a World,
    place: Place,
    random: &'a Random,
}

impl Walker<'_> {
    fn step(&self) {
        let random = self.random;
        let slot = random.pick(&[0, 0, 0, 1, 1, 2]);
        let slot = &self.world.slots[slot];
        match random.below(100) {
            0..=61 => self.advance(slot),
            62..=79 => self.anything(slot),
            80..=86 => {
                self.world.arena.disturb(random);
                self.world.tally.note_event(Event::Disturbed);
            }
            87..=89 => self.close(slot),
            90 => self.fork(),
            91..=95 => self.not_a_request(slot.file.load(Ordering::Relaxed)),
            96 | 97 => self.another_file(),
            _ => std::thread::yield_now(),
        }
    }

    /// Makes a request and notes what has come of it.
    fn request(&self, file: i32, request: u32, argument: u64) -> Answer {
        let answer = system::ioctl(file, request, argument);
        self.world.tally.note(of_request(request), answer);
        answer
    }

    /// The same, with a structure at the usual place.
    fn request_with(&self, file: i32, request: u32, structure: &[u8]) -> Answer {
        self.world.arena.store(self.place.structure, structure);
        self.request(file, request, self.place.structure)
    }

    /// Takes a file one step nearer to a guest that runs, or lets it run.
    fn advance(&self, slot: &Slot) {
        let file = slot.file.load(Ordering::Relaxed);
        let stage = slot.stage.load(Ordering::Relaxed);
        let arena = &self.world.arena;
        let random = self.random;
        let answer = match stage {
            CLOSED => return self.open(slot),
            OPEN => {
                let create = CreateVm {
                    flags: random.below(2) as u32,
                    tsc_khz: 0,
                };
                self.request_with(file, CREATE_VM, create.as_bytes())
            }
            VM => self.request_with(
                file,
                SET_MEMORY_REGION,
                structure::main_region(arena).as_bytes(),
            ),
            MEMORY if random.one_in(2) => {
                let region = structure::another_region(arena, random);
                let _ = self.request_with(file, SET_MEMORY_REGION, region.as_bytes());
                return;
            }
            MEMORY => self.request_with(file, CREATE_VCPU, CreateVcpu::default().as_bytes()),
            VCPU => self.prepare(file),
            _ => self.run(file),
        };
        let next = match answer {
            Ok(_) if stage < READY => stage + 1,
            Ok(_) => stage,
            Err(Errno::EEXIST) => stage + 1,
            Err(Errno::EBUSY | Errno::EINTR | Errno::ENOMEM | Errno::EFAULT) => stage,
            Err(Errno::EBADF) => CLOSED,
            // Another process's, or of a state that can't be had.
            Err(Errno::EPERM | Errno::EIO) => return self.close(slot),
            // Its clock may stand.
            Err(_) if stage >= VCPU => {
                let clock = Clock {
                    tsc_khz: self.capabilities(file).tsc_khz,
                    ..Clock::default()
                };
                match self.request_with(file, SET_CLOCK, clock.as_bytes()) {
                    Ok(_) => VCPU,
                    Err(_) => OPEN,
                }
            }
            Err(_) => OPEN,
        };
        // Unless another thread was faster; it doesn't matter which of the two is right.
        let _ = slot
            .stage
            .compare_exchange(stage, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    fn capabilities(&self, file: i32) -> Capabilities {
        let _ = self.request(file, GET_CAPABILITIES, self.place.structure);
        self.world
            .arena
            .load(self.place.structure)
            .unwrap_or_default()
    }

    fn open(&self, slot: &Slot) {
        let opened = match &self.world.handed_down {
            None => {
                let opened = system::open(DEVICE);
                self.world
                    .tally
                    .note(Other::Open.number(), opened.map(i64::from));
                opened.ok()
            }
            Some((files, used)) => files.get(used.fetch_add(1, Ordering::Relaxed)).copied(),
        };
        let Some(file) = opened else { return };
        let before = slot.file.swap(file, Ordering::Relaxed);
        slot.stage.store(OPEN, Ordering::Relaxed);
        if before >= 0 {
            system::close(before);
        }
    }

    fn close(&self, slot: &Slot) {
        let file = slot.file.swap(-1, Ordering::Relaxed);
        slot.stage.store(CLOSED, Ordering::Relaxed);
        if file >= 0 {
            system::close(file);
            self.world.tally.note_event(Event::Closed);
        }
    }

    /// Gives the vCPU a program, or a state that is wrong.
    fn prepare(&self, file: i32) -> Answer {
        let arena = &self.world.arena;
        if self.random.one_in(4) {
            arena.renew();
        }
        arena.store(arena.guest + guest::CODE, &guest::program(self.random));
        let request = VcpuStateRequest {
            state: self.place.array,
            vcpu: 0,
            size: size_of::<VcpuState>() as u32,
        };
        self.request_with(file, GET_VCPU_STATE, request.as_bytes())?;
        let Some(mut state) = arena.load::<VcpuState>(self.place.array) else {
            return Err(Errno::EFAULT);
        };
        guest::start(&mut state, self.random);
        if self.random.one_in(2) {
            for _ in 0..=self.random.below(3) {
                guest::spoil_state(&mut state, self.random);
            }
        }
        arena.store(self.place.array, state.as_bytes());
        // A wrong state may be refused; the next step tries another.
        match self.request(file, SET_VCPU_STATE, self.place.structure) {
            Err(Errno::EINVAL) => Err(Errno::EBUSY),
            answer => answer,
        }
    }

    /// Lets the vCPU run, and answers it.
    fn run(&self, file: i32) -> Answer {
        let run = Run {
            value: self.random.next(),
            ..Run::default()
        };
        let answer = self.request_with(file, RUN, run.as_bytes());
        let run: Run = self
            .world
            .arena
            .load(self.place.structure)
            .unwrap_or_default();
        if answer.is_ok() {
            self.world.tally.note_exit(&run);
            let over = !matches!(run.exit, EXIT_INTERRUPTED | EXIT_IO | EXIT_MMIO);
            if over && self.random.one_in(4) {
                return Err(Errno::EPERM);
            }
            if over {
                return self.prepare(file);
            }
        }
        if self.random.one_in(8) {
            return self.prepare(file);
        }
        if self.random.one_in(6) {
            self.track(file);
        }
        answer
    }

    /// Asks what the guest has written, and lets that be tracked from now on.
    fn track(&self, file: i32) {
        let fetch = DirtyFetch {
            ranges: self.place.array,
            count: self.random.below(64) as u32,
            more: 0,
        };
        let log = DirtyLog {
            enable: 1,
            reserved: 0,
        };
        if self
            .request_with(file, DIRTY_FETCH, fetch.as_bytes())
            .is_err()
        {
            let _ = self.request_with(file, DIRTY_LOG, log.as_bytes());
        }
    }

    /// Any request with any structure.
    fn anything(&self, slot: &Slot) {
        let file = slot.file.load(Ordering::Relaxed);
        let (arena, random) = (&self.world.arena, self.random);
        if random.one_in(8) {
            let request = structure::unknown_request(random);
            let answer = system::ioctl(file, request, arena.odd_address(&self.place, random));
            self.world.tally.note(Other::Unknown.number(), answer);
            return;
        }
        let known = &REQUESTS[random.below(REQUESTS.len() as u64) as usize];
        let request = known.number;
        match request {
            SET_CPUID if random.one_in(2) => self.offer_cpuid(file),
            DEVICE_EXECUTE => arena.store(self.place.array, &structure::plan(random)),
            SET_CHIPSET_STATE | SET_CLOCK if random.one_in(2) => {
                return self.give_back(file, request);
            }
            _ => {}
        }
        let bytes = structure::any(request, arena, &self.place, random);
        if random.one_in(6) {
            let argument = arena.odd_address(&self.place, random);
            arena.store(argument, &bytes);
            let _ = self.request(file, request, argument);
        } else {
            let _ = self.request_with(file, request, &bytes);
        }
    }

    /// Gets a part of the state and sets it again, with one number changed.
    fn give_back(&self, file: i32, request: u32) {
        let arena = &self.world.arena;
        let structure = self.place.structure;
        let get = if request == SET_CLOCK {
            GET_CLOCK
        } else {
            GET_CHIPSET_STATE
        };
        if self.request(file, get, structure).is_err() {
            return;
        }
        let mut bytes = [0; size_of::<ChipsetState>()];
        let bytes = &mut bytes[..request_size(request)];
        if request == SET_CLOCK {
            bytes.copy_from_slice(
                arena
                    .load::<Clock>(structure)
                    .unwrap_or_default()
                    .as_bytes(),
            );
        } else {
            bytes.copy_from_slice(
                arena
                    .load::<ChipsetState>(structure)
                    .unwrap_or_default()
                    .as_bytes(),
            );
        }
        if self.random.one_in(2) {
            guest::spoil(bytes, self.random);
        }
        let _ = self.request_with(file, request, bytes);
    }

    /// Puts the host's CPUID table where SET_CPUID takes its own from, mostly with something changed.
    fn offer_cpuid(&self, file: i32) {
        let table = CpuidTable {
            entries: self.place.array,
            count: MAX_CPUID_ENTRIES,
            ..CpuidTable::default()
        };
        let _ = self.request_with(file, GET_SUPPORTED_CPUID, table.as_bytes());
        for _ in 0..self.random.below(3) {
            let length = MAX_CPUID_ENTRIES as usize * size_of::<CpuidEntry>();
            let at = self.place.array + self.random.below(length as u64 / 4) * 4;
            let value = self.random.odd_number() as u32;
            self.world.arena.store(at, &value.to_le_bytes());
        }
    }

    /// A process that has everything open and makes some requests, too.
    fn fork(&self) {
        let mut requests = Vec::new();
        for _ in 0..1 + self.random.below(3) {
            let slot = &self.world.slots[self.random.below(SLOTS as u64) as usize];
            let request = self.random.pick(&[
                RUN,
                CREATE_VCPU,
                GET_CLOCK,
                CREATE_VM,
                GET_CHIPSET_STATE,
                DIRTY_FETCH,
            ]);
            requests.push((
                slot.file.load(Ordering::Relaxed),
                request,
                self.place.structure,
            ));
        }
        let tally = self.world.tally;
        let made = system::fork_for_requests(&requests, |request, answer| {
            tally.note(of_request(request), answer);
        });
        let Ok(process) = made else { return };
        tally.note_event(Event::Forked);
        while waitpid(process, None) == Err(Errno::EINTR) {}
    }

    /// Other system calls on the device.
    fn not_a_request(&self, file: i32) {
        let random = self.random;
        let array = self.place.array;
        let length = random.below(3 * PAGE) as usize;
        let (call, answer) = match random.below(6) {
            0 => (Other::Read, system::read(file, array, length)),
            1 => (Other::Write, system::write(file, array, length)),
            2 => {
                let whence = random.below(6) as i32;
                let answer = system::seek(file, random.odd_number() as i64, whence);
                (Other::Seek, answer)
            }
            3 => (Other::Poll, system::poll(file)),
            _ => {
                let protection = random.below(8) as i32;
                let flags = random.pick(&[
                    libc::MAP_SHARED,
                    libc::MAP_PRIVATE,
                    libc::MAP_SHARED | libc::MAP_POPULATE,
                    libc::MAP_PRIVATE | libc::MAP_LOCKED,
                ]);
                let offset = random.odd_number() as i64;
                let offset = if random.one_in(4) {
                    offset
                } else {
                    offset & !0xfff
                };
                let answer = system::map(file, length, protection, flags, offset);
                (Other::Map, answer)
            }
        };
        self.world.tally.note(call.number(), answer);
    }

    /// A request to a file of another kind.
    fn another_file(&self) {
        let file = self.random.pick(&self.world.others);
        let known = &REQUESTS[self.random.below(REQUESTS.len() as u64) as usize];
        let answer = system::ioctl(file, known.number, self.place.structure);
        self.world.tally.note(Other::AnotherFile.number(), answer);
    }
}
