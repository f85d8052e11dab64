// SPDX-License-Identifier: GPL-2.0
//! A vCPU's thread: runs the vCPU, answers its exits, and stops and goes on when told to.
//!
//! This is where a guest access that neither hardware nor module serves comes in (`EXIT_IO`, `EXIT_MMIO`) and goes to the
//! bus. A vCPU that is paused stands between two instructions with its last access completed, so that its state can be
//! captured.
//!
//! The thread is kicked out of `RUN` by a signal. A signal that comes just before the system call would be lost, so
//! whoever waits for the thread repeats it until the thread has answered.

use crate::bus::{Event, PortBus};
use crate::confine;
use crate::error::VmmError;
use crate::hypervisor::{HypervisorError, VmFd};
use pvmm_uapi::*;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vmm_sys_util::signal::{register_signal_handler, Killable, SIGRTMIN};

/// How long the thread may take to answer, in seconds. It answers within one exit; the limit is for a host that is itself
/// emulated and busy.
const ANSWER_SECONDS: u64 = 30;
/// How long to wait for an answer before the signal is sent again.
const KICK_INTERVAL: Duration = Duration::from_millis(2);
/// How often VT-x is tried again when another hypervisor has it.
const VMX_INTERVAL: Duration = Duration::from_millis(100);

