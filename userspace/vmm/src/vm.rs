// SPDX-License-Identifier: GPL-2.0
//! A virtual machine: the module's part, its memory, its userspace devices and its vCPU's thread, put together.
//!
//! Made either to boot a kernel ([`Vm::boot`]) or empty, to receive a guest's state ([`Vm::prepare`]). It is born
//! paused. All methods may be called from any thread.
//!
//! Lock order: `pause` or `end`, then `owned`, then `alone`, then the devices'.

use crate::acpi;
use crate::boot::{self, BootSource};
use crate::bus::{PortBus, ResetControl, ResetPort64};
use crate::com1::{self, Com1};
use crate::console::Console;
use crate::cpuid;
use crate::error::VmmError;
use crate::host_device::{HostDevices, Taken};
use crate::hypervisor::{Hypervisor, PeekedDevice, VmFd};
use crate::memory::GuestRam;
use crate::rtc::{self, Rtc};
use crate::spec::{DeviceSpec, IrqChip};
use crate::vcpu::{End, Vcpu};
use pvmm_uapi::{
    AttachDevice, Clock, CpuidEntry, CreateVm, IrqLine, TraceEntry, ATTACH_UNRECORDED,
    BACKEND_PHYSICAL, CLOCK_STOPPED, KIND_PARALLEL, KIND_UART16550, NO_IRQ, VM_APIC,
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// The number of a guest's one vCPU.
pub const VCPU: u32 = 0;

/// What a virtual machine is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmConfig {
    /// Its name.
    pub name: String,
    /// Memory in bytes.
    pub memory: u64,
    /// Interrupt controllers.
    pub irqchip: IrqChip,
    /// Passed-through devices.
    pub devices: Vec<DeviceSpec>,
    /// TSC rate in kHz; 0 takes the host's.
    pub tsc_khz: u32,
    /// CPUID table; `None` takes all that the host offers.
    pub cpuid: Option<Vec<CpuidEntry>>,
}

/// A device that the guest has been given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachedDevice {
    /// Its number in the module's requests.
    pub number: u32,
    /// What the operator asked for.
    pub spec: DeviceSpec,
}

/// A guest's pieces that are given back at its end.
struct Owned {
    fd: Arc<dyn VmFd>,
    vcpu: Arc<Vcpu>,
    /// Given back to the host's driver after `fd` is closed.
    host_devices: Vec<Taken>,
}

/// What a vCPU is asked to do, and where time stands meanwhile.
#[derive(Debug, Default)]
struct Pause {
    paused: bool,
    /// Where the guest's time stopped.
    clock: Option<Clock>,
}

/// A virtual machine.
pub struct Vm {
    config: VmConfig,
    cpuid: Vec<CpuidEntry>,
    ram: GuestRam,
    devices: Vec<AttachedDevice>,
    com1: Arc<Mutex<Com1>>,
    rtc: Arc<Mutex<Rtc>>,
    console: Console,
    owned: Mutex<Option<Owned>>,
    pause: Mutex<Pause>,
    /// See [`Vm::alone`].
    alone: Mutex<()>,
    end: Mutex<Option<End>>,
}

impl Vm {
    /// Makes a virtual machine that will boot `source`.
    pub fn boot(
        hypervisor: &dyn Hypervisor,
        ports: &HostDevices,
        config: VmConfig,
        source: &BootSource,
    ) -> Result<Self, VmmError> {
        let vm = Self::prepare(hypervisor, ports, config)?;
        let rsdp = match vm.config.irqchip {
            IrqChip::Pic => None,
            IrqChip::Apic => Some(acpi::install(&vm.ram, &vm.machine())?),
        };
        let fd = vm.fd()?;
        let mut state = fd.vcpu_state(VCPU)?;
        boot::load(&vm.ram, source, rsdp, &mut state)?;
        fd.set_vcpu_state(VCPU, &state)?;
        Ok(vm)
    }

