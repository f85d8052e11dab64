//! What `pvmm-bench` prints, and how it is read back.
//!
//! The program runs on a bare host and as `/init` of a guest on that host, and prints one line for each
//! measurement, so that the two can be compared: `pvmm-bench NAME TICKS`, in ticks of the time-stamp counter.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

/// Starts each line of the program.
pub const PREFIX: &str = "pvmm-bench";
/// The last line.
pub const END: &str = "pvmm-bench end";

/// Single operations, most of which exit; ticks of one.
pub const OPERATIONS: [(&str, &str); 7] = [
    ("cpuid", "CPUID leaf 0"),
    ("port-in-core", "read of 21h, the 8259's mask"),
    (
        "pm-timer",
        "read of 608h, the ACPI timer (in a guest with ACPI)",
    ),
    (
        "port-in-daemon",
        "read of 3FFh, a register of the UART that pvmmd plays",
    ),
    (
        "passed-through-read",
        "read of 2FFh, the scratch register of the passed-through UART",
    ),
    (
        "passed-through-write",
        "write of 2FFh, which nobody has to remember",
    ),
    (
        "recorded-write",
        "write of 2FAh, the FIFO control register, which is remembered",
    ),
];

/// Loops of ordinary work; ticks of the whole loop.
pub const LOOPS: [(&str, &str); 5] = [
    ("compute", "integer arithmetic"),
    ("memory", "copies over 8 MiB"),
    ("syscall", "getppid"),
    ("context-switch", "two threads that wake each other"),
    (
        "serial",
        "the passed-through UART set up anew and given some characters to send",
    ),
];

/// Reads the program's output: ticks by name. `None` before the last line has come.
pub fn parse(output: &str) -> Option<BTreeMap<String, u64>> {
    let mut results = BTreeMap::new();
    for line in output.lines().map(str::trim) {
        if line == END {
            return Some(results);
        }
        let mut words = line.split_whitespace();
        if words.next() != Some(PREFIX) {
            continue;
        }
        if let (Some(name), Some(Ok(ticks))) = (words.next(), words.next().map(str::parse)) {
            results.insert(name.to_owned(), ticks);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_others_are_passed_over_and_the_end_is_needed() {
        let lines = "[    0.1] kernel\r\npvmm-bench cpuid 12\r\npvmm-bench broken x\n";
        assert_eq!(parse(lines), None);
        let results = parse(&format!("{lines}{END}\r\n")).expect("the end is there");
        assert_eq!(results.get("cpuid"), Some(&12));
        assert_eq!(results.len(), 1);
    }
}
