// SPDX-License-Identifier: GPL-2.0
//! Writes the inputs that the corpora grew from: the golden files of the wire format, an honest move from both sides, a
//! kernel of each kind, and so on. A change of a format that takes a new golden file takes this, too:
//!
//! ```text
//! cargo run --manifest-path tests/fuzz/Cargo.toml --example seeds -- target/fuzz/corpus
//! cargo xtask fuzz --keep
//! ```

use pvmm_fuzz::devices::programmed;
use pvmm_fuzz::fake::{description, machine, START_CLOCK};
use pvmm_fuzz::moves;
use pvmm_fuzz::peer::SESSION;
use pvmm_migrate::codec;
use pvmm_migrate::message::{
    Accepted, Commit, Kind, OutcomeAnswer, Paused, Payload, Pong, Prepared, RoundDone, RoundEnd,
    Running, StateEnd,
};
use pvmm_migrate::pages::Batch;
use pvmm_migrate::session::Outcome;
use pvmm_migrate::state::{ChipsetRecord, ClockRecord, DeviceRecord, VcpuRecord};
use pvmm_migrate::wire::{RecordHeader, RECORD_HEADER_LEN};
use pvmm_uapi::*;
use pvmm_vmm::boot::bzimage::made_up_image;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let folder = env::args_os()
        .nth(1)
        .map(PathBuf::from)
        .ok_or_else(|| io::Error::other("give the folder that the seeds go into"))?;
    let seeds = Seeds { folder };
    seeds.wire()?;
    seeds.moves()?;
    seeds.states()?;
    seeds.requests()?;
    seeds.write("boot_image", "bzimage", &bzimage())?;
    seeds.write("boot_image", "vmlinux", &vmlinux())?;
    // MOV, ADD, BTS, MOVS, MOVZX with a prefix, as drivers access registers.
    for (name, code) in [
        ("mov", &b"\x8b\x83\x10\x03\x00\x00"[..]),
        ("mov-moffs", b"\x48\xa1\x00\x00\xe0\xfe\x00\x00\x00\x00"),
        ("lock-bts", b"\xf0\x48\x0f\xab\x07"),
        ("rep-movs", b"\xf3\xa5"),
        ("movzx", b"\x66\x0f\xb6\x05\x00\x00\xe0\xfe"),
        ("test", b"\x67\xf7\x44\x8b\x10\x01\x00\x00\x00"),
    ] {
        seeds.write("decode", name, code)?;
    }
    Ok(())
}

struct Seeds {
    folder: PathBuf,
}

fn record<P: Payload>(value: &P) -> Vec<u8> {
    framed(P::KIND, &codec::encode(value).expect("it is short"))
}

fn framed(kind: Kind, payload: &[u8]) -> Vec<u8> {
    let header = RecordHeader::new(kind, kind.version(), payload).expect("it is short");
    [header.encode().as_slice(), payload].concat()
}

