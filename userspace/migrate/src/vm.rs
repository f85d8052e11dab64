// SPDX-License-Identifier: GPL-2.0
//! What the daemon implements so that the engine can move its guests: [`SourceVm`] on the sending side, [`TargetHost`]
//! and [`TargetVm`] on the receiving one.
//!
//! Place on the path: between the engine ([`crate::source`], [`crate::target`]) and the ioctls that capture a guest's
//! state on one host and restore it on the other. Neither trait knows the stream: the values are those of `pvmm_uapi`.
//!
//! All methods block and are called from the one thread that runs the move, never two at a time.

use crate::description::{HostDescription, VmDescription};
use crate::refusal::Refusal;
use pvmm_uapi::{ChipsetState, Clock, DirtyRange, PlanStep, StateRecord, VcpuState};

/// What went wrong in the daemon's part. Its text reaches the operator on both hosts, so it should say what failed and
/// what to do.
pub type VmError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// Size of a guest page in bytes, the unit in which memory moves.
pub const PAGE_SIZE: usize = 4096;

/// Whether a guest executes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// Its vCPUs execute.
    Running,
    /// Its operator has paused it. It is moved as it is and stays paused on the peer.
    Paused,
}

/// State of a recorded device as [`SourceVm::capture_device`] returns it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CapturedDevice {
    /// `pvmm_uapi::KIND_*`.
    pub kind: u32,
    /// Version of the kind's state layout, as `DEVICE_CAPTURE` reported it.
    pub version: u32,
    /// The state, in the order of capture. At most [`pvmm_uapi::MAX_STATE_RECORDS`].
    pub records: Vec<StateRecord>,
}

/// Why a device's state could not be captured.
#[derive(Debug)]
pub enum CaptureFailure {
    /// The device is in the middle of something that the guest has to finish first. It is as it was.
    Busy {
        /// The register that shows it, numbered by the kind's register table.
        register: u16,
    },
    /// Anything else.
    Failed(VmError),
}

impl From<VmError> for CaptureFailure {
    fn from(error: VmError) -> Self {
        Self::Failed(error)
    }
}

/// State of a device that lives in the daemon (the console UART "com1", the "rtc"). The engine carries it unread.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct UserDeviceState {
    /// Name under which [`VmDescription::user_devices`] announced it.
    pub name: String,
    /// Version of the layout of `data`.
    pub version: u32,
    /// The device's own encoding. At most [`crate::wire::MAX_USER_DEVICE_BYTES`].
    pub data: Vec<u8>,
}

/// How a restore plan ended: the results of `DEVICE_EXECUTE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Executed {
    /// `pvmm_uapi::OUTCOME_*`.
    pub outcome: u32,
    /// The step that the outcome is about.
    pub step: u32,
    /// The value that was read there.
    pub found: u64,
}

/// A guest that is to be moved away.
///
/// The engine calls, in this order: `describe`; `start_dirty_log`, then rounds of `read_pages` and `fetch_dirty`; `pause`;
/// `capture_device` for each physical device, and, if one is busy, `execute` for those that were captured and `resume`, and all
/// that again; the last `fetch_dirty` and `read_pages`; `capture_*`; and in the end either `release` (the guest runs on the peer) or
/// `execute` for each device that had been captured, `stop_dirty_log` and `resume` (it stays).
pub trait SourceVm {
    /// What the guest is made of. Called first, while it runs; nothing in it may change until the move ends.
    fn describe(&mut self) -> Result<VmDescription, VmError>;

    /// Starts dirty tracking with every page clean.
    fn start_dirty_log(&mut self) -> Result<(), VmError>;

    /// The pages written since the log started or was last fetched, all of them (a fetch that filled its array is
    /// repeated by the implementation). A reported page is clean before this returns, so a write that comes later is
    /// reported by the next call.
    fn fetch_dirty(&mut self) -> Result<Vec<DirtyRange>, VmError>;

    /// Stops dirty tracking. Must also succeed when it is not on.
    fn stop_dirty_log(&mut self) -> Result<(), VmError>;

    /// Copies guest memory from frame `gfn` on. `buffer` is a multiple of [`PAGE_SIZE`] and lies within one of the described
    /// regions. The guest may write at the same time: a torn page is reported dirty and read again.
    fn read_pages(&mut self, gfn: u64, buffer: &mut [u8]) -> Result<(), VmError>;

    /// Stops all vCPUs between two instructions, with the last access to a userspace device completed. On return none
    /// executes. Not called for a guest that is [`RunState::Paused`].
    fn pause(&mut self) -> Result<(), VmError>;