    /// Makes a virtual machine with zeroed memory and a vCPU after reset.
    pub fn prepare(
        hypervisor: &dyn Hypervisor,
        ports: &HostDevices,
        config: VmConfig,
    ) -> Result<Self, VmmError> {
        let ram = GuestRam::new(&config.name, config.memory)?;
        let cpuid = match &config.cpuid {
            Some(table) => table.clone(),
            None => cpuid::for_guest(hypervisor.supported_cpuid()?, config.irqchip),
        };
        let flags = match config.irqchip {
            IrqChip::Pic => 0,
            IrqChip::Apic => VM_APIC,
        };
        // Declared before `fd`, so that on an error the ports go back to the host after the module let them go.
        let mut host_devices = Vec::new();
        let fd: Arc<dyn VmFd> = Arc::from(hypervisor.create_vm(&CreateVm {
            flags,
            tsc_khz: config.tsc_khz,
        })?);
        for region in ram.regions() {
            fd.set_memory_region(region)?;
        }
        fd.create_vcpu(VCPU)?;
        let clock = stopped(&fd.clock()?);
        fd.set_clock(&clock)?;
        fd.set_cpuid(VCPU, &cpuid)?;

        let mut devices = Vec::new();
        for spec in &config.devices {
            host_devices.extend(ports.claim(spec)?);
            let number = fd.attach_device(&AttachDevice {
                kind: spec.kind.number,
                backend: BACKEND_PHYSICAL,
                guest_ports: spec.guest_ports().map(u32::from),
                host_ports: spec.host_ports.map(u32::from),
                guest_irq: spec.irq.map_or(NO_IRQ, u32::from),
                host_irq: spec.host_irq.map_or(NO_IRQ, u32::from),
                flags: match spec.recorded {
                    true => 0,
                    false => ATTACH_UNRECORDED,
                },
                ..AttachDevice::default()
            })?;
            devices.push(AttachedDevice {
                number,
                spec: *spec,
            });
        }

        let console = Console::default();
        let com1 = Arc::new(Mutex::new(Com1::new(
            console.clone(),
            line(Arc::downgrade(&fd), com1::IRQ),
        )));
        let rtc = Arc::new(Mutex::new(Rtc::new(rtc::host_wall_clock())));
        let bus = Arc::new(build_bus(&com1, &rtc)?);
        let vcpu = Arc::new(Vcpu::spawn(VCPU, Arc::clone(&fd), bus)?);
        Ok(Self {
            config,
            cpuid,
            ram,
            devices,
            com1,
            rtc,
            console,
            owned: Mutex::new(Some(Owned {
                fd,
                vcpu,
                host_devices,
            })),
            pause: Mutex::new(Pause {
                paused: true,
                clock: Some(clock),
            }),
            alone: Mutex::new(()),
            end: Mutex::new(None),
        })
    }

    /// What the ACPI tables describe.
    fn machine(&self) -> acpi::Machine {
        let com1 = acpi::SerialPort {
            port: com1::PORT,
            irq: com1::IRQ as u8,
        };
        let of_kind = |number| {
            let specs = self.devices.iter().map(|device| device.spec);
            specs.filter(move |spec| spec.kind.number == number)
        };
        let attached = of_kind(KIND_UART16550).filter_map(|spec| {
            Some(acpi::SerialPort {
                port: spec.port,
                irq: spec.irq?,
            })
        });
        acpi::Machine {
            apic_ids: vec![0],
            serial_ports: std::iter::once(com1).chain(attached).collect(),
            parallel_ports: of_kind(KIND_PARALLEL)
                .map(|spec| acpi::ParallelPort {
                    port: spec.port,
                    irq: spec.irq,
                })
                .collect(),
        }
    }

    /// What it is made of.
    pub fn config(&self) -> &VmConfig {
        &self.config
    }

    /// Its CPUID table.
    pub fn cpuid(&self) -> &[CpuidEntry] {
        &self.cpuid
    }

    /// Its memory.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// Its passed-through devices.
    pub fn devices(&self) -> &[AttachedDevice] {
        &self.devices
    }

