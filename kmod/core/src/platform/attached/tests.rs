// SPDX-License-Identifier: GPL-2.0
//! Claiming and giving back a UART of the simulated host.

use super::*;
use crate::platform::PortOutcome;
use crate::vcpu::Control;
use pvmm_hostabi::sim::{Machine, PortDevice, SimHost};
use pvmm_hostabi::{ClaimError, HostDev, HostMem};
use pvmm_uapi::{KIND_I8259, KIND_UART16550};
use std::sync::{Arc, Mutex, PoisonError};
use std::vec::Vec;

/// First port of the UART.
pub(crate) const BASE: u16 = 0x2f8;
/// What of MCR follows to MSR in loopback (PC16550D, 8.7): bit of MSR by bit of MCR.
const LOOPBACK: [(u8, u8); 4] = [(0x01, 0x20), (0x02, 0x10), (0x04, 0x40), (0x08, 0x80)];

/// The registers of a 16550A at rest: nothing is sent, and nothing arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Registers {
    divisor: [u8; 2],
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    scr: u8,
}

pub(crate) struct Uart(Mutex<Registers>);

impl Uart {
    fn registers(&self) -> Registers {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PortDevice for Uart {
    fn read(&self, port: u16, _bytes: u8) -> u32 {
        let chip = self.registers();
        let value = match port - BASE {
            latch @ 0..=1 if chip.lcr & 0x80 != 0 => chip.divisor[usize::from(latch)],
            0 => 0,
            1 => chip.ier,
            2 => 0x01 | ((chip.fcr & 1) * 0xc0),
            3 => chip.lcr,
            4 => chip.mcr,
            5 => 0x60,
            6 if chip.mcr & 0x10 != 0 => LOOPBACK
                .iter()
                .filter(|(bit, _)| chip.mcr & bit != 0)
                .map(|(_, line)| line)
                .sum(),
            6 => 0,
            _ => chip.scr,
        };
        value.into()
    }

    fn write(&self, port: u16, _bytes: u8, value: u32) {
        let mut chip = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let value = value as u8;
        match port - BASE {
            latch @ 0..=1 if chip.lcr & 0x80 != 0 => chip.divisor[usize::from(latch)] = value,
            1 => chip.ier = value & 0x0f,
            2 => chip.fcr = value & 0xc9,
            3 => chip.lcr = value,
            4 => chip.mcr = value & 0x1f,
            7 => chip.scr = value,
            _ => {}
        }
    }
}

/// As the driver of a terminal at 9600 baud leaves it.
const IN_USE: Registers = Registers {
    divisor: [12, 0],
    ier: 0x05,
    fcr: 0xc1,
    lcr: 0x13,
    mcr: 0x0b,
    scr: 0x5a,
};

/// After a master reset (PC16550D, table III), with the divisor of 115,200 baud.
const RESET: Registers = Registers {
    divisor: [1, 0],
    ier: 0,
    fcr: 0,
    lcr: 0,
    mcr: 0,
    scr: 0,
};

/// A UART in use at [`BASE`] of the machine that was entered.
pub(crate) fn plugged() -> Arc<Uart> {
    let uart = Arc::new(Uart(Mutex::new(IN_USE)));
    Machine::current().plug(BASE, 8, uart.clone());
    uart
}

/// The ports of a device with one range.
fn one<P>(ports: P) -> PortRanges<P> {
    [Some(ports), None, None, None]
}

#[test]
fn a_uart_is_reset_when_it_is_claimed_and_again_when_it_is_given_back() {
    let uart = plugged();
    let ports = SimHost::claim_ports(BASE, 8).expect("the ports are free");
    let claimed = Claimed::<SimHost>::new(KIND_UART16550, one(ports)).expect("it is a UART");
    assert_eq!(uart.registers(), RESET);
    assert_eq!(
        SimHost::claim_ports(BASE, 8).map(drop),
        Err(ClaimError::Busy)
    );

    *uart.0.lock().expect("no holder panics") = IN_USE;
    drop(claimed);
    assert_eq!(uart.registers(), RESET);
    assert!(
        SimHost::claim_ports(BASE, 8).is_ok(),
        "the ports are free again"
    );
}

#[test]
fn ports_without_a_uart_and_unknown_kinds_are_refused_and_given_back() {
    for number in [KIND_UART16550, KIND_I8259 + 1000] {
        let ports = SimHost::claim_ports(BASE, 8).expect("the ports are free");
        let refused = Claimed::<SimHost>::new(number, one(ports)).map(drop);
        assert_eq!(refused, Err(AttachError::NotReset));
        assert!(
            SimHost::claim_ports(BASE, 8).is_ok(),
            "the ports are free again"
        );
    }
}

#[test]
fn only_what_is_recorded_exits_and_nothing_if_nothing_is_recorded() {
    let all: Vec<u16> = (BASE..BASE + 8).collect();
    // FCR and LCR: the one can't be read back, the other decides what the first two ports are.
    let recorded = [BASE + 2, BASE + 3];
    let _uart = plugged();
    for (recording, guest_base, expected) in [
        (Recording::On, BASE, &recorded[..]),
        (Recording::Off, BASE, &[]),
        // Somebody has to translate.
        (Recording::Off, 0x3e8, &all),
    ] {
        let ports = SimHost::claim_ports(BASE, 8).expect("the ports are free");
        let claimed = Claimed::<SimHost>::new(KIND_UART16550, one(ports)).expect("it is a UART");
        let control = SimHost::shared(Control::new().expect("memory")).expect("memory");
        let line = SimHost::shared(DeviceLine { control, irq: 3 }).expect("memory");
        let irq = SimHost::claim_irq(3, line).expect("nobody has it");
        let recorder = RecorderState::new(KIND_UART16550).expect("a kind");
        let recorder = SimHost::boxed(recorder).expect("memory");
        let mut device = Attached::new(
            claimed,
            Some(irq),
            [guest_base, 0, 0, 0],
            recorder,
            recording,
        );
        let bitmap = IoBitmap::<SimHost>::new().expect("memory");
        device.update_bitmap(&bitmap);
        let exits: Vec<u16> = (guest_base..guest_base + 8)
            .filter(|port| bitmap.exits(*port))
            .map(|port| port - guest_base + BASE)
            .collect();
        assert_eq!(exits, expected, "{recording:?} at {guest_base:#x}");
    }
}

/// A device of three ranges: the ports of an 8259 pair, at which the simulated machine has nothing but memory.
fn of_three_ranges(guest: [u16; 4]) -> Attached<SimHost> {
    let mut ports = [const { None }; MAX_PORT_RANGES];
    for (place, base) in ports.iter_mut().zip([0x500, 0x510, 0x520]) {
        Machine::current().plug(base, 2, Arc::new(Cells(Mutex::default())));
        *place = Some(SimHost::claim_ports(base, 2).expect("the ports are free"));
    }
    let claimed = Claimed::<SimHost>::new(KIND_I8259, ports).expect("there is nothing to reset");
    let recorder = RecorderState::new(KIND_I8259).expect("a kind");
    let recorder = SimHost::boxed(recorder).expect("memory");
    Attached::new(claimed, None, guest, recorder, Recording::On)
}

/// Two ports that hold what was written, and tell how wide.
struct Cells(Mutex<[(u8, u32); 2]>);

impl PortDevice for Cells {
    fn read(&self, port: u16, _bytes: u8) -> u32 {
        self.0.lock().expect("no holder panics")[usize::from(port & 1)].1
    }

    fn write(&self, port: u16, bytes: u8, value: u32) {
        self.0.lock().expect("no holder panics")[usize::from(port & 1)] = (bytes, value);
    }
}

fn platform() -> crate::platform::Platform<SimHost> {
    use crate::platform::tests::clock;
    let control = SimHost::shared(Control::new().expect("memory")).expect("memory");
    crate::platform::Platform::new(None, clock(), control).expect("memory")
}

#[test]
fn each_range_of_a_device_is_reached_where_the_guest_sees_it() {
    let machine = Machine::new(1);
    let _entered = machine.enter();
    let mut platform = platform();
    let device = of_three_ranges([0x1600, 0x1700, 0x520, 0]);
    platform.attach(device).expect("the ports are free");
    for (port, value) in [(0x1600, 0x11), (0x1701, 0x22), (0x520, 0x33)] {
        platform.port(port, Width::W1, Direction::Write, value, 0);
        assert_eq!(
            platform.port(port, Width::W1, Direction::Read, 0, 0),
            PortOutcome::Done(value)
        );
    }
    // In one range: one access. Half of it outside: a byte there, and nothing where nothing is.
    platform.port(0x1700, Width::W2, Direction::Write, 0x5544, 0);
    assert_eq!(
        platform.port(0x1700, Width::W2, Direction::Read, 0, 0),
        PortOutcome::Done(0x5544)
    );
    platform.port(0x1701, Width::W2, Direction::Write, 0x7766, 0);
    assert_eq!(
        platform.port(0x1701, Width::W1, Direction::Read, 0, 0),
        PortOutcome::Done(0x66)
    );
    for port in [0x15ff, 0x1602, 0x500, 0x522] {
        assert_eq!(
            platform.port(port, Width::W1, Direction::Read, 0, 0),
            PortOutcome::User,
            "{port:#x}"
        );
    }
}

#[test]
fn a_range_must_lie_apart_from_every_other() {
    for (guest, number) in [
        ([0x1600, 0x1601, 0x520, 0], None),
        ([0x1600, 0x1700, 0x15ff, 0], None),
        // The chipset's.
        ([0x1600, 0x1700, 0x21, 0], None),
        ([0x1600, 0x1700, 0xffff, 0], None),
        ([0x1600, 0x1602, 0x1604, 0], Some(2)),
    ] {
        let machine = Machine::new(1);
        let _entered = machine.enter();
        let mut platform = platform();
        let attached = platform.attach(of_three_ranges(guest));
        assert_eq!(attached, number.ok_or(AttachError::Overlap), "{guest:x?}");
    }
}
