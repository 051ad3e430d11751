//! Changelogs: what they look like, and how a release changes them.
//!
//! Sections are `## Unreleased` and then `## <version> - <date>`, newest first. A line is `- **<kind>:** <text>`, with
//! continuation lines that are indented.

use std::ops::Range;

use semver::Version;
use time::{Date, Month, OffsetDateTime};

use super::version::Change;

/// The kinds of lines, with what each means for the version.
const KINDS: &[(&str, Change)] = &[
    ("added", Change::Feature),
    ("changed", Change::Feature),
    ("fixed", Change::Fix),
    ("removed", Change::Breaking),
    ("breaking", Change::Breaking),
];

const UNRELEASED: &str = "## Unreleased";

/// One line of news, with its continuation lines.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Entry {
    /// What it means for the version.
    pub(super) change: Change,
    /// The lines as they stand in the file.
    pub(super) text: String,
}

/// One section.
#[derive(Debug)]
pub(super) struct Section {
    /// The version, unless it is the section of what is not released.
    pub(super) version: Option<Version>,
    /// The day of the release.
    pub(super) date: Option<String>,
    /// The news.
    pub(super) entries: Vec<Entry>,
    /// Where it stands in the file, heading included, by lines.
    lines: Range<usize>,
}

/// Something that is not as a changelog has to be.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Mistake {
    /// The line, counted from one.
    pub(crate) line: usize,
    /// What is wrong.
    pub(crate) what: String,
    /// How to mend it.
    pub(crate) mend: String,
}

/// A changelog that was read.
#[derive(Debug)]
pub(super) struct Changelog {
    text: String,
    pub(super) sections: Vec<Section>,
    pub(super) mistakes: Vec<Mistake>,
}

impl Changelog {
    /// Reads a changelog; what is wrong with it is in `mistakes`.
    pub(super) fn parse(text: &str) -> Self {
        let mut parsed = Self { text: text.to_owned(), sections: Vec::new(), mistakes: Vec::new() };
        let lines: Vec<&str> = text.lines().collect();
        let heads: Vec<usize> = (0..lines.len()).filter(|&at| lines[at].starts_with("## ")).collect();
        for (index, &start) in heads.iter().enumerate() {
            let end = heads.get(index + 1).copied().unwrap_or(lines.len());
            let (version, date) = parsed.heading(lines[start], start);
            let entries = parsed.entries(&lines, start + 1..end);
            parsed.sections.push(Section { version, date, entries, lines: start..end });
        }
        parsed.order();
        parsed
    }

    fn mistake(&mut self, line: usize, what: impl Into<String>, mend: impl Into<String>) {
        self.mistakes.push(Mistake { line: line + 1, what: what.into(), mend: mend.into() });
    }

    fn heading(&mut self, line: &str, at: usize) -> (Option<Version>, Option<String>) {
        if line.trim_end() == UNRELEASED {
            return (None, None);
        }
        let parsed = line[3..].trim().split_once(" - ").and_then(|(version, date)| {
            Some((Version::parse(version).ok()?, is_date(date).then(|| date.to_owned())?))
        });
        if let Some((version, date)) = parsed {
            return (Some(version), Some(date));
        }
        let mend = format!("write `{UNRELEASED}` or `## <version> - <year>-<month>-<day>`");
        self.mistake(at, format!("`{line}` is no heading of a section"), mend);
        (None, None)
    }

    fn entries(&mut self, lines: &[&str], range: Range<usize>) -> Vec<Entry> {
        let mut entries: Vec<Entry> = Vec::new();
        for at in range {
            let line = lines[at];
            if line.starts_with("- ") || line.starts_with("* ") {
                match kind(line) {
                    Some(change) => entries.push(Entry { change, text: line.trim_end().to_owned() }),
                    None => {
                        let kinds: Vec<&str> = KINDS.iter().map(|(kind, _)| *kind).collect();
                        let mend = format!(
                            "begin it with `- **<kind>:** ` and say something; the kinds are {}",
                            kinds.join(", ")
                        );
                        self.mistake(at, format!("`{line}` has no kind"), mend);
                    }
                }
            } else if line.starts_with(' ') && !line.trim().is_empty() {
                if let Some(entry) = entries.last_mut() {
                    entry.text.push('\n');
                    entry.text.push_str(line.trim_end());
                }
            } else if line.starts_with('#') {
                let mend = "take it out: the kind of a line stands in the line";
                self.mistake(at, format!("`{line}` divides a section"), mend);
            }
        }
        entries
    }

