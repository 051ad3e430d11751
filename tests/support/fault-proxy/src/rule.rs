//! What is done to which calls.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::message::{Answer, Request};

/// Which calls a rule is about; everything that is given has to fit.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Match {
    /// The method, such as `POST`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// The whole path, or its beginning where this ends in `*`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Headers by name, with a part of their value.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Fields of the query or of the form, with their whole value.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub form: BTreeMap<String, String>,
    /// A part of the body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
}

impl Match {
    /// Every call.
    pub fn any() -> Self {
        Self::default()
    }

    /// Calls of an operation of a Query protocol.
    pub fn action(name: &str) -> Self {
        Self::any().with_field("Action", name)
    }

    /// Demands a field of the query or form.
    #[must_use]
    pub fn with_field(mut self, name: &str, value: &str) -> Self {
        self.form.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Demands a path, or its beginning with `*` at the end.
    #[must_use]
    pub fn with_path(mut self, path: &str) -> Self {
        self.path = Some(path.to_owned());
        self
    }

    /// Demands a method.
    #[must_use]
    pub fn with_method(mut self, method: &str) -> Self {
        self.method = Some(method.to_owned());
        self
    }

    /// Demands a part of the body.
    #[must_use]
    pub fn with_body(mut self, part: &str) -> Self {
        self.body = Some(part.to_owned());
        self
    }

    /// Demands a header with a part of its value.
    #[must_use]
    pub fn with_header(mut self, name: &str, part: &str) -> Self {
        self.headers.insert(name.to_owned(), part.to_owned());
        self
    }

    fn fits(&self, request: &Request) -> bool {
        let header = |(name, part): (&String, &String)| {
            let values = request.headers.get_all(name.as_str());
            values.iter().any(|value| value.to_str().is_ok_and(|value| value.contains(part.as_str())))
        };
        let path = |path: &String| match path.strip_suffix('*') {
            Some(start) => request.path.starts_with(start),
            None => request.path == *path,
        };
        let form = request.form();
        self.method.as_ref().is_none_or(|method| request.method.as_str().eq_ignore_ascii_case(method))
            && self.path.as_ref().is_none_or(path)
            && self.headers.iter().all(header)
            && self.form.iter().all(|(name, value)| form.get(name) == Some(value))
            && self.body.as_ref().is_none_or(|part| {
                part.is_empty() || request.body.windows(part.len()).any(|piece| piece == part.as_bytes())
            })
    }
}

/// When it is done.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Moment {
    /// The server never hears of the call.
    #[default]
    Before,
    /// The server did it, and the client does not learn.
    After,
}

/// What is done.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Act {
    /// Answers this.
    Answer(Answer),
    /// Resets the connection without an answer.
    Cut,
    /// Sends the head of the answer and this many bytes of its body, then closes the connection. After the effect only:
    /// before it there is no answer to break off.
    CutBody {
        /// How many bytes of the body still arrive.
        bytes: usize,
    },
    /// Waits, then goes on with the rules that follow.
    Delay {
        /// How long.
        ms: u64,
    },
    /// Answers nothing for as long as the rule is there, then goes on with the rules that follow.
    Stall,
    /// Lets calls through at a rate and answers the others.
    Throttle {
        /// How many calls pass in a second, in the long run.
        per_second: f64,
        /// How many pass at once after a pause.
        burst: f64,
        /// What the others get.
        answer: Answer,
    },
}

/// One thing that is done to some calls.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// What the journal calls it; a rule replaces the one of the same name.
    pub name: String,
    /// Which calls it is about.
    #[serde(default)]
    pub when: Match,
    /// When it is done.
    #[serde(default)]
    pub moment: Moment,
    /// What is done.
    #[serde(rename = "do")]
    pub act: Act,
    /// To which share of the fitting calls, by chance; to all where it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<f64>,
    /// How many fitting calls pass first.
    #[serde(default)]
    pub skip: u64,
    /// How often at most; without an end where it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<u64>,
}

impl Rule {
    /// A rule for every fitting call, before the effect.
    pub fn new(name: impl Into<String>, when: Match, act: Act) -> Self {
        Self { name: name.into(), when, moment: Moment::Before, act, share: None, skip: 0, times: None }
    }

    /// Does it once the server has.
    #[must_use]
    pub fn after_effect(mut self) -> Self {
        self.moment = Moment::After;
        self
    }

    /// Does it to a share of the fitting calls.
    #[must_use]
    pub fn with_share(mut self, share: f64) -> Self {
        self.share = Some(share);
        self
    }

    /// Does it so many times.
    #[must_use]
    pub fn with_times(mut self, times: u64) -> Self {
        self.times = Some(times);
        self
    }

    /// Lets so many fitting calls pass first.
    #[must_use]
    pub fn with_skip(mut self, skip: u64) -> Self {
        self.skip = skip;
        self
    }

