//! The provider over the scripted client. The rules of the contract at length are the conformance suite's part.

use std::sync::Arc;

use cloud_providers::{CancellationToken, InstanceState, MapEnv, Settings, Unit};

use super::*;
use crate::{
    OPTIONS,
    client::scripted::{Fault, Scripted},
};

fn provider(cloud: &Arc<Scripted>) -> __Type__Provider {
    let mut settings = Settings::new(OPTIONS);
    settings.load_env(&MapEnv::new([
        ("__ENV___ENDPOINT", "http://scripted.invalid"),
        ("__ENV___KEY", "k"),
        ("__ENV___TAGS", "team=a"),
    ]));
    let config = Config::read(&settings.parse().unwrap(), &mut Vec::new());
    __Type__Provider::new(cloud.clone(), &config)
}

fn request(unit: &str) -> CreateRequest {
    let token = Token::new(Scope::Cluster("c-1".into()), unit, 1);
    let unit = Unit { id: unit.into(), name_hint: "web".into() };
    CreateRequest::new(token, unit, "node-1").with_user_data("#cloud-config\n")
}

fn ours() -> Ownership {
    Ownership::Tagged(Scope::Cluster("c-1".into()))
}

#[tokio::test(start_paused = true)]
async fn a_machine_is_made_once_found_again_and_removed() {
    let cloud = Arc::new(Scripted::default());
    let (one, two, ctx) = (provider(&cloud), provider(&cloud), OpContext::new());
    let instance = one.create_instance(&ctx, &request("0a1b2c3d")).await.unwrap();
    assert_eq!(two.create_instance(&ctx, &request("0a1b2c3d")).await.unwrap(), instance);
    assert_eq!(instance.name, "podvm-web-0a1b2c3d");
    let machines = cloud.machines();
    assert_eq!(machines.len(), 1);
    assert_eq!(machines[0].tags.get("team").map(String::as_str), Some("a"));
    assert_eq!(cloud.user_data(&machines[0].id), b"#cloud-config\n");
    let other = request("0a1b2c3d").with_user_data("#cloud-config\n# another\n");
    let error = one.create_instance(&ctx, &other).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Conflict);
    for _ in 0..2 {
        two.delete_instance(&ctx, &instance.id, &ours()).await.unwrap();
    }
    assert!(cloud.machines().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_a_lost_reply_made_is_taken_back() {
    let cloud = Arc::new(Scripted::default());
    let provider = provider(&cloud);
    cloud.script("launch", Fault::LoseReply);
    let error = provider.create_instance(&OpContext::new(), &request("s-1")).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Transient);
    assert!(error.leftovers().is_empty() && cloud.machines().is_empty(), "{error:?}");
    // The idempotency value was used for a machine that is gone.
    provider.create_instance(&OpContext::new(), &request("s-1")).await.unwrap();
    assert_eq!(cloud.machines().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_taken_back_is_told() {
    let cloud = Arc::new(Scripted::default());
    let provider = provider(&cloud);
    cloud.script("get_machine", Fault::Refuse);
    cloud.script("remove_machine", Fault::Refuse);
    let error = provider.create_instance(&OpContext::new(), &request("s-1")).await.unwrap_err();
    assert_eq!(error.leftovers(), [Resource::new(Resource::INSTANCE, &cloud.machines()[0].id)]);
    assert_eq!(*error.kind(), ErrorKind::Quota);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_hangs_ends_and_so_does_one_that_is_cancelled() {
    let cloud = Arc::new(Scripted::default());
    let provider = provider(&cloud);
    cloud.script("launch", Fault::Hang);
    let error = provider.create_instance(&OpContext::new(), &request("s-1")).await.unwrap_err();
    assert_eq!((error.kind(), error.operation()), (&ErrorKind::Transient, Some("launch")));
    cloud.script("launch", Fault::Hang);
    let cancel = CancellationToken::new();
    let ctx = OpContext::new().with_cancel(cancel.clone());
    let request = request("s-2");
    let (result, ()) = tokio::join!(provider.create_instance(&ctx, &request), async {
        tokio::time::sleep(Duration::from_millis(1)).await;
        cancel.cancel();
    });
    assert_eq!(*result.unwrap_err().kind(), ErrorKind::Cancelled);
    assert!(cloud.machines().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_is_not_ours_stays() {
    let cloud = Arc::new(Scripted::default());
    let (provider, ctx) = (provider(&cloud), OpContext::new());
    let instance = provider.create_instance(&ctx, &request("s-1")).await.unwrap();
    let mut foreign = cloud.machines().remove(0);
    (foreign.id, foreign.tags) = ("foreign".to_owned(), Tags::new());
    cloud.add(foreign);
    provider.delete_instance(&ctx, &instance.id, &ours()).await.unwrap();
    let id = InstanceId::new("foreign");
    let error = provider.delete_instance(&ctx, &id, &ours()).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Permission);
    // Its name is in the way, and is left alone.
    let error = provider.create_instance(&ctx, &request("s-1")).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Conflict, "{error:?}");
    assert_eq!(cloud.machines().len(), 1);
    let recorded = Ownership::Recorded { name: instance.name };
    provider.delete_instance(&ctx, &id, &recorded).await.unwrap();
    assert!(cloud.machines().is_empty());
}

#[tokio::test(start_paused = true)]
async fn lists_have_every_page_or_say_that_they_have_not() {
    let cloud = Arc::new(Scripted::default());
    let (provider, ctx) = (provider(&cloud), OpContext::new());
    let scope = Scope::Cluster("c-1".into());
    for unit in ["s-1", "s-2"] {
        provider.create_instance(&ctx, &request(unit)).await.unwrap();
    }
    let list = provider.list_owned(&ctx, &scope).await.unwrap();
    assert!(list.complete && list.entries.len() == 2, "{list:?}");
    assert_eq!(list.entries[0].token, Some(request("s-1").token));
    assert_eq!(list.entries[0].state, InstanceState::Running);
    let mut switched_off = cloud.machines().remove(0);
    switched_off.state = State::Stopped;
    cloud.add(switched_off);
    let list = provider.list_owned(&ctx, &scope).await.unwrap();
    assert_eq!(list.entries[0].state, InstanceState::Stopped);
    let other = provider.list_owned(&ctx, &Scope::Experiment("c-1".into())).await.unwrap();
    assert!(other.complete && other.entries.is_empty());
    provider.release(&ctx, &request("s-1").token).await.unwrap();
    assert_eq!(cloud.machines().len(), 1);
    cloud.script("list_machines", Fault::Refuse);
    assert!(provider.list_owned(&ctx, &scope).await.is_err());
}

#[tokio::test]
async fn what_cannot_be_given_is_refused_before_the_first_call() {
    let cloud = Arc::new(Scripted::default());
    let provider = provider(&cloud);
    let mut wanted = request("s-1");
    wanted.spec.instance_type = Some("huge".into());
    let error = provider.create_instance(&OpContext::new(), &wanted).await.unwrap_err();
    assert!(*error.kind() == ErrorKind::Unsupported && error.to_string().contains("huge"), "{error}");
    assert!(cloud.calls().is_empty());
    assert!(provider.verify_config(&OpContext::new()).await.unwrap().is_ok());
    assert_eq!(cloud.calls(), ["check_account"]);
    provider.teardown().await.unwrap();
}
