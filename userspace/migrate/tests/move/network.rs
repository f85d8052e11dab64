// SPDX-License-Identifier: GPL-2.0
//! What lies between the two hosts: socket pairs that can be cut after any number of bytes, and a whole move over them.

use crate::devices::{programmed, Device};
use crate::fake::{Faults, World};
use crate::fake_source::FakeSource;
use crate::fake_target::{FakeHost, FakeTarget};
use pvmm_migrate::error::{Error, Failure};
use pvmm_migrate::options::{SourceOptions, TargetOptions};
use pvmm_migrate::session::Sessions;
use pvmm_migrate::source::{self, Report};
use pvmm_migrate::target::{self, Served};
use pvmm_migrate::transport::{Connect, Link};
use pvmm_migrate::Job;
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// What a target's thread returns.
pub type TargetResult = Result<Served<FakeTarget>, Error>;

/// A link that breaks after a number of bytes, in whichever direction they go.
pub struct CutLink {
    inner: UnixStream,
    left: Option<usize>,
    moved: Arc<AtomicUsize>,
}

impl CutLink {
    fn room(&mut self, wanted: usize) -> io::Result<usize> {
        match self.left {
            Some(0) => {
                // It may be shut down already.
                let _ = self.inner.shutdown(Shutdown::Both);
                Err(io::ErrorKind::ConnectionReset.into())
            }
            Some(left) => Ok(left.min(wanted)),
            None => Ok(wanted),
        }
    }

    fn moved(&mut self, count: usize) -> usize {
        self.left = self.left.map(|left| left - count);
        self.moved.fetch_add(count, Ordering::SeqCst);
        count
    }
}

impl Read for CutLink {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = self.room(buffer.len())?;
        let count = self.inner.read(&mut buffer[..room])?;
        Ok(self.moved(count))
    }
}

impl Write for CutLink {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let room = self.room(buffer.len())?;
        let count = self.inner.write(&buffer[..room])?;
        Ok(self.moved(count))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl Link for CutLink {
    fn set_timeout(&mut self, limit: Duration) -> io::Result<()> {
        Link::set_timeout(&mut self.inner, limit)
    }

    fn end_sending(&mut self) -> io::Result<()> {
        self.inner.end_sending()
    }

    fn peer(&self) -> String {
        "the test target".into()
    }
}

/// The way to the target; each connection gets a thread that serves it.
pub struct Network {
    pub host: Arc<FakeHost>,
    pub sessions: Arc<Sessions>,
    pub target_options: Mutex<Option<TargetOptions>>,
    /// Bytes after which the n-th connection breaks; connections beyond the list don't.
    pub cuts: Vec<Option<usize>>,
    /// Number of connections that can be made.
    pub reachable: AtomicUsize,
    /// Bytes that went over the first connection.
    pub moved: Arc<AtomicUsize>,
    connections: AtomicUsize,
    threads: Mutex<Vec<JoinHandle<TargetResult>>>,
}

impl Network {
    pub fn new(host: FakeHost) -> Self {
        Self {
            host: Arc::new(host),
            sessions: Arc::new(Sessions::new()),
            target_options: Mutex::default(),
            cuts: Vec::new(),
            reachable: AtomicUsize::new(usize::MAX),
            moved: Arc::default(),
            connections: AtomicUsize::new(0),
            threads: Mutex::default(),
        }
    }

