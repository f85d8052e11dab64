//! The guest's command line: `seed=`, `rounds=`, `first=` and `cases=`.

use crate::cases::Case;

/// What the guest is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options<'a> {
    /// Seed of everything random.
    pub seed: u64,
    /// Number of the first round.
    pub first: u64,
    /// Rounds of each case.
    pub rounds: u64,
    cases: Option<&'a str>,
}

/// Reads a number as C writes it: hexadecimal after `0x`.
fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

impl<'a> Options<'a> {
    /// Reads a command line. What is not known, and what has no number where there must be one, counts for nothing: the
    /// guest prints what it has understood.
    pub fn parse(line: &'a str) -> Self {
        let mut options = Self {
            seed: 1,
            first: 0,
            rounds: 100,
            cases: None,
        };
        for word in line.split_ascii_whitespace() {
            let Some((name, value)) = word.split_once('=') else {
                continue;
            };
            match name {
                "seed" => options.seed = number(value).unwrap_or(options.seed),
                "first" => options.first = number(value).unwrap_or(options.first),
                "rounds" => options.rounds = number(value).unwrap_or(options.rounds),
                "cases" => options.cases = Some(value),
                _ => {}
            }
        }
        options
    }

    /// Whether a case is to run: one that is named, or, if none is, one that leaves the guest able to go on.
    pub fn wants(&self, case: Case) -> bool {
        match self.cases {
            Some(list) => list.split(',').any(|name| name == case.name()),
            None => !case.is_fatal(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_counts_and_the_rest_has_defaults() {
        let options = Options::parse("console=ttyS0 seed=0x2a rounds=7 cases=msr,triple-fault");
        assert_eq!((options.seed, options.first, options.rounds), (42, 0, 7));
        assert!(options.wants(Case::Msr));
        assert!(options.wants(Case::TripleFault));
        assert!(!options.wants(Case::Ports));
    }

    #[test]
    fn without_names_all_cases_run_that_the_guest_survives() {
        let options = Options::parse("seed=none");
        assert_eq!(options.seed, 1);
        assert!(options.wants(Case::Ports));
        assert!(!options.wants(Case::TripleFault));
    }
}
