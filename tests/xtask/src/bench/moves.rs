//! Where the time of a move goes, by the guest's memory: between two daemons on one host, so that no network and no other
//! machine's clock counts, and both sides' work does.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use pvmm_guest::bare::load;
use pvmm_lab::image::GuestFile;
use pvmm_lab::progress::Step;
use pvmm_lab::{daemon, Host, HostSpec, Lab};

use super::results::Results;
use crate::error::{file, Error, Result};
use crate::paths;

/// Sizes of guests in MiB.
const SIZES: [u64; 3] = [64, 256, 512];
/// What the guests do: name, and whether they rewrite memory.
const LOADS: [(&str, bool); 2] = [("idle", false), ("busy", true)];
/// As `pvmmd migrate --mode` has them.
const MODES: [&str; 2] = ["precopy", "stopcopy"];
/// Parts of a move's breakdown, as `pvmmd migrate --json` names them.
const PARTS: [&str; 6] = [
    "memory",
    "cpu-state",
    "device-state",
    "other",
    "total",
    "downtime",
];
/// The host's memory in MB: twice the largest guest's, and what its own system takes.
const HOST_MEMORY: u32 = 1400;
/// Control socket of the daemon that takes the guests.
const SECOND: &str = "/run/pvmm/second.sock";
/// Where it does.
const URL: &str = "tcp:127.0.0.1:7100";
/// How long a move may take, in real time.
const LIMIT: Duration = Duration::from_secs(900);
/// How long a guest may take to fill its memory, in real time.
const FILL_LIMIT: Duration = Duration::from_secs(300);

fn kernel_path(size: u64, load: &str) -> String {
    format!("/guest/load-{size}-{load}")
}

/// The guests' kernels, as files for the host.
pub fn kernels() -> Result<Vec<GuestFile>> {
    let folder = paths::lab().join("loads");
    fs::create_dir_all(&folder).map_err(file("can't make", &folder))?;
    let mut files = Vec::new();
    for size in SIZES {
        for (load, busy) in LOADS {
            let source: PathBuf = folder.join(format!("{size}-{load}"));
            fs::write(&source, load::kernel(size << 20, busy))
                .map_err(file("can't write", &source))?;
            let path = kernel_path(size, load);
            files.push(GuestFile { path, source });
        }
    }
    Ok(files)
}

/// Boots a host and moves guests on it.
pub fn measure(results: &mut Results) -> Result<()> {
    let lab = Lab::new("bench-moves")?;
    let step = Step::begin(
        "booting a machine with VT-x and memory for two large guests",
        "1 min",
    );
    let mut host = lab.boot(&HostSpec::new("bench").memory_mb(HOST_MEMORY))?;
    daemon::load_module(&mut host)?;
    daemon::serve(&mut host, "")?;
    host.sh(&format!(
        "ip link set lo up; (pvmmd --socket {SECOND} serve --listen {URL} > /tmp/second.log 2>&1 &); \
         for i in $(seq 600); do pvmmd --socket {SECOND} version > /dev/null 2>&1 && exit 0; usleep 50000; done; \
         cat /tmp/second.log; exit 1"
    ))?;
    step.done();
    for size in SIZES {
        for (load, _) in LOADS {
            for mode in MODES {
                let what = format!("{size} MiB, {load}, {mode}");
                let step = Step::begin(format!("moving {what}"), "20 s");
                move_one(&mut host, size, load, mode, &what, results)?;
                step.done();
            }
        }
    }
    lab.finish();
    Ok(())
}

fn move_one(
    host: &mut Host,
    size: u64,
    load: &str,
    mode: &str,
    what: &str,
    results: &mut Results,
) -> Result<()> {
    let name = format!("{load}-{size}-{mode}");
    host.sh(&format!(
        "pvmmd run --name {name} --kernel {} --memory {size}M",
        kernel_path(size, load)
    ))?;
    daemon::wait_for(host, &name, load::FULL, 1, FILL_LIMIT)?;
    let command = format!("pvmmd migrate {name} {URL} --mode {mode} --json");
    let output = host
        .run_with(&["sh", "-c", &command], LIMIT, &mut |_| ())?
        .stdout;
    host.sh(&format!("pvmmd --socket {SECOND} stop {name}"))?;
    for (part, milliseconds) in breakdown(&output)? {
        results.add(&format!("ms of a move, {what}"), part, milliseconds);
    }
    Ok(())
}

/// The parts of a completed move's breakdown in milliseconds, from what `pvmmd migrate --json` has printed.
fn breakdown(output: &str) -> Result<Vec<(&'static str, f64)>> {
    let failed = || Error::Usage(format!("a move did not come to its end:\n{output}"));
    let last = output.lines().last().ok_or_else(failed)?;
    let message: serde_json::Value = serde_json::from_str(last).map_err(|_| failed())?;
    let breakdown = &message["return"]["job"]["breakdown"];
    PARTS
        .into_iter()
        .map(|part| Some((part, breakdown[part].as_f64()?)))
        .collect::<Option<_>>()
        .ok_or_else(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_breakdown_is_in_the_last_line() {
        let last = r#"{"return":{"job":{"status":"completed","breakdown":{"memory":1.5,"cpu-state":2,"device-state":3,"other":4,"total":10.5,"downtime":6}}}}"#;
        let parts = breakdown(&format!("{{\"event\":1}}\n{last}\n")).expect("it is complete");
        assert_eq!(parts.len(), PARTS.len());
        assert_eq!(parts[0], ("memory", 1.5));
        let error = breakdown("{\"error\":{\"desc\":\"no room\"}}\n").expect_err("it failed");
        assert!(error.to_string().contains("no room"), "{error}");
    }
}
