// SPDX-License-Identifier: GPL-2.0
//! What a peer says about a device's state, on its whole way: record, plan, execution. The device stands behind ports that
//! were granted, and a touch of any other one panics; a model stands behind a check of its ranges. What was restored can
//! be captured and restored again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pvmm_core::devices::{self, RecorderState, Sink};
use pvmm_core::iospace::{Location, Width};
use pvmm_core::models::i8254::I8254;
use pvmm_core::models::i8259::I8259Pair;
use pvmm_core::record::Recorded;
use pvmm_core::replay::{execute, Backend, Hidden, Timing};
use pvmm_fuzz::input::Input;
use pvmm_fuzz::ports::{Granted, UART_PORTS};
use pvmm_hostabi::sim::{Machine, SimHost, SimPorts};
use pvmm_hostabi::{HostDev, Ports};
use pvmm_migrate::codec;
use pvmm_migrate::devices::plan;
use pvmm_migrate::state::DeviceRecord;
use pvmm_migrate::vm::CapturedDevice;
use pvmm_uapi::{
    PlanStep, StateRecord, KIND_I8254, KIND_I8259, KIND_PARALLEL, KIND_UART16550,
    MAX_STATE_RECORDS, ORIGIN_INFERRED, ORIGIN_LOG, ORIGIN_READ_BACK, OUTCOME_DONE,
    OUTCOME_REFUSED,
};

/// Where the host's UART is, the only ports that the operator gave away.
const GRANT: u16 = 0x2f8;

/// Time that passes only when somebody waits.
struct Still(u64);

impl Timing for Still {
    fn now_ns(&mut self) -> u64 {
        self.0
    }

    fn delay_ns(&mut self, ns: u64) {
        self.0 += ns;
    }
}

/// A device of the host behind its claimed ports, as the monitor reaches it.
struct Hardware(SimPorts);

impl Backend for Hardware {
    fn read(&mut self, at: Location, width: Width) -> u64 {
        u64::from(self.0.read(at.offset as u16, width.bytes()))
    }

    fn write(&mut self, at: Location, width: Width, value: u64) {
        self.0.write(at.offset as u16, width.bytes(), value as u32);
    }
}

/// A parallel port with nothing at its other end: DTR and CTR hold what was written.
#[derive(Default)]
struct Parallel([u8; 3]);

impl Backend for Parallel {
    fn read(&mut self, at: Location, _width: Width) -> u64 {
        self.0[at.offset as usize].into()
    }

    fn write(&mut self, at: Location, _width: Width, value: u64) {
        self.0[at.offset as usize] = value as u8;
    }
}

/// Any device, asked only for what lies in its ranges.
struct InRanges<'a> {
    inner: &'a mut dyn Backend,
    ranges: &'static [u64],
}

impl InRanges<'_> {
    fn check(&self, at: Location, width: Width) {
        let length = self.ranges.get(usize::from(at.range)).copied();
        let end = at.offset.checked_add(u64::from(width.bytes()));
        assert!(
            length.is_some_and(|length| end.is_some_and(|end| end <= length)),
            "{at:?} with {width:?} lies outside of the device"
        );
    }
}

impl Backend for InRanges<'_> {
    fn read(&mut self, at: Location, width: Width) -> u64 {
        self.check(at, width);
        self.inner.read(at, width)
    }

    fn write(&mut self, at: Location, width: Width, value: u64) {
        self.check(at, width);
        self.inner.write(at, width, value);
    }

    fn hidden(&mut self) -> Option<&mut dyn Hidden> {
        self.inner.hidden()
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let kind = match input.u8() % 5 {
        0 => KIND_I8259,
        1 => KIND_I8254,
        2 => KIND_UART16550,
        3 => KIND_PARALLEL,
        _ => input.u32(),
    };
    let version = match input.u8() {
        0 => devices::kind(kind).map_or(1, |kind| kind.state_version),
        other => other.into(),
    };
    let captured = CapturedDevice {
        kind,
        version,
        records: records(kind, &mut input),
    };
    // The way over the wire.
    let Ok(sent) = DeviceRecord::new(7, &captured) else {
        assert!(captured.records.len() > MAX_STATE_RECORDS as usize);
        return;
    };
    let bytes = codec::encode(&sent).expect("a state is short");
    let arrived: DeviceRecord = codec::decode(&bytes).expect("it was just encoded");
    assert_eq!(arrived, sent);
    let Ok(captured) = arrived.to_captured() else {
        panic!("a state of {} records was sent", captured.records.len());
    };

    let Ok(steps) = plan(7, &captured) else {
        return;
    };
    let Some(again) = restore(kind, &steps) else {
        return;
    };
    let again = CapturedDevice {
        records: again,
        ..captured
    };
    match plan(7, &again) {
        Ok(steps) => drop(restore(kind, &steps)),
        Err(error) => panic!("what was restored and captured makes no plan: {error}"),
    }
});

