//! A round: a process with some threads that comes to its end or is killed.

use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::pthread::pthread_kill;
use nix::sys::signal::{kill, Signal};
use nix::sys::wait::{waitpid, WaitPidFlag, WaitStatus};
use nix::unistd::{setgroups, setresgid, setresuid, Gid, Pid, Uid};
use pvmm_hostile::Random;

use crate::system;
use crate::tally::{Event, Tally};
use crate::walk::World;

/// Devices that a process gets which may not open any.
const HANDED_DOWN: usize = 12;
/// The longest that a round may take. It takes a hundredth of that, so something hangs if this is over.
const LIMIT: Duration = Duration::from_secs(60);
/// Between two looks whether a process has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// Who a process is, and what it does.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Seed of everything random.
    pub seed: u64,
    /// Threads of each process.
    pub threads: u64,
    /// Steps of each thread.
    pub steps: u64,
    /// The user that it becomes.
    pub user: Option<u32>,
    /// Whether it gets open devices and opens none itself.
    pub hand_down: bool,
}

/// Why a round has no result.
#[derive(Debug, thiserror::Error)]
pub enum RoundError {
    /// It hangs.
    #[error("round {0} hangs: its process does not end when it is killed; see its stack in /proc/{1}/task/*/stack")]
    Hangs(u64, Pid),
    /// A system call has failed.
    #[error("round {0} could not begin")]
    System(u64, #[source] io::Error),
}

/// Carries out a round.
///
/// # Errors
/// [`RoundError`].
pub fn round(plan: &Plan, number: u64, tally: Tally) -> Result<(), RoundError> {
    let failed = |error: nix::errno::Errno| RoundError::System(number, error.into());
    let mut devices = Vec::new();
    if plan.hand_down {
        for _ in 0..HANDED_DOWN {
            devices.push(system::open(c"/dev/pvmm").map_err(failed)?);
        }
    }
    let handed_down = plan.hand_down.then(|| devices.clone());
    let process = system::fork(|| match live(plan, number, tally, handed_down) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("round {number}: {error}");
            1
        }
    })
    .map_err(failed)?;
    for device in devices {
        system::close(device);
    }
    let random = Random::new(plan.seed, u64::MAX, number);
    let end = if random.one_in(3) {
        let limit = Duration::from_micros(random.below(60_000));
        wait(process, limit).map_err(failed)?
    } else {
        wait(process, LIMIT).map_err(failed)?
    };
    let end = match end {
        Some(end) => end,
        None => {
            kill(process, Signal::SIGKILL).map_err(failed)?;
            wait(process, LIMIT)
                .map_err(failed)?
                .ok_or(RoundError::Hangs(number, process))?
        }
    };
    tally.note_event(match end {
        WaitStatus::Exited(_, 0) => Event::Finished,
        WaitStatus::Signaled(_, Signal::SIGKILL, _) => Event::Killed,
        other => {
            eprintln!("round {number} has ended so: {other:?}");
            Event::Broken
        }
    });
    Ok(())
}

/// Waits for a process; `None` if it still lives after `limit`.
fn wait(process: Pid, limit: Duration) -> nix::Result<Option<WaitStatus>> {
    let until = Instant::now() + limit;
    loop {
        match waitpid(process, Some(WaitPidFlag::WNOHANG))? {
            WaitStatus::StillAlive if Instant::now() >= until => return Ok(None),
            WaitStatus::StillAlive => thread::sleep(LOOK_AGAIN),
            end => return Ok(Some(end)),
        }
    }
}

/// A process's life.
fn live(plan: &Plan, number: u64, tally: Tally, handed_down: Option<Vec<i32>>) -> io::Result<()> {
    let world = Arc::new(World::new(tally, handed_down)?);
    if let Some(user) = plan.user {
        setgroups(&[])?;
        let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
        setresgid(gid, gid, gid)?;
        setresuid(uid, uid, uid)?;
    }
    system::let_signals_interrupt()?;
    let (seed, steps) = (plan.seed, plan.steps);
    let threads: Vec<_> = (0..plan.threads)
        .map(|thread| {
            let world = Arc::clone(&world);
            thread::spawn(move || {
                world.walk(thread, steps, &Random::new(seed, thread, number));
            })
        })
        .collect();
    // Guests may run for ever; a signal gets each thread on.
    let random = Random::new(plan.seed, u64::MAX - 1, number);
    while threads.iter().any(|thread| !thread.is_finished()) {
        thread::sleep(Duration::from_micros(500 + random.below(3000)));
        let Some(thread) = threads.get(random.below(plan.threads) as usize) else {
            continue;
        };
        // Not joined yet, so the number is still the thread's.
        let _ = pthread_kill(thread.as_pthread_t(), Signal::SIGUSR1);
    }
    for thread in threads {
        thread
            .join()
            .map_err(|_| io::Error::other("a thread has panicked"))?;
    }
    Ok(())
}
