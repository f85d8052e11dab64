// SPDX-License-Identifier: GPL-2.0
//! The frame of a record: what it is, which version, how long, and whether it arrived whole.

use super::{crc, u16_at, u32_at, WireError};
use crate::message::Kind;

/// Bytes of a record before its payload.
pub const RECORD_HEADER_LEN: usize = 12;

/// The fixed part of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordHeader {
    /// What the payload is.
    pub kind: Kind,
    /// Version of the payload's layout.
    pub version: u16,
    /// Bytes of payload.
    pub length: u32,
    crc: u32,
}

impl RecordHeader {
    /// The header for a payload. `None` if the payload is longer than its kind allows.
    pub fn new(kind: Kind, version: u16, payload: &[u8]) -> Option<Self> {
        let length = u32::try_from(payload.len())
            .ok()
            .filter(|length| *length <= kind.limit())?;
        let mut header = Self {
            kind,
            version,
            length,
            crc: 0,
        };
        header.crc = header.checksum(payload);
        Some(header)
    }

    /// As bytes.
    pub fn encode(&self) -> [u8; RECORD_HEADER_LEN] {
        let mut bytes = [0; RECORD_HEADER_LEN];
        bytes[..8].copy_from_slice(&self.fields());
        bytes[8..].copy_from_slice(&self.crc.to_le_bytes());
        bytes
    }

    /// Reads a header; the length is within the kind's limit.
    ///
    /// # Errors
    ///
    /// An unknown kind or version, or a length beyond the limit.
    pub fn decode(bytes: &[u8; RECORD_HEADER_LEN]) -> Result<Self, WireError> {
        let number = u16_at(bytes, 0);
        let kind = Kind::from_number(number).ok_or(WireError::UnknownKind(number))?;
        let version = u16_at(bytes, 2);
        if version != kind.version() {
            return Err(WireError::RecordVersion {
                kind: kind.name(),
                version,
                known: kind.version(),
            });
        }
        let length = u32_at(bytes, 4);
        if length > kind.limit() {
            return Err(WireError::TooLong {
                what: kind.name(),
                length,
                limit: kind.limit(),
            });
        }
        Ok(Self {
            kind,
            version,
            length,
            crc: u32_at(bytes, 8),
        })
    }

    /// Checks that the payload is the one that the header was made for.
    ///
    /// # Errors
    ///
    /// It is not.
    pub fn check(&self, payload: &[u8]) -> Result<(), WireError> {
        let found = self.checksum(payload);
        if found != self.crc {
            return Err(WireError::Checksum {
                what: self.kind.name(),
                sent: self.crc,
                found,
            });
        }
        Ok(())
    }

    fn fields(&self) -> [u8; 8] {
        let mut bytes = [0; 8];
        bytes[..2].copy_from_slice(&self.kind.number().to_le_bytes());
        bytes[2..4].copy_from_slice(&self.version.to_le_bytes());
        bytes[4..].copy_from_slice(&self.length.to_le_bytes());
        bytes
    }

    fn checksum(&self, payload: &[u8]) -> u32 {
        crc(&[&self.fields(), payload])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic_or_pass_a_limit(bytes: [u8; RECORD_HEADER_LEN]) {
            if let Ok(header) = RecordHeader::decode(&bytes) {
                prop_assert!(header.length <= header.kind.limit());
            }
        }

        #[test]
        fn a_flipped_bit_anywhere_in_a_record_is_found(
            payload in prop::collection::vec(any::<u8>(), 1..64), at: prop::sample::Index, bit in 0u8..8,
        ) {
            let header = RecordHeader::new(Kind::UserDevice, 1, &payload).expect("it is short");
            let mut bytes = header.encode().to_vec();
            bytes.extend(&payload);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            let (head, body) = bytes.split_first_chunk().expect("it is longer than a header");
            let whole = RecordHeader::decode(head).and_then(|header| header.check(body));
            prop_assert!(whole.is_err());
        }
    }

    #[test]
    fn every_kind_is_found_by_its_number_and_has_a_limit() {
        assert!(!Kind::ALL.is_empty());
        for kind in Kind::ALL {
            assert_eq!(Kind::from_number(kind.number()), Some(*kind));
            assert!(kind.limit() <= 2 << 20, "{}", kind.name());
            let header = RecordHeader::new(*kind, kind.version(), b"").expect("it is empty");
            assert_eq!(RecordHeader::decode(&header.encode()), Ok(header));
        }
    }

    #[test]
    fn a_payload_beyond_its_limit_is_not_framed() {
        let payload = vec![0; Kind::Commit.limit() as usize + 1];
        assert_eq!(RecordHeader::new(Kind::Commit, 1, &payload), None);
    }
}
