//! The answers on COM2: each line received there is sent back with its number.
//!
//! On the path this checks the receiving half of a serial port that was moved: a byte that arrives
//! on either host is seen by the guest once, in order. A sender that numbers its lines
//! (`seq <n> ...`) is told by the guest, too, when one is missing.

/// Longest line that is kept; more is taken as the next line, so that noise can't fill memory.
pub const LINE_MAX: usize = 1024;

/// Collects bytes into lines.
#[derive(Clone, Debug, Default)]
pub struct LineBuffer {
    bytes: Vec<u8>,
}

impl LineBuffer {
    /// Adds bytes; the lines that they complete, without their ends. What isn't UTF-8 is replaced.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for &byte in bytes {
            let end = byte == b'\n' || byte == b'\r';
            if !end {
                self.bytes.push(byte);
            }
            if end && !self.bytes.is_empty() || self.bytes.len() >= LINE_MAX {
                lines.push(String::from_utf8_lossy(&self.bytes).into_owned());
                self.bytes.clear();
            }
        }
        lines
    }
}

/// Numbers the lines and looks after the sender's numbers.
#[derive(Clone, Debug, Default)]
pub struct Echo {
    answered: u64,
    last: Option<u64>,
}

/// The sender's numbers don't follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("received seq {received} after seq {after}")]
pub struct SequenceError {
    /// Number received.
    pub received: u64,
    /// Number before it.
    pub after: u64,
}

impl Echo {
    /// Takes a received line: the answer, without a line end, and whether the line was in sequence.
    pub fn answer(&mut self, line: &str) -> (String, Result<(), SequenceError>) {
        self.answered += 1;
        let answer = format!("echo {} {line}", self.answered);
        let mut words = line.split(' ');
        let sequence = match (words.next(), words.next()) {
            (Some("seq"), Some(number)) => number.parse().ok(),
            _ => None,
        };
        let Some(received) = sequence else {
            return (answer, Ok(()));
        };
        let result = match self.last {
            Some(after) if after.checked_add(1) != Some(received) => {
                Err(SequenceError { received, after })
            }
            _ => Ok(()),
        };
        self.last = Some(received);
        (answer, result)
    }

    /// Lines answered.
    pub fn answered(&self) -> u64 {
        self.answered
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_are_answered_with_their_number() {
        let mut echo = Echo::default();
        assert_eq!(echo.answer("hello"), ("echo 1 hello".to_owned(), Ok(())));
        assert_eq!(echo.answer("seq"), ("echo 2 seq".to_owned(), Ok(())));
        assert_eq!(echo.answered(), 2);
    }

    #[test]
    fn a_number_left_out_or_repeated_by_the_sender_is_an_error() {
        let mut echo = Echo::default();
        assert_eq!(echo.answer("seq 5 a").1, Ok(()));
        assert_eq!(echo.answer("seq 6 b").1, Ok(()));
        let skipped = SequenceError {
            received: 8,
            after: 6,
        };
        assert_eq!(echo.answer("seq 8 c").1, Err(skipped));
        let repeated = SequenceError {
            received: 8,
            after: 8,
        };
        assert_eq!(echo.answer("seq 8 c").1, Err(repeated));
        assert_eq!(echo.answer("seq 9 d").1, Ok(()));
    }

    #[test]
    fn a_line_without_end_does_not_grow_for_ever() {
        let mut buffer = LineBuffer::default();
        let lines = buffer.push(&[b'x'; LINE_MAX + 1]);
        assert_eq!(lines.len(), 1);
        assert_eq!(buffer.push(b"\n"), ["x"]);
    }

    proptest! {
        #[test]
        fn lines_do_not_depend_on_how_the_bytes_arrive(
            lines in prop::collection::vec("[ -~]{1,40}", 1..10), cut in 1..50usize,
        ) {
            let bytes = (lines.join("\r\n") + "\r\n").into_bytes();
            let mut buffer = LineBuffer::default();
            let mut received = Vec::new();
            for part in bytes.chunks(cut) {
                received.extend(buffer.push(part));
            }
            prop_assert_eq!(received, lines);
        }
    }
}
