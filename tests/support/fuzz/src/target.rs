//! A function that is given hostile input.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use proptest::strategy::{BoxedStrategy, Strategy};
use sha2::{Digest, Sha256};

use crate::finding::{Bounds, Finding, execute, shorten};
use crate::plan::Plan;
use crate::{Dice, Seen, fixtures, mutate};

/// Makes another input out of one; `None` when it cannot do anything with it.
pub type Mutator = Box<dyn Fn(&mut Dice, &[u8]) -> Option<Vec<u8>>>;

/// The most inputs that are kept for being mutated further.
const CORPUS: usize = 4096;

/// An execution that is not over by then hangs. Waiting is not seen by the limit of processor time.
const HANGS: Duration = Duration::from_secs(60);

/// Where the regressions of all targets are, in `tests/fixtures`.
const CASES: &str = "fuzz";

/// A function under test with all that is needed to find inputs for it.
pub struct Target {
    name: &'static str,
    seeds: Vec<(String, Vec<u8>)>,
    cases: Vec<(String, Vec<u8>)>,
    words: Vec<Vec<u8>>,
    mutators: Vec<Mutator>,
    fresh: Option<BoxedStrategy<Vec<u8>>>,
    longest: usize,
    bounds: Bounds,
    executions: u64,
}

impl Target {
    /// Begins with a name, which is that of the folder of its regressions, too: `tests/fixtures/fuzz/<name>`.
    pub fn new(name: &'static str) -> Self {
        let folder = format!("{CASES}/{name}");
        let has_cases = crate::folder().join(&folder).is_dir();
        Self {
            name,
            seeds: if has_cases { fixtures(&folder) } else { Vec::new() },
            cases: Vec::new(),
            words: Vec::new(),
            mutators: Vec::new(),
            fresh: None,
            longest: 64 << 10,
            bounds: Bounds { memory: 8 << 20, memory_per_byte: 64, time: Duration::from_secs(4) },
            executions: 300,
        }
    }

    /// Adds an input to begin with.
    #[must_use]
    pub fn seed(mut self, name: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        self.seeds.push((name.into(), bytes.into()));
        self
    }

    /// Adds inputs to begin with.
    #[must_use]
    pub fn seeds(mut self, seeds: impl IntoIterator<Item = (String, Vec<u8>)>) -> Self {
        self.seeds.extend(seeds);
        self
    }

    /// Adds an input that is run and not mutated, such as one that is large and means one thing.
    #[must_use]
    pub fn case(mut self, name: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        self.cases.push((name.into(), bytes.into()));
        self
    }

    /// Adds words of the format, which are put in at random places.
    #[must_use]
    pub fn words(mut self, words: &[&str]) -> Self {
        self.words.extend(words.iter().map(|word| word.as_bytes().to_vec()));
        self
    }

    /// Adds a mutator that knows the format. Half of all inputs are made by one of those.
    #[must_use]
    pub fn mutator(mut self, mutator: impl Fn(&mut Dice, &[u8]) -> Option<Vec<u8>> + 'static) -> Self {
        self.mutators.push(Box::new(mutator));
        self
    }

    /// Adds the mutator of protobuf messages.
    #[must_use]
    pub fn proto(self) -> Self {
        let words = self.words.clone();
        self.mutator(move |dice, input| crate::proto::mutated(dice, input, &words))
    }

    /// Adds the mutator of JSON.
    #[must_use]
    pub fn json(self) -> Self {
        self.mutator(crate::json::document)
    }

    /// Adds the mutator of lines.
    #[must_use]
    pub fn lines(self) -> Self {
        self.mutator(|dice, input| Some(crate::text::lines(dice, input)))
    }

    /// Adds a mutator of what is packed in the input: it is taken out, its bytes or lines are changed, and it is packed.
    #[must_use]
    pub fn packed(
        self,
        unpack: impl Fn(&[u8]) -> Option<Vec<u8>> + 'static,
        pack: impl Fn(&[u8]) -> Vec<u8> + 'static,
    ) -> Self {
        let words = self.words.clone();
        self.mutator(move |dice, input| {
            let mut inner = unpack(input)?;
            match dice.below(3) {
                0 => inner = crate::text::lines(dice, &inner),
                1 => inner = crate::json::document(dice, &inner).unwrap_or(inner),
                _ => mutate::bytes(dice, &mut inner, &[], &words),
            }
            Some(pack(&inner))
        })
    }

    /// Draws one of sixteen inputs from a strategy.
    #[must_use]
    pub fn fresh(mut self, strategy: impl Strategy<Value = Vec<u8>> + 'static) -> Self {
        self.fresh = Some(strategy.boxed());
        self
    }

