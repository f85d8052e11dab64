// SPDX-License-Identifier: GPL-2.0
//! Answers one request.

use super::guest::Guest;
use super::move_check::move_check;
use super::moves::{self, Move};
use super::source::module_version;
use super::{device_table, trace, Claim, Daemon};
use pvmm_control::reply::{DeviceInfo, HostCapabilities, Version};
use pvmm_control::request::{Name, Run};
use pvmm_control::{ControlError, Event, Reply, Request};
use pvmm_migrate::description::validate_name;
use pvmm_migrate::devices::kind_name;
use pvmm_uapi::*;
use pvmm_vmm::boot::BootSource;
use pvmm_vmm::vcpu::End;
use pvmm_vmm::{com1, rtc, Vm, VmConfig};
use std::time::Duration;

/// How often a client is told a move's progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

type Answer = Result<Reply, ControlError>;

impl Daemon {
    /// Answers a request. `on_event` is told what happens meanwhile; an error of it means that the client is gone, and
    /// stops nothing.
    pub fn answer(
        &self,
        request: Request,
        on_event: &mut dyn FnMut(Event) -> std::io::Result<()>,
    ) -> Answer {
        match request {
            Request::Version => self.version(),
            Request::Capabilities => self.capabilities(),
            Request::List => Ok(Reply::Guests(
                self.guests().iter().map(|guest| guest.info()).collect(),
            )),
            Request::Info(Name { name }) => Ok(Reply::Guest(Box::new(self.guest(&name)?.info()))),
            Request::Run(run) => self.run(*run),
            Request::Pause(Name { name }) => {
                let guest = self.guest(&name)?;
                guest.check_free()?;
                guest.vm()?.pause().map_err(ControlError::failed)?;
                Ok(Reply::Done)
            }
            Request::Resume(Name { name }) => {
                let guest = self.guest(&name)?;
                guest.check_free()?;
                guest.vm()?.resume(None).map_err(ControlError::failed)?;
                Ok(Reply::Done)
            }
            Request::Stop(Name { name }) => {
                let guest = self.guest(&name)?;
                guest.check_free()?;
                guest.vm()?;
                guest.finish(End::Stopped);
                Ok(Reply::Done)
            }
            // The server has handled it: it needs the connection.
            Request::Console(console) => self.guest(&console.name).map(|_| Reply::Done),
            Request::Migrate(request) => {
                let guest = self.guest(&request.name)?;
                let started = moves::start(self, &guest, &request)?;
                follow(&started, on_event)
            }
            Request::MigrateCheck(request) => {
                let guest = self.guest(&request.name)?;
                let found = moves::check(self, &guest, &request)?;
                let limit = request.downtime_limit;
                Ok(Reply::MoveCheck(Box::new(move_check(&guest, found, limit))))
            }
            Request::MigrateCancel(Name { name }) => self.cancel(&name),
            Request::MigrateRecover(recover) => {
                let guest = self.guest(&recover.name)?;
                moves::recover(&guest, recover.decision, self)?;
                Ok(Reply::Done)
            }
            Request::JobInfo(Name { name }) => Ok(Reply::Job(Box::new(
                self.guest(&name)?
                    .current_move()
                    .map(|current| current.job().statistics())
                    .unwrap_or_default(),
            ))),
            Request::Devices(Name { name }) => {
                let guest = self.guest(&name)?;
                Ok(Reply::Devices(device_table::table(&guest)))
            }
            Request::Trace(request) => {
                let guest = self.guest(&request.name)?;
                trace::follow(&guest, &request.device, on_event)
            }
        }
    }

    fn version(&self) -> Answer {
        Ok(Reply::Version(Version {
            daemon: env!("CARGO_PKG_VERSION").into(),
            control: pvmm_control::VERSION,
            api: API_VERSION,
            module: self
                .hypervisor()
                .capabilities()
                .ok()
                .map(|capabilities| module_version(&capabilities)),
        }))
    }

