//! Go's flag syntax in front of clap.

use std::ffi::{OsStr, OsString};

use super::{OptionKind, OptionSpec, parse_bool};
use crate::{Error, ErrorKind, Result};

/// Rewrites Go-style arguments (`-imageid x`, `-x=v`, `--x v`, `-disable-cvm=false`) as `--name=value` for clap.
///
/// `args` is without the program's name. `-h` and `-help` become `--help`.
///
/// # Errors
///
/// [`ErrorKind::Config`] naming every unknown flag, flag without its value and argument that is no flag.
pub fn go_flags<'a>(
    specs: impl IntoIterator<Item = &'a OptionSpec>,
    args: &[OsString],
) -> Result<Vec<OsString>> {
    let specs: Vec<&OptionSpec> = specs.into_iter().collect();
    let mut out = Vec::new();
    let mut problems = Vec::new();
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        let text = arg.to_string_lossy();
        let Some(body) = text.strip_prefix("--").or_else(|| text.strip_prefix('-')).filter(|b| !b.is_empty())
        else {
            problems.push(format!("unexpected argument {text:?}: flags begin with a dash"));
            continue;
        };
        let (name, value) = match body.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (body, None),
        };
        if matches!(name, "h" | "help") {
            out.push("--help".into());
            continue;
        }
        let Some(spec) = specs.iter().find(|s| s.flag == name) else {
            let near = closest(name, specs.iter().map(|s| s.flag));
            let hint = near.map(|n| format!(", did you mean -{n}?")).unwrap_or_default();
            problems.push(format!("unknown flag -{name}{hint}"));
            // Its value, if it has one, is not a second mistake.
            if value.is_none() && rest.as_slice().first().is_some_and(|a| !is_flag(a)) {
                rest.next();
            }
            continue;
        };
        let value = match (spec.kind, value) {
            (OptionKind::Bool, None) => "true".to_owned(),
            (OptionKind::Bool, Some(value)) if parse_bool(&value).is_err() => {
                problems.push(format!("-{name}={value}: expected true or false"));
                continue;
            }
            (_, Some(value)) => value,
            (_, None) => match rest.next() {
                Some(value) => value.to_string_lossy().into_owned(),
                None => {
                    problems.push(format!("flag -{name} needs a value"));
                    continue;
                }
            },
        };
        out.push(format!("--{name}={value}").into());
    }
    match Error::all(ErrorKind::Config, problems) {
        Some(error) => Err(error),
        None => Ok(out),
    }
}

fn is_flag(arg: &OsStr) -> bool {
    arg.to_string_lossy().starts_with('-')
}

/// Returns the candidate that needs the fewest edits, when it is near enough to be a slip.
pub(crate) fn closest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let limit = word.len().div_ceil(4).max(1);
    candidates.map(|c| (distance(word, c), c)).filter(|(d, _)| *d <= limit).min().map(|(_, c)| c)
}

/// Edit distance of Levenshtein.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut left_up = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let up = row[j + 1];
            row[j + 1] = (left_up + usize::from(ca != *cb)).min(up + 1).min(row[j] + 1);
            left_up = up;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPECS: &[OptionSpec] = &[
        OptionSpec::text("imageid", ""),
        OptionSpec::bool("disable-cvm", ""),
        OptionSpec::new("proxy-timeout", OptionKind::Duration, ""),
    ];

    fn run(args: &[&str]) -> Result<Vec<String>> {
        let args: Vec<OsString> = args.iter().map(Into::into).collect();
        Ok(go_flags(SPECS, &args)?.into_iter().map(|a| a.into_string().unwrap()).collect())
    }

    #[test]
    fn every_go_form_is_accepted() {
        let expected = ["--imageid=x", "--disable-cvm=true"];
        for args in [
            &["-imageid", "x", "-disable-cvm"][..],
            &["--imageid=x", "--disable-cvm=true"],
            &["-imageid=x", "-disable-cvm=true"],
            &["--imageid", "x", "--disable-cvm"],
        ] {
            assert_eq!(run(args).unwrap(), expected, "{args:?}");
        }
        assert_eq!(run(&["-imageid", "-x"]).unwrap(), ["--imageid=-x"]);
        assert_eq!(run(&["-disable-cvm=false"]).unwrap(), ["--disable-cvm=false"]);
        assert_eq!(run(&["-help"]).unwrap(), ["--help"]);
    }

    #[test]
    fn all_mistakes_are_reported_together() {
        let text =
            run(&["-imagid", "x", "stray", "-disable-cvm=maybe", "-proxy-timeout"]).unwrap_err().to_string();
        for part in [
            "unknown flag -imagid, did you mean -imageid?",
            "\"stray\"",
            "-disable-cvm=maybe",
            "-proxy-timeout needs",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }
}
