//! Problems that were told in words, with the option and the remedy taken out of them.

use cloud_providers::{CheckOutcome, Finding, OptionSpec};

/// Variables that are no option.
const VARIABLES: &[&str] = &[
    "PROBE_PORT",
    "POD_NAMESPACE",
    "KUBECONFIG",
    "KUBERNETES_SERVICE_HOST",
    "KUBERNETES_SERVICE_PORT",
    "ENABLE_CLOUD_PROVIDER_EXTERNAL_PLUGIN",
];

/// Words that begin a remedy.
const VERBS: &[&str] =
    &["add", "build", "give", "leave", "mend", "mount", "put", "remove", "set", "upload", "use", "write"];

/// The options of a program, daemon and provider together.
#[derive(Clone, Copy)]
pub(super) struct Options(pub(super) [&'static [OptionSpec]; 2]);

impl Options {
    fn all(&self) -> impl Iterator<Item = &'static OptionSpec> {
        self.0.into_iter().flatten()
    }

    /// Returns the options and variables that a text names, in its order.
    pub(super) fn named_in(&self, text: &str) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        for word in text.split(|c| !is_part(c)) {
            // A dash inside of a word is no flag.
            let flag =
                word.strip_prefix("--").or_else(|| word.strip_prefix('-')).map(|f| f.trim_end_matches('-'));
            let option = self.all().find(|spec| Some(spec.flag) == flag || spec.env == Some(word));
            let name = match option {
                Some(spec) => spec.names(),
                None if VARIABLES.contains(&word) => word.to_owned(),
                None => continue,
            };
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    /// Makes a finding of a problem in words.
    pub(super) fn finding(&self, check: &str, outcome: CheckOutcome, problem: &str) -> Finding {
        if let Some(rest) = problem.strip_prefix("unknown flag ") {
            let (flag, near) = rest.split_once(", did you mean ").unwrap_or((rest, ""));
            let remedy = match near.trim_end_matches('?') {
                "" => "leave it out; -help lists the options".to_owned(),
                near => format!("write {near}"),
            };
            let finding = Finding::new(check, outcome, format!("unknown flag {flag}"));
            return finding.with_option(flag).with_remedy(remedy);
        }
        let (detail, remedy) = apart(problem);
        self.complete(Finding::new(check, outcome, detail).with_remedy(remedy), problem)
    }

    /// Adds what a finding of a provider says in words only.
    pub(super) fn completed(&self, finding: Finding) -> Finding {
        let is_raised = matches!(finding.outcome, CheckOutcome::Failed | CheckOutcome::Warning);
        if !is_raised || finding.option.is_some() {
            return finding;
        }
        let text = finding.detail.clone();
        self.complete(finding, &text)
    }

    fn complete(&self, finding: Finding, text: &str) -> Finding {
        match self.named_in(text) {
            names if names.is_empty() => finding,
            names => finding.with_option(names.join(", ")),
        }
    }
}

/// Takes a problem apart into what is wrong and what to do.
fn apart(problem: &str) -> (String, String) {
    if let Some((detail, expected)) = problem.rsplit_once(", expected ") {
        return (detail.to_owned(), format!("give {expected}"));
    }
    if problem.contains(" is required") {
        return (problem.to_owned(), "give it a value".to_owned());
    }
    let begins = |tail: &str| VERBS.contains(&tail.split(' ').next().unwrap_or_default());
    for mark in [": ", "; "] {
        let tails = problem.match_indices(mark).map(|(at, _)| (&problem[..at], &problem[at + mark.len()..]));
        if let Some((detail, remedy)) = tails.into_iter().find(|(_, tail)| begins(tail)) {
            return (detail.to_owned(), remedy.to_owned());
        }
    }
    (problem.to_owned(), "mend or leave out what is named".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPECS: &[OptionSpec] = &[
        OptionSpec::int("port", 1, 2, "port").env("PORT"),
        OptionSpec::text("image", "image").env("IMAGE_ID"),
        OptionSpec::text("plain", "no variable"),
    ];

    #[test]
    fn option_and_remedy_are_taken_out_of_the_words() {
        let options = Options([SPECS, &[]]);
        for (problem, detail, option, remedy) in [
            (
                "variable PORT is \"9\", expected a whole number from 1 to 2",
                "variable PORT is \"9\"",
                Some("-port or PORT"),
                "give a whole number from 1 to 2",
            ),
            (
                "-image or IMAGE_ID is required: image",
                "-image or IMAGE_ID is required: image",
                Some("-image or IMAGE_ID"),
                "give it a value",
            ),
            (
                "-plain contradicts -port: leave one out",
                "-plain contradicts -port",
                Some("-plain, -port or PORT"),
                "leave one out",
            ),
            (
                "-plain: bad x: it is odd",
                "-plain: bad x: it is odd",
                Some("-plain"),
                "mend or leave out what is named",
            ),
            ("unknown flag -prt, did you mean -port?", "unknown flag -prt", Some("-prt"), "write -port"),
            ("unknown flag -x", "unknown flag -x", Some("-x"), "leave it out; -help lists the options"),
            ("a non-port thing", "a non-port thing", None, "mend or leave out what is named"),
        ] {
            let finding = options.finding("settings", CheckOutcome::Failed, problem);
            assert_eq!(
                (finding.detail.as_str(), finding.option.as_deref(), finding.remedy.as_deref()),
                (detail, option, Some(remedy)),
                "{problem}"
            );
        }
    }
}
