// SPDX-License-Identifier: GPL-2.0
//! Device kinds: register table, classifier, compaction, capture and restore plan of each.
#![forbid(unsafe_code)]
