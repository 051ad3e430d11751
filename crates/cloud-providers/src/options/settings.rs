//! Collects values from every source and parses them once.

use std::{collections::BTreeMap, ffi::OsString, time::Duration};

use clap::{Arg, ArgAction, Command};
use secrecy::SecretString;

use super::{
    EnvSource, OptionKind, OptionSpec,
    go_flags::{Flag, rewrite},
    parse_bool, parse_go_duration, parse_list, parse_map,
};
use crate::{Error, ErrorKind, Result};

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Source {
    /// The command line.
    Flag,
    /// A variable or a mapping key, as its source describes it.
    Env(String),
    /// The declaration.
    Default,
}

/// Raw values of a set of options, before they are parsed.
#[derive(Clone)]
pub struct Settings {
    specs: &'static [OptionSpec],
    raw: BTreeMap<&'static str, (String, Source)>,
    /// Mistakes of the command line, kept so that they are reported beside those of the values.
    mistakes: Vec<String>,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut map = f.debug_map();
        for (flag, (value, _)) in &self.raw {
            let secret = self.specs.iter().any(|s| s.flag == *flag && s.secret);
            map.entry(flag, if secret { &"[redacted]" } else { value });
        }
        map.finish()
    }
}

impl Settings {
    /// Starts with no value.
    pub fn new(specs: &'static [OptionSpec]) -> Self {
        Self { specs, raw: BTreeMap::new(), mistakes: Vec::new() }
    }

    /// Returns the declarations.
    pub fn specs(&self) -> &'static [OptionSpec] {
        self.specs
    }

    /// Adds a flag for each option to `command`. Help shows declared defaults, never a value from the environment.
    pub fn add_flags(&self, command: Command) -> Command {
        add_flags(self.specs, command)
    }

    /// Adds the flags to `command`, parses `args` and keeps what was typed.
    ///
    /// Unknown flags, flags without their value and stray arguments are kept too: [`Settings::parse_all`] reports them
    /// together with the values that do not parse.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] for what clap refuses; asking for help is an error of that kind too, with the help text as
    /// message and the code `help`.
    pub fn parse_cmd(&mut self, command: Command, args: &[OsString]) -> Result<clap::ArgMatches> {
        self.parse_cmd_with(command, &[], args)
    }

    /// Like [`Settings::parse_cmd`], with more options that the caller takes from the matches by [`Settings::take`].
    ///
    /// # Errors
    ///
    /// As [`Settings::parse_cmd`].
    pub fn parse_cmd_with(
        &mut self,
        command: Command,
        more: &'static [OptionSpec],
        args: &[OsString],
    ) -> Result<clap::ArgMatches> {
        // The program may have added its own options to the command already; they take part in the Go syntax.
        let mut known: Vec<Flag<'_>> = self.specs.iter().chain(more).map(Flag::from).collect();
        known.extend(command.get_arguments().filter_map(flag_of_arg));
        let (args, mistakes) = rewrite(&known, args);
        self.mistakes = mistakes;
        let command = add_flags(more, self.add_flags(command)).no_binary_name(true);
        let matches = command.try_get_matches_from(args).map_err(|e| {
            let code = if e.kind() == clap::error::ErrorKind::DisplayHelp { "help" } else { "flag" };
            Error::config(e.render().to_string().trim_end().to_owned()).with_cloud(code, "")
        })?;
        self.take(&matches);
        Ok(matches)
    }

    /// Takes the values of this set's flags from parsed matches.
    pub fn take(&mut self, matches: &clap::ArgMatches) {
        for spec in self.specs {
            if let Ok(Some(values)) = matches.try_get_many::<String>(spec.flag) {
                let values: Vec<&str> = values.map(String::as_str).collect();
                let text = match spec.kind {
                    OptionKind::List | OptionKind::Map => values.join(","),
                    _ => values.last().copied().unwrap_or_default().to_owned(),
                };
                self.raw.insert(spec.flag, (text, Source::Flag));
            }
        }
    }

    /// Fills what is still open.
    pub fn load_env(&mut self, env: &dyn EnvSource) {
        for spec in self.specs {
            if !self.raw.contains_key(spec.flag)
                && let Some(value) = env.option(spec)
            {
                self.raw.insert(spec.flag, (value, Source::Env(env.describe(spec))));
            }
        }
    }

    /// Parses every value and reports all problems together.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] with key, value (unless secret) and expected form of each problem.
    pub fn parse(&self) -> Result<Values> {
        let (values, problems) = self.parse_all();
        match Error::all(ErrorKind::Config, problems) {
            Some(error) => Err(error),
            None => Ok(values),
        }
    }

    /// Parses every value and returns the problems beside what could be read, so that a provider adds its own.
    pub fn parse_all(&self) -> (Values, Vec<String>) {
        let mut values = BTreeMap::new();
        let mut problems = self.mistakes.clone();
        for spec in self.specs {
            let found = self
                .raw
                .get(spec.flag)
                .cloned()
                .or_else(|| spec.default.map(|d| (d.to_owned(), Source::Default)));
            let Some((text, source)) = found else {
                if spec.required {
                    problems.push(format!("{} is required: {}", spec.names(), spec.help));
                }
                continue;
            };
            if spec.required && text.is_empty() {
                problems.push(format!("{} is required: {}", spec.names(), spec.help));
            }
            match parse_value(spec.kind, &text) {
                Ok(value) => {
                    values.insert(spec.flag, Entry { value, source, text });
                }
                Err(expected) => {
                    let place = match &source {
                        Source::Flag => format!("flag -{}", spec.flag),
                        Source::Env(place) => place.clone(),
                        Source::Default => format!("default of -{}", spec.flag),
                    };
                    // What a parser expected may quote a part of what it got.
                    problems.push(match spec.secret {
                        true => format!("{place} is [redacted], expected {}", spec.kind.expected()),
                        false => format!("{place} is {text:?}, expected {expected}"),
                    });
                }
            }
        }
        (Values { specs: self.specs, entries: values }, problems)
    }
}

