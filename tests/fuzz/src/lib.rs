// SPDX-License-Identifier: GPL-2.0
//! What the fuzz targets share: the input's parts, a peer that says the input, and ports that see who touches them.
//!
//! A target (`fuzz_targets/`) takes the fuzzer's bytes as what a stranger sends, gives them to the code that decodes such
//! bytes on a real host, and asserts what must hold whatever they are. Guest and hosts are those of the tests of moves.

#[allow(dead_code, missing_docs)] // The tests of moves use all of it.
#[path = "../../../userspace/migrate/tests/move/devices.rs"]
pub mod devices;
#[allow(dead_code, missing_docs)]
#[path = "../../../userspace/migrate/tests/move/fake.rs"]
pub mod fake;
#[allow(dead_code, missing_docs)]
#[path = "../../../userspace/migrate/tests/move/fake_source.rs"]
pub mod fake_source;
#[allow(dead_code, missing_docs)]
#[path = "../../../userspace/migrate/tests/move/fake_target.rs"]
pub mod fake_target;

pub mod input;
pub mod moves;
pub mod peer;
pub mod ports;
