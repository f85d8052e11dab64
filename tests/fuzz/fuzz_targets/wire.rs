// SPDX-License-Identifier: GPL-2.0
//! The wire format piece by piece: preambles, record headers, and the payload of every kind of record. What is decoded
//! encodes to the same bytes: two streams never mean the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pvmm_fuzz::fake::{host_description, memory_ranges};
use pvmm_migrate::description::VmDescription;
use pvmm_migrate::message::{
    Accepted, Commit, GivingUp, Kind, OutcomeAnswer, Paused, Payload, Ping, Pong, Prepared,
    RoundDone, RoundEnd, Running, StateEnd,
};
use pvmm_migrate::pages::{self, Frames};
use pvmm_migrate::refusal::Refusal;
use pvmm_migrate::state::{ChipsetRecord, ClockRecord, DeviceRecord, VcpuRecord};
use pvmm_migrate::vm::UserDeviceState;
use pvmm_migrate::wire::{Answer, Offer, RecordHeader, PREAMBLE_LEN, RECORD_HEADER_LEN};
use pvmm_migrate::{codec, compat, devices};
use pvmm_uapi::{ChipsetState, Clock};
use std::fmt::Debug;

fuzz_target!(|data: &[u8]| {
    let Some((selector, bytes)) = data.split_first() else {
        return;
    };
    match selector {
        0 => preamble(bytes),
        1 => record(bytes),
        number => {
            if let Some(kind) = Kind::from_number(u16::from(*number) - 1) {
                payload(kind, bytes);
            }
        }
    }
});

fn preamble(bytes: &[u8]) {
    let Some((header, body)) = bytes.split_first_chunk::<PREAMBLE_LEN>() else {
        return;
    };
    if let Ok(offer) = Offer::decode(header, body) {
        assert_eq!(offer.encode(), bytes);
    }
    if let Ok(answer) = Answer::decode(header, body) {
        assert_eq!(answer.encode(), bytes);
    }
}

fn record(bytes: &[u8]) {
    let Some((head, body)) = bytes.split_first_chunk::<RECORD_HEADER_LEN>() else {
        return;
    };
    if let Ok(header) = RecordHeader::decode(head) {
        assert!(header.length <= header.kind.limit());
        assert_eq!(header.encode(), *head);
        if header.check(body).is_ok() {
            payload(header.kind, body);
        }
    }
}

fn payload(kind: Kind, bytes: &[u8]) {
    match kind {
        Kind::Describe => {
            if let Some(guest) = decode::<VmDescription>(bytes) {
                if compat::check(&guest, &host_description()).is_ok() {
                    assert_eq!(guest.validate(), Ok(()));
                }
            }
        }
        Kind::Pages => store(bytes),
        // Nothing is done with what is in it.
        Kind::Probe => {}
        Kind::Vcpu => {
            if let Some(vcpu) = decode::<VcpuRecord>(bytes) {
                if let Ok(state) = vcpu.to_state() {
                    assert_eq!(VcpuRecord::new(vcpu.vcpu, &state), Ok(vcpu));
                }
            }
        }
        Kind::Chipset => {
            if let Some(chipset) = decode::<ChipsetRecord>(bytes) {
                let state = ChipsetState::from(&chipset);
                assert_eq!(ChipsetRecord::from(&state), chipset);
            }
        }
        Kind::Clock => {
            if let Some(clock) = decode::<ClockRecord>(bytes) {
                assert_eq!(ClockRecord::from(&Clock::from(&clock)), clock);
            }
        }
        Kind::Device => {
            if let Some(device) = decode::<DeviceRecord>(bytes) {
                if let Ok(captured) = device.to_captured() {
                    assert_eq!(
                        DeviceRecord::new(device.device, &captured),
                        Ok(device.clone())
                    );
                    // Whether it makes a plan is the business of `restore_plan`; it must not panic here.
                    let _ = devices::plan(device.device, &captured);
                }
            }
        }
        Kind::UserDevice => drop(decode::<UserDeviceState>(bytes)),
        Kind::RoundEnd => drop(decode::<RoundEnd>(bytes)),
        Kind::Paused => drop(decode::<Paused>(bytes)),
        Kind::StateEnd => drop(decode::<StateEnd>(bytes)),
        Kind::Commit => drop(decode::<Commit>(bytes)),
        Kind::Ping => drop(decode::<Ping>(bytes)),
        Kind::Accepted => drop(decode::<Accepted>(bytes)),
        Kind::Refused => {
            if let Some(refusal) = decode::<Refusal>(bytes) {
                // An operator sees it.
                assert!(refusal.reasons.is_empty() || !refusal.to_string().is_empty());
            }
        }
        Kind::RoundDone => drop(decode::<RoundDone>(bytes)),
        Kind::Prepared => drop(decode::<Prepared>(bytes)),
        Kind::Running => drop(decode::<Running>(bytes)),
        Kind::Pong => drop(decode::<Pong>(bytes)),
        Kind::Outcome => drop(decode::<OutcomeAnswer>(bytes)),
        Kind::GivingUp => drop(decode::<GivingUp>(bytes)),
    }
}

fn decode<P: Payload + Debug>(bytes: &[u8]) -> Option<P> {
    let value: P = codec::decode(bytes).ok()?;
    assert_eq!(codec::encode(&value).as_deref(), Ok(bytes), "{value:?}");
    Some(value)
}

/// Takes a batch of pages into a set of frames, which must count what it took and nothing twice.
fn store(bytes: &[u8]) {
    let Ok(runs) = pages::parse(bytes) else {
        return;
    };
    let mut seen = Frames::none(&memory_ranges());
    for run in runs {
        let before = seen.len();
        if let Ok(new) = seen.insert(run.gfn, run.pages) {
            assert_eq!(seen.len(), before + new);
            assert!(new <= run.pages && seen.len() <= seen.total());
            assert!(seen.contains(run.gfn) && seen.contains(run.gfn + run.pages - 1));
        }
    }
}
