//! A machine in the network that one logs in to.

use anyhow::{Context as _, Result};
use aws_sdk_ec2::primitives::Blob;
use aws_sdk_ec2::types::{
    HttpTokensState, InstanceMetadataOptionsRequest, InstanceNetworkInterfaceSpecification,
    InstanceStateName, InstanceType, ResourceType,
};
use sha2::{Digest as _, Sha256};

use crate::account::{Account, Said, code, is_missing};
use crate::state::{Network, Worker};
use crate::tags::{Name, filter};

/// The account of Debian's own images.
const DEBIAN: &str = "136693071363";

/// Which machine.
#[derive(Clone, Debug, Default)]
pub struct WorkerOptions {
    /// The type; `t3.medium` where it is missing.
    pub instance_type: Option<String>,
    /// The image; the newest of Debian 12 where it is missing.
    pub image: Option<String>,
    /// A public key, as in `~/.ssh/id_ed25519.pub`, for logging in.
    pub public_key: Option<String>,
}

impl Account {
    /// Makes the worker, or finds it.
    ///
    /// # Errors
    ///
    /// What the service said, or that the machine did not come up.
    pub async fn worker(&self, name: &Name, network: &Network, options: &WorkerOptions) -> Result<Worker> {
        let id = match self.find_worker(name).await? {
            Ok(id) => id,
            Err(earlier) => self.launch(name, network, options, earlier).await?,
        };
        self.wait("the worker to run", || async {
            let said = match self.ec2.describe_instances().instance_ids(&id).send().await {
                // What was just made is not seen everywhere yet.
                Err(error) if is_missing(&error) => return Ok(None),
                said => said.said("cannot look at the worker")?,
            };
            let Some(instance) = said.reservations().iter().flat_map(|one| one.instances()).next() else {
                return Ok(None);
            };
            match instance.state().and_then(|state| state.name()) {
                Some(InstanceStateName::Running) => Ok(Some(Worker {
                    instance: id.clone(),
                    private_address: instance.private_ip_address().map(str::to_owned),
                    public_address: instance.public_ip_address().map(str::to_owned),
                })),
                Some(InstanceStateName::Pending) | None => Ok(None),
                Some(state) => {
                    let reason = instance.state_reason().and_then(|reason| reason.message());
                    anyhow::bail!("the worker is {}: {}", state.as_str(), reason.unwrap_or("no reason"))
                }
            }
        })
        .await
    }

    /// The worker that is there, or how many there were before.
    async fn find_worker(&self, name: &Name) -> Result<Result<String, usize>> {
        let said = self.ec2.describe_instances().set_filters(Some(name.filters("worker"))).send().await;
        let said = said.said("cannot list instances")?;
        let instances: Vec<_> = said.reservations().iter().flat_map(|one| one.instances()).collect();
        let lives = |state: &InstanceStateName| {
            matches!(state, InstanceStateName::Pending | InstanceStateName::Running)
        };
        let there =
            instances.iter().find(|one| one.state().and_then(|state| state.name()).is_some_and(lives));
        Ok(match there.and_then(|instance| instance.instance_id()) {
            Some(id) => Ok(id.to_owned()),
            None => Err(instances.len()),
        })
    }

    async fn launch(
        &self,
        name: &Name,
        network: &Network,
        options: &WorkerOptions,
        earlier: usize,
    ) -> Result<String> {
        let image = match &options.image {
            Some(image) => image.clone(),
            None => self.newest_debian().await?,
        };
        let key = match &options.public_key {
            Some(key) => Some(self.key_pair(name, key).await?),
            None => None,
        };
        let subnet = network.subnets.first().context("the network has no subnet")?;
        let interface = InstanceNetworkInterfaceSpecification::builder()
            .device_index(0)
            .subnet_id(subnet)
            .groups(&network.group)
            .associate_public_ip_address(true)
            .delete_on_termination(true)
            .build();
        let metadata =
            InstanceMetadataOptionsRequest::builder().http_tokens(HttpTokensState::Required).build();
        let kind = options.instance_type.as_deref().unwrap_or("t3.medium");
        // A machine that was terminated keeps its token: the number tells a later one apart.
        let token: String =
            Sha256::digest(format!("{}/{}/{image}/{kind}/{earlier}", name.as_str(), network.vpc))
                .iter()
                .take(24)
                .map(|byte| format!("{byte:02x}"))
                .collect();
        let said = self
            .ec2
            .run_instances()
            .client_token(token)
            .min_count(1)
            .max_count(1)
            .image_id(image)
            .instance_type(InstanceType::from(kind))
            .set_key_name(key)
            .network_interfaces(interface)
            .metadata_options(metadata)
            .tag_specifications(name.spec(ResourceType::Instance, "worker"))
            .tag_specifications(name.spec(ResourceType::Volume, "worker-disk"))
            .tag_specifications(name.spec(ResourceType::NetworkInterface, "worker-interface"))
            .send()
            .await
            .said("cannot launch the worker")?;
        let id = said.instances().first().and_then(|instance| instance.instance_id());
        id.map(str::to_owned).context("an instance without an id")
    }

    async fn newest_debian(&self) -> Result<String> {
        let filters = vec![
            filter("name", &["debian-12-amd64-*"]),
            filter("architecture", &["x86_64"]),
            filter("state", &["available"]),
        ];
        let said = self.ec2.describe_images().owners(DEBIAN).set_filters(Some(filters)).send().await;
        let said = said.said("cannot list images of Debian")?;
        let newest = said.images().iter().max_by_key(|image| image.creation_date());
        let id = newest.and_then(|image| image.image_id());
        id.map(str::to_owned).context("Debian has no image in this region: give --worker-image")
    }

    async fn key_pair(&self, name: &Name, public: &str) -> Result<String> {
        let key = format!("{}-key", name.as_str());
        let import = self
            .ec2
            .import_key_pair()
            .key_name(&key)
            .public_key_material(Blob::new(public.trim().as_bytes()))
            .tag_specifications(name.spec(ResourceType::KeyPair, "key"));
        match import.send().await {
            Err(error) if code(&error) == Some("InvalidKeyPair.Duplicate") => {
                let said = self.ec2.describe_key_pairs().set_filters(Some(name.filters("key"))).send().await;
                let said = said.said("cannot list key pairs")?;
                let ours = said.key_pairs().iter().any(|pair| pair.key_name() == Some(&key));
                anyhow::ensure!(ours, "a key pair {key} is there and is not of this set-up");
            }
            said => drop(said.said("cannot import the key")?),
        }
        Ok(key)
    }
}
