//! Removes what was made, and says what is left.

use std::time::Duration;

use cloud_providers::{Error, ErrorKind, OpContext, Ownership, Resource, Result};
use futures_util::future::join_all;

use crate::{
    AwsProvider,
    client::{self, Address, Instance, Interface, InterfaceAttachment, Query, State},
    create::Made,
    owned::{self, ADDRESS, INSTANCE_OF, INTERFACE, NAME_TAG, PARTS, VOLUME, Wanted, is_own_part},
    remote::{POLL, pages, whole},
};

/// The longest that taking back a failed create may take.
const UNDO_LIMIT: Duration = Duration::from_secs(600);

/// What goes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Doomed {
    pub(crate) instances: Vec<String>,
    /// Instances that are terminated already: EC2 takes their interfaces off by itself.
    pub(crate) gone: Vec<String>,
    pub(crate) interfaces: Vec<String>,
    /// Allocations.
    pub(crate) addresses: Vec<String>,
    /// Volumes of the user that are detached, each with its instance.
    pub(crate) volumes: Vec<(String, String)>,
}

impl Doomed {
    fn sort(&mut self) {
        for list in [&mut self.instances, &mut self.interfaces, &mut self.addresses] {
            list.sort();
            list.dedup();
        }
    }

    pub(crate) fn add_instance(&mut self, instance: &Instance) {
        self.instances.push(instance.id.clone());
        self.add_volumes(instance);
    }

    /// Volumes that do not go with the instance are the user's: they must be free when it is gone.
    fn add_volumes(&mut self, instance: &Instance) {
        let stay = instance.volumes.iter().filter(|v| !v.delete_on_termination && v.state != "detached");
        self.volumes.extend(stay.map(|v| (v.id.clone(), instance.id.clone())));
    }
}

impl AwsProvider {
    /// Takes back a failed create and returns what is left, each of it recorded.
    pub(crate) async fn undo(&self, ctx: &OpContext, wanted: &Wanted, made: &Made) -> Vec<Resource> {
        // The call may be cancelled or late; its undo has its own time.
        let ctx = ctx.for_undo(UNDO_LIMIT);
        let parts = made.lock().clone();
        let mut left = Vec::new();
        let mut doomed = Doomed {
            instances: parts.instances,
            gone: Vec::new(),
            interfaces: parts.interfaces,
            addresses: parts.addresses,
            volumes: parts.volumes,
        };
        if parts.unclear {
            // Only what this very call made is taken back: another one may have used the same token meanwhile.
            let token = wanted.token.tag_value();
            match Box::pin(self.find_settled(&ctx, &token)).await {
                Ok(found) => {
                    let instances = found.instances.iter().filter(|i| wanted.is_of_this_call(&i.tags));
                    instances.filter(|i| i.state != State::Terminated).for_each(|i| doomed.add_instance(i));
                    let interfaces = found.interfaces.iter().filter(|i| wanted.is_of_this_call(&i.tags));
                    doomed.interfaces.extend(interfaces.map(|i| i.id.clone()));
                    let addresses = found.addresses.iter().filter(|a| wanted.is_of_this_call(&a.tags));
                    doomed.addresses.extend(addresses.map(|a| a.allocation.clone()));
                }
                // Kept in the record, so that whoever reads it releases the token.
                Err(_) => left.push(Resource::new("unconfirmed", token)),
            }
        }
        left.extend(self.remove_all(&ctx, doomed).await.into_iter().map(|(resource, _)| resource));
        for resource in &left {
            // The error tells it as well, so a recorder that fails now loses nothing.
            let _ = ctx.record(resource).await;
        }
        left
    }

    /// Removes everything, and makes an error of what is left.
    pub(crate) async fn remove_or_report(&self, ctx: &OpContext, doomed: Doomed) -> Result<()> {
        let left = Box::pin(self.remove_all(ctx, doomed)).await;
        let Some((_, first)) = left.first() else { return Ok(()) };
        let error = first.clone();
        Err(error.with_leftovers(left.into_iter().map(|(resource, _)| resource)))
    }