/// Records as a peer sends them: any, or such whose place is that of a register of the kind.
fn records(kind: u32, input: &mut Input<'_>) -> Vec<StateRecord> {
    let registers = devices::kind(kind).map_or(&[][..], |kind| kind.registers);
    let mut records = Vec::new();
    while !input.is_empty() {
        let selector = input.u8();
        let known = usize::from(selector & 0x3f) % registers.len().max(1);
        records.push(match registers.get(known) {
            Some(register) if selector & 0x80 == 0 => StateRecord {
                register: register.id,
                origin: match register.fate {
                    _ if selector & 0x40 != 0 => ORIGIN_READ_BACK,
                    devices::register::Fate::Recorded => ORIGIN_LOG,
                    devices::register::Fate::ReadBack => ORIGIN_READ_BACK,
                    _ => ORIGIN_INFERRED,
                },
                range: register.at.range,
                width: register.width.bytes(),
                reserved: [0; 3],
                offset: register.at.offset,
                value: match register.width {
                    Width::W1 => input.u8().into(),
                    _ => input.u64(),
                },
            },
            _ => StateRecord {
                register: input.u16(),
                origin: input.u8(),
                range: input.u8(),
                width: input.u8(),
                reserved: [0; 3],
                offset: input.u64(),
                value: input.u64(),
            },
        });
    }
    records
}

/// Executes a plan on a fresh device of the kind; the state that it is in then, if the plan was executed.
fn restore(kind: u32, steps: &[PlanStep]) -> Option<Vec<StateRecord>> {
    match kind {
        KIND_I8259 => on(kind, &mut I8259Pair::new(), steps),
        KIND_I8254 => {
            let mut pit = I8254::new();
            on(kind, &mut pit.at(0), steps)
        }
        KIND_PARALLEL => on(kind, &mut Parallel::default(), steps),
        _ => {
            let machine = Machine::new(1);
            let _entered = machine.enter();
            let ports = Granted::plug(&machine);
            ports.grant(GRANT);
            let claimed = SimHost::claim_ports(GRANT, UART_PORTS).expect("nobody else has it");
            on(kind, &mut Hardware(claimed), steps)
        }
    }
}

fn on(kind: u32, backend: &mut dyn Backend, steps: &[PlanStep]) -> Option<Vec<StateRecord>> {
    let ranges = devices::kind(kind)?.ranges;
    let mut recorder = RecorderState::new(kind)?;
    let mut device = InRanges {
        inner: backend,
        ranges,
    };
    let mut recorded = Recorded {
        backend: &mut device,
        recorder: &mut recorder,
    };
    let ended = execute(steps, ranges, &mut recorded, &mut Still(0));
    // Hidden state that no model has may be refused; a place outside of the device may not even be planned.
    if ended.outcome == OUTCOME_REFUSED {
        let step = steps.get(ended.step as usize);
        assert!(
            step.is_some_and(|step| step.operation == pvmm_uapi::STEP_SET),
            "the plan was refused: {step:?}"
        );
    }
    if ended.outcome != OUTCOME_DONE {
        return None;
    }
    let mut storage = [StateRecord::default(); MAX_STATE_RECORDS as usize];
    let mut sink = Sink::new(&mut storage);
    recorder
        .capture(&mut device, &mut Still(0), &mut sink)
        .ok()?;
    Some(sink.as_slice().to_vec())
}
