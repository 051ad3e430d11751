//! Answers of the SDK in the provider's types. Fields that an answer lacks stay empty; only a missing id is an error.

use std::net::IpAddr;

use aws_sdk_ec2::types;
use base64::{Engine, engine::general_purpose::STANDARD};
use cloud_providers::Result;

use crate::client::{
    AccountLimit, Address, Image, ImageMapping, Instance, InstanceInterface, InstanceVolume, Interface,
    InterfaceAttachment, KeyPair, LaunchTemplate, Rule, SecurityGroup, State, StateReason, Subnet, Tags,
    TypeInfo, TypeOffering, Volume, VolumeAttachment,
};
use crate::error::incomplete;

pub(super) fn instance(operation: &str, from: &types::Instance) -> Result<Instance> {
    let interfaces: Vec<InstanceInterface> =
        from.network_interfaces().iter().map(instance_interface).collect();
    let first = from.network_interfaces().iter().min_by_key(|i| {
        i.attachment().and_then(types::InstanceNetworkInterfaceAttachment::device_index).unwrap_or(0)
    });
    Ok(Instance {
        id: id(operation, "instanceId", from.instance_id())?,
        state: from.state().and_then(|s| s.name()).map(|n| State::of(n.as_str())).unwrap_or_default(),
        state_reason: from
            .state_reason()
            .map(|reason| StateReason { code: text(reason.code()), message: text(reason.message()) }),
        instance_type: from.instance_type().map(|t| t.as_str().to_owned()).unwrap_or_default(),
        image: from.image_id().map(str::to_owned),
        subnet: from.subnet_id().or_else(|| first?.subnet_id()).map(str::to_owned),
        zone: from.placement().and_then(|p| p.availability_zone()).map(str::to_owned),
        spot: from.instance_lifecycle() == Some(&types::InstanceLifecycleType::Spot),
        sev_snp: from.cpu_options().and_then(|c| c.amd_sev_snp())
            == Some(&types::AmdSevSnpSpecification::Enabled),
        launched_unix: from.launch_time().and_then(|t| u64::try_from(t.secs()).ok()),
        client_token: from.client_token().filter(|token| !token.is_empty()).map(str::to_owned),
        interfaces,
        volumes: from.block_device_mappings().iter().filter_map(instance_volume).collect(),
        tags: tags(from.tags()),
    })
}

fn instance_interface(from: &types::InstanceNetworkInterface) -> InstanceInterface {
    let attachment = from.attachment();
    let association = from.association();
    let addresses =
        from.private_ip_addresses().iter().map(|a| (a.primary(), a.private_ip_address())).collect::<Vec<_>>();
    InstanceInterface {
        id: text(from.network_interface_id()),
        attachment: attachment.and_then(|a| a.attachment_id()).map(str::to_owned),
        device_index: attachment.and_then(|a| a.device_index()).and_then(|n| n.try_into().ok()).unwrap_or(0),
        private_addresses: private_addresses(&addresses, from.private_ip_address()),
        public_address: association.and_then(|a| address_of(a.public_ip())),
        public_owner: association.and_then(|a| a.ip_owner_id()).map(str::to_owned),
        delete_on_termination: attachment.and_then(|a| a.delete_on_termination()).unwrap_or(false),
    }
}

fn instance_volume(from: &types::InstanceBlockDeviceMapping) -> Option<InstanceVolume> {
    let ebs = from.ebs()?;
    Some(InstanceVolume {
        id: ebs.volume_id()?.to_owned(),
        device: text(from.device_name()),
        state: ebs.status().map(|s| s.as_str().to_owned()).unwrap_or_default(),
        delete_on_termination: ebs.delete_on_termination().unwrap_or(false),
    })
}

