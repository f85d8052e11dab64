// SPDX-License-Identifier: GPL-2.0
//! The conformance suite itself under test: the simulated host passes it, and each host that breaks one contract fails
//! the check of that contract and no other.
#![deny(unsafe_code)]

mod defect;
mod defects;
mod host;

use defect::Defect;
use host::HostWith;
use pvmm_hostabi::conformance::{self, Failure, Fixture, Summary, USER_PAGES};
use pvmm_hostabi::sim::{Machine, SimAddressSpace, SimHost};
use pvmm_hostabi::{Host, Hva};
use std::collections::BTreeSet;

/// What the suite needs, on a machine and a process of the test's own.
fn fixture() -> Fixture {
    let space = SimAddressSpace::new();
    space.adopt();
    Fixture {
        tsc: SimHost::rdtsc,
        live: || {
            let live = Machine::current().live();
            live.pages + live.words
        },
        user: space.map(USER_PAGES),
    }
}

/// Runs the suite on `H`: the failures by name of their contract.
fn failures<H: Host>(fixture: &Fixture) -> (Vec<(&'static str, Failure)>, Summary) {
    let mut failures = Vec::new();
    let summary = conformance::run::<H>(fixture, &mut |name, result| {
        if let Err(failure) = result {
            failures.push((name, failure));
        }
    });
    (failures, summary)
}

fn names<H: Host>() -> Vec<&'static str> {
    conformance::contracts::<H>()
        .map(|contract| contract.name)
        .collect()
}

#[test]
fn the_simulated_host_keeps_every_contract_on_any_number_of_cpus() {
    for cpus in [1, 2, 4] {
        let _machine = Machine::new(cpus).enter();
        let before = Machine::current().live();
        let (failures, summary) = failures::<SimHost>(&fixture());
        assert_eq!(failures, [], "{cpus} CPUs");
        assert_eq!(summary.passed as usize, names::<SimHost>().len());
        assert_eq!(
            Machine::current().live(),
            before,
            "the suite leaves nothing behind"
        );
    }
}

#[test]
fn the_suite_can_be_run_again_on_the_same_memory() {
    let fixture = fixture();
    for _ in 0..2 {
        assert_eq!(failures::<SimHost>(&fixture).0, []);
    }
}

#[test]
fn the_list_is_not_empty_and_each_name_is_its_own() {
    let names = names::<SimHost>();
    assert!(names.len() > 40, "{} contracts", names.len());
    let distinct: BTreeSet<_> = names.iter().collect();
    assert_eq!(distinct.len(), names.len());
}

#[test]
fn a_fixture_without_user_memory_fails_what_needs_it() {
    let mut fixture = fixture();
    fixture.user.end = Hva(fixture.user.start.0);
    let (failures, _) = failures::<SimHost>(&fixture);
    let failed: Vec<_> = failures.iter().map(|(name, _)| *name).collect();
    assert_eq!(
        failed,
        [
            "a guest read is all or an error",
            "an unmapped address is refused, not only logged",
            "a page resolved for writing is writable and keeps its frame until told",
            "a dropped watch hears nothing",
            "a guest read returns what a guest write stored",
            "a guest write beyond the mapping is an error",
            "what was copied out is copied in",
            "a copy in is all or a fault",
            "a copy out beyond the mapping faults",
        ]
    );
    for (_, failure) in failures {
        assert!(failure.what.contains("fixture"), "{failure}");
    }
}

/// Runs the suite on a host with the defect `D`; the contracts that it must fail are `D`'s own.
fn is_caught<D: Defect>() {
    assert!(!D::BREAKS.is_empty());
    let all = names::<HostWith<D>>();
    for name in D::BREAKS {
        assert!(all.contains(name), "there is no contract '{name}'");
    }
    let (failures, summary) = failures::<HostWith<D>>(&fixture());
    let failed: Vec<_> = failures.iter().map(|(name, _)| *name).collect();
    assert_eq!(failed, D::BREAKS, "{failures:#x?}");
    assert_eq!(summary.failed as usize, D::BREAKS.len());
    assert_eq!(summary.passed as usize, all.len() - D::BREAKS.len());
}

/// One test per defect, and the list of what they break.
macro_rules! defects {
    ($($test:ident: $defect:ident,)*) => {
        $(
            #[test]
            fn $test() {
                is_caught::<defects::$defect>();
            }
        )*

        /// The contracts that some defect breaks.
        fn broken() -> BTreeSet<&'static str> {
            [$(defects::$defect::BREAKS),*].into_iter().flatten().copied().collect()
        }
    };
}

