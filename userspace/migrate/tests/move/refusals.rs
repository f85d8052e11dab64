// SPDX-License-Identifier: GPL-2.0
//! What a host refuses, with which words, and that it does so before the first page.

use crate::fake::{description, host_description, Operation};
use crate::network::Scene;
use pvmm_migrate::compat::check;
use pvmm_migrate::description::{
    Backend, CpuidLeaf, DeviceDescription, HostDescription, MemoryRange, UserDeviceDescription,
    VmDescription,
};
use pvmm_migrate::error::Error;
use pvmm_migrate::vm::PAGE_SIZE;
use pvmm_uapi::{FEATURE_TSC_SCALING, KIND_UART16550};

type Change = fn(&mut VmDescription, &mut HostDescription);

fn leaf(table: &mut [CpuidLeaf], leaf: u32, subleaf: u32) -> &mut CpuidLeaf {
    let found = table
        .iter_mut()
        .find(|it| (it.leaf, it.subleaf) == (leaf, subleaf));
    found.expect("the table has it")
}

fn uart(guest: &mut VmDescription) -> &mut DeviceDescription {
    guest.devices.retain(|it| it.kind != KIND_UART16550);
    guest.devices.push(DeviceDescription {
        device: 2,
        kind: KIND_UART16550,
        backend: Backend::Physical,
        guest_port: 0x2f8,
        guest_irq: 3,
        version: pvmm_migrate::devices::state_version(KIND_UART16550).expect("it is known"),
    });
    guest.devices.last_mut().expect("it was just added")
}