    /// Lets the guest go on after a move that failed, or to finish what a device is in the middle of, as if nothing had happened. `clock` is where the guest's time
    /// stands now, with the pause counted; `None` if it could not be found out. The implementation sets it (`SET_CLOCK`)
    /// before a vCPU runs. Called only after [`Self::pause`], which may itself have failed.
    fn resume(&mut self, clock: Option<Clock>) -> Result<(), VmError>;

    /// A vCPU's state. The guest is paused.
    fn capture_vcpu(&mut self, vcpu: u32) -> Result<VcpuState, VmError>;

    /// The chipset's state. The guest is paused.
    fn capture_chipset(&mut self) -> Result<ChipsetState, VmError>;

    /// Where the guest's time stands. The guest is paused, so it stands still.
    fn capture_clock(&mut self) -> Result<Clock, VmError>;

    /// The state of recorded device `device`, a number from [`VmDescription::devices`]. The guest is paused. May be called
    /// again for the same device; the last one counts.
    fn capture_device(&mut self, device: u32) -> Result<CapturedDevice, CaptureFailure>;

    /// Executes a plan on a device. Used only before the guest goes on here, to put a device back into the state that its
    /// capture found (a capture may drain a FIFO).
    fn execute(&mut self, device: u32, steps: &[PlanStep]) -> Result<Executed, VmError>;

    /// The states of all devices of [`VmDescription::user_devices`], in that order. The guest is paused.
    fn capture_user_devices(&mut self) -> Result<Vec<UserDeviceState>, VmError>;

    /// The guest runs on the peer: gives up everything that it holds here. It must never run here again, whatever this
    /// returns.
    fn release(&mut self) -> Result<(), VmError>;
}

/// The receiving host.
pub trait TargetHost {
    /// A guest in the making.
    type Vm: TargetVm;

    /// What this host offers an incoming guest. The engine compares it with the guest's description
    /// ([`crate::compat::check`]) before it calls [`Self::prepare`].
    fn describe_host(&self) -> Result<HostDescription, VmError>;

    /// Makes the guest without running it: name reserved, memory allocated *and zero*, vCPUs with their CPUID table,
    /// devices claimed from the host. May be called by several connections at once. What was taken is given back
    /// when it refuses. Every reason to refuse must be found here: after this, pages flow. The description's TSC rate is
    /// this host's own if the source's counts as the same.
    fn prepare(&self, description: &VmDescription) -> Result<Self::Vm, Refusal>;

    /// As [`Self::prepare`], for a guest that does not come now: finds the reasons to refuse that can be found without
    /// making, reserving or claiming anything.
    fn check(&self, description: &VmDescription) -> Result<(), Refusal>;
}

/// A guest that is being received. It does not run until [`Self::start`].
pub trait TargetVm {
    /// Stores pages from frame `gfn` on. The engine has checked that they lie in one described region.
    fn write_pages(&mut self, gfn: u64, data: &[u8]) -> Result<(), VmError>;

    /// Zeroes `pages` pages from frame `gfn` on. Called only for pages that were written before.
    fn zero_pages(&mut self, gfn: u64, pages: u64) -> Result<(), VmError>;

    /// Sets a vCPU's state.
    fn restore_vcpu(&mut self, vcpu: u32, state: &VcpuState) -> Result<(), VmError>;

    /// Sets the chipset's state.
    fn restore_chipset(&mut self, state: &ChipsetState) -> Result<(), VmError>;

    /// Sets the guest's time to that of the pause, so that devices whose state is relative to it are restored right.
    /// [`Self::start`] gets the final value. Called before any device is restored.
    fn restore_clock(&mut self, clock: &Clock) -> Result<(), VmError>;

    /// Executes a restore plan on recorded device `device` (`DEVICE_EXECUTE`). A mismatch is a result, not an error.
    fn execute(&mut self, device: u32, steps: &[PlanStep]) -> Result<Executed, VmError>;

    /// Restores a device that lives in the daemon.
    fn restore_user_device(&mut self, state: &UserDeviceState) -> Result<(), VmError>;

    /// Last check before the peer is told that the guest is complete: an error here keeps it running at the source. Reads
    /// back what can be read back, and finds out that the guest can start.
    fn verify(&mut self) -> Result<(), VmError>;

    /// The move is committed: this guest is now the only one. Sets the clock to `clock` and, if `state` is
    /// [`RunState::Running`], lets it execute. On an error *not one instruction* of the guest may have executed: the
    /// source is then told to go on.
    fn start(&mut self, clock: &Clock, state: RunState) -> Result<(), VmError>;

    /// The move failed: gives everything back (memory, devices to their host drivers, the name).
    fn discard(&mut self);
}
