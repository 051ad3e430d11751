#![doc = include_str!("../README.md")]

mod provider;

use std::{collections::BTreeSet, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use cloud_providers::{
    Cloud, Error, ErrorKind, OptionKind, OptionSpec, Provider, Result, Settings, Values, async_trait,
};

pub use provider::MinimalProvider;

/// Each option is declared once: flags, variables, help, checks and docs come from it.
pub const OPTIONS: &[OptionSpec] = &[
    OptionSpec::text("minimal-folder", "Folder that has a file for each machine that is taken")
        .env("MINIMAL_FOLDER")
        .required(),
    OptionSpec::new("minimal-addresses", OptionKind::List, "Addresses of the machines that stand ready")
        .env("MINIMAL_ADDRESSES")
        .required(),
    OptionSpec::new(
        "minimal-start-timeout",
        OptionKind::Duration,
        "Longest time in which a machine comes up",
    )
    .env("MINIMAL_START_TIMEOUT")
    .default("5m0s"),
];

cloud_providers::register! {
    name: "minimal",
    summary: "machines that stand ready, handed out one by one: an example",
    options: OPTIONS,
    cloud: MinimalCloud::new(),
}

/// Reads the configuration and builds a [`MinimalProvider`].
#[derive(Debug)]
pub struct MinimalCloud(Settings);

impl MinimalCloud {
    /// Starts with nothing set.
    #[expect(clippy::new_without_default, reason = "a configuration value is made on purpose")]
    pub fn new() -> Self {
        Self(Settings::new(OPTIONS))
    }
}

#[async_trait]
impl Cloud for MinimalCloud {
    fn settings(&mut self) -> &mut Settings {
        &mut self.0
    }

    // Programs report these beside their own, before anything is made.
    fn problems(&mut self) -> Vec<String> {
        let (values, mut problems) = self.0.parse_all();
        Config::read(&values, &mut problems);
        problems
    }

    async fn new_provider(&mut self) -> Result<Arc<dyn Provider>> {
        let (values, mut problems) = self.0.parse_all();
        let config = Config::read(&values, &mut problems);
        match Error::all(ErrorKind::Config, problems) {
            Some(error) => Err(error),
            None => Ok(Arc::new(MinimalProvider::new(config)?)),
        }
    }
}

/// The options as types.
#[derive(Debug)]
struct Config {
    folder: PathBuf,
    addresses: BTreeSet<IpAddr>,
    start_timeout: Duration,
}

impl Config {
    fn read(values: &Values, problems: &mut Vec<String>) -> Self {
        let mut addresses = BTreeSet::new();
        for text in values.list("minimal-addresses") {
            match text.parse() {
                Ok(address) if addresses.insert(address) => {}
                Ok(address) => problems.push(format!("MINIMAL_ADDRESSES has {address} twice")),
                Err(_) => problems.push(format!("MINIMAL_ADDRESSES has {text:?}, which is no IP address")),
            }
        }
        let start_timeout = values.duration("minimal-start-timeout");
        Self { folder: values.text("minimal-folder").into(), addresses, start_timeout }
    }
}
