// SPDX-License-Identifier: GPL-2.0
//! COM1, the guest's console: a 16550A at 3F8h, IRQ 4, modelled in userspace around `vm-superio`'s `Serial`.
//!
//! `vm-superio` announces interrupts as edges; this file turns them into the level of the UART's INTRPT pin (PC16550D
//! data sheet, 8.6 "Interrupt identification register"), which is what the interrupt line wants, and feeds the receive
//! FIFO from a queue, so that typing faster than the guest reads loses nothing.

use crate::bus::{Event, PortDevice};
use crate::console::Console;
use crate::error::VmmError;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use vm_superio::serial::{NoEvents, SerialState};
use vm_superio::{Serial, Trigger};

/// First port.
pub const PORT: u16 = 0x3f8;
/// Number of ports.
pub const PORTS: u16 = 8;
/// ISA interrupt.
pub const IRQ: u32 = 4;
/// Name in the migration stream.
pub const STATE_NAME: &str = "com1";
/// Version of [`Com1State`].
pub const STATE_VERSION: u32 = 1;
/// Input that waits for the guest at most, in bytes.
pub const QUEUE: usize = 4096;
/// The receive FIFO of `vm-superio` in bytes.
const FIFO: usize = 64;

/// IER: received data available.
const IER_ERBFI: u8 = 0x01;
/// IER: transmitter holding register empty.
const IER_ETBEI: u8 = 0x02;
/// IIR as `vm-superio` keeps it: transmitter holding register empty.
const IIR_THRE: u8 = 0x02;
/// IIR as `vm-superio` keeps it: received data available.
const IIR_RDA: u8 = 0x04;

/// Drives an interrupt line to a level.
pub type Line = Box<dyn Fn(bool) + Send>;

/// Remembers that `vm-superio` asked for an interrupt, until [`Com1::update`] looks.
#[derive(Clone, Default)]
struct Edge(Arc<AtomicBool>);

impl Trigger for Edge {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.store(true, Ordering::Relaxed);
        Ok(())
    }
}

/// The saved state. Output that was printed is gone to the console already; input that waits moves along.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Com1State {
    /// DLL.
    pub dll: u8,
    /// DLM.
    pub dlm: u8,
    /// IER.
    pub ier: u8,
    /// Pending interrupts, as `vm-superio` keeps them in its IIR.
    pub iir: u8,
    /// LCR.
    pub lcr: u8,
    /// LSR.
    pub lsr: u8,
    /// MCR.
    pub mcr: u8,
    /// MSR.
    pub msr: u8,
    /// SCR.
    pub scr: u8,
    /// Bytes in the receive FIFO.
    pub fifo: Vec<u8>,
    /// Bytes that wait to enter it.
    pub queue: Vec<u8>,
    /// Level of the interrupt line.
    pub line: bool,
}

/// The device.
pub struct Com1 {
    serial: Serial<Edge, NoEvents, Console>,
    edge: Edge,
    console: Console,
    line: Line,
    level: bool,
    queue: VecDeque<u8>,
}

impl Com1 {
    /// A UART after power-on that prints on `console` and interrupts by `line`.
    pub fn new(console: Console, line: Line) -> Self {
        let edge = Edge::default();
        Self {
            serial: Serial::new(edge.clone(), console.clone()),
            edge,
            console,
            line,
            level: false,
            queue: VecDeque::new(),
        }
    }

    /// Queues input for the guest; returns how many bytes fitted.
    pub fn input(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(QUEUE.saturating_sub(self.queue.len()));
        self.queue.extend(&bytes[..count]);
        self.update();
        count
    }

    /// Fills the FIFO from the queue and brings the line to the level that the registers imply.
    fn update(&mut self) {
        if !self.queue.is_empty() && self.serial.fifo_capacity() > 0 {
            let (front, _) = self.queue.as_slices();
            // An error is "full" (excluded above) or from the trigger (infallible). In loopback mode the line input is
            // disconnected and 0 bytes are taken, which keeps them queued.
            let taken = self.serial.enqueue_raw_bytes(front).unwrap_or(0);
            self.queue.drain(..taken);
        }
        let state = self.serial.state();
        let pending = (state.interrupt_identification & IIR_RDA != 0
            && state.interrupt_enable & IER_ERBFI != 0)
            || (state.interrupt_identification & IIR_THRE != 0
                && state.interrupt_enable & IER_ETBEI != 0);
        let edge = self.edge.0.swap(false, Ordering::Relaxed);
        // Another source while the pin is already high makes no edge on a real UART either, but there the
        // driver's loop over IIR finds it; `vm-superio` clears all sources at once, so the edge is given again.
        if self.level && (!pending || edge) {
            (self.line)(false);
            self.level = false;
        }
        if pending && !self.level {
            (self.line)(true);
            self.level = true;
        }
    }

    /// Reads the state.
    pub fn save(&self) -> Com1State {
        let state = self.serial.state();
        Com1State {
            dll: state.baud_divisor_low,
            dlm: state.baud_divisor_high,
            ier: state.interrupt_enable,
            iir: state.interrupt_identification,
            lcr: state.line_control,
            lsr: state.line_status,
            mcr: state.modem_control,
            msr: state.modem_status,
            scr: state.scratch,
            fifo: state.in_buffer,
            queue: self.queue.iter().copied().collect(),
            line: self.level,
        }
    }

