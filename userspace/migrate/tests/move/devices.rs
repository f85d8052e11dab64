// SPDX-License-Identifier: GPL-2.0
//! The guest's recorded devices, behind the core's own recorders, plans and executor: an 8259A pair (the core's model) and
//! a UART that stands for hardware.

use pvmm_core::devices::{kind, RecorderState, Sink};
use pvmm_core::iospace::{Access, Location, Width};
use pvmm_core::models::i8259::I8259Pair;
use pvmm_core::record::Recorder;
use pvmm_core::replay::execute::execute;
use pvmm_core::replay::{Backend, Hidden, Timing};
use pvmm_migrate::vm::{CapturedDevice, Executed};
use pvmm_uapi::{PlanStep, StateRecord, KIND_I8259, KIND_UART16550, MAX_STATE_RECORDS, STEP_WRITE};
use std::collections::{BTreeMap, VecDeque};

/// Number of the 8259A pair.
pub const PIC: u32 = 0;
/// Number of the UART.
pub const UART: u32 = 2;

/// As much of a 16550A (PC16550D data sheet) as capture and plan touch: latch, FIFO, loopback, THR-empty interrupt.
#[derive(Debug, Clone, Default)]
pub struct Uart {
    dll: u8,
    dlm: u8,
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    scr: u8,
    thre: bool,
    /// SCR reads as zero, as in the 8250 without one.
    pub scratch_is_broken: bool,
    pub received: VecDeque<u8>,
    /// What left on the line.
    pub sent: Vec<u8>,
}

impl Backend for Uart {
    fn read(&mut self, at: Location, _width: Width) -> u64 {
        let dlab = self.lcr & 0x80 != 0;
        let value = match at.offset {
            0 if dlab => self.dll,
            0 => self.received.pop_front().unwrap_or(0),
            1 if dlab => self.dlm,
            1 => self.ier,
            2 => {
                let fifo = if self.fcr & 1 != 0 { 0xc0 } else { 0 };
                let which = if self.ier & 1 != 0 && !self.received.is_empty() {
                    0x0c
                } else if self.ier & 2 != 0 && std::mem::take(&mut self.thre) {
                    0x02
                } else {
                    0x01
                };
                fifo | which
            }
            3 => self.lcr,
            4 => self.mcr,
            5 => 0x60 | u8::from(!self.received.is_empty()),
            7 if self.scratch_is_broken => 0,
            7 => self.scr,
            // The modem lines follow MCR in loopback (8.7), and are off otherwise.
            6 if self.mcr & 0x10 != 0 => {
                let (dtr, rts, out1, out2) = (
                    self.mcr & 1,
                    self.mcr >> 1 & 1,
                    self.mcr >> 2 & 1,
                    self.mcr >> 3 & 1,
                );
                rts << 4 | dtr << 5 | out1 << 6 | out2 << 7
            }
            _ => 0,
        };
        u64::from(value)
    }

    fn write(&mut self, at: Location, _width: Width, value: u64) {
        let value = value as u8;
        let dlab = self.lcr & 0x80 != 0;
        match at.offset {
            0 if dlab => self.dll = value,
            0 => {
                self.thre = true;
                if self.mcr & 0x10 != 0 {
                    self.received.push_back(value);
                } else {
                    self.sent.push(value);
                }
            }
            1 if dlab => self.dlm = value,
            1 => {
                self.thre |= value & 2 != 0 && self.ier & 2 == 0;
                self.ier = value & 0x0f;
            }
            2 => {
                if value & 2 != 0 || (value ^ self.fcr) & 1 != 0 {
                    self.received.clear();
                }
                self.fcr = value & 0xc9;
            }
            3 => self.lcr = value,
            4 => self.mcr = value & 0x1f,
            7 => self.scr = value,
            _ => {}
        }
    }
}

/// What stands behind a device.
#[derive(Debug, Clone)]
pub enum Hardware {
    Pic(Box<I8259Pair>),
    Uart(Uart),
}

impl Hardware {
    fn new(number: u32) -> Self {
        if number == KIND_I8259 {
            Self::Pic(Box::new(I8259Pair::new()))
        } else {
            Self::Uart(Uart::default())
        }
    }

    fn backend(&mut self) -> &mut dyn Backend {
        match self {
            Self::Pic(pic) => &mut **pic,
            Self::Uart(uart) => uart,
        }
    }
}

