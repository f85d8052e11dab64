//! What the processes in the guest say to each other: lines on pipes.
//!
//! On the path this is inside the guest only: each checker is a process of its own, PID 1 collects
//! what they find and is the only one that writes to COM1.

use core::fmt;
use core::str::FromStr;

use crate::config::Load;

/// From a checker to PID 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// The checker has set itself up.
    Ready,
    /// A check failed.
    Fail(Detail),
    /// Something worth knowing.
    Note(Detail),
    /// What was done so far.
    Stat(Stat),
    /// All of the checker's memory was read: pages, bad pages.
    Verified(u64, u64),
}

/// `what: detail`, the shape of the lines `FAIL` and `NOTE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detail {
    /// Which check: `memory`, `clock`, `timer`, `registers`, `com2`, `kernel`, `checker`, `config`.
    pub what: String,
    /// What it found.
    pub detail: String,
}

impl Detail {
    /// On one line, whatever `detail` holds.
    pub fn new(what: &str, detail: impl fmt::Display) -> Self {
        Detail {
            what: what.to_owned(),
            detail: detail.to_string().replace(['\n', '\r'], " "),
        }
    }
}

impl fmt::Display for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.detail)
    }
}

/// Counters of one checker since its start, or of all checkers together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stat {
    /// Single checks: pages, clock readings, expirations, register images, lines.
    pub checks: u64,
    /// Times that all of the memory was rewritten.
    pub passes: u64,
    /// Largest distance of two clock readings, in us.
    pub gap_us: u64,
    /// Largest delay of a timer, in us.
    pub late_us: u64,
    /// Rate of the TSC, in kHz; 0: not known.
    pub tsc_khz: u64,
}

impl Stat {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: Stat) -> Stat {
        Stat {
            checks: self.checks.saturating_add(other.checks),
            passes: self.passes.saturating_add(other.passes),
            gap_us: self.gap_us.max(other.gap_us),
            late_us: self.late_us.max(other.late_us),
            tsc_khz: self.tsc_khz.max(other.tsc_khz),
        }
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Message::Ready => write!(f, "ready"),
            Message::Fail(detail) => write!(f, "fail {detail}"),
            Message::Note(detail) => write!(f, "note {detail}"),
            Message::Stat(stat) => write!(
                f,
                "stat {} {} {} {} {}",
                stat.checks, stat.passes, stat.gap_us, stat.late_us, stat.tsc_khz
            ),
            Message::Verified(pages, bad) => write!(f, "verified {pages} {bad}"),
        }
    }
}

/// A line that is no message: a checker wrote something else, such as a panic's text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unexpected line {0:?}")]
pub struct MessageError(pub String);

impl FromStr for Message {
    type Err = MessageError;

    fn from_str(line: &str) -> Result<Self, MessageError> {
        let parse = || {
            let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
            let detail = || {
                let (what, detail) = rest.split_once(": ")?;
                Some(Detail::new(what, detail))
            };
            let numbers = || -> Option<Vec<u64>> {
                rest.split(' ').map(|number| number.parse().ok()).collect()
            };
            Some(match kind {
                "ready" if rest.is_empty() => Message::Ready,
                "fail" => Message::Fail(detail()?),
                "note" => Message::Note(detail()?),
                "stat" => match numbers()?[..] {
                    [checks, passes, gap_us, late_us, tsc_khz] => Message::Stat(Stat {
                        checks,
                        passes,
                        gap_us,
                        late_us,
                        tsc_khz,
                    }),
                    _ => return None,
                },
                "verified" => match numbers()?[..] {
                    [pages, bad] => Message::Verified(pages, bad),
                    _ => return None,
                },
                _ => return None,
            })
        };
        parse().ok_or_else(|| MessageError(line.to_owned()))
    }
}

/// From PID 1 to a checker. The end of the pipe tells it to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Rewrite memory like this, at this rate in pages per second (of this checker) if slow.
    Load(Load, u32),
    /// Read all of your memory now and answer [`Message::Verified`].
    Verify,
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Order::Load(load, rate) => write!(f, "load {load} {rate}"),
            Order::Verify => write!(f, "verify"),
        }
    }
}

impl FromStr for Order {
    type Err = MessageError;

    fn from_str(line: &str) -> Result<Self, MessageError> {
        let words: Vec<&str> = line.split(' ').collect();
        let order = match words[..] {
            ["load", load, rate] => load
                .parse()
                .ok()
                .zip(rate.parse().ok())
                .map(|(load, rate)| Order::Load(load, rate)),
            ["verify"] => Some(Order::Verify),
            _ => None,
        };
        order.ok_or_else(|| MessageError(line.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_message_is_read_as_it_was_written() {
        let stat = Stat {
            checks: 1,
            passes: 2,
            gap_us: 3,
            late_us: 4,
            tsc_khz: 5,
        };
        for message in [
            Message::Ready,
            Message::Fail(Detail::new("memory", "page 3: wrong\nvery")),
            Message::Note(Detail::new("com2", "x")),
            Message::Stat(stat),
            Message::Verified(7, 8),
        ] {
            assert_eq!(message.to_string().parse(), Ok(message));
        }
        for order in [Order::Load(Load::Slow, 9), Order::Verify] {
            assert_eq!(order.to_string().parse(), Ok(order));
        }
    }

    proptest! {
        #[test]
        fn no_line_makes_the_parsers_panic(line in "(ready|fail|note|stat|verified|load|verify)?.*") {
            let _ = line.parse::<Message>();
            let _ = line.parse::<Order>();
        }
    }
}
