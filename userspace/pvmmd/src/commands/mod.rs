// SPDX-License-Identifier: GPL-2.0
//! The commands. Each is a client of the daemon, except [`serve`], which is the daemon.

mod cert;
mod console;
mod devices;
mod dry_run;
mod host;
mod migrate;
mod output;
pub mod serve;
mod show;
mod trace;

use crate::cert::CertError;
use crate::cli::{self, Cli, Command};
use crate::daemon::server::ServeError;
use pvmm_control::request::{Decision, Name, Recover};
use pvmm_control::{Client, ClientError, Reply, Request};
use pvmm_vmm::confine::ConfineError;
use serve::Base;
use std::path::{Path, PathBuf};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The daemon did not do it, or could not be asked.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The daemon could not start.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The daemon could not give up its privileges.
    #[error(transparent)]
    Confine(#[from] ConfineError),
    /// A certificate cannot be made or used.
    #[error(transparent)]
    Cert(#[from] CertError),
    /// A file cannot be found.
    #[error("{option} {path}: {reason}")]
    File {
        /// The option that named it.
        option: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        reason: std::io::Error,
    },
    /// Nobody takes what is printed.
    #[error("cannot print: {0}")]
    Output(std::io::Error),
    /// A signal ended a console.
    #[error("ended by {0}")]
    Signal(nix::sys::signal::Signal),
    /// Something of the system did not work.
    #[error("{what}: {reason}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's reason.
        reason: std::io::Error,
    },
}

impl Failure {
    /// The program's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Client(error) => error.exit_code(),
            _ => 1,
        }
    }

    /// Whether there is nothing to say about it: the reader has seen enough.
    pub fn is_closed_output(&self) -> bool {
        matches!(self, Self::Output(reason) if reason.kind() == std::io::ErrorKind::BrokenPipe)
    }

    fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |reason| Self::System { what, reason }
    }
}

/// Executes a command line.
pub fn execute(cli: Cli) -> Result<(), Failure> {
    let socket = &cli.socket;
    let named = |request: fn(Name) -> Request, name: String| done(socket, request(Name { name }));
    match cli.command {
        Command::Serve(options) => serve::serve(socket, options, Base::this_host(socket)),
        Command::Run(options) => run(socket, options),
        Command::List(output) => show::list(socket, output.json),
        Command::Info(guest) => show::info(socket, guest),
        Command::Pause(guest) => named(Request::Pause, guest.name),
        Command::Resume(guest) => named(Request::Resume, guest.name),
        Command::Stop(guest) => named(Request::Stop, guest.name),
        Command::Console(options) => console::attach(socket, &options.name, !options.no_backlog),
        Command::Migrate(options) => migrate::migrate(socket, options),
        Command::MigrateCancel(guest) => named(Request::MigrateCancel, guest.name),
        Command::MigrateRecover(options) => recover(socket, options),
        Command::JobInfo(guest) => migrate::job_info(socket, guest),
        Command::Cert(command) => cert::execute(command),
        Command::Devices(guest) => devices::devices(socket, guest),
        Command::Trace(options) => trace::trace(socket, options),
        Command::DeviceKinds(output) => host::device_kinds(output.json),
        Command::Host(cli::Host::Devices(output)) => host::devices(socket, output.json),
        Command::Capabilities(output) => show::capabilities(socket, output.json),
        Command::Version(output) => show::version(socket, output.json),
    }
}

/// A request whose result has nothing to say.
fn done(socket: &Path, request: Request) -> Result<(), Failure> {
    match Client::connect(socket)?.call(request)? {
        Reply::Done => Ok(()),
        _ => Err(ClientError::Unexpected.into()),
    }
}

fn run(socket: &Path, options: cli::Run) -> Result<(), Failure> {
    // The daemon has another working directory.
    let absolute = |option, path: PathBuf| {
        std::fs::canonicalize(&path).map_err(|reason| Failure::File {
            option,
            path,
            reason,
        })
    };
    let name = options.name.clone();
    let request = pvmm_control::request::Run {
        name: options.name,
        kernel: absolute("--kernel", options.kernel)?,
        initrd: options
            .initrd
            .map(|path| absolute("--initrd", path))
            .transpose()?,
        cmdline: options.cmdline,
        memory: options.memory,
        irqchip: options.irqchip,
        devices: options.devices,
    };
    done(socket, Request::Run(Box::new(request)))?;
    if options.console {
        return console::attach(socket, &name, true);
    }
    Ok(())
}

fn recover(socket: &Path, options: cli::MigrateRecover) -> Result<(), Failure> {
    let decision = match (options.resume_here, options.discard) {
        (true, _) => Decision::ResumeHere,
        (_, true) => Decision::Discard,
        _ => Decision::Ask,
    };
    let name = options.name;
    done(socket, Request::MigrateRecover(Recover { name, decision }))
}
