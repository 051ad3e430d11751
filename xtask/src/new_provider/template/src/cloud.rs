//! Reads the configuration.

use std::sync::Arc;

use cloud_providers::{Cloud, Error, ErrorKind, Provider, Result, Settings, async_trait};

use crate::{OPTIONS, __Type__Provider, client::ApiClient, config::Config};

/// Builds a [`__Type__Provider`].
#[derive(Debug)]
pub struct __Type__Cloud {
    settings: Settings,
}

impl __Type__Cloud {
    /// Starts with nothing set.
    pub fn new() -> Self {
        Self { settings: Settings::new(OPTIONS) }
    }
}

impl Default for __Type__Cloud {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Cloud for __Type__Cloud {
    fn settings(&mut self) -> &mut Settings {
        &mut self.settings
    }

    fn problems(&mut self) -> Vec<String> {
        let (values, mut problems) = self.settings.parse_all();
        Config::read(&values, &mut problems);
        problems
    }

    /// Checks the options. The cloud is asked by `verify_config` and not here, so that a node starts without it.
    async fn new_provider(&mut self) -> Result<Arc<dyn Provider>> {
        let (values, mut problems) = self.settings.parse_all();
        let config = Config::read(&values, &mut problems);
        if let Some(error) = Error::all(ErrorKind::Config, problems) {
            return Err(error);
        }
        let client = Arc::new(ApiClient::new(&config)?);
        Ok(Arc::new(__Type__Provider::new(client, &config)))
    }
}

#[cfg(test)]
mod tests {
    use cloud_providers::{MapEnv, clap::Command};

    use super::*;

    #[tokio::test]
    async fn flags_come_before_variables_and_the_provider_shows_no_key() {
        let mut cloud = __Type__Cloud::new();
        let args = ["-__name__-endpoint=http://flag.invalid".into()];
        cloud.parse_cmd(Command::new("test"), &args).unwrap();
        let variables = [("__ENV___ENDPOINT", "http://variable.invalid"), ("__ENV___KEY", "s3cret")];
        cloud.load_env(&MapEnv::new(variables)).unwrap();
        let provider = cloud.new_provider().await.unwrap();
        assert_eq!(cloud.settings().parse().unwrap().text("__name__-endpoint"), "http://flag.invalid");
        assert!(!format!("{provider:?}").contains("s3cret"));
    }

    #[tokio::test]
    async fn a_provider_without_configuration_names_what_is_missing() {
        let error = __Type__Cloud::new().new_provider().await.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Config);
        for name in ["__ENV___ENDPOINT", "__ENV___KEY"] {
            assert!(error.to_string().contains(name), "{name} is not in {error}");
        }
    }
}
