// SPDX-License-Identifier: GPL-2.0
//! What a client is told of a guest's devices, and of what the guest does to them.

use crate::host::{error, move_of, name, Host, Machine, LIMIT, SERIAL};
use pvmm_control::reply::{DeviceInfo, Origin, TracedAccess};
use pvmm_control::request::Trace;
use pvmm_control::{ErrorClass, Event, Reply, Request};
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::channel;
use std::time::Instant;

fn devices(host: &impl Machine, guest: &str) -> Vec<DeviceInfo> {
    match host.call(Request::Devices(name(guest))) {
        Ok(Reply::Devices(devices)) => devices,
        other => panic!("{other:?}"),
    }
}

fn device<'a>(devices: &'a [DeviceInfo], name: &str) -> &'a DeviceInfo {
    let mut devices = devices.iter();
    devices
        .find(|device| device.device == name)
        .expect("every guest has it")
}

/// The value, meaning and origin of an item.
fn item<'a>(device: &'a DeviceInfo, name: &str) -> Option<(u64, &'a str, Origin)> {
    let item = device.state.iter().find(|item| item.item == name)?;
    Some((item.value, &item.meaning, item.origin))
}

fn trace(guest: &str, device: &str) -> Request {
    Request::Trace(Trace {
        name: guest.into(),
        device: device.into(),
    })
}

#[test]
fn a_running_guest_s_devices_are_told_with_their_state_and_the_guest_goes_on() {
    let host = Host::plain();
    host.run("one", &[SERIAL]).expect("nothing against it");
    host.console("one").wait_for("beat 0\n");
    // As often as a look could meet the guest at another place.
    for _ in 0..50 {
        let devices = devices(&host, "one");
        let pic = device(&devices, "pic");
        assert_eq!(pic.unknown, None);
        assert_eq!(
            item(pic, "master ICW2"),
            Some((0x20, "vector=20h", Origin::Log))
        );
        assert_eq!(
            item(pic, "master OCW1"),
            Some((0xee, "masked=1,2,3,5,6,7", Origin::Read))
        );
        assert!(item(pic, "master ISR").is_some_and(|(_, _, origin)| origin == Origin::Model));
        let log = pic.log.expect("it has a recorder");
        assert_eq!((log.length, log.bound, log.recorded), (10, 20, true));
        let pit = device(&devices, "pit");
        assert_eq!(
            item(pit, "control word 0"),
            Some((
                0x34,
                "counter=0 mode=2 format=low and high byte",
                Origin::Log
            ))
        );
        let com2 = device(&devices, "com2");
        assert_eq!((com2.host_port, com2.host_irq), (Some(0x2f8), Some(3)));
        assert_eq!((com2.ranges[0].port, com2.ranges[0].count), (0x2f8, 8));
        assert!(item(com2, "LCR").is_some_and(|(_, _, origin)| origin == Origin::Read));
        assert_eq!(item(com2, "RBR"), None);
        assert_eq!(com2.obstacles, Vec::<String>::new());
        let com1 = device(&devices, "com1");
        assert!(item(com1, "LSR").is_some_and(|(_, _, origin)| origin == Origin::User));
        assert!(com1.log.is_none());
        assert!(item(device(&devices, "rtc"), "time").is_some());
    }
    host.goes_on("one");
}

#[test]
fn a_paused_guest_s_devices_are_told_and_it_stays_paused() {
    let host = Host::plain();
    host.run("one", &[]).expect("nothing against it");
    host.call(Request::Pause(name("one"))).expect("it runs");
    let before = host.info("one");
    let devices = devices(&host, "one");
    assert!(!device(&devices, "pit").state.is_empty());
    assert_eq!(host.info("one"), before);
    host.call(Request::Resume(name("one")))
        .expect("it is paused");
    host.goes_on("one");
}

#[test]
fn what_cannot_be_said_or_moved_has_its_reason() {
    let host = Host::plain();
    host.run("one", &[&format!("{SERIAL},record=off")])
        .expect("nothing against it");
    let told = devices(&host, "one");
    let com2 = device(&told, "com2");
    assert!(com2.obstacles[0].contains("record=off"), "{com2:?}");
    assert_eq!(com2.log.map(|log| log.recorded), Some(false));
    host.call(Request::Stop(name("one"))).expect("it runs");
    let told = devices(&host, "one");
    let why = device(&told, "pic").unknown.as_deref();
    assert!(why.is_some_and(|why| why.contains("has ended")), "{why:?}");
}

#[test]
fn looking_at_a_guest_that_moves_does_not_hurt_the_move() {
    let (here, there) = (Host::plain(), Host::new(&[SERIAL], Default::default()));
    here.run("one", &[SERIAL]).expect("nothing against it");
    let (from, to) = (&here, &there);
    std::thread::scope(|scope| {
        let moved = scope.spawn(|| from.call(move_of("one", &to.url)));
        let mut looks = 0;
        while !moved.is_finished() {
            let _ = from.call(Request::Devices(name("one")));
            // It arrives there, or is not there yet.
            let _ = to.call(Request::Devices(name("one")));
            looks += 1;
        }
        assert!(looks > 0);
        moved
            .join()
            .expect("it does not panic")
            .expect("the guest moves");
    });
    let told = devices(&there, "one");
    let ocw1 = item(device(&told, "pic"), "master OCW1");
    assert_eq!(ocw1.map(|(value, ..)| value), Some(0xee));
    there.goes_on("one");
}

