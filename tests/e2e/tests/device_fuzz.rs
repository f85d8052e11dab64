//! Random requests to the device of a real kernel, by root and by a user who was given it: nothing is noticed, nothing is
//! left, and guests run all the time.

#![forbid(unsafe_code)]

use std::error::Error;
use std::time::{Duration, Instant};

use pvmm_e2e::guest::{check_logs, free_memory};
use pvmm_e2e::{from_environment, on_lab, TestResult};
use pvmm_lab::daemon::load_module;
use pvmm_lab::{Host, HostSpec};

/// The seed unless `PVMM_SEED` gives another: the same each time, so that a change of the code is what makes a difference.
const SEED: u64 = 20_261_121;
/// Rounds of each kind of process unless `PVMM_ROUNDS` says how many.
const ROUNDS: u64 = 32;
/// A user who is nobody in particular.
const USER: u32 = 1000;
/// What may differ between the host's free memory before and after, in KiB.
const MEMORY_TOLERANCE_KIB: u64 = 8 << 10;
/// How long a number of rounds may take.
const LIMIT: Duration = Duration::from_secs(1800);

/// What has come of a number of rounds.
struct Report(String);

impl Report {
    /// How often this was counted.
    fn count(&self, what: &str) -> u64 {
        self.0
            .lines()
            .filter_map(|line| line.strip_prefix(what)?.strip_prefix(' '))
            .filter_map(|count| count.parse::<u64>().ok())
            .sum()
    }

    /// Checks that the rounds of one kind of process got as far as they should: guests ran and came back.
    fn check(&self, rounds: u64) -> TestResult {
        self.at_least(&[
            ("CREATE_VM ok", rounds),
            ("SET_MEMORY_REGION ok", rounds),
            ("CREATE_VCPU ok", rounds),
            ("SET_VCPU_STATE ok", rounds),
            ("RUN ok", rounds),
            ("RUN EINTR", rounds / 8),
            ("exit 1", rounds / 8),
            ("round finished", rounds / 3),
            ("round killed", rounds / 16),
            ("round disturbed", rounds),
            ("round closed", rounds),
        ])
    }

    /// Checks that the rounds of all kinds of processes together came upon what is rare: most requests were right as well as
    /// wrong, and guests came back for several reasons.
    fn check_all(&self) -> TestResult {
        self.at_least(&[
            ("SET_VCPU_STATE EINVAL", 1),
            ("RUN EBUSY", 1),
            ("exit 5", 1),
            ("GET_CHIPSET_STATE ok", 1),
            ("SET_CHIPSET_STATE ok", 1),
            ("DIRTY_FETCH ok", 1),
            ("IRQ_LINE ok", 1),
            ("unknown-request ENOTTY", 1),
            ("mmap ENODEV", 1),
            ("round forked", 1),
        ])
    }

    fn at_least(&self, counts: &[(&str, u64)]) -> TestResult {
        for (what, least) in counts {
            if self.count(what) < *least {
                return Err(format!("{what:?}: at least {least} expected in:\n{}", self.0).into());
            }
        }
        Ok(())
    }
}

/// Makes random requests; the report, and whether nothing unexpected came of them.
fn fuzz(host: &mut Host, options: &str) -> Result<(Report, bool), Box<dyn Error>> {
    let begin = Instant::now();
    let line = format!("exec pvmm-ioctl {options}");
    let out = host.run_with(&["sh", "-c", &line], LIMIT, &mut |_| ())?;
    println!("pvmm-ioctl {options}: {} s", begin.elapsed().as_secs());
    println!("{}{}", out.stdout, out.stderr);
    let log = host.sh("dmesg | grep -v systemd | tail -n 60")?;
    if out.code != 0 && out.code != 1 {
        return Err(format!("it ended with {}: {}\n{log}", out.code, out.stderr).into());
    }
    Ok((Report(out.stdout), out.code == 0))
}

/// Arrays of the module in the kernel's virtual memory.
fn arrays(host: &mut Host) -> Result<String, Box<dyn Error>> {
    Ok(host.sh("grep '\\[pvmm\\]' /proc/vmallocinfo | wc -l")?)
}

#[test]
fn random_requests_leave_no_warning_and_nothing_behind() -> TestResult {
    let seed = from_environment("PVMM_SEED", SEED)?;
    let rounds = from_environment("PVMM_ROUNDS", ROUNDS)?;
    println!("PVMM_SEED={seed} PVMM_ROUNDS={rounds}");
    on_lab("device-fuzz", 1, |lab| {
        let mut host = lab.boot(&HostSpec::new("one").cpus(2))?;
        load_module(&mut host)?;

        // The permissions that the device comes with are root's.
        let (report, _) = fuzz(
            &mut host,
            &format!("--seed {seed} --rounds 1 --user {USER}"),
        )?;
        assert!(report.count("open EACCES") > 0, "{}", report.0);
        assert_eq!(report.count("open ok"), 0, "{}", report.0);

        // What the kernel keeps for good, it has after the first rounds.
        let (_, expected) = fuzz(&mut host, &format!("--seed {seed} --rounds {}", rounds / 4))?;
        assert!(expected, "seed {seed}");
        let (before, arrays_before) = (free_memory(&mut host)?, arrays(&mut host)?);
        let mut all = Report(String::new());
        for (name, first, options) in [
            ("root", 1000, String::new()),
            ("handed down", 2000, format!("--user {USER} --hand-down")),
            ("group", 3000, format!("--user {USER}")),
        ] {
            if name == "group" {
                host.sh(&format!("chgrp {USER} /dev/pvmm; chmod 660 /dev/pvmm"))?;
            }
            let options = format!("--seed {seed} --first {first} --rounds {rounds} {options}");
            let (report, expected) = fuzz(&mut host, &options)?;
            check_logs(&mut [&mut host])?;
            assert!(expected, "{name}, seed {seed}:\n{}", report.0);
            report.check(rounds)?;
            all.0 += &report.0;
        }
        all.check_all()?;
        assert_eq!(host.sh("cat /sys/module/pvmm/refcnt")?.trim(), "0");
        assert_eq!(arrays(&mut host)?, arrays_before);
        let after = free_memory(&mut host)?;
        println!("{before} KiB were free before, {after} KiB are now");
        assert!(after + MEMORY_TOLERANCE_KIB > before);

        // No Linux guest here: a Bochs of several CPUs forgets an exception's new RIP when a VM exit follows at once.
        host.sh("rmmod pvmm")?;
        check_logs(&mut [&mut host])
    })
}
