// SPDX-License-Identifier: GPL-2.0
//! `pvmmd serve`: the daemon in the foreground, until SIGTERM or SIGINT.

use super::Failure;
use crate::cli::Serve;
use crate::daemon::server::{prepare_console_log, serve_moves, ControlSocket};
use crate::daemon::{Daemon, Options};
use nix::sys::signal::{SigSet, Signal};
use pvmm_migrate::TargetOptions;
use pvmm_vmm::host_serial::HostSerialPorts;
use pvmm_vmm::ioctl::DevPvmm;
use pvmm_vmm::Hypervisor;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Runs the daemon.
pub fn serve(socket: &Path, options: Serve) -> Result<(), Failure> {
    // Before the first thread, so that no other thread is interrupted by them.
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals
        .thread_block()
        .map_err(|errno| Failure::system("cannot block signals")(errno.into()))?;
    prepare_console_log(options.console_log.as_deref())?;
    let control = ControlSocket::bind(socket)?;
    let ports = HostSerialPorts::new(Path::new("/sys"), &socket.with_extension("taken"));
    // Only now it is certain that no other daemon of this socket runs.
    ports.give_back_leftovers();
    let hypervisor = DevPvmm::default();
    match hypervisor.capabilities() {
        Ok(capabilities) => tracing::info!(
            module = crate::daemon::source::module_version(&capabilities),
            "the module is there"
        ),
        Err(error) => tracing::warn!("{error}; guests can be started when that is done"),
    }
    let daemon = Daemon::new(
        Arc::new(hypervisor),
        ports,
        Options {
            grants: options.grant,
            max_memory: options.max_memory,
            console_log: options.console_log,
            recover_limit: options.recover_limit.map(Duration::from_secs),
        },
    );
    let target_options = Arc::new(TargetOptions::default());
    for url in &options.listen {
        let url = serve_moves(&daemon, url, Arc::clone(&target_options))?;
        tracing::info!(%url, "waiting for guests; the stream is neither encrypted nor authenticated");
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
