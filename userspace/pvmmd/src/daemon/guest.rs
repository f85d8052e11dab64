// SPDX-License-Identifier: GPL-2.0
//! One guest as the daemon knows it: from the moment that its virtual machine exists until some time after its end.

use super::moves::Move;
use super::{lock, Claim};
use pvmm_control::{ControlError, GuestInfo, GuestState};
use pvmm_migrate::InDoubt;
use pvmm_vmm::console::Console;
use pvmm_vmm::vcpu::End;
use pvmm_vmm::vm::AttachedDevice;
use pvmm_vmm::{IrqChip, Vm};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What a guest is doing, as far as its virtual machine does not know that.
enum Stage {
    /// It is being received.
    Arriving,
    /// It is here.
    Here,
    /// It is paused here and may be running at a peer.
    InDoubt(Box<InDoubt>),
    /// As before, and somebody is finding out.
    Resolving,
    /// It has ended.
    Ended(End, Instant),
}

/// A guest.
pub struct Guest {
    name: String,
    claim: Claim,
    irqchip: IrqChip,
    devices: Vec<AttachedDevice>,
    console: Console,
    /// Gone when the guest has ended, so that its memory is free.
    vm: Mutex<Option<Arc<Vm>>>,
    stage: Mutex<Stage>,
    /// Held while it is being ended, so that whoever comes second finds it ended.
    ending: Mutex<()>,
    /// The last move away from here.
    last_move: Mutex<Option<Arc<Move>>>,
    /// Somebody finds out whether it could be moved, which nobody may do meanwhile: there is one dirty log. Changes with
    /// `last_move` locked.
    checking: AtomicBool,
}

/// While somebody finds out whether a guest could be moved.
pub struct Checking<'a>(&'a Guest);

impl Drop for Checking<'_> {
    fn drop(&mut self) {
        self.0.checking.store(false, Ordering::SeqCst);
    }
}

