// SPDX-License-Identifier: GPL-2.0
//! All ports of a simulated host, with a UART in each range that was granted, and a panic everywhere else: this is how the
//! targets see that a peer's bytes reach nothing but a grant.

use crate::devices::Uart;
use pvmm_core::iospace::{Location, Width};
use pvmm_core::replay::Backend;
use pvmm_hostabi::sim::{Machine, PortDevice};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Ports of a UART.
pub const UART_PORTS: u16 = 8;

/// The ports of a host.
#[derive(Default)]
pub struct Granted(Mutex<Vec<(u16, Uart)>>);

impl Granted {
    /// Plugs itself into every port of a machine.
    pub fn plug(machine: &Machine) -> Arc<Self> {
        let ports = Arc::new(Self::default());
        for base in [0, 0x8000] {
            machine.plug(base, 0x8000, ports.clone());
        }
        ports
    }

    /// From here on the UART at `base` may be touched.
    pub fn grant(&self, base: u16) {
        self.uarts().push((base, Uart::default()));
    }

    fn uarts(&self) -> MutexGuard<'_, Vec<(u16, Uart)>> {
        // A panic in here is a finding that has been reported.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `body` with the UART and the offset in it.
    fn at<R>(&self, port: u16, bytes: u8, body: impl FnOnce(&mut Uart, u64) -> R) -> R {
        let mut uarts = self.uarts();
        let found = uarts.iter_mut().find_map(|(base, uart)| {
            let offset = port.checked_sub(*base)?;
            (offset + u16::from(bytes) <= UART_PORTS).then_some((uart, offset))
        });
        match found {
            Some((uart, offset)) => body(uart, u64::from(offset)),
            None => panic!("{bytes} bytes at port {port:#x} were touched, which nobody granted"),
        }
    }
}

impl PortDevice for Granted {
    fn read(&self, port: u16, bytes: u8) -> u32 {
        self.at(port, bytes, |uart, offset| {
            (0..u64::from(bytes)).fold(0, |value, byte| {
                let read = uart.read(Location::new(0, offset + byte), Width::W1);
                value | (read as u32 & 0xff) << (8 * byte)
            })
        })
    }

    fn write(&self, port: u16, bytes: u8, value: u32) {
        self.at(port, bytes, |uart, offset| {
            for byte in 0..u64::from(bytes) {
                let value = u64::from(value >> (8 * byte) & 0xff);
                uart.write(Location::new(0, offset + byte), Width::W1, value);
            }
        });
    }
}
