// SPDX-License-Identifier: GPL-2.0
//! The daemon: its guests by name, and what it takes from peers.
//!
//! [`control`] listens for clients and [`server`] for peers, [`requests`] answers one request, [`guest`] is one guest from birth to end, [`source`] and
//! [`target`] are the two ends of a move.
//!
//! Lock order: the registry ([`Daemon::guests`]), then one guest's own locks. Neither is held while a guest is waited
//! for.

pub mod console;
pub mod control;
mod device_table;
pub mod guest;
mod move_check;
pub mod moves;
pub mod requests;
pub mod server;
pub mod source;
pub mod target;
mod trace;

use guest::Guest;
use pvmm_control::{ControlError, ErrorClass, GuestState};
use pvmm_migrate::options::PhaseHook;
use pvmm_migrate::phase::SourcePhase;
use pvmm_migrate::{Security, Sessions};
use pvmm_vmm::host_device::HostDevices;
use pvmm_vmm::vcpu::End;
use pvmm_vmm::{DeviceSpec, Hypervisor, Vm};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

/// How many guests that have ended are remembered.
const REMEMBERED: usize = 64;
/// How often a guest's watcher looks if the daemon still has it.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// What the operator decided about this daemon.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Devices that incoming guests may use.
    pub grants: Vec<DeviceSpec>,
    /// Memory in bytes that all guests together may have.
    pub max_memory: Option<u64>,
    /// Where each guest's console output is written.
    pub console_log: Option<PathBuf>,
    /// How long a peer is asked whether it runs a guest when its answer to the commit got lost. `None` takes the
    /// engine's default.
    pub recover_limit: Option<Duration>,
    /// How connections with peers are protected, in both directions.
    pub security: Security,
    /// How long the link of a move away from here may carry nothing before it counts as lost. `None` takes the engine's
    /// default.
    pub stall_limit: Option<Duration>,
    /// Called at the start of every phase of every move away from here.
    pub source_hook: Option<SourceHook>,
}

/// See [`PhaseHook`].
#[derive(Clone)]
pub struct SourceHook(pub Arc<PhaseHook<SourcePhase>>);

impl std::fmt::Debug for SourceHook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SourceHook")
    }
}

/// A place in the registry.
enum Entry {
    /// The name, memory and devices of a guest that is being made.
    Reserved(Claim),
    /// A guest.
    Guest(Arc<Guest>),
}

/// What a guest takes.
#[derive(Debug, Clone, Default)]
pub struct Claim {
    /// Memory in bytes.
    pub memory: u64,
    /// The host's devices.
    pub devices: Vec<DeviceSpec>,
}

/// The daemon. Shared by all its threads.
pub struct Daemon {
    hypervisor: Arc<dyn Hypervisor>,
    ports: HostDevices,
    options: Options,
    sessions: Arc<Sessions>,
    guests: Mutex<BTreeMap<String, Entry>>,
    /// Where it listens for guests, as text.
    listen: Mutex<Vec<String>>,
    /// Threads that write console logs.
    logs: Mutex<Vec<JoinHandle<()>>>,
    this: Weak<Daemon>,
}