pub(super) fn type_info(operation: &str, from: &types::InstanceTypeInfo) -> Result<TypeInfo> {
    let gpus = from.gpu_info().map(types::GpuInfo::gpus).unwrap_or_default();
    let processor = from.processor_info();
    let sev_snp = types::SupportedAdditionalProcessorFeature::AmdSevSnp;
    Ok(TypeInfo {
        name: id(operation, "instanceType", from.instance_type().map(types::InstanceType::as_str))?,
        vcpus: from.v_cpu_info().and_then(|v| v.default_v_cpus()).and_then(|n| n.try_into().ok()),
        memory_mib: from.memory_info().and_then(|m| m.size_in_mib()).and_then(|n| n.try_into().ok()),
        gpus: gpus.iter().filter_map(|g| u32::try_from(g.count()?).ok()).fold(0, u32::saturating_add),
        gpu_model: gpus.iter().find_map(|g| g.name()).map(str::to_owned),
        architectures: processor
            .map(types::ProcessorInfo::supported_architectures)
            .unwrap_or_default()
            .iter()
            .map(|a| a.as_str().to_owned())
            .collect(),
        sev_snp: processor.is_some_and(|p| p.supported_features().contains(&sev_snp)),
        boot_modes: from.supported_boot_modes().iter().map(|m| m.as_str().to_owned()).collect(),
        max_interfaces: from
            .network_info()
            .and_then(|n| n.maximum_network_interfaces())
            .and_then(|n| n.try_into().ok()),
        usage_classes: from.supported_usage_classes().iter().map(|c| c.as_str().to_owned()).collect(),
    })
}

pub(super) fn type_offering(from: &types::InstanceTypeOffering) -> Option<TypeOffering> {
    Some(TypeOffering {
        instance_type: from.instance_type()?.as_str().to_owned(),
        zone: from.location()?.to_owned(),
    })
}

pub(super) fn image(operation: &str, from: &types::Image) -> Result<Image> {
    let mapping = |m: &types::BlockDeviceMapping| ImageMapping {
        device: text(m.device_name()),
        size_gib: m.ebs().and_then(|e| e.volume_size()).and_then(|n| n.try_into().ok()),
    };
    Ok(Image {
        id: id(operation, "imageId", from.image_id())?,
        state: from.state().map(|s| s.as_str().to_owned()).unwrap_or_default(),
        architecture: from.architecture().map(|a| a.as_str().to_owned()),
        boot_mode: from.boot_mode().map(|m| m.as_str().to_owned()),
        root_device: from.root_device_name().map(str::to_owned),
        mappings: from.block_device_mappings().iter().map(mapping).collect(),
        ena: from.ena_support(),
    })
}

pub(super) fn key_pair(from: &types::KeyPairInfo) -> Option<KeyPair> {
    Some(KeyPair { name: from.key_name()?.to_owned() })
}

pub(super) fn launch_template(
    operation: &str,
    from: &types::LaunchTemplateVersion,
) -> Result<LaunchTemplate> {
    let template = LaunchTemplate {
        id: id(operation, "launchTemplateId", from.launch_template_id())?,
        version: from.version_number(),
        ..LaunchTemplate::default()
    };
    let Some(data) = from.launch_template_data() else { return Ok(template) };
    let interfaces = data.network_interfaces();
    let groups = data.security_group_ids().iter().chain(interfaces.iter().flat_map(|i| i.groups()));
    let spec = data.cpu_options().and_then(|c| c.amd_sev_snp());
    Ok(LaunchTemplate {
        image: data.image_id().map(str::to_owned),
        instance_type: data.instance_type().map(|t| t.as_str().to_owned()),
        key_name: data.key_name().map(str::to_owned),
        subnets: interfaces.iter().filter_map(|i| i.subnet_id()).map(str::to_owned).collect(),
        groups: groups.cloned().collect(),
        interfaces: u32::try_from(interfaces.len()).unwrap_or(u32::MAX),
        sev_snp: spec.map(|spec| *spec == types::AmdSevSnpSpecification::Enabled),
        spot: data.instance_market_options().and_then(|m| m.market_type()) == Some(&types::MarketType::Spot),
        ..template
    })
}

pub(super) fn subnet(operation: &str, from: &types::Subnet) -> Result<Subnet> {
    Ok(Subnet {
        id: id(operation, "subnetId", from.subnet_id())?,
        zone: text(from.availability_zone()),
        vpc: text(from.vpc_id()),
        state: from.state().map(|s| s.as_str().to_owned()).unwrap_or_default(),
        free_addresses: from.available_ip_address_count().and_then(|n| n.try_into().ok()),
    })
}

pub(super) fn security_group(operation: &str, from: &types::SecurityGroup) -> Result<SecurityGroup> {
    Ok(SecurityGroup {
        id: id(operation, "groupId", from.group_id())?,
        name: text(from.group_name()),
        vpc: from.vpc_id().map(str::to_owned),
        ingress: from.ip_permissions().iter().map(rule).collect(),
        egress: from.ip_permissions_egress().iter().map(rule).collect(),
    })
}

