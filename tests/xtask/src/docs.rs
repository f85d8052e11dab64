//! `cargo xtask docs`: the documents that are made from the code.

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use pvmm_core::devices::register::Markdown;
use pvmm_core::devices::{Kind, RecorderState, KINDS};

use crate::error::{file, Result};
use crate::paths;

/// Where the register tables are, in the checkout.
const REGISTERS: &str = "kmod/core/src/devices/REGISTERS.md";

const HEAD: &str = "\
# Registers of the device kinds

Made from the register tables of the kinds by `cargo xtask docs`; changes by hand get lost. For each register: where it is
(range and offset), how software can access it, and what becomes of it when the guest moves:

- *recorded*: the guest's writes are kept in the log and issued again on the peer;
- *read back*: read from the device when the guest moves, and written on the peer;
- *inferred*: found out in another way than by reading the register, and brought back by the plan;
- *not part of the state*.

A log holds at most so many accesses as is said, however long the guest runs.
";

/// Writes the documents.
///
/// # Errors
/// [`crate::error::Error`] if a document can't be written.
pub fn write() -> Result<ExitCode> {
    let path = path();
    fs::write(&path, registers()).map_err(file("can't write", &path))?;
    println!("{REGISTERS}");
    Ok(ExitCode::SUCCESS)
}

/// Whether the documents are those of the code; says what to do if not.
///
/// # Errors
/// [`crate::error::Error`] if a document can't be read.
pub fn check() -> Result<bool> {
    let path = path();
    let found = fs::read_to_string(&path).map_err(file("can't read", &path))?;
    let same = found == registers();
    if !same {
        eprintln!("    {REGISTERS} differs from the register tables; run `cargo xtask docs` and commit it");
    }
    Ok(same)
}

fn path() -> PathBuf {
    paths::workspace().join(REGISTERS)
}

fn registers() -> String {
    let mut text = HEAD.to_owned();
    for kind in KINDS {
        // A string takes all that is written to it.
        let _ = section(&mut text, kind);
    }
    text
}

fn section(text: &mut String, kind: &Kind) -> std::fmt::Result {
    let lengths: Vec<String> = kind.ranges.iter().map(ToString::to_string).collect();
    writeln!(text, "\n## {}\n", kind.name)?;
    write!(
        text,
        "Kind {}, state version {}; ranges of {} bytes",
        kind.number,
        kind.state_version,
        lengths.join(", ")
    )?;
    if let Some(recorder) = RecorderState::new(kind.number) {
        write!(text, "; a log of at most {} accesses", recorder.log().bound)?;
    }
    write!(text, ".\n\n{}", Markdown(kind.registers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_section_with_every_register() {
        let text = registers();
        assert!(!KINDS.is_empty());
        for kind in KINDS {
            let head = format!("\n## {}\n", kind.name);
            let (_, section) = text.split_once(&head).expect("a section of its own");
            for register in kind.registers {
                let row = format!("| {} | ", register.name);
                assert!(section.contains(&row), "{}: {row}", kind.name);
            }
        }
    }
}
