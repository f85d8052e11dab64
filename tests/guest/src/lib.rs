//! What a guest and a test have to agree on, and what can be checked without a guest.
//!
//! The guest of the tests is Debian's unmodified cloud kernel with a single process tree: this
//! package's binary as `/init` (see `src/init/main.rs`). While the guest is being moved, it checks
//! that nothing in it notices. It stands at both ends of the path: its memory, registers, clocks
//! and serial ports are what is captured on one host and has to come out unchanged on the other.
//!
//! This library holds the pure parts. The binary uses them inside the guest; a test outside uses
//! [`check_heartbeats`] and [`Transcript`] on a captured serial log. [`bare`] has guests without any Linux.
//!
//! # Lines on the serial ports
//!
//! | line | meaning |
//! |---|---|
//! | `pvmm-guest READY memory=<MiB> total=<MiB> available=<MiB> cpus=<n> ...` | every checker runs, memory is filled |
//! | `pvmm-guest OK <n> mem=<passes> checks=<n> maxgap_us=<us> ...` | once per second, nothing failed so far |
//! | `pvmm-guest BAD <n> ... fails=<n>` | the same line, once something has failed |
//! | `pvmm-guest FAIL <what>: <detail>` | a check failed; the guest goes on |
//! | `pvmm-guest NOTE <what>: <detail>` | worth knowing, no failure |
//! | `pvmm-guest LOAD <load>` | answer to the command `load` |
//! | `pvmm-guest VERIFIED pages=<n> bad=<n>` | answer to `verify`: all of memory was read |
//! | `pvmm-guest REPORT ...` | answer to `report` |
//! | `pvmm-guest DONE fails=<n> ...` | last line before power-off |
//! | `pvmm-heartbeat com1 <n> t=<ms>` | heartbeat; `com2` on the second port |
//! | `echo <n> <line>` | on COM2: the n-th line received there |
#![forbid(unsafe_code)]

pub mod bare;
pub mod clocks;
pub mod config;
pub mod echo;
pub mod heartbeat;
pub mod kernel_log;
pub mod memory;
pub mod message;
pub mod pattern;
pub mod timers;
pub mod transcript;

pub use config::Config;
pub use heartbeat::{check_heartbeats, HeartbeatError, Summary};
pub use transcript::Transcript;
