//! A guest that does everything it must not get away with, beside one that must not notice.

#![forbid(unsafe_code)]

use std::error::Error;
use std::time::{Duration, Instant};

use pvmm_e2e::guest::{check_logs, console, free_memory, serve, start, wait_for, APIC, LIMIT};
use pvmm_e2e::{from_environment, on_lab, TestResult};
use pvmm_hostile::Case;
use pvmm_lab::{Host, HostSpec};

/// The seed unless `PVMM_SEED` gives another: the same each time, so that a change of the code is what makes a difference.
const SEED: u64 = 20_261_121;
/// Rounds of each case unless `PVMM_ROUNDS` says how many.
const ROUNDS: u64 = 96;
/// The guest that must not notice.
const NEIGHBOUR: &str = "neighbour";
/// What may differ between the host's free memory before and after, in KiB: logs, and what the kernel keeps for itself.
const MEMORY_TOLERANCE_KIB: u64 = 16 << 10;

/// Starts the hostile guest with this command line.
fn unleash(host: &mut Host, name: &str, irqchip: &str, cmdline: &str) -> TestResult {
    host.sh(&format!(
        "pvmmd run --name {name} --kernel /guest/hostile --memory 32M --irqchip {irqchip} --cmdline '{cmdline}'"
    ))?;
    Ok(())
}

