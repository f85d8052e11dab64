//! Tells the person at the terminal what the lab is doing, how long that usually takes and how long
//! it took.

use std::time::{Duration, Instant};

/// One step of work, announced when it begins; say [`Step::done`] when it succeeds.
#[derive(Debug)]
#[must_use = "a step that isn't finished with `done` reads as if it had failed"]
pub struct Step {
    name: String,
    began: Instant,
}

impl Step {
    /// Announces a step. `usually` is for the reader, for example `2 min`.
    pub fn begin(name: impl Into<String>, usually: &str) -> Self {
        let name = name.into();
        eprintln!("==> {name} (usually {usually})");
        Step {
            name,
            began: Instant::now(),
        }
    }

    /// Says that the step succeeded, and how long it took.
    pub fn done(self) {
        eprintln!("    {}: ok, {}", self.name, human(self.began.elapsed()));
    }
}

/// A duration as a person would say it.
pub fn human(time: Duration) -> String {
    let seconds = time.as_secs();
    if seconds < 10 {
        format!("{:.1} s", time.as_secs_f64())
    } else if seconds < 120 {
        format!("{seconds} s")
    } else {
        format!("{} min {} s", seconds / 60, seconds % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_told_in_the_unit_that_fits() {
        assert_eq!(human(Duration::from_millis(1_240)), "1.2 s");
        assert_eq!(human(Duration::from_secs(75)), "75 s");
        assert_eq!(human(Duration::from_secs(185)), "3 min 5 s");
    }
}
