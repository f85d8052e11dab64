// SPDX-License-Identifier: GPL-2.0
//! The fake machine's recorded devices: the core's own models and recorders, and a UART and a parallel port of registers without a line.

use crate::hypervisor::{CapturedDevice, PeekedDevice};
use nix::errno::Errno;
use pvmm_core::devices::{kind, RecorderState, Sink};
use pvmm_core::iospace::Access;
use pvmm_core::iospace::{Location, Width};
use pvmm_core::models::i8254::I8254;
use pvmm_core::models::i8259::I8259Pair;
use pvmm_core::record::trace::Seen;
use pvmm_core::record::{Recorded, Recorder};
use pvmm_core::replay::{execute, Backend, Outcome, Timing};
use pvmm_uapi::*;
use std::time::{Duration, Instant};

const LCR_DLAB: u8 = 0x80;
const MCR_LOOP: u8 = 0x10;
const RBR: usize = 0;
const IER: usize = 1;
const IIR: usize = 2;
const LCR: usize = 3;
const MCR: usize = 4;
const LSR: usize = 5;
const MSR: usize = 6;

/// A UART with nothing at its other end.
#[derive(Debug, Default)]
struct Uart {
    registers: [u8; 8],
    divisor: [u8; 2],
    fcr: u8,
    received: std::collections::VecDeque<u8>,
}

impl Uart {
    fn dlab(&self) -> bool {
        self.registers[LCR] & LCR_DLAB != 0
    }
}

impl Backend for Uart {
    fn read(&mut self, at: Location, _width: Width) -> u64 {
        let offset = (at.offset & 7) as usize;
        let value = match offset {
            0 | 1 if self.dlab() => self.divisor[offset],
            RBR => self.received.pop_front().unwrap_or(0),
            IIR => 0x01 | if self.fcr & 1 != 0 { 0xc0 } else { 0 },
            LSR => 0x60 | u8::from(!self.received.is_empty()),
            MSR => 0xb0,
            _ => self.registers[offset],
        };
        value.into()
    }

    fn write(&mut self, at: Location, _width: Width, value: u64) {
        let offset = (at.offset & 7) as usize;
        let value = value as u8;
        match offset {
            0 | 1 if self.dlab() => self.divisor[offset] = value,
            RBR if self.registers[MCR] & MCR_LOOP != 0 => self.received.push_back(value),
            RBR | LSR | MSR => {}
            IIR => {
                self.fcr = value;
                if value & 2 != 0 {
                    self.received.clear();
                }
            }
            IER => self.registers[IER] = value & 0x0f,
            MCR => self.registers[MCR] = value & 0x1f,
            _ => self.registers[offset] = value,
        }
    }
}

/// A parallel port with nothing at its other end.
#[derive(Debug, Default)]
struct Parallel {
    data: u8,
    control: u8,
}

impl Backend for Parallel {
    fn read(&mut self, at: Location, _width: Width) -> u64 {
        u64::from(match at.offset {
            0 => self.data,
            1 => 0xdf,
            _ => self.control | 0xe0,
        })
    }

    fn write(&mut self, at: Location, _width: Width, value: u64) {
        match at.offset {
            0 => self.data = value as u8,
            2 => self.control = value as u8 & 0x3f,
            _ => {}
        }
    }
}

enum Model {
    Pic(I8259Pair),
    Pit(I8254),
    Uart(Uart),
    Parallel(Parallel),
}

/// A device with its recorder.
pub struct Device {
    model: Model,
    recorder: RecorderState,
}

/// The test's own time.
struct RealTime(Instant);

impl Timing for RealTime {
    fn now_ns(&mut self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }

    fn delay_ns(&mut self, ns: u64) {
        std::thread::sleep(Duration::from_nanos(ns));
    }
}

impl Device {
    /// A device of a kind after power-on. `None` for a kind that the core does not have.
    pub fn new(number: u32) -> Option<Self> {
        let model = match number {
            KIND_I8259 => Model::Pic(I8259Pair::new()),
            KIND_I8254 => Model::Pit(I8254::new()),
            KIND_UART16550 => Model::Uart(Uart::default()),
            KIND_PARALLEL => Model::Parallel(Parallel::default()),
            _ => return None,
        };
        Some(Self {
            model,
            recorder: RecorderState::new(number)?,
        })
    }