/// What does not fit, and what the refusal must say.
fn table() -> Vec<(Change, &'static [&'static str])> {
    vec![
        (|g, _| g.api_version += 1, &["interface", "pvmm.ko"]),
        (
            |g, _| g.name = "another".into(),
            &["\"another\"", "already"],
        ),
        (
            |_, h| h.free_memory = 4096,
            &["3031040 bytes", "4096", "--max-memory"],
        ),
        (|_, h| h.max_vcpus = 0, &["1 vCPUs"]),
        (|g, _| g.flags |= 0x80, &["0x80"]),
        (|g, _| g.xcr0 |= 1 << 9, &["0x200", "XCR0"]),
        (
            |g, _| g.tsc_khz = 2_001_000,
            &["2001000", "2000000", "TSC scaling"],
        ),
        (
            |_, h| leaf(&mut h.cpuid, 7, 0).ebx &= !(1 << 5),
            &["AVX2", "leaf 0x7", "EBX"],
        ),
        (
            |_, h| leaf(&mut h.cpuid, 1, 0).ecx &= !(1 << 30 | 1 << 20),
            &["SSE4.2, RDRAND"],
        ),
        (|_, h| leaf(&mut h.cpuid, 1, 0).edx &= !(1 << 26), &["SSE2"]),
        (
            |_, h| leaf(&mut h.cpuid, 0xd, 0).eax &= !4,
            &["bit 2", "leaf 0xd"],
        ),
        (|_, h| leaf(&mut h.cpuid, 0xd, 1).eax = 0, &["XSAVEOPT"]),
        (
            |_, h| leaf(&mut h.cpuid, 0xd, 2).ebx = 1088,
            &["0x240", "0x440", "equal"],
        ),
        (
            |_, h| leaf(&mut h.cpuid, 0xd, 0).ecx = 576,
            &["0x340", "not be higher"],
        ),
        (
            |_, h| leaf(&mut h.cpuid, 0x8000_0001, 0).edx &= !(1 << 26),
            &["1-GByte pages"],
        ),
        (
            |_, h| leaf(&mut h.cpuid, 0x8000_0007, 0).edx = 0,
            &["bit 8"],
        ),
        (
            |_, h| leaf(&mut h.cpuid, 0x8000_0008, 0).eax = 0x3024,
            &["0x27", "0x24", "physical addresses"],
        ),
        (
            |_, h| leaf(&mut h.cpuid, 0, 0).ebx = 0x6874_7541,
            &["EBX", "equal"],
        ),
        (|_, h| leaf(&mut h.cpuid, 0, 0).eax = 0xb, &["0xd", "0xb"]),
        (|_, h| h.cpuid.retain(|it| it.leaf != 7), &["AVX2"]),
        (|g, _| uart(g).kind = 77, &["kind 77"]),
        (|g, _| uart(g).version = 99, &["serial", "99"]),
        (
            |g, h| {
                uart(g);
                h.granted.clear()
            },
            &[
                "serial",
                "has not granted",
                "--grant serial,port=0x2f8,irq=3",
            ],
        ),
        (
            |g, h| {
                uart(g);
                h.granted[0].in_use = true
            },
            &["another guest uses"],
        ),
        (
            |g, h| {
                uart(g);
                h.granted[0].guest_irq = 4
            },
            &["has not granted"],
        ),
        (
            |g, h| {
                uart(g);
                h.granted[0].guest_port = 0x3f8
            },
            &["has not granted"],
        ),
        (
            |g, _| {
                let mut second = *uart(g);
                second.device = 9;
                g.devices.push(second);
            },
            &["has not granted"],
        ),
        (
            |_, h| {
                h.user_devices.remove(0);
            },
            &["\"com1\"", "no such device"],
        ),
        (
            |_, h| h.user_devices[1].version = 3,
            &["\"rtc\"", "version 4", "version 3"],
        ),
        (|g, _| g.name = "../x".into(), &["malformed", "guest name"]),
        (|g, _| g.name = String::new(), &["malformed", "guest name"]),
        (|g, _| g.name = "x".repeat(65), &["malformed", "guest name"]),
        (|g, _| g.vcpus = 0, &["0 vCPUs"]),
        (|g, _| g.vcpus = u32::MAX, &["vCPUs"]),
        (|g, _| g.tsc_khz = 0, &["0 kHz"]),
        (|g, _| g.cpuid.clear(), &["CPUID table of 0"]),
        (
            |g, _| g.cpuid = vec![g.cpuid[0]; 81],
            &["CPUID table of 81"],
        ),
        (|g, _| g.memory.clear(), &["0 memory regions"]),
        (
            |g, _| g.memory = vec![g.memory[0]; 17],
            &["17 memory regions"],
        ),
        (|g, _| g.memory[1].gpa = 0, &["memory region"]),
        (|g, _| g.memory[0].size = 0, &["memory region of 0x0"]),
        (|g, _| g.memory[0].size += 1, &["memory region"]),
        (|g, _| g.memory[0].gpa = 1, &["memory region"]),
        (
            |g, _| {
                g.memory[1] = MemoryRange {
                    gpa: u64::MAX - 4095,
                    size: 4096,
                }
            },
            &["memory region"],
        ),
        (|g, _| g.memory[1].size = 1 << 60, &["memory region"]),
        (
            |g, _| {
                let device = *uart(g);
                g.devices.push(device)
            },
            &["two devices with the number 2"],
        ),
        (
            |g, _| {
                let device = *uart(g);
                g.devices = vec![device; 65]
            },
            &["65 devices"],
        ),
        (
            |g, _| g.user_devices = vec![g.user_devices[0].clone(); 2],
            &["two userspace devices"],
        ),
        (
            |g, _| g.user_devices = vec![g.user_devices[0].clone(); 17],
            &["17 userspace devices"],
        ),
        (
            |g, _| {
                g.user_devices.push(UserDeviceDescription {
                    name: "a b".into(),
                    version: 1,
                })
            },
            &["userspace device name"],
        ),
        (|g, _| g.producer = "x".repeat(1000), &["producer"]),
    ]
}

#[test]
fn what_does_not_fit_is_refused_in_words_that_name_it() {
    let table = table();
    assert!(table.len() > 40);
    for (index, (change, words)) in table.into_iter().enumerate() {
        let (mut guest, mut host) = (description(), host_description());
        assert_eq!(check(&guest, &host), Ok(()), "the unchanged guest fits");
        change(&mut guest, &mut host);
        let refusal = check(&guest, &host).expect_err(&format!("case {index}: {words:?}"));
        let text = refusal.to_string();
        for word in words {
            assert!(
                text.contains(word),
                "case {index}: {word:?} is missing in: {text}"
            );
        }
    }
}

