// SPDX-License-Identifier: GPL-2.0
//! Looking at devices: what state they are in, and what the guest does to them. Nothing here changes a device.

/// Argument of [`crate::DEVICE_PEEK`].
///
/// The records are, in this order: the recorder's log, oldest access first ([`crate::ORIGIN_LOG`]); each register that can be
/// read now without a side effect ([`crate::ORIGIN_READ_BACK`]); of a model, the state that no access reaches
/// ([`crate::ORIGIN_INFERRED`]). They are for people: a device cannot be restored from them.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DevicePeek {
    /// The device's number.
    pub device: u32,
    /// Out: its `KIND_*`.
    pub kind: u32,
    /// User address of an array of [`crate::StateRecord`].
    pub records: u64,
    /// In: room in the array; [`crate::MAX_STATE_RECORDS`] is always enough. Out: records; more than the room fails with
    /// `ENOSPC`.
    pub count: u32,
    /// Out: `BACKEND_*`.
    pub backend: u32,
    /// Out: accesses in the recorder's log.
    pub log_length: u32,
    /// Out: most accesses that the log can hold.
    pub log_bound: u32,
    /// Out: `PEEK_*`.
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
}

/// Bit of [`DevicePeek::flags`]: the guest's accesses are not recorded ([`crate::ATTACH_UNRECORDED`]), so the log is empty.
pub const PEEK_UNRECORDED: u32 = 1 << 0;
/// Bit of [`DevicePeek::flags`]: the log has lost an access, so the device can't be captured any more.
pub const PEEK_OVERFLOWED: u32 = 1 << 1;

/// Argument of [`crate::DEVICE_TRACE`].
///
/// One device of a VM can be traced at a time. Only accesses that exit are seen: of a device of the host those that its
/// recorder asks for, of one without a recorder none, unless the guest sees it at other ports than the host has it.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeviceTrace {
    /// The device's number. One that no device has is seen to do nothing.
    pub device: u32,
    /// `TRACE_*`.
    pub operation: u32,
    /// [`TRACE_FETCH`]: user address of an array of [`TraceEntry`].
    pub entries: u64,
    /// In, for [`TRACE_FETCH`]: room in the array. Out: entries that were written.
    pub count: u32,
    /// Zero.
    pub reserved: u32,
    /// Out: accesses since the start that found no room and were not kept.
    pub lost: u64,
}

/// [`DeviceTrace::operation`]: note accesses from now on. `EEXIST` if a device is traced already.
pub const TRACE_START: u32 = 1;
/// [`DeviceTrace::operation`]: take the oldest entries. `EINVAL` if the device is not traced.
pub const TRACE_FETCH: u32 = 2;
/// [`DeviceTrace::operation`]: note nothing any more, and forget what was not fetched. `EINVAL` if the device is not traced.
pub const TRACE_STOP: u32 = 3;

/// Entries that wait to be fetched, at most.
pub const MAX_TRACE_ENTRIES: u32 = 512;

/// One access of the guest, in bytes as the device's bus splits it.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TraceEntry {
    /// When, in nanoseconds of the VM's time.
    pub vm_ns: u64,
    /// What was written, or what the device returned.
    pub value: u64,
    /// Offset in the range.
    pub offset: u64,
    /// The register, numbered by the kind's register table; [`TRACE_NO_REGISTER`] if the table knows none there.
    pub register: u16,
    /// Accesses in the recorder's log afterwards.
    pub log_length: u16,
    /// Which of the device's ranges.
    pub range: u8,
    /// Width of the access in bytes.
    pub width: u8,
    /// 1 for a write, 0 for a read.
    pub write: u8,
    /// `TRACE_ENTRY_*`.
    pub flags: u8,
}

/// [`TraceEntry::register`]: no register.
pub const TRACE_NO_REGISTER: u16 = u16::MAX;
/// Bit of [`TraceEntry::flags`]: the recorder keeps it.
pub const TRACE_ENTRY_LOGGED: u8 = 1 << 0;
