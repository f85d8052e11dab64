//! What the guest prints on the parallel port, and whether all of it has come out: numbered lines.
//!
//! On the path this is what a job looks like on paper, whichever printers it came out of.

use core::fmt;
use core::fmt::Write as _;

/// A line of the job, without its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line(pub u32);

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The letters let a bit that is wrong show.
        write!(f, "pvmm-print {:06} the quick brown fox", self.0)
    }
}

/// A printout that isn't the job's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the printout differs from the job from byte {at} on: {found:?} where {expected:?} should be"
)]
pub struct Different {
    /// The first byte that differs.
    pub at: usize,
    /// What is there.
    pub found: String,
    /// What should be there.
    pub expected: String,
}

/// Checks that a printout is a job of lines 1 to `lines`, byte by byte.
///
/// # Errors
/// Where it differs.
pub fn check(printout: &[u8], lines: u32) -> Result<(), Different> {
    let mut job = String::new();
    for number in 1..=lines {
        // A String takes all.
        let _ = writeln!(job, "{}", Line(number));
    }
    let job = job.as_bytes();
    let same = printout.iter().zip(job).take_while(|(a, b)| a == b).count();
    if same == job.len() && same == printout.len() {
        return Ok(());
    }
    let around = |bytes: &[u8]| {
        let part = bytes.get(same..bytes.len().min(same + 60)).unwrap_or(&[]);
        String::from_utf8_lossy(part).into_owned()
    };
    Err(Different {
        at: same,
        found: around(printout),
        expected: around(job),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_too_many_too_few_or_changed_is_found() {
        let job = b"pvmm-print 000001 the quick brown fox\npvmm-print 000002 the quick brown fox\n";
        assert_eq!(check(job, 2), Ok(()));
        let at = |printout: &[u8]| check(printout, 2).map_err(|different| different.at);
        assert_eq!(at(&job[..75]), Err(75));
        assert_eq!(at(&[&job[..], b"\n"].concat()), Err(76));
        let doubled = [&job[..5], &job[4..]].concat();
        assert_eq!(at(&doubled), Err(5));
        let lost = [&job[..5], &job[6..]].concat();
        assert_eq!(at(&lost), Err(5));
    }
}
