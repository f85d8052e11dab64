//! Heartbeat lines: how the guest numbers them, and whether a captured log has all of them.
//!
//! On the path this is the proof for the serial ports: a byte that the guest wrote to a device on
//! either side of a move comes out exactly once, in order. A test joins what the port of the first
//! host sent and what the port of the second host sent, and gives it to [`check_heartbeats`].

use core::fmt;

/// What every heartbeat line starts with.
pub const PREFIX: &str = "pvmm-heartbeat ";

/// A serial port of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// I/O port 3F8h, `/dev/ttyS0`
    Com1,
    /// I/O port 2F8h, `/dev/ttyS1`
    Com2,
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Port::Com1 => "com1",
            Port::Com2 => "com2",
        })
    }
}

/// One heartbeat: `pvmm-heartbeat com1 17 t=2345`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// Where it was written.
    pub port: Port,
    /// Its number on this port, from 1.
    pub number: u64,
    /// `CLOCK_MONOTONIC` of the guest, in ms.
    pub ms: u64,
}

impl fmt::Display for Heartbeat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{} {} t={}", self.port, self.number, self.ms)
    }
}

impl Heartbeat {
    /// Reads a whole line, without its end.
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix(PREFIX)?.split(' ');
        let port = match words.next()? {
            "com1" => Port::Com1,
            "com2" => Port::Com2,
            _ => return None,
        };
        let number = words.next()?.parse().ok()?;
        let ms = words.next()?.strip_prefix("t=")?.parse().ok()?;
        let heartbeat = Heartbeat { port, number, ms };
        // Written exactly as we write it: no sign, no leading zero, nothing behind.
        (words.next().is_none() && heartbeat.to_string() == line).then_some(heartbeat)
    }
}

/// The heartbeats of one port in a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    /// Number of the first one in the log.
    pub first: u64,
    /// Number of the last one.
    pub last: u64,
    /// Guest time of the first one, in ms.
    pub first_ms: u64,
    /// Guest time of the last one, in ms.
    pub last_ms: u64,
    /// Largest distance of two neighbours in guest time, in ms.
    pub max_gap_ms: u64,
}

impl Stream {
    /// How many heartbeats the log has.
    pub fn count(&self) -> u64 {
        self.last - self.first + 1
    }
}

/// The heartbeats in a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Those on COM1, if there are any.
    pub com1: Option<Stream>,
    /// Those on COM2, if there are any.
    pub com2: Option<Stream>,
}

/// Why a log is no unbroken sequence of heartbeats. Lines are counted from 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeartbeatError {
    /// There is none in the log.
    #[error(
        "no heartbeat in the log: did the guest start, and is this the log of its serial port?"
    )]
    None,
    /// Numbers are missing.
    #[error("line {line}: {port} heartbeats {from} to {to} are missing")]
    Lost {
        /// Line behind the gap.
        line: usize,
        /// Port.
        port: Port,
        /// First missing number.
        from: u64,
        /// Last missing number.
        to: u64,
    },
    /// A number came again, or came late.
    #[error("line {line}: {port} heartbeat {number} again, after {after}")]
    Repeated {
        /// Its line.
        line: usize,
        /// Port.
        port: Port,
        /// The number.
        number: u64,
        /// The highest number before.
        after: u64,
    },
    /// The guest's clock went back between two heartbeats.
    #[error(
        "line {line}: {port} heartbeat {number} is at {ms} ms, the one before at {before_ms} ms"
    )]
    BackInTime {
        /// Its line.
        line: usize,
        /// Port.
        port: Port,
        /// The number.
        number: u64,
        /// Its time.
        ms: u64,
        /// Time of the one before.
        before_ms: u64,
    },
    /// A line looks like a heartbeat but isn't one: bytes were lost, added or changed.
    #[error("line {line} is a damaged heartbeat: {text:?}")]
    Damaged {
        /// Which line.
        line: usize,
        /// What it holds.
        text: String,
    },
}

/// Checks that the heartbeats in a serial log are complete, in order and without repetition.
///
/// Other lines are skipped. A log may begin in the middle of the guest's life; what it has to hold
/// is given by [`Summary`]. A last line without its end is ignored: the log was cut there.
///
/// # Errors
/// The first place where the sequence breaks.
pub fn check_heartbeats(log: &str) -> Result<Summary, HeartbeatError> {
    let mut summary = Summary::default();
    let mut lines = log.split('\n').enumerate().peekable();
    while let Some((index, text)) = lines.next() {
        if lines.peek().is_none() {
            break;
        }
        let line = index + 1;
        let text = text.trim_end_matches('\r');
        let Some(start) = text.find(PREFIX.trim_end()) else {
            continue;
        };
        // Something before it on its line is a damaged line, too: the end of the line before, or
        // bytes that nobody wrote.
        let Some(heartbeat) = (start == 0).then(|| Heartbeat::parse(text)).flatten() else {
            let text = text.to_owned();
            return Err(HeartbeatError::Damaged { line, text });
        };
        let stream = match heartbeat.port {
            Port::Com1 => &mut summary.com1,
            Port::Com2 => &mut summary.com2,
        };
        *stream = Some(follow(*stream, heartbeat, line)?);
    }
    if summary == Summary::default() {
        return Err(HeartbeatError::None);
    }
    Ok(summary)
}

