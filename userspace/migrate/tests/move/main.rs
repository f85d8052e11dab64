// SPDX-License-Identifier: GPL-2.0
//! Moves of a guest made of plain memory, between two hosts in this process, over socket pairs.
//!
//! What all of these hold the engine to: the guest runs on exactly one side at every instant ([`fake::World`] sees every
//! start and stop), nothing of it is lost, and a failure leaves it where the rules say.
#![forbid(unsafe_code)]

mod certificates;
mod check;
mod choppy;
mod convergence;
mod devices;
mod doubt;
mod failures;
mod fake;
mod fake_source;
mod fake_target;
mod golden;
mod hostile;
mod network;
mod refusals;
mod rest;
mod success;
mod tls;
mod ways;
