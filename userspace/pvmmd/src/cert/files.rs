// SPDX-License-Identifier: GPL-2.0
//! Writes a set of files whole or not at all, and never over others.

use super::CertError;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Who may read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Its owner alone: a key.
    Owner,
    /// Everybody who may enter the directory.
    All,
}

/// A file that is to be written.
pub struct NewFile<'a> {
    /// Its name in the directory.
    pub name: &'a str,
    /// What it is to hold.
    pub content: &'a str,
    /// Who may read it.
    pub access: Access,
}

/// The first of the files that is there already.
pub fn existing(directory: &Path, files: &[NewFile<'_>]) -> Option<PathBuf> {
    files
        .iter()
        .map(|file| directory.join(file.name))
        // Something that cannot be looked at is in the way too.
        .find(|path| !matches!(fs::symlink_metadata(path), Err(error) if error.kind() == io::ErrorKind::NotFound))
}

/// Writes the files into a directory, which is made if it is not there: for its owner alone.
pub fn write_all(directory: &Path, files: &[NewFile<'_>]) -> Result<(), CertError> {
    make_directory(directory)?;
    let mut written = Vec::new();
    for file in files {
        let path = directory.join(file.name);
        let result = write(&path, file);
        if let Err(reason) = result {
            // Half of a set is of no use, and would be in the way of the next attempt.
            for path in written {
                let _ = fs::remove_file(path);
            }
            return Err(match reason.kind() {
                io::ErrorKind::AlreadyExists => CertError::Exists(path),
                _ => CertError::Write { path, reason },
            });
        }
        written.push(path);
    }
    Ok(())
}

fn write(path: &Path, file: &NewFile<'_>) -> io::Result<()> {
    let mode = match file.access {
        Access::Owner => 0o600,
        Access::All => 0o644,
    };
    let mut target = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    let result = target
        .write_all(file.content.as_bytes())
        .and_then(|()| target.sync_all());
    if result.is_err() {
        // It is ours, and incomplete.
        let _ = fs::remove_file(path);
    }
    result
}

fn make_directory(directory: &Path) -> Result<(), CertError> {
    let failed = |reason| CertError::Write {
        path: directory.to_owned(),
        reason,
    };
    if let Some(parent) = directory.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && directory.is_dir() => Ok(()),
        other => other.map_err(failed),
    }
}
