//! The declaration of one option.

/// What text an option accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OptionKind {
    /// Any text.
    Text,
    /// `true` or `false`, as a flag also without a value.
    Bool,
    /// A whole number within the bounds.
    Int {
        /// Least value.
        min: i64,
        /// Greatest value.
        max: i64,
    },
    /// A number with a fraction.
    Float,
    /// A duration in Go's syntax, such as `1.5h` or `5m0s`.
    Duration,
    /// Texts separated by commas; trimmed, empty ones dropped.
    List,
    /// `key=value` pairs separated by commas.
    Map,
    /// One of these words.
    Word(&'static [&'static str]),
}

impl OptionKind {
    /// Returns the expected form, for error messages and tables.
    pub fn expected(self) -> String {
        match self {
            Self::Text => "text".into(),
            Self::Bool => "true or false".into(),
            Self::Int { min, max } if max == i64::MAX => format!("a whole number of at least {min}"),
            Self::Int { min, max } => format!("a whole number from {min} to {max}"),
            Self::Float => "a number".into(),
            Self::Duration => "a duration such as 300ms, 90s, 5m0s or 1.5h".into(),
            Self::List => "values separated by commas".into(),
            Self::Map => "key=value pairs separated by commas".into(),
            Self::Word(words) => format!("one of {}", words.join(", ")),
        }
    }
}

/// One option: flag, variable, type, default, required, secret and help stand here and nowhere else.
///
/// Flags, strict parsing, help, redaction, tables in the docs and the keys of a `provider:` mapping come from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionSpec {
    /// Flag name without dashes; also the key in a mapping.
    pub flag: &'static str,
    /// Variable name, `None` for options of the command line only.
    pub env: Option<&'static str>,
    /// Accepted text.
    pub kind: OptionKind,
    /// Default in the option's text form.
    pub default: Option<&'static str>,
    /// A value must come from somewhere.
    pub required: bool,
    /// The value appears in no help, log or dump.
    pub secret: bool,
    /// What it is for, one sentence without final dot.
    pub help: &'static str,
}

impl OptionSpec {
    /// Declares an option of `kind`.
    pub const fn new(flag: &'static str, kind: OptionKind, help: &'static str) -> Self {
        Self { flag, env: None, kind, default: None, required: false, secret: false, help }
    }

    /// Declares a text option.
    pub const fn text(flag: &'static str, help: &'static str) -> Self {
        Self::new(flag, OptionKind::Text, help)
    }

    /// Declares a boolean option.
    pub const fn bool(flag: &'static str, help: &'static str) -> Self {
        Self::new(flag, OptionKind::Bool, help)
    }

    /// Declares a whole number within bounds.
    pub const fn int(flag: &'static str, min: i64, max: i64, help: &'static str) -> Self {
        Self::new(flag, OptionKind::Int { min, max }, help)
    }

    /// Sets the variable.
    #[must_use]
    pub const fn env(mut self, name: &'static str) -> Self {
        self.env = Some(name);
        self
    }

    /// Sets the default.
    #[must_use]
    pub const fn default(mut self, text: &'static str) -> Self {
        self.default = Some(text);
        self
    }

    /// Demands a value.
    #[must_use]
    pub const fn required(mut self) -> Self {
        self.required = true;
        self
    }

    /// Keeps the value out of everything that is shown.
    #[must_use]
    pub const fn secret(mut self) -> Self {
        self.secret = true;
        self
    }

    /// Names the option for a message: the variable where there is one, and the flag.
    pub fn names(&self) -> String {
        match self.env {
            Some(env) => format!("-{} or {env}", self.flag),
            None => format!("-{}", self.flag),
        }
    }
}
