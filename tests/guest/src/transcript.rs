//! What a captured console log says about the guest.
//!
//! On the path this is the end of a test outside of the guest: did the verifier start, what did it
//! find, and has it been alive since. Heartbeats are judged by [`crate::heartbeat`].

/// What every line of the verifier starts with, heartbeats aside.
pub const PREFIX: &str = "pvmm-guest ";

/// The verifier's lines in a log, sorted by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transcript {
    /// MiB under the pattern, once the guest was ready.
    pub ready_mib: Option<u64>,
    /// Texts of the lines `FAIL`.
    pub failures: Vec<String>,
    /// Texts of the lines `NOTE`.
    pub notes: Vec<String>,
    /// Number of the last line `OK` or `BAD`.
    pub status: Option<u64>,
    /// Value of `maxgap_us` in it.
    pub max_gap_us: u64,
    /// Value of `mem` in it: passes over the memory.
    pub passes: u64,
    /// Pages read and pages wrong, per line `VERIFIED`.
    pub verified: Vec<(u64, u64)>,
    /// Number of failures in the line `DONE`, once the guest ended.
    pub done: Option<u64>,
}

fn value(text: &str, key: &str) -> Option<u64> {
    text.split(' ')
        .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))?
        .parse()
        .ok()
}

impl Transcript {
    /// Reads a log. Whatever it doesn't know it skips; a last line without its end is ignored.
    pub fn parse(log: &str) -> Self {
        let mut transcript = Transcript::default();
        let whole = log.rfind('\n').map_or("", |end| &log[..end]);
        for line in whole.split('\n') {
            if let Some(text) = line.trim_end_matches('\r').strip_prefix(PREFIX) {
                transcript.add(text);
            }
        }
        transcript
    }

    fn add(&mut self, text: &str) {
        let (kind, rest) = text.split_once(' ').unwrap_or((text, ""));
        match kind {
            "READY" => self.ready_mib = value(rest, "memory"),
            "FAIL" => self.failures.push(rest.to_owned()),
            "NOTE" => self.notes.push(rest.to_owned()),
            "OK" | "BAD" => {
                self.status = rest.split(' ').next().and_then(|n| n.parse().ok());
                self.max_gap_us = value(rest, "maxgap_us").unwrap_or(self.max_gap_us);
                self.passes = value(rest, "mem").unwrap_or(self.passes);
            }
            "VERIFIED" => {
                let counts = value(rest, "pages").zip(value(rest, "bad"));
                self.verified.extend(counts);
            }
            "DONE" => self.done = value(rest, "fails"),
            _ => {}
        }
    }

    /// Whether the guest was ready and nothing failed in what the log covers.
    pub fn is_clean(&self) -> bool {
        self.ready_mib.is_some() && self.failures.is_empty() && self.done.unwrap_or(0) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "Linux version 7.2\r\n\
        pvmm-guest READY memory=48 total=80 cpus=1\r\n\
        pvmm-heartbeat com1 1 t=5\r\n\
        pvmm-guest OK 1 mem=2 checks=300 maxgap_us=20100\r\n\
        pvmm-guest VERIFIED pages=100 bad=0\r\n\
        pvmm-guest NOTE com2: break\r\n";

    #[test]
    fn a_log_is_sorted_into_its_parts() {
        let transcript = Transcript::parse(LOG);
        assert_eq!(transcript.ready_mib, Some(48));
        assert_eq!(transcript.status, Some(1));
        assert_eq!((transcript.max_gap_us, transcript.passes), (20100, 2));
        assert_eq!(transcript.verified, [(100, 0)]);
        assert_eq!(transcript.notes, ["com2: break"]);
        assert!(transcript.is_clean());
    }

    #[test]
    fn a_failure_makes_a_log_unclean() {
        let log = LOG.to_owned() + "pvmm-guest FAIL clock: TSC stepped back by 7 ticks\r\n";
        let transcript = Transcript::parse(&log);
        assert_eq!(transcript.failures, ["clock: TSC stepped back by 7 ticks"]);
        assert!(!transcript.is_clean());
    }

    #[test]
    fn a_log_of_a_guest_that_never_was_ready_is_not_clean() {
        assert!(!Transcript::parse("Linux version 7.2\nKernel panic\n").is_clean());
        assert!(!Transcript::parse("").is_clean());
    }

    #[test]
    fn a_line_cut_at_the_end_is_ignored() {
        let log = LOG.to_owned() + "pvmm-guest OK 2";
        assert_eq!(Transcript::parse(&log).status, Some(1));
    }
}
