//! Fills in what nobody set from the metadata of the instance that this program runs on.

use cloud_providers::{Error, ErrorKind, Result};

use crate::{client::Connect, config::Config};

/// Takes subnet, security groups and key pair of this instance where none is set, and asks only then.
///
/// In a launch template the operator has said what machines are like, so nothing is taken from this one.
///
/// # Errors
///
/// [`ErrorKind::Config`] naming what to set. The key pair is no must: without one nobody logs in.
pub(crate) async fn fill(connect: &dyn Connect, config: &mut Config) -> Result<()> {
    if config.template.is_some() {
        return Ok(());
    }
    let mut problems = Vec::new();
    if config.subnets.is_empty() || config.groups.is_empty() {
        let mac = read(connect, "mac").await;
        if config.subnets.is_empty() {
            match of_interface(connect, &mac, "subnet-id").await {
                Ok(subnets) => config.subnets = subnets,
                Err(why) => problems.push(unset("-subnetid or AWS_SUBNET_ID", &why)),
            }
        }
        if config.groups.is_empty() {
            match of_interface(connect, &mac, "security-group-ids").await {
                Ok(groups) => config.groups = groups,
                Err(why) => problems.push(unset("-securitygroupids or AWS_SG_IDS", &why)),
            }
        }
    }
    // Where the first questions found nobody this one would only wait as long again.
    if config.key_name.is_none() && problems.is_empty() {
        match read(connect, "public-keys").await {
            Ok(keys) => config.key_name = first_key(&keys),
            Err(why) => tracing::debug!(provider = crate::NAME, why, "instances get no key pair"),
        }
    }
    match Error::all(ErrorKind::Config, problems) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

async fn of_interface(
    connect: &dyn Connect,
    mac: &Result<String, String>,
    what: &str,
) -> Result<Vec<String>, String> {
    let mac = mac.as_ref().map_err(Clone::clone)?;
    let path = format!("network/interfaces/macs/{}/{what}", mac.trim_end_matches('/'));
    let text = read(connect, &path).await?;
    let values: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
    if values.is_empty() { Err(format!("{path} is empty")) } else { Ok(values) }
}

async fn read(connect: &dyn Connect, path: &str) -> Result<String, String> {
    match connect.metadata(path).await {
        Ok(Some(text)) if !text.trim().is_empty() => Ok(text.trim().to_owned()),
        Ok(_) => Err(format!("{path} is not there")),
        Err(error) => Err(error.report()),
    }
}

fn unset(names: &str, why: &str) -> String {
    format!("{names} is not set, and instance metadata does not tell it ({why})")
}

/// Reads the name out of `0=<name>`, one key in a line.
fn first_key(text: &str) -> Option<String> {
    let (_, name) = text.lines().next()?.split_once('=')?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use cloud_providers::{MapEnv, Settings};

    use super::*;
    use crate::{
        OPTIONS,
        scripted::{NoMetadata, World},
    };

    fn config(env: &[(&str, &str)]) -> Config {
        let mut settings = Settings::new(OPTIONS);
        settings.load_env(&MapEnv::new(env.iter().copied().chain([("PODVM_AMI_ID", "ami-1")])));
        Config::read(&settings.parse_all().0, &mut Vec::new())
    }

    fn world() -> World {
        let world = World::new();
        world.set_metadata("mac", "0e:01:02:03:04:05");
        let of = |what| format!("network/interfaces/macs/0e:01:02:03:04:05/{what}");
        world.set_metadata(&of("subnet-id"), "subnet-7");
        world.set_metadata(&of("security-group-ids"), "sg-7\nsg-8");
        world.set_metadata("public-keys", "0=mine\n1=other");
        world
    }

    #[tokio::test]
    async fn what_nobody_set_is_that_of_this_instance() {
        let mut config = config(&[]);
        fill(&world(), &mut config).await.unwrap();
        assert_eq!(
            (config.subnets, config.groups),
            (vec!["subnet-7".into()], vec!["sg-7".into(), "sg-8".into()])
        );
        assert_eq!(config.key_name.as_deref(), Some("mine"));
    }

    #[tokio::test]
    async fn what_is_set_stays_and_nobody_is_asked() {
        let all = [("AWS_SUBNET_ID", "subnet-1"), ("AWS_SG_IDS", "sg-1"), ("SSH_KP_NAME", "key-1")];
        let mut config = config(&all);
        fill(&NoMetadata(world()), &mut config).await.unwrap();
        assert_eq!((config.subnets, config.groups), (vec!["subnet-1".into()], vec!["sg-1".into()]));
    }

    #[tokio::test]
    async fn what_cannot_be_found_names_the_keys() {
        let error = fill(&NoMetadata(world()), &mut config(&[])).await.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Config);
        let text = error.to_string();
        for part in ["AWS_SUBNET_ID", "AWS_SG_IDS", "does not answer"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }

    #[tokio::test]
    async fn a_missing_key_pair_is_no_problem() {
        let mut config = config(&[("AWS_SUBNET_ID", "subnet-1"), ("AWS_SG_IDS", "sg-1")]);
        fill(&NoMetadata(world()), &mut config).await.unwrap();
        assert_eq!(config.key_name, None);
    }

    #[tokio::test]
    async fn a_launch_template_asks_nobody() {
        let mut config = config(&[("USE_PODVM_LAUNCHTEMPLATE", "true")]);
        fill(&NoMetadata(world()), &mut config).await.unwrap();
        assert!(config.subnets.is_empty() && config.groups.is_empty());
    }
}
