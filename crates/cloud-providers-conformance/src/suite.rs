//! Runs the cases.

use std::{
    future::Future,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use tokio::{
    runtime::{Builder, Runtime},
    sync::oneshot,
};

use crate::{
    CaseReport, Harness, Offer, Outcome, RULES, Report,
    cases::{CASES, Case},
    context::{Checks, Context},
    logs,
    skips::Skips,
};

/// How long a case that took too long may clean up.
const GRACE: Duration = Duration::from_secs(60);

type MakeRuntime = dyn Fn() -> io::Result<Runtime> + Send + Sync;

/// The suite, set up for one provider.
///
/// Every case runs on a thread and a runtime of its own, in an account of its own. The thread is started from the
/// calling one, so it is in the same namespaces.
#[derive(Clone)]
pub struct Suite {
    provider: String,
    skips: String,
    words: Vec<String>,
    exact: bool,
    at_once: usize,
    limit: Duration,
    runtime: Arc<MakeRuntime>,
}

impl std::fmt::Debug for Suite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Suite").field("provider", &self.provider).field("words", &self.words).finish()
    }
}

impl Suite {
    /// Sets up the suite for the provider of this name.
    pub fn new(provider: impl Into<String>) -> Self {
        Self {
            provider: provider.into(),
            skips: String::new(),
            words: Vec::new(),
            exact: false,
            at_once: 1,
            limit: Duration::from_secs(300),
            runtime: Arc::new(|| Builder::new_multi_thread().worker_threads(2).enable_all().build()),
        }
    }

    /// Sets what may be skipped: TOML with `"<rule>" = "<reason>"` and `"<rule>#<check>" = "<reason>"`.
    ///
    /// A skip that is not listed fails the run, and so does one that is listed and did not happen.
    #[must_use]
    pub fn allowed_skips(mut self, toml: impl Into<String>) -> Self {
        self.skips = toml.into();
        self
    }

    /// Runs only cases whose id contains one of the words.
    #[must_use]
    pub fn only<W: Into<String>>(mut self, words: impl IntoIterator<Item = W>) -> Self {
        self.words = words.into_iter().map(Into::into).collect();
        self
    }

    /// Runs up to `cases` at the same time. The default is one after the other.
    #[must_use]
    pub fn at_once(mut self, cases: usize) -> Self {
        self.at_once = cases.max(1);
        self
    }

    /// Sets the time after which a case has failed, by the clock on the wall. The next case begins then.
    #[must_use]
    pub fn case_limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Sets how the runtime of a case is made, such as one whose clock is paused.
    #[must_use]
    pub fn runtime(mut self, make: impl Fn() -> io::Result<Runtime> + Send + Sync + 'static) -> Self {
        self.runtime = Arc::new(make);
        self
    }

