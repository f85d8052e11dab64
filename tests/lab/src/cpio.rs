//! Initramfs archives, in the format that the kernel unpacks at boot ("newc").
//!
//! Follows Documentation/driver-api/early-userspace/buffer-format.rst of the Linux source. Written
//! here, because the machine may have no `cpio`, and because device nodes need no root this way.

use std::io::{self, Write};

/// Writes an archive, entry by entry; all files belong to root.
pub struct CpioWriter<W: Write> {
    out: W,
    entries: u32,
    position: usize,
}

/// Kind bits of a file's mode (stat(2)).
mod kind {
    pub const DIRECTORY: u32 = 0o040_000;
    pub const FILE: u32 = 0o100_000;
    pub const LINK: u32 = 0o120_000;
    pub const CHARACTER_DEVICE: u32 = 0o020_000;
}

/// What a header says beyond name and length.
struct Meta {
    mode: u32,
    links: u32,
    rdev: (u32, u32),
}

impl<W: Write> CpioWriter<W> {
    /// An archive that goes to `out`.
    pub fn new(out: W) -> Self {
        CpioWriter {
            out,
            entries: 0,
            position: 0,
        }
    }

    /// A folder. Folders come before what is in them; names have no leading slash.
    ///
    /// # Errors
    /// Those of the output.
    pub fn directory(&mut self, name: &str) -> io::Result<()> {
        let meta = Meta {
            mode: kind::DIRECTORY | 0o755,
            links: 2,
            rdev: (0, 0),
        };
        self.entry(name, &meta, &[])
    }

    /// A file with these permission bits.
    ///
    /// # Errors
    /// Those of the output; `InvalidInput` if the content is 4 GiB or longer.
    pub fn file(&mut self, name: &str, permissions: u32, content: &[u8]) -> io::Result<()> {
        let meta = Meta {
            mode: kind::FILE | (permissions & 0o7777),
            links: 1,
            rdev: (0, 0),
        };
        self.entry(name, &meta, content)
    }

    /// A symbolic link.
    ///
    /// # Errors
    /// Those of the output.
    pub fn link(&mut self, name: &str, target: &str) -> io::Result<()> {
        let meta = Meta {
            mode: kind::LINK | 0o777,
            links: 1,
            rdev: (0, 0),
        };
        self.entry(name, &meta, target.as_bytes())
    }

    /// A character device.
    ///
    /// # Errors
    /// Those of the output.
    pub fn character_device(&mut self, name: &str, major: u32, minor: u32) -> io::Result<()> {
        let meta = Meta {
            mode: kind::CHARACTER_DEVICE | 0o600,
            links: 1,
            rdev: (major, minor),
        };
        self.entry(name, &meta, &[])
    }

    /// Ends the archive and returns the output.
    ///
    /// # Errors
    /// Those of the output.
    pub fn finish(mut self) -> io::Result<W> {
        let meta = Meta {
            mode: 0,
            links: 1,
            rdev: (0, 0),
        };
        self.entry("TRAILER!!!", &meta, &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn entry(&mut self, name: &str, meta: &Meta, content: &[u8]) -> io::Result<()> {
        let size = u32::try_from(content.len())
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "file too long for cpio"))?;
        self.entries += 1;
        let Meta { mode, links, rdev } = meta;
        // magic, ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor,
        // rdevminor, namesize (with its end), check
        let header = format!(
            "070701{:08x}{mode:08x}{:08x}{:08x}{links:08x}{:08x}{size:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}",
            self.entries, 0, 0, 0, 0, 0, rdev.0, rdev.1, name.len() + 1, 0,
        );
        self.write(header.as_bytes())?;
        self.write(name.as_bytes())?;
        self.write(&[0])?;
        self.pad()?;
        self.write(content)?;
        self.pad()
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.position += bytes.len();
        self.out.write_all(bytes)
    }

    /// Headers and contents begin at multiples of 4 bytes.
    fn pad(&mut self) -> io::Result<()> {
        const ZEROS: [u8; 3] = [0; 3];
        let missing = self.position.next_multiple_of(4) - self.position;
        self.write(&ZEROS[..missing])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_begins_at_a_multiple_of_four_and_the_archive_ends_with_its_trailer(
    ) -> io::Result<()> {
        let mut archive = CpioWriter::new(Vec::new());
        archive.directory("dev")?;
        archive.character_device("dev/console", 5, 1)?;
        archive.file("init", 0o755, b"12345")?;
        archive.link("sh", "init")?;
        let bytes = archive.finish()?;
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        let headers: Vec<usize> = text.match_indices("070701").map(|(at, _)| at).collect();
        assert_eq!(headers.len(), 5);
        assert!(headers.iter().all(|at| at % 4 == 0));
        // name "init" is 5 bytes with its end, behind a header of 110: content at 116.
        assert_eq!(&bytes[headers[2] + 116..headers[2] + 121], b"12345");
        assert!(text.contains("TRAILER!!!"));
        Ok(())
    }
}