    /// Removes instances first, which cost most and hold the rest. Goes on after a failure.
    async fn remove_all(&self, ctx: &OpContext, mut doomed: Doomed) -> Vec<(Resource, Error)> {
        doomed.sort();
        let mut left = Vec::new();
        let mut note = |kind: &str, id: &str, result: Result<()>| {
            if let Err(error) = result {
                left.push((Resource::new(kind, id), error));
            }
        };
        let gone = join_all(doomed.instances.iter().map(|id| self.terminate(ctx, id))).await;
        for (id, result) in doomed.instances.iter().zip(gone) {
            if result.is_err() {
                // A machine that may still run keeps its volumes: taking them away would harm what is on them.
                doomed.volumes.retain(|(_, of)| of != id);
            } else {
                doomed.gone.push(id.clone());
            }
            note(Resource::INSTANCE, id, result);
        }
        let released = join_all(doomed.addresses.iter().map(|id| self.release_address(ctx, id))).await;
        for (id, result) in doomed.addresses.iter().zip(released) {
            note(ADDRESS, id, result);
        }
        let deleted =
            join_all(doomed.interfaces.iter().map(|id| self.delete_interface(ctx, id, &doomed.gone))).await;
        for (id, result) in doomed.interfaces.iter().zip(deleted) {
            note(INTERFACE, id, result);
        }
        let detached = join_all(doomed.volumes.iter().map(|(volume, of)| self.detach(ctx, volume, of))).await;
        for ((id, _), result) in doomed.volumes.iter().zip(detached) {
            // The user's volume is no leftover; that it is still attached is told all the same.
            note(VOLUME, id, result);
        }
        left
    }

    /// Terminates an instance and waits until EC2 says that it is.
    async fn terminate(&self, ctx: &OpContext, id: &str) -> Result<()> {
        let limit = self.config.state_timeout;
        let told = ctx
            .poll("the termination", POLL, limit, || async {
                let call = self.calls.ec2.terminate_instances(id);
                match self.calls.call(ctx, "TerminateInstances", call).await {
                    // EC2 may not know an instance that was launched a moment ago.
                    Err(error) if *error.kind() == ErrorKind::NotFound => {
                        Ok((!self.young.has(id)).then_some(false))
                    }
                    Err(error) => Err(error),
                    Ok(()) => Ok(Some(true)),
                }
            })
            .await?;
        if !told {
            return Ok(());
        }
        let gone = |found: Option<Instance>| match found {
            Some(found) => Ok((found.state == State::Terminated).then_some(())),
            None => Ok((!self.young.has(id)).then_some(())),
        };
        let id = id.to_owned();
        self.instances.wait(ctx, "the instance to be terminated", &id, limit, gone).await?;
        self.young.remove(&id);
        Ok(())
    }

    /// Gives an Elastic IP back, after it is taken from what it is associated with.
    async fn release_address(&self, ctx: &OpContext, allocation: &str) -> Result<()> {
        let ec2 = &self.calls.ec2;
        ctx.poll("the address to be released", POLL, self.config.state_timeout, || async {
            let query = Query::filter("allocation-id", [allocation]);
            let found = self.calls.call(ctx, "DescribeAddresses", ec2.describe_addresses(&query)).await?;
            let Some(address) = found.first() else { return Ok(Some(())) };
            if let Some(association) = &address.association {
                let taken =
                    self.calls.call(ctx, "DisassociateAddress", ec2.disassociate_address(association)).await;
                gone_is_fine(taken)?;
            }
            let released = self.calls.call(ctx, "ReleaseAddress", ec2.release_address(allocation)).await;
            gone_is_fine(released).map(Some)
        })
        .await
    }

    /// Deletes an interface, after it is detached.
    async fn delete_interface(&self, ctx: &OpContext, id: &str, gone: &[String]) -> Result<()> {
        let ec2 = &self.calls.ec2;
        ctx.poll("the interface to be deleted", POLL, self.config.state_timeout, || async {
            let Some(interface) = self.interface(ctx, id).await? else { return Ok(Some(())) };
            let going = |a: &InterfaceAttachment| {
                a.state == "detaching" || a.instance.as_ref().is_some_and(|i| gone.contains(i))
            };
            match interface.attachment.filter(|attachment| !going(attachment)) {
                Some(attachment) => {
                    let call = ec2.detach_network_interface(&attachment.id);
                    gone_is_fine(self.calls.call(ctx, "DetachNetworkInterface", call).await)?;
                    Ok(None)
                }
                // While EC2 takes it off, this is refused for the moment.
                None => {
                    let call = ec2.delete_network_interface(id);
                    gone_is_fine(self.calls.call(ctx, "DeleteNetworkInterface", call).await).map(Some)
                }
            }
        })
        .await
    }

    /// Deletes an instance that EC2 has shown, together with its parts.
    pub(crate) async fn remove_instance(
        &self,
        ctx: &OpContext,
        instance: &Instance,
        ownership: &Ownership,
    ) -> Result<()> {
        let mut doomed = Doomed::default();
        if instance.state == State::Terminated {
            doomed.gone.push(instance.id.clone());
            doomed.add_volumes(instance);
        } else {
            doomed.add_instance(instance);
        }
        // An instance of the existing programs does not tell whether it has parts.
        let untagged = !instance.tags.contains_key(cloud_providers::tags::TOKEN);
        if untagged || instance.tags.contains_key(PARTS) {
            self.add_parts(ctx, &instance.id, ownership, &mut doomed).await?;
        }
        self.add_staying_interfaces(ctx, instance, &mut doomed).await?;
        self.remove_or_report(ctx, doomed).await
    }

