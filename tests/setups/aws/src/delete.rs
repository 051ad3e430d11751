//! Deleting what carries the tag of a set-up, and nothing else.

use anyhow::{Result, bail};
use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_ec2::types::InstanceStateName;

use crate::account::{Account, Said, code, is_missing};
use crate::tags::{Name, SETUP, filter};

/// What deleting came to.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Delete {
    /// What was deleted, in order.
    pub deleted: Vec<String>,
    /// What is in the way and is not ours: whoever made it has to delete it.
    pub foreign: Vec<String>,
}

/// What a call for deletion became.
enum Gone {
    Yes,
    /// Something still uses it.
    InUse(String),
}

impl Account {
    /// Deletes everything of a set-up, in the order in which it depends on each other, and looks whether it is gone.
    ///
    /// It may be repeated, also after a failure, and goes by tags alone.
    ///
    /// # Errors
    ///
    /// What the service said, or what is still there after the time for it.
    pub async fn delete(&self, name: &Name) -> Result<Delete> {
        let mut done = Delete::default();
        self.delete_instances(name, &mut done).await?;
        let end = tokio::time::Instant::now() + self.limit;
        loop {
            let held = self.delete_rest(name, &mut done).await?;
            if held.is_empty() {
                break;
            }
            done.foreign = self.foreign(name).await?;
            if !done.foreign.is_empty() {
                bail!("others use what is to be deleted; delete these first: {}", done.foreign.join(", "));
            }
            if tokio::time::Instant::now() >= end {
                bail!("still in use after {} s: {}", self.limit.as_secs(), held.join("; "));
            }
            // Interfaces of machines go a little later than the machines.
            tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        }
        let left = leftovers(self, name).await?;
        if !left.is_empty() {
            bail!("still there after deleting: {}", left.join(", "));
        }
        Ok(done)
    }

    async fn delete_instances(&self, name: &Name, done: &mut Delete) -> Result<()> {
        let ids = self.instances(name).await?;
        if ids.is_empty() {
            return Ok(());
        }
        let terminate = self.ec2.terminate_instances().set_instance_ids(Some(ids.clone()));
        match terminate.send().await {
            Err(error) if is_missing(&error) => {}
            said => drop(said.said("cannot terminate the instances")?),
        }
        self.wait("the instances to be terminated", || async {
            Ok(self.instances(name).await?.is_empty().then_some(()))
        })
        .await?;
        done.deleted.extend(ids);
        Ok(())
    }