fn add_flags(specs: &'static [OptionSpec], mut command: Command) -> Command {
    for spec in specs {
        let mut help = spec.help.to_owned();
        if let Some(env) = spec.env {
            help.push_str(&format!(" [variable: {env}]"));
        }
        if let Some(default) = spec.default.filter(|d| !d.is_empty() && !spec.secret) {
            help.push_str(&format!(" [default: {default}]"));
        }
        if spec.required {
            help.push_str(" [required]");
        }
        let arg = Arg::new(spec.flag).long(spec.flag).help(help).num_args(1);
        // A repeated list collects; of anything else the last one counts, as in Go.
        let mut arg = match spec.kind {
            OptionKind::List | OptionKind::Map => arg.action(ArgAction::Append),
            _ => arg.action(ArgAction::Set).overrides_with(spec.flag),
        };
        if spec.kind == OptionKind::Bool {
            arg = arg.num_args(0..=1).require_equals(true).default_missing_value("true").value_name("BOOL");
        }
        command = command.arg(arg.allow_hyphen_values(true));
    }
    command
}

/// Describes an argument that a program added by hand, as far as Go's syntax needs it.
fn flag_of_arg(arg: &Arg) -> Option<Flag<'_>> {
    let takes_value =
        arg.get_action().takes_values() && arg.get_num_args().is_none_or(|n| n.min_values() > 0);
    let bare = !arg.get_action().takes_values();
    Some(Flag { name: arg.get_long()?, boolean: !takes_value, bare, secret: false })
}

#[derive(Clone)]
enum Value {
    Text(String),
    Bool(bool),
    Int(i64),
    Float(f64),
    Duration(Duration),
    List(Vec<String>),
    Map(Vec<(String, String)>),
}

#[derive(Clone)]
struct Entry {
    value: Value,
    source: Source,
    text: String,
}