    /// Waits for all connections to end and returns how they did.
    pub fn results(&self) -> Vec<TargetResult> {
        let threads = std::mem::take(&mut *self.threads.lock().expect("no holder panics"));
        threads
            .into_iter()
            .map(|thread| thread.join().expect("the target never panics"))
            .collect()
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Connect for Network {
    fn connect(&self) -> io::Result<Box<dyn Link>> {
        let number = self.connections.fetch_add(1, Ordering::SeqCst);
        if number >= self.reachable.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::HostUnreachable.into());
        }
        let (near, far) = UnixStream::pair()?;
        let (host, sessions) = (self.host.clone(), self.sessions.clone());
        let options = self.target_options.lock().expect("no holder panics").take();
        let thread = std::thread::spawn(move || {
            let job = Job::new();
            let options = options.unwrap_or_default();
            target::serve(Box::new(far), &*host, &sessions, &options, &job)
        });
        self.threads.lock().expect("no holder panics").push(thread);
        let first = number == 0;
        Ok(Box::new(CutLink {
            inner: near,
            left: self.cuts.get(number).copied().flatten(),
            moved: if first {
                self.moved.clone()
            } else {
                Arc::default()
            },
        }))
    }

    fn name(&self) -> String {
        "unix:test".into()
    }
}

/// Options under which no test waits long.
pub fn quick() -> SourceOptions {
    SourceOptions {
        recover_limit: Duration::from_secs(20),
        ..SourceOptions::default()
    }
}

/// A guest, a host, and the way between them.
pub struct Scene {
    pub world: Arc<World>,
    pub faults: Arc<Faults>,
    pub source: FakeSource,
    pub network: Network,
    pub options: SourceOptions,
    pub job: Arc<Job>,
}

impl Scene {
    pub fn new(faults: Arc<Faults>) -> Self {
        let world = Arc::new(World::default());
        let source = FakeSource::new(&world, &faults);
        let network = Network::new(FakeHost::new(&world, &faults));
        Self {
            world,
            faults,
            source,
            network,
            options: quick(),
            job: Arc::new(Job::new()),
        }
    }

    pub fn plain() -> Self {
        Self::new(Faults::new(None))
    }

    pub fn migrate(&mut self) -> Result<Report, Box<Failure>> {
        source::migrate(&mut self.source, &self.network, &self.options, &self.job)
    }

    /// The guest as it arrived, after a move that succeeded.
    pub fn arrived(&self) -> FakeTarget {
        for result in self.network.results() {
            if let Ok(Served::Arrived(arrived)) = result {
                return arrived.vm;
            }
        }
        panic!("no guest has arrived");
    }

    /// Asserts that the guest is at the source exactly as before the move, and nothing of it at the target.
    pub fn assert_unchanged(&self) {
        // The target's threads have ended, so nothing can start any more.
        let _ = self.network.results();
        let sides = self.world.sides();
        assert!(sides.source, "the guest does not run at the source");
        assert!(
            !sides.target && sides.starts == 0 && !sides.violated,
            "{sides:?}"
        );
        assert_eq!(self.world.made.load(Ordering::SeqCst), 0, "left over");
        assert!(!self.source.released);
        assert_eq!(self.source.dirty, None, "dirty tracking is still on");
        assert_programmed(&self.source.devices);
    }

    /// Asserts that the guest runs at the target with everything that it had.
    pub fn assert_moved(&self, target: &FakeTarget) {
        let sides = self.world.sides();
        assert!(
            sides.target && !sides.source && !sides.violated,
            "{sides:?}"
        );
        assert_eq!(sides.starts, 1);
        assert!(self.source.released);
        assert_same(&self.source, target);
    }
}

/// Asserts that the target has all of the guest.
pub fn assert_same(source: &FakeSource, target: &FakeTarget) {
    assert!(target.memory == source.memory, "memory differs");
    assert_eq!(target.vcpu, Some(source.machine.vcpu));
    assert_eq!(target.chipset, Some(source.machine.chipset));
    assert_eq!(target.user_devices, source.machine.user_devices);
    assert_programmed(&target.devices);
}

/// Asserts that the devices are as the guest has programmed them, with what they had received.
fn assert_programmed(devices: &BTreeMap<u32, Device>) {
    let due = programmed();
    assert!(!due.is_empty());
    for (number, device) in &due {
        assert!(device.looks_like(&devices[number]), "device {number}");
    }
}
