// SPDX-License-Identifier: GPL-2.0
//! An 8254 counter stepped pulse by pulse, written down from the data sheet's mode definitions and nothing else. The
//! model, which computes instead of stepping, is compared with it.

/// One counter; `clk` is one pulse of its clock.
#[derive(Debug, Clone)]
pub(super) struct Stepped {
    control: u8,
    cr: u16,
    cr_valid: bool,
    null: bool,
    loaded: bool,
    odd: bool,
    strobed: bool,
    ce: u32,
    /// The bits of the counting element before the last control word.
    idle: u16,
    pub(super) out: bool,
    gate: bool,
    trigger: bool,
    load: bool,
    first_byte: Option<u8>,
    second_read: bool,
    count_latch: Option<u16>,
    status_latch: Option<u8>,
}

impl Stepped {
    pub(super) fn new(gate: bool) -> Self {
        Self {
            control: 0x36,
            cr: 0,
            cr_valid: false,
            null: true,
            loaded: false,
            odd: false,
            strobed: false,
            ce: 0,
            idle: 0,
            out: true,
            gate,
            trigger: false,
            load: false,
            first_byte: None,
            second_read: false,
            count_latch: None,
            status_latch: None,
        }
    }

    fn mode(&self) -> u8 {
        [0, 1, 2, 3, 4, 5, 2, 3][usize::from(self.control >> 1 & 7)]
    }

    fn modulus(&self) -> u32 {
        if self.control & 1 == 1 {
            10_000
        } else {
            65_536
        }
    }

    /// The count register as a number below the modulus; 0 stands for the modulus itself.
    fn count(&self) -> u32 {
        if self.control & 1 == 0 {
            return self.cr.into();
        }
        let mut value = 0;
        for digit in (0..4).rev() {
            value = value * 10 + u32::from(self.cr >> (4 * digit) & 15);
        }
        value % 10_000
    }

    fn decrement(&mut self, by: u32) {
        self.ce = (self.ce + self.modulus() - by) % self.modulus();
    }

    fn take_count(&mut self) {
        self.null = false;
        self.loaded = true;
        self.strobed = false;
        self.ce = self.count();
        if self.mode() == 3 {
            self.odd = self.ce % 2 == 1;
            self.ce &= !1;
        }
    }

    pub(super) fn clk(&mut self) {
        let start = std::mem::take(&mut self.trigger) | std::mem::take(&mut self.load);
        if start {
            self.take_count();
            self.out = match self.mode() {
                0 | 1 => false,
                2 => self.ce != 1 || !self.gate,
                _ => true,
            };
            return;
        }
        let held = match self.mode() {
            0 => !self.gate || self.first_byte.is_some(),
            2..=4 => !self.gate,
            _ => false,
        };
        if !self.loaded || held {
            return;
        }
        match self.mode() {
            0 | 1 => {
                self.decrement(1);
                if self.ce == 0 {
                    self.out = true;
                }
            }
            2 => {
                if self.ce == 1 {
                    self.take_count();
                } else {
                    self.decrement(1);
                }
                self.out = self.ce != 1;
            }
            3 => {
                let last = if self.out && self.odd { 0 } else { 2 };
                if self.ce == last {
                    self.out = !self.out;
                    self.take_count();
                } else {
                    self.decrement(2);
                }
            }
            _ => {
                self.decrement(1);
                self.out = true;
                if self.ce == 0 && !self.strobed {
                    self.strobed = true;
                    self.out = false;
                }
            }
        }
    }

    pub(super) fn set_gate(&mut self, gate: bool) {
        if self.gate == gate {
            return;
        }
        self.gate = gate;
        match self.mode() {
            1 | 2 | 3 | 5 if gate && self.cr_valid => self.trigger = true,
            2 | 3 if !gate && self.loaded => self.out = true,
            _ => {}
        }
    }

    pub(super) fn write_control(&mut self, control: u8) {
        *self = Self {
            control,
            cr: self.cr,
            idle: self.shown(),
            ..Self::new(self.gate)
        };
        self.out = self.mode() != 0;
    }

    pub(super) fn write(&mut self, value: u8) {
        let low_high = self.control >> 4 & 3 == 3;
        if low_high && self.first_byte.is_none() {
            self.first_byte = Some(value);
            if self.mode() == 0 {
                self.out = false;
                self.load = false;
            }
            return;
        }
        self.cr = match (self.control >> 4 & 3, self.first_byte.take()) {
            (1, _) => u16::from(value),
            (2, _) => u16::from(value) << 8,
            (_, first) => u16::from(value) << 8 | u16::from(first.unwrap_or(0)),
        };
        self.cr_valid = true;
        self.null = true;
        match self.mode() {
            0 => {
                self.out = false;
                self.load = true;
            }
            4 => self.load = true,
            2 | 3 if !self.loaded => self.load = true,
            _ => {}
        }
    }

    fn shown(&self) -> u16 {
        if !self.loaded {
            return self.idle;
        }
        if self.control & 1 == 0 {
            return self.ce as u16;
        }
        let digits = std::format!("{:04}", self.ce % 10_000);
        u16::from_str_radix(&digits, 16).unwrap_or(0)
    }

    pub(super) fn latch(&mut self, count: bool, status: bool) {
        if count && self.count_latch.is_none() {
            self.count_latch = Some(self.shown());
        }
        if status && self.status_latch.is_none() {
            self.status_latch =
                Some(u8::from(self.out) << 7 | u8::from(self.null) << 6 | self.control);
        }
    }

    pub(super) fn read(&mut self) -> u8 {
        if let Some(status) = self.status_latch.take() {
            return status;
        }
        let value = self.count_latch.unwrap_or(self.shown());
        match self.control >> 4 & 3 {
            1 => {
                self.count_latch = None;
                value as u8
            }
            2 => {
                self.count_latch = None;
                (value >> 8) as u8
            }
            _ if self.second_read => {
                self.second_read = false;
                self.count_latch = None;
                (value >> 8) as u8
            }
            _ => {
                self.second_read = true;
                value as u8
            }
        }
    }
}
