//! Interfaces and Elastic IPs that are made when the instance runs.
//!
//! Each carries the token, the instance's id and its own part from birth, so that it is found whatever becomes of the call
//! that makes it, of its reply, and of the instance.

use std::net::IpAddr;

use cloud_providers::{Error, ErrorKind, OpContext, Resource, Result, tags};

use crate::{
    AwsProvider,
    blueprint::{Nic, Shape},
    client::{Address, CreateInterface, Instance, Interface, Query, Tags},
    create::Made,
    look::LAG,
    owned::{ADDRESS, CALL, INTERFACE, PART, Wanted},
    remote::{POLL, is_answer, pages, whole},
};

impl AwsProvider {
    /// Makes what the launch could not say: further interfaces, and public addresses of any but the first.
    pub(crate) async fn make_parts(
        &self,
        ctx: &OpContext,
        shape: &Shape,
        instance: &Instance,
        wanted: &Wanted,
        made: &Made,
        addresses: &mut Vec<IpAddr>,
    ) -> Result<()> {
        let adopted = !wanted.is_of_this_call(&instance.tags);
        // An instance of this call has no parts yet.
        let (interfaces, eips) = match adopted {
            true => self.parts_of_token(ctx, &wanted.token.tag_value()).await?,
            false => Default::default(),
        };
        for (index, nic) in (1..).zip(&shape.nics[1..]) {
            let attached = instance.interfaces.iter().find(|i| i.device_index == index);
            let interface = match attached {
                Some(interface) => {
                    self.keep_with_instance(
                        ctx,
                        &interface.id,
                        interface.attachment.as_deref(),
                        interface.delete_on_termination,
                    )
                    .await?;
                    interface.id.clone()
                }
                None => {
                    let part = format!("nic-{index}");
                    let found = interfaces.iter().find(|i| i.tags.get(PART) == Some(&part)).cloned();
                    let interface = match found {
                        Some(interface) => {
                            ctx.record(&Resource::new(INTERFACE, &interface.id)).await?;
                            interface
                        }
                        None => self.make_interface(ctx, shape, nic, &part, instance, wanted, made).await?,
                    };
                    addresses.extend(interface.private_addresses.first());
                    Box::pin(self.attach_interface(ctx, &interface, &instance.id, index)).await?;
                    interface.id
                }
            };
            if nic.public {
                let part = format!("eip-{index}");
                let found = eips.iter().find(|a| a.tags.get(PART) == Some(&part)).cloned();
                self.give_address(ctx, &part, found, &interface, &instance.id, wanted, made).await?;
            }
        }
        Ok(())
    }

    /// Returns the parts that carry a token.
    pub(crate) async fn parts_of_token(
        &self,
        ctx: &OpContext,
        token: &str,
    ) -> Result<(Vec<Interface>, Vec<Address>)> {
        self.parts(ctx, &Query::tag(tags::TOKEN, token)).await
    }

    /// Returns the interfaces and addresses that `query` matches.
    pub(crate) async fn parts(
        &self,
        ctx: &OpContext,
        query: &Query,
    ) -> Result<(Vec<Interface>, Vec<Address>)> {
        let interfaces =
            whole(pages!(self.calls, ctx, "DescribeNetworkInterfaces", describe_network_interfaces, query))?;
        let addresses =
            self.calls.call(ctx, "DescribeAddresses", self.calls.ec2.describe_addresses(query)).await?;
        Ok((interfaces, addresses))
    }

    #[expect(clippy::too_many_arguments, reason = "everything that an interface depends on")]
    async fn make_interface(
        &self,
        ctx: &OpContext,
        shape: &Shape,
        nic: &Nic,
        part: &str,
        instance: &Instance,
        wanted: &Wanted,
        made: &Made,
    ) -> Result<Interface> {
        let subnet = nic.subnet.clone().or_else(|| instance.subnet.clone()).ok_or_else(|| {
            Error::config("nothing tells the subnet of the second interface").with("set", "AWS_SUBNET_ID")
        })?;
        let request = CreateInterface {
            // The call's own number, since the tags, which are parameters, have it as well.
            client_token: wanted.token.client_token(&format!("{}\n{part}\n{}", instance.id, wanted.call)),
            subnet,
            groups: shape.groups.clone(),
            private_address: nic.address,
            description: format!("{part} of {}", wanted.name),
            tags: wanted.part_tags(part, "nic", &instance.id),
        };
        let interface = self
            .unclear_until_answered(ctx, made, "CreateNetworkInterface", || {
                self.calls.ec2.create_network_interface(&request)
            })
            .await?;
        made.lock().interfaces.push(interface.id.clone());
        ctx.record(&Resource::new(INTERFACE, &interface.id)).await?;
        Ok(interface)
    }

    /// Makes a call that makes something and may be repeated: it carries an idempotency value.
    async fn unclear_until_answered<T, F, Fut>(
        &self,
        ctx: &OpContext,
        made: &Made,
        operation: &'static str,
        call: F,
    ) -> Result<T>
    where
        F: Fn() -> Fut,
        Fut: Future<Output = Result<T>>,
    {
        made.lock().unclear = true;
        let result = self.calls.persist(ctx, operation, self.config.state_timeout, call).await;
        if result.is_ok() || result.as_ref().is_err_and(is_answer) {
            made.lock().unclear = false;
        }
        result
    }

