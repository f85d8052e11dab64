// SPDX-License-Identifier: GPL-2.0
//! Peers that are broken or mean harm, on either side: an error, never a panic, and the guest stays where it belongs.

use crate::fake::{description, machine, Faults, World, START_CLOCK};
use crate::fake_source::page;
use crate::fake_target::FakeHost;
use crate::network::{quick, Scene, TargetResult};
use proptest::prelude::*;
use pvmm_migrate::codec;
use pvmm_migrate::error::Guest;
use pvmm_migrate::message::{
    Accepted, Commit, GivingUp, Kind, OutcomeAnswer, Paused, Payload, Ping, Pong, Prepared,
    RoundDone, RoundEnd, Running, StateEnd,
};
use pvmm_migrate::options::TargetOptions;
use pvmm_migrate::pages::Batch;
use pvmm_migrate::session::{Outcome, SessionId, Sessions};
use pvmm_migrate::state::{ChipsetRecord, ClockRecord, VcpuRecord};
use pvmm_migrate::target;
use pvmm_migrate::transport::{Connect, Link};
use pvmm_migrate::vm::PAGE_SIZE;
use pvmm_migrate::wire::{Answer, Offer, Purpose, RecordHeader};
use pvmm_migrate::{source, Job};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

const SESSION: SessionId = SessionId([5; 16]);

fn framed(kind: Kind, payload: &[u8]) -> Vec<u8> {
    let header = RecordHeader::new(kind, 1, payload).expect("it is short");
    [header.encode().as_slice(), payload].concat()
}

fn record<P: Payload>(value: &P) -> Vec<u8> {
    framed(P::KIND, &codec::encode(value).expect("it is short"))
}

fn offer() -> Vec<u8> {
    let offer = Offer {
        purpose: Purpose::Migrate,
        versions: vec![1],
        session: SESSION,
    };
    offer.encode()
}

/// All pages of the test guest, in one piece each.
fn all_pages() -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut batch = Batch::default();
    for gfn in crate::fake::frames() {
        if batch.room() == 0 {
            bytes.extend(framed(Kind::Pages, batch.payload()));
            batch.clear();
        }
        batch.push(gfn, &page(gfn));
    }
    bytes.extend(framed(Kind::Pages, batch.payload()));
    bytes
}

/// What an honest source says, in order. Without recorded devices, whose states are the core's business.
fn honest() -> Vec<Vec<u8>> {
    let mut guest = description();
    guest.devices.clear();
    let machine = machine();
    let mut records = vec![
        record(&guest),
        record(&Paused { rounds: 0 }),
        all_pages(),
        record(&RoundEnd {
            round: 1,
            last: true,
        }),
        record(&VcpuRecord::new(0, &machine.vcpu).expect("its counts are right")),
        record(&ClockRecord::from(&START_CLOCK)),
        record(&ChipsetRecord::from(&machine.chipset)),
    ];
    records.extend(machine.user_devices.iter().map(record));
    records.push(record(&StateEnd {
        vcpus: 1,
        devices: 0,
        user_devices: 2,
    }));
    records.push(record(&Commit { session: SESSION }));
    records
}

/// Plays bytes to a target and returns how its side ended.
fn play(bytes: &[u8]) -> (Arc<World>, TargetResult) {
    let world = Arc::new(World::default());
    let host = FakeHost::new(&world, &Faults::new(None));
    let (mut near, far) = UnixStream::pair().expect("a socket pair");
    let bytes = bytes.to_vec();
    let player = std::thread::spawn(move || {
        // The target may close at any time.
        let _ = near.write_all(&bytes);
        let _ = near.shutdown(Shutdown::Write);
        let _ = near.read_to_end(&mut Vec::new());
    });
    let job = Job::new();
    let result = target::serve(
        Box::new(far),
        &host,
        &Sessions::new(),
        &TargetOptions::default(),
        &job,
    );
    player.join().expect("it does not panic");
    (world, result)
}

/// The target took nothing: no guest was started, and none is left.
fn assert_nothing(world: &World, result: &TargetResult) -> String {
    let sides = world.sides();
    assert_eq!(sides.starts, 0, "a guest was started");
    assert_eq!(world.made.load(Ordering::SeqCst), 0, "a guest is left over");
    match result {
        Err(error) => error.to_string(),
        Ok(_) => panic!("the target took it"),
    }
}

#[test]
fn the_honest_stream_is_taken() {
    let bytes = [offer(), honest().concat()].concat();
    let (world, result) = play(&bytes);
    assert!(result.is_ok(), "{result:?}");
    assert_eq!(world.sides().starts, 1);
}

#[test]
fn a_stream_that_ends_after_any_record_starts_nothing() {
    let records = honest();
    for end in 0..records.len() {
        let bytes = [offer(), records[..end].concat()].concat();
        let (world, result) = play(&bytes);
        assert_nothing(&world, &result);
    }
}