    /// Instances of the set-up that are not terminated.
    async fn instances(&self, name: &Name) -> Result<Vec<String>> {
        let mut pages = self.ec2.describe_instances().filters(name.filter()).into_paginator().send();
        let mut ids = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.said("cannot list instances")?;
            for instance in page.reservations().iter().flat_map(|one| one.instances()) {
                let state = instance.state().and_then(|state| state.name());
                if state != Some(&InstanceStateName::Terminated) {
                    ids.extend(instance.instance_id().map(str::to_owned));
                }
            }
        }
        Ok(ids)
    }

    /// One round over everything else; returns what is held by something.
    async fn delete_rest(&self, name: &Name, done: &mut Delete) -> Result<Vec<String>> {
        let mut held = Vec::new();
        for (id, kind) in self.resources(name).await? {
            match self.delete_one(&id, kind).await? {
                Gone::Yes => done.deleted.push(id),
                Gone::InUse(why) => held.push(format!("{id}: {why}")),
            }
        }
        Ok(held)
    }

    async fn delete_one(&self, id: &str, kind: Kind) -> Result<Gone> {
        let ec2 = &self.ec2;
        match kind {
            Kind::Address => gone(ec2.release_address().allocation_id(id).send().await, id),
            Kind::Interface => gone(ec2.delete_network_interface().network_interface_id(id).send().await, id),
            Kind::Volume => gone(ec2.delete_volume().volume_id(id).send().await, id),
            Kind::Image => gone(ec2.deregister_image().image_id(id).send().await, id),
            Kind::Snapshot => gone(ec2.delete_snapshot().snapshot_id(id).send().await, id),
            Kind::Key => gone(ec2.delete_key_pair().key_name(id).send().await, id),
            Kind::Template => gone(ec2.delete_launch_template().launch_template_id(id).send().await, id),
            Kind::Subnet => gone(ec2.delete_subnet().subnet_id(id).send().await, id),
            Kind::Routes => {
                let said = ec2.describe_route_tables().route_table_ids(id).send().await;
                let said = match said {
                    Err(error) if is_missing(&error) => return Ok(Gone::Yes),
                    said => said.said("cannot look at the route table")?,
                };
                let associations = said.route_tables().iter().flat_map(|table| table.associations());
                for association in associations.filter_map(|one| one.route_table_association_id()) {
                    let leave = ec2.disassociate_route_table().association_id(association);
                    gone(leave.send().await, association)?;
                }
                gone(ec2.delete_route_table().route_table_id(id).send().await, id)
            }
            Kind::Gateway => {
                let said = ec2.describe_internet_gateways().internet_gateway_ids(id).send().await;
                let said = match said {
                    Err(error) if is_missing(&error) => return Ok(Gone::Yes),
                    said => said.said("cannot look at the gateway")?,
                };
                for attachment in said.internet_gateways().iter().flat_map(|one| one.attachments()) {
                    let leave = ec2.detach_internet_gateway().internet_gateway_id(id);
                    let leave = leave.set_vpc_id(attachment.vpc_id().map(str::to_owned)).send().await;
                    if let Gone::InUse(why) = gone(leave, id)? {
                        return Ok(Gone::InUse(why));
                    }
                }
                gone(ec2.delete_internet_gateway().internet_gateway_id(id).send().await, id)
            }
            Kind::Group => gone(ec2.delete_security_group().group_id(id).send().await, id),
            Kind::Vpc => gone(ec2.delete_vpc().vpc_id(id).send().await, id),
        }
    }

    /// Everything of the set-up but instances, in the order in which it can be deleted.
    async fn resources(&self, name: &Name) -> Result<Vec<(String, Kind)>> {
        let ec2 = &self.ec2;
        let own = || filter(&format!("tag:{SETUP}"), &[name.as_str()]);
        let mut found: Vec<(String, Kind)> = Vec::new();
        let mut add = |kind: Kind, ids: Vec<Option<&str>>| {
            found.extend(ids.into_iter().flatten().map(|id| (id.to_owned(), kind)));
        };
        let said = ec2.describe_addresses().filters(own()).send().await.said("cannot list addresses")?;
        add(Kind::Address, said.addresses().iter().map(|one| one.allocation_id()).collect());
        let said =
            ec2.describe_network_interfaces().filters(own()).send().await.said("cannot list interfaces")?;
        add(
            Kind::Interface,
            said.network_interfaces().iter().map(|one| one.network_interface_id()).collect(),
        );
        let said = ec2.describe_volumes().filters(own()).send().await.said("cannot list volumes")?;
        add(Kind::Volume, said.volumes().iter().map(|one| one.volume_id()).collect());
        let said =
            ec2.describe_images().owners("self").filters(own()).send().await.said("cannot list images")?;
        add(Kind::Image, said.images().iter().map(|one| one.image_id()).collect());
        let said = ec2
            .describe_snapshots()
            .owner_ids("self")
            .filters(own())
            .send()
            .await
            .said("cannot list snapshots")?;
        add(Kind::Snapshot, said.snapshots().iter().map(|one| one.snapshot_id()).collect());
        let said = ec2.describe_key_pairs().filters(own()).send().await.said("cannot list key pairs")?;
        add(Kind::Key, said.key_pairs().iter().map(|one| one.key_name()).collect());
        let said =
            ec2.describe_launch_templates().filters(own()).send().await.said("cannot list templates")?;
        add(Kind::Template, said.launch_templates().iter().map(|one| one.launch_template_id()).collect());
        let said =
            ec2.describe_route_tables().filters(own()).send().await.said("cannot list route tables")?;
        add(Kind::Routes, said.route_tables().iter().map(|one| one.route_table_id()).collect());
        let said = ec2.describe_subnets().filters(own()).send().await.said("cannot list subnets")?;
        add(Kind::Subnet, said.subnets().iter().map(|one| one.subnet_id()).collect());
        let said =
            ec2.describe_internet_gateways().filters(own()).send().await.said("cannot list gateways")?;
        add(Kind::Gateway, said.internet_gateways().iter().map(|one| one.internet_gateway_id()).collect());
        let said = ec2.describe_security_groups().filters(own()).send().await.said("cannot list groups")?;
        add(Kind::Group, said.security_groups().iter().map(|one| one.group_id()).collect());
        let said = ec2.describe_vpcs().filters(own()).send().await.said("cannot list VPCs")?;
        add(Kind::Vpc, said.vpcs().iter().map(|one| one.vpc_id()).collect());
        Ok(found)
    }

    /// What is in our subnets and does not carry our tag.
    async fn foreign(&self, name: &Name) -> Result<Vec<String>> {
        let said =
            self.ec2.describe_subnets().filters(name.filter()).send().await.said("cannot list subnets")?;
        let subnets: Vec<&str> = said.subnets().iter().filter_map(|subnet| subnet.subnet_id()).collect();
        if subnets.is_empty() {
            return Ok(Vec::new());
        }
        let inside = filter("subnet-id", &subnets);
        let said = self.ec2.describe_network_interfaces().filters(inside).send().await;
        let said = said.said("cannot list interfaces")?;
        let mut foreign = Vec::new();
        for interface in said.network_interfaces() {
            let ours = |tag: &aws_sdk_ec2::types::Tag| {
                tag.key() == Some(SETUP) && tag.value() == Some(name.as_str())
            };
            let of = interface.attachment().and_then(|attachment| attachment.instance_id());
            // One of an instance that is going goes with it.
            if interface.tag_set().iter().any(ours)
                || of.is_none() && interface.requester_managed() == Some(true)
            {
                continue;
            }
            let id = interface.network_interface_id().unwrap_or("an interface");
            foreign.push(match of {
                Some(instance) => format!("instance {instance} ({id})"),
                None => format!("interface {id}"),
            });
        }
        Ok(foreign)
    }
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Address,
    Interface,
    Volume,
    Image,
    Snapshot,
    Key,
    Template,
    Routes,
    Subnet,
    Gateway,
    Group,
    Vpc,
}