    /// Checks that sections stand newest first, each once.
    fn order(&mut self) {
        let at = |section: &Section| section.lines.start;
        let mut found = Vec::new();
        if let Some(second) = self.sections.iter().filter(|section| self.is_unreleased(section)).nth(1) {
            found.push((
                at(second),
                "is a second section of what is not released".to_owned(),
                "join the two",
            ));
        }
        for pair in self.sections.windows(2) {
            match (&pair[0].version, &pair[1].version) {
                (Some(newer), Some(older)) if newer <= older => {
                    let what = format!("{older} stands below {newer}");
                    found.push((at(&pair[1]), what, "put the sections newest first, each version once"));
                }
                (Some(newer), None) if self.is_unreleased(&pair[1]) => {
                    let what = format!("what is not released stands below {newer}");
                    found.push((at(&pair[1]), what, "put `## Unreleased` above all versions"));
                }
                _ => {}
            }
        }
        for (line, what, mend) in found {
            self.mistake(line, what, mend);
        }
    }

    fn is_unreleased(&self, section: &Section) -> bool {
        self.text.lines().nth(section.lines.start).is_some_and(|line| line.trim_end() == UNRELEASED)
    }

    /// The news that is in no version.
    pub(super) fn unreleased(&self) -> &[Entry] {
        let section = self.sections.iter().find(|section| self.is_unreleased(section));
        section.map_or(&[], |section| &section.entries)
    }

    /// The section of a version.
    pub(super) fn version(&self, version: &Version) -> Option<&Section> {
        self.sections.iter().find(|section| section.version.as_ref() == Some(version))
    }

    /// The news since a version, or all of it: what is not released, and sections of versions above.
    pub(super) fn since(&self, last: Option<&Version>) -> Vec<&Entry> {
        let mut entries: Vec<&Entry> = self.unreleased().iter().collect();
        for section in &self.sections {
            let newer = |version: &Version| last.is_none_or(|last| version > last);
            if section.version.as_ref().is_some_and(newer) {
                entries.extend(&section.entries);
            }
        }
        entries
    }

    /// Returns the text in which all news since `last` stands under the heading of `version`, and nothing is unreleased.
    ///
    /// `more` are lines that are added to them; one with the same beginning up to `replaces` is replaced.
    pub(super) fn released(
        &self,
        last: Option<&Version>,
        version: &Version,
        date: &str,
        more: &[Follow],
    ) -> String {
        let mut entries: Vec<String> = self.since(last).iter().map(|entry| entry.text.clone()).collect();
        for follow in more {
            entries.retain(|entry| !follow.replaces(entry));
        }
        entries.extend(more.iter().map(Follow::line));
        let lines: Vec<&str> = self.text.lines().collect();
        let gone = |section: &&Section| {
            self.is_unreleased(section)
                || section.version.as_ref().is_some_and(|version| last.is_none_or(|last| version > last))
        };
        let mut dropped = vec![false; lines.len()];
        for section in self.sections.iter().filter(gone) {
            dropped[section.lines.clone()].fill(true);
        }
        let first = self.sections.iter().map(|section| section.lines.start).min().unwrap_or(lines.len());
        let mut text = lines[..first].join("\n").trim_end().to_owned();
        let mut block = |part: &str| {
            if !part.trim().is_empty() {
                text.push_str("\n\n");
                text.push_str(part.trim());
            }
        };
        block(UNRELEASED);
        block(&format!("## {version} - {date}"));
        // Prose between the heading and the lines stays with them.
        for section in self.sections.iter().filter(gone) {
            let prose = lines[section.lines.start + 1..section.lines.end]
                .iter()
                .take_while(|line| !line.starts_with("- "))
                .copied();
            block(&prose.collect::<Vec<_>>().join("\n"));
        }
        block(&entries.join("\n"));
        let rest: Vec<&str> = (first..lines.len()).filter(|&at| !dropped[at]).map(|at| lines[at]).collect();
        block(&rest.join("\n"));
        text.push('\n');
        text
    }
}

/// The line of a package that is released because of another one.
#[derive(Clone, Debug)]
pub(super) struct Follow {
    /// The package it follows.
    pub(super) package: String,
    /// The version of that.
    pub(super) version: Version,
    /// Whether what worked before may not work.
    pub(super) breaking: bool,
}

impl Follow {
    fn line(&self) -> String {
        let kind = if self.breaking { "breaking" } else { "changed" };
        format!("- **{kind}:** uses {} {}", self.package, self.version)
    }

    /// Whether `entry` says the same of an earlier version that was prepared and never released.
    fn replaces(&self, entry: &str) -> bool {
        let says = |kind: &str| {
            let rest = entry.strip_prefix(&format!("- **{kind}:** uses {} ", self.package));
            rest.is_some_and(|version| Version::parse(version).is_ok())
        };
        says("changed") || says("breaking")
    }
}

/// The day, in the form of a heading.
pub(super) fn today() -> String {
    let date = OffsetDateTime::now_utc().date();
    format!("{:04}-{:02}-{:02}", date.year(), u8::from(date.month()), date.day())
}

fn is_date(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let [year, month, day] = parts[..] else { return false };
    if (year.len(), month.len(), day.len()) != (4, 2, 2) {
        return false;
    }
    let month = month.parse::<u8>().ok().and_then(|month| Month::try_from(month).ok());
    let (Ok(year), Some(month), Ok(day)) = (year.parse(), month, day.parse()) else { return false };
    Date::from_calendar_date(year, month, day).is_ok()
}

