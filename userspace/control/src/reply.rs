// SPDX-License-Identifier: GPL-2.0
//! What the daemon answers.

use pvmm_migrate::Statistics;
use pvmm_vmm::vcpu::End;
use pvmm_vmm::IrqChip;
use serde::{Deserialize, Serialize};

/// One line from the daemon.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Message {
    /// The request was carried out.
    Return(Reply),
    /// It was not.
    Error(ControlError),
    /// It is being carried out.
    Event(Event),
}

/// Something that a client waiting for a request's end is told meanwhile.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// A move's progress.
    Migration(Box<Statistics>),
    /// What a guest has done to a device.
    Trace(TracedAccesses),
}

/// The result of a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// There is nothing to say but that it is done.
    Done,
    /// Versions.
    Version(Version),
    /// Module and host.
    Capabilities(HostCapabilities),
    /// All guests.
    Guests(Vec<GuestInfo>),
    /// One guest.
    Guest(Box<GuestInfo>),
    /// A move.
    Job(Box<Statistics>),
    /// A guest's devices.
    Devices(Vec<DeviceInfo>),
    /// Whether a guest could be moved.
    MoveCheck(Box<MoveCheck>),
}

/// Versions of the parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Version {
    /// pvmmd's.
    pub daemon: String,
    /// The control interface's.
    pub control: u32,
    /// The ABI that pvmmd was built for.
    pub api: u32,
    /// The loaded module's; absent if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
}

/// What module and host can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct HostCapabilities {
    /// Version of the loaded module.
    pub module: String,
    /// Features of the processor that the module uses.
    pub features: Vec<String>,
    /// Highest number of vCPUs in a guest.
    pub max_vcpus: u32,
    /// Host CPUs online.
    pub host_cpus: u32,
    /// The host's TSC rate in kHz.
    pub tsc_khz: u32,
    /// XCR0 bits that a guest may set.
    pub supported_xcr0: u64,
    /// IA32_VMX_BASIC.
    pub vmx_basic: u64,
    /// IA32_VMX_EPT_VPID_CAP.
    pub vmx_ept_vpid_cap: u64,
    /// IA32_VMX_PROCBASED_CTLS2.
    pub vmx_procbased_ctls2: u64,
    /// Where incoming guests may connect to.
    pub listen: Vec<String>,
    /// Devices that incoming guests may use.
    pub granted: Vec<String>,
}

/// What a guest is doing. Names are QMP's `RunState` where it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GuestState {
    /// It executes.
    Running,
    /// Its operator paused it, or a move that goes on.
    Paused,
    /// It is being received from a peer.
    Inmigrate,
    /// It may be running at a peer; it is paused here until that is known.
    InDoubt,
    /// It has ended; `end` says how.
    Ended,
}

impl std::fmt::Display for GuestState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Inmigrate => "inmigrate",
            Self::InDoubt => "in doubt",
            Self::Ended => "ended",
        })
    }
}

/// A guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct GuestInfo {
    /// Its name.
    pub name: String,
    /// What it is doing.
    pub state: GuestState,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<End>,
    /// If it is being moved away.
    pub migrating: bool,
    /// Memory in bytes.
    pub memory: u64,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Interrupt controllers.
    pub irqchip: IrqChip,
    /// Passed-through devices, as options.
    pub devices: Vec<String>,
}

/// Whether a guest could be moved to a peer, and what that would cost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MoveCheck {
    /// If the peer would take it.
    pub accepted: bool,
    /// The peer's daemon and module, if it would.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Reasons against it that concern no device, each with its remedy.
    pub reasons: Vec<String>,
    /// The guest's devices.
    pub devices: Vec<DeviceCheck>,
    /// The guest's memory in bytes.
    pub memory: u64,
    /// How much of it is not zero, estimated.
    pub content: u64,
    /// Bytes of pages that the guest writes to per second.
    pub dirty_rate: u64,
    /// Bytes per second that the link takes, or that the request allows.
    pub bandwidth: u64,
    /// The link's round trip in microseconds.
    pub round_trip: u64,
    /// Milliseconds until the guest would run at the peer.
    pub expected_total_time: u64,
    /// Milliseconds that it would be paused.
    pub expected_downtime: u64,
    /// Milliseconds that it may be paused.
    pub downtime_limit: u64,
    /// If pre-copy would come within that limit.
    pub converges: bool,
}

