// SPDX-License-Identifier: GPL-2.0
//! The I/O space: what happens to an access that is not to RAM.
#![forbid(unsafe_code)]

pub mod access;
pub mod bitmap;

pub use access::{Access, Direction, Location, Width};