#[test]
fn what_a_guest_does_to_a_device_is_told_until_the_guest_ends() {
    let host = Host::plain();
    host.run("one", &[]).expect("nothing against it");
    let mut console = host.console("one");
    console.wait_for("beat 0\n");
    let (begun, has_begun) = channel();
    let traced = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut traced: Vec<TracedAccess> = Vec::new();
            let reply = host
                .client()
                .call_with_events(trace("one", "pic"), |event| match event {
                    Event::Trace(told) => {
                        assert_eq!(told.lost, 0);
                        traced.extend(told.accesses);
                        let _ = begun.send(());
                    }
                    other => panic!("{other:?}"),
                });
            assert!(matches!(reply, Ok(Reply::Done)), "{reply:?}");
            traced
        });
        has_begun.recv().expect("it answers at once");
        let second = error(host.call(trace("one", "pit")));
        assert!(second.desc.contains("being traced already"), "{second}");
        console.send(b"w");
        console.wait_for("w");
        has_begun.recv().expect("the accesses are told");
        console.send(b"q");
        console.wait_end();
        watcher.join().expect("it does not panic")
    });
    let seen: Vec<(u16, Option<&str>, u64, bool)> = traced
        .iter()
        .map(|access| {
            let register = access.register.as_deref();
            (access.port, register, access.value, access.logged)
        })
        .collect();
    assert_eq!(seen.len(), 10, "{seen:?}");
    assert_eq!(seen[0], (0x20, Some("master ICW1"), 0x11, true));
    assert_eq!(seen[4], (0x21, Some("master OCW1"), 0xee, true));
    assert_eq!(seen[6], (0xa1, Some("slave ICW2"), 0x28, true));
    assert!(traced.iter().all(|access| access.write));
}

/// `pvmmd trace` with its output, after it has said its first line; `None` if it was refused.
fn tracer(host: &Host) -> Option<Child> {
    let mut child = host
        .program(&["trace", "one", "--device", "com2"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program is built");
    let mut line = String::new();
    let stdout = child.stdout.as_mut().expect("it was asked for");
    BufReader::new(stdout).read_line(&mut line).expect("text");
    if line.is_empty() {
        child.wait().expect("it has ended");
        return None;
    }
    Some(child)
}

#[test]
fn a_client_that_goes_ends_its_trace_and_a_trace_keeps_no_device_from_the_host() {
    let host = Host::plain();
    host.run("one", &[SERIAL]).expect("nothing against it");
    let mut first = tracer(&host).expect("nobody else watches");
    assert!(tracer(&host).is_none(), "one at a time");
    first.kill().expect("it runs");
    first.wait().expect("it has ended");
    // The daemon notices when it has something to say.
    let limit = Instant::now() + LIMIT;
    let mut second = loop {
        if let Some(child) = tracer(&host) {
            break child;
        }
        assert!(Instant::now() < limit, "the trace goes on");
    };
    host.call(Request::Stop(name("one"))).expect("it runs");
    host.run("two", &[SERIAL]).expect("the device is free");
    let ended = second.wait().expect("its guest has ended");
    assert_eq!(ended.code(), Some(0));
}

#[test]
fn a_device_that_cannot_be_traced_is_refused_with_what_can() {
    let host = Host::plain();
    host.run("one", &[]).expect("nothing against it");
    let none = error(host.call(trace("one", "nic")));
    assert_eq!(none.class, ErrorClass::Invalid);
    assert!(none.desc.contains("pic, pit"), "{none}");
    let user = error(host.call(trace("one", "com1")));
    assert!(user.desc.contains("lives in pvmmd"), "{user}");
}

#[test]
fn both_tables_are_printed() {
    let host = Host::plain();
    host.run("one", &[SERIAL]).expect("nothing against it");
    host.console("one").wait_for("beat 0\n");
    let output = host
        .program(&["devices", "one"])
        .output()
        .expect("the program is built");
    let text = String::from_utf8_lossy(&output.stdout);
    for words in [
        "DEVICE",
        "master OCW1",
        "masked=1,2,3,5,6,7",
        "serial (physical)",
        "IN THE GUEST",
        "0x20-0x21,0xa0-0xa1,0x4d0-0x4d1",
        "0x2f8-0x2ff irq 3",
        "10/20",
    ] {
        assert!(text.contains(words), "no \"{words}\" in {text}");
    }
    let output = host
        .program(&["devices", "one", "--json"])
        .output()
        .expect("the program is built");
    let told: Vec<DeviceInfo> = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(told.len(), 5);
}
