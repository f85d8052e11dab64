//! Which lines of a host's kernel log report that something is wrong with the kernel or the module.
//!
//! On Debian's kernel little is watched; the debug kernel (see [`crate::kernel::Kernel::debug`]) adds the reports of lockdep, KASAN,
//! UBSAN, kmemleak, debug objects and the allocation profile, and those that one of them has given up: a log without a report
//! says nothing then.

use std::time::Duration;

use crate::error::Result;
use crate::host::Host;

/// What a report's first lines contain.
const REPORTS: [&str; 18] = [
    // lockdep's, RCU's and many others begin with it; lib/bug.c
    "WARNING:",
    // KASAN, sleeping in atomic context, page tables, preemption, and lockdep out of room
    "BUG:",
    "Oops",
    "Call Trace",
    "general protection fault",
    "UBSAN:",
    "ODEBUG:",
    "possible recursive locking",
    "possible circular locking",
    "inconsistent lock state",
    "turning off the locking correctness validator",
    "new suspected memory leaks",
    "Kernel memory leak detector disabled",
    "Memory pool empty",
    // lib/alloc_tag.c: pages are beyond kmemleak's sight
    "allocated at module unload",
    "self-detected stall",
    "detected stalls",
    "blocked for more than",
];

/// Where kmemleak is told to look, and says what it found (Documentation/dev-tools/kmemleak.rst).
const KMEMLEAK: &str = "/sys/kernel/debug/kmemleak";

/// How long kmemleak may take: it looks at every word of the kernel's memory, on an emulated CPU that checks each access.
const SCAN_LIMIT: Duration = Duration::from_secs(1800);

/// The lines of a log that report something.
pub fn reports(log: &str) -> impl Iterator<Item = &str> {
    log.lines()
        .filter(|line| REPORTS.iter().any(|report| line.contains(report)))
}

/// What a host's kernel has noticed: all of its log if there is a report in it, and memory that nothing points to. `None` if
/// there is nothing.
///
/// The debug kernel takes a while to look for such memory: it reads all of its own twice, and pauses in between.
///
/// # Errors
/// Those of the host; [`crate::LabError::Failed`] if lockdep has given up.
pub fn noticed(host: &mut Host) -> Result<Option<String>> {
    let leaks = leaks(host)?;
    if host.is_debug() {
        host.sh("grep 'debug_locks: *1' /proc/lockdep_stats")?;
    }
    let log = host.sh("dmesg")?;
    let quiet = leaks.is_empty() && reports(&log).next().is_none();
    Ok((!quiet).then(|| format!("{log}\n{leaks}")))
}

/// What kmemleak finds now. What a scan finds may only just be changing hands, and what is younger than 5 s isn't
/// reported: two scans, and a pause.
fn leaks(host: &mut Host) -> Result<String> {
    if !host.is_debug() {
        return Ok(String::new());
    }
    let script =
        format!("set -e; echo scan > {KMEMLEAK}; sleep 6; echo scan > {KMEMLEAK}; cat {KMEMLEAK}");
    host.sh_with(&script, SCAN_LIMIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_watcher_of_the_debug_kernel_is_heard() {
        let log = "\
[    4.1] WARNING: possible circular locking dependency detected
[    4.1] BUG: KASAN: slab-use-after-free in foo+0x1/0x2
[    4.1] BUG: sleeping function called from invalid context at kernel/locking/mutex.c:1
[    4.1] BUG: using smp_processor_id() in preemptible [00000000] code: pvmmd/71
[    4.1] UBSAN: shift-out-of-bounds in lib/x.c:1:2
[    4.1] ODEBUG: free active (active state 0) object: timer_list hint: foo
[    4.1] kmemleak: 1 new suspected memory leaks (see /sys/kernel/debug/kmemleak)
[    4.1] kmod/linux/shim.c:118 module pvmm func:pvmm_page_alloc has 4096 allocated at module unload
[    4.1] INFO: task pvmmd:71 blocked for more than 120 seconds.";
        assert_eq!(reports(log).count(), log.lines().count());
    }

    #[test]
    fn what_a_kernel_says_when_all_is_well_is_no_report() {
        let log = "\
[    0.0] kasan: KernelAddressSanitizer initialized (generic)
[    0.0] Lock dependency validator: Copyright (c) 2006 Red Hat, Inc., Ingo Molnar
[    0.9] kmemleak: Kernel memory leak detector initialized (mem pool available: 31000)
[    9.9] pvmm: version 0.1.0, VT-x with EPT and page-modification logging
[   10.0] smpboot: CPU 1 is now offline";
        assert_eq!(reports(log).count(), 0);
    }
}
