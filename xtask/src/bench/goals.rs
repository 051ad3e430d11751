//! The goals, each with its figure, and the table of them.

use std::fmt::Write as _;

use serde::Serialize;

/// One goal.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Goal {
    pub(crate) what: String,
    pub(crate) figure: f64,
    pub(crate) limit: f64,
    /// Whether the figure must be the limit or more, in place of the limit or less.
    pub(crate) at_least: bool,
    pub(crate) met: bool,
}

impl Goal {
    /// A goal that is met by the limit or less. What is no number misses it.
    pub(crate) fn at_most(what: impl Into<String>, figure: f64, limit: f64) -> Self {
        Self { what: what.into(), figure, limit, at_least: false, met: figure <= limit }
    }

    /// A goal that is met by the limit or more. What is no number misses it.
    pub(crate) fn at_least(what: impl Into<String>, figure: f64, limit: f64) -> Self {
        Self { what: what.into(), figure, limit, at_least: true, met: figure >= limit }
    }

    /// The figure as it is read beside the limit: with so many digits that it stands on the right side of it.
    fn text(&self) -> String {
        if !self.figure.is_finite() {
            return "none".to_owned();
        }
        let tells = |text: &String| {
            let read: f64 = text.parse().unwrap_or(f64::NAN);
            self.met == if self.at_least { read >= self.limit } else { read <= self.limit }
        };
        let more = (2..=6).map(|digits| format!("{:.digits$}", self.figure));
        std::iter::once(short(self.figure)).chain(more).find(tells).unwrap_or(self.figure.to_string())
    }
}

/// One goal over all passes.
#[derive(Debug, Serialize)]
pub(super) struct Judged<'a> {
    what: &'a str,
    limit: f64,
    at_least: bool,
    /// By pass; a pass that has none misses the goal.
    figures: Vec<Option<f64>>,
    pub(super) met: bool,
    #[serde(skip)]
    texts: Vec<String>,
    #[serde(skip)]
    missed: usize,
}

/// Puts the same goals of several passes together.
pub(super) fn judged<'a>(passes: &[&'a [Goal]]) -> Vec<Judged<'a>> {
    let mut all: Vec<&Goal> = Vec::new();
    for goal in passes.iter().copied().flatten() {
        if all.iter().all(|there| there.what != goal.what) {
            all.push(goal);
        }
    }
    let of = |goal: &'a Goal| {
        let find = |pass: &&'a [Goal]| pass.iter().find(|there| there.what == goal.what);
        let found: Vec<Option<&Goal>> = passes.iter().map(find).collect();
        let missed = found.iter().filter(|found| !found.is_some_and(|goal| goal.met)).count();
        Judged {
            what: &goal.what,
            limit: goal.limit,
            at_least: goal.at_least,
            figures: found.iter().map(|found| found.map(|goal| goal.figure)).collect(),
            met: missed == 0,
            texts: found.iter().map(|found| found.map_or("none".to_owned(), Goal::text)).collect(),
            missed,
        }
    };
    all.into_iter().map(of).collect()
}

/// The table: a line for each goal with its figure in each pass, and how many goals are missed.
pub(crate) fn table(passes: &[&[Goal]]) -> String {
    let goals = judged(passes);
    let length = |text: &str| text.chars().count();
    let name = goals.iter().map(|goal| length(goal.what)).max().unwrap_or_default();
    let texts = goals.iter().flat_map(|goal| &goal.texts);
    let figure = texts.map(|text| length(text)).max().unwrap_or_default();
    let limit = goals.iter().map(|goal| length(&goal.limit.to_string())).max().unwrap_or_default();
    let mut table = String::new();
    for goal in &goals {
        let _ = write!(table, "goal: {:<name$}", goal.what);
        for text in &goal.texts {
            let _ = write!(table, "  {text:>figure$}");
        }
        let sign = if goal.at_least { "≥" } else { "≤" };
        let _ = write!(table, " {sign} {:<limit$}  ", goal.limit);
        let _ = match (goal.missed, passes.len()) {
            (0, _) => writeln!(table, "met"),
            (_, 1) => writeln!(table, "MISSED"),
            (missed, passes) => writeln!(table, "MISSED in {missed} of {passes} passes"),
        };
    }
    let missed = goals.iter().filter(|goal| !goal.met).count();
    let _ = write!(table, "\n{} goals, {missed} missed", goals.len());
    table
}

/// A number with three digits or so.
pub(super) fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_or_so() {
        assert_eq!(
            (short(12_345.6), short(43.21), short(1.254)),
            ("12346".into(), "43.2".into(), "1.25".into())
        );
    }

    #[test]
    fn the_limit_meets_a_goal_and_what_is_no_number_misses_it() {
        assert!(Goal::at_most("", 2.0, 2.0).met && Goal::at_least("", 2.0, 2.0).met);
        assert!(!Goal::at_most("", 2.1, 2.0).met && !Goal::at_least("", 1.9, 2.0).met);
        assert!(!Goal::at_most("", f64::NAN, 2.0).met && !Goal::at_least("", f64::NAN, 2.0).met);
        assert_eq!(Goal::at_most("", f64::NAN, 2.0).text(), "none");
    }

    #[test]
    fn a_figure_is_read_on_the_side_of_the_limit_on_which_it_is() {
        assert_eq!(Goal::at_most("", 1.254, 1.25).text(), "1.254");
        assert_eq!(Goal::at_most("", 50.04, 50.0).text(), "50.04");
        assert_eq!(Goal::at_least("", 0.7996, 0.8).text(), "0.7996");
        assert_eq!(Goal::at_least("", 0.8004, 0.8).text(), "0.80");
        assert_eq!(Goal::at_most("", 15_000_001.0, 15e6).text(), "15000001");
    }

    #[test]
    fn one_pass_is_told_with_its_verdicts() {
        let goals = [Goal::at_most("time, ms", 12.0, 10.0), Goal::at_least("calls", 0.9, 0.8)];
        assert_eq!(
            table(&[&goals]),
            "goal: time, ms  12.0 ≤ 10   MISSED\n\
             goal: calls     0.90 ≥ 0.8  met\n\n\
             2 goals, 1 missed"
        );
    }

    #[test]
    fn a_goal_is_met_when_every_pass_meets_it() {
        let pass = |time: f64| vec![Goal::at_most("time", time, 10.0), Goal::at_most("size", 1.0, 1.0)];
        let (first, second, mut third) = (pass(9.0), pass(11.0), pass(8.0));
        third.remove(1);
        let text = table(&[&first, &second, &third]);
        assert!(text.contains("goal: time  9.00  11.0  8.00 ≤ 10  MISSED in 1 of 3 passes\n"), "{text}");
        assert!(text.contains("goal: size  1.00  1.00  none ≤ 1   MISSED in 1 of 3 passes\n"), "{text}");
        assert!(text.ends_with("2 goals, 2 missed"), "{text}");
        assert!(table(&[&first, &first]).ends_with("2 goals, 0 missed"));
        let json = serde_json::to_value(judged(&[&first, &third])).unwrap();
        assert_eq!(json[1]["figures"], serde_json::json!([1.0, null]));
        assert_eq!((&json[0]["met"], &json[1]["met"]), (&true.into(), &false.into()));
    }
}
