//! What the runner makes of cases that hang, panic or are skipped.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use cloud_providers::{
    Cloud, CreateRequest, Provider, async_trait,
    scripted::{ScriptedCloud, World},
};
use cloud_providers_conformance::{Found, Harness, Obstacle, Offer, Outcome, Report, Suite};

/// What goes wrong in an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    None,
    HangsInOneCase,
    BlocksInOneCase,
    PanicsInOneCase,
    LeavesSomething,
}

struct Account {
    world: World,
    trouble: Trouble,
    cleaned: Arc<AtomicBool>,
}

#[async_trait]
impl Harness for Account {
    fn cloud(&self) -> Box<dyn Cloud> {
        Box::new(ScriptedCloud::over(&self.world))
    }

    fn variables(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    fn request(&self, blank: CreateRequest) -> CreateRequest {
        blank.with_user_data("#cloud-config\n")
    }

    async fn provider(&self) -> Offer<Arc<dyn Provider>> {
        match self.trouble {
            Trouble::HangsInOneCase => std::future::pending().await,
            // Longer than the test; the thread ends with the program.
            Trouble::BlocksInOneCase => std::thread::sleep(Duration::from_secs(10_000)),
            Trouble::PanicsInOneCase => panic!("as the test wants"),
            Trouble::None | Trouble::LeavesSomething => {}
        }
        Ok(self.cloud().new_provider().await?)
    }

    async fn leftovers(&self) -> Offer<Vec<Found>> {
        Ok(self.world.resources().into_iter().map(|r| Found::new(r.resource).with_tags(r.tags)).collect())
    }

    async fn clean_up(&self) -> Offer<()> {
        self.cleaned.store(true, Ordering::SeqCst);
        match self.trouble {
            Trouble::LeavesSomething => Err(Obstacle::failed("a lease is left")),
            _ => Ok(()),
        }
    }
}

/// The case in which the trouble is.
const TROUBLED: &str = "teardown/twice-is-ok";
/// Another one.
const OTHER: &str = "teardown/instances-stay";

fn run(trouble: Trouble) -> (Report, bool) {
    let cleaned = Arc::new(AtomicBool::new(false));
    let seen = cleaned.clone();
    let report =
        Suite::new("scripted").case_limit(Duration::from_secs(2)).only([TROUBLED, OTHER]).run(move |case| {
            let account = match case {
                TROUBLED => Account { world: World::new(), trouble, cleaned: seen.clone() },
                _ => Account { world: World::new(), trouble: Trouble::None, cleaned: Arc::default() },
            };
            async { Ok(Arc::new(account) as Arc<dyn Harness>) }
        });
    (report, cleaned.load(Ordering::SeqCst))
}

/// Checks that the troubled case failed with a text and that the other one passed all the same.
fn only_one_failed(report: &Report, text: &str) {
    assert!(!report.is_green());
    assert_eq!(report.failed().collect::<Vec<_>>(), [TROUBLED], "{}", report.table());
    assert!(report.table().contains(text), "{}", report.table());
    assert!(report.cases.iter().any(|c| c.id == OTHER && c.outcome == Outcome::Passed));
}

#[test]
fn without_trouble_both_cases_pass() {
    let (report, cleaned) = run(Trouble::None);
    assert!(report.is_green() && cleaned, "{}", report.table());
    assert_eq!(report.counts(), (2, 0, 0));
    assert!(report.summary().starts_with("conformance scripted: 2 passed, 0 skipped, 0 failed"));
}

#[test]
fn a_case_that_hangs_fails_and_is_cleaned_up() {
    let (report, cleaned) = run(Trouble::HangsInOneCase);
    only_one_failed(&report, "used-and-unused: did not end within 2s");
    assert!(cleaned);
}

#[test]
fn a_case_that_blocks_its_thread_fails_and_is_left_behind() {
    // Each case has a thread of its own, so the other one is not blocked.
    let (report, _) = run(Trouble::BlocksInOneCase);
    only_one_failed(&report, "did not end within 2s");
}

#[test]
fn a_case_that_panics_fails_and_is_cleaned_up() {
    let (report, cleaned) = run(Trouble::PanicsInOneCase);
    only_one_failed(&report, "panicked: as the test wants");
    assert!(cleaned);
}

#[test]
fn an_account_that_cannot_be_cleaned_up_fails_its_case() {
    let (report, _) = run(Trouble::LeavesSomething);
    only_one_failed(&report, "a lease is left");
}

fn plain(skips: &str, words: &[&str]) -> Report {
    Suite::new("scripted").allowed_skips(skips).only(words.iter().copied()).run(|_| async {
        let account = Account { world: World::new(), trouble: Trouble::None, cleaned: Arc::default() };
        Ok(Arc::new(account) as Arc<dyn Harness>)
    })
}

/// A case that this account cannot serve, since it offers no volumes.
const SKIPPED: &str = "delete/volumes-stay";

#[test]
fn a_skip_that_is_not_listed_fails_the_run_and_names_the_capability() {
    let report = plain("", &[SKIPPED]);
    assert!(!report.is_green() && report.counts() == (0, 1, 0), "{}", report.table());
    assert!(
        report.problems[0].contains(SKIPPED) && report.problems[0].contains("volumes"),
        "{:?}",
        report.problems
    );
}

#[test]
fn a_listed_skip_is_allowed_and_shown_with_its_reason() {
    let report = plain("\"delete/volumes-stay\" = \"no volumes here\"", &[SKIPPED]);
    assert!(report.is_green(), "{}", report.table());
    assert!(report.table().contains("needs volumes (no volumes here)"), "{}", report.table());
}

#[test]
fn a_listed_skip_that_did_not_happen_fails_the_run() {
    let report = plain("\"teardown/twice-is-ok\" = \"no reason\"", &[TROUBLED]);
    assert!(!report.is_green() && report.counts() == (1, 0, 0));
    assert!(report.problems[0].contains(TROUBLED), "{:?}", report.problems);
}

#[test]
fn a_listed_skip_of_a_case_that_failed_is_not_judged() {
    let skips = format!("{SKIPPED:?} = \"no volumes here\"");
    let report = Suite::new("scripted")
        .allowed_skips(skips)
        .only([SKIPPED])
        .run(|_| async { Err::<Arc<dyn Harness>, _>(Obstacle::failed("no room")) });
    assert!(!report.is_green() && report.problems.is_empty(), "{:?}", report.problems);
}

#[test]
fn a_check_of_a_case_is_skipped_by_its_own_name() {
    let id = "delete/foreign-is-refused";
    let report = plain("", &[id]);
    let text = report.problems.join("\n");
    assert!(
        report.counts() == (1, 0, 0)
            && text.contains("#without-tags")
            && text.contains("#part-attached-by-hand")
    );
}

#[test]
fn a_run_without_cases_or_with_a_bad_list_fails() {
    let none = plain("", &["no-such-case"]);
    assert!(!none.is_green() && none.problems == ["no case ran"]);
    let unknown = plain("\"no/rule\" = \"x\"", &[TROUBLED]);
    assert!(!unknown.is_green() && unknown.problems[0].contains("no/rule"));
}

#[test]
fn cases_may_run_at_once() {
    let suite = Suite::new("scripted").only(["teardown/", "config/strict"]).at_once(3);
    let report = suite.run(|_| async {
        let account = Account { world: World::new(), trouble: Trouble::None, cleaned: Arc::default() };
        Ok(Arc::new(account) as Arc<dyn Harness>)
    });
    assert!(report.is_green() && report.counts() == (3, 0, 0), "{}", report.table());
    assert_eq!(report.cases[0].id, OTHER, "the order is that of the rules");
}
