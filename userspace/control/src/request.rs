// SPDX-License-Identifier: GPL-2.0
//! What a client can ask.

use pvmm_vmm::{DeviceSpec, IrqChip};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A request as it travels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Envelope {
    /// [`crate::VERSION`].
    pub version: u32,
    /// The request.
    #[serde(flatten)]
    pub request: Request,
}

/// A request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "execute", content = "arguments", rename_all = "kebab-case")]
pub enum Request {
    /// Versions of daemon, interface and module.
    Version,
    /// What module and host can do.
    Capabilities,
    /// The guests.
    List,
    /// One guest.
    Info(Name),
    /// Boots a guest.
    Run(Box<Run>),
    /// Stops a guest's vCPUs and its time.
    Pause(Name),
    /// Lets a paused guest go on.
    Resume(Name),
    /// Ends a guest.
    Stop(Name),
    /// Turns the connection into the guest's console.
    Console(Console),
    /// Moves a guest to a peer; events tell the progress.
    Migrate(Box<Migrate>),
    /// Says whether a guest could be moved, and what that would cost, without moving it.
    MigrateCheck(Box<Migrate>),
    /// Gives a move up.
    MigrateCancel(Name),
    /// Decides what becomes of a guest whose move was interrupted while it was committed.
    MigrateRecover(Recover),
    /// How a guest's move stands or ended.
    JobInfo(Name),
    /// A guest's devices and their state.
    Devices(Name),
    /// What a guest does to a device, told by events until the guest ends or the client goes.
    Trace(Trace),
}

impl Request {
    /// Its name on the wire.
    pub fn command(&self) -> &'static str {
        match self {
            Self::Version => "version",
            Self::Capabilities => "capabilities",
            Self::List => "list",
            Self::Info(_) => "info",
            Self::Run(_) => "run",
            Self::Pause(_) => "pause",
            Self::Resume(_) => "resume",
            Self::Stop(_) => "stop",
            Self::Console(_) => "console",
            Self::Migrate(_) => "migrate",
            Self::MigrateCheck(_) => "migrate-check",
            Self::MigrateCancel(_) => "migrate-cancel",
            Self::MigrateRecover(_) => "migrate-recover",
            Self::JobInfo(_) => "job-info",
            Self::Devices(_) => "devices",
            Self::Trace(_) => "trace",
        }
    }

    /// The guest that it is about.
    pub fn guest(&self) -> Option<&str> {
        match self {
            Self::Version | Self::Capabilities | Self::List => None,
            Self::Info(Name { name })
            | Self::Pause(Name { name })
            | Self::Resume(Name { name })
            | Self::Stop(Name { name })
            | Self::MigrateCancel(Name { name })
            | Self::JobInfo(Name { name })
            | Self::Devices(Name { name }) => Some(name),
            Self::Run(run) => Some(&run.name),
            Self::Console(console) => Some(&console.name),
            Self::Trace(trace) => Some(&trace.name),
            Self::Migrate(migrate) | Self::MigrateCheck(migrate) => Some(&migrate.name),
            Self::MigrateRecover(recover) => Some(&recover.name),
        }
    }

    /// Whether it does more than look.
    pub fn changes(&self) -> bool {
        match self {
            Self::Version
            | Self::Capabilities
            | Self::List
            | Self::Info(_)
            | Self::JobInfo(_)
            | Self::MigrateCheck(_)
            | Self::Devices(_)
            | Self::Trace(_) => false,
            Self::Run(_)
            | Self::Pause(_)
            | Self::Resume(_)
            | Self::Stop(_)
            // Who has it can type.
            | Self::Console(_)
            | Self::Migrate(_)
            | Self::MigrateCancel(_)
            | Self::MigrateRecover(_) => true,
        }
    }
}

/// Arguments of requests that only name a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Name {
    /// The guest's name.
    pub name: String,
}

/// Arguments of [`Request::Run`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Run {
    /// The new guest's name.
    pub name: String,
    /// A bzImage, as an absolute path on the daemon's host.
    pub kernel: PathBuf,
    /// An initial RAM disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    #[serde(default)]
    pub cmdline: String,
    /// Memory in bytes.
    pub memory: u64,
    /// Interrupt controllers.
    #[serde(default)]
    pub irqchip: IrqChip,
    /// Passed-through devices.
    #[serde(default)]
    pub devices: Vec<DeviceSpec>,
}

