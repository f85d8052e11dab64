// SPDX-License-Identifier: GPL-2.0
//! The first bytes of each direction, decoded by hand so that every later version can read them and say what it refuses.
//!
//! The source offers the protocol versions that it speaks and names the session; the target answers with the one that it
//! chose, and with its own list, so that a source without a common version can name both.

use super::{crc, u16_at, u32_at, WireError};
use crate::session::SessionId;

/// Bytes of the preamble before its body.
pub const PREAMBLE_LEN: usize = 24;
const MAGIC: [u8; 8] = *b"PVMMMIG\n";
const HEADER_VERSION: u16 = 1;
const WHAT: &str = "the preamble";
/// Most versions in a list.
const MAX_VERSIONS: usize = 16;
/// Room for the longest body: purpose, chosen version, count, versions, session.
const MAX_BODY: u32 = 6 + 2 * MAX_VERSIONS as u32 + 16;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Purpose {
    /// To move a guest.
    Migrate = 1,
    /// To ask what became of a move.
    Outcome = 2,
    /// To ask whether a guest would be taken; nothing of it comes.
    Check = 3,
}

/// The source's preamble.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// What the connection is for.
    pub purpose: Purpose,
    /// Protocol versions that the source speaks, best first.
    pub versions: Vec<u16>,
    /// The move.
    pub session: SessionId,
}

/// The target's preamble.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The version that is spoken from here on; 0 if there is none in common.
    pub chosen: u16,
    /// Protocol versions that the target speaks, best first.
    pub versions: Vec<u16>,
}

impl Offer {
    /// The preamble as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        body.extend((self.purpose as u16).to_le_bytes());
        put_versions(&mut body, &self.versions);
        body.extend(self.session.0);
        frame(&body)
    }

    /// Reads the body that `body_length` announced.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn decode(header: &[u8; PREAMBLE_LEN], body: &[u8]) -> Result<Self, WireError> {
        check_body(header, body)?;
        let (purpose, rest) = take_u16(body)?;
        let purpose = match purpose {
            1 => Purpose::Migrate,
            2 => Purpose::Outcome,
            3 => Purpose::Check,
            _ => return Err(WireError::Preamble("an unknown purpose")),
        };
        let (versions, rest) = take_versions(rest)?;
        let session = rest
            .try_into()
            .map_err(|_| WireError::Preamble("the session does not end where the body ends"))?;
        Ok(Self {
            purpose,
            versions,
            session: SessionId(session),
        })
    }
}

impl Answer {
    /// The answer to an offer: the best version of `ours` that is also in `theirs`, or 0.
    pub fn choose(ours: &[u16], theirs: &[u16]) -> Self {
        let chosen = ours.iter().find(|version| theirs.contains(version));
        Self {
            chosen: chosen.copied().unwrap_or(0),
            versions: ours.to_vec(),
        }
    }

    /// The preamble as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        body.extend(self.chosen.to_le_bytes());
        put_versions(&mut body, &self.versions);
        frame(&body)
    }

    /// Reads the body that `body_length` announced.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn decode(header: &[u8; PREAMBLE_LEN], body: &[u8]) -> Result<Self, WireError> {
        check_body(header, body)?;
        let (chosen, rest) = take_u16(body)?;
        let (versions, rest) = take_versions(rest)?;
        if !rest.is_empty() {
            return Err(WireError::Preamble("bytes are left over"));
        }
        Ok(Self { chosen, versions })
    }
}

/// Whether a stream that begins so can be one of pvmm.
pub(crate) fn is_preamble(first: &[u8]) -> bool {
    let seen = first.len().min(MAGIC.len());
    seen > 0 && first[..seen] == MAGIC[..seen]
}

/// Checks the fixed part and returns how many bytes of body follow.
///
/// # Errors
///
/// What is wrong with it.
pub(crate) fn body_length(header: &[u8; PREAMBLE_LEN]) -> Result<usize, WireError> {
    // Magic and version first: what follows them may have another meaning in another version.
    if header[..8] != MAGIC {
        if crate::tls::speaks_tls(header) {
            return Err(WireError::Tls);
        }
        let mut magic = [0; 8];
        magic.copy_from_slice(&header[..8]);
        return Err(WireError::Magic(magic));
    }
    let version = u16_at(header, 8);
    if version != HEADER_VERSION {
        return Err(WireError::HeaderVersion(version));
    }
    let (sent, found) = (u32_at(header, 20), crc(&[&header[..20]]));
    if sent != found {
        return Err(WireError::Checksum {
            what: WHAT,
            sent,
            found,
        });
    }
    let flags = u16_at(header, 10);
    if flags != 0 {
        return Err(WireError::Flags(flags));
    }
    let length = u32_at(header, 12);
    if length > MAX_BODY {
        return Err(WireError::TooLong {
            what: WHAT,
            length,
            limit: MAX_BODY,
        });
    }
    Ok(length as usize)
}

