// SPDX-License-Identifier: GPL-2.0
//! The simulated host's devices: I/O ports with what a test plugs in behind them, and interrupt lines that it raises.

use super::cpu::in_interrupt;
use super::lock;
use super::machine::{Counted, Kind, Machine};
use super::mem::SimShared;
use super::thread::{allocate, process_context, Running};
use super::SimHost;
use crate::{ClaimError, HostDev, IrqSink, Ports};
use core::ops::Range;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::vec::Vec;

/// A device that a test plugs into ports. Called with interrupts on or off, by several threads at a time.
pub trait PortDevice: Send + Sync {
    /// Answers a read of 1, 2 or 4 bytes at `port`.
    fn read(&self, port: u16, bytes: u8) -> u32;
    /// Takes a write of 1, 2 or 4 bytes at `port`.
    fn write(&self, port: u16, bytes: u8, value: u32);
}

type Plugged = (Range<u32>, Arc<dyn PortDevice>);

/// A machine's devices.
#[derive(Default)]
pub(super) struct Devices {
    plugged: Mutex<Vec<Plugged>>,
    /// Claimed ranges: the end by the base.
    claimed: Mutex<BTreeMap<u32, u32>>,
    lines: [Mutex<Option<Arc<dyn Raise>>>; 16],
}

impl Devices {
    /// The device that answers an access, if one device has all of its ports.
    fn behind(&self, port: u16, bytes: u8) -> Option<Arc<dyn PortDevice>> {
        let (start, end) = (u32::from(port), u32::from(port) + u32::from(bytes));
        lock(&self.plugged)
            .iter()
            .find(|(ports, _)| ports.start <= start && end <= ports.end)
            .map(|(_, device)| Arc::clone(device))
    }
}

/// The value of an access that nobody answers.
fn all_ones(bytes: u8) -> u32 {
    u32::MAX >> (32 - 8 * u32::from(bytes.clamp(1, 4)))
}

impl Machine {
    /// Plugs `device` into `count` ports from `base` on. Accesses to ports without a device read all ones.
    ///
    /// # Panics
    ///
    /// If the ports do not exist or have a device already.
    pub fn plug(&self, base: u16, count: u16, device: Arc<dyn PortDevice>) {
        let ports = u32::from(base)..u32::from(base) + u32::from(count);
        assert!(ports.end <= 0x1_0000, "no such ports: {ports:#x?}");
        let mut plugged = lock(&self.0.devices.plugged);
        for (taken, _) in plugged.iter() {
            assert!(
                ports.end <= taken.start || taken.end <= ports.start,
                "two devices in {ports:#x?} and {taken:#x?}"
            );
        }
        plugged.push((ports, device));
    }

    /// Raises an interrupt line, as its device does; returns when the sink has been told. Says whether anybody has claimed
    /// the line. Process context.
    #[track_caller]
    pub fn raise(&self, irq: u32) -> bool {
        process_context("Machine::raise");
        let line = self.0.devices.lines.get(irq as usize);
        let Some(claim) = line.and_then(|line| lock(line).clone()) else {
            return false;
        };
        in_interrupt(self, None, || claim.raise())
    }
}

/// A claimed port range.
pub struct SimPorts {
    base: u16,
    count: u16,
    machine: Machine,
    _count: Counted,
}

impl SimPorts {
    /// The port of an access that lies wholly inside.
    fn port(&self, offset: u16, bytes: u8) -> Option<u16> {
        let inside = u32::from(offset) + u32::from(bytes) <= u32::from(self.count);
        (matches!(bytes, 1 | 2 | 4) && inside).then(|| self.base + offset)
    }

    fn device(&self, offset: u16, bytes: u8) -> Option<(u16, Arc<dyn PortDevice>)> {
        let port = self.port(offset, bytes)?;
        Some((port, self.machine.0.devices.behind(port, bytes)?))
    }
}

impl Ports for SimPorts {
    fn base(&self) -> u16 {
        self.base
    }

    fn count(&self) -> u16 {
        self.count
    }

    fn read(&self, offset: u16, bytes: u8) -> u32 {
        match self.device(offset, bytes) {
            Some((port, device)) => device.read(port, bytes) & all_ones(bytes),
            None => all_ones(bytes),
        }
    }

    fn write(&self, offset: u16, bytes: u8, value: u32) {
        if let Some((port, device)) = self.device(offset, bytes) {
            device.write(port, bytes, value & all_ones(bytes));
        }
    }
}

impl Drop for SimPorts {
    fn drop(&mut self) {
        process_context("releasing ports");
        lock(&self.machine.0.devices.claimed).remove(&self.base.into());
    }
}

/// What a line does when it is raised.
trait Raise: Send + Sync {
    /// Tells the sink; false if it is gone.
    fn raise(&self) -> bool;
}

struct Line<S: IrqSink> {
    /// `None` once the claim is dropped.
    sink: Mutex<Option<SimShared<S>>>,
    running: Running,
}

impl<S: IrqSink> Raise for Line<S> {
    fn raise(&self) -> bool {
        // Counted before the sink is looked for, so that a drop that comes now waits for the call.
        let _call = self.running.begin();
        let sink = lock(&self.sink).clone();
        if let Some(sink) = &sink {
            sink.interrupt();
        }
        sink.is_some()
    }
}

/// A claimed interrupt line.
pub struct SimIrq<S: IrqSink> {
    irq: usize,
    line: Arc<Line<S>>,
    machine: Machine,
    _count: Counted,
}

impl<S: IrqSink> Drop for SimIrq<S> {
    fn drop(&mut self) {
        process_context("releasing an interrupt line");
        let sink = lock(&self.line.sink).take();
        self.line.running.wait();
        drop(sink);
        *lock(&self.machine.0.devices.lines[self.irq]) = None;
    }
}

impl HostDev for SimHost {
    type Ports = SimPorts;
    type Irq<S: IrqSink> = SimIrq<S>;

    #[track_caller]
    fn claim_ports(base: u16, count: u16) -> Result<SimPorts, ClaimError> {
        let (start, end) = (u32::from(base), u32::from(base) + u32::from(count));
        if count == 0 || end > 0x1_0000 {
            return Err(ClaimError::Invalid);
        }
        allocate("HostDev::claim_ports")?;
        let machine = Machine::current();
        {
            let mut claimed = lock(&machine.0.devices.claimed);
            let before = claimed.range(..end).next_back();
            if before.is_some_and(|(_, taken_end)| *taken_end > start) {
                return Err(ClaimError::Busy);
            }
            claimed.insert(start, end);
        }
        Ok(SimPorts {
            base,
            count,
            machine,
            _count: Counted::new(Kind::Registration),
        })
    }

    #[track_caller]
    fn claim_irq<S: IrqSink>(irq: u32, sink: SimShared<S>) -> Result<SimIrq<S>, ClaimError> {
        let machine = Machine::current();
        let index = irq as usize;
        // Line 2 is where the second interrupt controller is.
        if index >= machine.0.devices.lines.len() || index == 2 {
            return Err(ClaimError::Invalid);
        }
        allocate("HostDev::claim_irq")?;
        let line = Arc::new(Line {
            sink: Mutex::new(Some(sink)),
            running: Running::default(),
        });
        {
            let mut slot = lock(&machine.0.devices.lines[index]);
            if slot.is_some() {
                return Err(ClaimError::Busy);
            }
            *slot = Some(line.clone());
        }
        Ok(SimIrq {
            irq: index,
            line,
            machine,
            _count: Counted::new(Kind::Registration),
        })
    }
}
