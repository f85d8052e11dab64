// SPDX-License-Identifier: GPL-2.0
//! Every released version of the stream stays readable: one file for each record, as version 1 wrote it.
//!
//! A file that differs means that the format has changed: that takes a new version, not a new file. The files of a *new*
//! record are written by running the test with `PVMM_BLESS=1`.

use crate::fake::{description, machine, START_CLOCK};
use pvmm_migrate::codec;
use pvmm_migrate::message::{
    Accepted, Commit, GivingUp, Kind, OutcomeAnswer, Paused, Payload, Ping, Pong, Prepared,
    RoundDone, RoundEnd, Running, StateEnd,
};
use pvmm_migrate::pages::Batch;
use pvmm_migrate::refusal::{Reason, Refusal};
use pvmm_migrate::session::{Outcome, SessionId};
use pvmm_migrate::state::{ChipsetRecord, ClockRecord, DeviceRecord, VcpuRecord};
use pvmm_migrate::vm::{CapturedDevice, PAGE_SIZE};
use pvmm_migrate::wire::{Answer, Offer, Purpose, RecordHeader, RECORD_HEADER_LEN};
use pvmm_uapi::StateRecord;
use std::path::PathBuf;

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1")
}

fn compare(name: &str, bytes: &[u8]) {
    let path = directory().join(format!("{name}.bin"));
    if std::env::var_os("PVMM_BLESS").is_some() && !path.exists() {
        std::fs::create_dir_all(directory()).expect("the checkout is writable");
        std::fs::write(&path, bytes).expect("the checkout is writable");
    }
    let golden = std::fs::read(&path)
        .unwrap_or_else(|error| panic!("{}: {error}; see this test's head", path.display()));
    assert!(golden == bytes, "{name}: version 1 was written differently");
}

fn framed(kind: Kind, payload: &[u8]) -> Vec<u8> {
    let header = RecordHeader::new(kind, 1, payload).expect("it is short");
    [header.encode().as_slice(), payload].concat()
}

/// Compares a record, and reads the file back to the same value.
fn check<P: Payload + PartialEq + std::fmt::Debug>(value: P, seen: &mut Vec<Kind>) {
    let payload = codec::encode(&value).expect("it is short");
    let bytes = framed(P::KIND, &payload);
    compare(P::KIND.name(), &bytes);
    let (head, body) = bytes
        .split_first_chunk::<RECORD_HEADER_LEN>()
        .expect("it has a header");
    let header = RecordHeader::decode(head).expect("we wrote it");
    header.check(body).expect("we wrote it");
    assert_eq!(codec::decode::<P>(body).as_ref(), Ok(&value));
    seen.push(P::KIND);
}

/// A guest description that does not follow the test guest when that one changes.
fn fixed_description() -> pvmm_migrate::description::VmDescription {
    use pvmm_migrate::description::{Backend, DeviceDescription};
    let mut fixed = description();
    let device = |device, kind, backend, guest_port, guest_irq| DeviceDescription {
        device,
        kind,
        backend,
        guest_port,
        guest_irq,
        version: 1,
    };
    fixed.devices = vec![
        device(0, 1, Backend::Modelled, 0, 0),
        device(2, 3, Backend::Physical, 0x2f8, 3),
    ];
    fixed
}

#[test]
fn every_record_is_written_as_version_1_writes_it() {
    let mut seen = Vec::new();
    let session = SessionId(*b"0123456789abcdef");
    let machine = machine();
    check(fixed_description(), &mut seen);
    check(
        RoundEnd {
            round: 3,
            last: true,
        },
        &mut seen,
    );
    check(Paused { rounds: 2 }, &mut seen);
    check(
        VcpuRecord::new(0, &machine.vcpu).expect("its counts are right"),
        &mut seen,
    );
    check(ChipsetRecord::from(&machine.chipset), &mut seen);
    check(ClockRecord::from(&START_CLOCK), &mut seen);
    let captured = CapturedDevice {
        kind: 3,
        version: 1,
        records: vec![StateRecord {
            register: 3,
            origin: 1,
            range: 0,
            width: 1,
            reserved: [0; 3],
            offset: 3,
            value: 0x1b,
        }],
    };
    check(
        DeviceRecord::new(2, &captured).expect("it is short"),
        &mut seen,
    );
    check(machine.user_devices[0].clone(), &mut seen);
    check(
        StateEnd {
            vcpus: 1,
            devices: 2,
            user_devices: 2,
        },
        &mut seen,
    );
    check(Commit { session }, &mut seen);
    check(Ping { sequence: 1 }, &mut seen);
    check(
        Accepted {
            producer: "pvmmd 1".into(),
        },
        &mut seen,
    );
    let refusal = Refusal {
        reasons: vec![
            Reason::Memory { need: 2, have: 1 },
            Reason::CpuidBits {
                leaf: 7,
                subleaf: 0,
                register: "EBX".into(),
                missing: 32,
            },
            Reason::Other("text".into()),
        ],
    };
    check(refusal, &mut seen);
    check(RoundDone { round: 3 }, &mut seen);
    check(
        Prepared {
            cpu_us: 10,
            device_us: 20,
        },
        &mut seen,
    );
    check(
        Running {
            paused_us: 30,
            start_us: 40,
        },
        &mut seen,
    );
    check(Pong { sequence: 1 }, &mut seen);
    let outcome = Outcome::NotCommitted {
        reason: "text".into(),
    };
    check(OutcomeAnswer { outcome }, &mut seen);
    check(
        GivingUp {
            reason: "text".into(),
        },
        &mut seen,
    );

    let mut batch = Batch::default();
    batch.push(1, &[0; PAGE_SIZE]);
    batch.push(2, &[0; PAGE_SIZE]);
    batch.push(7, &[0x5a; PAGE_SIZE]);
    compare("pages", &framed(Kind::Pages, batch.payload()));
    seen.push(Kind::Pages);
    compare("probe", &framed(Kind::Probe, &[1, 2, 3]));
    seen.push(Kind::Probe);

    for kind in Kind::ALL {
        assert!(seen.contains(kind), "{} has no golden file", kind.name());
    }
}

#[test]
fn preambles_are_written_as_version_1_writes_them() {
    let offer = Offer {
        purpose: Purpose::Migrate,
        versions: vec![1],
        session: SessionId(*b"0123456789abcdef"),
    };
    compare("preamble-offer", &offer.encode());
    compare("preamble-answer", &Answer::choose(&[1], &[1]).encode());
}