/// How a guest came to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "reason", content = "detail")]
pub enum End {
    /// It powered itself off.
    Shutdown,
    /// A triple fault shut it down (SDM volume 3, 6.15).
    TripleFault,
    /// It reset itself. A guest is not started again.
    Reset,
    /// It halted with interrupts disabled.
    Halted,
    /// Its operator stopped it.
    Stopped,
    /// It runs on a peer now.
    Moved,
    /// The monitor could not go on with it.
    Error(String),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shutdown => write!(f, "powered off"),
            Self::TripleFault => write!(f, "triple fault"),
            Self::Reset => write!(f, "reset"),
            Self::Halted => write!(f, "halted for ever"),
            Self::Stopped => write!(f, "stopped"),
            Self::Moved => write!(f, "moved to a peer"),
            Self::Error(error) => write!(f, "{error}"),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Run,
    Pause,
    Quit,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Actual {
    Running,
    Paused,
    Ended(End),
}

struct Shared {
    state: Mutex<(Wish, Actual)>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, (Wish, Actual)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_actual(&self, actual: Actual) {
        self.lock().1 = actual;
        self.changed.notify_all();
    }
}

/// A vCPU with its thread. Ends the thread when dropped.
pub struct Vcpu {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Vcpu {
    /// Starts the thread of vCPU `number`, paused.
    pub fn spawn(number: u32, fd: Arc<dyn VmFd>, bus: Arc<PortBus>) -> Result<Self, VmmError> {
        prepare_kicks();
        let shared = Arc::new(Shared {
            state: Mutex::new((Wish::Pause, Actual::Paused)),
            changed: Condvar::new(),
        });
        let runner = Runner {
            shared: Arc::clone(&shared),
            fd,
            bus,
            run: Run {
                vcpu: number,
                ..Run::default()
            },
            unfinished: false,
            waiting_for_vmx: false,
        };
        let thread = std::thread::Builder::new()
            .name(format!("vcpu{number}"))
            .spawn(move || runner.main())
            .map_err(VmmError::Thread)?;
        Ok(Self {
            shared,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Lets the vCPU run.
    pub fn resume(&self) -> Result<(), VmmError> {
        let mut state = self.shared.lock();
        if let Actual::Ended(end) = &state.1 {
            return Err(ended(end));
        }
        state.0 = Wish::Run;
        self.shared.changed.notify_all();
        Ok(())
    }

    /// Stops the vCPU between two instructions. Returns when it has stopped.
    pub fn pause(&self) -> Result<(), VmmError> {
        self.shared.lock().0 = Wish::Pause;
        match self.await_actual("pause", |actual| *actual != Actual::Running)? {
            Actual::Ended(end) => Err(ended(&end)),
            _ => Ok(()),
        }
    }

    /// Ends the thread. `None` if it does not answer.
    pub fn quit(&self) -> Option<End> {
        self.shared.lock().0 = Wish::Quit;
        match self.await_actual("end", |actual| matches!(actual, Actual::Ended(_))) {
            Ok(Actual::Ended(end)) => {
                let thread = self
                    .thread
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .take();
                if let Some(thread) = thread {
                    // A panic of the thread was printed by its hook.
                    let _ = thread.join();
                }
                Some(end)
            }
            Ok(_) => None,
            Err(error) => {
                tracing::error!(%error, "a vCPU thread is left behind");
                None
            }
        }
    }

    /// Waits until the guest ends, at most `limit`.
    pub fn wait_end(&self, limit: Duration) -> Option<End> {
        let state = self.shared.lock();
        let (state, _) = self
            .shared
            .changed
            .wait_timeout_while(state, limit, |state| !matches!(state.1, Actual::Ended(_)))
            .unwrap_or_else(PoisonError::into_inner);
        match &state.1 {
            Actual::Ended(end) => Some(end.clone()),
            _ => None,
        }
    }

    /// Kicks the thread until `reached` holds of its state.
    fn await_actual(
        &self,
        action: &'static str,
        reached: impl Fn(&Actual) -> bool,
    ) -> Result<Actual, VmmError> {
        let limit = Instant::now() + Duration::from_secs(ANSWER_SECONDS);
        self.shared.changed.notify_all();
        let mut state = self.shared.lock();
        while !reached(&state.1) {
            if Instant::now() > limit {
                return Err(VmmError::VcpuStuck {
                    action,
                    seconds: ANSWER_SECONDS,
                });
            }
            drop(state);
            self.kick();
            state = self
                .shared
                .changed
                .wait_timeout_while(self.shared.lock(), KICK_INTERVAL, |state| {
                    !reached(&state.1)
                })
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        Ok(state.1.clone())
    }

    fn kick(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = &*thread {
            // It fails only for a thread that has ended, which then needs no kick.
            let _ = thread.kill(SIGRTMIN());
        }
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        self.quit();
    }
}

fn ended(end: &End) -> VmmError {
    VmmError::Ended {
        reason: end.to_string(),
    }
}

/// Installs the handler of the kick's signal. It does nothing: the interruption is the purpose.
fn prepare_kicks() {
    static DONE: OnceLock<()> = OnceLock::new();
    extern "C" fn kicked(
        _: nix::libc::c_int,
        _: *mut nix::libc::siginfo_t,
        _: *mut nix::libc::c_void,
    ) {
    }
    DONE.get_or_init(|| {
        if let Err(error) = register_signal_handler(SIGRTMIN(), kicked) {
            tracing::error!(%error, "cannot install the signal handler that interrupts vCPUs");
        }
    });
}

/// What the thread works with.
struct Runner {
    shared: Arc<Shared>,
    fd: Arc<dyn VmFd>,
    bus: Arc<PortBus>,
    run: Run,
    /// The last exit was an access that the next `RUN` completes.
    unfinished: bool,
    /// The last attempt to run found VT-x taken.
    waiting_for_vmx: bool,
}

/// Ends the state even if the thread panics, so that nobody waits for it in vain.
struct EndGuard(Arc<Shared>);

impl Drop for EndGuard {
    fn drop(&mut self) {
        let ended = matches!(self.0.lock().1, Actual::Ended(_));
        if !ended {
            self.0.set_actual(Actual::Ended(End::Error(
                "pvmmd's vCPU thread ended unexpectedly; this is a bug in pvmmd".into(),
            )));
        }
    }
}

impl Runner {
    fn main(mut self) {
        let _guard = EndGuard(Arc::clone(&self.shared));
        let end = match confine::vcpu_thread() {
            Ok(()) => self.run_until_end(),
            Err(error) => End::Error(error.to_string()),
        };
        self.shared.set_actual(Actual::Ended(end));
    }

    fn run_until_end(&mut self) -> End {
        loop {
            if !self.wait_to_run() {
                return End::Stopped;
            }
            if let Some(end) = self.run_while_wished() {
                return end;
            }
        }
    }

    /// Says that the vCPU has stopped, and waits. False when the thread is to end. Every change from stopped to running
    /// is made here, under the lock, so that nobody finds the vCPU stopped while it runs.
    fn wait_to_run(&self) -> bool {
        let mut state = self.shared.lock();
        loop {
            match state.0 {
                Wish::Quit => return false,
                Wish::Run => {
                    state.1 = Actual::Running;
                    return true;
                }
                Wish::Pause => {
                    state.1 = Actual::Paused;
                    self.shared.changed.notify_all();
                    state = self
                        .shared
                        .changed
                        .wait(state)
                        .unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    /// Runs the vCPU until something else is wished, and completes its last access.
    fn run_while_wished(&mut self) -> Option<End> {
        while self.wish() == Wish::Run {
            if let Some(end) = self.step() {
                return Some(end);
            }
        }
        self.finish_access()
    }

    fn wish(&self) -> Wish {
        self.shared.lock().0
    }

    /// Completes the last access without running the guest.
    fn finish_access(&mut self) -> Option<End> {
        while self.unfinished {
            self.run.immediate_exit = 1;
            let result = self.fd.run(&mut self.run);
            self.run.immediate_exit = 0;
            match result {
                Err(error) if !error.is_interrupted() => {
                    return Some(End::Error(error.to_string()))
                }
                // A string instruction may want its next access; it is answered, and finished in turn.
                Ok(()) if self.run.exit != EXIT_INTERRUPTED => {
                    self.unfinished = false;
                    if let Some(end) = self.answer() {
                        return Some(end);
                    }
                }
                _ => self.unfinished = false,
            }
        }
        None
    }

    /// Runs until the next exit and answers it.
    fn step(&mut self) -> Option<End> {
        match self.fd.run(&mut self.run) {
            Err(error) if error.is_interrupted() => {
                self.unfinished = false;
                None
            }
            Err(error) => Some(End::Error(error.to_string())),
            Ok(()) => {
                self.unfinished = false;
                let taken =
                    self.run.exit == EXIT_INTERNAL_ERROR && self.run.error == ERROR_VMX_UNAVAILABLE;
                if self.waiting_for_vmx && !taken {
                    self.waiting_for_vmx = false;
                    tracing::info!("VT-x is free again; the guest goes on");
                }
                self.answer()
            }
        }
    }

    /// Another hypervisor has the virtualisation hardware: waits a while, or until the vCPU shall not run anyway.
    fn wait_for_vmx(&mut self) {
        if !self.waiting_for_vmx {
            tracing::warn!(
                "another hypervisor has taken VT-x; the guest stands still until it is unloaded (for KVM: rmmod kvm_intel)"
            );
        }
        self.waiting_for_vmx = true;
        let state = self.shared.lock();
        // Whether the time or the wish ended the wait, the thread's loop finds out.
        drop(
            self.shared
                .changed
                .wait_timeout_while(state, VMX_INTERVAL, |state| state.0 == Wish::Run),
        );
    }

    fn answer(&mut self) -> Option<End> {
        let run = &mut self.run;
        match run.exit {
            EXIT_INTERRUPTED => {}
            EXIT_IO => {
                // The module reports ports, which have 16 bits.
                let port = run.address as u16;
                self.unfinished = true;
                if run.write == 0 {
                    run.value = self.bus.read(port, run.width);
                } else if self.bus.write(port, run.width, run.value) == Some(Event::Reset) {
                    return Some(End::Reset);
                }
            }
            EXIT_MMIO => {
                // No device of userspace is mapped into memory: absent.
                self.unfinished = true;
                if run.write == 0 {
                    run.value = u64::MAX;
                }
            }
            EXIT_POWER_OFF => return Some(End::Shutdown),
            EXIT_RESET => return Some(End::Reset),
            EXIT_SHUTDOWN => return Some(End::TripleFault),
            EXIT_HALTED_FOREVER => return Some(End::Halted),
            EXIT_INTERNAL_ERROR if run.error == ERROR_VMX_UNAVAILABLE => self.wait_for_vmx(),
            EXIT_INTERNAL_ERROR => return Some(End::Error(internal_error(run))),
            other => {
                return Some(End::Error(format!(
                    "the module reported exit {other}, which this pvmmd does not know; use the pvmmd of the module's \
                     version"
                )))
            }
        }
        None
    }
}

/// What an internal error of the module means.
fn internal_error(run: &Run) -> String {
    let Run { address, value, .. } = run;
    match run.error {
        ERROR_INVALID_GUEST_STATE => {
            format!(
                "VM entry failed because of invalid guest state (exit qualification {value:#x})"
            )
        }
        ERROR_DECODE => {
            format!("the instruction at RIP {address:#x} that accesses a device cannot be decoded")
        }
        ERROR_VM_INSTRUCTION => format!("VM-instruction error {value} (SDM volume 3, 32.4)"),
        ERROR_GUEST_MEMORY => {
            format!("the host could not provide the guest's page at {address:#x}")
        }
        ERROR_UNKNOWN_EXIT => format!("unknown exit reason {value:#x}"),
        ERROR_EVENT_DELIVERY => format!(
            "an interrupt or exception at RIP {value:#x} needs a table or stack at {address:#x}, where there is no memory"
        ),
        error => {
            HypervisorError::request("RUN", nix::errno::Errno::EIO).to_string()
                + &format!(" (error {error}, address {address:#x}, value {value:#x})")
        }
    }
}
