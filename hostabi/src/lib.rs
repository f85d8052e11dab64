// SPDX-License-Identifier: GPL-2.0
//! The host ABI: what a host kernel provides to the pvmm core.
#![cfg_attr(not(CONFIG_RUST), no_std)]
#![forbid(unsafe_code)]
