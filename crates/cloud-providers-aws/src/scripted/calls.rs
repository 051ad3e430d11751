//! The calls, each counted, delayed and disturbed by [`World::call`].

use std::{collections::BTreeMap, net::IpAddr};

use cloud_providers::{Result, async_trait};
use tokio::time::Instant;

use super::{World, fault::refused, state::State};
use crate::client::{
    AccountLimit, Address, CreateInterface, DryRun, Ec2, Filter, Image, Instance, Interface, KeyPair,
    LaunchTemplate, LaunchTemplateRef, Page, Query, RunInstances, SecurityGroup, Subnet, Tags, TypeInfo,
    TypeOffering, Volume,
};

/// Returns whether a thing has what every filter wants. `own` gives the values of filters that are not tags.
fn matches(query: &Query, id: &str, tags: &Tags, own: impl Fn(&str) -> Option<String>) -> bool {
    let has = |filter: &Filter| {
        let value = match filter.name.strip_prefix("tag:") {
            Some(key) => tags.get(key).cloned(),
            None => own(&filter.name),
        };
        value.is_some_and(|v| filter.values.contains(&v))
    };
    (query.ids.is_empty() || query.ids.iter().any(|i| i == id)) && query.filters.iter().all(has)
}

/// Cuts a page out of items that are sorted by id.
fn page<T>(items: Vec<(String, T)>, after: Option<&str>, size: usize) -> Page<T> {
    let mut rest = items.into_iter().filter(|(id, _)| after.is_none_or(|a| id.as_str() > a)).peekable();
    let (mut taken, mut last) = (Vec::new(), None);
    while taken.len() < size {
        let Some((id, item)) = rest.next() else { break };
        taken.push(item);
        last = Some(id);
    }
    let next = rest.peek().and(last);
    Page::new(taken, next)
}

fn all<'a, T: Clone>(
    known: &BTreeMap<String, T>,
    names: impl IntoIterator<Item = &'a String>,
    missing: impl Fn(&str) -> cloud_providers::Error,
) -> Result<Vec<T>> {
    names.into_iter().map(|name| known.get(name).cloned().ok_or_else(|| missing(name))).collect()
}

impl State {
    /// Says whether ids that are asked for by name exist and are shown.
    fn check_ids(&self, query: &Query, op: &str, code: &str, shown: impl Fn(&str) -> bool) -> Result<()> {
        match query.ids.iter().find(|id| !shown(id)) {
            Some(id) => Err(refused(op, code, &format!("the ID '{id}' does not exist"))),
            None => Ok(()),
        }
    }
}

#[async_trait]
impl Ec2 for World {
    async fn run_instances(&self, request: &RunInstances) -> Result<Instance> {
        self.call("RunInstances", |s| s.run(request)).await
    }

    async fn describe_instances(&self, query: &Query, after: Option<&str>) -> Result<Page<Instance>> {
        self.call("DescribeInstances", |s| {
            let now = Instant::now();
            let shown = |id: &str| s.instances.get(id).is_some_and(|m| now >= m.shown_at);
            s.check_ids(query, "DescribeInstances", "InvalidInstanceID.NotFound", shown)?;
            let items = s.instances.keys().filter(|id| shown(id)).filter_map(|id| s.view(id, now));
            let wanted = items.filter(|i| {
                matches(query, &i.id, &i.tags, |name| match name {
                    "instance-id" => Some(i.id.clone()),
                    _ => None,
                })
            });
            Ok(page(wanted.map(|i| (i.id.clone(), i)).collect(), after, s.page))
        })
        .await
    }

    async fn terminate_instances(&self, id: &str) -> Result<()> {
        self.call("TerminateInstances", |s| s.end(id)).await
    }

    async fn describe_instance_types(&self, names: &[String]) -> Result<Vec<TypeInfo>> {
        self.call("DescribeInstanceTypes", |s| {
            let op = "DescribeInstanceTypes";
            if names.len() > 100 {
                return Err(refused(op, "InvalidParameterValue", "at most 100 types in one call"));
            }
            all(&s.types, names, |name| {
                refused(op, "InvalidInstanceType", &format!("the instance types do not exist: [{name}]"))
            })
        })
        .await
    }