    /// Bounds the length of inputs; 64 KiB else.
    #[must_use]
    pub fn longest(mut self, bytes: usize) -> Self {
        self.longest = bytes;
        self
    }

    /// Bounds the memory of one execution at any time of it; 8 MiB and 64 bytes for each byte of the input else.
    #[must_use]
    pub fn memory(mut self, bytes: u64, per_byte: u64) -> Self {
        (self.bounds.memory, self.bounds.memory_per_byte) = (bytes, per_byte);
        self
    }

    /// Bounds the processor time of one execution; four seconds else, which is far more than any needs.
    #[must_use]
    pub fn time(mut self, limit: Duration) -> Self {
        self.bounds.time = limit;
        self
    }

    /// Sets the number of executions of the short pass; 300 else.
    #[must_use]
    pub fn short(mut self, executions: u64) -> Self {
        self.executions = executions;
        self
    }

    /// Runs `check` on the regressions and seeds, and then on what is made of them.
    ///
    /// Without the variables that `cargo xtask fuzz` sets this is a short pass, always the same one.
    ///
    /// # Panics
    ///
    /// When `check` panics on an input, or an execution takes more memory or time than allowed. The text says where the
    /// shortened input is and how to repeat it.
    pub fn run(self, check: impl Fn(&[u8]) -> Seen) {
        let plan = Plan::from_process();
        match self.search(&plan, &check) {
            Ok(report) => println!("{report}"),
            Err(found) => panic!("{}", self.tell(&plan, &found, &check)),
        }
    }

    /// Looks for an input with which something is wrong.
    pub(crate) fn search(&self, plan: &Plan, check: &dyn Fn(&[u8]) -> Seen) -> Result<Report, Found> {
        let watch = Watch::new(self.name, plan);
        let run = |name: &str, input: &[u8], number: u64| {
            watch.begin(input);
            let result = execute(check, input, self.bounds);
            watch.end();
            let found = |finding| Found { name: name.to_owned(), number, input: input.to_vec(), finding };
            result.map_err(found)
        };
        if let Some(file) = &plan.repeat {
            let input =
                std::fs::read(file).unwrap_or_else(|error| panic!("read {}: {error}", file.display()));
            run("the given file", &input, 0)?;
            return Ok(Report { target: self.name, executions: 1, corpus: 1, took: Duration::ZERO });
        }
        assert!(!self.seeds.is_empty(), "the target {} has no seed", self.name);
        let mut corpus = Corpus::default();
        for (name, input) in &self.cases {
            run(&format!("the case {name}"), input, 0)?;
        }
        for (name, input) in &self.seeds {
            let seen = run(&format!("the seed {name}"), input, 0)?;
            corpus.add(seen, input.clone(), true);
        }
        let mut dice = Dice::new(plan.seed);
        let start = Instant::now();
        let mut executions = 0;
        loop {
            let over = match plan.time {
                Some(time) => start.elapsed() >= time,
                None => executions >= self.executions,
            };
            if over {
                let took = start.elapsed();
                return Ok(Report { target: self.name, executions, corpus: corpus.inputs.len(), took });
            }
            executions += 1;
            let input = self.next(&mut dice, &corpus);
            let seen = run("a mutated input", &input, executions)?;
            corpus.add(seen, input, false);
        }
    }

    fn next(&self, dice: &mut Dice, corpus: &Corpus) -> Vec<u8> {
        let mut input = match &self.fresh {
            Some(strategy) if dice.once_in(16) => dice.draw(strategy),
            _ => corpus.one(dice).to_vec(),
        };
        let mut changed = false;
        if !self.mutators.is_empty() && dice.once_in(2) {
            for _ in 0..=dice.below(3) {
                if let Some(other) = dice.one(&self.mutators)(dice, &input) {
                    (input, changed) = (other, true);
                }
            }
        }
        if !changed || dice.once_in(4) {
            let others = [corpus.one(dice), corpus.one(dice)];
            mutate::bytes(dice, &mut input, &others, &self.words);
        }
        input.truncate(self.longest);
        input
    }

