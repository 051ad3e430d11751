//! Go's flag syntax in front of clap.

use std::ffi::{OsStr, OsString};

use super::{OptionKind, OptionSpec, parse_bool};
use crate::{Error, ErrorKind, Result};

/// What Go's syntax needs to know of a flag.
#[derive(Clone, Copy)]
pub(super) struct Flag<'a> {
    pub(super) name: &'a str,
    /// It may stand without a value.
    pub(super) boolean: bool,
    /// Clap takes it without a value only.
    pub(super) bare: bool,
    pub(super) secret: bool,
}

impl<'a> From<&'a OptionSpec> for Flag<'a> {
    fn from(spec: &'a OptionSpec) -> Self {
        Self { name: spec.flag, boolean: spec.kind == OptionKind::Bool, bare: false, secret: spec.secret }
    }
}

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
    let flags: Vec<Flag<'_>> = specs.into_iter().map(Flag::from).collect();
    let (args, problems) = rewrite(&flags, args);
    match Error::all(ErrorKind::Config, problems) {
        Some(error) => Err(error),
        None => Ok(args),
    }
}

/// Returns what clap can take beside the mistakes.
pub(super) fn rewrite(flags: &[Flag<'_>], args: &[OsString]) -> (Vec<OsString>, Vec<String>) {
    let mut out = Vec::new();
    let mut problems = Vec::new();
    let mut rest = args.iter();
    // The flag before an argument that should not be there: the argument is often meant for it.
    let mut before: Option<Flag<'_>> = None;
    while let Some(arg) = rest.next() {
        let Some(text) = arg.to_str() else {
            problems.push(format!("argument {:?} is not UTF-8", arg.to_string_lossy()));
            continue;
        };
        let Some(body) = text.strip_prefix("--").or_else(|| text.strip_prefix('-')).filter(|b| !b.is_empty())
        else {
            problems.push(stray(text, before));
            continue;
        };
        let (name, value) = match body.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (body, None),
        };
        if matches!(name, "h" | "help") {
            out.push("--help".into());
            continue;
        }
        let Some(flag) = flags.iter().find(|f| f.name == name) else {
            let near = closest(name, flags.iter().map(|f| f.name));
            let hint = near.map(|n| format!(", did you mean -{n}?")).unwrap_or_default();
            problems.push(format!("unknown flag -{name}{hint}"));
            // Its value, if it has one, is not a second mistake.
            if value.is_none() && rest.as_slice().first().is_some_and(|a| !is_flag(a)) {
                rest.next();
            }
            continue;
        };
        before = Some(*flag);
        let value = match (flag.boolean, value) {
            (true, None) => "true",
            (true, Some(value)) if parse_bool(value).is_err() => {
                problems.push(format!("-{name}={value}: expected true or false"));
                continue;
            }
            (_, Some(value)) => value,
            (false, None) => match rest.next().map(|a| a.to_str()) {
                Some(Some(value)) => value,
                Some(None) => {
                    problems.push(format!("the value of -{name} is not UTF-8"));
                    continue;
                }
                None => {
                    problems.push(format!("flag -{name} needs a value"));
                    continue;
                }
            },
        };
        match (flag.bare, parse_bool(value)) {
            (true, Ok(true)) => out.push(format!("--{name}").into()),
            (true, _) => {}
            (false, _) => out.push(format!("--{name}={value}").into()),
        }
    }
    (out, problems)
}

/// Describes an argument that is no flag. After a secret flag it is likely the rest of the secret, so it is not shown.
fn stray(text: &str, before: Option<Flag<'_>>) -> String {
    match before {
        Some(flag) if flag.secret => {
            format!("unexpected argument after -{}: put the value in quotes", flag.name)
        }
        Some(flag) if flag.boolean && parse_bool(text).is_ok() => {
            format!("unexpected argument {text:?}: write -{}={text}", flag.name)
        }
        _ => format!("unexpected argument {text:?}: flags begin with a dash"),
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
            "\"stray\": flags begin",
            "-disable-cvm=maybe",
            "-proxy-timeout needs",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn a_value_apart_from_its_boolean_flag_is_explained() {
        let text = run(&["-disable-cvm", "false"]).unwrap_err().to_string();
        assert_eq!(text, "unexpected argument \"false\": write -disable-cvm=false");
    }

    #[test]
    fn the_rest_of_a_secret_is_not_shown() {
        let specs = [OptionSpec::text("key", "").secret()];
        let args = ["-key".into(), "some".into(), "canary".into()];
        let text = go_flags(&specs, &args).unwrap_err().to_string();
        assert!(!text.contains("canary") && text.contains("after -key"), "{text}");
    }

    #[test]
    fn bytes_that_are_no_text_are_refused() {
        use std::os::unix::ffi::OsStringExt;
        let bad = || OsString::from_vec(vec![b'a', 0xff]);
        for args in [vec![bad()], vec!["-imageid".into(), bad()]] {
            assert!(go_flags(SPECS, &args).unwrap_err().to_string().contains("not UTF-8"));
        }
    }
}