fn check_body(header: &[u8; PREAMBLE_LEN], body: &[u8]) -> Result<(), WireError> {
    if body_length(header)? != body.len() {
        return Err(WireError::Preamble(
            "the body has another length than announced",
        ));
    }
    let (sent, found) = (u32_at(header, 16), crc(&[body]));
    if sent != found {
        return Err(WireError::Checksum {
            what: WHAT,
            sent,
            found,
        });
    }
    Ok(())
}

fn frame(body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(PREAMBLE_LEN + body.len());
    bytes.extend(MAGIC);
    bytes.extend(HEADER_VERSION.to_le_bytes());
    bytes.extend(0u16.to_le_bytes());
    // Bodies are at most MAX_BODY bytes long, see `put_versions`.
    bytes.extend((body.len() as u32).to_le_bytes());
    bytes.extend(crc(&[body]).to_le_bytes());
    let header_crc = crc(&[&bytes]);
    bytes.extend(header_crc.to_le_bytes());
    bytes.extend(body);
    bytes
}

fn put_versions(body: &mut Vec<u8>, versions: &[u16]) {
    let versions = &versions[..versions.len().min(MAX_VERSIONS)];
    body.extend((versions.len() as u16).to_le_bytes());
    body.extend(versions.iter().flat_map(|version| version.to_le_bytes()));
}

fn take_u16(bytes: &[u8]) -> Result<(u16, &[u8]), WireError> {
    match bytes.split_first_chunk::<2>() {
        Some((first, rest)) => Ok((u16::from_le_bytes(*first), rest)),
        None => Err(WireError::Preamble("it is too short")),
    }
}

fn take_versions(bytes: &[u8]) -> Result<(Vec<u16>, &[u8]), WireError> {
    let (count, mut rest) = take_u16(bytes)?;
    let count = usize::from(count);
    if count == 0 || count > MAX_VERSIONS {
        return Err(WireError::Preamble("an impossible number of versions"));
    }
    let mut versions = Vec::with_capacity(count);
    for _ in 0..count {
        let (version, left) = take_u16(rest)?;
        versions.push(version);
        rest = left;
    }
    Ok((versions, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn split(bytes: &[u8]) -> Option<(&[u8; PREAMBLE_LEN], &[u8])> {
        bytes.split_first_chunk::<PREAMBLE_LEN>()
    }

    proptest! {
        #[test]
        fn an_offer_survives_the_way(versions in prop::collection::vec(any::<u16>(), 1..=MAX_VERSIONS), session: [u8; 16]) {
            let offer = Offer { purpose: Purpose::Outcome, versions, session: SessionId(session) };
            let bytes = offer.encode();
            let (header, body) = split(&bytes).expect("it is longer than a header");
            prop_assert_eq!(body_length(header), Ok(body.len()));
            prop_assert_eq!(Offer::decode(header, body), Ok(offer));
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), PREAMBLE_LEN..200)) {
            let (header, body) = split(&bytes).expect("it is longer than a header");
            prop_assert!(Offer::decode(header, body).is_err());
            prop_assert!(Answer::decode(header, body).is_err());
        }

        #[test]
        fn a_flipped_bit_is_found(at in 0usize..PREAMBLE_LEN + 22, bit in 0u8..8) {
            let offer = Offer { purpose: Purpose::Migrate, versions: vec![1], session: SessionId([3; 16]) };
            let mut bytes = offer.encode();
            prop_assert_eq!(bytes.len(), PREAMBLE_LEN + 22);
            bytes[at] ^= 1 << bit;
            let (header, body) = split(&bytes).expect("it is longer than a header");
            prop_assert!(Offer::decode(header, body).is_err());
        }
    }

    #[test]
    fn the_best_common_version_is_chosen() {
        assert_eq!(Answer::choose(&[3, 2, 1], &[1, 2, 9]).chosen, 2);
        assert_eq!(Answer::choose(&[3], &[1, 2]).chosen, 0);
    }

    #[test]
    fn a_stream_of_something_else_is_recognised() {
        let bytes = *b"GET / HTTP/1.1\r\nHost: xxx";
        let (header, _) = split(&bytes).expect("it is longer than a header");
        assert_eq!(body_length(header), Err(WireError::Magic(*b"GET / HT")));
        let bytes = *b"\x16\x03\x01\x00\xf8\x01\x00\x00\xf4\x03\x03_a_ClientHello_";
        let (header, _) = split(&bytes).expect("it is longer than a header");
        assert_eq!(body_length(header), Err(WireError::Tls));
        assert!(is_preamble(b"P") && is_preamble(b"PVMMMIG\nmore"));
        assert!(!is_preamble(b"") && !is_preamble(b"PVMMMIH\n") && !is_preamble(b"\x16"));
    }
}