    fn capabilities(&self) -> Answer {
        let capabilities = self
            .hypervisor()
            .capabilities()
            .map_err(ControlError::failed)?;
        let features = [
            (FEATURE_PML, "pml"),
            (FEATURE_EPT_AD, "ept-ad"),
            (FEATURE_TSC_SCALING, "tsc-scaling"),
            (FEATURE_VPID, "vpid"),
        ]
        .into_iter()
        .filter(|(bit, _)| capabilities.features & bit != 0)
        .map(|(_, name)| name.to_owned())
        .collect();
        Ok(Reply::Capabilities(HostCapabilities {
            module: module_version(&capabilities),
            features,
            max_vcpus: capabilities.max_vcpus,
            host_cpus: capabilities.host_cpus,
            tsc_khz: capabilities.tsc_khz,
            supported_xcr0: capabilities.supported_xcr0,
            vmx_basic: capabilities.vmx_basic,
            vmx_ept_vpid_cap: capabilities.vmx_ept_vpid_cap,
            vmx_procbased_ctls2: capabilities.vmx_procbased_ctls2,
            listen: self.listening(),
            granted: self
                .options()
                .grants
                .iter()
                .map(ToString::to_string)
                .collect(),
        }))
    }

    fn run(&self, run: Run) -> Answer {
        validate_name("guest name", &run.name).map_err(ControlError::invalid)?;
        let reservation = self.reserve(
            &run.name,
            Claim {
                memory: run.memory,
                devices: run.devices.clone(),
            },
        )?;
        let config = VmConfig {
            name: run.name,
            memory: run.memory,
            irqchip: run.irqchip,
            devices: run.devices,
            tsc_khz: 0,
            cpuid: None,
        };
        let source = BootSource {
            kernel: run.kernel,
            initrd: run.initrd,
            cmdline: run.cmdline,
        };
        let vm = Vm::boot(self.hypervisor(), self.ports(), config, &source)
            .map_err(ControlError::failed)?;
        let guest = reservation.fill(vm, false)?;
        if let Err(error) = guest.vm()?.resume(None) {
            guest.finish(End::Error(error.to_string()));
            return Err(ControlError::failed(error));
        }
        tracing::info!(guest = guest.name(), "started");
        Ok(Reply::Done)
    }

    fn cancel(&self, name: &str) -> Answer {
        let current = self.guest(name)?.current_move();
        match current {
            Some(current) if !current.is_over() => {
                current.job().cancel().map_err(ControlError::failed)?;
                Ok(Reply::Done)
            }
            _ => Err(ControlError::failed(format!(
                "guest \"{name}\" is not being moved"
            ))),
        }
    }
}

/// Tells a client a move's progress until the move is over.
fn follow(current: &Move, on_event: &mut dyn FnMut(Event) -> std::io::Result<()>) -> Answer {
    let statistics = || Box::new(current.job().statistics());
    let mut listening = true;
    loop {
        // At once for the first time: from here on the client can cancel it.
        listening = listening && on_event(Event::Migration(statistics())).is_ok();
        if let Some(outcome) = current.wait(PROGRESS_INTERVAL) {
            return outcome.map(|()| Reply::Job(statistics()));
        }
    }
}

/// A guest's devices: those of every guest, then those that were attached. Without their state.
pub(super) fn devices(guest: &Guest) -> Vec<DeviceInfo> {
    let info = |device: &str, number, kind: &str, backend: &str, port, irq| DeviceInfo {
        device: device.into(),
        number,
        guest_kind: kind.into(),
        real_kind: if backend == "physical" {
            kind.into()
        } else {
            "none".into()
        },
        backend: backend.into(),
        location: "this host".into(),
        port,
        irq,
        host_port: None,
        host_irq: None,
        ranges: Vec::new(),
        log: None,
        obstacles: Vec::new(),
        state: Vec::new(),
        unknown: None,
    };
    let name = |kind| kind_name(kind).unwrap_or("unknown");
    let mut devices = vec![
        info(
            "pic",
            Some(DEVICE_I8259),
            name(KIND_I8259),
            "modelled",
            0x20,
            None,
        ),
        info(
            "pit",
            Some(DEVICE_I8254),
            name(KIND_I8254),
            "modelled",
            0x40,
            Some(0),
        ),
        info(
            "com1",
            None,
            name(KIND_UART16550),
            "user",
            com1::PORT,
            Some(com1::IRQ as u8),
        ),
        info("rtc", None, "mc146818", "user", rtc::PORT, None),
    ];
    for (index, attached) in guest.devices().iter().enumerate() {
        let spec = &attached.spec;
        let before = guest.devices().iter().take(index);
        let same = before.filter(|other| other.spec.kind == spec.kind).count();
        devices.push(DeviceInfo {
            host_port: Some(spec.host_port()),
            host_irq: attached.spec.host_irq,
            ..info(
                &format!("{}{}", spec.kind.device, spec.kind.first_device + same),
                Some(attached.number),
                spec.kind.name(),
                "physical",
                spec.port,
                spec.irq,
            )
        });
    }
    devices
}