fn rule(from: &types::IpPermission) -> Rule {
    let ipv4 = from.ip_ranges().iter().filter_map(|r| r.cidr_ip());
    let ipv6 = from.ipv6_ranges().iter().filter_map(|r| r.cidr_ipv6());
    let lists = from.prefix_list_ids().iter().filter_map(|l| l.prefix_list_id());
    Rule {
        protocol: text(from.ip_protocol()),
        from_port: from.from_port(),
        to_port: from.to_port(),
        groups: from.user_id_group_pairs().iter().filter_map(|p| p.group_id()).map(str::to_owned).collect(),
        ranges: ipv4.chain(ipv6).chain(lists).map(str::to_owned).collect(),
    }
}

pub(super) fn volume(operation: &str, from: &types::Volume) -> Result<Volume> {
    let attachment = |a: &types::VolumeAttachment| VolumeAttachment {
        instance: text(a.instance_id()),
        device: text(a.device()),
        state: a.state().map(|s| s.as_str().to_owned()).unwrap_or_default(),
        delete_on_termination: a.delete_on_termination().unwrap_or(false),
    };
    Ok(Volume {
        id: id(operation, "volumeId", from.volume_id())?,
        state: from.state().map(|s| s.as_str().to_owned()).unwrap_or_default(),
        zone: text(from.availability_zone()),
        multi_attach: from.multi_attach_enabled().unwrap_or(false),
        attachments: from.attachments().iter().map(attachment).collect(),
        tags: tags(from.tags()),
    })
}

pub(super) fn interface(operation: &str, from: &types::NetworkInterface) -> Result<Interface> {
    let addresses =
        from.private_ip_addresses().iter().map(|a| (a.primary(), a.private_ip_address())).collect::<Vec<_>>();
    // Emulators send an empty attachment for an interface that is attached to nothing.
    let attachment = from.attachment().and_then(|a| {
        Some(InterfaceAttachment {
            id: a.attachment_id().filter(|id| !id.is_empty())?.to_owned(),
            instance: a.instance_id().filter(|id| !id.is_empty()).map(str::to_owned),
            device_index: a.device_index().and_then(|n| n.try_into().ok()).unwrap_or(0),
            state: a.status().map(|s| s.as_str().to_owned()).unwrap_or_default(),
            delete_on_termination: a.delete_on_termination().unwrap_or(false),
        })
    });
    Ok(Interface {
        id: id(operation, "networkInterfaceId", from.network_interface_id())?,
        status: from.status().map(|s| s.as_str().to_owned()).unwrap_or_default(),
        attachment,
        private_addresses: private_addresses(&addresses, from.private_ip_address()),
        tags: tags(from.tag_set()),
    })
}

pub(super) fn address(operation: &str, from: &types::Address) -> Result<Address> {
    let some = |text: Option<&str>| text.filter(|text| !text.is_empty()).map(str::to_owned);
    Ok(Address {
        allocation: id(operation, "allocationId", from.allocation_id())?,
        public_address: address_of(from.public_ip()),
        association: some(from.association_id()),
        instance: some(from.instance_id()),
        interface: some(from.network_interface_id()),
        tags: tags(from.tags()),
    })
}

pub(super) fn account_limit(from: &types::AccountAttribute) -> Option<AccountLimit> {
    let values = from.attribute_values().iter().filter_map(|v| v.attribute_value()).map(str::to_owned);
    Some(AccountLimit::new(from.attribute_name()?, values.collect()))
}

/// Returns an id, which every answer has.
pub(super) fn id(operation: &str, field: &str, value: Option<&str>) -> Result<String> {
    value.filter(|id| !id.is_empty()).map(str::to_owned).ok_or_else(|| incomplete(operation, field))
}

/// Reads the console of an instance, which EC2 wraps into lines of base64; none yet is empty.
pub(super) fn console(operation: &str, output: Option<&str>) -> Result<Vec<u8>> {
    let packed: String = output.unwrap_or_default().split_whitespace().collect();
    STANDARD.decode(packed).map_err(|_| incomplete(operation, "output in base64"))
}

pub(super) fn address_of(value: Option<&str>) -> Option<IpAddr> {
    value?.parse().ok()
}

fn text(value: Option<&str>) -> String {
    value.unwrap_or_default().to_owned()
}

fn tags(from: &[types::Tag]) -> Tags {
    from.iter().filter_map(|tag| Some((tag.key()?.to_owned(), text(tag.value())))).collect()
}