#[test]
fn a_record_that_is_missing_is_noticed_at_the_next_one() {
    let records = honest();
    for missing in 0..records.len() - 1 {
        let mut records = records.clone();
        records.remove(missing);
        let (world, result) = play(&[offer(), records.concat()].concat());
        let text = assert_nothing(&world, &result);
        assert!(
            text.contains("was due")
                || text.contains("never sent")
                || text.contains("have arrived"),
            "{missing}: {text}"
        );
    }
}

#[test]
fn a_record_that_comes_twice_is_left_over_and_refused() {
    let records = honest();
    // Pages may be sent twice; a second describe, pause, state or commit may not.
    for twice in (0..records.len() - 1).filter(|index| *index != 2) {
        let mut records = records.clone();
        records.insert(twice, records[twice].clone());
        let (world, result) = play(&[offer(), records.concat()].concat());
        let text = assert_nothing(&world, &result);
        assert!(
            text.contains("was due") || text.contains("has arrived"),
            "{twice}: {text}"
        );
    }
}

#[test]
fn a_page_that_was_never_sent_is_noticed() {
    let mut records = honest();
    let mut batch = Batch::default();
    batch.push(5, &page(5));
    records[2] = framed(Kind::Pages, batch.payload());
    let (world, result) = play(&[offer(), records.concat()].concat());
    let text = assert_nothing(&world, &result);
    assert!(text.contains("739 of 740 pages were never sent"), "{text}");
}

#[test]
fn pages_outside_the_guest_are_refused() {
    for gfn in [700, (1 << 20) - 1, (1 << 20) + 40, u64::MAX] {
        let mut records = honest();
        let mut batch = Batch::default();
        batch.push(gfn, &[1; PAGE_SIZE]);
        records.insert(2, framed(Kind::Pages, batch.payload()));
        let (world, result) = play(&[offer(), records.concat()].concat());
        let text = assert_nothing(&world, &result);
        assert!(text.contains("outside the guest's memory"), "{text}");
    }
}

#[test]
fn a_commit_for_another_session_starts_nothing() {
    let mut records = honest();
    records.pop();
    records.push(record(&Commit {
        session: SessionId([6; 16]),
    }));
    let (world, result) = play(&[offer(), records.concat()].concat());
    assert_nothing(&world, &result);
}

#[test]
fn a_clock_of_another_rate_is_refused() {
    let mut records = honest();
    let clock = pvmm_uapi::Clock {
        tsc_khz: 1,
        ..START_CLOCK
    };
    records[5] = record(&ClockRecord::from(&clock));
    let (world, result) = play(&[offer(), records.concat()].concat());
    let text = assert_nothing(&world, &result);
    assert!(text.contains("1 kHz"), "{text}");
}

#[test]
fn a_peer_that_speaks_only_other_versions_is_told_ours() {
    let versions = vec![77, 78];
    let bytes = Offer {
        purpose: Purpose::Migrate,
        versions,
        session: SESSION,
    }
    .encode();
    let (world, result) = play(&bytes);
    let text = assert_nothing(&world, &result);
    assert!(text.contains("[77, 78]") && text.contains("[1]"), "{text}");
}