#[test]
fn what_only_describes_or_is_more_than_needed_is_not_refused() {
    let fits: Vec<Change> = vec![
        |_, h| h.free_memory = 740 * PAGE_SIZE as u64,
        |_, h| h.vm_flags = u32::MAX,
        |_, h| h.features = u64::MAX,
        |g, h| {
            g.tsc_khz = 2_500_000;
            h.features = FEATURE_TSC_SCALING
        },
        // 100 parts per million: two measurements of the same rate.
        |g, _| g.tsc_khz = 2_000_200,
        // HTT, ERMS, FSRM, OSXSAVE, "hypervisor": harmless or not the host's to promise.
        |g, _| leaf(&mut g.cpuid, 1, 0).edx |= 1 << 28,
        |g, _| {
            let it = leaf(&mut g.cpuid, 7, 0);
            it.ebx |= 1 << 9;
            it.edx |= 1 << 4
        },
        |g, _| leaf(&mut g.cpuid, 1, 0).ecx |= 1 << 27 | 1 << 31,
        // Stepping, APIC id, cache topology, brand string, hypervisor leaves.
        |g, _| leaf(&mut g.cpuid, 1, 0).eax += 1,
        |g, _| leaf(&mut g.cpuid, 1, 0).ebx ^= 0xff00_0000,
        |g, _| {
            g.cpuid.push(CpuidLeaf {
                leaf: 4,
                subleaf: 0,
                flags: 1,
                eax: 9,
                ebx: 9,
                ecx: 9,
                edx: 9,
            })
        },
        |g, _| {
            g.cpuid.push(CpuidLeaf {
                leaf: 0x4000_0000,
                subleaf: 0,
                flags: 0,
                eax: 9,
                ebx: 9,
                ecx: 9,
                edx: 9,
            })
        },
        |g, _| {
            g.cpuid.push(CpuidLeaf {
                leaf: 0x8000_0002,
                subleaf: 0,
                flags: 0,
                eax: 9,
                ebx: 9,
                ecx: 9,
                edx: 9,
            })
        },
        // A newer host.
        |_, h| leaf(&mut h.cpuid, 7, 0).ebx = u32::MAX,
        |_, h| leaf(&mut h.cpuid, 0, 0).eax = 0x20,
        |_, h| leaf(&mut h.cpuid, 0x8000_0008, 0).eax = 0x302e,
        |g, _| {
            uart(g);
        },
        |g, _| uart(g).backend = Backend::Modelled,
    ];
    assert!(!fits.is_empty());
    for (index, change) in fits.into_iter().enumerate() {
        let (mut guest, mut host) = (description(), host_description());
        change(&mut guest, &mut host);
        assert_eq!(check(&guest, &host), Ok(()), "case {index}");
    }
}

#[test]
fn all_reasons_are_given_at_once() {
    let (mut guest, mut host) = (description(), host_description());
    guest.api_version += 1;
    host.free_memory = 0;
    host.user_devices.clear();
    let refusal = check(&guest, &host).expect_err("three things do not fit");
    assert_eq!(refusal.reasons.len(), 4, "{refusal}");
}

#[test]
fn a_refusal_reaches_the_operator_before_the_first_page_and_costs_the_guest_nothing() {
    let table = table();
    assert!(!table.is_empty());
    for (change, words) in table {
        let mut scene = Scene::plain();
        let mut guest = description();
        let host = std::sync::Arc::get_mut(&mut scene.network.host).expect("nobody has it yet");
        change(&mut guest, &mut host.description);
        if guest.validate().is_err() {
            // The source's own daemon is broken; it finds that out itself.
            scene.source.description = guest;
            scene.migrate().expect_err("the description is wrong");
            scene.source.description = description();
        } else {
            scene.source.description = guest;
            let failure = scene.migrate().expect_err("it does not fit");
            assert!(matches!(failure.error, Error::Refused(_)), "{failure}");
            assert_eq!((failure.exit_code(), failure.phase), (4, "prepare"));
            let text = failure.to_string();
            for word in words {
                assert!(text.contains(word), "{word:?} is missing in: {text}");
            }
        }
        scene.assert_unchanged();
        for operation in [
            Operation::Pause,
            Operation::StartDirtyLog,
            Operation::ReadPages,
            Operation::Prepare,
        ] {
            assert_eq!(scene.faults.count(operation), 0, "{operation:?}");
        }
    }
}