/// Returns the addresses of an interface, the primary one first; an address without a list of addresses is the primary.
fn private_addresses(listed: &[(Option<bool>, Option<&str>)], primary: Option<&str>) -> Vec<IpAddr> {
    let (first, rest): (Vec<_>, Vec<_>) =
        listed.iter().copied().partition(|(is_primary, _)| *is_primary == Some(true));
    let mut addresses: Vec<IpAddr> =
        first.into_iter().chain(rest).filter_map(|(_, address)| address_of(address)).collect();
    if let Some(primary) = address_of(primary)
        && !addresses.contains(&primary)
    {
        addresses.insert(0, primary);
    }
    // Before an interface is up, some answers have this in the place of an address.
    addresses.retain(|address| !address.is_unspecified());
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_with_an_id_alone_is_read_and_one_without_is_refused() {
        let bare = types::Instance::builder().instance_id("i-1").build();
        let read = instance("DescribeInstances", &bare).unwrap();
        assert_eq!((read.id.as_str(), read.state, read.interfaces.len()), ("i-1", State::Unknown, 0));
        for error in [
            instance("DescribeInstances", &types::Instance::builder().build()).unwrap_err(),
            instance("DescribeInstances", &types::Instance::builder().instance_id("").build()).unwrap_err(),
            volume("DescribeVolumes", &types::Volume::builder().build()).unwrap_err(),
            subnet("DescribeSubnets", &types::Subnet::builder().build()).unwrap_err(),
            image("DescribeImages", &types::Image::builder().build()).unwrap_err(),
            interface("x", &types::NetworkInterface::builder().build()).unwrap_err(),
            address("DescribeAddresses", &types::Address::builder().build()).unwrap_err(),
            security_group("x", &types::SecurityGroup::builder().build()).unwrap_err(),
            type_info("x", &types::InstanceTypeInfo::builder().build()).unwrap_err(),
            launch_template("x", &types::LaunchTemplateVersion::builder().build()).unwrap_err(),
        ] {
            assert!(error.to_string().contains("missing: "), "{error}");
        }
        assert_eq!(type_offering(&types::InstanceTypeOffering::builder().build()), None);
        assert_eq!(key_pair(&types::KeyPairInfo::builder().build()), None);
        assert_eq!(account_limit(&types::AccountAttribute::builder().build()), None);
    }

    #[test]
    fn a_console_is_unwrapped_and_none_is_empty() {
        assert_eq!(console("x", Some("Ym9v\ndGVk\n")).unwrap(), b"booted");
        assert_eq!(console("x", None).unwrap(), b"");
        assert!(console("x", Some("no base64!")).is_err());
    }

    #[test]
    fn the_primary_address_comes_first_and_nothing_is_listed_twice() {
        let listed = [(None, Some("10.0.0.7")), (Some(true), Some("10.0.0.5")), (Some(false), Some("what?"))];
        let texts =
            |addresses: Vec<IpAddr>| addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        assert_eq!(texts(private_addresses(&listed, Some("10.0.0.5"))), "10.0.0.5 10.0.0.7");
        assert_eq!(texts(private_addresses(&[], Some("10.0.0.5"))), "10.0.0.5");
        assert_eq!(texts(private_addresses(&listed[..1], Some("10.0.0.5"))), "10.0.0.5 10.0.0.7");
        assert_eq!(texts(private_addresses(&[], Some("0.0.0.0"))), "");
        assert_eq!(texts(private_addresses(&[], None)), "");
    }

    #[test]
    fn graphics_cards_of_all_models_are_counted_and_odd_numbers_are_not() {
        let gpu = |name, count| types::GpuDeviceInfo::builder().name(name).count(count).build();
        let gpus =
            types::GpuInfo::builder().gpus(gpu("A10G", 4)).gpus(gpu("T4", 2)).gpus(gpu("x", -1)).build();
        let info = types::InstanceTypeInfo::builder()
            .instance_type(types::InstanceType::from("g5.new"))
            .gpu_info(gpus)
            .memory_info(types::MemoryInfo::builder().size_in_mib(-5).build())
            .build();
        let read = type_info("DescribeInstanceTypes", &info).unwrap();
        assert_eq!((read.name.as_str(), read.gpus, read.gpu_model.as_deref()), ("g5.new", 6, Some("A10G")));
        assert_eq!((read.memory_mib, read.vcpus, read.sev_snp), (None, None, false));
    }
}
