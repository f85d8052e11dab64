//! What goes wrong only now and then, or only a little each time: many loads, CPUs that come and go under a guest, and
//! daemons that are killed in each state of a guest.
//!
//! Made for the debug kernel (`cargo xtask test --debug-kernel`), whose reports end a test; on Debian's kernel the same with
//! fewer repetitions.

#![forbid(unsafe_code)]

use std::error::Error;

use pvmm_e2e::guest::{
    check_logs, console, free_memory, kill_daemon, serve, start, wait_for, Departure, Trail, APIC,
    COM2, PIC,
};
use pvmm_e2e::{on_lab, TestResult};
use pvmm_guest::{bare::beat, check_heartbeats};
use pvmm_lab::{Host, HostSpec};

/// What a host's kernel may keep of its free memory when guests have gone, in KiB: caches, logs, and with KASAN a thirty-second
/// part of all memory in which it waits for accesses to what was freed. A guest has 80 MB.
const MEMORY_TOLERANCE_KIB: u64 = 40 << 10;
/// What the kernel's counters of memory for itself may grow by over all loads, in KiB. The module is larger than that.
const LOADS_TOLERANCE_KIB: u64 = 512;
/// Moves on emulated links and with watched kernels are slow, and the guest's kernel must not take a pause for a hung CPU.
const GAP: &str = "pvmm.load=idle pvmm.gap_ms=240000 nowatchdog";
/// A guest that writes little converges, and an emulated link carries 1 MB a second.
const MOVE: &str = "--timeout 60 --timeout-action suspend";

/// The kernel's memory for modules and for each CPU, in KiB: what a load that forgets something makes grow.
fn kernel_memory(host: &mut Host) -> Result<u64, Box<dyn Error>> {
    let sum =
        host.sh("awk '/^(VmallocUsed|Percpu):/ { sum += $2 } END { print sum }' /proc/meminfo")?;
    Ok(sum.trim().parse()?)
}

#[test]
fn the_module_loads_and_unloads_many_times_and_keeps_no_memory() -> TestResult {
    on_lab("soak-loads", 1, |lab| {
        let loads = if lab.is_debug() { 100 } else { 10 };
        let mut host = lab.boot(&HostSpec::new("a").cpus(2))?;
        // What the kernel allocates at the first load and keeps is no leak.
        host.sh("insmod /lib/modules/pvmm.ko selftest=1; rmmod pvmm")?;
        let before = kernel_memory(&mut host)?;
        for _ in 0..loads / 10 {
            host.sh("for i in $(seq 10); do \
                 insmod /lib/modules/pvmm.ko && test -c /dev/pvmm && rmmod pvmm || exit 1; done")?;
        }
        // Areas that were unmapped stay counted until the kernel has enough of them to flush them together.
        let after = kernel_memory(&mut host)?;
        println!("{loads} loads: {before} KiB before, {after} KiB after");
        assert!(
            after <= before + LOADS_TOLERANCE_KIB,
            "{before} KiB before {loads} loads, {after} KiB after"
        );
        host.sh("test ! -e /dev/pvmm")?;
        check_logs(&mut [&mut host])
    })
}

/// Binds the thread of a guest's vCPU to CPU 1 of its host.
fn bind_to_cpu_1(host: &mut Host, daemon: u32) -> TestResult {
    host.sh(&format!(
        "for thread in /proc/{daemon}/task/*; do \
         if grep -q '^vcpu0$' $thread/comm; then taskset -p 2 ${{thread##*/}} && exit 0; fi; done; exit 1"
    ))?;
    Ok(())
}

/// Waits until the guest has verified itself twice more.
fn goes_on(host: &mut Host) -> TestResult {
    let seen = console(host, "g")?.matches("pvmm-guest OK").count();
    wait_for(host, "g", "pvmm-guest OK", seen + 2)?;
    Ok(())
}

/// Starts a guest that counts. It needs no Linux, see [`beat`].
fn start_beating(host: &mut Host) -> TestResult {
    host.put("/guest/beat", 0o644, &beat::kernel())?;
    host.sh("rm -rf /tmp/consoles/g.log; pvmmd run --name g --kernel /guest/beat --memory 32M")?;
    beats_on(host)
}

/// Waits until the guest that counts has printed two more lines, and checks all of them.
fn beats_on(host: &mut Host) -> TestResult {
    let seen = console(host, "g")?.matches(beat::BEAT).count();
    let console = wait_for(host, "g", beat::BEAT, seen + 2)?;
    beat::check(&console)?;
    Ok(())
}