/// A device in a [`MoveCheck`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DeviceCheck {
    /// Its name in the guest.
    pub device: String,
    /// Its kind.
    pub kind: String,
    /// Reasons why it cannot move, each with its remedy; none if it can.
    pub reasons: Vec<String>,
}

/// A device of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DeviceInfo {
    /// Its name in the guest.
    pub device: String,
    /// Its number in the module's requests; absent for one that lives in the daemon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<u32>,
    /// The kind that the guest sees.
    pub guest_kind: String,
    /// The kind that is really there.
    pub real_kind: String,
    /// `physical`, `modelled` or `user`.
    pub backend: String,
    /// Which machine it is in.
    pub location: String,
    /// First port that the guest sees.
    pub port: u16,
    /// ISA interrupt that the guest sees; absent for a device without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub irq: Option<u8>,
    /// First port of the host's device, for a physical one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_port: Option<u16>,
    /// ISA interrupt of the host's device, for a physical one that has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_irq: Option<u8>,
    /// All its ranges of ports, in the order of its kind.
    #[serde(default)]
    pub ranges: Vec<PortRange>,
    /// What its recorder keeps; absent for a device without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<DeviceLog>,
    /// Why it cannot move, whatever the peer has, each reason with its remedy; none if nothing is known against it.
    #[serde(default)]
    pub obstacles: Vec<String>,
    /// Its state, as far as it can be seen without changing it: see [`Origin`] for the order.
    #[serde(default)]
    pub state: Vec<StateItem>,
    /// Why the state cannot be said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown: Option<String>,
}

/// A range of ports of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PortRange {
    /// First port that the guest sees.
    pub port: u16,
    /// How many.
    pub count: u16,
    /// First port of the host's device, for a physical one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_port: Option<u16>,
}

/// What a recorder keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DeviceLog {
    /// Accesses in its log.
    pub length: u32,
    /// Most that there can be.
    pub bound: u32,
    /// If the guest's accesses are recorded at all.
    pub recorded: bool,
    /// If one was lost because there was no room.
    pub overflowed: bool,
}

/// Where an item of a device's state is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// The recorder's log: an access of the guest. These come first, the oldest before the others.
    Log,
    /// Read from the device.
    Read,
    /// Known to the model, whose registers do not show it.
    Model,
    /// Known to the daemon, in which the device lives.
    User,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Log => "log",
            Self::Read => "read",
            Self::Model => "model",
            Self::User => "user",
        })
    }
}

/// An item of a device's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct StateItem {
    /// The register's name in the kind's table.
    pub item: String,
    /// Its value.
    pub value: u64,
    /// The value in the words of the data sheet; empty if there are none.
    pub meaning: String,
    /// Where it is from.
    pub origin: Origin,
}

/// Accesses of a guest to a device that is traced.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct TracedAccesses {
    /// The accesses, oldest first. There may be none: then it is only said that the trace goes on.
    pub accesses: Vec<TracedAccess>,
    /// Accesses since the trace began that came too fast and are not told.
    pub lost: u64,
}

/// An access of a guest to a device that is traced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct TracedAccess {
    /// When, in nanoseconds of the guest's time.
    pub time: u64,
    /// The port that the guest sees.
    pub port: u16,
    /// If it was a write.
    pub write: bool,
    /// What was written or read.
    pub value: u64,
    /// The register that the recorder took it for; absent if the kind has none there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub register: Option<String>,
    /// The value in the words of the data sheet; empty if there are none.
    pub meaning: String,
    /// If the recorder keeps it.
    pub logged: bool,
    /// Accesses in the recorder's log afterwards.
    pub log_length: u16,
}

/// Groups of errors that a program may treat differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorClass {
    /// Anything else; the guest, if one is named, is as before.
    Failed,
    /// Somebody cancelled.
    Cancelled,
    /// Refused before anything happened: a peer or this host cannot take the guest.
    Refused,
    /// No guest has this name.
    NotFound,
    /// The client speaks another version of the interface.
    Version,
    /// The request makes no sense.
    Invalid,
}

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{desc}")]
pub struct ControlError {
    /// The group.
    pub class: ErrorClass,
    /// What failed and what to do.
    pub desc: String,
}

impl ControlError {
    /// An error of a class.
    pub fn new(class: ErrorClass, desc: impl Into<String>) -> Self {
        Self {
            class,
            desc: desc.into(),
        }
    }

    /// An error of class [`ErrorClass::Failed`].
    pub fn failed(error: impl std::fmt::Display) -> Self {
        Self::new(ErrorClass::Failed, error.to_string())
    }

