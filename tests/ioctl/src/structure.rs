//! Structures for requests: right ones, right ones with one wrong number, and random bytes.

use std::mem::offset_of;

use pvmm_hostile::Random;
use pvmm_uapi::*;

use crate::arena::{Arena, Place, EXTRA_PAGES, GUEST_PAGES, PAGE};
use crate::guest::spoil;

/// Ports that a host's device is looked for at. Any other might be hardware that no driver has claimed, and not survive.
const HOST_PORTS: [u32; 7] = [0x2f8, 0x3f8, 0x2e8, 0x20, 0x70, 0xfff9, 0x1_0000];
/// Interrupts of host devices.
const HOST_IRQS: [u32; 6] = [3, 4, 2, 0, 16, NO_IRQ];
/// An address with nothing behind it for as long as a guest can be.
const NOWHERE: u64 = 1 << 32;
/// Where guest memory beside the main region begins.
const EXTRA: u64 = 0x10_0000;

/// The main region.
pub fn main_region(arena: &Arena) -> MemoryRegion {
    MemoryRegion {
        gpa: 0,
        size: GUEST_PAGES * PAGE,
        hva: arena.guest,
        reserved: 0,
    }
}

/// Another region: of shared memory or of a file's, one that begins in another's middle, one without memory behind it, or a
/// large one that is all but empty.
pub fn another_region(arena: &Arena, random: &Random) -> MemoryRegion {
    let size = EXTRA_PAGES * PAGE;
    let (gpa, size, hva) = match random.below(6) {
        0 | 1 => (EXTRA, size, arena.shared),
        2 | 3 => (EXTRA + size, size, arena.filed),
        4 => (
            EXTRA + 2 * size,
            PAGE,
            random.pick(&[arena.none, arena.read_only, 0]),
        ),
        _ => (1 << 32, 1 << (30 + random.below(8)), NOWHERE),
    };
    MemoryRegion {
        gpa,
        size,
        hva,
        reserved: 0,
    }
}

/// The structure of a request as it should be, more or less.
fn right(request: u32, arena: &Arena, place: &Place, random: &Random) -> Vec<u8> {
    let array = place.array;
    let bit = random.below(2) as u32;
    match request {
        CREATE_VM => CreateVm {
            flags: bit,
            tsc_khz: 0,
        }
        .as_bytes()
        .to_vec(),
        SET_MEMORY_REGION => another_region(arena, random).as_bytes().to_vec(),
        GET_SUPPORTED_CPUID | SET_CPUID => CpuidTable {
            entries: array,
            count: MAX_CPUID_ENTRIES,
            ..CpuidTable::default()
        }
        .as_bytes()
        .to_vec(),
        GET_VCPU_STATE | SET_VCPU_STATE => VcpuStateRequest {
            state: array,
            vcpu: 0,
            size: size_of::<VcpuState>() as u32,
        }
        .as_bytes()
        .to_vec(),
        RUN => Run {
            value: random.next(),
            immediate_exit: u32::from(random.one_in(4)),
            ..Run::default()
        }
        .as_bytes()
        .to_vec(),
        SET_CLOCK => Clock {
            vm_ns: random.odd_number(),
            tsc: random.odd_number(),
            tsc_khz: 0,
            flags: bit,
        }
        .as_bytes()
        .to_vec(),
        IRQ_LINE => IrqLine {
            irq: random.below(16) as u32,
            level: bit,
        }
        .as_bytes()
        .to_vec(),
        DIRTY_LOG => DirtyLog {
            enable: bit,
            reserved: 0,
        }
        .as_bytes()
        .to_vec(),
        DIRTY_FETCH => DirtyFetch {
            ranges: array,
            count: random.below(64) as u32,
            more: 0,
        }
        .as_bytes()
        .to_vec(),
        ATTACH_DEVICE => AttachDevice {
            kind: KIND_UART16550,
            backend: BACKEND_PHYSICAL,
            guest_ports: [random.pick(&[0x2f8, 0x3f8]), 0, 0, 0],
            host_ports: [0x2f8, 0, 0, 0],
            guest_irq: random.pick(&[3, 4, NO_IRQ]),
            host_irq: 3,
            device: 0,
            flags: random.pick(&[0, ATTACH_UNRECORDED]),
        }
        .as_bytes()
        .to_vec(),
        DEVICE_CAPTURE => DeviceCapture {
            device: random.below(4) as u32,
            records: array,
            count: random.pick(&[MAX_STATE_RECORDS, MAX_STATE_RECORDS, 3, 0]),
            ..DeviceCapture::default()
        }
        .as_bytes()
        .to_vec(),
        DEVICE_EXECUTE => DeviceExecute {
            device: random.below(4) as u32,
            count: random.below(8) as u32,
            steps: array,
            ..DeviceExecute::default()
        }
        .as_bytes()
        .to_vec(),
        DEVICE_PEEK => DevicePeek {
            device: random.below(4) as u32,
            records: array,
            count: random.pick(&[MAX_STATE_RECORDS, MAX_STATE_RECORDS, 3, 0]),
            ..DevicePeek::default()
        }
        .as_bytes()
        .to_vec(),
        DEVICE_TRACE => DeviceTrace {
            device: random.below(4) as u32,
            operation: random.pick(&[TRACE_START, TRACE_FETCH, TRACE_FETCH, TRACE_STOP]),
            entries: array,
            count: random.pick(&[MAX_TRACE_ENTRIES, 3, 0]),
            ..DeviceTrace::default()
        }
        .as_bytes()
        .to_vec(),
        _ => vec![0; request_size(request)],
    }
}

