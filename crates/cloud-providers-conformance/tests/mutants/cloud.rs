//! Clouds that read their configuration wrongly.

use std::sync::{Arc, Mutex, PoisonError};

use cloud_providers::{
    Cloud, EnvSource, Error, MapEnv, OptionKind, OptionSpec, Provider, Result, Settings, async_trait,
    scripted::{ScriptedCloud, ScriptedProvider, World},
};

/// What a cloud does wrongly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Break {
    TakesAnyTag,
    SharesSettings,
    PassesOverNonsense,
    TellsTheFirst,
    LogsTheKey,
}

/// What clouds that share their settings have loaded.
static SHARED: Mutex<Vec<(String, String)>> = Mutex::new(Vec::new());

pub(crate) struct BrokenCloud {
    inner: ScriptedCloud,
    world: World,
    how: Break,
}

impl BrokenCloud {
    pub(crate) fn new(world: &World, how: Break) -> Self {
        let mut inner = ScriptedCloud::over(world);
        if how == Break::SharesSettings {
            let shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner).clone();
            inner.settings().load_env(&MapEnv::new(shared));
        }
        Self { inner, world: world.clone(), how }
    }
}

/// Shows only values that parse, at the first look.
struct Lenient<'a>(&'a dyn EnvSource);

impl EnvSource for Lenient<'_> {
    fn variable(&self, name: &str) -> Option<String> {
        self.0.variable(name)
    }

    fn option(&self, spec: &OptionSpec) -> Option<String> {
        let text = self.0.option(spec)?;
        let number = matches!(spec.kind, OptionKind::Int { .. });
        (!number || text.parse::<i64>().is_ok()).then_some(text)
    }
}

#[async_trait]
impl Cloud for BrokenCloud {
    fn settings(&mut self) -> &mut Settings {
        self.inner.settings()
    }

    fn load_env(&mut self, env: &dyn EnvSource) -> Result<()> {
        match self.how {
            Break::PassesOverNonsense => self.inner.load_env(&Lenient(env)),
            Break::SharesSettings => {
                let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
                // One variable, so that other cases are not disturbed.
                let name = "SCRIPTED_LATENCY";
                shared.extend(env.variable(name).map(|value| (name.to_owned(), value)));
                self.inner.load_env(env)
            }
            _ => self.inner.load_env(env),
        }
    }

    fn problems(&mut self) -> Vec<String> {
        self.inner.problems()
    }

    async fn new_provider(&mut self) -> Result<Arc<dyn Provider>> {
        match self.how {
            Break::TakesAnyTag => {
                let tags = self.inner.settings().parse()?.map("scripted-tags");
                Ok(Arc::new(ScriptedProvider::new(&self.world).with_user_tags(tags)))
            }
            Break::LogsTheKey => {
                let key = self.inner.settings().parse()?.text("scripted-key");
                tracing::info!(key, "logging in");
                self.inner.new_provider().await
            }
            Break::TellsTheFirst => match self.inner.problems().into_iter().next() {
                Some(first) => Err(Error::config(first)),
                None => self.inner.new_provider().await,
            },
            _ => self.inner.new_provider().await,
        }
    }
}
