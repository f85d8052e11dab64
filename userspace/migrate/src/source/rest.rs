// SPDX-License-Identifier: GPL-2.0
//! Choosing the moment: a guest is handed over only while no device of the host is in the middle of something that cannot be
//! carried.
//!
//! Place on the path: the source's phase pause, before anything of the state is sent. A kind says that its device is busy when
//! it is captured ([`CaptureFailure::Busy`]). Then the guest runs on for a while, in which it can finish, what it writes
//! meanwhile goes into another round of pre-copy, and it is paused again: until [`crate::options::SourceOptions::rest_limit`].

use super::recovery::{put_back, resume};
use super::Source;
use crate::description::{Backend, VmDescription};
use crate::devices::{kind_name, register_name};
use crate::error::Error;
use crate::phase::Scope;
use crate::vm::{CaptureFailure, RunState};
use std::time::{Duration, Instant};

/// How long the guest runs before it is paused again: a driver's handshake takes far less.
const RUN_TIME: Duration = Duration::from_millis(20);
/// How soon a move that is cancelled meanwhile ends.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// A device that is in the middle of something.
pub(super) struct Busy {
    device: u32,
    kind: u32,
    register: u16,
}

impl Busy {
    pub(super) const fn new(device: u32, kind: u32, register: u16) -> Self {
        Self {
            device,
            kind,
            register,
        }
    }
}

impl Source<'_> {
    /// Captures the devices of the host to see if one is busy. What is captured counts only until the guest runs on or is
    /// captured for the target.
    pub(super) fn busy_device(
        &mut self,
        description: &VmDescription,
    ) -> Result<Option<Busy>, Error> {
        let physical = description.devices.iter();
        for described in physical.filter(|device| device.backend == Backend::Physical) {
            match self.vm.capture_device(described.device) {
                Ok(captured) => self.held.captured.push((described.device, captured)),
                Err(CaptureFailure::Busy { register }) => {
                    return Ok(Some(Busy::new(described.device, described.kind, register)))
                }
                Err(CaptureFailure::Failed(error)) => {
                    return Err(Error::vm("capture a device")(error))
                }
            }
        }
        Ok(None)
    }

    /// Puts back what was captured and lets the guest run for a little.
    pub(super) fn run_on(&mut self, scope: &Scope<'_>, busy: Busy) -> Result<(), Error> {
        let since = *self.busy_since.get_or_insert_with(Instant::now);
        let (RunState::Running, Some(paused_at)) = (self.held.state, self.held.paused_at) else {
            return Err(self.not_at_rest(busy));
        };
        if since.elapsed() >= self.options.rest_limit {
            return Err(self.not_at_rest(busy));
        }
        tracing::debug!(
            device = busy.device,
            register = busy.register,
            "not at rest; the guest runs on"
        );
        // Each is taken out of the list only when it is back, so that a failure finds the others.
        while let Some((device, captured)) = self.held.captured.last() {
            put_back(self.vm, *device, captured).map_err(Error::vm("put a device back"))?;
            self.held.captured.pop();
        }
        resume(self.vm, None, paused_at).map_err(Error::vm("let the guest run on"))?;
        self.held.paused_at = None;
        let until = Instant::now() + RUN_TIME;
        while Instant::now() < until {
            scope.check()?;
            std::thread::sleep(LOOK_INTERVAL);
        }
        Ok(())
    }

    /// The failure of a move whose device does not come to rest.
    pub(super) fn not_at_rest(&self, busy: Busy) -> Error {
        Error::NotAtRest {
            device: busy.device,
            kind: kind_name(busy.kind).unwrap_or("a device of an unknown kind"),
            register: register_name(busy.kind, busy.register),
            waited: self
                .busy_since
                .map_or(Duration::ZERO, |since| since.elapsed()),
            may_run: self.held.state == RunState::Running,
        }
    }
}
