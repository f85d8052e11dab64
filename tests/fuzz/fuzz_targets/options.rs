// SPDX-License-Identifier: GPL-2.0
//! What operators and requests say in words: sizes, device options, addresses, modes and names. What is shown of a value
//! reads as the same value.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pvmm_control::size;
use pvmm_migrate::description::validate_name;
use pvmm_migrate::{Mode, TimeoutAction, Url};
use pvmm_vmm::DeviceSpec;

fuzz_target!(|text: &str| {
    if let Ok(bytes) = size::parse(text) {
        assert_eq!(size::parse(&bytes.to_string()), Ok(bytes));
        assert!(!size::show(bytes).is_empty());
    }
    if let Ok(spec) = text.parse::<DeviceSpec>() {
        assert_eq!(spec.to_string().parse(), Ok(spec));
    }
    if let Ok(url) = text.parse::<Url>() {
        assert_eq!(url.to_string().parse(), Ok(url));
    }
    if let Ok(mode) = text.parse::<Mode>() {
        assert_eq!(mode.to_string(), text);
    }
    let _ = text.parse::<TimeoutAction>();
    if validate_name("name", text).is_ok() {
        // It becomes a part of a file's name.
        assert!(!text.contains('/') && text != "." && text != "..");
    }
});
