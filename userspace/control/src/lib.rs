// SPDX-License-Identifier: GPL-2.0
//! The control interface of pvmmd, for its command line and for other programs on the same host.
//!
//! A client connects to a Unix socket and sends one line of JSON, a [`request::Request`] with the interface's version:
//!
//! ```text
//! {"version":1,"execute":"pause","arguments":{"name":"web"}}
//! ```
//!
//! The daemon answers with lines of JSON ([`reply::Message`]): any number of events, then one return or error:
//!
//! ```text
//! {"event":{"migration":{"status":"active",...}}}
//! {"return":"done"}
//! {"error":{"class":"not-found","desc":"there is no guest named \"web\"; ..."}}
//! ```
//!
//! The connection then takes the next request. One request changes it: after the return of `console` it carries the
//! console's bytes in both directions until it is closed.
#![forbid(unsafe_code)]

pub mod client;
pub mod line;
pub mod reply;
pub mod request;
pub mod size;

pub use client::{Client, ClientError};
pub use reply::{
    ControlError, ErrorClass, Event, GuestInfo, GuestState, Message, MoveCheck, Reply,
};
pub use request::{Envelope, Request};

/// Version of the interface. A daemon answers other versions with an error of class `version`.
pub const VERSION: u32 = 1;

/// Where the daemon listens if it is not told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/pvmm/pvmmd.sock";
