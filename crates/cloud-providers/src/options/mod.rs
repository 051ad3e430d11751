//! Options: declared once, read from flags, variables or a mapping, parsed strictly.

mod env;
mod go_flags;
mod settings;
mod spec;
mod table;
mod value;

pub use env::{EnvSource, MapEnv, Mapping, ProcessEnv};
pub(crate) use go_flags::closest;
pub use go_flags::go_flags;
pub use settings::{Settings, Source, Values};
pub use spec::{OptionKind, OptionSpec};
pub use table::{mapping_schema, options_table};
pub use value::{format_go_duration, parse_bool, parse_go_duration, parse_list, parse_map};