/// Arguments of [`Request::Console`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Console {
    /// The guest's name.
    pub name: String,
    /// Begin with what was printed before, as far as it is kept.
    pub backlog: bool,
}

/// Arguments of [`Request::Trace`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Trace {
    /// The guest's name.
    pub name: String,
    /// The device's name in the guest, as [`Request::Devices`] tells it.
    pub device: String,
}

/// Arguments of [`Request::Migrate`]. Names are virsh's and QMP's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Migrate {
    /// The guest's name.
    pub name: String,
    /// Where to: `tcp:HOST:PORT` or `unix:PATH`.
    pub url: String,
    /// `precopy` or `stopcopy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// How long the guest may be paused, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downtime_limit: Option<u64>,
    /// Bytes per second while the guest runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bandwidth: Option<u64>,
    /// Seconds until the guest must have been paused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u64>,
    /// `cancel`, `suspend` or `ignore`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_action: Option<String>,
}

/// What to do about a guest in doubt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decision {
    /// Ask the peer again.
    Ask,
    /// It certainly does not run at the peer: let it go on here.
    ResumeHere,
    /// It runs at the peer: discard it here.
    Discard,
}

/// Arguments of [`Request::MigrateRecover`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recover {
    /// The guest's name.
    pub name: String,
    /// What to do.
    pub decision: Decision,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Envelope, serde_json::Error> {
        serde_json::from_str(text)
    }

    #[test]
    fn the_text_of_each_request_stays_as_it_is() {
        let name = || Name { name: "a".into() };
        let cases = [
            (Request::Version, r#"{"version":1,"execute":"version"}"#),
            (Request::List, r#"{"version":1,"execute":"list"}"#),
            (
                Request::Pause(name()),
                r#"{"version":1,"execute":"pause","arguments":{"name":"a"}}"#,
            ),
            (
                Request::Run(Box::new(Run {
                    name: "a".into(),
                    kernel: "/boot/vmlinuz".into(),
                    initrd: None,
                    cmdline: "quiet".into(),
                    memory: 1 << 27,
                    irqchip: IrqChip::Pic,
                    devices: vec!["serial,port=0x2f8,irq=3".parse().expect("a valid option")],
                })),
                r#"{"version":1,"execute":"run","arguments":{"name":"a","kernel":"/boot/vmlinuz","cmdline":"quiet","memory":134217728,"irqchip":"pic","devices":["serial,port=0x2f8,irq=3,backend=physical"]}}"#,
            ),
            (
                Request::Migrate(Box::new(Migrate {
                    name: "a".into(),
                    url: "tcp:[::1]:7000".into(),
                    mode: Some("precopy".into()),
                    downtime_limit: Some(300),
                    max_bandwidth: None,
                    timeout: None,
                    timeout_action: None,
                })),
                r#"{"version":1,"execute":"migrate","arguments":{"name":"a","url":"tcp:[::1]:7000","mode":"precopy","downtime-limit":300}}"#,
            ),
            (
                Request::Trace(Trace {
                    name: "a".into(),
                    device: "com2".into(),
                }),
                r#"{"version":1,"execute":"trace","arguments":{"name":"a","device":"com2"}}"#,
            ),
            (
                Request::MigrateRecover(Recover {
                    name: "a".into(),
                    decision: Decision::ResumeHere,
                }),
                r#"{"version":1,"execute":"migrate-recover","arguments":{"name":"a","decision":"resume-here"}}"#,
            ),
        ];
        for (request, text) in cases {
            let envelope = Envelope {
                version: 1,
                request,
            };
            assert_eq!(serde_json::to_string(&envelope).expect("plain data"), text);
            let value: serde_json::Value = serde_json::from_str(text).expect(text);
            assert_eq!(value["execute"], envelope.request.command());
            assert_eq!(
                value["arguments"]["name"].as_str(),
                envelope.request.guest()
            );
            assert_eq!(parse(text).expect(text), envelope);
        }
    }

    #[test]
    fn an_unknown_request_is_named_in_the_error() {
        let error = parse(r#"{"version":1,"execute":"explode"}"#).expect_err("no such request");
        assert!(error.to_string().contains("explode"), "{error}");
    }
}
