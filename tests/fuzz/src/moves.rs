// SPDX-License-Identifier: GPL-2.0
//! Moves with a peer that is the fuzzer's, from both sides, and what must hold however they end.

use crate::fake::{Faults, Memory, World};
use crate::fake_source::FakeSource;
use crate::fake_target::FakeHost;
use crate::input::Input;
use crate::peer::{mended, offer, Script};
use pvmm_migrate::description::MemoryRange;
use pvmm_migrate::error::Guest;
use pvmm_migrate::options::TargetOptions;
use pvmm_migrate::session::Sessions;
use pvmm_migrate::source;
use pvmm_migrate::target::{self, Served};
use pvmm_migrate::transport::{Connect, Link};
use pvmm_migrate::vm::PAGE_SIZE;
use pvmm_migrate::wire::Answer;
use pvmm_migrate::{Job, Mode, SourceOptions};
use std::cell::Cell;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;

/// The receiving engine hears a source: a mode, then its words. Whether a guest has arrived.
///
/// # Panics
///
/// Unless the target has started the guest once, or not at all and nothing of it is left.
pub fn receive(data: &[u8]) -> bool {
    let Some((mode, bytes)) = data.split_first() else {
        return false;
    };
    // As it is, or as records behind a good preamble.
    let words = if mode & 1 == 0 {
        bytes.to_vec()
    } else {
        [offer(), mended(bytes)].concat()
    };
    let world = Arc::new(World::default());
    let host = FakeHost::new(&world, &Faults::new(None));
    let result = target::serve(
        Box::new(Script::new(words)),
        &host,
        &Sessions::new(),
        &TargetOptions::default(),
        &Job::new(),
    );
    let guests = usize::from(matches!(result, Ok(Served::Arrived(_))));
    assert_eq!(world.sides().starts, guests, "{result:?}");
    assert_eq!(world.made.load(Ordering::SeqCst), guests, "{result:?}");
    guests != 0
}

/// How long the source asks for the outcome: as long as the first answer's link takes to close, so it asks once.
const RECOVER_LIMIT: Duration = Duration::from_millis(1);

/// Says one thing to the first connection and another one to all later ones.
struct Peer {
    first: Vec<u8>,
    later: Vec<u8>,
    connected: Cell<bool>,
}

impl Connect for Peer {
    fn connect(&self) -> io::Result<Box<dyn Link>> {
        Ok(Box::new(if self.connected.replace(true) {
            Script::new(self.later.clone()).closing_in(RECOVER_LIMIT)
        } else {
            Script::new(self.first.clone())
        }))
    }

    fn name(&self) -> String {
        "the fuzzer".into()
    }
}

/// The sending engine hears a target: a mode, the length of what it says at first, that, and what it says to who asks for
/// the outcome. Whether the guest has left.
///
/// # Panics
///
/// Unless the guest goes on at the source, or was released there, or is kept paused because the target may be running it.
pub fn send(data: &[u8]) -> bool {
    let mut input = Input::new(data);
    let mode = input.u8();
    let length = input.u16();
    let words = |bytes: &[u8]| {
        if mode & 1 == 0 {
            bytes.to_vec()
        } else {
            [Answer::choose(&[1], &[1]).encode(), mended(bytes)].concat()
        }
    };
    let first = words(input.take(length.into()));
    let later = words(input.rest());
    let peer = Peer {
        first,
        later,
        connected: Cell::new(false),
    };
    let world = Arc::new(World::default());
    let mut vm = FakeSource::new(&world, &Faults::new(None));
    // What it sends is heard by nobody.
    vm.memory = Memory::default();
    vm.description.memory = vec![MemoryRange {
        gpa: 0,
        size: 4 * PAGE_SIZE as u64,
    }];
    vm.writes_per_step = 0;
    let options = SourceOptions {
        mode: if mode & 2 == 0 {
            Mode::Precopy
        } else {
            Mode::Stopcopy
        },
        recover_limit: RECOVER_LIMIT,
        ..SourceOptions::default()
    };
    let result = source::migrate(&mut vm, &peer, &options, &Job::new());
    match &result {
        Ok(_) => assert!(vm.released && !vm.runs()),
        Err(failure) => match &failure.guest {
            Guest::Unchanged => {
                assert!(vm.runs() && !vm.released, "{failure}");
                assert_eq!(vm.dirty, None, "dirty tracking is still on");
            }
            Guest::InDoubt(_) => assert!(!vm.runs() && !vm.released, "{failure}"),
            Guest::Paused(_) => panic!("the guest was lost: {failure}"),
        },
    }
    result.is_ok()
}