    async fn describe_instance_type_offerings(
        &self,
        names: &[String],
        after: Option<&str>,
    ) -> Result<Page<TypeOffering>> {
        self.call("DescribeInstanceTypeOfferings", |s| {
            let mut items = Vec::new();
            for name in names.iter().filter(|n| s.types.contains_key(*n)) {
                for (subnet, _) in s.subnets.values() {
                    let absent = format!("{name} {}", subnet.zone);
                    if s.shortages.iter().any(|(place, code)| *place == absent && *code == "NotOffered") {
                        continue;
                    }
                    let offering = TypeOffering { instance_type: name.clone(), zone: subnet.zone.clone() };
                    items.push((absent, offering));
                }
            }
            items.sort_by(|a, b| a.0.cmp(&b.0));
            Ok(page(items, after, s.page))
        })
        .await
    }

    async fn describe_images(&self, ids: &[String]) -> Result<Vec<Image>> {
        let missing = |id: &str| {
            refused(
                "DescribeImages",
                "InvalidAMIID.NotFound",
                &format!("the image id '[{id}]' does not exist"),
            )
        };
        self.call("DescribeImages", |s| all(&s.images, ids, missing)).await
    }

    async fn describe_subnets(&self, ids: &[String]) -> Result<Vec<Subnet>> {
        let missing = |id: &str| {
            refused(
                "DescribeSubnets",
                "InvalidSubnetID.NotFound",
                &format!("the subnet ID '{id}' does not exist"),
            )
        };
        let found = self.call("DescribeSubnets", |s| all(&s.subnets, ids, missing)).await?;
        Ok(found.into_iter().map(|(subnet, _)| subnet).collect())
    }

    async fn describe_security_groups(&self, ids: &[String]) -> Result<Vec<SecurityGroup>> {
        let missing = |id: &str| {
            let message = format!("the security group '{id}' does not exist");
            refused("DescribeSecurityGroups", "InvalidGroup.NotFound", &message)
        };
        self.call("DescribeSecurityGroups", |s| all(&s.groups, ids, missing)).await
    }

    async fn describe_key_pairs(&self, names: &[String]) -> Result<Vec<KeyPair>> {
        let missing = |name: &str| {
            let message = format!("the key pair '{name}' does not exist");
            refused("DescribeKeyPairs", "InvalidKeyPair.NotFound", &message)
        };
        self.call("DescribeKeyPairs", |s| all(&s.keys, names, missing)).await
    }

    async fn describe_launch_template_versions(
        &self,
        template: &LaunchTemplateRef,
    ) -> Result<Option<LaunchTemplate>> {
        let op = "DescribeLaunchTemplateVersions";
        self.call(op, |s| match s.templates.get(&template.name) {
            Some(found) => Ok(Some(found.clone())),
            None => Err(refused(op, "InvalidLaunchTemplateName.NotFoundException", "no such template")),
        })
        .await
    }

    async fn describe_volumes(&self, query: &Query, after: Option<&str>) -> Result<Page<Volume>> {
        self.call("DescribeVolumes", |s| {
            let shown = |id: &str| s.volumes.contains_key(id);
            s.check_ids(query, "DescribeVolumes", "InvalidVolume.NotFound", shown)?;
            let wanted = s.volumes.values().map(|d| &d.volume).filter(|v| {
                matches(query, &v.id, &v.tags, |name| (name == "volume-id").then(|| v.id.clone()))
            });
            Ok(page(wanted.map(|v| (v.id.clone(), v.clone())).collect(), after, s.page))
        })
        .await
    }

    async fn attach_volume(&self, volume: &str, instance: &str, device: &str) -> Result<()> {
        self.call("AttachVolume", |s| s.attach(volume, instance, device)).await
    }

    async fn detach_volume(&self, volume: &str, instance: &str) -> Result<()> {
        self.call("DetachVolume", |s| s.detach(volume, instance)).await
    }

    async fn create_network_interface(&self, request: &CreateInterface) -> Result<Interface> {
        self.call("CreateNetworkInterface", |s| s.new_interface(request)).await
    }