    /// An error of class [`ErrorClass::Invalid`].
    pub fn invalid(error: impl std::fmt::Display) -> Self {
        Self::new(ErrorClass::Invalid, error.to_string())
    }

    /// The exit code that the command line gives it.
    pub fn exit_code(&self) -> u8 {
        match self.class {
            ErrorClass::Cancelled => 3,
            ErrorClass::Refused => 4,
            _ => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_each_message_stays_as_it_is() {
        let cases = [
            (Message::Return(Reply::Done), r#"{"return":"done"}"#),
            (
                Message::Error(ControlError::new(ErrorClass::NotFound, "no")),
                r#"{"error":{"class":"not-found","desc":"no"}}"#,
            ),
            (
                Message::Return(Reply::Guests(vec![GuestInfo {
                    name: "a".into(),
                    state: GuestState::Ended,
                    end: Some(End::Error("why".into())),
                    migrating: false,
                    memory: 1 << 26,
                    vcpus: 1,
                    irqchip: IrqChip::Apic,
                    devices: Vec::new(),
                }])),
                r#"{"return":{"guests":[{"name":"a","state":"ended","end":{"reason":"error","detail":"why"},"migrating":false,"memory":67108864,"vcpus":1,"irqchip":"apic","devices":[]}]}}"#,
            ),
        ];
        for (message, text) in cases {
            assert_eq!(serde_json::to_string(&message).expect("plain data"), text);
            assert_eq!(serde_json::from_str::<Message>(text).expect(text), message);
        }
    }

    #[test]
    fn the_text_of_a_device_and_of_a_trace_stays_as_it_is() {
        let device = DeviceInfo {
            device: "com2".into(),
            number: Some(2),
            guest_kind: "serial".into(),
            real_kind: "serial".into(),
            backend: "physical".into(),
            location: "this host".into(),
            port: 0x2f8,
            irq: Some(3),
            host_port: Some(0x3f8),
            host_irq: Some(4),
            ranges: vec![PortRange {
                port: 0x2f8,
                count: 8,
                host_port: Some(0x3f8),
            }],
            log: Some(DeviceLog {
                length: 1,
                bound: 4,
                recorded: true,
                overflowed: false,
            }),
            obstacles: Vec::new(),
            state: vec![StateItem {
                item: "LCR".into(),
                value: 0x13,
                meaning: "8n1 DLAB=0".into(),
                origin: Origin::Read,
            }],
            unknown: None,
        };
        let trace = TracedAccesses {
            accesses: vec![TracedAccess {
                time: 5,
                port: 0x2fb,
                write: true,
                value: 0x13,
                register: Some("LCR".into()),
                meaning: "8n1 DLAB=0".into(),
                logged: true,
                log_length: 1,
            }],
            lost: 0,
        };
        let cases = [
            (
                Message::Return(Reply::Devices(vec![device])),
                r#"{"return":{"devices":[{"device":"com2","number":2,"guest-kind":"serial","real-kind":"serial","backend":"physical","location":"this host","port":760,"irq":3,"host-port":1016,"host-irq":4,"ranges":[{"port":760,"count":8,"host-port":1016}],"log":{"length":1,"bound":4,"recorded":true,"overflowed":false},"obstacles":[],"state":[{"item":"LCR","value":19,"meaning":"8n1 DLAB=0","origin":"read"}]}]}}"#,
            ),
            (
                Message::Event(Event::Trace(trace)),
                r#"{"event":{"trace":{"accesses":[{"time":5,"port":763,"write":true,"value":19,"register":"LCR","meaning":"8n1 DLAB=0","logged":true,"log-length":1}],"lost":0}}}"#,
            ),
        ];
        for (message, text) in cases {
            assert_eq!(serde_json::to_string(&message).expect("plain data"), text);
            assert_eq!(serde_json::from_str::<Message>(text).expect(text), message);
        }
    }

    #[test]
    fn a_move_s_progress_has_the_keys_of_query_migrate() {
        let event = Message::Event(Event::Migration(Box::default()));
        let value = serde_json::to_value(&event).expect("plain data");
        let ram = &value["event"]["migration"]["ram"];
        for key in [
            "transferred",
            "remaining",
            "total",
            "normal-bytes",
            "dirty-sync-count",
        ] {
            assert!(ram.get(key).is_some(), "{key} in {value}");
        }
    }
}
