// SPDX-License-Identifier: GPL-2.0
//! The format of the stream between the two hosts, version 1.
//!
//! Place on the path: between capture on the source and plan on the target. Everything here is bytes from a peer that may be
//! broken or hostile: no length is trusted, nothing panics, what is not expected is refused by name.
//!
//! ```text
//! stream   = preamble, then records                    (both directions)
//! preamble = magic[8] header_version:u16 flags:u16 length:u32 body_crc:u32 header_crc:u32, body[length]
//! record   = kind:u16 version:u16 length:u32 crc:u32, payload[length]
//! ```
//!
//! All integers are little-endian. The CRC is CRC-32 (IEEE 802.3) over kind, version, length and payload. It finds
//! broken memory and broken middle boxes, not attackers.

mod preamble;
mod record;

pub(crate) use preamble::{body_length, is_preamble};
pub use preamble::{Answer, Offer, Purpose, PREAMBLE_LEN};
pub use record::{RecordHeader, RECORD_HEADER_LEN};

/// Versions of the record format that this build speaks, best first.
pub const PROTOCOL_VERSIONS: &[u16] = &[1];

/// Longest state of a device that lives in the daemon, in bytes.
pub const MAX_USER_DEVICE_BYTES: usize = 1 << 20;

/// What is wrong with bytes from a peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// Not our stream at all.
    #[error("the stream does not begin with pvmm's magic but with {0:02x?}; is this the port of a pvmmd?")]
    Magic([u8; 8]),
    /// A peer that wants TLS where there is none.
    #[error(
        "the peer speaks TLS, and guests are taken without it here; give this host's `pvmmd serve` certificates with --tls-dir, \
         or use --insecure on both hosts of a network that only trusted hosts reach"
    )]
    Tls,
    /// A preamble of another time.
    #[error("the preamble has version {0}, this build knows version 1")]
    HeaderVersion(u16),
    /// Flags that this build does not know.
    #[error("the preamble has unknown flags {0:#x}")]
    Flags(u16),
    /// Bytes were changed on the way.
    #[error("the checksum of {what} does not match (sent {sent:#010x}, found {found:#010x})")]
    Checksum {
        /// The preamble, or the record's name.
        what: &'static str,
        /// As sent.
        sent: u32,
        /// As computed here.
        found: u32,
    },
    /// A length beyond the limit of its kind.
    #[error("{what} announces {length} bytes, at most {limit} are possible")]
    TooLong {
        /// The preamble, or the record's name.
        what: &'static str,
        /// As announced.
        length: u32,
        /// The limit.
        limit: u32,
    },
    /// A preamble's body that does not parse.
    #[error("the preamble is malformed: {0}")]
    Preamble(&'static str),
    /// No common protocol version.
    #[error("no common protocol version: it speaks {theirs:?}, this build {ours:?}; install the same version of pvmmd on both hosts")]
    NoCommonVersion {
        /// What this build speaks.
        ours: Vec<u16>,
        /// What the peer speaks.
        theirs: Vec<u16>,
    },
    /// A kind of record that this build does not know.
    #[error("a record of unknown kind {0}")]
    UnknownKind(u16),
    /// A version of a record that this build does not know.
    #[error("a \"{kind}\" record of version {version}, this build knows version {known}")]
    RecordVersion {
        /// Its name.
        kind: &'static str,
        /// As sent.
        version: u16,
        /// What this build knows.
        known: u16,
    },
    /// A record that has no place here.
    #[error("a \"{got}\" record where {expected} was due")]
    Unexpected {
        /// Its name.
        got: &'static str,
        /// What was due.
        expected: &'static str,
    },
    /// A payload that does not parse.
    #[error("a \"{kind}\" record that is malformed: {reason}")]
    Payload {
        /// Its name.
        kind: &'static str,
        /// Why.
        reason: String,
    },
    /// Pages outside the guest's memory.
    #[error("pages outside the guest's memory: {pages} from frame {gfn:#x} on")]
    OutsideMemory {
        /// First frame.
        gfn: u64,
        /// Number of frames.
        pages: u64,
    },
    /// Something that had to be sent was not.
    #[error("{0}")]
    Missing(String),
}

/// CRC-32 over several pieces.
pub(crate) fn crc(pieces: &[&[u8]]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    for piece in pieces {
        hasher.update(piece);
    }
    hasher.finalize()
}

/// A little-endian integer at a fixed place of a fixed-size header. The callers pass constants that lie inside.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// As [`u16_at`].
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
