// SPDX-License-Identifier: GPL-2.0
//! The binary encoding of record payloads: bincode's fixed-width little-endian layout, over serde.
//!
//! This is the only place that names the crate. `bincode` 2.0.1 is the last release with code (3.0.0 is empty); the
//! maintained `wincode` writes the same bytes but cannot use serde types, and its current release needs a newer rustc than the
//! project's. A change of crate must not change a byte: `tests/golden.rs` holds it to that.

use serde::de::DeserializeOwned;
use serde::Serialize;

/// More than the longest record, so that a hostile length inside a payload is refused before anything is allocated.
const LIMIT: usize = 4 << 20;

fn configuration() -> impl bincode::config::Config {
    bincode::config::standard()
        .with_little_endian()
        .with_fixed_int_encoding()
        .with_limit::<LIMIT>()
}

/// Encodes a value.
///
/// # Errors
///
/// The value is longer than any record may be.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, String> {
    bincode::serde::encode_to_vec(value, configuration()).map_err(|error| error.to_string())
}

/// Decodes a value that fills the bytes exactly.
///
/// # Errors
///
/// The bytes are not such a value, or some are left over.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let (value, used) = bincode::serde::decode_from_slice(bytes, configuration())
        .map_err(|error| error.to_string())?;
    if used != bytes.len() {
        return Err(format!("{} bytes are left over", bytes.len() - used));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn left_over_bytes_are_refused() {
        let mut bytes = encode(&7u32).expect("it is short");
        assert_eq!(decode::<u32>(&bytes), Ok(7));
        bytes.push(0);
        assert_eq!(decode::<u32>(&bytes), Err("1 bytes are left over".into()));
    }

    #[test]
    fn a_huge_length_inside_a_payload_is_refused_without_allocating() {
        let bytes = (u64::MAX / 2).to_le_bytes();
        assert!(decode::<Vec<u64>>(&bytes).is_err());
        assert!(decode::<String>(&bytes).is_err());
    }
}