/// Waits until a guest has come to an end; how, as `pvmmd info` says it. `None` if it still runs after `limit`.
fn end_of(host: &mut Host, name: &str, limit: Duration) -> Result<Option<String>, Box<dyn Error>> {
    let until = Instant::now() + limit;
    loop {
        let info = host.sh(&format!("pvmmd info {name}"))?;
        if let Some(end) = info.lines().find_map(|line| line.strip_prefix("end:")) {
            assert!(info.contains("ended"), "{info}");
            return Ok(Some(end.trim().to_owned()));
        }
        if Instant::now() >= until {
            return Ok(None);
        }
        // Each look costs the host some thousand instructions.
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Stops a guest that runs.
fn stop(host: &mut Host, name: &str) -> TestResult {
    host.sh(&format!("pvmmd stop {name}"))?;
    let end = end_of(host, name, Duration::ZERO)?;
    if end.as_deref() != Some("stopped") {
        return Err(format!("{name} was stopped and ended with {end:?}").into());
    }
    Ok(())
}

/// Whether a guest may end so after a case that it should survive.
fn is_expected(case: Case, end: &str) -> bool {
    match case {
        // Anything but VM-entry failures and exits that nobody knows can become of random code.
        Case::RandomCode | Case::SelfModifying | Case::Paging => [
            "powered off",
            "triple fault",
            "reset",
            "cannot be decoded",
            "needs a table or stack",
        ]
        .iter()
        .any(|known| end.contains(known)),
        _ => end == "powered off",
    }
}

#[test]
fn a_hostile_guest_hurts_neither_its_host_nor_another_guest() -> TestResult {
    let seed = from_environment("PVMM_SEED", SEED)?;
    let rounds = from_environment("PVMM_ROUNDS", ROUNDS)?;
    println!("PVMM_SEED={seed} PVMM_ROUNDS={rounds}");
    on_lab("hostile", 1, |lab| {
        let mut host = lab.boot(&HostSpec::new("one"))?;
        let before = free_memory(&mut host)?;
        let daemon = serve(&mut host)?;
        start(&mut host, NEIGHBOUR, APIC, "", "")?;

        let mut count = 0;
        for case in Case::all().filter(|case| !case.is_fatal()) {
            let name = case.name();
            unleash(
                &mut host,
                name,
                "apic",
                &format!("seed={seed} rounds={rounds} cases={name}"),
            )?;
            let end = end_of(&mut host, name, LIMIT)?;
            let said = console(&mut host, name)?;
            let last = said.lines().last().unwrap_or_default();
            println!("{name}: {end:?}; {last}");
            assert!(
                end.as_deref().is_some_and(|end| is_expected(case, end)),
                "seed {seed}: {name} ended with {end:?}:\n{said}"
            );
            assert!(!said.contains("FAIL"), "{said}");
            if end.as_deref() == Some("powered off") {
                assert!(said.contains("pvmm-hostile ends"), "{said}");
            }
            count += 1;
        }
        assert!(count > 8);
        finish(&mut host, daemon, before)
    })
}

#[test]
fn a_guest_that_destroys_itself_is_stopped_and_says_how_it_ended() -> TestResult {
    let seed = from_environment("PVMM_SEED", SEED)?;
    println!("PVMM_SEED={seed}");
    on_lab("hostile-ends", 1, |lab| {
        let mut host = lab.boot(&HostSpec::new("one"))?;
        let before = free_memory(&mut host)?;
        let daemon = serve(&mut host)?;
        start(&mut host, NEIGHBOUR, APIC, "", "")?;

        for (case, irqchip, expected) in [
            (Case::TripleFault, "apic", Some("triple fault")),
            (Case::Reset, "apic", Some("reset")),
            (Case::HaltForever, "pic", Some("halted for ever")),
            (Case::TaskSwitch, "apic", Some("unknown exit reason 0x9")),
            (Case::DeviceIdt, "apic", Some("needs a table or stack")),
            (Case::DeviceStack, "apic", Some("cannot be decoded")),
            (Case::DeviceCode, "apic", Some("cannot be decoded")),
            (Case::DeviceOperand, "apic", Some("cannot be decoded")),
            // With a local APIC an NMI could still come.
            (Case::HaltForever, "apic", None),
            (Case::Spin, "apic", None),
            (Case::Spin, "pic", None),
        ] {
            let name = &format!("{}-{irqchip}", case.name());
            unleash(
                &mut host,
                name,
                irqchip,
                &format!("seed={seed} rounds=1 cases={}", case.name()),
            )?;
            wait_for(&mut host, name, "begins", 2)?;
            // One that goes on is looked at as long as the others take to end.
            let limit = Duration::from_secs(if expected.is_some() { 120 } else { 5 });
            let end = end_of(&mut host, name, limit)?;
            println!("{name} with {irqchip}: {end:?}");
            match (expected, &end) {
                (None, None) => {
                    check_rounding(&mut host)?;
                    stop(&mut host, name)?;
                }
                (Some(expected), Some(end)) if end.contains(expected) => {}
                _ => return Err(format!("seed {seed}: {name} ended with {end:?}").into()),
            }
        }
        // What becomes of these is up to the seed, but not that it becomes known.
        for (case, rounds) in [(Case::WildCr3, 4), (Case::WildCode, 12)] {
            for round in 0..rounds {
                let name = format!("{}-{round}", case.name());
                unleash(
                    &mut host,
                    &name,
                    "apic",
                    &format!("seed={seed} first={round} rounds=1 cases={}", case.name()),
                )?;
                let end = end_of(&mut host, &name, Duration::from_secs(10))?;
                println!("{name}: {end:?}");
                let vm_entry_failed = |end: &String| {
                    end.contains("invalid guest state") || end.contains("VM-instruction error")
                };
                assert!(
                    !end.as_ref().is_some_and(vm_entry_failed),
                    "seed {seed}: {end:?}"
                );
                if end.is_none() {
                    stop(&mut host, &name)?;
                }
            }
        }
        finish(&mut host, daemon, before)
    })
}

/// Checks that programs of the host start with the FPU as it is after reset, whatever a guest has in it: rounded down, the
/// difference of equal numbers would be -0.
fn check_rounding(host: &mut Host) -> TestResult {
    // By its path, so that the shell starts it instead of being it.
    let script = r#"for i in $(seq 100); do /bin/busybox awk 'BEGIN { x = ARGC; printf "%g\n", x - x }'; done | sort -u"#;
    let seen = host.sh(script)?;
    assert_eq!(seen.trim(), "0");
    Ok(())
}

/// Checks that the neighbour still verifies itself, and that nothing is left when all guests have gone.
fn finish(host: &mut Host, daemon: u32, free_before: u64) -> TestResult {
    let seen = console(host, NEIGHBOUR)?.matches("pvmm-guest OK").count();
    wait_for(host, NEIGHBOUR, "pvmm-guest OK", seen + 2)?;
    stop(host, NEIGHBOUR)?;
    let list = host.sh("pvmmd list")?;
    assert!(!list.contains("running"), "{list}");
    host.sh(&format!("kill {daemon}"))?;
    host.wait(daemon, Duration::from_secs(60))?;
    host.sh("rmmod pvmm")?;
    let after = free_memory(host)?;
    assert!(
        after + MEMORY_TOLERANCE_KIB > free_before,
        "{free_before} KiB were free before, {after} KiB are now"
    );
    check_logs(&mut [host])
}
