//! What has come of all calls, counted in memory that survives the processes that made them.

use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use pvmm_uapi::Run;

use crate::calls;
use crate::system::{self, Answer};

/// Error numbers are below this; 0 is success.
const ERRNOS: usize = 136;
/// `EXIT_*` and `ERROR_*` numbers are below this.
const EXITS: usize = 16;

/// What else is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A round came to its end.
    Finished,
    /// A round's process was killed.
    Killed,
    /// A process was forked with everything open.
    Forked,
    /// Guest memory was taken away or changed.
    Disturbed,
    /// A device was closed.
    Closed,
    /// A round's process has ended in another way than it should.
    Broken,
}

const EVENTS: [(Event, &str); 6] = [
    (Event::Finished, "finished"),
    (Event::Killed, "killed"),
    (Event::Forked, "forked"),
    (Event::Disturbed, "disturbed"),
    (Event::Closed, "closed"),
    (Event::Broken, "broken"),
];

/// The counters.
#[derive(Clone, Copy)]
pub struct Tally {
    outcomes: &'static [AtomicU64],
    exits: &'static [AtomicU64],
    errors: &'static [AtomicU64],
    events: &'static [AtomicU64],
}

impl Tally {
    /// All zero, shared with every process that is forked later.
    ///
    /// # Errors
    /// That of the mapping.
    pub fn new() -> Result<Self, Errno> {
        let outcomes = calls::all().count() * ERRNOS;
        let counters = system::shared_counters(outcomes + 2 * EXITS + EVENTS.len())?;
        let (outcomes, rest) = counters.split_at(outcomes);
        let (exits, rest) = rest.split_at(EXITS);
        let (errors, events) = rest.split_at(EXITS);
        Ok(Self {
            outcomes,
            exits,
            errors,
            events,
        })
    }

    /// Notes what has come of a call.
    pub fn note(&self, call: usize, answer: Answer) {
        let errno = answer.err().map_or(0, |errno| errno as usize);
        if let Some(counter) = self.outcomes.get(call * ERRNOS + errno.min(ERRNOS - 1)) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Notes why a RUN came back.
    pub fn note_exit(&self, run: &Run) {
        let add = |counters: &[AtomicU64], index: u32| {
            if let Some(counter) = counters.get((index as usize).min(EXITS - 1)) {
                counter.fetch_add(1, Ordering::Relaxed);
            }
        };
        add(self.exits, run.exit);
        if run.exit == pvmm_uapi::EXIT_INTERNAL_ERROR {
            add(self.errors, run.error);
        }
    }

    /// Notes an event.
    pub fn note_event(&self, event: Event) {
        if let Some(counter) = self.events.get(event as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Prints all counts that aren't 0, a line each. Returns those that nothing documents.
    pub fn report(&self) -> Vec<String> {
        let mut findings = Vec::new();
        for (number, call) in calls::all().enumerate() {
            for errno in 0..ERRNOS {
                let Some(count) = self.count(self.outcomes, number * ERRNOS + errno) else {
                    continue;
                };
                let outcome = match errno as i32 {
                    0 => "ok".to_owned(),
                    errno => format!("{:?}", Errno::from_raw(errno)),
                };
                println!("{} {outcome} {count}", call.name);
                if !calls::is_documented(number, call, errno as i32) {
                    findings.push(format!("{} {outcome}, {count} times", call.name));
                }
            }
        }
        for (name, counters) in [("exit", self.exits), ("error", self.errors)] {
            for index in 0..EXITS {
                if let Some(count) = self.count(counters, index) {
                    println!("{name} {index} {count}");
                }
            }
        }
        for (event, name) in EVENTS {
            if let Some(count) = self.count(self.events, event as usize) {
                println!("round {name} {count}");
                if event == Event::Broken {
                    findings.push(format!("a process has broken off, {count} times"));
                }
            }
        }
        findings
    }

    fn count(&self, counters: &[AtomicU64], index: usize) -> Option<u64> {
        let count = counters.get(index)?.load(Ordering::Relaxed);
        (count != 0).then_some(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calls::{of_request, Other};
    use pvmm_uapi::{EXIT_IO, RUN};

    #[test]
    fn an_outcome_that_nothing_documents_is_reported() {
        let tally = Tally::new().expect("there is memory");
        tally.note(of_request(RUN), Ok(0));
        tally.note(of_request(RUN), Err(Errno::EINTR));
        tally.note_exit(&Run {
            exit: EXIT_IO,
            ..Run::default()
        });
        tally.note_event(Event::Finished);
        assert_eq!(tally.report(), Vec::<String>::new());
        tally.note(of_request(RUN), Err(Errno::ENOSPC));
        tally.note(Other::Map.number(), Ok(0));
        tally.note_event(Event::Broken);
        assert_eq!(tally.report().len(), 3);
    }
}
