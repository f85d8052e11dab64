// SPDX-License-Identifier: GPL-2.0
//! Lines of JSON over a byte stream, with a limit on their length.

use serde::de::DeserializeOwned;
use serde::Serialize;
use std::io::{self, BufRead, ErrorKind, Read, Write};

/// Longest line, in bytes. A kernel command line and a list of many guests fit easily.
pub const MAX_LINE: u64 = 1 << 20;

/// Reads one value; `None` at the end of the stream.
pub fn read<T: DeserializeOwned>(stream: &mut impl BufRead) -> io::Result<Option<T>> {
    let mut line = Vec::new();
    let length = stream.take(MAX_LINE).read_until(b'\n', &mut line)?;
    if length == 0 {
        return Ok(None);
    }
    if line.last() != Some(&b'\n') {
        return Err(if length as u64 == MAX_LINE {
            io::Error::new(
                ErrorKind::InvalidData,
                format!("a line has more than {MAX_LINE} bytes"),
            )
        } else {
            io::Error::new(
                ErrorKind::UnexpectedEof,
                "the connection ended within a line",
            )
        });
    }
    serde_json::from_slice(&line)
        .map(Some)
        .map_err(|error| io::Error::new(ErrorKind::InvalidData, error.to_string()))
}

/// Writes one value.
pub fn write(stream: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    stream.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reply::Message;
    use crate::request::{Envelope, Request};
    use proptest::prelude::*;

    #[test]
    fn values_are_read_one_by_one_and_what_follows_stays() {
        let mut stream = Vec::new();
        let envelope = Envelope {
            version: 1,
            request: Request::List,
        };
        write(&mut stream, &envelope).expect("memory");
        write(&mut stream, &envelope).expect("memory");
        stream.extend_from_slice(b"raw");
        let mut stream = stream.as_slice();
        for _ in 0..2 {
            assert_eq!(read(&mut stream).expect("valid"), Some(envelope.clone()));
        }
        assert_eq!(stream, b"raw");
        assert!(read::<Envelope>(&mut stream).is_err(), "an unfinished line");
        assert_eq!(read::<Envelope>(&mut stream).expect("the end"), None);
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut stream = io::BufReader::new(io::repeat(b' '));
        let error = read::<Envelope>(&mut stream).expect_err("it has no end");
        assert_eq!(error.kind(), ErrorKind::InvalidData);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read::<Envelope>(&mut bytes.as_slice());
            let _ = read::<Message>(&mut bytes.as_slice());
        }
    }
}