    /// What it prints.
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// COM1. The vCPU waits while this is locked and it accesses the port.
    pub fn com1(&self) -> MutexGuard<'_, Com1> {
        lock(&self.com1)
    }

    /// The clock chip. As [`Self::com1`].
    pub fn rtc(&self) -> MutexGuard<'_, Rtc> {
        lock(&self.rtc)
    }

    /// The module's part, for a short use: the guest's end waits for it.
    pub fn fd(&self) -> Result<Arc<dyn VmFd>, VmmError> {
        self.with_owned(|owned| Ok(Arc::clone(&owned.fd)))
    }

    fn with_owned<T>(
        &self,
        action: impl FnOnce(&Owned) -> Result<T, VmmError>,
    ) -> Result<T, VmmError> {
        if let Some(owned) = &*lock(&self.owned) {
            return action(owned);
        }
        Err(VmmError::Ended {
            reason: self
                .end()
                .map_or_else(|| "ending".into(), |end| end.to_string()),
        })
    }

    /// To be held over a request about a stopped vCPU or a device: of two that meet in the module one would fail with
    /// `EBUSY`.
    pub fn alone(&self) -> MutexGuard<'_, ()> {
        lock(&self.alone)
    }

    /// Looks at devices without changing them, one after the other. A guest that runs is stopped for that between two
    /// instructions, for as long as some requests to the module take; its time goes on.
    pub fn peek_devices(&self, devices: &[u32]) -> Result<Vec<PeekedDevice>, VmmError> {
        // Held to the end: whoever pauses the guest now waits until it has been let go on.
        let pause = lock(&self.pause);
        self.with_owned(|owned| {
            if !pause.paused {
                owned.vcpu.pause()?;
            }
            let peeked = {
                let _alone = self.alone();
                let peeked = devices.iter().map(|device| owned.fd.device_peek(*device));
                peeked.collect::<Result<Vec<_>, _>>()
            };
            if !pause.paused {
                owned.vcpu.resume()?;
            }
            Ok(peeked?)
        })
    }

    /// Notes what the guest does to a device from now on, until [`Self::trace_stop`].
    pub fn trace_start(&self, device: u32) -> Result<(), VmmError> {
        self.with_owned(|owned| Ok(owned.fd.trace_start(device)?))
    }

    /// Takes the oldest entries of a trace: how many, and how many accesses were lost since the start.
    pub fn trace_fetch(
        &self,
        device: u32,
        entries: &mut [TraceEntry],
    ) -> Result<(usize, u64), VmmError> {
        self.with_owned(|owned| Ok(owned.fd.trace_fetch(device, entries)?))
    }

    /// Ends a trace.
    pub fn trace_stop(&self, device: u32) -> Result<(), VmmError> {
        self.with_owned(|owned| Ok(owned.fd.trace_stop(device)?))
    }

    /// If it has been paused by [`Self::pause`] or has never been resumed.
    pub fn is_paused(&self) -> bool {
        lock(&self.pause).paused
    }

    /// Stops the guest between two instructions, and its time. Returns when it has stopped; nothing happens if it has
    /// already.
    pub fn pause(&self) -> Result<(), VmmError> {
        let mut pause = lock(&self.pause);
        if pause.paused {
            return Ok(());
        }
        self.with_owned(|owned| {
            owned.vcpu.pause()?;
            // What passes between the two requests is part of the pause.
            let clock = stopped(&owned.fd.clock()?);
            owned.fd.set_clock(&clock)?;
            pause.clock = Some(clock);
            pause.paused = true;
            Ok(())
        })
    }

    /// Lets the guest go on where it stopped, at `clock` or, if that is `None`, as if no time had passed.
    pub fn resume(&self, clock: Option<Clock>) -> Result<(), VmmError> {
        let mut pause = lock(&self.pause);
        if !pause.paused {
            return Ok(());
        }
        self.with_owned(|owned| {
            let clock = match clock.or(pause.clock) {
                Some(clock) => clock,
                None => owned.fd.clock()?,
            };
            owned.fd.set_clock(&Clock { flags: 0, ..clock })?;
            owned.vcpu.resume()?;
            *pause = Pause::default();
            Ok(())
        })
    }

    /// The guest's time: while it is paused, that of the pause.
    pub fn clock(&self) -> Result<Clock, VmmError> {
        let pause = lock(&self.pause);
        match pause.clock {
            Some(clock) if pause.paused => Ok(clock),
            _ => self.with_owned(|owned| Ok(owned.fd.clock()?)),
        }
    }

    /// Sets the time of a paused guest; it stands still there until the guest is resumed.
    pub fn set_clock(&self, clock: &Clock) -> Result<(), VmmError> {
        let mut pause = lock(&self.pause);
        let clock = stopped(clock);
        self.with_owned(|owned| Ok(owned.fd.set_clock(&clock)?))?;
        pause.clock = Some(clock);
        Ok(())
    }

    /// Waits for the guest to end by itself, at most `limit`.
    pub fn wait_end(&self, limit: Duration) -> Option<End> {
        if let Some(end) = self.end() {
            return Some(end);
        }
        // The wait must not hold the lock that everything else needs.
        let vcpu = self.with_owned(|owned| Ok(Arc::clone(&owned.vcpu)));
        match vcpu {
            Ok(vcpu) => vcpu.wait_end(limit),
            Err(_) => self.end(),
        }
    }

    /// How it ended, once [`Self::finish`] was called.
    pub fn end(&self) -> Option<End> {
        lock(&self.end).clone()
    }

    /// Ends the guest for good: stops the vCPU, closes the module's part, gives devices back to the host. `end` says why;
    /// if the guest had ended by itself before, that stays the reason. Returns the reason. A second call does nothing.
    pub fn finish(&self, end: End) -> End {
        // Held to the end, so that whoever comes second learns the first one's reason.
        let mut reason = lock(&self.end);
        let Some(owned) = lock(&self.owned).take() else {
            return reason.clone().unwrap_or(end);
        };
        let end = match owned.vcpu.quit() {
            Some(End::Stopped) | None => end,
            Some(own) => own,
        };
        let Owned {
            fd,
            vcpu,
            host_devices,
        } = owned;
        drop(vcpu);
        drop(fd);
        drop(host_devices);
        *reason = Some(end.clone());
        self.console.close();
        end
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.finish(End::Stopped);
    }
}

