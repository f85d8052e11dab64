// SPDX-License-Identifier: GPL-2.0
//! A hostile source against the receiving engine.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pvmm_fuzz::moves;

fuzz_target!(|data: &[u8]| {
    moves::receive(data);
});