/// What a line of news means, when it is one.
fn kind(line: &str) -> Option<Change> {
    let (kind, text) = line.strip_prefix("- **")?.split_once(":** ")?;
    (!text.trim().is_empty()).then_some(())?;
    KINDS.iter().find(|(name, _)| *name == kind).map(|(_, change)| *change)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# Changelog of x\n\n## Unreleased\n\n- **added:** a thing\n  that is long\n- **fixed:** a fault\n\n## 0.1.0 - 2026-01-31\n\n- **added:** all\n";

    fn v(text: &str) -> Version {
        Version::parse(text).unwrap()
    }

    #[test]
    fn sections_and_lines_are_read() {
        let log = Changelog::parse(TEXT);
        assert_eq!(log.mistakes, []);
        let changes: Vec<Change> = log.unreleased().iter().map(|entry| entry.change).collect();
        assert_eq!(changes, [Change::Feature, Change::Fix]);
        assert_eq!(log.unreleased()[0].text, "- **added:** a thing\n  that is long");
        assert_eq!(log.version(&v("0.1.0")).unwrap().date.as_deref(), Some("2026-01-31"));
        assert_eq!(log.since(Some(&v("0.1.0"))).len(), 2);
        assert_eq!(log.since(None).len(), 3);
    }

    #[test]
    fn a_release_moves_the_lines_under_its_heading() {
        let text = Changelog::parse(TEXT).released(Some(&v("0.1.0")), &v("0.1.1"), "2026-02-01", &[]);
        assert_eq!(
            text,
            "# Changelog of x\n\n## Unreleased\n\n## 0.1.1 - 2026-02-01\n\n- **added:** a thing\n  that is long\n- **fixed:** a fault\n\n## 0.1.0 - 2026-01-31\n\n- **added:** all\n"
        );
        assert_eq!(Changelog::parse(&text).mistakes, []);
    }

    #[test]
    fn preparing_again_keeps_one_heading_and_every_line_once() {
        let follow =
            |version: &str, breaking| Follow { package: "y".to_owned(), version: v(version), breaking };
        let last = v("0.1.0");
        let once = Changelog::parse(TEXT).released(
            Some(&last),
            &v("0.1.1"),
            "2026-02-01",
            &[follow("0.3.1", false)],
        );
        let same = Changelog::parse(&once).released(
            Some(&last),
            &v("0.1.1"),
            "2026-02-01",
            &[follow("0.3.1", false)],
        );
        assert_eq!(once, same);
        let higher = Changelog::parse(&once).released(
            Some(&last),
            &v("0.2.0"),
            "2026-02-02",
            &[follow("0.4.0", true)],
        );
        let log = Changelog::parse(&higher);
        assert!(log.version(&v("0.1.1")).is_none(), "{higher}");
        let lines: Vec<&str> =
            log.version(&v("0.2.0")).unwrap().entries.iter().map(|entry| entry.text.as_str()).collect();
        assert_eq!(lines.len(), 3, "{higher}");
        assert_eq!(lines[2], "- **breaking:** uses y 0.4.0");
    }

    #[test]
    fn a_line_of_a_package_with_a_longer_name_stays() {
        let text =
            "# C\n\n## Unreleased\n\n- **changed:** uses y-more 0.2.0\n- **changed:** uses y now and then\n";
        let follow = Follow { package: "y".to_owned(), version: v("0.3.0"), breaking: false };
        let text = Changelog::parse(text).released(None, &v("0.1.0"), "2026-02-01", &[follow]);
        for line in ["uses y-more 0.2.0", "uses y now and then", "uses y 0.3.0"] {
            assert!(text.contains(line), "{text}");
        }
    }

    #[test]
    fn a_first_release_and_a_changelog_without_sections_get_a_heading() {
        let text = Changelog::parse("# C\n").released(None, &v("0.1.0"), "2026-02-01", &[]);
        assert_eq!(text, "# C\n\n## Unreleased\n\n## 0.1.0 - 2026-02-01\n");
        let prose = "# C\n\n## Unreleased\n\nThe first one.\n\n- **added:** all\n";
        let text = Changelog::parse(prose).released(None, &v("0.1.0"), "2026-02-01", &[]);
        assert_eq!(
            text,
            "# C\n\n## Unreleased\n\n## 0.1.0 - 2026-02-01\n\nThe first one.\n\n- **added:** all\n"
        );
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        let text = "# C\n\n## 0.1.0 - 2026-02-30\n\n- a line\n- **new:** a line\n- **fixed:** \n\n### Fixed\n\n## 0.1.0 - 2026-01-01\n\n## 0.2.0 - 2026-01-01\n\n## Unreleased\n";
        let lines: Vec<usize> = Changelog::parse(text).mistakes.iter().map(|mistake| mistake.line).collect();
        assert_eq!(lines, [3, 5, 6, 7, 9, 13, 15]);
    }
}