/// The same instant, at which time stands still.
const fn stopped(clock: &Clock) -> Clock {
    Clock {
        flags: CLOCK_STOPPED,
        ..*clock
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A way to drive an interrupt line that does not keep the virtual machine alive.
fn line(fd: Weak<dyn VmFd>, irq: u32) -> com1::Line {
    Box::new(move |level| {
        let Some(fd) = fd.upgrade() else { return };
        let level = level.into();
        if let Err(error) = fd.irq_line(IrqLine { irq, level }) {
            tracing::warn!(%error, irq, "an interrupt line cannot be driven");
        }
    })
}

/// The bus of userspace ports. Port 80h, the diagnostics port, needs no device: what is absent swallows writes.
fn build_bus(com1: &Arc<Mutex<Com1>>, rtc: &Arc<Mutex<Rtc>>) -> Result<PortBus, VmmError> {
    let mut bus = PortBus::default();
    let overlap = |overlap: crate::bus::Overlap| VmmError::DeviceState {
        device: "bus",
        reason: overlap.to_string(),
    };
    bus.add("COM1", com1::PORT, com1::PORTS, Arc::clone(com1) as _)
        .map_err(overlap)?;
    bus.add("RTC", rtc::PORT, rtc::PORTS, Arc::clone(rtc) as _)
        .map_err(overlap)?;
    bus.add("port 64h", 0x64, 1, Arc::new(Mutex::new(ResetPort64)))
        .map_err(overlap)?;
    bus.add(
        "RST_CNT",
        0xcf9,
        1,
        Arc::new(Mutex::<ResetControl>::default()),
    )
    .map_err(overlap)?;
    Ok(bus)
}