    /// Shortens a finding, keeps it, and says what to do.
    fn tell(&self, plan: &Plan, found: &Found, check: &dyn Fn(&[u8]) -> Seen) -> String {
        let again = |input: &[u8]| execute(check, input, self.bounds).err();
        let (input, finding) = match again(&found.input) {
            Some(_) => shorten(&found.input, found.finding.clone(), again),
            None => (found.input.clone(), found.finding.clone()),
        };
        let name = self.name;
        let mut text = format!("the target {name} {finding}\n");
        let _ = writeln!(text, "by {} (execution {}, seed {})", found.name, found.number, plan.seed);
        let digest: String =
            Sha256::digest(&input).iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        let folder = plan.folder.clone().unwrap_or_else(|| std::env::temp_dir().join("peerpod-fuzz"));
        let file = folder.join(name).join(&digest);
        let _ = writeln!(text, "input of {} bytes: {}", input.len(), shown(&input));
        match keep(&file, &input) {
            Ok(()) => {
                let _ = writeln!(
                    text,
                    "repeat it with: cargo xtask fuzz --target {name} --repeat {}",
                    file.display()
                );
            }
            Err(error) => _ = writeln!(text, "it could not be kept in {}: {error}", file.display()),
        }
        let _ = write!(text, "when it is mended, keep it as tests/fixtures/{CASES}/{name}/<what it is>");
        text
    }
}

fn keep(file: &Path, input: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(file, input)
}

fn shown(input: &[u8]) -> String {
    let text: String = input.escape_ascii().to_string().chars().take(400).collect();
    format!("\"{text}\"")
}

/// What a search did.
#[derive(Debug)]
pub(crate) struct Report {
    target: &'static str,
    pub(crate) executions: u64,
    pub(crate) corpus: usize,
    took: Duration,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The line is read by `cargo xtask fuzz`.
        let rate = self.executions as f64 / self.took.as_secs_f64().max(0.001);
        write!(
            f,
            "fuzz {}: {} executions in {:.1} s, {rate:.0} per second, {} inputs in the corpus",
            self.target,
            self.executions,
            self.took.as_secs_f64(),
            self.corpus
        )
    }
}

/// An input with which something is wrong.
#[derive(Debug)]
pub(crate) struct Found {
    name: String,
    number: u64,
    pub(crate) input: Vec<u8>,
    pub(crate) finding: Finding,
}

/// Inputs to mutate: the seeds, and what led to something new.
#[derive(Default)]
struct Corpus {
    inputs: Vec<Vec<u8>>,
    seen: HashSet<Seen>,
}

impl Corpus {
    fn add(&mut self, seen: Seen, input: Vec<u8>, always: bool) {
        if (self.seen.insert(seen) || always) && self.inputs.len() < CORPUS {
            self.inputs.push(input);
        }
    }

    /// One of all inputs; half of the time one of the newest.
    fn one(&self, dice: &mut Dice) -> &[u8] {
        let len = self.inputs.len();
        let newest = len.min(16);
        let at = if dice.once_in(2) { len - newest + dice.below(newest) } else { dice.below(len) };
        &self.inputs[at]
    }
}

/// Keeps the input in hand where it is found after a crash, and ends the process when an execution hangs.
struct Watch {
    file: Option<File>,
    /// Milliseconds since the beginning plus one; 0 between executions.
    began: Arc<AtomicU64>,
    start: Instant,
    /// The thread that looks ends when this is gone.
    _alive: Arc<()>,
}

impl Watch {
    fn new(name: &'static str, plan: &Plan) -> Self {
        let file = plan.folder.as_ref().map(|folder| {
            std::fs::create_dir_all(folder).expect("the folder of findings can be made");
            File::create(folder.join(format!("{name}.current"))).expect("the input in hand can be kept")
        });
        let (began, start, alive) = (Arc::new(AtomicU64::new(0)), Instant::now(), Arc::new(()));
        let (looked, still) = (began.clone(), Arc::downgrade(&alive));
        std::thread::spawn(move || {
            while still.strong_count() > 0 {
                std::thread::park_timeout(Duration::from_millis(500));
                let since = looked.load(Ordering::Relaxed);
                let now = start.elapsed().as_millis() as u64;
                if since > 0 && now.saturating_sub(since) > HANGS.as_millis() as u64 {
                    eprintln!(
                        "an execution of the target {name} hangs: it took more than {} s",
                        HANGS.as_secs()
                    );
                    std::process::abort();
                }
            }
        });
        Self { file, began, start, _alive: alive }
    }

    fn begin(&self, input: &[u8]) {
        if let Some(file) = &self.file {
            // One call, so that a crash leaves the old input or the new one; what an older one left behind its end
            // does not count.
            let whole = [&(input.len() as u64).to_be_bytes(), input].concat();
            file.write_all_at(&whole, 0).expect("the input in hand can be kept");
        }
        self.began.store(self.start.elapsed().as_millis() as u64 + 1, Ordering::Relaxed);
    }

    fn end(&self) {
        self.began.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
