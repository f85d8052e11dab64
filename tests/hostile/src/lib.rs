//! What the hostile guest does, as data: which code runs in which mode with which registers.
//!
//! The guest proper (`src/guest`) has no operating system under it and only knows how to run a [`Snippet`] and to come back
//! from whatever becomes of it. Everything that a snippet consists of is made here, from a seed alone, so that a round can be
//! repeated, and so that this part can be tested like any other code.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod assembler;
pub mod cases;
pub mod layout;
pub mod options;
pub mod random;
pub mod snippet;

pub use cases::Case;
pub use options::Options;
pub use random::Random;
pub use snippet::{Mode, Privilege, Snippet};