/// Where a structure has an address.
fn address_of(request: u32) -> Option<usize> {
    match request {
        SET_MEMORY_REGION => Some(offset_of!(MemoryRegion, hva)),
        GET_SUPPORTED_CPUID | SET_CPUID => Some(offset_of!(CpuidTable, entries)),
        GET_VCPU_STATE | SET_VCPU_STATE => Some(offset_of!(VcpuStateRequest, state)),
        DIRTY_FETCH => Some(offset_of!(DirtyFetch, ranges)),
        DEVICE_CAPTURE => Some(offset_of!(DeviceCapture, records)),
        DEVICE_EXECUTE => Some(offset_of!(DeviceExecute, steps)),
        DEVICE_PEEK => Some(offset_of!(DevicePeek, records)),
        DEVICE_TRACE => Some(offset_of!(DeviceTrace, entries)),
        _ => None,
    }
}

/// The structure of a request. What is an address in it is one of the arena, or one where nothing is; what is a port or an
/// interrupt of the host is one that may be tried.
pub fn any(request: u32, arena: &Arena, place: &Place, random: &Random) -> Vec<u8> {
    let mut bytes = right(request, arena, place, random);
    let address = address_of(request);
    let right_address = address.map(|at| bytes[at..at + 8].to_vec());
    match random.below(8) {
        0 => bytes.fill_with(|| random.byte()),
        1..=3 => spoil(&mut bytes, random),
        _ => {}
    }
    if let (Some(at), Some(right)) = (address, right_address) {
        bytes[at..at + 8].copy_from_slice(&right);
        if random.one_in(5) {
            let odd = match request {
                SET_MEMORY_REGION => arena.odd_address(place, random) & !(PAGE - 1),
                _ => arena.odd_address(place, random),
            };
            bytes[at..at + 8].copy_from_slice(&odd.to_le_bytes());
        }
    }
    if request == SET_MEMORY_REGION {
        keep_inside(arena, &mut bytes);
    }
    if request == ATTACH_DEVICE {
        let mut put =
            |at: usize, value: u32| bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        let port = if random.one_in(3) {
            random.pick(&HOST_PORTS)
        } else {
            0x2f8
        };
        let irq = if random.one_in(3) {
            random.pick(&HOST_IRQS)
        } else {
            3
        };
        put(offset_of!(AttachDevice, host_ports), port);
        put(offset_of!(AttachDevice, host_irq), irq);
        // The other ranges of a kind may be no other hardware either.
        for range in 1..MAX_PORT_RANGES {
            let port = random.pick(&[0, 0, HOST_PORTS[0]]);
            put(offset_of!(AttachDevice, host_ports) + 4 * range, port);
        }
    }
    bytes
}

/// Guest memory may not reach from the arena into this program's own.
fn keep_inside(arena: &Arena, bytes: &mut [u8]) {
    let mut region = MemoryRegion::default();
    region.as_bytes_mut().copy_from_slice(bytes);
    let within = arena.range().contains(&region.hva);
    let end = region.hva.saturating_add(region.size);
    if within && end > arena.range().end {
        region.hva = NOWHERE;
        bytes.copy_from_slice(region.as_bytes());
    }
}

/// A restore plan's steps, few of which make sense.
pub fn plan(random: &Random) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..8 {
        let operation = 1 + random.below(6) as u32;
        let timed = matches!(operation, STEP_POLL | STEP_DELAY);
        let tested = matches!(operation, STEP_POLL | STEP_CHECK);
        let mask = if tested { 1 << random.below(8) } else { 0 };
        let step = PlanStep {
            operation,
            register: random.below(12) as u16,
            range: 0,
            width: 1,
            offset: random.below(8),
            value: match operation {
                STEP_WRITE | STEP_SET => random.next() & 0xff,
                _ => random.next() & mask,
            },
            mask,
            limit_ns: if timed { 1 + random.below(100_000) } else { 0 },
        };
        bytes.extend(step.as_bytes());
    }
    if random.one_in(3) {
        spoil(&mut bytes, random);
    }
    bytes
}

/// A number that no request of the ABI has: another size, direction or number.
pub fn unknown_request(random: &Random) -> u32 {
    let known = random.pick(&[CREATE_VM, RUN, SET_VCPU_STATE, GET_CLOCK, GET_API_VERSION]);
    let number = match random.below(4) {
        0 => known ^ (1 << (16 + random.below(14))),
        1 => known ^ (1 + random.below(3) as u32) << 30,
        2 => IOCTL_TYPE << 8 | random.byte() as u32,
        _ => (random.next() as u32 & 0xffff_00ff) | IOCTL_TYPE << 8,
    };
    if crate::calls::REQUESTS
        .iter()
        .any(|request| request.number == number)
    {
        return IOCTL_TYPE << 8 | 0xff;
    }
    number
}