impl Seeds {
    fn write(&self, target: &str, name: &str, bytes: &[u8]) -> io::Result<()> {
        let folder = self.folder.join(target);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(name), bytes)
    }

    /// The golden files: preambles and records as they are, and each payload behind its selector.
    fn wire(&self) -> io::Result<()> {
        let golden =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../userspace/migrate/tests/golden/v1");
        for entry in fs::read_dir(golden)? {
            let path = entry?.path();
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            let bytes = fs::read(&path)?;
            let record = u8::from(!name.starts_with("preamble"));
            self.write("wire", &name, &[&[record][..], &bytes].concat())?;
            if let Some((head, payload)) = bytes.split_first_chunk::<RECORD_HEADER_LEN>() {
                if let Ok(header) = RecordHeader::decode(head) {
                    let selector = header.kind.number() as u8 + 1;
                    let seed = [&[selector][..], payload].concat();
                    self.write("wire", &format!("{name}-payload"), &seed)?;
                }
            }
        }
        Ok(())
    }

    /// What honest sides say to each other.
    fn moves(&self) -> io::Result<()> {
        let machine = machine();
        let guest = description();
        let mut batch = Batch::default();
        for gfn in pvmm_fuzz::fake::frames() {
            batch.push(gfn, &[0; 4096]);
        }
        let mut devices = programmed();
        let mut records = vec![
            record(&guest),
            record(&Paused { rounds: 0 }),
            framed(Kind::Pages, batch.payload()),
            record(&RoundEnd {
                round: 1,
                last: true,
            }),
            record(&VcpuRecord::new(0, &machine.vcpu).expect("its counts are right")),
            record(&ClockRecord::from(&START_CLOCK)),
            record(&ChipsetRecord::from(&machine.chipset)),
        ];
        for described in &guest.devices {
            let device = devices
                .get_mut(&described.device)
                .expect("the guest has what it describes");
            let captured = DeviceRecord::new(described.device, &device.capture());
            records.push(record(&captured.expect("a state is short")));
        }
        records.extend(machine.user_devices.iter().map(record));
        records.push(record(&StateEnd {
            vcpus: 1,
            devices: guest.devices.len() as u32,
            user_devices: machine.user_devices.len() as u32,
        }));
        records.push(record(&Commit { session: SESSION }));
        let source = [&[1][..], &records.concat()].concat();
        assert!(moves::receive(&source), "the honest move doesn't arrive");
        self.write("hostile_source", "move", &source)?;

        let answers = [
            record(&Pong { sequence: 0 }),
            record(&Pong { sequence: 1 }),
            record(&Pong { sequence: 2 }),
            record(&Accepted {
                producer: "a peer".into(),
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
        ];
        let later = [
            ("committed", Outcome::Committed),
            ("starting", Outcome::Starting),
            ("unknown", Outcome::Unknown),
            (
                "not-committed",
                Outcome::NotCommitted {
                    reason: "no".into(),
                },
            ),
        ];
        for (name, outcome) in later {
            let first = answers[..answers.len() - 1].concat();
            let later = record(&OutcomeAnswer { outcome });
            self.write("hostile_target", name, &target(3, &first, &later))?;
        }
        let whole = target(3, &answers.concat(), b"");
        assert!(moves::send(&whole), "the honest target isn't believed");
        self.write("hostile_target", "move", &whole)?;
        let mut precopy = answers.to_vec();
        precopy.insert(5, record(&RoundDone { round: 2 }));
        self.write(
            "hostile_target",
            "precopy",
            &target(1, &precopy.concat(), b""),
        )
    }

    /// States of devices, as `restore_plan` takes them.
    fn states(&self) -> io::Result<()> {
        for (number, device) in &mut programmed() {
            let captured = device.capture();
            let selector = match captured.kind {
                KIND_I8259 => 0,
                KIND_I8254 => 1,
                _ => 2,
            };
            let mut bytes = vec![selector, 0];
            for record in captured.records {
                bytes.push(0x80);
                bytes.extend(record.register.to_le_bytes());
                bytes.extend([record.origin, record.range, record.width]);
                bytes.extend(record.offset.to_le_bytes());
                bytes.extend(record.value.to_le_bytes());
            }
            self.write("restore_plan", &format!("device-{number}"), &bytes)?;
        }
        Ok(())
    }

    /// Requests in good order: a device attached, captured and restored, and each of the states.
    fn requests(&self) -> io::Result<()> {
        let attach = AttachDevice {
            kind: KIND_UART16550,
            backend: BACKEND_PHYSICAL,
            guest_ports: [0x2f8, 0, 0, 0],
            host_ports: [0x2f8, 0, 0, 0],
            guest_irq: 3,
            host_irq: 3,
            ..AttachDevice::default()
        };
        let capture = DeviceCapture {
            device: 2,
            count: MAX_STATE_RECORDS,
            ..DeviceCapture::default()
        };
        let execute = DeviceExecute {
            device: 2,
            count: 1,
            ..DeviceExecute::default()
        };
        let step = PlanStep {
            operation: STEP_WRITE,
            width: 1,
            offset: 7,
            value: 0x5a,
            ..PlanStep::default()
        };
        let fetch = DirtyFetch {
            count: 8,
            ..DirtyFetch::default()
        };
        let table = CpuidTable {
            count: MAX_CPUID_ENTRIES,
            ..CpuidTable::default()
        };
        let peek = DevicePeek {
            count: MAX_STATE_RECORDS,
            ..DevicePeek::default()
        };
        let trace = |operation| DeviceTrace {
            operation,
            count: 8,
            ..DeviceTrace::default()
        };
        let (start, take) = (trace(TRACE_START), trace(TRACE_FETCH));
        let mut requests = vec![0];
        for (selector, how, structure, array) in [
            (17, 0, attach.as_bytes(), &[][..]),
            (18, 0, capture.as_bytes(), &[]),
            (19, 0x20, execute.as_bytes(), step.as_bytes()),
            (20, 0, peek.as_bytes(), &[]),
            (21, 0, start.as_bytes(), &[]),
            (21, 0, take.as_bytes(), &[]),
            (16, 0, fetch.as_bytes(), &[]),
            (2, 0, table.as_bytes(), &[]),
            (9, 0x20, VcpuStateRequest::default().as_bytes(), &[]),
            (12, 0, ChipsetState::default().as_bytes(), &[]),
            (13, 0, ChipsetState::default().as_bytes(), &[]),
            (10, 0, Clock::default().as_bytes(), &[]),
            (7, 0, Run::default().as_bytes(), &[]),
        ] {
            requests.extend([selector, how]);
            requests.extend(structure);
            if how & 0x20 != 0 {
                requests.push(u8::from(!array.is_empty()));
                requests.extend(array);
            }
        }
        self.write("ioctl", "in-order", &requests)
    }
}

/// An input of `hostile_target`.
fn target(mode: u8, first: &[u8], later: &[u8]) -> Vec<u8> {
    let length = (first.len() as u16).to_le_bytes();
    [&[mode][..], &length, first, later].concat()
}

fn bzimage() -> Vec<u8> {
    [&[8, 0][..], &made_up_image(b"code", 1 << 20)].concat()
}

/// An ELF file of one part (see the ELF specification, "Object files").
fn vmlinux() -> Vec<u8> {
    const GPA: u64 = 0x10_0000;
    let mut image = b"\x08\0\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    for half in [2u16, 62] {
        image.extend(half.to_le_bytes());
    }
    image.extend(1u32.to_le_bytes());
    for word in [GPA, 64, 0] {
        image.extend(u64::to_le_bytes(word));
    }
    image.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 64, 0, 0] {
        image.extend(half.to_le_bytes());
    }
    for word in [1u32, 7] {
        image.extend(word.to_le_bytes());
    }
    for word in [120, GPA, GPA, 8, 4096, 4096] {
        image.extend(u64::to_le_bytes(word));
    }
    image.extend(b"the code");
    image
}