impl Daemon {
    /// A daemon without guests.
    pub fn new(hypervisor: Arc<dyn Hypervisor>, ports: HostDevices, options: Options) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            hypervisor,
            ports,
            options,
            sessions: Arc::default(),
            guests: Mutex::default(),
            listen: Mutex::default(),
            logs: Mutex::default(),
            this: this.clone(),
        })
    }

    /// The hypervisor.
    pub fn hypervisor(&self) -> &dyn Hypervisor {
        &*self.hypervisor
    }

    /// The host's devices.
    pub fn ports(&self) -> &HostDevices {
        &self.ports
    }

    /// What the operator decided.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The moves that arrived here.
    pub fn sessions(&self) -> &Arc<Sessions> {
        &self.sessions
    }

    /// Where it listens for guests.
    pub fn listening(&self) -> Vec<String> {
        lock(&self.listen).clone()
    }

    fn add_listening(&self, url: String) {
        lock(&self.listen).push(url);
    }

    /// The guest of a name.
    pub fn guest(&self, name: &str) -> Result<Arc<Guest>, ControlError> {
        match lock(&self.guests).get(name) {
            Some(Entry::Guest(guest)) => Ok(Arc::clone(guest)),
            Some(Entry::Reserved(_)) => Err(ControlError::failed(format!(
                "guest \"{name}\" is still being made; try again"
            ))),
            None => Err(ControlError::new(
                ErrorClass::NotFound,
                format!("there is no guest named \"{name}\" here; `pvmmd list` shows the guests"),
            )),
        }
    }

    /// All guests, by name.
    pub fn guests(&self) -> Vec<Arc<Guest>> {
        lock(&self.guests)
            .values()
            .filter_map(|entry| match entry {
                Entry::Guest(guest) => Some(Arc::clone(guest)),
                Entry::Reserved(_) => None,
            })
            .collect()
    }

    /// Names of the guests that are here, ended ones left out.
    pub fn live_names(&self) -> Vec<String> {
        lock(&self.guests)
            .iter()
            .filter(|(_, entry)| entry.is_live())
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// What the guests that are here take together.
    fn taken(guests: &BTreeMap<String, Entry>) -> Claim {
        let mut taken = Claim::default();
        for entry in guests.values().filter(|entry| entry.is_live()) {
            let claim = match entry {
                Entry::Reserved(claim) => claim,
                Entry::Guest(guest) => guest.claim(),
            };
            taken.memory = taken.memory.saturating_add(claim.memory);
            taken.devices.extend(&claim.devices);
        }
        taken
    }

    /// Bytes of memory that new guests may take, and the host's devices that are in use.
    pub fn free(&self) -> (u64, Vec<DeviceSpec>) {
        let taken = Self::taken(&lock(&self.guests));
        (self.free_memory(&taken), taken.devices)
    }

    fn free_memory(&self, taken: &Claim) -> u64 {
        // A guest's memory is taken from the host when it is first touched, so what is available now may be promised.
        let available = memory_of_host("MemAvailable").unwrap_or(u64::MAX);
        let total = memory_of_host("MemTotal").unwrap_or(u64::MAX);
        let limit = self.options.max_memory.unwrap_or(total).min(total);
        available.min(limit.saturating_sub(taken.memory))
    }

    /// Reserves a name, memory and devices for a guest that is to be made. A guest of that name that has ended is
    /// forgotten.
    pub fn reserve(&self, name: &str, claim: Claim) -> Result<Reservation<'_>, ControlError> {
        let mut guests = lock(&self.guests);
        self.check_claim(&guests, name, &claim)?;
        guests.insert(name.to_owned(), Entry::Reserved(claim));
        Ok(Reservation {
            daemon: self,
            name: name.to_owned(),
            used: false,
        })
    }

    /// Whether [`Self::reserve`] would succeed now.
    pub fn could_reserve(&self, name: &str, claim: &Claim) -> Result<(), ControlError> {
        self.check_claim(&lock(&self.guests), name, claim)
    }

    fn check_claim(
        &self,
        guests: &BTreeMap<String, Entry>,
        name: &str,
        claim: &Claim,
    ) -> Result<(), ControlError> {
        let refused = |text: String| Err(ControlError::new(ErrorClass::Refused, text));
        if guests.get(name).is_some_and(Entry::is_live) {
            return refused(format!(
                "a guest named \"{name}\" is already here; stop it or choose another name"
            ));
        }
        let taken = Self::taken(guests);
        let free = self.free_memory(&taken);
        if claim.memory > free {
            return refused(format!(
                "the guest needs {} bytes of memory, but this host can give only {free}; stop a guest, give it less, or \
                 raise --max-memory of `pvmmd serve`",
                claim.memory
            ));
        }
        for spec in &claim.devices {
            if taken
                .devices
                .iter()
                .any(|other| other.shares_hardware(spec))
            {
                return refused(format!(
                    "this host's device at port {:#x}, or its interrupt, belongs to another guest; `pvmmd list` shows which",
                    spec.host_port()
                ));
            }
        }
        Ok(())
    }

    /// Ends every guest that is here, and waits until the console logs are written.
    pub fn stop_all(&self) {
        let guests = self.guests();
        for guest in &guests {
            guest.cancel_move();
        }
        for guest in guests {
            if guest.info().state == GuestState::InDoubt {
                tracing::warn!(
                    guest = guest.name(),
                    "it ends here although it is not known if it runs at the peer; look there"
                );
            }
            guest.finish(End::Stopped);
        }
        // A log ends with its guest; a thread that panicked has said so.
        let logs = std::mem::take(&mut *lock(&self.logs));
        for log in logs {
            let _ = log.join();
        }
    }

    /// Forgets the oldest of the guests that have ended, beyond what is remembered.
    fn forget_ended(guests: &mut BTreeMap<String, Entry>) {
        let mut ended: Vec<_> = guests
            .iter()
            .filter_map(|(name, entry)| match entry {
                Entry::Guest(guest) => Some((guest.ended_at()?, name.clone())),
                Entry::Reserved(_) => None,
            })
            .collect();
        ended.sort();
        let excess = ended.len().saturating_sub(REMEMBERED);
        for (_, name) in ended.drain(..excess) {
            guests.remove(&name);
        }
    }
}

