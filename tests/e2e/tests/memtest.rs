//! A guest that is no Linux: Debian's Memtest86+, moved in the middle of its test.

#![forbid(unsafe_code)]

use pvmm_e2e::guest::{check_logs, migrate, serve, wait_for};
use pvmm_e2e::{on_lab, TestResult};
use pvmm_lab::HostSpec;

/// Serial console, and none of what looks for hardware beside CPU and memory or waits for a key.
const COMMAND_LINE: &str =
    "console=ttyS0,115200 keyboard=legacy nopause nobench nosm nomch nosmp nobigstatus";

#[test]
fn memtest86_moves_in_the_middle_of_its_test_and_finds_no_error() -> TestResult {
    on_lab("memtest", 2, |lab| {
        let (mut one, mut two) = lab.boot_two(&HostSpec::new("one"), &HostSpec::new("two"))?;
        serve(&mut one)?;
        serve(&mut two)?;
        one.sh(&format!(
            "pvmmd run --name m --kernel /guest/memtest --memory 8M --cmdline '{COMMAND_LINE}'"
        ))?;
        // Test 6 writes patterns all over memory and checks that they are still there.
        wait_for(&mut one, "m", "#6  [", 1)?;
        // It writes faster than the link carries away.
        let report = migrate(&mut one, &two, "m", "--mode stopcopy")?;
        eprintln!("{report}");
        let screen = wait_for(&mut two, "m", "Pass:  1 ", 1)?;
        let errors: Vec<&str> = screen
            .match_indices("Errors:")
            .filter_map(|(at, word)| screen[at + word.len()..].split_whitespace().next())
            .collect();
        assert!(!errors.is_empty());
        assert!(errors.iter().all(|count| *count == "0"), "{errors:?}");
        assert!(!screen.contains("Failing"), "{screen}");
        check_logs(&mut [&mut one, &mut two])
    })
}
