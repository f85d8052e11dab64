//! What can go wrong in the lab, each with what to do about it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Result of everything in the lab.
pub type Result<T> = std::result::Result<T, LabError>;

/// A failure of the lab itself, not of what is tested on it.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The lab emulates x86-64 and runs x86-64 Debian programs.
    #[error("the lab needs an x86-64 machine, this one is {0}")]
    WrongArchitecture(String),

    /// Not root.
    #[error(
        "the lab needs root: run the command as root, for example by `sudo -E env \"PATH=$PATH\" cargo \
         xtask ...`\n\
         (it makes a Debian tree with device nodes, network namespaces, bridges and taps; a user \
         namespace alone can't do all of that)"
    )]
    NotRoot,

    /// A program that the lab starts isn't installed.
    #[error("`{program}` is missing: install the Debian package `{package}`")]
    MissingTool {
        /// The program.
        program: &'static str,
        /// The package that holds it.
        package: &'static str,
    },

    /// The file system of the cache is too full.
    #[error(
        "{} has {free_mb} MB free, the lab needs {needed_mb} MB: free some space, or set \
         XDG_CACHE_HOME to a folder elsewhere", path.display()
    )]
    DiskFull {
        /// Where the cache is.
        path: PathBuf,
        /// Free space, in MB.
        free_mb: u64,
        /// Needed space, in MB.
        needed_mb: u64,
    },

    /// The Debian archive can't be reached.
    #[error(
        "the Debian archive can't be reached: {0}\n\
         the first run needs the network (about 700 MB); later runs work without it"
    )]
    NoNetwork(String),

    /// The archive holds no kernel that the module can be built for.
    #[error(
        "no Linux {series} kernel in the archive whose source, config, headers, binary and modules \
         packages agree in version ({found}): the archive may be in the middle of an update, try \
         again later"
    )]
    NoKernel {
        /// The kernel series, for example `7.2`.
        series: &'static str,
        /// What was there instead.
        found: String,
    },

    /// A kernel package that the tree has no source for.
    #[error(
        "there is no source of {package} here: name a package of Debian's kernel {series}, such as \
         linux-image-{known}, or give a prepared build folder with --kdir"
    )]
    OtherKernel {
        /// What was asked for.
        package: String,
        /// The series that there is a source of.
        series: &'static str,
        /// A release of it.
        known: String,
    },

    /// A command ended with an error.
    #[error("{what} failed ({status}); the end of its output:\n{tail}\n(all of it: {})", log.display())]
    Command {
        /// What was tried.
        what: String,
        /// The exit status.
        status: String,
        /// The last lines that it printed.
        tail: String,
        /// File that holds everything it printed.
        log: PathBuf,
    },

    /// The wires between the hosts couldn't be laid.
    #[error("`{command}`: {message}")]
    Network {
        /// The command that failed.
        command: String,
        /// What it said.
        message: String,
    },

    /// A file operation failed.
    #[error("{what} {}: {source}", path.display())]
    File {
        /// The operation, for example `can't write`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },

    /// A program couldn't be started or waited for.
    #[error("can't run {program}: {source}")]
    Start {
        /// The program.
        program: String,
        /// Why.
        source: io::Error,
    },

    /// Not inside the namespaces that keep the lab's network and processes apart from the machine's.
    #[error("an emulated host needs the lab's namespaces: run this through `cargo xtask`")]
    NotInSandbox,

    /// More hosts than a lab's networks have addresses.
    #[error("a lab has room for 253 hosts at the most")]
    TooManyHosts,

    /// Something that should have happened on a host didn't.
    #[error(
        "host {host}: {what} didn't happen within {} s; its console: {}",
        limit.as_secs(), console.display()
    )]
    Timeout {
        /// Name of the host.
        host: String,
        /// What was waited for.
        what: String,
        /// For how long.
        limit: Duration,
        /// The host's console log.
        console: PathBuf,
    },

    /// The emulator ended while its host was still needed.
    #[error(
        "host {host}: its emulator ended ({status}) while waiting for {what}; its console: {}\n{tail}",
        console.display()
    )]
    HostDied {
        /// Name of the host.
        host: String,
        /// What was waited for.
        what: String,
        /// How the emulator ended.
        status: String,
        /// The host's console log.
        console: PathBuf,
        /// The last lines of the console.
        tail: String,
    },

    /// The connection to the agent broke.
    #[error("host {host}: talking to its agent: {source}")]
    Agent {
        /// Name of the host.
        host: String,
        /// Why.
        source: io::Error,
    },

    /// The agent couldn't do what it was asked.
    #[error("host {host}: {message}")]
    Refused {
        /// Name of the host.
        host: String,
        /// The agent's words.
        message: String,
    },

    /// A guest did something else than was waited for.
    #[error("host {host}: guest {guest} {what}\n{said}")]
    Guest {
        /// Name of the host.
        host: String,
        /// Name of the guest.
        guest: String,
        /// What it did.
        what: String,
        /// What it, its daemon and the host's kernel have said.
        said: String,
    },

    /// A command in a host ended with an exit code other than 0.
    #[error("host {host}: `{command}` ended with {code}\n{stdout}{stderr}")]
    Failed {
        /// Name of the host.
        host: String,
        /// The command.
        command: String,
        /// Its exit code.
        code: i32,
        /// What it printed.
        stdout: String,
        /// What it printed on standard error.
        stderr: String,
    },
}

/// Names the file in an I/O error.
pub(crate) fn file<'a>(
    what: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> LabError + 'a {
    move |source| LabError::File {
        what,
        path: path.to_owned(),
        source,
    }
}

/// Names the program in an I/O error.
pub(crate) fn start(program: &str) -> impl FnOnce(io::Error) -> LabError + '_ {
    move |source| LabError::Start {
        program: program.to_owned(),
        source,
    }
}