impl Entry {
    fn is_live(&self) -> bool {
        match self {
            Self::Reserved(_) => true,
            Self::Guest(guest) => guest.ended_at().is_none(),
        }
    }
}

/// A name that nobody else can take. Given up when dropped, unless a guest has taken it.
pub struct Reservation<'a> {
    daemon: &'a Daemon,
    name: String,
    used: bool,
}

impl Reservation<'_> {
    /// Puts a guest in the reserved place and begins to watch it.
    pub fn fill(mut self, vm: Vm, arriving: bool) -> Result<Arc<Guest>, ControlError> {
        let guest = Arc::new(Guest::new(vm, arriving));
        if let Some(directory) = &self.daemon.options.console_log {
            let log = console::log(&guest, directory)?;
            let mut logs = lock(&self.daemon.logs);
            logs.retain(|log| !log.is_finished());
            logs.push(log);
        }
        watch(Arc::clone(&guest), self.daemon.this.clone())?;
        let mut guests = lock(&self.daemon.guests);
        guests.insert(self.name.clone(), Entry::Guest(Arc::clone(&guest)));
        Daemon::forget_ended(&mut guests);
        self.used = true;
        Ok(guest)
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if !self.used {
            lock(&self.daemon.guests).remove(&self.name);
        }
    }
}

impl Daemon {
    /// Removes a guest that never ran here.
    pub fn forget(&self, guest: &Arc<Guest>) {
        let mut guests = lock(&self.guests);
        if let Some(Entry::Guest(present)) = guests.get(guest.name()) {
            if Arc::ptr_eq(present, guest) {
                guests.remove(guest.name());
            }
        }
    }
}

/// Waits, in a thread of its own, for a guest to end by itself, and gives back then what it had.
fn watch(guest: Arc<Guest>, daemon: Weak<Daemon>) -> Result<(), ControlError> {
    spawn(format!("watch {}", guest.name()), move || {
        while guest.ended_at().is_none() && daemon.strong_count() > 0 {
            if let Some(end) = guest.wait_end(WATCH_INTERVAL) {
                guest.finish(end);
            }
        }
    })
}

/// Starts a thread that nobody waits for.
pub fn spawn(name: String, body: impl FnOnce() + Send + 'static) -> Result<(), ControlError> {
    std::thread::Builder::new()
        .name(name)
        .spawn(body)
        .map(drop)
        .map_err(|error| ControlError::failed(format!("cannot start a thread: {error}")))
}

/// A line of `/proc/meminfo`, in bytes.
fn memory_of_host(what: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(what)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
