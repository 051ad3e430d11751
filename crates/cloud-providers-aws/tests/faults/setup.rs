//! An account, a provider over it, and requests.

use std::{sync::Arc, time::Duration};

use cloud_providers::{
    Cloud, CreateRequest, Instance, MapEnv, NetworkRequest, OpContext, Ownership, Provider, Result, Scope,
    Token, Unit,
};
use cloud_providers_aws::{
    AwsCloud,
    scripted::{Thing, World},
};

/// What is set unless a test says otherwise: machines that are not confidential, in one subnet.
const PLAIN: [(&str, &str); 6] = [
    ("PODVM_AMI_ID", "ami-1"),
    ("PODVM_INSTANCE_TYPE", "t3.small"),
    ("DISABLECVM", "true"),
    ("AWS_SUBNET_ID", "subnet-a"),
    ("AWS_SG_IDS", "sg-1"),
    ("SSH_KP_NAME", "key-1"),
];

pub(crate) fn scope() -> Scope {
    Scope::Cluster("faults".into())
}

pub(crate) fn ours() -> Ownership {
    Ownership::Tagged(scope())
}

pub(crate) fn request(unit: &str) -> CreateRequest {
    let unit_of = Unit { id: unit.into(), name_hint: "web".into() };
    CreateRequest::new(Token::new(scope(), unit, 1), unit_of, "node-1").with_user_data("#cloud-config\n")
}

/// Asks for a second interface.
pub(crate) fn two_networks(unit: &str) -> CreateRequest {
    let mut request = request(unit);
    request.networks = vec![NetworkRequest::default(), NetworkRequest::default()];
    request
}

/// Makes a provider with `env` on top of what is set; an empty value takes a setting away.
pub(crate) async fn provider(world: &World, env: &[(&str, &str)]) -> Arc<dyn Provider> {
    let mut cloud = AwsCloud::new().with_connect(Arc::new(world.clone()));
    let kept = PLAIN.iter().filter(|(key, _)| !env.iter().any(|(k, _)| k == key));
    cloud.load_env(&MapEnv::new(kept.chain(env).copied())).unwrap();
    cloud.new_provider().await.unwrap()
}

/// Makes an account in which states take their time, and a provider that has learned all that it wants to.
pub(crate) async fn fixture(env: &[(&str, &str)]) -> (World, Arc<dyn Provider>) {
    let world = World::new();
    world.set_latency(Duration::from_millis(20));
    world.set_boot_time(Duration::from_secs(3));
    world.set_shutdown_time(Duration::from_secs(2));
    let provider = provider(&world, env).await;
    world.clear_calls();
    (world, provider)
}

pub(crate) async fn create(provider: &Arc<dyn Provider>, request: &CreateRequest) -> Result<Instance> {
    provider.create_instance(&OpContext::new(), request).await
}

pub(crate) async fn delete(provider: &Arc<dyn Provider>, instance: &Instance) -> Result<()> {
    provider.delete_instance(&OpContext::new(), &instance.id, &ours()).await
}

/// Returns what exists of a kind.
pub(crate) fn of_kind(world: &World, kind: &str) -> Vec<Thing> {
    world.things().into_iter().filter(|t| t.kind == kind).collect()
}

/// Fails unless nothing is there but what the user brought.
pub(crate) fn assert_nothing_is_left(world: &World) {
    let left: Vec<Thing> =
        world.things().into_iter().filter(|t| t.tags.contains_key("peerpod-token")).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Counts calls of an operation.
pub(crate) fn count(world: &World, operation: &str) -> usize {
    world.operations().iter().filter(|o| **o == operation).count()
}