    async fn describe_network_interfaces(
        &self,
        query: &Query,
        after: Option<&str>,
    ) -> Result<Page<Interface>> {
        self.call("DescribeNetworkInterfaces", |s| {
            let now = Instant::now();
            let nics = s.interfaces.values().filter(|n| now >= n.shown_at).map(|n| &n.interface);
            let wanted = nics.filter(|i| {
                matches(query, &i.id, &i.tags, |name| (name == "network-interface-id").then(|| i.id.clone()))
            });
            Ok(page(wanted.map(|i| (i.id.clone(), i.clone())).collect(), after, s.page))
        })
        .await
    }

    async fn attach_network_interface(
        &self,
        interface: &str,
        instance: &str,
        device_index: u32,
    ) -> Result<Option<String>> {
        self.call("AttachNetworkInterface", |s| s.attach_nic(interface, instance, device_index).map(Some))
            .await
    }

    async fn modify_network_interface_attribute(
        &self,
        interface: &str,
        attachment: &str,
        delete_on_termination: bool,
    ) -> Result<()> {
        let operation = "ModifyNetworkInterfaceAttribute";
        self.call(operation, |s| s.modify_nic(interface, attachment, delete_on_termination)).await
    }

    async fn detach_network_interface(&self, attachment: &str) -> Result<()> {
        self.call("DetachNetworkInterface", |s| s.detach_nic(attachment)).await
    }

    async fn delete_network_interface(&self, interface: &str) -> Result<()> {
        self.call("DeleteNetworkInterface", |s| s.delete_nic(interface)).await
    }

    async fn allocate_address(&self, tags: &Tags) -> Result<Address> {
        self.call("AllocateAddress", |s| Ok(s.allocate(tags))).await
    }

    async fn associate_address(&self, allocation: &str, interface: &str) -> Result<Option<String>> {
        self.call("AssociateAddress", |s| s.associate(allocation, interface).map(Some)).await
    }

    async fn disassociate_address(&self, association: &str) -> Result<()> {
        self.call("DisassociateAddress", |s| s.disassociate(association)).await
    }

    async fn release_address(&self, allocation: &str) -> Result<()> {
        self.call("ReleaseAddress", |s| s.give_back(allocation)).await
    }

    async fn describe_addresses(&self, query: &Query) -> Result<Vec<Address>> {
        self.call("DescribeAddresses", |s| {
            let now = Instant::now();
            let shown = s.addresses.values().filter(|(_, at)| now >= *at).map(|(a, _)| a);
            let own = |a: &Address, name: &str| match name {
                "allocation-id" => Some(a.allocation.clone()),
                "public-ip" => a.public_address.as_ref().map(IpAddr::to_string),
                _ => None,
            };
            Ok(shown
                .filter(|a| matches(query, &a.allocation, &a.tags, |name| own(a, name)))
                .cloned()
                .collect())
        })
        .await
    }

    async fn dry_run(&self, call: &DryRun) -> Result<()> {
        let operation = call.operation();
        self.call("DryRun", |s| {
            if s.denied.contains(operation) {
                return Err(refused(operation, "UnauthorizedOperation", "the role does not allow it"));
            }
            match call {
                DryRun::RunInstances(request) => s.check_launch(request),
                _ => Ok(()),
            }
        })
        .await
    }

    async fn get_console_output(&self, id: &str, latest: bool) -> Result<Vec<u8>> {
        let op = "GetConsoleOutput";
        self.call(op, |s| {
            let now = Instant::now();
            if s.instances.get(id).is_none_or(|m| now < m.shown_at) {
                let message = format!("the instance ID '{id}' does not exist");
                return Err(refused(op, "InvalidInstanceID.NotFound", &message));
            }
            if latest && !s.nitro {
                return Err(refused(op, "UnsupportedOperation", "this instance type does not support it"));
            }
            Ok(s.console.clone())
        })
        .await
    }

    async fn describe_account_attributes(&self) -> Result<Vec<AccountLimit>> {
        let limit = AccountLimit::new("vpc-max-elastic-ips", vec!["5".into()]);
        self.call("DescribeAccountAttributes", |_| Ok(vec![limit])).await
    }

    async fn get_caller_identity(&self) -> Result<Option<String>> {
        let arn = "arn:aws:iam::123456789012:role/pods";
        self.call("GetCallerIdentity", |_| Ok(Some(arn.to_owned()))).await
    }
}
