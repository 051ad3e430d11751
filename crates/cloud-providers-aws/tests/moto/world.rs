//! An account of the emulator, looked at and changed around the provider: with the SDK itself, past the proxy.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use aws_config::{BehaviorVersion, Region};
use aws_credential_types::Credentials;
use aws_sdk_ec2::{Client, types};
use cloud_providers::Resource;
use cloud_providers_conformance::{Found, Obstacle, Offer};
use test_support::Moto;

pub(crate) const REGION: &str = "us-east-1";
pub(crate) const ZONE: &str = "us-east-1a";

/// Access to one account.
pub(crate) struct World {
    pub(crate) ec2: Client,
    /// By the way of the provider's calls: what EC2 does besides what the emulator does is done there.
    pub(crate) through: Client,
    pub(crate) keys: (String, String, String),
    pub(crate) subnet: String,
    pub(crate) group: String,
}

/// Describes a failure of the emulator.
pub(crate) fn failed(error: impl std::error::Error) -> Obstacle {
    let (mut text, mut next) = (error.to_string(), error.source());
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    Obstacle::failed(format!("the emulator: {text}"))
}

fn nothing(what: &str) -> Obstacle {
    Obstacle::failed(format!("the emulator told no {what}"))
}

async fn shared(url: &str, keys: &(String, String, String)) -> aws_config::SdkConfig {
    let token = Some(keys.2.clone()).filter(|token| !token.is_empty());
    aws_config::defaults(BehaviorVersion::v2026_01_12())
        .region(Region::new(REGION))
        .endpoint_url(url)
        .credentials_provider(Credentials::new(&keys.0, &keys.1, token, None, "tests"))
        .http_client(
            aws_smithy_http_client::Builder::new()
                .tls_provider(aws_smithy_http_client::tls::Provider::Rustls(
                    aws_smithy_http_client::tls::rustls_provider::CryptoMode::AwsLc,
                ))
                .build_https(),
        )
        .load()
        .await
}