    /// Says what is wrong with it.
    ///
    /// # Errors
    ///
    /// Names the rule and the field.
    pub(crate) fn check(&self) -> Result<()> {
        let name = &self.name;
        ensure!(!name.is_empty() && !name.contains('/'), "a rule needs a `name` without a slash");
        if let Some(share) = self.share {
            ensure!((0.0..=1.0).contains(&share), "rule {name}: `share` is {share} and not within 0 to 1");
        }
        match &self.act {
            Act::CutBody { .. } if self.moment == Moment::Before => {
                bail!("rule {name}: `cut_body` needs `moment: after`")
            }
            Act::Throttle { per_second, burst, answer } => {
                ensure!(*per_second >= 0.0 && *burst >= 0.0, "rule {name}: a rate is negative");
                ensure!(
                    self.moment == Moment::Before,
                    "rule {name}: `throttle` is before the effect: whoever throttles does not do it"
                );
                answer.head().map(drop)
            }
            Act::Answer(answer) => answer.head().map(drop),
            Act::Cut | Act::CutBody { .. } | Act::Delay { .. } | Act::Stall => Ok(()),
        }
    }
}

/// What is to be done to one call at one moment.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Wait, then ask again from the rule with this index on.
    Wait(Duration, usize),
    /// Wait until the rule of this name is gone, then ask again from this index on.
    Stall(String, usize),
    /// Do this and be done; with the name of the rule.
    Do(String, Act),
}

/// The rules with what they counted.
#[derive(Debug)]
pub(crate) struct Rules {
    seed: u64,
    rules: Vec<Counted>,
}

#[derive(Debug)]
struct Counted {
    rule: Rule,
    fitting: u64,
    done: u64,
    chance: StdRng,
    tokens: f64,
    filled: Instant,
}

impl Rules {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed, rules: Vec::new() }
    }

    /// Adds a rule at the end, or in place of the one with its name.
    pub(crate) fn add(&mut self, rule: Rule) -> Result<()> {
        rule.check()?;
        // A sequence of its own for each rule: other rules do not change what chance says to this one.
        let salt = rule.name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let tokens = if let Act::Throttle { burst, .. } = &rule.act { *burst } else { 0.0 };
        let counted = Counted {
            fitting: 0,
            done: 0,
            chance: StdRng::seed_from_u64(self.seed ^ salt),
            tokens,
            filled: Instant::now(),
            rule,
        };
        match self.rules.iter_mut().find(|old| old.rule.name == counted.rule.name) {
            Some(old) => *old = counted,
            None => self.rules.push(counted),
        }
        Ok(())
    }

    /// Removes a rule; `false` where there is none of that name.
    pub(crate) fn remove(&mut self, name: &str) -> bool {
        let before = self.rules.len();
        self.rules.retain(|counted| counted.rule.name != name);
        self.rules.len() != before
    }

    pub(crate) fn clear(&mut self) {
        self.rules.clear();
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.rules.iter().any(|counted| counted.rule.name == name)
    }

    /// Returns every rule with how many calls fitted and to how many it was done.
    pub(crate) fn list(&self) -> Vec<(Rule, u64, u64)> {
        self.rules.iter().map(|counted| (counted.rule.clone(), counted.fitting, counted.done)).collect()
    }

    /// Says what is to be done now, looking at rules from index `from` on.
    pub(crate) fn next(&mut self, request: &Request, moment: Moment, from: usize) -> Option<Step> {
        for (index, counted) in self.rules.iter_mut().enumerate().skip(from) {
            if counted.rule.moment == moment && counted.rule.when.fits(request) && counted.applies() {
                let name = counted.rule.name.clone();
                return Some(match &counted.rule.act {
                    Act::Delay { ms } => Step::Wait(Duration::from_millis(*ms), index + 1),
                    Act::Stall => Step::Stall(name, index + 1),
                    Act::Throttle { answer, .. } => Step::Do(name, Act::Answer(answer.clone())),
                    act => Step::Do(name, act.clone()),
                });
            }
        }
        None
    }
}

