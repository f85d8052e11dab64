// SPDX-License-Identifier: GPL-2.0
//! Listens for peers at the addresses of `--listen`. Clients are served in [`super::control`].

use super::target::Host;
use super::{lock, spawn, Daemon};
use nix::unistd::{access, AccessFlags};
use pvmm_control::ControlError;
use pvmm_migrate::target::{self, Served};
use pvmm_migrate::tls::TlsError;
use pvmm_migrate::transport::Arrival;
use pvmm_migrate::{Job, Listener, Security, TargetOptions, Url};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;

/// How many moves can arrive at once; more are turned away before they cost anything.
const MAX_ARRIVING: usize = 16;
/// How long to wait after an error of accepting, which is most often a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why the daemon cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Somebody serves this socket.
    #[error(
        "a daemon is already running at {0}; stop it first, or choose another socket with --socket"
    )]
    Running(PathBuf),
    /// The socket cannot be made.
    #[error("cannot listen at {path}: {reason}{}", advice(.reason))]
    Socket {
        /// Where.
        path: PathBuf,
        /// The system's reason.
        reason: io::Error,
    },
    /// An address for moves cannot be used.
    #[error("cannot listen for guests at {url}: {reason}; choose another address with --listen")]
    Listen {
        /// Which.
        url: Url,
        /// The system's reason.
        reason: io::Error,
    },
    /// Peers need certificates there, and this host's are of no use.
    #[error("cannot listen for guests at {url}: {reason}")]
    Certificates {
        /// Which.
        url: Url,
        /// The file that stands against it, and what to do.
        reason: TlsError,
    },
    /// The console logs' directory cannot be used.
    #[error(
        "cannot use {path} for console logs: {reason}; the user who runs pvmmd must be able to write there, if root as the owner"
    )]
    ConsoleLog {
        /// The directory.
        path: PathBuf,
        /// The system's reason.
        reason: io::Error,
    },
    /// A thread cannot be started.
    #[error(transparent)]
    Thread(#[from] ControlError),
}

/// Where guests come from peers. Nobody is answered there before [`Self::serve`].
pub struct MoveListener {
    url: Url,
    listener: Listener,
}

impl MoveListener {
    /// Listens at `url`.
    ///
    /// # Errors
    ///
    /// The address cannot be used, or it needs certificates and this host's are of no use.
    pub fn bind(url: &Url, security: &Security) -> Result<Self, ServeError> {
        let listener =
            Listener::bind(url, security).map_err(|reason| cannot_listen(url, reason))?;
        Ok(Self {
            url: url.clone(),
            listener,
        })
    }

    /// Whether the certificates that each connection here needs can be read again.
    ///
    /// # Errors
    ///
    /// They cannot.
    pub fn check(&self, security: &Security) -> Result<(), ServeError> {
        let (Security::Network(tls) | Security::Everywhere(tls)) = security else {
            return Ok(());
        };
        if !self.listener.is_secure() {
            return Ok(());
        }
        tls.check_server()
            .map_err(|reason| ServeError::Certificates {
                url: self.url.clone(),
                reason,
            })
    }

    /// Takes guests from peers, in threads. Returns the address, with the port that was really taken.
    ///
    /// # Errors
    ///
    /// A thread cannot be started.
    pub fn serve(
        self,
        daemon: &Arc<Daemon>,
        options: Arc<TargetOptions>,
    ) -> Result<Url, ServeError> {
        let Self { url, listener } = self;
        let address = listener
            .url()
            .map_err(|reason| cannot_listen(&url, reason))?;
        announce(&url, &address, &listener);
        daemon.add_listening(address.to_string());
        let daemon = Arc::clone(daemon);
        spawn(format!("moves {address}"), move || {
            accept_moves(&daemon, &listener, &options)
        })?;
        Ok(address)
    }
}

fn cannot_listen(url: &Url, reason: io::Error) -> ServeError {
    let url = url.clone();
    match reason.downcast() {
        Ok(reason) => ServeError::Certificates { url, reason },
        Err(reason) => ServeError::Listen { url, reason },
    }
}

fn announce(url: &Url, address: &Url, listener: &Listener) {
    match url {
        Url::Tcp { .. } if !listener.is_secure() && !url.is_loopback() => tracing::warn!(
            url = %address,
            "waiting for guests, neither encrypted nor authenticated: whoever reaches this address can send some"
        ),
        Url::Tcp { .. } if listener.is_secure() => {
            tracing::info!(url = %address, "waiting for guests, over TLS")
        }
        _ => tracing::info!(url = %address, "waiting for guests from this host"),
    }
}

fn accept_moves(daemon: &Arc<Daemon>, listener: &Listener, options: &Arc<TargetOptions>) {
    let arriving = Arc::new(AtomicUsize::new(0));
    loop {
        match listener.accept() {
            Ok(arrival) => {
                let slot = Slot::take(&arriving);
                let (daemon, options) = (Arc::clone(daemon), Arc::clone(options));
                let serve = move || {
                    let _slot = slot;
                    serve_move(daemon, arrival, &options);
                };
                if arriving.load(Ordering::Relaxed) > MAX_ARRIVING {
                    tracing::warn!("a peer is turned away: {MAX_ARRIVING} are connected already");
                } else if let Err(error) = spawn("arrival".into(), serve) {
                    tracing::warn!(%error, "a peer is turned away");
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a peer cannot be accepted");
                std::thread::sleep(ACCEPT_PAUSE);
            }
        }
    }
}

/// What to do about a control socket that cannot be made, as the end of a sentence.
fn advice(reason: &io::Error) -> &'static str {
    match reason.kind() {
        io::ErrorKind::PermissionDenied => {
            "; run pvmmd as root, or choose another socket with --socket"
        }
        // It says so itself.
        io::ErrorKind::NotFound => "",
        _ => "; choose another socket with --socket",
    }
}

/// Counts connections.
struct Slot(Arc<AtomicUsize>);

impl Slot {
    fn take(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn serve_move(daemon: Arc<Daemon>, arrival: Arrival, options: &TargetOptions) {
    let host = Host(Arc::clone(&daemon));
    let job = Job::new();
    match target::receive(arrival, &host, daemon.sessions(), options, &job) {
        Ok(Served::Arrived(arrived)) => {
            tracing::info!(
                guest = arrived.description.name,
                total_ms = arrived.statistics.total_time,
                "a move is complete"
            );
        }
        Ok(Served::Asked { .. } | Served::Checked) => {}
        Err(error) => tracing::warn!(%error, "a move to here failed"),
    }
}

/// Checks, before anything is started, that console logs can be written.
pub fn prepare_console_log(directory: Option<&Path>) -> Result<(), ServeError> {
    let Some(path) = directory else { return Ok(()) };
    fs::create_dir_all(path).map_err(|reason| ServeError::ConsoleLog {
        path: path.to_owned(),
        reason,
    })
}

/// Checks that the daemon, with the rights that it has left, can make a console log.
pub fn check_console_log(directory: Option<&Path>) -> Result<(), ServeError> {
    let Some(path) = directory else { return Ok(()) };
    access(path, AccessFlags::W_OK | AccessFlags::X_OK).map_err(|errno| ServeError::ConsoleLog {
        path: path.to_owned(),
        reason: errno.into(),
    })
}

impl Daemon {
    /// How many guests are here, ended ones left out.
    pub fn live_count(&self) -> usize {
        lock(&self.guests)
            .values()
            .filter(|entry| entry.is_live())
            .count()
    }
}
