// SPDX-License-Identifier: GPL-2.0
//! Daemons on a fake hypervisor, with real control sockets and real connections between them.

mod access;
mod cable;
mod cancel;
mod crash;
mod devices;
mod doubt;
mod dry_run;
mod guests;
mod host;
mod limits;
mod moves;
mod output;
mod privileges;
mod process;
mod stall;
mod terminal;
mod tls;
mod together;