defects! {
    // The five of HAXM's host layers.
    a_host_that_does_not_zero_pages_is_caught: PagesAreDirty,
    a_host_that_takes_a_partial_copy_for_success_is_caught: PartialReadSucceeds,
    a_host_that_only_logs_a_refusal_is_caught: UnmappedIsOnlyLogged,
    a_host_that_frees_the_wrong_page_is_caught: WrongPageIsFreed,
    a_host_that_leaks_pages_on_purpose_is_caught: PagesLeak,
    // Memory of the monitor.
    a_host_that_leaks_words_is_caught: WordsLeak,
    a_host_whose_pages_are_not_aligned_is_caught: PagesAreMisaligned,
    a_host_whose_pages_move_is_caught: PagesMove,
    a_host_that_gives_all_pages_one_address_is_caught: PagesAlias,
    a_host_that_does_not_zero_words_is_caught: WordsAreDirty,
    a_host_that_rounds_words_up_is_caught: WordsAreTooMany,
    a_host_without_large_arrays_is_caught: WordsAreSmall,
    a_host_whose_sizes_wrap_is_caught: WordsWrap,
    a_host_that_leaks_boxes_is_caught: BoxesLeak,
    a_host_that_leaks_shared_values_is_caught: SharedLeak,
    // Memory of the process.
    a_host_that_does_not_know_its_caller_is_caught: NoSpaceIsCurrent,
    a_host_that_resolves_kernel_addresses_is_caught: KernelResolves,
    a_host_that_hides_read_only_frames_is_caught: ResolvedReadOnly,
    a_host_that_moves_a_page_without_a_word_is_caught: WatchIsDeaf,
    a_host_that_starts_but_never_ends_an_invalidation_is_caught: InvalidationNeverEnds,
    a_host_whose_watch_outlives_its_drop_is_caught: WatchOutlivesDrop,
    a_host_that_loses_guest_writes_is_caught: GuestWritesAreLost,
    a_host_that_writes_partly_and_is_content_is_caught: PartialWriteSucceeds,
    a_host_that_copies_too_little_out_is_caught: CopyOutIsShort,
    a_host_that_takes_a_partial_copy_in_for_success_is_caught: PartialCopyInSucceeds,
    a_host_that_takes_a_partial_copy_out_for_success_is_caught: PartialCopyOutSucceeds,
    a_host_that_copies_from_the_kernel_is_caught: KernelIsCopied,
    // CPUs.
    a_host_whose_threads_move_with_interrupts_off_is_caught: CurrentWanders,
    a_host_whose_nested_sections_end_the_outer_is_caught: InnerSectionEndsOuter,
    a_host_that_calls_twice_on_a_cpu_is_caught: RunsTwice,
    a_host_that_leaves_a_cpu_out_is_caught: LeavesOneOut,
    a_host_that_runs_with_interrupts_on_is_caught: RunsWithInterruptsOn,
    a_host_that_runs_one_after_the_other_is_caught: RunsInTurn,
    a_host_whose_kick_waits_is_caught: KickWaits,
    a_host_with_endless_work_is_caught: WorkIsEndless,
    a_host_whose_fpu_turns_interrupts_on_is_caught: FpuTurnsInterruptsOn,
    // Locks and waiting.
    a_host_whose_spin_lock_turns_interrupts_on_is_caught: SpinLockTurnsInterruptsOn,
    a_host_whose_try_lock_never_succeeds_is_caught: TryLockFails,
    a_host_whose_locks_leak_is_caught: LocksLeak,
    a_host_that_sleeps_before_it_asks_is_caught: SleepsFirst,
    a_host_whose_waits_end_early_is_caught: WaitsAreShort,
    a_host_that_loses_wakes_is_caught: WakesAreLost,
    // Time.
    a_host_with_an_unstable_tsc_is_caught: TscIsUnstable,
    a_host_whose_rate_differs_by_cpu_is_caught: RateDiffersByCpu,
    a_host_that_tells_the_rate_in_hz_is_caught: RateIsInHz,
    a_host_whose_delays_are_short_is_caught: DelaysAreShort,
    // Devices.
    a_host_that_claims_ports_twice_is_caught: PortsAreShared,
    a_host_that_never_releases_ports_is_caught: PortsStayClaimed,
    a_host_that_claims_ports_that_do_not_exist_is_caught: PortsWrap,
    a_host_that_reads_beside_its_ports_is_caught: PortsLeakOut,
    a_host_that_claims_any_line_is_caught: AnyLineIsClaimed,
    a_host_that_keeps_the_sink_of_a_refused_claim_is_caught: RefusedSinkStays,
    a_host_that_claims_a_line_twice_is_caught: LinesAreShared,
    // VT-x and the log.
    a_host_without_vt_x_is_caught: VmxIsAbsent,
    a_host_that_enters_only_once_is_caught: EntersOnce,
    a_host_that_drops_messages_is_caught: LogIsMute,
}

/// Contracts that no host in safe Rust can break: it would have to make two references to one value, and to call a
/// function after it had given its borrow back.
const UNBREAKABLE: [&str; 2] = [
    "a spin lock has one holder at a time",
    "run_on_all waits for all",
];

#[test]
fn every_check_has_been_seen_failing() {
    let broken = broken();
    let unproven: Vec<_> = names::<SimHost>()
        .into_iter()
        .filter(|name| !broken.contains(name) && !UNBREAKABLE.contains(name))
        .collect();
    assert!(
        unproven.is_empty(),
        "no defect shows that these can fail: {unproven:#?}"
    );
}
