// SPDX-License-Identifier: GPL-2.0
//! Taking devices from the drivers of a host that is a directory.

use super::*;
use std::os::unix::fs::symlink;

/// A sysfs with one serial port at 2F8h, driven by the PNP driver "serial".
fn sysfs() -> tempfile::TempDir {
    let root = tempfile::tempdir().expect("a temporary directory can be made");
    let device = root.path().join("devices/pnp0/00:05");
    let port = device.join("00:05:0/00:05:0.0");
    let tty = port.join("tty/ttyS1");
    let driver = root.path().join("bus/pnp/drivers/serial");
    let core = root.path().join("bus/serial-base/drivers/port");
    for directory in [&tty, &driver, &core, &root.path().join("class/tty/console")] {
        fs::create_dir_all(directory).expect("a directory can be made");
    }
    for (link, target) in [
        (device.join("driver"), driver.clone()),
        (device.join("subsystem"), root.path().join("bus/pnp")),
        (port.join("driver"), core),
        (port.join("subsystem"), root.path().join("bus/serial-base")),
        (tty.join("device"), port),
        (root.path().join("class/tty/ttyS1"), tty.clone()),
    ] {
        symlink(target, link).expect("a link can be made");
    }
    for (file, text) in [
        (tty.join("port"), "0x2F8\n"),
        (tty.join("irq"), "3\n"),
        (tty.join("type"), "4\n"),
        (tty.join("console"), "N\n"),
        (root.path().join("class/tty/console/active"), "tty0 ttyS0\n"),
    ] {
        fs::write(file, text).expect("a file can be written");
    }
    root
}

fn ports(root: &tempfile::TempDir) -> HostDevices {
    HostDevices::new(
        root.path(),
        &root.path().join("proc"),
        &root.path().join("notes"),
    )
}

fn serial(port: u16) -> DeviceSpec {
    let option = format!("serial,port=0x3e8,irq=5,host-port={port:#x},host-irq=3");
    option.parse().expect("a valid option")
}

fn parallel() -> DeviceSpec {
    let option = "parallel,port=0x378,irq=7";
    option.parse().expect("a valid option")
}

/// Adds a parallel port at 378h that the firmware names.
fn with_parallel_port(root: &tempfile::TempDir) -> PathBuf {
    let device = root.path().join("devices/pnp0/00:06");
    fs::create_dir_all(&device).expect("a directory can be made");
    let list = root.path().join("bus/pnp/devices");
    fs::create_dir_all(&list).expect("a directory can be made");
    symlink(&device, list.join("00:06")).expect("a link can be made");
    fs::write(device.join("id"), "PNP0400\n").expect("a file can be written");
    let resources = "state = active\nio 0x378-0x37f\nirq 7\n";
    fs::write(device.join("resources"), resources).expect("a file can be written");
    device
}

fn ioports(root: &tempfile::TempDir, text: &str) {
    let proc = root.path().join("proc");
    fs::create_dir_all(&proc).expect("a directory can be made");
    fs::write(proc.join("ioports"), text).expect("a file can be written");
}

fn written(root: &tempfile::TempDir, file: &str) -> Option<String> {
    fs::read_to_string(root.path().join("bus/pnp/drivers/serial").join(file)).ok()
}

#[test]
fn a_port_is_taken_from_its_driver_and_given_back() {
    let root = sysfs();
    let ports = ports(&root);
    let claimed = ports.claim(&serial(0x2f8)).expect("not a console");
    assert_eq!(written(&root, "unbind").as_deref(), Some("00:05"));
    assert_eq!(written(&root, "bind"), None);
    drop(claimed.expect("a driver has it"));
    assert_eq!(written(&root, "bind").as_deref(), Some("00:05"));
}

#[test]
fn a_port_that_no_driver_has_needs_nothing() {
    let root = sysfs();
    let ports = ports(&root);
    assert!(ports.claim(&serial(0x3e8)).expect("free").is_none());
    fs::write(root.path().join("class/tty/ttyS1/type"), "0\n").expect("writable");
    assert!(ports.claim(&serial(0x2f8)).expect("free").is_none());
    assert_eq!(written(&root, "unbind"), None);
}

#[test]
fn a_console_of_the_host_is_refused() {
    let root = sysfs();
    fs::write(root.path().join("class/tty/console/active"), "ttyS1\n").expect("writable");
    let error = ports(&root)
        .claim(&serial(0x2f8))
        .expect_err("it is a console");
    assert!(error.to_string().contains("console=ttyS1"), "{error}");
    assert_eq!(written(&root, "unbind"), None);
}

#[test]
fn what_a_killed_daemon_had_taken_is_given_back_by_the_next() {
    let root = sysfs();
    let claimed = ports(&root).claim(&serial(0x2f8)).expect("not a console");
    // A killed process drops nothing.
    std::mem::forget(claimed);
    assert_eq!(written(&root, "bind"), None);
    ports(&root).give_back_leftovers();
    assert_eq!(written(&root, "bind").as_deref(), Some("00:05"));
    let notes = fs::read_dir(root.path().join("notes")).expect("a directory");
    assert_eq!(notes.count(), 0);
    ports(&root).give_back_leftovers();
}

#[test]
fn a_device_that_the_firmware_names_is_taken_from_its_driver_and_given_back() {
    let root = sysfs();
    let device = with_parallel_port(&root);
    let host = ports(&root);
    assert!(host.claim(&parallel()).expect("nobody has it").is_none());
    // Whose directory does not matter.
    let driver = root.path().join("bus/pnp/drivers/serial");
    symlink(driver, device.join("driver")).expect("a link can be made");
    let taken = host.claim(&parallel()).expect("it lets go");
    assert_eq!(written(&root, "unbind").as_deref(), Some("00:06"));
    drop(taken.expect("a driver has it"));
    assert_eq!(written(&root, "bind").as_deref(), Some("00:06"));
}

#[test]
fn a_device_whose_driver_cannot_let_go_is_refused_with_what_to_do() {
    let root = sysfs();
    ioports(
        &root,
        "0000-0cf7 : PCI Bus 0000:00\n  0378-037a : parport0\n  0500-0507 : pvmm\n",
    );
    let error = ports(&root).claim(&parallel()).expect_err("parport has it");
    let text = error.to_string();
    assert!(text.contains("0x378"), "{text}");
    assert!(text.contains("modprobe -r lp ppdev parport_pc"), "{text}");
}

#[test]
fn the_list_says_who_has_what_and_how_it_gets_free() {
    let root = sysfs();
    with_parallel_port(&root);
    let host = ports(&root);
    let listed = |list: &[list::HostDevice]| -> Vec<_> {
        let items = list.iter();
        items
            .map(|it| (it.port, it.irq, it.holder.clone(), it.available))
            .collect()
    };
    let free = host.list();
    let com2 = (0x2f8, Some(3), Some("ttyS1".into()), true);
    assert_eq!(listed(&free), [com2.clone(), (0x378, Some(7), None, true)]);
    assert_eq!(free[1].option.as_deref(), Some("parallel,port=0x378,irq=7"));
    ioports(&root, "  0378-037a : parport0\n");
    let held = host.list();
    let lpt = (0x378, Some(7), Some("parport0".into()), false);
    assert_eq!(listed(&held), [com2, lpt]);
    assert!(held[1].how.contains("modprobe -r"), "{}", held[1].how);
}
