// SPDX-License-Identifier: GPL-2.0
//! Moving a running guest from one host to another.
//!
//! The daemon implements [`vm::SourceVm`] and calls [`source::migrate`] on the host that the guest leaves; it implements
//! [`vm::TargetHost`] and [`vm::TargetVm`] and calls [`target::serve`] for each connection on the host that it comes to.
//!
//! Reading order: [`phase`] is the story, [`source`] and [`target`] tell it from both sides, [`message`] is what they say to
//! each other, [`wire`] how it looks as bytes, [`transport`] and [`tls`] how they get there. [`session`] is why exactly one side runs the guest, whatever breaks.
//! [`compat`] compares guest and host before the first page, [`devices`] turns recorded I/O into restore plans,
//! [`clock`] carries the guest's time, [`job`] and [`statistics`] are what an operator sees.
#![forbid(unsafe_code)]

mod channel;
pub mod clock;
pub mod codec;
pub mod compat;
pub mod cpuid;
pub mod description;
pub mod devices;
pub mod error;
pub mod job;
pub mod message;
pub mod options;
pub mod pages;
pub mod phase;
pub mod refusal;
pub mod session;
pub mod source;
pub mod state;
pub mod statistics;
pub mod target;
pub mod tls;
pub mod transport;
mod url;
pub mod vm;
pub mod wire;

pub use error::{Error, Failure, Guest};
pub use job::Job;
pub use options::{Mode, SourceOptions, TargetOptions, TimeoutAction};
pub use session::{InDoubt, Sessions};
pub use statistics::Statistics;
pub use tls::{Security, Tls};
pub use transport::{Connect, Link, Listener, Peer, Url};
pub use vm::{SourceVm, TargetHost, TargetVm};
