// SPDX-License-Identifier: GPL-2.0
//! The lines of the control interface, in both directions. What is read can be written, and reads the same again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pvmm_control::{line, Envelope, Message};

fuzz_target!(|data: &[u8]| {
    let mut stream = data;
    while let Ok(Some(envelope)) = line::read::<Envelope>(&mut stream) {
        let mut written = Vec::new();
        line::write(&mut written, &envelope).expect("memory takes all");
        let again = line::read::<Envelope>(&mut written.as_slice());
        assert_eq!(again.ok().flatten(), Some(envelope));
    }
    let mut stream = data;
    while let Ok(Some(message)) = line::read::<Message>(&mut stream) {
        let mut written = Vec::new();
        line::write(&mut written, &message).expect("memory takes all");
        // Not the same value: text holds a number with a point only nearly.
        let again = line::read::<Message>(&mut written.as_slice());
        assert!(matches!(again, Ok(Some(_))), "{message:?}: {again:?}");
    }
});