fn any_record() -> impl Strategy<Value = Vec<u8>> {
    let honest = honest();
    let small = (any::<u16>(), prop::collection::vec(any::<u8>(), 0..80));
    prop_oneof![
        4 => prop::sample::select(honest),
        1 => Just(record(&Ping { sequence: 1 })),
        1 => Just(record(&GivingUp { reason: "no".into() })),
        1 => Just(record(&RoundEnd { round: 1, last: false })),
        // A kind that exists with a payload that means nothing.
        3 => (prop::sample::select(Kind::ALL), prop::collection::vec(any::<u8>(), 0..60))
            .prop_map(|(kind, payload)| framed(kind, &payload)),
        1 => small.prop_map(|(start, mut bytes)| { bytes.extend(start.to_le_bytes()); bytes }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn noise_starts_nothing(noise in prop::collection::vec(any::<u8>(), 0..600)) {
        let (world, result) = play(&noise);
        assert_nothing(&world, &result);
        let (world, result) = play(&[offer(), noise].concat());
        assert_nothing(&world, &result);
    }

    #[test]
    fn records_in_a_wrong_order_start_nothing(records in prop::collection::vec(any_record(), 0..14)) {
        prop_assume!(records.concat() != honest().concat());
        let (world, result) = play(&[offer(), records.concat()].concat());
        assert_nothing(&world, &result);
    }

    #[test]
    fn a_changed_byte_starts_nothing(at: prop::sample::Index, change in 1u8..=255) {
        let mut bytes = [offer(), honest().concat()].concat();
        let at = at.index(bytes.len());
        bytes[at] ^= change;
        let (world, result) = play(&bytes);
        assert_nothing(&world, &result);
    }
}

/// A target that says the same whatever it hears.
struct Parrot {
    words: Vec<u8>,
    /// What it says to each later connection.
    later: Vec<u8>,
    connections: Mutex<usize>,
}

impl Connect for Parrot {
    fn connect(&self) -> io::Result<Box<dyn Link>> {
        let mut connections = self.connections.lock().expect("no holder panics");
        *connections += 1;
        let words = if *connections == 1 {
            &self.words
        } else {
            &self.later
        };
        let words = words.clone();
        let (near, mut far) = UnixStream::pair()?;
        std::thread::spawn(move || {
            let mut other = far.try_clone().expect("a descriptor");
            let reader = std::thread::spawn(move || io::copy(&mut other, &mut io::sink()));
            // The source may close at any time.
            let _ = far.write_all(&words);
            let _ = far.shutdown(Shutdown::Write);
            let _ = reader.join();
        });
        Ok(Box::new(near))
    }

    fn name(&self) -> String {
        "unix:parrot".into()
    }
}

fn honest_answers() -> Vec<Vec<u8>> {
    vec![
        Answer::choose(&[1], &[1]).encode(),
        record(&Pong { sequence: 0 }),
        record(&Pong { sequence: 1 }),
        record(&Pong { sequence: 2 }),
        record(&Accepted {
            producer: "parrot".into(),
        }),
        record(&RoundDone { round: 1 }),
        record(&Prepared {
            cpu_us: 1,
            device_us: 1,
        }),
        record(&Running {
            paused_us: 1,
            start_us: 1,
        }),
    ]
}

/// Moves the test guest to a parrot.
fn talk_to(words: Vec<u8>, later: Vec<u8>) -> (Scene, Result<(), Box<pvmm_migrate::Failure>>) {
    let mut scene = Scene::plain();
    scene.source.description.devices.clear();
    let options = source_options();
    let parrot = Parrot {
        words,
        later,
        connections: Mutex::new(0),
    };
    let result = source::migrate(&mut scene.source, &parrot, &options, &scene.job);
    (scene, result.map(|_| ()))
}

fn source_options() -> pvmm_migrate::SourceOptions {
    pvmm_migrate::SourceOptions {
        mode: pvmm_migrate::Mode::Stopcopy,
        recover_limit: std::time::Duration::from_millis(60),
        ..quick()
    }
}

#[test]
fn a_target_that_answers_in_order_is_believed() {
    let (scene, result) = talk_to(honest_answers().concat(), Vec::new());
    assert!(result.is_ok());
    assert!(scene.source.released);
}

#[test]
fn a_target_that_stops_before_it_was_sent_the_commit_leaves_the_guest_at_the_source() {
    let answers = honest_answers();
    // Without the last answer the commit has been sent.
    for end in 0..answers.len() - 1 {
        let (scene, result) = talk_to(answers[..end].concat(), Vec::new());
        let failure = result.expect_err("the target stops");
        assert!(
            matches!(failure.guest, Guest::Unchanged),
            "{end}: {failure}"
        );
        scene.assert_unchanged();
    }
}

#[test]
fn a_target_that_stops_after_it_was_sent_the_commit_leaves_a_doubt() {
    let answers = honest_answers();
    let (scene, result) = talk_to(answers[..answers.len() - 1].concat(), b"noise".to_vec());
    let failure = result.expect_err("the target stops");
    assert!(matches!(failure.guest, Guest::InDoubt(_)), "{failure}");
    assert!(!scene.source.runs() && !scene.source.released);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn whatever_a_target_says_the_source_runs_it_released_it_or_says_that_it_does_not_know(
        honest in 0..honest_answers().len(),
        noise in prop::collection::vec(any::<u8>(), 0..100),
        kind in prop::sample::select(Kind::ALL),
        outcome in prop_oneof![
            Just(Outcome::Committed), Just(Outcome::Unknown), Just(Outcome::Starting),
            Just(Outcome::NotCommitted { reason: "no".into() }),
        ],
        as_record: bool,
    ) {
        let mut words = honest_answers()[..honest].concat();
        words.extend(if as_record { framed(kind, &noise[..noise.len().min(60)]) } else { noise });
        let answer = record(&OutcomeAnswer { outcome: outcome.clone() });
        let later = [Answer::choose(&[1], &[1]).encode(), answer].concat();
        let (scene, result) = talk_to(words, later);
        match result {
            Ok(()) => prop_assert!(scene.source.released && !scene.source.runs()),
            Err(failure) => match failure.guest {
                Guest::Unchanged => scene.assert_unchanged(),
                Guest::InDoubt(_) => {
                    prop_assert!(matches!(outcome, Outcome::Unknown | Outcome::Starting));
                    prop_assert!(!scene.source.runs() && !scene.source.released);
                }
                Guest::Paused(why) => prop_assert!(false, "{}", why),
            },
        }
    }
}
