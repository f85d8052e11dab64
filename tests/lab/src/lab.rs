//! One test's lab: its networks, its hosts, and the folder with their logs.

use std::cell::Cell;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::cache::Cache;
use crate::error::{file, LabError, Result};
use crate::host::{Host, HostSpec};
use crate::image::Image;
use crate::kernel_log;
use crate::net::Net;
use crate::tree::Tree;

/// Names the file that tells tests what `cargo xtask` has prepared for them.
pub const PREPARED: &str = "PVMM_LAB_PREPARED";

/// How long a host may take until its agent answers, with Debian's kernel and with the debug kernel.
const BOOT_LIMITS: [Duration; 2] = [Duration::from_secs(600), Duration::from_secs(1800)];

/// Largest packets on the lab's networks, in bytes.
pub const MTU: u32 = 1500;

/// What `cargo xtask` has prepared before a run.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Prepared {
    /// The tree's name in the cache.
    pub tree: String,
    /// What hosts boot.
    pub image: Image,
    /// Folder for the logs of runs.
    pub runs: PathBuf,
}

impl Prepared {
    /// Writes it where [`Prepared::load`] finds it, and returns that file.
    ///
    /// # Errors
    /// [`LabError::File`].
    pub fn save(&self) -> Result<PathBuf> {
        fs::create_dir_all(&self.runs).map_err(file("can't make", &self.runs))?;
        let path = self.runs.join("prepared.json");
        let json =
            serde_json::to_vec_pretty(self).map_err(|e| file("can't write", &path)(e.into()))?;
        fs::write(&path, json).map_err(file("can't write", &path))?;
        Ok(path)
    }

    /// Reads what was prepared.
    ///
    /// # Errors
    /// [`LabError::NotInSandbox`] when not started by `cargo xtask`; [`LabError::File`].
    pub fn load() -> Result<Self> {
        let path = PathBuf::from(env::var_os(PREPARED).ok_or(LabError::NotInSandbox)?);
        let json = fs::read(&path).map_err(file("can't read", &path))?;
        serde_json::from_slice(&json).map_err(|e| file("can't understand", &path)(e.into()))
    }
}

/// The lab of one test.
///
/// Its hosts' logs are removed by [`Lab::finish`]; a lab that is dropped without it keeps them and
/// says where they are.
pub struct Lab {
    tree: Tree,
    image: Image,
    net: Rc<Net>,
    folder: PathBuf,
    next: Cell<u8>,
    finished: bool,
    _room: Room,
}

/// Cores that labs of this process have taken for their hosts.
static TAKEN: Mutex<usize> = Mutex::new(0);
/// Told when some are given back.
static GIVEN_BACK: Condvar = Condvar::new();

/// A lab's share of the machine's cores: more emulators than cores make each other miss their limits.
#[derive(Debug)]
struct Room(usize);

impl Room {
    /// Waits for `hosts` cores (or for all, if the machine has fewer).
    fn take(hosts: usize) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let hosts = hosts.min(cores);
        let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        while *taken + hosts > cores {
            taken = GIVEN_BACK
                .wait(taken)
                .unwrap_or_else(PoisonError::into_inner);
        }
        *taken += hosts;
        Room(hosts)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        *TAKEN.lock().unwrap_or_else(PoisonError::into_inner) -= self.0;
        GIVEN_BACK.notify_all();
    }
}

impl Lab {
    /// A lab of its own for the test or command called `name`.
    ///
    /// # Errors
    /// [`LabError::NotInSandbox`] when not started by `cargo xtask`; [`LabError::Network`];
    /// [`LabError::File`].
    pub fn new(name: &str) -> Result<Self> {
        Self::with_room(name, 1)
    }

    /// The same, once the machine has a core to spare for each of `hosts` hosts.
    ///
    /// # Errors
    /// As [`Lab::new`].
    pub fn with_room(name: &str, hosts: usize) -> Result<Self> {
        let room = Room::take(hosts);
        let prepared = Prepared::load()?;
        let tree = Tree::existing(&Cache::open()?, &prepared.tree)?;
        // Kept folders of earlier runs stay: the name says when.
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let folder = prepared.runs.join(format!("{name}-{}", now.as_millis()));
        fs::create_dir_all(&folder).map_err(file("can't make", &folder))?;
        Ok(Lab {
            tree,
            image: prepared.image,
            net: Rc::new(Net::new(MTU)?),
            folder,
            next: Cell::new(2),
            finished: false,
            _room: room,
        })
    }

    /// Starts a host without waiting for it, so that several can boot at the same time.
    ///
    /// # Errors
    /// Those of [`Host::start`].
    pub fn start(&self, spec: &HostSpec) -> Result<Host> {
        let number = self.next.get();
        self.next
            .set(number.checked_add(1).ok_or(LabError::TooManyHosts)?);
        let folder = self.folder.join(&spec.name);
        Host::start(&self.tree, &self.image, &self.net, number, spec, &folder)
    }

    fn boot_limit(&self) -> Duration {
        BOOT_LIMITS[usize::from(self.is_debug())]
    }

    /// Starts a host and waits until it answers.
    ///
    /// # Errors
    /// Those of [`Lab::start`] and [`Host::wait_ready`].
    pub fn boot(&self, spec: &HostSpec) -> Result<Host> {
        let mut host = self.start(spec)?;
        host.wait_ready(self.boot_limit())?;
        Ok(host)
    }

    /// Starts two hosts side by side and waits until both answer.
    ///
    /// # Errors
    /// Those of [`Lab::boot`].
    pub fn boot_two(&self, one: &HostSpec, other: &HostSpec) -> Result<(Host, Host)> {
        let mut one = self.start(one)?;
        let mut other = self.start(other)?;
        one.wait_ready(self.boot_limit())?;
        other.wait_ready(self.boot_limit())?;
        Ok((one, other))
    }

    /// The wires between the hosts.
    pub fn net(&self) -> &Net {
        &self.net
    }

    /// Whether hosts boot the debug kernel, on which all takes several times as long.
    pub fn is_debug(&self) -> bool {
        self.image.debug
    }

    /// What the kernels of all hosts have reported on their consoles, each line with the host's name.
    ///
    /// # Errors
    /// [`LabError::File`].
    pub fn kernel_reports(&self) -> Result<Vec<String>> {
        let mut reports = Vec::new();
        for found in fs::read_dir(&self.folder).map_err(file("can't read", &self.folder))? {
            let host = found.map_err(file("can't read", &self.folder))?;
            // The emulator makes the file with the first character.
            let console = fs::read(host.path().join("console.log")).unwrap_or_default();
            let name = host.file_name();
            reports.extend(
                kernel_log::reports(&String::from_utf8_lossy(&console))
                    .map(|line| format!("{}: {line}", name.to_string_lossy())),
            );
        }
        Ok(reports)
    }

    /// Folder with the logs of the hosts.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Ends the lab of a test that succeeded: its logs aren't needed.
    pub fn finish(mut self) {
        self.finished = true;
        // Whoever reads the logs while the test ends keeps them.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.finished {
            eprintln!(
                "the consoles of this run's hosts are kept in {}",
                self.folder.display()
            );
        }
    }
}
