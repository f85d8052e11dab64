//! Ticks of single operations, and of ordinary work in a guest against the same on the bare host.

use std::collections::BTreeMap;
use std::time::Duration;

use pvmm_bench::{END, LOOPS, OPERATIONS};
use pvmm_lab::progress::Step;
use pvmm_lab::{daemon, Host, HostSpec, Lab};

use super::results::Results;
use super::{INITRD, PROGRAM};
use crate::error::{Error, Result};
use crate::prepare::GUEST_VMLINUX;

/// What one exit may cost: 0.8 of what Linux KVM takes for it on the same emulated machine.
const EXIT_GOALS: [(&str, f64); 2] = [("cpuid", 0.8 * 1443.0), ("port-in-core", 0.8 * 1658.0)];
/// What a guest's work may take, as a multiple of the bare host's time.
const WORK_GOAL: f64 = 1.03;
/// The daemon's control group.
const CGROUP: &str = "/sys/fs/cgroup/pvmmd";
/// The passed-through serial port.
const COM2: &str = "serial,port=0x2f8,irq=3";
/// How long the program may take in a guest, in real time.
const LIMIT: Duration = Duration::from_secs(900);

/// What a recorded device may cost: the same work with recording off takes so much less.
const RECORDING_GOAL: f64 = 1.01;

/// A guest that is measured.
struct Guest {
    /// What it is called.
    name: &'static str,
    /// Its kernel's command line.
    words: &'static str,
    /// Options of `pvmmd run`.
    options: &'static str,
    /// Options of its device.
    device: &'static str,
}

/// The first is the one whose recording is measured, by the second.
const GUESTS: [Guest; 3] = [
    Guest {
        name: "guest",
        words: "pmtimer com2",
        options: "--irqchip apic",
        device: "",
    },
    Guest {
        name: "guest, not recorded",
        words: "pmtimer com2",
        options: "--irqchip apic",
        device: ",record=off",
    },
    Guest {
        name: "guest with 8259 and 8254",
        words: "com2 noapic nolapic acpi=off",
        options: "--irqchip pic",
        device: "",
    },
];

/// Boots a host and measures on it.
pub fn measure(results: &mut Results) -> Result<()> {
    let lab = Lab::new("bench")?;
    let step = Step::begin("booting a machine with VT-x (emulated by Bochs)", "1 min");
    let mut host = lab.boot(&HostSpec::new("bench"))?;
    step.done();

    let step = Step::begin("measuring on the bare host", "1 min");
    let bare = host
        .run_with(&[PROGRAM, "com2"], LIMIT, &mut |_| ())?
        .stdout;
    let bare = parsed("bare host", &bare)?;
    record(results, "bare host", &bare);
    step.done();

    daemon::load_module(&mut host)?;
    let pid = daemon::serve(&mut host, "")?;
    // What the daemon and, on its behalf, the module allocate from here on is counted together.
    host.sh(&format!(
        "mount -t cgroup2 none /sys/fs/cgroup && echo +memory > /sys/fs/cgroup/cgroup.subtree_control && mkdir {CGROUP} && echo {pid} > {CGROUP}/cgroup.procs"
    ))?;
    let mut all = Vec::new();
    for guest in GUESTS {
        let name = guest.name;
        let step = Step::begin(format!("measuring in a {name}"), "2 min");
        let before = memory(&mut host)?;
        begin(&mut host, &guest)?;
        let after = memory(&mut host)?;
        for (what, bytes) in &after {
            let more = bytes.saturating_sub(before.get(what).copied().unwrap_or_default());
            results.add(
                &format!("KiB more while a {name} of 80 MiB runs"),
                what,
                (more / 1024) as f64,
            );
        }
        let inside = end(&mut host)?;
        record(results, name, &inside);
        for (work, _) in LOOPS {
            if let (Some(inside), Some(bare)) = (inside.get(work), bare.get(work)) {
                let ratio = *inside as f64 / *bare as f64;
                results.add_with_goal(
                    &format!("work, {name} to bare host"),
                    work,
                    ratio,
                    WORK_GOAL,
                );
            }
        }
        all.push(inside);
        step.done();
    }
    if let [recorded, not_recorded, ..] = &all[..] {
        for (work, _) in LOOPS {
            if let (Some(with), Some(without)) = (recorded.get(work), not_recorded.get(work)) {
                let group = "work, recorded to not recorded";
                let ratio = *with as f64 / *without as f64;
                results.add_with_goal(group, work, ratio, RECORDING_GOAL);
            }
        }
    }
    lab.finish();
    Ok(())
}

/// Starts the program as a guest's `/init` and lets it boot.
fn begin(host: &mut Host, guest: &Guest) -> Result<()> {
    let Guest {
        words,
        options,
        device,
        ..
    } = guest;
    let log = daemon::console_log("b");
    host.sh(&format!(
        "rm -f {log}; pvmmd run --name b --kernel {GUEST_VMLINUX} --initrd {INITRD} --memory 80M {options} \
         --device {COM2}{device} \
         --cmdline 'console=ttyS0 quiet nokaslr cryptomgr.notests mitigations=off {words}'; sleep 1"
    ))?;
    Ok(())
}

/// What the daemon's control group holds, in bytes: `anon` is the daemon's own memory, `kernel` what the kernel has
/// allocated for it, page tables and the module's pages included. Guest memory is `shmem`, and left out.
fn memory(host: &mut Host) -> Result<BTreeMap<String, u64>> {
    let stat = host.sh(&format!("cat {CGROUP}/memory.stat"))?;
    Ok(stat
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(name, _)| ["anon", "kernel"].contains(name))
        .filter_map(|(name, bytes)| Some((name.to_owned(), bytes.parse().ok()?)))
        .collect())
}

/// Waits for the program's end, and returns what it measured.
fn end(host: &mut Host) -> Result<BTreeMap<String, u64>> {
    // Seldom, since each look takes time from the guest.
    let log = daemon::console_log("b");
    let script = format!(
        "for i in $(seq 600); do grep -q '{END}' {log} && break; sleep 1; done; \
         pvmmd stop b > /dev/null 2>&1; cat {log}"
    );
    let out = host.run_with(&["sh", "-c", &script], LIMIT, &mut |_| ())?;
    parsed("guest", &out.stdout)
}

fn parsed(what: &str, output: &str) -> Result<BTreeMap<String, u64>> {
    pvmm_bench::parse(output)
        .ok_or_else(|| Error::Usage(format!("the program in the {what} did not end:\n{output}")))
}

fn record(results: &mut Results, place: &str, measured: &BTreeMap<String, u64>) {
    let operations = format!("ticks of one operation, {place}");
    for (name, _) in OPERATIONS {
        let Some(&ticks) = measured.get(name) else {
            continue;
        };
        let goal = EXIT_GOALS.iter().find(|(goal, _)| *goal == name);
        match goal.filter(|_| place != "bare host") {
            Some((_, goal)) => results.add_with_goal(&operations, name, ticks as f64, *goal),
            None => results.add(&operations, name, ticks as f64),
        }
    }
    for (name, _) in LOOPS {
        if let Some(&ticks) = measured.get(name) {
            results.add(&format!("ticks of work, {place}"), name, ticks as f64);
        }
    }
}