impl Guest {
    /// A guest around a virtual machine. One that is arriving cannot be touched by requests.
    pub fn new(vm: Vm, arriving: bool) -> Self {
        let config = vm.config();
        Self {
            name: config.name.clone(),
            claim: Claim {
                memory: config.memory,
                devices: config.devices.clone(),
            },
            irqchip: config.irqchip,
            devices: vm.devices().to_vec(),
            console: vm.console().clone(),
            vm: Mutex::new(Some(Arc::new(vm))),
            stage: Mutex::new(if arriving {
                Stage::Arriving
            } else {
                Stage::Here
            }),
            ending: Mutex::default(),
            last_move: Mutex::default(),
            checking: AtomicBool::new(false),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it takes.
    pub fn claim(&self) -> &Claim {
        &self.claim
    }

    /// Its passed-through devices.
    pub fn devices(&self) -> &[AttachedDevice] {
        &self.devices
    }

    /// What it prints, also after its end.
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// Its virtual machine.
    pub fn vm(&self) -> Result<Arc<Vm>, ControlError> {
        match &*lock(&self.vm) {
            Some(vm) => Ok(Arc::clone(vm)),
            None => Err(self.ended_error()),
        }
    }

    fn ended_error(&self) -> ControlError {
        let how = match &*lock(&self.stage) {
            Stage::Ended(end, _) => format!(" ({end})"),
            _ => String::new(),
        };
        ControlError::failed(format!("guest \"{}\" has ended{how}", self.name))
    }

    /// When it ended.
    pub fn ended_at(&self) -> Option<Instant> {
        match &*lock(&self.stage) {
            Stage::Ended(_, at) => Some(*at),
            _ => None,
        }
    }

    /// Waits for it to end by itself, at most `limit`.
    pub fn wait_end(&self, limit: Duration) -> Option<End> {
        self.vm().ok()?.wait_end(limit)
    }

    /// Ends it, if it has not ended, and gives back what it had. On return it has ended.
    pub fn finish(&self, end: End) {
        let _ending = lock(&self.ending);
        // The virtual machine goes when the last user, perhaps a move that is failing, lets it go.
        let Some(vm) = lock(&self.vm).take() else {
            return;
        };
        let end = vm.finish(end);
        tracing::info!(guest = %self.name, %end, "ended");
        *lock(&self.stage) = Stage::Ended(end, Instant::now());
    }

    /// It has arrived and is this host's.
    pub fn arrived(&self) {
        let mut stage = lock(&self.stage);
        if matches!(*stage, Stage::Arriving) {
            *stage = Stage::Here;
        }
    }

    /// If requests that change it must wait: it is arriving, being moved away, or in doubt. `Ok` if not.
    pub fn check_free(&self) -> Result<(), ControlError> {
        let name = &self.name;
        if self.current_move().is_some_and(|m| !m.is_over()) {
            return Err(ControlError::failed(format!(
                "guest \"{name}\" is being moved; wait for the end, or give the move up with `pvmmd migrate-cancel {name}`"
            )));
        }
        match &*lock(&self.stage) {
            Stage::Arriving => Err(ControlError::failed(format!(
                "guest \"{name}\" is still arriving from a peer"
            ))),
            Stage::InDoubt(in_doubt) => Err(ControlError::failed(in_doubt)),
            Stage::Resolving => Err(ControlError::failed(format!(
                "it is being found out where guest \"{name}\" runs; wait for the end"
            ))),
            Stage::Here | Stage::Ended(..) => Ok(()),
        }
    }

    /// If its devices are in a state to be looked at: it is not arriving.
    pub fn check_here(&self) -> Result<(), ControlError> {
        match &*lock(&self.stage) {
            Stage::Arriving => Err(ControlError::failed(format!(
                "guest \"{}\" is still arriving from a peer",
                self.name
            ))),
            _ => Ok(()),
        }
    }

    /// The move that goes on, or the last one.
    pub fn current_move(&self) -> Option<Arc<Move>> {
        lock(&self.last_move).clone()
    }

    /// Makes `new` the guest's move, if none goes on.
    pub fn begin_move(&self, new: &Arc<Move>) -> Result<(), ControlError> {
        // Checked again under the lock, so that of two requests one wins.
        self.check_free()?;
        self.vm()?;
        let mut last = lock(&self.last_move);
        if last.as_ref().is_some_and(|last| !last.is_over()) {
            return Err(ControlError::failed(format!(
                "guest \"{}\" is being moved already",
                self.name
            )));
        }
        self.check_unwatched()?;
        *last = Some(Arc::clone(new));
        Ok(())
    }

    /// Begins to find out whether it could be moved. No move begins until the result is dropped.
    pub fn begin_check(&self) -> Result<Checking<'_>, ControlError> {
        self.check_free()?;
        self.vm()?;
        let last = lock(&self.last_move);
        if last.as_ref().is_some_and(|last| !last.is_over()) {
            return Err(ControlError::failed(format!(
                "guest \"{}\" is being moved already",
                self.name
            )));
        }
        self.check_unwatched()?;
        self.checking.store(true, Ordering::SeqCst);
        Ok(Checking(self))
    }

    fn check_unwatched(&self) -> Result<(), ControlError> {
        match self.checking.load(Ordering::SeqCst) {
            false => Ok(()),
            true => Err(ControlError::failed(format!(
                "it is being found out whether guest \"{}\" could be moved; try again in some seconds",
                self.name
            ))),
        }
    }

    /// Asks a move that goes on to give up, and waits for it.
    pub fn cancel_move(&self) {
        if let Some(current) = self.current_move() {
            if !current.is_over() && current.job().cancel().is_ok() {
                current.wait(Duration::from_secs(10));
            }
        }
    }

    /// Its move's outcome is not known.
    pub fn set_in_doubt(&self, in_doubt: Box<InDoubt>) {
        let mut stage = lock(&self.stage);
        if !matches!(*stage, Stage::Ended(..)) {
            *stage = Stage::InDoubt(in_doubt);
        }
    }

    /// Takes the doubt, to resolve it. Whoever takes it calls [`Self::set_in_doubt`] if it remains, or
    /// [`Self::set_here`] if the guest stays.
    pub fn take_doubt(&self) -> Option<Box<InDoubt>> {
        let mut stage = lock(&self.stage);
        match std::mem::replace(&mut *stage, Stage::Resolving) {
            Stage::InDoubt(in_doubt) => Some(in_doubt),
            other => {
                *stage = other;
                None
            }
        }
    }

    /// Its doubt is resolved: it stays here.
    pub fn set_here(&self) {
        let mut stage = lock(&self.stage);
        if matches!(*stage, Stage::Resolving) {
            *stage = Stage::Here;
        }
    }

    /// What a client is told about it.
    pub fn info(&self) -> GuestInfo {
        let paused = self.vm().map(|vm| vm.is_paused()).unwrap_or(true);
        let (state, end) = match &*lock(&self.stage) {
            Stage::Arriving => (GuestState::Inmigrate, None),
            Stage::InDoubt(_) | Stage::Resolving => (GuestState::InDoubt, None),
            Stage::Ended(end, _) => (GuestState::Ended, Some(end.clone())),
            Stage::Here if paused => (GuestState::Paused, None),
            Stage::Here => (GuestState::Running, None),
        };
        GuestInfo {
            name: self.name.clone(),
            state,
            end,
            migrating: self.current_move().is_some_and(|m| !m.is_over()),
            memory: self.claim.memory,
            vcpus: 1,
            irqchip: self.irqchip,
            devices: self.claim.devices.iter().map(ToString::to_string).collect(),
        }
    }
}