    /// Adds interfaces of the launch that do not go with the instance, as a launch template may want it. Those of others,
    /// attached by hand, do not carry the token.
    async fn add_staying_interfaces(
        &self,
        ctx: &OpContext,
        instance: &Instance,
        doomed: &mut Doomed,
    ) -> Result<()> {
        let staying = instance.interfaces.iter().filter(|i| !i.delete_on_termination);
        let ids: Vec<String> =
            staying.map(|i| i.id.clone()).filter(|id| !doomed.interfaces.contains(id)).collect();
        let Some(token) = instance.tags.get(cloud_providers::tags::TOKEN).filter(|_| !ids.is_empty()) else {
            return Ok(());
        };
        let query = Query::filter("network-interface-id", ids);
        let found =
            whole(pages!(self.calls, ctx, "DescribeNetworkInterfaces", describe_network_interfaces, &query))?;
        let own = found.iter().filter(|i| i.tags.get(cloud_providers::tags::TOKEN) == Some(token));
        doomed.interfaces.extend(own.map(|i| i.id.clone()));
        Ok(())
    }

    /// Deletes what is left of an instance that is gone.
    pub(crate) async fn remove_remains(
        &self,
        ctx: &OpContext,
        id: &str,
        ownership: &Ownership,
    ) -> Result<()> {
        let mut doomed = Doomed { gone: vec![id.to_owned()], ..Doomed::default() };
        self.add_parts(ctx, id, ownership, &mut doomed).await?;
        self.remove_or_report(ctx, doomed).await
    }

    async fn add_parts(
        &self,
        ctx: &OpContext,
        id: &str,
        ownership: &Ownership,
        doomed: &mut Doomed,
    ) -> Result<()> {
        let mut queries = vec![Query::tag(INSTANCE_OF, id)];
        if matches!(ownership, Ownership::Recorded { .. } | Ownership::RecordedFor { .. }) {
            let names = [format!("nic-{id}"), format!("eip-{id}")];
            queries.push(Query::filter(format!("tag:{NAME_TAG}"), names));
        }
        for query in queries {
            let (interfaces, addresses): (Vec<Interface>, Vec<Address>) = self.parts(ctx, &query).await?;
            let own = |tags: &client::Tags| is_own_part(tags, id, ownership);
            doomed.interfaces.extend(interfaces.iter().filter(|i| own(&i.tags)).map(|i| i.id.clone()));
            doomed.addresses.extend(addresses.iter().filter(|a| own(&a.tags)).map(|a| a.allocation.clone()));
        }
        Ok(())
    }

    /// Looks for an instance by its id; `None` when it is gone for sure.
    pub(crate) async fn look_up(&self, ctx: &OpContext, id: &str) -> Result<Option<Instance>> {
        let id = id.to_owned();
        if let Some(found) = self.instances.get(ctx, id.clone()).await? {
            return Ok(Some(found));
        }
        // EC2 may not know yet what another process launched a moment ago: one answer is not believed.
        let start = tokio::time::Instant::now();
        loop {
            ctx.sleep(POLL).await?;
            let found = self.instances.get(ctx, id.clone()).await?;
            if found.is_some() || !self.young.has(&id) || start.elapsed() > self.config.state_timeout {
                return Ok(found);
            }
        }
    }
}

/// What is missing has been removed.
fn gone_is_fine(result: Result<()>) -> Result<()> {
    match result {
        Err(error) if *error.kind() == ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Returns whether a text can be an id of an instance.
pub(crate) fn is_instance_id(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    text.starts_with("i-") && text.len() <= 64 && text.chars().all(plain)
}

/// Returns the resource of every part, for lists.
pub(crate) fn resources(
    entries: &mut owned::Entries,
    interfaces: &[Interface],
    addresses: &[Address],
    volumes: &[client::Volume],
) {
    for interface in interfaces {
        entries.add(Resource::new(INTERFACE, &interface.id), &interface.tags);
    }
    for address in addresses {
        entries.add(Resource::new(ADDRESS, &address.allocation), &address.tags);
    }
    // A volume that is free was meant to outlive its machine, by an image or a launch template: nobody deletes it.
    for volume in volumes.iter().filter(|v| v.state != "available") {
        entries.add(Resource::new(VOLUME, &volume.id), &volume.tags);
    }
}
