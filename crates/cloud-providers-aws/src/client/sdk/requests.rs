//! Requests of the provider in the SDK's types.

use aws_sdk_ec2::{
    operation::{
        create_network_interface::builders::CreateNetworkInterfaceFluentBuilder,
        run_instances::builders::RunInstancesFluentBuilder,
    },
    types,
};
use base64::{Engine, engine::general_purpose::STANDARD};

use crate::client::{CreateInterface, Filter, NewInterface, RunInstances, Tags};

pub(super) fn run_instances(
    call: RunInstancesFluentBuilder,
    request: &RunInstances,
) -> RunInstancesFluentBuilder {
    let mut call = call
        .min_count(1)
        .max_count(1)
        .client_token(&request.client_token)
        .set_image_id(request.image.clone())
        .set_instance_type(request.instance_type.as_deref().map(types::InstanceType::from))
        .set_key_name(request.key_name.clone())
        .set_network_interfaces(some(request.interfaces.iter().map(new_interface).collect()));
    if let Some(template) = &request.launch_template {
        call = call.launch_template(
            types::LaunchTemplateSpecification::builder()
                .launch_template_name(&template.name)
                .version(&template.version)
                .build(),
        );
    }
    if let Some(root) = &request.root_volume {
        let size = root.size_gib.map(|size| i32::try_from(size).unwrap_or(i32::MAX));
        let ebs = types::EbsBlockDevice::builder().set_volume_size(size).delete_on_termination(true).build();
        call = call.block_device_mappings(
            types::BlockDeviceMapping::builder().device_name(&root.device).ebs(ebs).build(),
        );
    }
    if request.sev_snp {
        let enabled = types::AmdSevSnpSpecification::Enabled;
        call = call.cpu_options(types::CpuOptionsRequest::builder().amd_sev_snp(enabled).build());
    }
    if request.spot {
        let options = types::SpotMarketOptions::builder()
            .spot_instance_type(types::SpotInstanceType::OneTime)
            .instance_interruption_behavior(types::InstanceInterruptionBehavior::Terminate)
            .build();
        call = call.instance_market_options(
            types::InstanceMarketOptionsRequest::builder()
                .market_type(types::MarketType::Spot)
                .spot_options(options)
                .build(),
        );
    }
    if let Some(metadata) = &request.metadata {
        let tokens = if metadata.tokens_required {
            types::HttpTokensState::Required
        } else {
            types::HttpTokensState::Optional
        };
        call = call.metadata_options(
            types::InstanceMetadataOptionsRequest::builder()
                .http_tokens(tokens)
                .http_put_response_hop_limit(metadata.hop_limit.into())
                .http_endpoint(types::InstanceMetadataEndpointState::Enabled)
                .build(),
        );
    }
    if request.terminate_on_shutdown {
        call = call.instance_initiated_shutdown_behavior(types::ShutdownBehavior::Terminate);
    }
    if !request.user_data.is_empty() {
        call = call.user_data(STANDARD.encode(request.user_data.as_bytes()));
    }
    let mut kinds = vec![
        types::ResourceType::Instance,
        types::ResourceType::Volume,
        types::ResourceType::NetworkInterface,
    ];
    if request.spot {
        kinds.push(types::ResourceType::SpotInstancesRequest);
    }
    let specifications =
        kinds.into_iter().filter_map(|kind| tag_specification(kind, &request.tags)).collect();
    call.set_tag_specifications(some(specifications))
}

fn new_interface(interface: &NewInterface) -> types::InstanceNetworkInterfaceSpecification {
    types::InstanceNetworkInterfaceSpecification::builder()
        .device_index(i32::try_from(interface.device_index).unwrap_or(i32::MAX))
        .set_subnet_id(interface.subnet.clone())
        .set_groups(some(interface.groups.clone()))
        .set_private_ip_address(interface.private_address.map(|address| address.to_string()))
        .set_associate_public_ip_address(interface.public)
        .delete_on_termination(interface.delete_on_termination)
        .build()
}

pub(super) fn create_interface(
    call: CreateNetworkInterfaceFluentBuilder,
    request: &CreateInterface,
) -> CreateNetworkInterfaceFluentBuilder {
    let tags = tag_specification(types::ResourceType::NetworkInterface, &request.tags);
    call.client_token(&request.client_token)
        .subnet_id(&request.subnet)
        .set_groups(some(request.groups.clone()))
        .set_private_ip_address(request.private_address.map(|address| address.to_string()))
        .set_description(Some(request.description.clone()).filter(|text| !text.is_empty()))
        .set_tag_specifications(some(tags.into_iter().collect()))
}

/// Says with which tags resources of a kind are made; nothing without tags, which EC2 refuses to be told of.
pub(super) fn tag_specification(kind: types::ResourceType, tags: &Tags) -> Option<types::TagSpecification> {
    let tags = tags.iter().map(|(key, value)| types::Tag::builder().key(key).value(value).build()).collect();
    let tags: Vec<types::Tag> = tags;
    (!tags.is_empty())
        .then(|| types::TagSpecification::builder().resource_type(kind).set_tags(Some(tags)).build())
}

pub(super) fn filters(filters: &[Filter]) -> Option<Vec<types::Filter>> {
    let filter =
        |f: &Filter| types::Filter::builder().name(&f.name).set_values(Some(f.values.clone())).build();
    some(filters.iter().map(filter).collect())
}

/// Leaves an empty list out: EC2 takes an empty parameter for a wrong one.
pub(super) fn some<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}