impl Counted {
    /// Whether it is done to this fitting call.
    fn applies(&mut self) -> bool {
        self.fitting += 1;
        if self.fitting <= self.rule.skip || self.rule.times.is_some_and(|times| self.done >= times) {
            return false;
        }
        if let Act::Throttle { per_second, burst, .. } = &self.rule.act {
            let now = Instant::now();
            let since = now.duration_since(self.filled).as_secs_f64();
            self.tokens = (self.tokens + since * per_second).min(*burst);
            self.filled = now;
            if self.tokens >= 1.0 {
                self.tokens -= 1.0;
                return false;
            }
        }
        if self.rule.share.is_some_and(|share| !self.chance.random_bool(share)) {
            return false;
        }
        self.done += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::tests::query;

    fn done(rules: &mut Rules, request: &Request) -> bool {
        matches!(rules.next(request, Moment::Before, 0), Some(Step::Do(..)))
    }

    #[test]
    fn everything_that_a_match_names_has_to_fit() {
        let mut request = query(&[("Action", "RunInstances"), ("ImageId", "ami-1")]);
        request.headers.insert("x-test", "one two".parse().unwrap());
        let fits = [
            Match::any(),
            Match::action("RunInstances").with_field("ImageId", "ami-1"),
            Match::any().with_method("post").with_path("/"),
            Match::any().with_path("/*"),
            Match::any().with_header("X-Test", "two"),
            Match::any().with_body("ImageId=ami"),
            Match::any().with_body(""),
        ];
        for fit in fits {
            assert!(fit.fits(&request), "{fit:?}");
        }
        let others = [
            Match::action("RunInstance"),
            Match::action("RunInstances").with_field("ImageId", "ami-2"),
            Match::any().with_method("GET"),
            Match::any().with_path("/x*"),
            Match::any().with_header("X-Test", "three"),
            Match::any().with_body("ami-2"),
        ];
        for other in others {
            assert!(!other.fits(&request), "{other:?}");
        }
    }

    #[test]
    fn skip_and_times_count_fitting_calls_only() {
        let mut rules = Rules::new(0);
        let rule = Rule::new("cut", Match::action("A"), Act::Cut).with_skip(1).with_times(2);
        rules.add(rule).unwrap();
        let (fitting, other) = (query(&[("Action", "A")]), query(&[("Action", "B")]));
        assert!(!done(&mut rules, &other));
        let seen: Vec<bool> = (0..5).map(|_| done(&mut rules, &fitting)).collect();
        assert_eq!(seen, [false, true, true, false, false]);
        assert_eq!(rules.list()[0].1, 5);
        assert_eq!(rules.list()[0].2, 2);
    }

    #[test]
    fn a_share_is_kept_and_the_seed_repeats_it() {
        let run = |seed, noise: bool| -> Vec<bool> {
            let mut rules = Rules::new(seed);
            if noise {
                // A rule before it draws from a sequence of its own.
                rules.add(Rule::new("other", Match::action("B"), Act::Cut).with_share(0.5)).unwrap();
            }
            rules.add(Rule::new("some", Match::action("A"), Act::Cut).with_share(0.1)).unwrap();
            (0..2000)
                .map(|_| {
                    let _ = done(&mut rules, &query(&[("Action", "B")]));
                    done(&mut rules, &query(&[("Action", "A")]))
                })
                .collect()
        };
        let first = run(7, false);
        let count = first.iter().filter(|done| **done).count();
        assert!((150..250).contains(&count), "{count}");
        assert_eq!(first, run(7, true));
        assert_ne!(first, run(8, false));
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_lets_the_burst_pass_and_then_the_rate() {
        let mut rules = Rules::new(0);
        let answer = Answer::new(503, "");
        let act = Act::Throttle { per_second: 2.0, burst: 3.0, answer };
        rules.add(Rule::new("rate", Match::any(), act)).unwrap();
        let request = query(&[]);
        let passed = |rules: &mut Rules| (0..10).filter(|_| !done(rules, &request)).count();
        assert_eq!(passed(&mut rules), 3);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(passed(&mut rules), 2);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(passed(&mut rules), 3);
    }

    #[test]
    fn a_delay_leaves_the_rules_after_it_in_force() {
        let mut rules = Rules::new(0);
        rules.add(Rule::new("slow", Match::any(), Act::Delay { ms: 5 })).unwrap();
        rules.add(Rule::new("cut", Match::any(), Act::Cut)).unwrap();
        let request = query(&[]);
        let Some(Step::Wait(time, from)) = rules.next(&request, Moment::Before, 0) else { panic!() };
        assert_eq!(time, Duration::from_millis(5));
        let next = rules.next(&request, Moment::Before, from);
        assert!(matches!(next, Some(Step::Do(name, Act::Cut)) if name == "cut"));
        assert!(rules.next(&request, Moment::After, 0).is_none());
    }

    #[test]
    fn rules_that_make_no_sense_are_refused_with_their_name() {
        let cut = || Rule::new("a", Match::any(), Act::CutBody { bytes: 1 });
        let throttle = Act::Throttle { per_second: 1.0, burst: 1.0, answer: Answer::new(503, "") };
        let answer = |status| Rule::new("a", Match::any(), Act::Answer(Answer::new(status, "")));
        for (rule, part) in [
            (cut(), "after"),
            (cut().after_effect().with_share(1.5), "share"),
            (Rule::new("a", Match::any(), throttle).after_effect(), "before"),
            (Rule::new("", Match::any(), Act::Cut), "name"),
            (answer(99), "status"),
        ] {
            let error = Rules::new(0).add(rule).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        assert!(Rules::new(0).add(answer(503)).is_ok());
    }

    #[test]
    fn a_rule_is_read_from_json_and_typos_are_refused() {
        let text = r#"{"name":"lost","when":{"form":{"Action":"RunInstances"}},"moment":"after","do":"cut","share":0.05}"#;
        let rule: Rule = serde_json::from_str(text).unwrap();
        assert!(matches!(rule.act, Act::Cut) && rule.moment == Moment::After);
        let text = r#"{"name":"x","do":{"answer":{"status":503,"body":"no"}},"tims":3}"#;
        assert!(serde_json::from_str::<Rule>(text).unwrap_err().to_string().contains("tims"));
    }
}
