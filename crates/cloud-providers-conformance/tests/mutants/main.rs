//! A suite that cannot fail is worth nothing: for each rule there is a provider that breaks it and whose case fails.

mod cloud;
mod provider;
#[path = "../support/mod.rs"]
mod support;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use cloud_providers::scripted::Lag;
use cloud_providers_conformance::{Harness, Outcome, RULES, Report};

use crate::{
    cloud::BrokenCloud,
    provider::{Break, Broken},
    support::{InMemory, suite},
};

/// The rule that is broken, the check that must see it, and how the account of the case is made.
struct Mutant {
    rule: &'static str,
    check: &'static str,
    account: fn() -> InMemory,
}

macro_rules! mutants {
    ($($rule:literal / $check:literal: $kind:ident($how:ident)),+ $(,)?) => {
        &[$(Mutant { rule: $rule, check: $check, account: || mutants!(@ $kind $how) }),+]
    };
    (@ provider $how:ident) => {
        InMemory::with(
            |world| Box::new(cloud_providers::scripted::ScriptedCloud::over(world)),
            |inner, world| Arc::new(Broken::new(inner, world, Break::$how)),
        )
    };
    (@ cloud $how:ident) => {
        InMemory::with(|world| Box::new(BrokenCloud::new(world, cloud::Break::$how)), |provider, _| provider)
    };
}

const MUTANTS: &[Mutant] = mutants![
    "create/idempotent" / "same-request-same-instance": provider(MakesAnother),
    "create/race-gives-one" / "two-processes-one-later": provider(IgnoresWhoIsAtWork),
    "create/lost-reply-gives-one" / "at-each-remote-call": provider(AsksAgainForAnother),
    "create/other-request-is-conflict" / "conflict-and-nothing-changes": provider(ReturnsWhatTheTokenHas),
    "create/foreign-name-is-conflict" / "untagged": provider(AdoptsByName),
    "create/failure-leaves-nothing" / "remote-call-fails": provider(LeavesADiskBehind),
    "create/cancel-leaves-nothing" / "at-each-record": provider(LeavesADiskWhenCancelled),
    "create/leftovers-are-told" / "removal-fails-too": provider(HidesLeftovers),
    "create/records-before-next-call" / "seen-from-outside": provider(RecordsAtTheEnd),
    "create/dropped-leaves-what-was-recorded" / "at-moments": provider(GoesOnUnrecorded),
    "create/confidential-is-never-downgraded" / "types-that-are-not-there": provider(Downgrades),
    "create/unsupported-is-refused" / "features-that-are-not-there": provider(PassesOverGpus),
    "create/limits-before-first-call" / "user-data": provider(LooksBeforeItChecks),
    "delete/missing-is-ok" / "never-existed": provider(DemandsThatItExists),
    "delete/no-leftovers" / "once": provider(DeletesTheInstanceOnly),
    "delete/repeat-finishes" / "instance-removed-by-hand": provider(BelievesThatMissingIsClean),
    "delete/volumes-stay" / "after-delete": provider(DeletesVolumes),
    "delete/foreign-is-refused" / "another-scope": provider(DeletesAnything),
    "delete/recorded-name-is-accepted" / "our-own-by-name": provider(KnowsNoNames),
    "list/one-entry-per-token" / "with-instance": provider(ListsPartsApart),
    "list/says-when-incomplete" / "a-part-is-missing": provider(AlwaysComplete),
    "list/says-what-runs" / "of-a-running-instance": provider(CallsEverythingStopped),
    "list/other-scopes-are-not-shown" / "other-scopes": provider(ListsEverything),
    "release/without-instance" / "cut-at-each-record": provider(ReleasesInstancesOnly),
    "release/nothing-is-ok" / "never-used": provider(ReleasesWhatExists),
    "release/other-tokens-stay" / "tokens-that-look-alike": provider(ReleasesTheScope),
    "tags/on-everything" / "of-a-whole-instance": provider(ForgetsTheHolder),
    "tags/plain-values" / "of-any-text": provider(DoesNotEncode),
    "tags/user-tags-keep-out" / "prefix-is-refused": cloud(TakesAnyTag),
    "teardown/instances-stay" / "with-an-instance": provider(TearsInstancesDown),
    "teardown/twice-is-ok" / "used-and-unused": provider(TearsDownOnce),
    "verify/changes-nothing" / "with-and-without-an-instance": provider(TriesOut),
    "console/last-plain-text" / "of-an-instance": provider(TellsWholeConsoles),
    "capabilities/tell-the-truth" / "multi-nic": provider(Boasts),
    "errors/say-what-to-do" / "failed-remote-calls": provider(SaysThatItFailed),
    "waits/bounded" / "create-with-a-call-that-hangs": provider(WaitsForEver),
    "waits/cancellable" / "create-with-a-call-that-hangs": provider(DoesNotListen),
    "secrets/never-shown" / "user-data": provider(LogsUserData),
    "config/no-globals" / "settings": cloud(SharesSettings),
    "config/strict" / "variables": cloud(PassesOverNonsense),
    "config/all-problems-together" / "every-bad-key-at-once": cloud(TellsTheFirst),
    // More ways to break some of the rules.
    "create/cancel-leaves-nothing" / "at-moments": provider(LooksAtTheDeadlineOnce),
    "create/records-before-next-call" / "nothing-happens-while-recording": provider(DoesNotWaitForTheRecord),
    "create/records-before-next-call" / "everything-is-recorded": provider(RecordsTheInstanceOnly),
    "create/failure-leaves-nothing" / "record-fails": provider(IgnoresTheRecord),
    "create/foreign-name-is-conflict" / "part-in-the-way": provider(RemovesWhatIsInTheWay),
    "delete/no-leftovers" / "once": provider(PromisesToDelete),
    "list/one-entry-per-token" / "with-instance": provider(ForgetsDisks),
    "list/says-when-incomplete" / "nothing-answers": provider(ListsNothingInstead),
    "tags/on-everything" / "of-a-whole-instance": provider(KnowsNoTime),
    "verify/changes-nothing" / "with-and-without-an-instance": provider(LooksAtNothing),
    "console/last-plain-text" / "of-an-instance": provider(ReadsWhatIsGone),
    "capabilities/tell-the-truth" / "optional-calls": provider(DeniesWhatItDoes),
    "errors/say-what-to-do" / "refusals-of-the-cloud": provider(NeverTriesAgain),
    "waits/bounded" / "noticed-soon": provider(ReturnsTooEarly),
    "waits/bounded" / "noticed-soon": provider(NoticesLate),
    "secrets/never-shown" / "credentials": cloud(LogsTheKey),
];

