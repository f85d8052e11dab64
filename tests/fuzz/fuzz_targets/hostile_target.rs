// SPDX-License-Identifier: GPL-2.0
//! A hostile target against the sending engine.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pvmm_fuzz::moves;

fuzz_target!(|data: &[u8]| {
    moves::send(data);
});