#[test]
fn a_guest_goes_on_while_its_cpu_goes_offline_and_comes_back() -> TestResult {
    const CPU: &str = "/sys/devices/system/cpu/cpu1/online";
    on_lab("soak-hotplug", 1, |lab| {
        let rounds = if lab.is_debug() { 8 } else { 3 };
        let mut host = lab.boot(&HostSpec::new("a").cpus(2))?;
        let daemon = serve(&mut host)?;
        start_beating(&mut host)?;
        for round in 0..rounds {
            // In every second round the CPU goes under the guest; the kernel then lets its thread run elsewhere.
            if round % 2 == 1 {
                bind_to_cpu_1(&mut host, daemon)?;
                beats_on(&mut host)?;
            }
            host.sh(&format!("echo 0 > {CPU}"))?;
            beats_on(&mut host)?;
            host.sh(&format!("echo 1 > {CPU}"))?;
            beats_on(&mut host)?;
        }
        // The CPU that came back runs guests, too.
        bind_to_cpu_1(&mut host, daemon)?;
        beats_on(&mut host)?;
        // One that isn't there when the module is loaded is ready when it comes.
        kill_daemon(&mut host, daemon)?;
        host.sh(&format!("echo 0 > {CPU}"))?;
        let daemon = serve(&mut host)?;
        host.sh(&format!("echo 1 > {CPU}"))?;
        start_beating(&mut host)?;
        bind_to_cpu_1(&mut host, daemon)?;
        beats_on(&mut host)?;
        kill_daemon(&mut host, daemon)?;
        check_logs(&mut [&mut host])
    })
}

/// Kills the daemon of a host in whatever state, checks that nothing is left, and starts the next.
fn next_daemon(host: &mut Host, daemon: u32, free_before: u64) -> Result<u32, Box<dyn Error>> {
    gone(host, daemon, free_before)?;
    serve(host)
}

/// Kills the daemon of a host and checks that nothing is left of it, neither in the module nor in the host's memory.
fn gone(host: &mut Host, daemon: u32, free_before: u64) -> TestResult {
    kill_daemon(host, daemon)?;
    host.sh("rm -rf /tmp/consoles")?;
    let free = free_memory(host)?;
    if free + MEMORY_TOLERANCE_KIB < free_before {
        return Err(format!("{free_before} KiB were free before, {free} KiB are now").into());
    }
    Ok(())
}

#[test]
fn a_daemon_that_is_killed_leaves_nothing_behind_in_whatever_state_its_guest_is() -> TestResult {
    on_lab("soak-killed", 2, |lab| {
        let (mut one, mut two) = lab.boot_two(&HostSpec::new("one"), &HostSpec::new("two"))?;
        let device = format!("--device {COM2},backend=physical");
        let free = free_memory(&mut one)?;
        let free_of_two = free_memory(&mut two)?;
        let mut daemon = serve(&mut one)?;
        let mut target = serve(&mut two)?;

        // While a guest is being made: its file is open, and its vCPU has not said a word.
        let run = format!(
            "pvmmd run --name g --kernel /guest/vmlinux --initrd /guest/initrd --memory 80M {device}"
        );
        let client = one.spawn(&["sh", "-c", &run], "/tmp/run.log")?;
        one.sh(&format!(
            "for i in $(seq 3000); do ls -l /proc/{daemon}/fd | grep -q /dev/pvmm && kill -9 {daemon} && exit 0; done; \
             exit 1"
        ))?;
        one.wait(client, pvmm_e2e::guest::LIMIT)?;
        daemon = next_daemon(&mut one, daemon, free)?;

        eprintln!("killed: a guest that is being made");
        start(&mut one, "g", APIC, GAP, &device)?;
        daemon = next_daemon(&mut one, daemon, free)?;

        eprintln!("killed: a guest that runs");
        start(&mut one, "g", PIC, GAP, &device)?;
        one.sh("pvmmd pause g; pvmmd list | grep paused")?;
        daemon = next_daemon(&mut one, daemon, free)?;

        eprintln!("killed: a guest that is paused");
        let mut trail = Trail::begin(&mut one, "g")?;
        start(&mut one, "g", PIC, GAP, &device)?;
        let departure = Departure::begin(&mut one, &two, "g", "")?;
        departure.wait_for_phase(&mut one, "precopy")?;
        target = next_daemon(&mut two, target, free_of_two)?;
        departure.fails(&mut one)?;
        goes_on(&mut one)?;

        eprintln!("killed: a guest that is coming");
        // There and back again. The killed daemon's console is no part of the trail.
        trail.migrate(&mut one, &mut two, MOVE)?;
        goes_on(&mut two)?;
        trail.migrate(&mut two, &mut one, MOVE)?;
        goes_on(&mut one)?;
        let (com1, com2) = trail.end(&mut one)?;
        let first = check_heartbeats(&com1)?.com1.ok_or("nothing on COM1")?;
        let second = check_heartbeats(&com2)?.com2.ok_or("nothing on COM2")?;
        assert!(first.first <= 2 && first.count() > 20, "{first:?}");
        assert!(second.first == 1 && second.count() > 20, "{second:?}");

        let departure = Departure::begin(&mut one, &two, "g", "")?;
        departure.wait_for_phase(&mut one, "precopy")?;
        daemon = next_daemon(&mut one, daemon, free)?;
        departure.fails(&mut one)?;
        // The target finds out by itself, and would take the next.
        two.sh(
            "for i in $(seq 900); do pvmmd list | grep -qE 'inmigrate|running' || exit 0; sleep 0.1; done; \
             pvmmd list; exit 1",
        )?;

        eprintln!("killed: a guest that is leaving");
        start(&mut one, "g", APIC, GAP, &device)?;
        let mut trail = Trail::begin(&mut one, "g")?;
        trail.migrate(&mut one, &mut two, MOVE)?;
        gone(&mut one, daemon, free)?;
        goes_on(&mut two)?;
        gone(&mut two, target, free_of_two)?;

        eprintln!("killed: both daemons after a move");
        check_logs(&mut [&mut one, &mut two])
    })
}
