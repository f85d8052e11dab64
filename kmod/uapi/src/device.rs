// SPDX-License-Identifier: GPL-2.0
//! Devices: attaching them, capturing their state, executing restore plans.

/// Kind number: the 8259A pair with its ELCR.
pub const KIND_I8259: u32 = 1;
/// Kind number: the 8254 with port 61h.
pub const KIND_I8254: u32 = 2;
/// Kind number: a 16550A UART.
pub const KIND_UART16550: u32 = 3;
/// Kind number: a PC's parallel port.
pub const KIND_PARALLEL: u32 = 4;

/// Backend: the device is the host's own hardware.
pub const BACKEND_PHYSICAL: u32 = 1;
/// Backend: the device is a model in the monitor.
pub const BACKEND_MODELLED: u32 = 2;

/// Device number of the 8259A pair, which every VM has.
pub const DEVICE_I8259: u32 = 0;
/// Device number of the 8254, which every VM has.
pub const DEVICE_I8254: u32 = 1;

/// Highest number of port ranges of a device.
pub const MAX_PORT_RANGES: usize = 4;

/// An interrupt of [`AttachDevice`]: the device has none, or the guest does without.
pub const NO_IRQ: u32 = u32::MAX;

/// Argument of [`crate::ATTACH_DEVICE`]. How many port ranges the device has, and how long they are, comes from its kind;
/// places for ranges that the kind does not have must be 0. Any kind can be attached but those that every VM has.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AttachDevice {
    /// `KIND_*`.
    pub kind: u32,
    /// `BACKEND_*`; only [`BACKEND_PHYSICAL`] can be attached.
    pub backend: u32,
    /// First port of each range, as the guest sees it.
    pub guest_ports: [u32; MAX_PORT_RANGES],
    /// First port of each range of the host's device.
    pub host_ports: [u32; MAX_PORT_RANGES],
    /// ISA interrupt that the guest sees. [`NO_IRQ`] for a device without one; then `host_irq` is so too.
    pub guest_irq: u32,
    /// ISA interrupt of the host's device. With [`NO_IRQ`] none is claimed.
    pub host_irq: u32,
    /// Out: the device's number in the other requests.
    pub device: u32,
    /// `ATTACH_*`.
    pub flags: u32,
}

/// [`AttachDevice::flags`]: nothing of the guest's accesses is remembered, so that those that could go to the hardware
/// without an exit do. The device's state cannot be captured; [`crate::DEVICE_CAPTURE`] fails with `EOPNOTSUPP`.
pub const ATTACH_UNRECORDED: u32 = 1 << 0;

/// [`StateRecord::origin`]: a write of the guest, to be issued again in this order.
pub const ORIGIN_LOG: u8 = 0;
/// [`StateRecord::origin`]: read back from the device at capture.
pub const ORIGIN_READ_BACK: u8 = 1;
/// [`StateRecord::origin`]: state that no register shows, inferred by the kind.
pub const ORIGIN_INFERRED: u8 = 2;

/// One item of a device's captured state. A device's state is a sequence of these; the order of the
/// [`ORIGIN_LOG`] records is part of the state.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct StateRecord {
    /// The register, numbered by the kind's register table.
    pub register: u16,
    /// `ORIGIN_*`.
    pub origin: u8,
    /// Which of the device's ranges.
    pub range: u8,
    /// Width of the access in bytes.
    pub width: u8,
    /// Zero.
    pub reserved: [u8; 3],
    /// Offset in the range.
    pub offset: u64,
    /// The value.
    pub value: u64,
}

/// Argument of [`crate::DEVICE_CAPTURE`].
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeviceCapture {
    /// The device's number.
    pub device: u32,
    /// Out: its `KIND_*`.
    pub kind: u32,
    /// User address of an array of [`StateRecord`].
    pub records: u64,
    /// In: room in the array. Out: records in the state; more than the room fails with `ENOSPC`.
    pub count: u32,
    /// Out: version of the kind's state layout.
    pub version: u32,
    /// Out, if the request fails with `EAGAIN` or `EIO`: the register that stands against a capture, numbered by the kind's
    /// register table. `EAGAIN` says that the device is in the middle of something that the guest must finish first; 0 with
    /// `EIO`, that a part of what the guest did is not known.
    pub register: u32,
    /// Zero.
    pub reserved: u32,
}

/// [`PlanStep::operation`]: write `value`.
pub const STEP_WRITE: u32 = 1;
/// [`PlanStep::operation`]: read, and fail unless `read & mask == value`.
pub const STEP_CHECK: u32 = 2;
/// [`PlanStep::operation`]: read until `read & mask == value`, at most `limit_ns`.
pub const STEP_POLL: u32 = 3;
/// [`PlanStep::operation`]: wait `limit_ns`.
pub const STEP_DELAY: u32 = 4;
/// [`PlanStep::operation`]: set the state numbered `register`, which no access can reach, to `value`. Only a modelled
/// device accepts it.
pub const STEP_SET: u32 = 5;
/// [`PlanStep::operation`]: read and throw the value away, for the read's side effect.
pub const STEP_READ: u32 = 6;

/// One step of a restore plan. A plan names ranges and offsets of one device, never ports or addresses, so it can reach
/// nothing but that device.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PlanStep {
    /// `STEP_*`.
    pub operation: u32,
    /// The register that this step is about, numbered by the kind's register table; names it in errors.
    pub register: u16,
    /// Which of the device's ranges.
    pub range: u8,
    /// Width of the access in bytes.
    pub width: u8,
    /// Offset in the range.
    pub offset: u64,
    /// Value to write or to expect.
    pub value: u64,
    /// Bits that matter for a check or poll.
    pub mask: u64,
    /// Limit of a poll, length of a delay, in nanoseconds. At most [`MAX_STEP_NS`].
    pub limit_ns: u64,
}

/// Longest poll or delay of one step.
pub const MAX_STEP_NS: u64 = 100_000_000;
/// Highest number of steps in a plan.
pub const MAX_PLAN_STEPS: u32 = 256;
/// Highest number of records in a captured state.
pub const MAX_STATE_RECORDS: u32 = 128;

/// [`DeviceExecute::outcome`]: every step was executed and every check held.
pub const OUTCOME_DONE: u32 = 0;
/// [`DeviceExecute::outcome`]: a check found another value.
pub const OUTCOME_MISMATCH: u32 = 1;
/// [`DeviceExecute::outcome`]: a poll reached its limit.
pub const OUTCOME_TIMEOUT: u32 = 2;
/// [`DeviceExecute::outcome`]: a step is outside the device or malformed. Nothing was executed.
pub const OUTCOME_REFUSED: u32 = 3;

/// Argument of [`crate::DEVICE_EXECUTE`].
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeviceExecute {
    /// The device's number.
    pub device: u32,
    /// Number of steps, at most [`MAX_PLAN_STEPS`].
    pub count: u32,
    /// User address of an array of [`PlanStep`].
    pub steps: u64,
    /// Out: `OUTCOME_*`.
    pub outcome: u32,
    /// Out: the step that the outcome is about.
    pub step: u32,
    /// Out: the value that was read there.
    pub found: u64,
}
