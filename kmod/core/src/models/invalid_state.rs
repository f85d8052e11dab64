// SPDX-License-Identifier: GPL-2.0
//! The refusal of a captured model state. Captured state comes from a peer: every model checks it in full before it
//! takes any of it, and says which register could not have had that value.
#![forbid(unsafe_code)]

use core::fmt;

/// A register of a captured state has a value that the register can never have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidState {
    /// The register's data-sheet name.
    pub register: &'static str,
    /// Its number among those of the same name (a pin, a vector group); 0 for a single register.
    pub index: u32,
    /// The value.
    pub value: u64,
}

impl InvalidState {
    /// The refusal of `value` in the only register of that name.
    pub const fn new(register: &'static str, value: u64) -> Self {
        Self {
            register,
            index: 0,
            value,
        }
    }

    /// The refusal of `value` in the `index`th register of that name.
    pub const fn indexed(register: &'static str, index: u32, value: u64) -> Self {
        Self {
            register,
            index,
            value,
        }
    }
}

impl fmt::Display for InvalidState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the captured state has {} [{}] = {:#x}, which that register cannot hold: the state is damaged or from an \
             incompatible version",
            self.register, self.index, self.value
        )
    }
}

impl core::error::Error for InvalidState {}