impl World {
    /// Takes an account that nobody else has: the emulator makes one for whoever assumes a role in it.
    pub(crate) async fn begin(url: &str, proxy: &str) -> Offer<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let account =
            100_000_000_000 + u64::from(std::process::id()) * 10_000 + NEXT.fetch_add(1, Ordering::Relaxed);
        let anybody = ("AKIDTEST".to_owned(), "secret".to_owned(), String::new());
        let sts = aws_sdk_sts::Client::new(&shared(url, &anybody).await);
        let role = format!("arn:aws:iam::{account}:role/tests");
        let answer =
            sts.assume_role().role_arn(role).role_session_name("tests").send().await.map_err(failed)?;
        let given = answer.credentials().ok_or_else(|| nothing("credentials"))?;
        let keys = (
            given.access_key_id().to_owned(),
            given.secret_access_key().to_owned(),
            given.session_token().to_owned(),
        );
        let ec2 = Client::new(&shared(url, &keys).await);
        let through = Client::new(&shared(proxy, &keys).await);
        let zone = types::Filter::builder().name("availability-zone").values(ZONE).build();
        let subnets = ec2.describe_subnets().filters(zone).send().await.map_err(failed)?;
        let subnet =
            subnets.subnets().first().and_then(|s| s.subnet_id()).ok_or_else(|| nothing("subnet"))?;
        let groups = ec2.describe_security_groups().send().await.map_err(failed)?;
        let group =
            groups.security_groups().first().and_then(|g| g.group_id()).ok_or_else(|| nothing("group"))?;
        let (subnet, group) = (subnet.to_owned(), group.to_owned());
        for (protocol, port) in [("tcp", 15150), ("udp", 4789)] {
            let range = types::IpRange::builder().cidr_ip("10.0.0.0/8").build();
            let rule = types::IpPermission::builder().ip_protocol(protocol).from_port(port).to_port(port);
            let call = ec2.authorize_security_group_ingress().group_id(&group);
            call.ip_permissions(rule.ip_ranges(range).build()).send().await.map_err(failed)?;
        }
        ec2.create_key_pair().key_name("key-1").send().await.map_err(failed)?;
        Ok(Self { ec2, through, keys, subnet, group })
    }

    /// Returns the instances that are not gone.
    pub(crate) async fn instances(&self) -> Offer<Vec<types::Instance>> {
        let answer = self.ec2.describe_instances().send().await.map_err(failed)?;
        let all = answer.reservations().iter().flat_map(|reservation| reservation.instances());
        let going = |instance: &&types::Instance| {
            let name = instance.state().and_then(|state| state.name());
            matches!(
                name,
                Some(types::InstanceStateName::Terminated | types::InstanceStateName::ShuttingDown)
            )
        };
        Ok(all.filter(|instance| !going(instance)).cloned().collect())
    }

    pub(crate) async fn instance(&self, id: &str) -> Offer<types::Instance> {
        let answer = self.ec2.describe_instances().instance_ids(id).send().await.map_err(failed)?;
        let mut all = answer.reservations().iter().flat_map(|reservation| reservation.instances());
        all.next().cloned().ok_or_else(|| nothing("instance"))
    }

    pub(crate) async fn interfaces(&self) -> Offer<Vec<types::NetworkInterface>> {
        let answer = self.ec2.describe_network_interfaces().send().await.map_err(failed)?;
        Ok(answer.network_interfaces().to_vec())
    }

    pub(crate) async fn volumes(&self) -> Offer<Vec<types::Volume>> {
        Ok(self.ec2.describe_volumes().send().await.map_err(failed)?.volumes().to_vec())
    }

    pub(crate) async fn addresses(&self) -> Offer<Vec<types::Address>> {
        Ok(self.ec2.describe_addresses().send().await.map_err(failed)?.addresses().to_vec())
    }

    /// Returns everything that costs money or stands in somebody's way.
    pub(crate) async fn everything(&self) -> Offer<Vec<Found>> {
        let mut found = Vec::new();
        let instances = self.instances().await?;
        for instance in &instances {
            let id = instance.instance_id().unwrap_or_default();
            found.push(Found::new(Resource::new(Resource::INSTANCE, id)).with_tags(tags(instance.tags())));
        }
        // What goes with an instance is recorded with it; moto copies no tags to the interface of the launch.
        for interface in self.interfaces().await? {
            let id = interface.network_interface_id().unwrap_or_default();
            let mut thing = Found::new(Resource::new("network_interface", id));
            let tags = tags(interface.tag_set());
            let holder = instances.iter().find(|instance| {
                let own = instance.network_interfaces().iter();
                own.filter(|i| i.attachment().and_then(|a| a.device_index()) == Some(0))
                    .any(|i| i.network_interface_id() == Some(id))
            });
            if let Some(instance) = holder.and_then(|instance| instance.instance_id()) {
                thing = thing.part_of(Resource::new(Resource::INSTANCE, instance));
            }
            found.push(if tags.is_empty() && thing.part_of.is_some() {
                thing
            } else {
                thing.with_tags(tags)
            });
        }
        for volume in self.volumes().await? {
            let id = volume.volume_id().unwrap_or_default();
            let mut thing = Found::new(Resource::new("volume", id));
            // moto does not say of attachments that they go with the instance.
            let holder = instances.iter().find(|instance| {
                let mut disks = instance.block_device_mappings().iter();
                disks.any(|disk| {
                    let ebs = disk.ebs();
                    // The root of an instance that was launched without a word on it has another name there.
                    let goes = ebs.and_then(|ebs| ebs.delete_on_termination()) == Some(true);
                    (goes || disk.device_name() == instance.root_device_name())
                        && ebs.and_then(|ebs| ebs.volume_id()) == Some(id)
                })
            });
            let tags = tags(volume.tags());
            if let Some(instance) = holder.and_then(|instance| instance.instance_id()) {
                thing = thing.part_of(Resource::new(Resource::INSTANCE, instance));
            }
            found.push(if tags.is_empty() && thing.part_of.is_some() {
                thing
            } else {
                thing.with_tags(tags)
            });
        }
        for address in self.addresses().await? {
            let id = address.allocation_id().unwrap_or_default();
            found.push(Found::new(Resource::new("address", id)).with_tags(tags(address.tags())));
        }
        Ok(found)
    }

    /// Makes an instance by hand.
    pub(crate) async fn add_instance(&self, name: &str, more: &[(&str, &str)]) -> Offer<String> {
        let mut specification = types::TagSpecification::builder()
            .resource_type(types::ResourceType::Instance)
            .tags(types::Tag::builder().key("Name").value(name).build());
        for (key, value) in more {
            specification = specification.tags(types::Tag::builder().key(*key).value(*value).build());
        }
        let call = self.through.run_instances().image_id(Moto::IMAGE).min_count(1).max_count(1);
        // moto leaves an interface of which nobody said that it goes; in EC2 that is the default.
        let interface = types::InstanceNetworkInterfaceSpecification::builder()
            .device_index(0)
            .subnet_id(&self.subnet)
            .delete_on_termination(true)
            .build();
        let call = call.instance_type(types::InstanceType::T3Small).network_interfaces(interface);
        let answer = call.tag_specifications(specification.build()).send().await.map_err(failed)?;
        let id =
            answer.instances().first().and_then(|i| i.instance_id()).ok_or_else(|| nothing("instance"))?;
        Ok(id.to_owned())
    }

    /// Makes an interface by hand and attaches it.
    ///
    /// Returns its id and that of the attachment.
    pub(crate) async fn add_interface(
        &self,
        instance: &str,
        index: i32,
        tag: (&str, &str),
    ) -> Offer<(String, String)> {
        let call = self.through.create_network_interface().subnet_id(&self.subnet);
        let specification = tag_one(types::ResourceType::NetworkInterface, tag);
        let answer = call.tag_specifications(specification).send().await.map_err(failed)?;
        let made = answer.network_interface().and_then(|i| i.network_interface_id());
        let id = made.ok_or_else(|| nothing("interface"))?;
        let call = self.through.attach_network_interface().network_interface_id(id).instance_id(instance);
        let attached = call.device_index(index).send().await.map_err(failed)?;
        Ok((id.to_owned(), attached.attachment_id().unwrap_or_default().to_owned()))
    }

    /// Lets an interface go with its instance, as the existing programs do.
    pub(crate) async fn goes_along(&self, (interface, attachment): (String, String)) -> Offer<()> {
        let change = types::NetworkInterfaceAttachmentChanges::builder().attachment_id(attachment);
        let change = change.delete_on_termination(true).build();
        let call = self.through.modify_network_interface_attribute().network_interface_id(interface);
        call.attachment(change).send().await.map_err(failed)?;
        Ok(())
    }

    /// Allocates an address by hand and associates it with the instance.
    pub(crate) async fn add_address(&self, instance: &str, tag: (&str, &str)) -> Offer<()> {
        let call = self.through.allocate_address().domain(types::DomainType::Vpc);
        let specification = tag_one(types::ResourceType::ElasticIp, tag);
        let answer = call.tag_specifications(specification).send().await.map_err(failed)?;
        let id = answer.allocation_id().ok_or_else(|| nothing("allocation"))?;
        let call = self.through.associate_address().allocation_id(id).instance_id(instance);
        call.send().await.map_err(failed)?;
        Ok(())
    }

    /// Makes a volume of a user.
    pub(crate) async fn add_volume(&self) -> Offer<String> {
        let answer = self.ec2.create_volume().availability_zone(ZONE).size(1).send().await.map_err(failed)?;
        answer.volume_id().map(str::to_owned).ok_or_else(|| nothing("volume"))
    }
}

fn tag_one(kind: types::ResourceType, (key, value): (&str, &str)) -> types::TagSpecification {
    let tag = types::Tag::builder().key(key).value(value).build();
    types::TagSpecification::builder().resource_type(kind).tags(tag).build()
}

pub(crate) fn tags(from: &[types::Tag]) -> BTreeMap<String, String> {
    let pair = |tag: &types::Tag| {
        (tag.key().unwrap_or_default().to_owned(), tag.value().unwrap_or_default().to_owned())
    };
    from.iter().map(pair).collect()
}