    /// Takes over a saved state. The interrupt line is not touched: its level is part of the chipset's state.
    pub fn restore(&mut self, state: &Com1State) -> Result<(), VmmError> {
        let wrong = |reason: String| VmmError::DeviceState {
            device: STATE_NAME,
            reason,
        };
        if state.queue.len() > QUEUE {
            return Err(wrong(format!(
                "{} bytes of input wait, at most {QUEUE} can",
                state.queue.len()
            )));
        }
        if state.fifo.len() > FIFO {
            return Err(wrong(format!(
                "{} bytes are in a FIFO of {FIFO}",
                state.fifo.len()
            )));
        }
        let serial_state = SerialState {
            baud_divisor_low: state.dll,
            baud_divisor_high: state.dlm,
            interrupt_enable: state.ier,
            interrupt_identification: state.iir,
            line_control: state.lcr,
            line_status: state.lsr,
            modem_control: state.mcr,
            modem_status: state.msr,
            scratch: state.scr,
            in_buffer: state.fifo.clone(),
        };
        let edge = Edge::default();
        self.serial =
            Serial::from_state(&serial_state, edge.clone(), NoEvents, self.console.clone())
                .map_err(|error| wrong(error.to_string()))?;
        // An edge that the restored state asks for was given by the source; the line's level moved with the chipset.
        edge.0.store(false, Ordering::Relaxed);
        self.edge = edge;
        self.queue = state.queue.iter().copied().collect();
        self.level = state.line;
        Ok(())
    }
}

impl PortDevice for Com1 {
    fn read(&mut self, offset: u16) -> u8 {
        // Offsets are below `PORTS`.
        let value = self.serial.read(offset as u8);
        // Reading RBR or IIR changes what is pending; the others have no effect on it.
        if offset == 0 || offset == 2 {
            self.update();
        }
        value
    }

    fn write(&mut self, offset: u16, value: u8) -> Option<Event> {
        // Errors: the console takes everything, the trigger is infallible.
        if let Err(error) = self.serial.write(offset as u8, value) {
            tracing::warn!(%error, "COM1 lost a byte");
        }
        self.update();
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::time::Duration;

    const RBR: u16 = 0;
    const THR: u16 = 0;
    const IER: u16 = 1;
    const IIR: u16 = 2;
    const LSR: u16 = 5;

    fn com1() -> (Com1, Console, Arc<Mutex<Vec<bool>>>) {
        let console = Console::default();
        let levels = Arc::new(Mutex::new(Vec::new()));
        let line = {
            let levels = Arc::clone(&levels);
            Box::new(move |level| levels.lock().expect("no panic").push(level))
        };
        (Com1::new(console.clone(), line), console, levels)
    }

    fn taken(levels: &Mutex<Vec<bool>>) -> Vec<bool> {
        std::mem::take(&mut *levels.lock().expect("no panic"))
    }

    #[test]
    fn what_the_guest_transmits_is_printed() {
        let (mut com1, console, _) = com1();
        for byte in b"hello" {
            assert_eq!(com1.read(LSR) & 0x60, 0x60, "the transmitter is idle");
            com1.write(THR, *byte);
        }
        assert_eq!(console.read(0, Duration::ZERO).bytes, b"hello");
    }

    #[test]
    fn input_raises_the_line_until_it_is_read() {
        let (mut com1, _, levels) = com1();
        com1.write(IER, IER_ERBFI);
        assert_eq!(taken(&levels), []);
        assert_eq!(com1.input(b"a"), 1);
        assert_eq!(taken(&levels), [true]);
        assert_eq!(com1.read(IIR) & 0x0f, IIR_RDA);
        assert_eq!(com1.read(LSR) & 1, 1);
        assert_eq!(com1.read(RBR), b'a');
        assert_eq!(com1.read(LSR) & 1, 0);
        assert_eq!(taken(&levels), [false]);
    }

    #[test]
    fn an_empty_transmitter_interrupts_again_after_each_byte() {
        let (mut com1, _, levels) = com1();
        com1.write(IER, IER_ETBEI);
        assert_eq!(taken(&levels), [true]);
        assert_eq!(com1.read(IIR) & 0x0f, IIR_THRE);
        com1.write(THR, b'x');
        assert_eq!(taken(&levels), [false, true]);
        com1.write(IER, 0);
        assert_eq!(taken(&levels), [false]);
    }

    #[test]
    fn input_beyond_the_fifo_waits_and_arrives_in_order() {
        let (mut com1, _, _) = com1();
        let sent: Vec<u8> = (0..=255).cycle().take(QUEUE + 1000).collect();
        let mut accepted = com1.input(&sent);
        assert!(accepted < sent.len(), "the queue has a limit");
        let mut received = Vec::new();
        while com1.read(LSR) & 1 != 0 {
            received.push(com1.read(RBR));
            accepted += com1.input(&sent[accepted..]);
        }
        assert_eq!(received, sent);
    }

    #[test]
    fn a_restored_uart_goes_on_where_the_saved_one_stood() {
        let (mut source, _, levels) = com1();
        source.write(IER, IER_ERBFI | IER_ETBEI);
        source.write(3, 0x03);
        source.write(7, 0x5a);
        let input: Vec<u8> = (0..200).collect();
        source.input(&input);
        taken(&levels);
        let state = source.save();
        let (mut target, _, levels) = com1();
        target.restore(&state).expect("a saved state is valid");
        assert_eq!(taken(&levels), [], "a restore drives no line");
        assert_eq!(target.save(), state);
        for offset in [IIR, 3, 4, LSR, 6, 7, IER] {
            assert_eq!(
                target.read(offset),
                source.read(offset),
                "register {offset}"
            );
        }
        for byte in input {
            assert_eq!(target.read(RBR), byte);
        }
    }

    #[test]
    fn a_state_with_too_much_input_is_refused() {
        let (mut com1, _, _) = com1();
        let mut state = com1.save();
        state.queue = vec![0; QUEUE + 1];
        assert!(com1.restore(&state).is_err());
        state.queue.clear();
        state.fifo = vec![0; FIFO + 1];
        assert!(com1.restore(&state).is_err());
    }
}