/// Runs cases on accounts, with all points of sweeps or with some of points and moments.
fn run(
    account: impl Fn() -> InMemory + Send + Sync + 'static,
    only: &[&str],
    sweeps: Option<(usize, usize)>,
) -> Report {
    let suite = suite().allowed_skips(include_str!("../conformance-skips.toml")).only(only.iter().copied());
    suite.run(move |_| {
        let mut account = account();
        if let Some((points, moments)) = sweeps {
            account.bounds = account.bounds.with_sweeps(points, moments);
        }
        async { Ok(Arc::new(account) as Arc<dyn Harness>) }
    })
}

#[test]
fn every_rule_has_a_mutant() {
    let broken: BTreeSet<&str> = MUTANTS.iter().map(|m| m.rule).collect();
    let rules: BTreeSet<&str> = RULES.iter().copied().collect();
    assert_eq!(broken, rules);
}

#[test]
fn the_double_itself_keeps_every_rule() {
    let report = run(InMemory::new, &[], None);
    assert!(report.is_green(), "{}", report.table());
    assert_eq!(report.counts(), (RULES.len(), 0, 0), "nothing is skipped");
}

/// Makes an account whose lists have small pages and show changes late, as those of clouds do.
fn with_late_lists(lag: Lag) -> InMemory {
    let mut account = InMemory::new();
    account.page = 3;
    account.world.set_page_size(account.page);
    account.world.set_lag(lag);
    // An undo looks until its own changes must show.
    account.bounds = account.bounds.with_cancel(Duration::from_secs(20));
    account
}

#[test]
fn the_double_keeps_every_rule_although_its_lists_are_late() {
    for lag in [Lag::calls(3), Lag::time(Duration::from_secs(7))] {
        let report = run(move || with_late_lists(lag), &[], Some((100, 5)));
        assert!(report.is_green(), "{lag:?}: {}", report.table());
    }
}

#[test]
fn the_case_of_a_broken_rule_fails_at_the_check_that_is_meant_for_it() {
    let mut problems = Vec::new();
    for mutant in MUTANTS {
        let report = run(mutant.account, &[mutant.rule], None);
        let case = report.cases.iter().find(|c| c.id == mutant.rule).expect("the rule has a case");
        let seen = match &case.outcome {
            Outcome::Failed(checks) => checks.iter().any(|c| c.starts_with(&format!("{}: ", mutant.check))),
            _ => false,
        };
        if !seen || report.is_green() {
            problems.push(format!(
                "{} is broken, and {} does not see it:\n{}",
                mutant.rule,
                mutant.check,
                report.table()
            ));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn most_cases_pass_whatever_single_rule_is_broken() {
    // Rules touch each other, but a case that fails for everything would tell nothing.
    let mut failures: std::collections::BTreeMap<&str, usize> = std::collections::BTreeMap::new();
    for mutant in MUTANTS {
        let report = run(mutant.account, &[], Some((4, 3)));
        let failed: Vec<&str> = report.failed().collect();
        assert!(failed.len() < RULES.len() / 2, "{} is broken, and {failed:?} fail", mutant.rule);
        for id in failed {
            *failures.entry(id).or_default() += 1;
        }
    }
    let most = failures.iter().max_by_key(|(_, count)| **count).expect("something failed");
    assert!(*most.1 < MUTANTS.len() / 2, "{} fails for {} of {} mutants", most.0, most.1, MUTANTS.len());
}