/// Returns the ids of everything of a set-up that is there. Instances that are terminated count as gone.
///
/// # Errors
///
/// What the service said.
pub async fn leftovers(account: &Account, name: &Name) -> Result<Vec<String>> {
    let mut left = account.instances(name).await?;
    left.extend(account.resources(name).await?.into_iter().map(|(id, _)| id));
    Ok(left)
}

/// Says whether something is gone now; an error that means anything else is passed on.
fn gone<T, E>(said: Result<T, SdkError<E>>, id: &str) -> Result<Gone>
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    const HELD: &[&str] =
        &["DependencyViolation", "InvalidIPAddress.InUse", "InvalidSnapshot.InUse", "VolumeInUse"];
    match said {
        Ok(_) => Ok(Gone::Yes),
        Err(error) if is_missing(&error) || code(&error) == Some("Gateway.NotAttached") => Ok(Gone::Yes),
        Err(error) => {
            let message = error.as_service_error().and_then(|error| error.message()).unwrap_or_default();
            let in_use = code(&error).is_some_and(|code| {
                HELD.contains(&code)
                    || code == "InvalidParameterValue" && message.contains("in use")
                    || code == "InvalidNetworkInterface.InUse"
            });
            if in_use {
                return Ok(Gone::InUse(message.to_owned()));
            }
            Err(error).said(&format!("cannot delete {id}"))
        }
    }
}
