//! What can go wrong in a command.

use std::io;
use std::path::{Path, PathBuf};

use pvmm_lab::LabError;

/// Result of everything here.
pub type Result<T> = std::result::Result<T, Error>;

/// A command's failure.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Of the lab.
    #[error(transparent)]
    Lab(#[from] LabError),

    /// Cargo failed; it has said why.
    #[error("`cargo {0}` failed")]
    Cargo(String),

    /// A program couldn't be started.
    #[error("can't run {program}: {source}")]
    Start {
        /// The program.
        program: String,
        /// Why.
        source: io::Error,
    },

    /// A file operation failed.
    #[error("{what} {}: {source}", path.display())]
    File {
        /// The operation.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },

    /// An argument that makes no sense.
    #[error("{0}")]
    Usage(String),

    /// What cargo printed isn't what this program understands.
    #[error("can't understand what `cargo {command}` printed: {why}")]
    CargoOutput {
        /// The command.
        command: &'static str,
        /// What is wrong.
        why: String,
    },
}

/// Names the file in an I/O error.
pub fn file<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |source| Error::File {
        what,
        path: path.to_owned(),
        source,
    }
}

/// Names the program in an I/O error.
pub fn start(program: &str) -> impl FnOnce(io::Error) -> Error + '_ {
    move |source| Error::Start {
        program: program.to_owned(),
        source,
    }
}
