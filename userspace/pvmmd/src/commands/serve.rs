// SPDX-License-Identifier: GPL-2.0
//! `pvmmd serve`: the daemon in the foreground, until SIGTERM or SIGINT. Tests run the same on a fake hypervisor.

use super::Failure;
use crate::cli::Serve;
use crate::daemon::control::{Access, ControlSocket};
use crate::daemon::server::{check_console_log, prepare_console_log, MoveListener};
use crate::daemon::{Daemon, Options, SourceHook};
use nix::sys::signal::{SigSet, Signal};
use pvmm_migrate::options::PhaseHook;
use pvmm_migrate::phase::TargetPhase;
use pvmm_migrate::tls::DEFAULT_DIRECTORY;
use pvmm_migrate::{Security, TargetOptions, Tls};
use pvmm_vmm::confine;
use pvmm_vmm::host_device::HostDevices;
use pvmm_vmm::ioctl::DevPvmm;
use pvmm_vmm::Hypervisor;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// What a daemon stands on.
pub struct Base {
    /// What makes virtual machines.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// The host's devices.
    pub ports: HostDevices,
    /// Called at the start of every phase of every move away from here.
    pub source_hook: Option<SourceHook>,
    /// Called at the start of every phase of every move to here.
    pub target_hook: Option<Box<PhaseHook<TargetPhase>>>,
}

impl Base {
    /// This host, for a daemon whose control socket is `socket`.
    pub fn this_host(socket: &Path) -> Self {
        Self {
            hypervisor: Arc::new(DevPvmm::default()),
            ports: this_hosts_devices(socket),
            source_hook: None,
            target_hook: None,
        }
    }
}

/// The devices of this host, for a daemon whose control socket is `socket`.
pub fn this_hosts_devices(socket: &Path) -> HostDevices {
    let notes = socket.with_extension("taken");
    HostDevices::new(Path::new("/sys"), Path::new("/proc"), &notes)
}

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
///
/// It could not start.
pub fn serve(socket: &Path, options: Serve, base: Base) -> Result<(), Failure> {
    // Before the first thread, so that no other thread is interrupted by them.
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals
        .thread_block()
        .map_err(|errno| Failure::system("cannot block signals")(errno.into()))?;
    // A file that may not become larger (`ulimit -f`) is an error of that write, not the end of the daemon and its guests.
    SigSet::from_iter([Signal::SIGXFSZ])
        .thread_block()
        .map_err(|errno| Failure::system("cannot block signals")(errno.into()))?;
    prepare_console_log(options.console_log.as_deref())?;
    let access = Access {
        group: options.socket_group,
        mode: options.socket_mode,
    };
    let control = ControlSocket::bind(socket, &access)?;
    let security = security(options.tls_dir, options.allow_peer, options.insecure);
    let listeners = options
        .listen
        .iter()
        .map(|url| MoveListener::bind(url, &security))
        .collect::<Result<Vec<_>, _>>()?;
    // All that needs more than the daemon's user may do is done, and no thread has been started yet.
    confine::enter(options.seccomp.into())?;
    // What will be opened again and again must be open to the user alone.
    check_console_log(options.console_log.as_deref())?;
    for listener in &listeners {
        listener.check(&security)?;
    }
    let Base {
        hypervisor, ports, ..
    } = base;
    // Only now it is certain that no other daemon of this socket runs.
    ports.give_back_leftovers();
    match hypervisor.capabilities() {
        Ok(capabilities) => tracing::info!(
            module = crate::daemon::source::module_version(&capabilities),
            "the module is there"
        ),
        Err(error) => tracing::warn!("{error}; guests can be started when that is done"),
    }
    let stall_limit = options.stall_limit.map(Duration::from_secs);
    let daemon = Daemon::new(
        hypervisor,
        ports,
        Options {
            grants: options.grant,
            max_memory: options.max_memory,
            console_log: options.console_log,
            recover_limit: options.recover_limit.map(Duration::from_secs),
            security,
            stall_limit,
            source_hook: base.source_hook,
        },
    );
    let mut target_options = TargetOptions {
        hook: base.target_hook,
        ..TargetOptions::default()
    };
    if let Some(limit) = stall_limit {
        target_options.stall_limit = limit;
    }
    let target_options = Arc::new(target_options);
    for listener in listeners {
        listener.serve(&daemon, Arc::clone(&target_options))?;
    }
    control.serve(&daemon)?;
    tracing::info!(socket = %socket.display(), "ready");
    let signal = signals
        .wait()
        .map_err(|errno| Failure::system("cannot wait for signals")(errno.into()))?;
    tracing::info!(%signal, guests = daemon.live_count(), "ending");
    drop(control);
    daemon.stop_all();
    Ok(())
}

/// How connections with peers are protected. Whoever names certificates or peers wants TLS wherever there is a network, also
/// the one inside of this host.
fn security(tls_dir: Option<PathBuf>, allowed: Vec<String>, insecure: bool) -> Security {
    if insecure {
        return Security::Insecure;
    }
    let explicit = tls_dir.is_some() || !allowed.is_empty();
    let directory = tls_dir.unwrap_or_else(|| DEFAULT_DIRECTORY.into());
    let tls = Tls { directory, allowed };
    if let Err(error) = tls.check_client() {
        // Not everybody sends guests over a network, and the files may be made later.
        tracing::info!(%error, "no guest can be moved over TLS from here yet");
    }
    match explicit {
        true => Security::Everywhere(tls),
        false => Security::Network(tls),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_is_the_default_and_everywhere_where_it_is_asked_for() {
        let default = security(None, Vec::new(), false);
        assert_eq!(default, Security::Network(Tls::new("/etc/pki/pvmm")));
        let directory = security(Some("/tls".into()), Vec::new(), false);
        assert_eq!(directory, Security::Everywhere(Tls::new("/tls")));
        let Security::Everywhere(tls) = security(None, vec!["a".into()], false) else {
            panic!("a list that is not looked at protects nothing");
        };
        assert_eq!(tls.allowed, ["a"]);
        assert_eq!(security(None, Vec::new(), true), Security::Insecure);
    }
}
