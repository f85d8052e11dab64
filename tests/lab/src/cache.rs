//! Where the lab keeps what is expensive to make.
//!
//! Everything lies in one folder, `$XDG_CACHE_HOME/pvmm` (`~/.cache/pvmm`), one entry per thing and
//! per recipe: the name ends with a hash of all that went into it, so a changed recipe makes a new
//! entry instead of mending an old one. An entry is made under a temporary name and renamed when it
//! is complete: what has its final name is whole.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};

use crate::error::{file, LabError, Result};

/// Space that an empty cache grows to, with room for the builds, in MB.
const NEEDED_MB: u64 = 6_000;

/// The lab's folder of expensive things.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

/// Keeps other runs of the lab from making the same entry; released on drop.
#[derive(Debug)]
pub struct CacheLock {
    _flock: Flock<File>,
}

impl Cache {
    /// Opens the cache of the calling user, and makes its folder if needed.
    ///
    /// # Errors
    /// [`LabError::File`] if the folder can't be made.
    pub fn open() -> Result<Self> {
        let base = env::var_os("XDG_CACHE_HOME")
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
            .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
            .unwrap_or_else(|| PathBuf::from("/var/cache"));
        let root = base.join("pvmm");
        fs::create_dir_all(&root).map_err(file("can't make", &root))?;
        Ok(Cache { root })
    }

    /// The cache's folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Waits until no other run makes entries, then keeps others from it.
    ///
    /// # Errors
    /// [`LabError::File`] if the lock file can't be opened or locked.
    pub fn lock(&self) -> Result<CacheLock> {
        let path = self.root.join("lock");
        let handle = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(file("can't open", &path))?;
        let flock = Flock::lock(handle, FlockArg::LockExclusive)
            .map_err(|(_, errno)| file("can't lock", &path)(errno.into()))?;
        Ok(CacheLock { _flock: flock })
    }

    /// The folder of `kind` made by the recipe with this `hash`; whole if it exists.
    pub fn entry(&self, kind: &str, hash: &str) -> PathBuf {
        self.root.join(format!("{kind}-{hash}"))
    }

    /// Makes an entry: `fill` gets an empty folder, which becomes the entry if it succeeds.
    ///
    /// A folder that an interrupted run left behind is removed first. The caller holds the lock.
    ///
    /// # Errors
    /// Those of `fill`; [`LabError::DiskFull`]; [`LabError::File`].
    pub fn make(
        &self,
        _lock: &CacheLock,
        kind: &str,
        hash: &str,
        fill: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let entry = self.entry(kind, hash);
        if entry.exists() {
            return Ok(entry);
        }
        self.check_space()?;
        let partial = self.root.join(format!("{kind}-{hash}.partial"));
        remove(&partial)?;
        fs::create_dir_all(&partial).map_err(file("can't make", &partial))?;
        fill(&partial)?;
        fs::rename(&partial, &entry).map_err(file("can't rename", &partial))?;
        Ok(entry)
    }

    /// Removes everything.
    ///
    /// # Errors
    /// [`LabError::File`].
    pub fn clear(&self, _lock: &CacheLock) -> Result<()> {
        for found in fs::read_dir(&self.root).map_err(file("can't read", &self.root))? {
            let path = found.map_err(file("can't read", &self.root))?.path();
            if path.file_name().is_some_and(|name| name != "lock") {
                remove(&path)?;
            }
        }
        Ok(())
    }

    fn check_space(&self) -> Result<()> {
        let stat = nix::sys::statvfs::statvfs(&self.root)
            .map_err(|e| file("can't look at", &self.root)(e.into()))?;
        let free_mb = stat.blocks_available().saturating_mul(stat.fragment_size()) / 1_000_000;
        if free_mb < NEEDED_MB {
            return Err(LabError::DiskFull {
                path: self.root.clone(),
                free_mb,
                needed_mb: NEEDED_MB,
            });
        }
        Ok(())
    }
}

/// Removes a file or folder if it is there.
fn remove(path: &Path) -> Result<()> {
    let Ok(meta) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    let gone = if meta.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    gone.map_err(file("can't remove", path))
}

/// A short name for all that went into an entry.
pub fn hash<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut sha = Sha256::new();
    for part in parts {
        // The length keeps ("ab", "c") apart from ("a", "bc").
        sha.update((part.len() as u64).to_le_bytes());
        sha.update(part);
    }
    let digest = sha.finalize();
    digest.iter().take(6).map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_depends_on_where_one_part_ends_and_the_next_begins() {
        assert_ne!(hash([&b"ab"[..], b"c"]), hash([&b"a"[..], b"bc"]));
        assert_eq!(hash([&b"ab"[..], b"c"]), hash([&b"ab"[..], b"c"]));
    }

    #[test]
    fn an_entry_that_fails_halfway_is_made_again_from_nothing() -> Result<()> {
        let root = env::temp_dir().join(format!("pvmm-cache-test-{}", std::process::id()));
        fs::create_dir_all(&root).map_err(file("can't make", &root))?;
        let cache = Cache { root: root.clone() };
        let lock = cache.lock()?;
        let failed = cache.make(&lock, "thing", "0", |folder| {
            fs::write(folder.join("half"), b"").map_err(file("can't write", folder))?;
            Err(LabError::NotInSandbox)
        });
        assert!(failed.is_err());
        assert!(!cache.entry("thing", "0").exists());
        let made = cache.make(&lock, "thing", "0", |folder| {
            assert!(!folder.join("half").exists());
            fs::write(folder.join("whole"), b"").map_err(file("can't write", folder))
        })?;
        assert!(made.join("whole").exists());
        drop(lock);
        fs::remove_dir_all(&root).map_err(file("can't remove", &root))
    }
}