    fn with<T>(
        &mut self,
        now: u64,
        action: impl FnOnce(&mut RecorderState, &mut dyn Backend) -> T,
    ) -> T {
        match &mut self.model {
            Model::Pic(pic) => action(&mut self.recorder, pic),
            Model::Pit(pit) => action(&mut self.recorder, &mut pit.at(now)),
            Model::Uart(uart) => action(&mut self.recorder, uart),
            Model::Parallel(port) => action(&mut self.recorder, port),
        }
    }

    /// A guest's write at `offset` of `range`, seen by the recorder. What a trace says of it.
    pub fn write(&mut self, now: u64, range: u8, offset: u64, value: u8) -> TraceEntry {
        let access = Access::write(Location::new(range, offset), Width::W1, value.into());
        self.with(now, |recorder, backend| {
            let seen = Seen::before(recorder, true, &access);
            backend.write(access.at, access.width, access.value);
            recorder.after(&access);
            seen.after(recorder, &access, now)
        })
    }

    /// Looks at the device.
    pub fn peek(&mut self, now: u64, recorded: bool) -> Result<PeekedDevice, Errno> {
        let mut storage = vec![StateRecord::default(); MAX_STATE_RECORDS as usize];
        let mut sink = Sink::new(&mut storage);
        let backend = match self.model {
            Model::Uart(_) | Model::Parallel(_) => BACKEND_PHYSICAL,
            Model::Pic(_) | Model::Pit(_) => BACKEND_MODELLED,
        };
        let answer = self.with(now, |recorder, backend_of| {
            let log = recorder.log();
            let mut flags = if recorded { 0 } else { PEEK_UNRECORDED };
            if log.overflowed {
                flags |= PEEK_OVERFLOWED;
            }
            let answer = DevicePeek {
                kind: recorder.number(),
                backend,
                log_length: log.entries.len() as u32,
                log_bound: log.bound as u32,
                flags,
                ..DevicePeek::default()
            };
            let peeked = recorder.peek(recorded, backend_of, &mut sink);
            peeked.map(|()| answer).map_err(|_| Errno::ENOSPC)
        })?;
        Ok(PeekedDevice::new(&answer, sink.as_slice().to_vec()))
    }

    /// Captures the state.
    pub fn capture(&mut self, now: u64) -> Result<CapturedDevice, Errno> {
        let number = self.recorder.number();
        let mut storage = vec![StateRecord::default(); MAX_STATE_RECORDS as usize];
        let mut sink = Sink::new(&mut storage);
        self.with(now, |recorder, backend| {
            recorder.capture(backend, &mut RealTime(Instant::now()), &mut sink)
        })
        .map_err(|_| Errno::EBUSY)?;
        Ok(CapturedDevice {
            kind: number,
            version: kind(number).ok_or(Errno::ENODEV)?.state_version,
            records: sink.as_slice().to_vec(),
        })
    }

    /// Executes a plan.
    pub fn execute(&mut self, now: u64, steps: &[PlanStep]) -> Option<Outcome> {
        let ranges = kind(self.recorder.number())?.ranges;
        Some(self.with(now, |recorder, backend| {
            let mut recorded = Recorded { backend, recorder };
            execute(steps, ranges, &mut recorded, &mut RealTime(Instant::now()))
        }))
    }
}

/// What a PC's operating system writes first: vectors 20h and 28h with everything masked but the timer and COM1, and the
/// timer at 100 Hz.
pub const BOOT_WRITES: &[(u32, u8, u64, u8)] = &[
    (DEVICE_I8259, 0, 0, 0x11),
    (DEVICE_I8259, 0, 1, 0x20),
    (DEVICE_I8259, 0, 1, 0x04),
    (DEVICE_I8259, 0, 1, 0x01),
    (DEVICE_I8259, 0, 1, 0xee),
    (DEVICE_I8259, 1, 0, 0x11),
    (DEVICE_I8259, 1, 1, 0x28),
    (DEVICE_I8259, 1, 1, 0x02),
    (DEVICE_I8259, 1, 1, 0x01),
    (DEVICE_I8259, 1, 1, 0xff),
    (DEVICE_I8254, 0, 3, 0x34),
    (DEVICE_I8254, 0, 0, 0x9c),
    (DEVICE_I8254, 0, 0, 0x2e),
];
