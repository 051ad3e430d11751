//! Configuration of the double, so that programs reach it by name as they reach any provider.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;

use super::{ScriptedProvider, VOLUME, World, parse_fault};
use crate::{Cloud, Error, ErrorKind, OptionKind, OptionSpec, Provider, Result, Settings, tags};

/// The options of the double.
pub const OPTIONS: &[OptionSpec] = &[
    OptionSpec::text(
        "scripted-world",
        "Name of the world, shared by all providers of this process that name it",
    )
    .env("SCRIPTED_WORLD"),
    OptionSpec::new("scripted-latency", OptionKind::Duration, "How long each remote call takes")
        .env("SCRIPTED_LATENCY")
        .default("0s"),
    OptionSpec::new("scripted-boot-time", OptionKind::Duration, "How long an instance needs to start")
        .env("SCRIPTED_BOOT_TIME")
        .default("0s"),
    OptionSpec::text("scripted-address", "Address of every instance, for guests that a test runs itself")
        .env("SCRIPTED_ADDRESS"),
    OptionSpec::new(
        "scripted-faults",
        OptionKind::List,
        "Faults as <operation>:<nth>[+]:<before|after|hang-before|hang-after|kind of error>",
    )
    .env("SCRIPTED_FAULTS"),
    OptionSpec::int(
        "scripted-volumes",
        0,
        100,
        "Volumes of the user that exist at the start, s-000001 and on",
    )
    .env("SCRIPTED_VOLUMES")
    .default("0"),
    OptionSpec::new("scripted-tags", OptionKind::Map, "Tags of the user on everything that is made")
        .env("SCRIPTED_TAGS"),
    OptionSpec::bool(
        "scripted-confidential",
        "Ask for confidential machines unless a request says otherwise",
    )
    .env("SCRIPTED_CONFIDENTIAL")
    .default("false"),
    OptionSpec::text("scripted-key", "A credential that nobody checks, to see that it is never shown")
        .env("SCRIPTED_KEY")
        .secret(),
];

/// Builds a [`ScriptedProvider`].
#[derive(Debug)]
pub struct ScriptedCloud {
    settings: Settings,
    world: Option<World>,
}

impl Default for ScriptedCloud {
    fn default() -> Self {
        Self { settings: Settings::new(OPTIONS), world: None }
    }
}

impl ScriptedCloud {
    /// Starts with the world that the test holds.
    pub fn over(world: &World) -> Self {
        Self { world: Some(world.clone()), ..Self::default() }
    }
}

#[async_trait]
impl Cloud for ScriptedCloud {
    fn settings(&mut self) -> &mut Settings {
        &mut self.settings
    }

    async fn new_provider(&mut self) -> Result<Arc<dyn Provider>> {
        let (values, mut problems) = self.settings.parse_all();
        let mut faults = Vec::new();
        for text in values.list("scripted-faults") {
            match parse_fault(&text) {
                Ok(fault) => faults.push(fault),
                Err(error) => problems.push(format!("-scripted-faults or SCRIPTED_FAULTS: {error}")),
            }
        }
        let user_tags = values.map("scripted-tags");
        if let Err(error) = tags::check_user_tags(user_tags.iter().map(|(key, _)| key.as_str())) {
            problems.push(format!("-scripted-tags or SCRIPTED_TAGS: {error}"));
        }
        let address = values.optional("scripted-address").and_then(|text| {
            text.parse()
                .map_err(|_| {
                    problems.push(format!(
                        "-scripted-address or SCRIPTED_ADDRESS is {text:?}, expected an IP address"
                    ))
                })
                .ok()
        });
        if let Some(error) = Error::all(ErrorKind::Config, problems) {
            return Err(error);
        }
        let world = match (&self.world, values.optional("scripted-world")) {
            (Some(world), _) => world.clone(),
            (None, Some(name)) => World::named(&name),
            (None, None) => World::new(),
        };
        // What was not asked for stays as the test set it.
        let set = |time: Duration, apply: &dyn Fn(Duration)| (!time.is_zero()).then(|| apply(time));
        set(values.duration("scripted-latency"), &|time| world.set_latency(time));
        set(values.duration("scripted-boot-time"), &|time| world.set_boot_time(time));
        if let Some(address) = address {
            world.set_address(address);
        }
        for n in 0..values.int("scripted-volumes") {
            world.add(VOLUME, &format!("volume-{n}"), &[]);
        }
        faults.into_iter().for_each(|fault| world.script(fault));
        let confidential = values.bool("scripted-confidential");
        Ok(Arc::new(ScriptedProvider::new(&world).with_user_tags(user_tags).with_confidential(confidential)))
    }
}

crate::register! {
    name: "scripted",
    summary: "machines in memory whose calls, delays and failures a test scripts",
    options: OPTIONS,
    cloud: ScriptedCloud::default(),
}