fn parse_value(kind: OptionKind, text: &str) -> Result<Value, String> {
    let expected = || kind.expected();
    Ok(match kind {
        OptionKind::Text => Value::Text(text.to_owned()),
        OptionKind::Bool => Value::Bool(parse_bool(text)?),
        OptionKind::Int { min, max } => {
            let n: i64 = text.trim().parse().map_err(|_| expected())?;
            if n < min || n > max {
                return Err(expected());
            }
            Value::Int(n)
        }
        OptionKind::Float => {
            let n: f64 = text.trim().parse().map_err(|_| expected())?;
            if !n.is_finite() {
                return Err(expected());
            }
            Value::Float(n)
        }
        OptionKind::Duration => Value::Duration(parse_go_duration(text)?),
        OptionKind::List => Value::List(parse_list(text)),
        OptionKind::Map => Value::Map(parse_map(text)?),
        OptionKind::Word(words) => {
            if !text.is_empty() && !words.contains(&text) {
                return Err(expected());
            }
            Value::Text(text.to_owned())
        }
    })
}

/// Parsed values of a set of options. Getters return the zero value of their type when nothing was given.
#[derive(Clone)]
pub struct Values {
    specs: &'static [OptionSpec],
    entries: BTreeMap<&'static str, Entry>,
}

impl std::fmt::Debug for Values {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.shown()).finish()
    }
}

