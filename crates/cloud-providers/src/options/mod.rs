//! Options: declared once, read from flags, variables or a mapping, parsed strictly.

mod env;
mod go_flags;
mod settings;
mod spec;
mod value;

pub use env::{EnvSource, MapEnv, Mapping, ProcessEnv};
pub use go_flags::go_flags;
pub use settings::{Settings, Source, Values};
pub use spec::{OptionKind, OptionSpec};
pub use value::{format_go_duration, parse_bool, parse_go_duration, parse_list, parse_map};