impl Backend for Hardware {
    fn read(&mut self, at: Location, width: Width) -> u64 {
        self.backend().read(at, width)
    }

    fn write(&mut self, at: Location, width: Width, value: u64) {
        self.backend().write(at, width, value);
    }

    fn hidden(&mut self) -> Option<&mut dyn Hidden> {
        match self {
            Self::Pic(pic) => pic.hidden(),
            Self::Uart(uart) => uart.hidden(),
        }
    }
}

/// Time that passes only when somebody waits.
struct Still(u64);

impl Timing for Still {
    fn now_ns(&mut self) -> u64 {
        self.0
    }

    fn delay_ns(&mut self, ns: u64) {
        self.0 += ns;
    }
}

/// A recorded device.
#[derive(Debug, Clone)]
pub struct Device {
    number: u32,
    pub hardware: Hardware,
    recorder: RecorderState,
}

impl Device {
    pub fn new(number: u32) -> Self {
        Self {
            number,
            hardware: Hardware::new(number),
            recorder: RecorderState::new(number).expect("the kind is known"),
        }
    }

    /// The guest writes a byte.
    pub fn write(&mut self, range: u8, offset: u64, value: u8) {
        let access = Access::write(Location::new(range, offset), Width::W1, value.into());
        self.hardware.write(access.at, access.width, access.value);
        self.recorder.after(&access);
    }

    pub fn capture(&mut self) -> CapturedDevice {
        let mut storage = vec![StateRecord::default(); MAX_STATE_RECORDS as usize];
        let mut sink = Sink::new(&mut storage);
        self.recorder
            .capture(&mut self.hardware, &mut Still(0), &mut sink)
            .expect("the device is at rest");
        let count = sink.len();
        storage.truncate(count);
        CapturedDevice {
            kind: self.number,
            version: kind(self.number).expect("the kind is known").state_version,
            records: storage,
        }
    }

    pub fn execute(&mut self, steps: &[PlanStep]) -> Executed {
        let ranges = kind(self.number).expect("the kind is known").ranges;
        // The plan is all that the device was told so far, or again: the recorder here must know it, too.
        for step in steps.iter().filter(|step| step.operation == STEP_WRITE) {
            let width = Width::from_bytes(step.width).expect("the plan was made here");
            let at = Location::new(step.range, step.offset);
            self.recorder.after(&Access::write(at, width, step.value));
        }
        let ended = execute(steps, ranges, &mut self.hardware, &mut Still(0));
        Executed {
            outcome: ended.outcome,
            step: ended.step,
            found: ended.found,
        }
    }

    /// Whether the guest would find the same in another device: both states are captured with this one's recorder, which
    /// knows the guest's accesses.
    pub fn looks_like(&self, other: &Self) -> bool {
        let (mut here, mut there) = (self.clone(), other.clone());
        there.recorder = self.recorder;
        here.capture() == there.capture()
    }
}

/// The devices of a guest that has just started.
pub fn fresh() -> BTreeMap<u32, Device> {
    BTreeMap::from([
        (PIC, Device::new(KIND_I8259)),
        (UART, Device::new(KIND_UART16550)),
    ])
}

/// The devices as the guest has programmed them.
pub fn programmed() -> BTreeMap<u32, Device> {
    let mut devices = fresh();
    let pic = devices.get_mut(&PIC).expect("it is there");
    for (range, base) in [(0, 0x30), (1, 0x38)] {
        pic.write(range, 0, 0x11);
        pic.write(range, 1, base);
        pic.write(range, 1, if range == 0 { 4 } else { 2 });
        pic.write(range, 1, 1);
        pic.write(range, 1, 0xe6);
    }
    if let Hardware::Pic(pic) = &mut pic.hardware {
        pic.set_line(0, true);
        pic.set_line(3, true);
    }
    let uart = devices.get_mut(&UART).expect("it is there");
    for (offset, value) in [
        (3, 0x83),
        (0, 1),
        (1, 0),
        (3, 0x03),
        (2, 0xc1),
        (4, 0x0b),
        (1, 0x05),
        (7, 0x5a),
    ] {
        uart.write(0, offset, value);
    }
    if let Hardware::Uart(uart) = &mut uart.hardware {
        uart.received.extend(b"in");
    }
    devices
}