macro_rules! getter {
    ($(#[$doc:meta])* $name:ident, $variant:ident, $type:ty, $zero:expr) => {
        $(#[$doc])*
        pub fn $name(&self, flag: &str) -> $type {
            match self.entries.get(flag).map(|e| &e.value) {
                Some(Value::$variant(value)) => value.clone(),
                _ => $zero,
            }
        }
    };
}

impl Values {
    getter!(
        /// Returns a text, empty when not given.
        text, Text, String, String::new());
    getter!(
        /// Returns a boolean, false when not given.
        bool, Bool, bool, false);
    getter!(
        /// Returns a whole number, 0 when not given.
        int, Int, i64, 0);
    getter!(
        /// Returns a number with a fraction, 0 when not given.
        float, Float, f64, 0.0);
    getter!(
        /// Returns a duration, zero when not given.
        duration, Duration, Duration, Duration::ZERO);
    getter!(
        /// Returns a list, empty when not given.
        list, List, Vec<String>, Vec::new());
    getter!(
        /// Returns pairs, empty when not given.
        map, Map, Vec<(String, String)>, Vec::new());

    /// Returns a text when it was given and is not empty.
    pub fn optional(&self, flag: &str) -> Option<String> {
        Some(self.text(flag)).filter(|t| !t.is_empty())
    }

    /// Returns a credential when it was given and is not empty.
    pub fn secret(&self, flag: &str) -> Option<SecretString> {
        self.optional(flag).map(SecretString::from)
    }

    /// Returns where a value came from.
    pub fn source(&self, flag: &str) -> Option<&Source> {
        self.entries.get(flag).map(|e| &e.source)
    }

    /// Returns flag and text of every value, secrets redacted: for the log line at start.
    pub fn shown(&self) -> Vec<(&'static str, String)> {
        let secret = |flag: &str| self.specs.iter().any(|s| s.flag == flag && s.secret);
        let shown =
            |flag: &str, e: &Entry| if secret(flag) { "[redacted]".to_owned() } else { e.text.clone() };
        self.entries.iter().map(|(flag, e)| (*flag, shown(flag, e))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MapEnv;

    const SPECS: &[OptionSpec] = &[
        OptionSpec::text("imageid", "image").env("IMAGE").required(),
        OptionSpec::bool("disable-cvm", "no CVM").env("DISABLECVM").default("true"),
        OptionSpec::int("size", 1, 64, "size").env("SIZE").default("30"),
        OptionSpec::new("timeout", OptionKind::Duration, "limit").env("TIMEOUT").default("5m0s"),
        OptionSpec::new("groups", OptionKind::List, "groups").env("GROUPS"),
        OptionSpec::text("key", "key").env("KEY").secret(),
    ];

    fn settings(args: &[&str], env: &[(&str, &str)]) -> Settings {
        let mut settings = Settings::new(SPECS);
        let args: Vec<OsString> = args.iter().map(Into::into).collect();
        settings.parse_cmd(Command::new("x"), &args).unwrap();
        settings.load_env(&MapEnv::new(env.iter().copied()));
        settings
    }

    #[test]
    fn a_flag_beats_a_variable_beats_the_default() {
        let values =
            settings(&["-imageid", "a", "-groups=x,y"], &[("IMAGE", "b"), ("GROUPS", "z"), ("SIZE", "7")])
                .parse()
                .unwrap();
        assert_eq!(values.text("imageid"), "a");
        assert_eq!(values.list("groups"), ["x", "y"], "a list replaces the list of a lower source");
        assert_eq!(values.int("size"), 7);
        assert!(values.bool("disable-cvm"));
        assert_eq!(values.duration("timeout"), Duration::from_secs(300));
        assert_eq!(values.source("imageid"), Some(&Source::Flag));
    }

    #[test]
    fn mistakes_of_the_command_line_are_reported_beside_bad_values() {
        let args = ["-imageid=a", "-disable-cvm=maybe", "-no-such-flag", "-groups=x"];
        let settings = settings(&args, &[("SIZE", "10abc")]);
        let text = settings.parse().unwrap_err().to_string();
        for part in ["3 problems", "-disable-cvm=maybe", "unknown flag -no-such-flag", "SIZE"] {
            assert!(text.contains(part), "{text}");
        }
        assert_eq!(settings.parse_all().0.list("groups"), ["x"], "what is right is taken all the same");
    }

    #[test]
    fn an_empty_variable_counts_as_not_set() {
        let values = settings(&["-imageid=a"], &[("SIZE", "")]).parse().unwrap();
        assert_eq!(values.int("size"), 30);
    }

    #[test]
    fn all_problems_are_reported_together_with_key_value_and_form() {
        let env = [("SIZE", "10abc"), ("TIMEOUT", "5"), ("DISABLECVM", "perhaps"), ("KEY", "s3cret")];
        let text = settings(&[], &env).parse().unwrap_err().to_string();
        for part in [
            "-imageid or IMAGE is required",
            "variable SIZE is \"10abc\", expected a whole number from 1 to 64",
            "variable TIMEOUT is \"5\", expected a duration",
            "variable DISABLECVM is \"perhaps\", expected true or false",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn secrets_are_never_shown() {
        let settings = settings(&["-imageid=a"], &[("KEY", "s3cret")]);
        let values = settings.parse().unwrap();
        assert!(!format!("{settings:?} {values:?}").contains("s3cret"));
        let help = settings.add_flags(Command::new("x")).render_help().to_string();
        assert!(!help.contains("s3cret") && help.contains("[variable: IMAGE]"), "{help}");
    }

    #[test]
    fn a_repeated_flag_takes_the_last_value_and_a_repeated_list_collects() {
        let values = settings(&["-imageid=a", "-imageid=b", "-groups=x", "-groups=y"], &[]).parse().unwrap();
        assert_eq!(values.text("imageid"), "b");
        assert_eq!(values.list("groups"), ["x", "y"]);
    }

    #[test]
    fn a_secret_that_does_not_parse_is_not_quoted() {
        const SECRET: &[OptionSpec] =
            &[OptionSpec::new("keys", OptionKind::Map, "keys").env("KEYS").secret().required()];
        let mut settings = Settings::new(SECRET);
        settings.load_env(&MapEnv::new([("KEYS", "a=1,canary")]));
        let text = settings.parse().unwrap_err().to_string();
        assert_eq!(text, "variable KEYS is [redacted], expected key=value pairs separated by commas");
    }

    #[test]
    fn a_programs_own_flags_follow_go_too() {
        let command = Command::new("x")
            .arg(Arg::new("socket").long("socket").num_args(1))
            .arg(Arg::new("verbose").long("verbose").action(ArgAction::SetTrue));
        let args: Vec<OsString> = ["-socket", "-x", "-verbose=true", "-imageid", "a"].map(Into::into).into();
        let matches = Settings::new(SPECS).parse_cmd(command, &args).unwrap();
        assert_eq!(matches.get_one::<String>("socket").unwrap(), "-x");
        assert!(matches.get_flag("verbose"));
    }

    #[test]
    fn help_is_told_apart() {
        let mut settings = Settings::new(SPECS);
        let error = settings.parse_cmd(Command::new("x"), &["-help".into()]).unwrap_err();
        assert_eq!(error.code(), Some("help"));
    }
}