    /// Runs as the `main` of a test program (`harness = false`): reads the words of the command line, prints a line for
    /// each case as it ends and the counts at the end.
    ///
    /// `begin` makes the account of the case whose id it is given.
    pub fn main<F, Fut>(mut self, begin: F) -> ExitCode
    where
        F: Fn(&'static str) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Offer<Arc<dyn Harness>>>,
    {
        let args: Vec<String> = std::env::args().skip(1).collect();
        self.words.extend(args.iter().filter(|a| !a.starts_with('-')).cloned());
        self.exact = args.iter().any(|a| a == "--exact");
        if args.iter().any(|a| a == "--list") {
            self.chosen().iter().for_each(|case| println!("{}: test", case.id));
            return ExitCode::SUCCESS;
        }
        println!("\nrunning {} cases of the conformance suite on {}", self.chosen().len(), self.provider);
        let report = self.run_with(begin, |case| print!("{}", case.lines()));
        report.problems.iter().for_each(|problem| println!("problem: {problem}"));
        println!("\n{}", report.summary());
        let (passed, _, failed) = report.counts();
        let word = if report.is_green() { "ok" } else { "FAILED" };
        println!("test result: {word}. {passed} passed; {failed} failed; 0 ignored\n");
        if report.is_green() { ExitCode::SUCCESS } else { ExitCode::from(101) }
    }

    /// Runs the chosen cases and returns what they found.
    pub fn run<F, Fut>(&self, begin: F) -> Report
    where
        F: Fn(&'static str) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Offer<Arc<dyn Harness>>>,
    {
        self.run_with(begin, |_| ())
    }

    fn chosen(&self) -> Vec<&'static Case> {
        let wanted = |case: &&Case| {
            self.words.is_empty()
                || self
                    .words
                    .iter()
                    .any(|w| if self.exact { case.id == w } else { case.id.contains(w.as_str()) })
        };
        CASES.iter().filter(wanted).collect()
    }

    fn run_with<F, Fut>(&self, begin: F, seen: impl Fn(&CaseReport) + Sync) -> Report
    where
        F: Fn(&'static str) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Offer<Arc<dyn Harness>>>,
    {
        logs::catch();
        let mut problems = Vec::new();
        let skips = Skips::parse(&self.skips, RULES).unwrap_or_else(|error| {
            problems.push(error.to_string());
            Skips::default()
        });
        let (begin, chosen, next) = (Arc::new(begin), self.chosen(), AtomicUsize::new(0));
        let done: Mutex<Vec<(usize, CaseReport)>> = Mutex::default();
        thread::scope(|scope| {
            for _ in 0..self.at_once {
                scope.spawn(|| {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let Some(case) = chosen.get(index) else { return };
                        let report = self.run_case(case, begin.clone(), &skips);
                        let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                        seen(&report);
                        done.push((index, report));
                    }
                });
            }
        });
        let mut cases = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        cases.sort_by_key(|(index, _)| *index);
        let cases: Vec<CaseReport> = cases.into_iter().map(|(_, report)| report).collect();
        problems.extend(judge(&cases, &skips));
        Report { provider: self.provider.clone(), cases, problems }
    }

    /// Runs one case on a thread of its own. One that does not end is cut off and cleaned up; one that blocks its thread
    /// is left behind on it.
    fn run_case<F, Fut>(&self, case: &'static Case, begin: Arc<F>, skips: &Skips) -> CaseReport
    where
        F: Fn(&'static str) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Offer<Arc<dyn Harness>>>,
    {
        let (send, receive) = mpsc::channel();
        let (expire, expired) = oneshot::channel();
        let (runtime, checks) = (self.runtime.clone(), Arc::new(Checks::default()));
        let (start, inside) = (Instant::now(), checks.clone());
        let work = move || {
            let result = catch_unwind(AssertUnwindSafe(|| {
                let runtime = runtime().map_err(|e| format!("no runtime: {e}"))?;
                let done = runtime.block_on(work_on(case, &*begin, inside, expired));
                // Work that a provider left on blocking threads is not waited for.
                runtime.shutdown_background();
                done
            }));
            let result = result.unwrap_or_else(|panic| Err(panic_text(&*panic)));
            // Nobody listens when the case took too long.
            let _ = send.send(result);
        };
        let result = match thread::Builder::new().name(case.id.into()).spawn(work) {
            Err(error) => Err(format!("no thread: {error}")),
            Ok(_) => receive.recv_timeout(self.limit).unwrap_or_else(|_| {
                let late = format!("did not end within {:?}", self.limit);
                // The case hears it unless it blocks its thread.
                let _ = expire.send(());
                let cleaned = receive.recv_timeout(self.limit.min(GRACE));
                Err(match cleaned {
                    Ok(Ok(())) => late,
                    Ok(Err(error)) => format!("{late}: {error}"),
                    Err(_) => format!("{late} and blocks its thread: what it made may still be there"),
                })
            }),
        };
        checks.report(case.id, result.err(), skips, start.elapsed())
    }
}

async fn work_on<F, Fut>(
    case: &'static Case,
    begin: &F,
    checks: Arc<Checks>,
    mut expired: oneshot::Receiver<()>,
) -> Result<(), String>
where
    F: Fn(&'static str) -> Fut,
    Fut: Future<Output = Offer<Arc<dyn Harness>>>,
{
    let harness = tokio::select! {
        harness = begin(case.id) => harness.map_err(|e| format!("the account cannot be made: {e}"))?,
        _ = &mut expired => return Err("the account was not made".into()),
    };
    let context = Arc::new(Context::new(case.id, harness.clone(), checks));
    // On a task of its own, so that a panic still cleans up.
    let mut task = tokio::spawn((case.run)(context));
    // By the clock on the wall: the runtime's own may run ahead.
    let ran = tokio::select! {
        ran = &mut task => Some(ran),
        Ok(()) = &mut expired => None,
    };
    if ran.is_none() {
        task.abort();
    }
    let cleaned = harness.clean_up().await;
    ran.transpose().map_err(|e| match e.try_into_panic() {
        Ok(panic) => panic_text(&*panic),
        Err(error) => format!("the case was cut off: {error}"),
    })?;
    cleaned.map_err(|e| format!("the account cannot be cleaned up: {e}"))
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text =
        panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    format!("panicked: {}", text.unwrap_or("without a text"))
}

/// Returns what is wrong with a run beside its failed cases.
fn judge(cases: &[CaseReport], skips: &Skips) -> Vec<String> {
    let mut problems = Vec::new();
    if cases.is_empty() {
        problems.push("no case ran".to_owned());
    }
    let mut happened = Vec::new();
    let mut refuse = |id: &str, capability: &str, allowed: &Option<String>| {
        if allowed.is_none() {
            problems.push(format!(
                "{id} was skipped for want of {capability}: let the harness offer it, or list {id} with the reason"
            ));
        }
        happened.push(id.to_owned());
    };
    for case in cases {
        if let Outcome::Skipped { capability, allowed } = &case.outcome {
            refuse(case.id, capability, allowed);
        } else {
            case.skipped.iter().for_each(|(id, capability, allowed)| refuse(id, capability, allowed));
        }
    }
    // A case that failed may not have come to the check that would be skipped.
    let ran: Vec<&str> =
        cases.iter().filter(|c| !matches!(c.outcome, Outcome::Failed(_))).map(|c| c.id).collect();
    for id in skips.stale(&ran, &happened) {
        problems.push(format!("{id} is listed as skipped and was not: take it from the list"));
    }
    problems
}