    async fn attach_interface(
        &self,
        ctx: &OpContext,
        interface: &Interface,
        instance: &str,
        index: u32,
    ) -> Result<()> {
        let id = interface.id.as_str();
        let (limit, ec2) = (self.config.state_timeout, &self.calls.ec2);
        if interface.attachment.is_none() {
            let mut tries = 0;
            let attach = || {
                tries += 1;
                let repeated = tries > 1;
                async move {
                    match ec2.attach_network_interface(id, instance, index).await {
                        // An earlier try whose reply was lost may have done it.
                        Err(error) if repeated => {
                            let there = self.interface(ctx, id).await?.and_then(|i| i.attachment);
                            match there.is_some_and(|a| a.instance.as_deref() == Some(instance)) {
                                true => Ok(()),
                                false => Err(error),
                            }
                        }
                        answer => answer.map(|_| ()),
                    }
                }
            };
            self.calls.persist(ctx, "AttachNetworkInterface", limit, attach).await?;
        }
        let look = || async {
            let attachment = self.interface(ctx, id).await?.and_then(|i| i.attachment);
            match attachment {
                Some(there) if there.instance.as_deref().is_none_or(|i| i != instance) => {
                    Err(Error::new(ErrorKind::Conflict, "the interface is attached to something else")
                        .with("interface", id)
                        .with("instance", there.instance.unwrap_or_default()))
                }
                there => Ok(there),
            }
        };
        let attachment = ctx.poll("the interface to be attached", POLL, limit, look).await?;
        self.keep_with_instance(ctx, id, Some(&attachment.id), attachment.delete_on_termination).await
    }

    /// Lets an interface go with its instance.
    async fn keep_with_instance(
        &self,
        ctx: &OpContext,
        interface: &str,
        attachment: Option<&str>,
        already: bool,
    ) -> Result<()> {
        let (false, Some(attachment)) = (already, attachment) else { return Ok(()) };
        let (limit, ec2) = (self.config.state_timeout, &self.calls.ec2);
        let modify = || ec2.modify_network_interface_attribute(interface, attachment, true);
        self.calls.persist(ctx, "ModifyNetworkInterfaceAttribute", limit, modify).await
    }

    /// Describes one interface; `None` when it is gone.
    pub(crate) async fn interface(&self, ctx: &OpContext, id: &str) -> Result<Option<Interface>> {
        let query = Query::filter("network-interface-id", [id]);
        let found =
            whole(pages!(self.calls, ctx, "DescribeNetworkInterfaces", describe_network_interfaces, &query))?;
        Ok(found.into_iter().next())
    }

    #[expect(clippy::too_many_arguments, reason = "everything that an address depends on")]
    async fn give_address(
        &self,
        ctx: &OpContext,
        part: &str,
        found: Option<Address>,
        interface: &str,
        instance: &str,
        wanted: &Wanted,
        made: &Made,
    ) -> Result<()> {
        let address = match found {
            Some(address) => {
                ctx.record(&Resource::new(ADDRESS, &address.allocation)).await?;
                address
            }
            None => {
                let address = self.allocate(ctx, &wanted.part_tags(part, "eip", instance), made).await?;
                made.lock().addresses.push(address.allocation.clone());
                ctx.record(&Resource::new(ADDRESS, &address.allocation)).await?;
                address
            }
        };
        if address.interface.as_deref() == Some(interface) {
            return Ok(());
        }
        let (limit, ec2) = (self.config.state_timeout, &self.calls.ec2);
        let allocation = address.allocation.as_str();
        let associate = || async { ec2.associate_address(allocation, interface).await.map(|_| ()) };
        match self.calls.persist(ctx, "AssociateAddress", limit, associate).await {
            // The reply to an earlier try was lost, or somebody took the address for something else.
            Err(error) if error.code() == Some("Resource.AlreadyAssociated") => {
                let query = Query::filter("allocation-id", [allocation]);
                let found = self.calls.call(ctx, "DescribeAddresses", ec2.describe_addresses(&query)).await?;
                match found.iter().any(|a| a.interface.as_deref() == Some(interface)) {
                    true => Ok(()),
                    false => Err(error),
                }
            }
            answer => answer,
        }
    }

    /// Allocates an Elastic IP. EC2 has no idempotency value for that, so what a lost reply made is looked for by its tags.
    async fn allocate(&self, ctx: &OpContext, tags: &Tags, made: &Made) -> Result<Address> {
        made.lock().unclear = true;
        let result =
            match self.calls.call(ctx, "AllocateAddress", self.calls.ec2.allocate_address(tags)).await {
                Err(error) if *error.kind() == ErrorKind::Transient => {
                    let call = tags.get(CALL).map(String::as_str).unwrap_or_default();
                    let part = tags.get(PART).map(String::as_str).unwrap_or_default();
                    let query = Query::tag(CALL, call).and(format!("tag:{PART}"), [part]);
                    let ec2 = &self.calls.ec2;
                    let mut found =
                        self.calls.call(ctx, "DescribeAddresses", ec2.describe_addresses(&query)).await?;
                    if found.is_empty() {
                        ctx.sleep(LAG).await?;
                        found =
                            self.calls.call(ctx, "DescribeAddresses", ec2.describe_addresses(&query)).await?;
                    }
                    match found.pop() {
                        Some(address) => Ok(address),
                        None => Err(error),
                    }
                }
                answer => answer,
            };
        if result.is_ok() || result.as_ref().is_err_and(is_answer) {
            made.lock().unclear = false;
        }
        result
    }
}
