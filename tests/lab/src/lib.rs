//! The lab: emulated machines with real VT-x, made from Debian packages, for tests and the demo.
//!
//! Nothing here is on the path of a guest access; this is the bench that the whole path is tested on.
//! In the order in which things come to be:
//!
//! 1. [`cache`]: the folder of expensive things; [`apt`], [`package`], [`tree`]: a Debian 13 tree in it
//! 2. [`debkernel`], [`kernel`]: Debian's kernel, ready to compile Rust modules for; [`module`]:
//!    `pvmm.ko`
//! 3. [`cpio`], [`bootdisk`], [`image`]: what a host boots
//! 4. [`sandbox`]: the namespaces of a run; [`net`], [`serial`]: the wires in it
//! 5. [`machine`], [`host`]: emulators as hosts that run commands
//! 6. [`daemon`]: `pvmmd` on a host; [`kernel_log`]: what its kernel thinks of it
//! 7. [`Lab`]: all of it, for one test

#![forbid(unsafe_code)]

pub mod apt;
pub mod bootdisk;
pub mod cache;
mod conversation;
pub mod cpio;
pub mod daemon;
pub mod debkernel;
mod error;
pub mod host;
pub mod image;
pub mod kernel;
pub mod kernel_log;
mod lab;
pub mod machine;
pub mod module;
pub mod net;
pub mod package;
pub mod process;
pub mod progress;
pub mod sandbox;
pub mod serial;
pub mod tree;

pub use error::{LabError, Result};
pub use host::{Host, HostSpec, Output};
pub use lab::{Lab, Prepared, MTU, PREPARED};
pub use net::Wire;
