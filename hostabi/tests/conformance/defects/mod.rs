// SPDX-License-Identifier: GPL-2.0
//! The defects. Each breaks one contract, some of them two that hang together.

macro_rules! defect {
    ($(#[$doc:meta])* $name:ident breaks [$($contract:literal),+] $body:tt) => {
        $(#[$doc])*
        pub struct $name;

        impl Defect for $name {
            const BREAKS: &'static [&'static str] = &[$($contract),+];
            defect!(@ $body);
        }
    };
    (@ { $($item:item)* }) => { $($item)* };
}

mod machine;
mod memory;

pub use machine::*;
pub use memory::*;
