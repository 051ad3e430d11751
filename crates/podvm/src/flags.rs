//! Command lines in the syntax of Go's `flag` package.
//!
//! The unit files and `TLS_OPTIONS` of existing images are written for it: `-x v`, `-x=v`, `--x v` and `--x=v` mean
//! the same, a switch takes a value only after `=`, and options end at `--` or at the first word without a dash.

use std::collections::BTreeMap;

use anyhow::{Result, bail};

/// One option a program knows.
#[derive(Debug, Clone, Copy)]
pub struct Flag {
    /// Name without dashes.
    pub name: &'static str,
    /// A second, short name.
    pub short: Option<&'static str>,
    /// Value when the option is not given; switches have `"false"`.
    pub default: &'static str,
    /// Whether the option is a switch.
    pub switch: bool,
    /// One line for the usage text.
    pub help: &'static str,
}

impl Flag {
    /// Describes an option that takes a value.
    pub const fn value(name: &'static str, default: &'static str, help: &'static str) -> Self {
        Self { name, short: None, default, switch: false, help }
    }

    /// Describes a switch that is off by default.
    pub const fn switch(name: &'static str, help: &'static str) -> Self {
        Self { name, short: None, default: "false", switch: true, help }
    }

    /// Adds a short name.
    pub const fn with_short(mut self, short: &'static str) -> Self {
        self.short = Some(short);
        self
    }
}

/// What a command line said.
#[derive(Debug)]
pub struct Parsed {
    values: BTreeMap<&'static str, String>,
    given: Vec<&'static str>,
    /// The words after the options.
    pub rest: Vec<String>,
    /// Whether `-h`, `-help` or `--help` was there.
    pub help: bool,
}

impl Parsed {
    /// Text of an option, or its default.
    ///
    /// # Panics
    ///
    /// When `name` is not among the flags that were parsed, which is a mistake in the program.
    pub fn text(&self, name: &str) -> &str {
        self.values.get(name).expect("every declared flag has a value")
    }

    /// Path or text of an option; `None` when it is empty.
    pub fn non_empty(&self, name: &str) -> Option<String> {
        let text = self.text(name);
        (!text.is_empty()).then(|| text.to_owned())
    }

    /// State of a switch.
    pub fn is_on(&self, name: &str) -> bool {
        self.text(name) == "true"
    }

    /// Whether the option was typed.
    pub fn was_given(&self, name: &str) -> bool {
        self.given.contains(&name)
    }
}

/// Reads a command line without the program's name.
///
/// # Errors
///
/// An unknown option, an option without its value, or a switch whose value is no Go boolean.
pub fn parse(flags: &[Flag], args: impl IntoIterator<Item = String>) -> Result<Parsed> {
    let values = flags.iter().map(|f| (f.name, f.default.to_owned())).collect();
    let mut parsed = Parsed { values, given: Vec::new(), rest: Vec::new(), help: false };
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let Some(body) = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')) else {
            parsed.rest.push(arg);
            break;
        };
        if body.is_empty() {
            // A single dash is an ordinary word, two dashes end the options.
            if arg == "-" {
                parsed.rest.push(arg);
            }
            break;
        }
        let (name, inline) = match body.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (body, None),
        };
        let Some(flag) = flags.iter().find(|f| f.name == name || f.short == Some(name)) else {
            if name == "h" || name == "help" {
                parsed.help = true;
                continue;
            }
            bail!("unknown option -{name}");
        };
        let value = match (flag.switch, inline) {
            (true, None) => "true".to_owned(),
            (true, Some(value)) => boolean(&value)
                .ok_or_else(|| anyhow::anyhow!("option -{name}: {value:?} is not true or false"))?
                .to_string(),
            (false, Some(value)) => value,
            (false, None) => match args.next() {
                Some(value) => value,
                None => bail!("option -{name} needs a value"),
            },
        };
        parsed.values.insert(flag.name, value);
        parsed.given.push(flag.name);
    }
    parsed.rest.extend(args);
    Ok(parsed)
}

/// Writes the usage text of a program.
pub fn usage(program: &str, flags: &[Flag]) -> String {
    let mut text = format!("Usage of {program}:\n");
    for flag in flags {
        let short = flag.short.map(|s| format!(", -{s}")).unwrap_or_default();
        let default = match (flag.switch, flag.default) {
            (true, _) | (_, "") => String::new(),
            (false, default) => format!(" (default {default})"),
        };
        text.push_str(&format!("  -{}{short}\n        {}{default}\n", flag.name, flag.help));
    }
    text
}

/// The booleans that Go's `strconv.ParseBool` takes.
fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAGS: &[Flag] = &[
        Flag::value("config", "/run/peerpod/apf.json", "file"),
        Flag::switch("disable-tls", "plain TCP"),
        Flag::value("user-data-fetch-timeout", "180", "seconds").with_short("t"),
    ];

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn one_or_two_dashes_with_or_without_equals_mean_the_same() {
        for line in ["-config x", "-config=x", "--config x", "--config=x"] {
            assert_eq!(parse(FLAGS, words(line)).unwrap().text("config"), "x", "{line}");
        }
    }

    #[test]
    fn defaults_hold_and_are_told_apart_from_typed_values() {
        let parsed = parse(FLAGS, words("-t 180")).unwrap();
        assert_eq!(parsed.text("config"), "/run/peerpod/apf.json");
        assert!(!parsed.was_given("config"));
        assert!(parsed.was_given("user-data-fetch-timeout"));
    }

    #[test]
    fn a_switch_takes_a_value_only_after_equals() {
        let parsed = parse(FLAGS, words("-disable-tls false")).unwrap();
        assert!(parsed.is_on("disable-tls"));
        assert_eq!(parsed.rest, ["false"]);
        assert!(!parse(FLAGS, words("-disable-tls=false")).unwrap().is_on("disable-tls"));
        assert!(parse(FLAGS, words("-disable-tls=yes")).is_err());
    }

    #[test]
    fn options_end_at_two_dashes_and_at_the_first_word() {
        assert_eq!(parse(FLAGS, words("-- -config x")).unwrap().rest, ["-config", "x"]);
        assert_eq!(parse(FLAGS, words("word -config x")).unwrap().rest, ["word", "-config", "x"]);
    }

    #[test]
    fn unknown_options_and_missing_values_are_errors_that_name_the_option() {
        let error = parse(FLAGS, words("-confg x")).unwrap_err().to_string();
        assert!(error.contains("-confg"), "{error}");
        let error = parse(FLAGS, words("-config")).unwrap_err().to_string();
        assert!(error.contains("-config needs a value"), "{error}");
    }
}
