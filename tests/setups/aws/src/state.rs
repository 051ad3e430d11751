//! What a set-up has, in a file: for people and for the programs that use it.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

/// What was made, or given.
///
/// The file is for reading. What is ours is decided by tags alone: a lost or edited file deletes nothing of others.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
#[non_exhaustive]
pub struct State {
    /// The name of the set-up.
    pub name: String,
    /// The region.
    pub region: String,
    /// The network.
    pub network: Option<Network>,
    /// The image of pod VMs.
    pub image: Option<String>,
    /// The worker machine.
    pub worker: Option<Worker>,
}

/// A network in which pod VMs and workers run.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Network {
    /// The VPC.
    pub vpc: String,
    /// The subnets, in the order of their zones.
    pub subnets: Vec<String>,
    /// The zones of the subnets.
    pub zones: Vec<String>,
    /// The security group of workers and pod VMs.
    pub group: String,
}

/// A machine that is reached by SSH.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Worker {
    /// The instance.
    pub instance: String,
    /// Its address in the network.
    pub private_address: Option<String>,
    /// Its address from outside.
    pub public_address: Option<String>,
}

impl State {
    /// Reads the file, or begins with nothing where there is none.
    ///
    /// # Errors
    ///
    /// When it is no state, or that of another set-up.
    pub fn read(path: &Path, name: &str, region: &str) -> Result<Self> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self { name: name.to_owned(), region: region.to_owned(), ..Self::default() });
            }
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let state: Self = serde_json::from_str(&text)
            .with_context(|| format!("{} is no state of a set-up", path.display()))?;
        ensure!(
            state.name == name && state.region == region,
            "{} is of set-up {} in {}, and not of {name} in {region}: give another --state",
            path.display(),
            state.name,
            state.region
        );
        Ok(state)
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        let new = path.with_extension("new");
        std::fs::write(&new, text)
            .and_then(|()| std::fs::rename(&new, path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// The variables with which the provider uses this set-up.
    pub fn variables(&self) -> Vec<(&'static str, String)> {
        let mut variables = vec![("AWS_REGION", self.region.clone())];
        if let Some(network) = &self.network {
            variables.push(("AWS_SUBNET_ID", network.subnets.join(",")));
            variables.push(("AWS_SG_IDS", network.group.clone()));
        }
        if let Some(image) = &self.image {
            variables.push(("PODVM_AMI_ID", image.clone()));
        }
        variables
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_read_back_and_that_of_another_set_up_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        let mut state = State::read(&path, "a", "r").unwrap();
        state.image = Some("ami-1".to_owned());
        state.write(&path).unwrap();
        assert_eq!(State::read(&path, "a", "r").unwrap(), state);
        assert_eq!(state.variables().last().unwrap(), &("PODVM_AMI_ID", "ami-1".to_owned()));
        for (name, region) in [("b", "r"), ("a", "s")] {
            let error = State::read(&path, name, region).unwrap_err().to_string();
            assert!(error.contains("--state"), "{error}");
        }
        std::fs::write(&path, "{").unwrap();
        assert!(State::read(&path, "a", "r").is_err());
    }
}
