//! Each call of the provider as one call of the SDK.

use std::{error::Error as StdError, future::Future};

use aws_sdk_ec2::{
    error::{ProvideErrorMetadata, SdkError},
    operation::RequestId,
    types,
};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use cloud_providers::{Error, Result, async_trait};
use tracing::{instrument::WithSubscriber, subscriber::NoSubscriber};

use super::{SdkEc2, answers, failure, requests};
use crate::client::{
    AccountLimit, Address, CreateInterface, DryRun, Ec2, Image, Instance, Interface, KeyPair, LaunchTemplate,
    LaunchTemplateRef, Page, Query, RunInstances, SecurityGroup, Subnet, Tags, TypeInfo, TypeOffering,
    Volume,
};
use crate::error::incomplete;

/// The size of a page. Without one EC2 may put everything on one page, and takes longer than a call may.
const PAGE: i32 = 500;

/// EC2 takes no size of pages together with ids.
fn page_size(query: &Query) -> Option<i32> {
    query.ids.is_empty().then_some(PAGE)
}

fn mark(after: Option<&str>) -> Option<String> {
    after.map(str::to_owned)
}

fn ids(query: &Query) -> Option<Vec<String>> {
    requests::some(query.ids.clone())
}

/// An id list that is empty would mean everything.
fn named(ids: &[String]) -> Option<Vec<String>> {
    requests::some(ids.to_vec())
}

#[async_trait]
impl Ec2 for SdkEc2 {
    async fn run_instances(&self, request: &RunInstances) -> Result<Instance> {
        let operation = "RunInstances";
        let answer =
            self.send(operation, requests::run_instances(self.ec2.run_instances(), request).send()).await?;
        let first = answer.instances().first().ok_or_else(|| incomplete(operation, "instancesSet"))?;
        answers::instance(operation, first)
    }

    async fn describe_instances(&self, query: &Query, after: Option<&str>) -> Result<Page<Instance>> {
        let operation = "DescribeInstances";
        let call = self
            .ec2
            .describe_instances()
            .set_instance_ids(ids(query))
            .set_filters(requests::filters(&query.filters))
            .set_max_results(page_size(query))
            .set_next_token(mark(after));
        let answer = self.send(operation, call.send()).await?;
        let instances = answer.reservations().iter().flat_map(types::Reservation::instances);
        let items = instances.map(|i| answers::instance(operation, i)).collect::<Result<_>>()?;
        Ok(Page::new(items, mark(answer.next_token())))
    }

    async fn terminate_instances(&self, id: &str) -> Result<()> {
        self.send("TerminateInstances", self.ec2.terminate_instances().instance_ids(id).send()).await?;
        Ok(())
    }

    async fn describe_instance_types(&self, names: &[String]) -> Result<Vec<TypeInfo>> {
        let operation = "DescribeInstanceTypes";
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let names = names.iter().map(|name| types::InstanceType::from(name.as_str())).collect();
        let call = self.ec2.describe_instance_types().set_instance_types(Some(names));
        let answer = self.send(operation, call.send()).await?;
        answer.instance_types().iter().map(|t| answers::type_info(operation, t)).collect()
    }

    async fn describe_instance_type_offerings(
        &self,
        names: &[String],
        after: Option<&str>,
    ) -> Result<Page<TypeOffering>> {
        let filter = types::Filter::builder().name("instance-type").set_values(named(names)).build();
        let call = self
            .ec2
            .describe_instance_type_offerings()
            .location_type(types::LocationType::AvailabilityZone)
            .set_filters((!names.is_empty()).then(|| vec![filter]))
            .max_results(PAGE)
            .set_next_token(mark(after));
        let answer = self.send("DescribeInstanceTypeOfferings", call.send()).await?;
        let items = answer.instance_type_offerings().iter().filter_map(answers::type_offering).collect();
        Ok(Page::new(items, mark(answer.next_token())))
    }

    async fn describe_images(&self, ids: &[String]) -> Result<Vec<Image>> {
        let operation = "DescribeImages";
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let answer =
            self.send(operation, self.ec2.describe_images().set_image_ids(named(ids)).send()).await?;
        answer.images().iter().map(|i| answers::image(operation, i)).collect()
    }

