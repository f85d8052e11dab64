// SPDX-License-Identifier: GPL-2.0
//! Capabilities (capabilities(7)) of the calling thread.

use super::ConfineError;
use rustix::io::Errno;
pub use rustix::thread::CapabilitySet;
use rustix::thread::{
    capabilities, clear_ambient_capability_set, remove_capability_from_bounding_set,
    set_capabilities, CapabilitySets,
};

/// Clears all five sets. Returns what was permitted before.
pub(super) fn drop_all() -> Result<CapabilitySet, ConfineError> {
    let failed = |what| {
        move |reason: Errno| ConfineError::Privileges {
            what,
            reason: reason.into(),
        }
    };
    let before = capabilities(None).map_err(failed("capabilities"))?;
    match clear_ambient_capability_set() {
        // A kernel without ambient capabilities (before 4.3).
        Ok(()) | Err(Errno::INVAL) => {}
        Err(reason) => return Err(failed("ambient capabilities")(reason)),
    }
    if before.effective.contains(CapabilitySet::SETPCAP) {
        // Also those that this program has no name for; the kernel says where they end.
        for bit in 0..u64::BITS {
            let one = CapabilitySet::from_bits_retain(1 << bit);
            match remove_capability_from_bounding_set(one) {
                Ok(()) => {}
                Err(Errno::INVAL) => break,
                Err(reason) => return Err(failed("the bounding set of capabilities")(reason)),
            }
        }
    }
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none).map_err(failed("capabilities"))?;
    Ok(before.permitted)
}
