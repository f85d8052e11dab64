// SPDX-License-Identifier: GPL-2.0
//! What commands print. Whoever reads it may stop reading at any time (`pvmmd list | head -1`), which is no reason to panic, as
//! `println!` does.

use super::Failure;
use std::fmt::Arguments;
use std::io::{self, Write};

/// A line on standard output, as `println!`, but with an error to hand on.
macro_rules! out {
    ($($text:tt)*) => {
        $crate::commands::output::line(format_args!($($text)*))
    };
}

/// A line on standard error, as `eprintln!`; if nobody takes it, it is lost.
macro_rules! note {
    ($($text:tt)*) => {
        $crate::commands::output::remark(format_args!($($text)*))
    };
}

pub(crate) use {note, out};

/// [`out!`].
pub fn line(text: Arguments<'_>) -> Result<(), Failure> {
    writeln!(io::stdout(), "{text}").map_err(Failure::Output)
}

/// [`note!`].
pub fn remark(text: Arguments<'_>) {
    // There is nowhere else to say it.
    let _ = writeln!(io::stderr(), "{text}");
}