    async fn describe_subnets(&self, ids: &[String]) -> Result<Vec<Subnet>> {
        let operation = "DescribeSubnets";
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let answer =
            self.send(operation, self.ec2.describe_subnets().set_subnet_ids(named(ids)).send()).await?;
        answer.subnets().iter().map(|s| answers::subnet(operation, s)).collect()
    }

    async fn describe_security_groups(&self, ids: &[String]) -> Result<Vec<SecurityGroup>> {
        let operation = "DescribeSecurityGroups";
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let answer = self
            .send(operation, self.ec2.describe_security_groups().set_group_ids(named(ids)).send())
            .await?;
        answer.security_groups().iter().map(|g| answers::security_group(operation, g)).collect()
    }

    async fn describe_key_pairs(&self, names: &[String]) -> Result<Vec<KeyPair>> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let call = self.ec2.describe_key_pairs().set_key_names(named(names));
        let answer = self.send("DescribeKeyPairs", call.send()).await?;
        Ok(answer.key_pairs().iter().filter_map(answers::key_pair).collect())
    }

    async fn describe_launch_template_versions(
        &self,
        template: &LaunchTemplateRef,
    ) -> Result<Option<LaunchTemplate>> {
        let operation = "DescribeLaunchTemplateVersions";
        let call = self
            .ec2
            .describe_launch_template_versions()
            .launch_template_name(&template.name)
            .versions(&template.version);
        let answer = self.send(operation, call.send()).await?;
        let first = answer.launch_template_versions().first();
        first.map(|version| answers::launch_template(operation, version)).transpose()
    }

    async fn describe_volumes(&self, query: &Query, after: Option<&str>) -> Result<Page<Volume>> {
        let operation = "DescribeVolumes";
        let call = self
            .ec2
            .describe_volumes()
            .set_volume_ids(ids(query))
            .set_filters(requests::filters(&query.filters))
            .set_max_results(page_size(query))
            .set_next_token(mark(after));
        let answer = self.send(operation, call.send()).await?;
        let items = answer.volumes().iter().map(|v| answers::volume(operation, v)).collect::<Result<_>>()?;
        Ok(Page::new(items, mark(answer.next_token())))
    }

    async fn attach_volume(&self, volume: &str, instance: &str, device: &str) -> Result<()> {
        let call = self.ec2.attach_volume().volume_id(volume).instance_id(instance).device(device);
        self.send("AttachVolume", call.send()).await?;
        Ok(())
    }

    async fn detach_volume(&self, volume: &str, instance: &str) -> Result<()> {
        let call = self.ec2.detach_volume().volume_id(volume).instance_id(instance);
        self.send("DetachVolume", call.send()).await?;
        Ok(())
    }

    async fn create_network_interface(&self, request: &CreateInterface) -> Result<Interface> {
        let operation = "CreateNetworkInterface";
        let call = requests::create_interface(self.ec2.create_network_interface(), request);
        let answer = self.send(operation, call.send()).await?;
        let made = answer.network_interface().ok_or_else(|| incomplete(operation, "networkInterface"))?;
        answers::interface(operation, made)
    }

    async fn describe_network_interfaces(
        &self,
        query: &Query,
        after: Option<&str>,
    ) -> Result<Page<Interface>> {
        let operation = "DescribeNetworkInterfaces";
        let call = self
            .ec2
            .describe_network_interfaces()
            .set_network_interface_ids(ids(query))
            .set_filters(requests::filters(&query.filters))
            .set_max_results(page_size(query))
            .set_next_token(mark(after));
        let answer = self.send(operation, call.send()).await?;
        let items = answer.network_interfaces().iter().map(|i| answers::interface(operation, i));
        Ok(Page::new(items.collect::<Result<_>>()?, mark(answer.next_token())))
    }

    async fn attach_network_interface(
        &self,
        interface: &str,
        instance: &str,
        device_index: u32,
    ) -> Result<Option<String>> {
        let call = self
            .ec2
            .attach_network_interface()
            .network_interface_id(interface)
            .instance_id(instance)
            .device_index(i32::try_from(device_index).unwrap_or(i32::MAX));
        let answer = self.send("AttachNetworkInterface", call.send()).await?;
        Ok(mark(answer.attachment_id()).filter(|id| !id.is_empty()))
    }

    async fn modify_network_interface_attribute(
        &self,
        interface: &str,
        attachment: &str,
        delete_on_termination: bool,
    ) -> Result<()> {
        let change = types::NetworkInterfaceAttachmentChanges::builder()
            .attachment_id(attachment)
            .delete_on_termination(delete_on_termination)
            .build();
        let call = self.ec2.modify_network_interface_attribute().network_interface_id(interface);
        self.send("ModifyNetworkInterfaceAttribute", call.attachment(change).send()).await?;
        Ok(())
    }

    async fn detach_network_interface(&self, attachment: &str) -> Result<()> {
        let call = self.ec2.detach_network_interface().attachment_id(attachment);
        self.send("DetachNetworkInterface", call.send()).await?;
        Ok(())
    }

    async fn delete_network_interface(&self, interface: &str) -> Result<()> {
        let call = self.ec2.delete_network_interface().network_interface_id(interface);
        self.send("DeleteNetworkInterface", call.send()).await?;
        Ok(())
    }

    async fn allocate_address(&self, tags: &Tags) -> Result<Address> {
        let operation = "AllocateAddress";
        let specification = requests::tag_specification(types::ResourceType::ElasticIp, tags);
        let call = self
            .ec2
            .allocate_address()
            .domain(types::DomainType::Vpc)
            .set_tag_specifications(specification.map(|s| vec![s]));
        let answer = self.send(operation, call.send()).await?;
        Ok(Address {
            allocation: answers::id(operation, "allocationId", answer.allocation_id())?,
            public_address: answers::address_of(answer.public_ip()),
            tags: tags.clone(),
            ..Address::default()
        })
    }

    async fn associate_address(&self, allocation: &str, interface: &str) -> Result<Option<String>> {
        let call = self
            .ec2
            .associate_address()
            .allocation_id(allocation)
            .network_interface_id(interface)
            // In a VPC the default moves an address that is in use.
            .allow_reassociation(false);
        let answer = self.send("AssociateAddress", call.send()).await?;
        Ok(mark(answer.association_id()).filter(|id| !id.is_empty()))
    }

    async fn disassociate_address(&self, association: &str) -> Result<()> {
        let call = self.ec2.disassociate_address().association_id(association);
        self.send("DisassociateAddress", call.send()).await?;
        Ok(())
    }

    async fn release_address(&self, allocation: &str) -> Result<()> {
        self.send("ReleaseAddress", self.ec2.release_address().allocation_id(allocation).send()).await?;
        Ok(())
    }

    async fn describe_addresses(&self, query: &Query) -> Result<Vec<Address>> {
        let operation = "DescribeAddresses";
        let call = self
            .ec2
            .describe_addresses()
            .set_allocation_ids(ids(query))
            .set_filters(requests::filters(&query.filters));
        let answer = self.send(operation, call.send()).await?;
        answer.addresses().iter().map(|a| answers::address(operation, a)).collect()
    }

    async fn dry_run(&self, call: &DryRun) -> Result<()> {
        let operation = call.operation();
        match self.send_dry(call).await {
            // Whoever asks has made something now, which only a fault of the other side can do.
            Ok(()) => {
                Err(Error::internal("a call that was only to be tried was carried out")
                    .with_operation(operation))
            }
            Err(error) if error.code() == Some("DryRunOperation") => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn get_console_output(&self, id: &str, latest: bool) -> Result<Vec<u8>> {
        let operation = "GetConsoleOutput";
        let call = self.ec2.get_console_output().instance_id(id).latest(latest);
        let answer = self.send(operation, call.send()).await?;
        answers::console(operation, answer.output())
    }

    async fn describe_account_attributes(&self) -> Result<Vec<AccountLimit>> {
        let answer =
            self.send("DescribeAccountAttributes", self.ec2.describe_account_attributes().send()).await?;
        Ok(answer.account_attributes().iter().filter_map(answers::account_limit).collect())
    }

    async fn get_caller_identity(&self) -> Result<Option<String>> {
        let operation = "GetCallerIdentity";
        let answer = self.send(operation, self.sts.get_caller_identity().send()).await?;
        answers::id(operation, "Arn", answer.arn()).map(Some)
    }
}

impl SdkEc2 {
    /// Sends a call and describes its failure.
    async fn send<T, E>(
        &self,
        operation: &str,
        call: impl Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    ) -> Result<T>
    where
        E: ProvideErrorMetadata + RequestId + StdError + Send + Sync + 'static,
    {
        // The SDK's futures take many kilobytes, which every caller's future would have in itself.
        let call = Box::pin(call);
        let answer =
            if self.silent { call.with_subscriber(NoSubscriber::default()).await } else { call.await };
        answer.map_err(|error| failure::describe(operation, error))
    }

    /// Sends a changing call with `DryRun`.
    async fn send_dry(&self, call: &DryRun) -> Result<()> {
        let operation = call.operation();
        let ec2 = &self.ec2;
        match call {
            DryRun::RunInstances(request) => {
                let call = requests::run_instances(ec2.run_instances(), request);
                self.send(operation, call.dry_run(true).send()).await.map(drop)
            }
            DryRun::TerminateInstances(id) => self
                .send(operation, ec2.terminate_instances().instance_ids(id).dry_run(true).send())
                .await
                .map(drop),
            DryRun::CreateNetworkInterface(request) => {
                let call = requests::create_interface(ec2.create_network_interface(), request);
                self.send(operation, call.dry_run(true).send()).await.map(drop)
            }
            DryRun::AttachNetworkInterface(interface, instance) => {
                let call =
                    ec2.attach_network_interface().network_interface_id(interface).instance_id(instance);
                self.send(operation, call.device_index(1).dry_run(true).send()).await.map(drop)
            }
            DryRun::ModifyNetworkInterfaceAttribute(interface, attachment) => {
                let change = types::NetworkInterfaceAttachmentChanges::builder()
                    .attachment_id(attachment)
                    .delete_on_termination(true)
                    .build();
                let call = ec2.modify_network_interface_attribute().network_interface_id(interface);
                self.send(operation, call.attachment(change).dry_run(true).send()).await.map(drop)
            }
            DryRun::DetachNetworkInterface(attachment) => {
                let call = ec2.detach_network_interface().attachment_id(attachment);
                self.send(operation, call.dry_run(true).send()).await.map(drop)
            }
            DryRun::DeleteNetworkInterface(id) => {
                let call = ec2.delete_network_interface().network_interface_id(id);
                self.send(operation, call.dry_run(true).send()).await.map(drop)
            }
            DryRun::AllocateAddress(tags) => {
                let tags = requests::tag_specification(types::ResourceType::ElasticIp, tags);
                let call = ec2.allocate_address().domain(types::DomainType::Vpc);
                let call = call.set_tag_specifications(tags.map(|s| vec![s]));
                self.send(operation, call.dry_run(true).send()).await.map(drop)
            }
            DryRun::AssociateAddress(allocation, interface) => {
                let call = ec2.associate_address().allocation_id(allocation).network_interface_id(interface);
                self.send(operation, call.allow_reassociation(false).dry_run(true).send()).await.map(drop)
            }
            DryRun::DisassociateAddress(association) => {
                let call = ec2.disassociate_address().association_id(association);
                self.send(operation, call.dry_run(true).send()).await.map(drop)
            }
            DryRun::ReleaseAddress(allocation) => self
                .send(operation, ec2.release_address().allocation_id(allocation).dry_run(true).send())
                .await
                .map(drop),
            DryRun::AttachVolume(volume, instance) => {
                let call = ec2.attach_volume().volume_id(volume).instance_id(instance).device("/dev/xvdz");
                self.send(operation, call.dry_run(true).send()).await.map(drop)
            }
            DryRun::DetachVolume(volume, instance) => {
                let call = ec2.detach_volume().volume_id(volume).instance_id(instance);
                self.send(operation, call.dry_run(true).send()).await.map(drop)
            }
        }
    }
}