fn follow(
    stream: Option<Stream>,
    heartbeat: Heartbeat,
    line: usize,
) -> Result<Stream, HeartbeatError> {
    let Heartbeat { port, number, ms } = heartbeat;
    let Some(mut stream) = stream else {
        return Ok(Stream {
            first: number,
            last: number,
            first_ms: ms,
            last_ms: ms,
            max_gap_ms: 0,
        });
    };
    if number <= stream.last {
        let after = stream.last;
        return Err(HeartbeatError::Repeated {
            line,
            port,
            number,
            after,
        });
    }
    if number - stream.last > 1 {
        let (from, to) = (stream.last + 1, number - 1);
        return Err(HeartbeatError::Lost {
            line,
            port,
            from,
            to,
        });
    }
    let Some(gap) = ms.checked_sub(stream.last_ms) else {
        let before_ms = stream.last_ms;
        return Err(HeartbeatError::BackInTime {
            line,
            port,
            number,
            ms,
            before_ms,
        });
    };
    stream.max_gap_ms = stream.max_gap_ms.max(gap);
    (stream.last, stream.last_ms) = (number, ms);
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn log(numbers: impl IntoIterator<Item = u64>) -> String {
        let line = |number| format!("pvmm-heartbeat com1 {number} t={}\r\n", number * 100);
        numbers.into_iter().map(line).collect()
    }

    #[test]
    fn a_complete_log_is_summed_up() {
        let log = "booting\r\n".to_owned() + &log(3..=9) + "pvmm-heartbeat com2 1 t=7\n";
        let summary = check_heartbeats(&log).unwrap();
        let com1 = summary.com1.unwrap();
        assert_eq!((com1.first, com1.last, com1.count()), (3, 9, 7));
        assert_eq!(
            (com1.first_ms, com1.last_ms, com1.max_gap_ms),
            (300, 900, 100)
        );
        assert_eq!(summary.com2.unwrap().count(), 1);
    }

    #[test]
    fn a_log_without_heartbeats_is_no_success() {
        assert_eq!(check_heartbeats(""), Err(HeartbeatError::None));
        assert_eq!(
            check_heartbeats("Linux version\nlogin: \n"),
            Err(HeartbeatError::None)
        );
    }

    #[test]
    fn a_repeated_heartbeat_is_named() {
        let repeated = HeartbeatError::Repeated {
            line: 4,
            port: Port::Com1,
            number: 2,
            after: 3,
        };
        assert_eq!(check_heartbeats(&log([1, 2, 3, 2, 3])), Err(repeated));
    }

    #[test]
    fn a_lost_heartbeat_is_named() {
        let lost = HeartbeatError::Lost {
            line: 3,
            port: Port::Com1,
            from: 3,
            to: 4,
        };
        assert_eq!(check_heartbeats(&log([1, 2, 5])), Err(lost));
    }

    #[test]
    fn time_that_goes_back_between_heartbeats_is_an_error() {
        let log = "pvmm-heartbeat com1 1 t=50\npvmm-heartbeat com1 2 t=49\n";
        assert!(matches!(
            check_heartbeats(log),
            Err(HeartbeatError::BackInTime { .. })
        ));
    }

    #[test]
    fn a_line_cut_at_the_end_of_the_log_is_ignored() {
        let cut = log([1, 2]) + "pvmm-heartbeat com1 3 t";
        assert_eq!(check_heartbeats(&cut).unwrap().com1.unwrap().last, 2);
    }

    #[test]
    fn what_only_resembles_a_heartbeat_is_damage() {
        for text in [
            "pvmm-heartbeat com1 2 t=20 t=20",
            "pvmm-heartbeat com1 2t=20",
            "pvmm-heartbeat com1 2 t=",
            "pvmm-heartbeat com1 02 t=20",
            "pvmm-heartbeat com3 2 t=20",
            "x pvmm-heartbeat com1 2 t=20",
            "pvmm-heartbeat",
        ] {
            let damaged = HeartbeatError::Damaged {
                line: 2,
                text: text.to_owned(),
            };
            assert_eq!(
                check_heartbeats(&(log([1]) + text + "\n")),
                Err(damaged),
                "{text}"
            );
        }
    }

    proptest! {
        #[test]
        fn a_log_with_a_byte_missing_or_doubled_never_passes_as_complete(
            place in 0..26 * 7usize, doubled: bool,
        ) {
            // Seven lines of 26 to 28 bytes; the first and the last are kept whole.
            let whole = log(1..=9);
            let lines: Vec<&str> = whole.split_inclusive('\n').collect();
            let start = lines[0].len();
            let mut bytes = whole.clone().into_bytes();
            let place = start + place;
            // The carriage return is no part of what is checked.
            prop_assume!(bytes[place] != b'\r' && bytes[place] != b'\n');
            // One digit less in the time can still be a line that goes forward.
            let column = whole[..place].rfind('=').unwrap_or(0);
            prop_assume!(!whole[column..place].bytes().all(|byte| byte == b'=' || byte.is_ascii_digit()));
            if doubled {
                bytes.insert(place, bytes[place]);
            } else {
                bytes.remove(place);
            }
            let text = String::from_utf8(bytes).unwrap();
            prop_assert!(check_heartbeats(&text).is_err(), "{}", text);
        }

        #[test]
        fn a_log_split_anywhere_and_joined_again_is_complete(at in 0..200usize) {
            let whole = log(1..=20);
            let at = at.min(whole.len());
            let joined = [&whole[..at], &whole[at..]].concat();
            prop_assert_eq!(check_heartbeats(&joined), check_heartbeats(&whole));
        }

        #[test]
        fn no_text_makes_the_check_panic(text in ".*") {
            let _ = check_heartbeats(&text);
        }
    }
}
