//! Whose an instance is.

use std::fs;

use anyhow::{Context, Result, ensure};
use cloud_providers::{ErrorKind, InstanceId, OpContext, Ownership, Scope, Token, Unit};

use crate::{
    runner::Test,
    setup::{Setup, files, request, scope, token},
};

pub(crate) const TESTS: &[Test] = &[
    ("a_missing_instance_is_deleted_already", a_missing_instance_is_deleted_already),
    ("an_instance_of_another_scope_is_not_deleted", an_instance_of_another_scope_is_not_deleted),
    (
        "a_recorded_name_proves_ownership_and_another_does_not",
        a_recorded_name_proves_ownership_and_another_does_not,
    ),
    ("a_name_that_another_token_holds_is_a_conflict", a_name_that_another_token_holds_is_a_conflict),
    ("a_damaged_record_makes_the_list_incomplete", a_damaged_record_makes_the_list_incomplete),
    (
        "a_damaged_record_of_an_ended_instance_is_left_to_its_token",
        a_damaged_record_of_an_ended_instance_is_left_to_its_token,
    ),
    ("two_data_folders_share_a_bridge_and_nothing_else", two_data_folders_share_a_bridge_and_nothing_else),
    ("a_foreign_bridge_is_left_alone", a_foreign_bridge_is_left_alone),
    ("a_subnet_of_another_interface_is_refused", a_subnet_of_another_interface_is_refused),
];

fn named(name: &str) -> Ownership {
    Ownership::Recorded { name: name.into() }
}

fn a_missing_instance_is_deleted_already() -> Result<()> {
    let setup = Setup::new()?;
    setup.run(async {
        let provider = setup.provider().await?;
        let owner = Ownership::Tagged(scope());
        for id in ["local-0123456789abcdef", "i-0123", "", "../../etc", "local-../../../../et"] {
            provider.delete_instance(&OpContext::new(), &InstanceId::new(id), &owner).await?;
        }
        Ok(provider.release(&OpContext::new(), &token("never made")).await?)
    })?;
    setup.check_clean()
}

fn an_instance_of_another_scope_is_not_deleted() -> Result<()> {
    let setup = Setup::new()?;
    let (provider, instance) = setup.run(async {
        let provider = setup.provider().await?;
        let ctx = OpContext::new();
        let instance = provider.create_instance(&ctx, &request("one")).await?;
        let other = Scope::Cluster("other".into());
        let error = provider
            .delete_instance(&ctx, &instance.id, &Ownership::Tagged(other.clone()))
            .await
            .err()
            .context("it was deleted")?;
        ensure!(*error.kind() == ErrorKind::Permission, "{error:?}");
        ensure!(provider.list_owned(&ctx, &other).await?.entries.is_empty());
        provider.release(&ctx, &Token::new(other, "one", 1)).await?;
        Ok((provider, instance))
    })?;
    ensure!(setup.report(&instance)?.hostname == instance.name, "it still runs");
    setup.run(async { Ok(provider.release(&OpContext::new(), &token("one")).await?) })?;
    setup.check_clean()
}

fn a_recorded_name_proves_ownership_and_another_does_not() -> Result<()> {
    let setup = Setup::new()?;
    setup.run(async {
        let provider = setup.provider().await?;
        let ctx = OpContext::new();
        let instance = provider.create_instance(&ctx, &request("one")).await?;
        let error = provider.delete_instance(&ctx, &instance.id, &named("podvm-other")).await.unwrap_err();
        ensure!(*error.kind() == ErrorKind::Permission, "{error:?}");
        Ok(provider.delete_instance(&ctx, &instance.id, &named(&instance.name)).await?)
    })?;
    setup.check_clean()
}

fn a_name_that_another_token_holds_is_a_conflict() -> Result<()> {
    let setup = Setup::new()?;
    setup.run(async {
        let provider = setup.provider().await?;
        let ctx = OpContext::new();
        let instance = provider.create_instance(&ctx, &request("one")).await?;
        let mut other = request("one");
        other.token = Token::new(scope(), "other", 1);
        other.unit = Unit { id: "one".into(), name_hint: "pod-one".into() };
        let error = provider.create_instance(&ctx, &other).await.err().context("it was taken")?;
        ensure!(
            *error.kind() == ErrorKind::Conflict && error.to_string().contains(&instance.name),
            "{error:?}"
        );
        ensure!(provider.list_owned(&ctx, &scope()).await?.entries.len() == 1);
        Ok(provider.release(&ctx, &token("one")).await?)
    })?;
    setup.check_clean()
}

fn a_damaged_record_makes_the_list_incomplete() -> Result<()> {
    let setup = Setup::new()?;
    setup.run(async {
        let provider = setup.provider().await?;
        let ctx = OpContext::new();
        let instance = provider.create_instance(&ctx, &request("one")).await?;
        fs::write(setup.data_dir().join("instances").join(instance.id.as_str()).join("instance.json"), "{")?;
        let list = provider.list_owned(&ctx, &scope()).await?;
        ensure!(!list.complete, "{list:?}");
        ensure!(list.entries.len() == 1 && list.entries[0].token_tag == token("one").tag_value(), "{list:?}");
        let error = provider.create_instance(&ctx, &request("one")).await.unwrap_err();
        ensure!(error.to_string().contains("instance.json"), "no second one is made: {error:?}");
        // The link still says whose it is.
        for owner in [Ownership::Tagged(Scope::Cluster("other".into())), named("podvm-pod-one-one")] {
            let error = provider.delete_instance(&ctx, &instance.id, &owner).await.unwrap_err();
            ensure!(*error.kind() == ErrorKind::Permission, "{error:?}");
        }
        Ok(provider.delete_instance(&ctx, &instance.id, &Ownership::Tagged(scope())).await?)
    })?;
    setup.check_clean()
}

fn a_damaged_record_of_an_ended_instance_is_left_to_its_token() -> Result<()> {
    let setup = Setup::new()?;
    let (provider, instance) = setup.run(async {
        let provider = setup.provider().await?;
        let instance = provider.create_instance(&OpContext::new(), &request("one")).await?;
        Ok((provider, instance))
    })?;
    setup.ask(&instance, "exit 0")?;
    test_support::wait_for("the kernel to remove the link", crate::setup::LIMIT, || {
        let links = setup.netns.ip(&["-oneline", "link", "show"]).ok()?;
        (!links.contains("ppl")).then_some(())
    })?;
    setup.run(async {
        let ctx = OpContext::new();
        fs::write(setup.data_dir().join("instances").join(instance.id.as_str()).join("instance.json"), "")?;
        // Nothing says any more whose it is, so nobody deletes it by id.
        let error =
            provider.delete_instance(&ctx, &instance.id, &Ownership::Tagged(scope())).await.unwrap_err();
        ensure!(error.to_string().contains("instance.json"), "{error:?}");
        // The id follows from the token, so the token's owner can still release it.
        Ok(provider.release(&ctx, &token("one")).await?)
    })?;
    setup.check_clean()
}

fn two_data_folders_share_a_bridge_and_nothing_else() -> Result<()> {
    let setup = Setup::new()?;
    let second = setup.dir.path().join("data2");
    let mut env = setup.env.clone();
    env.retain(|(key, _)| *key != "LOCAL_DATA_DIR");
    env.push(("LOCAL_DATA_DIR", second.display().to_string()));
    setup.run(async {
        let (one, two) = (setup.provider().await?, crate::setup::provider(&env).await?);
        let ctx = OpContext::new();
        let request = request("one");
        let (a, b) = tokio::join!(
            one.create_instance(&ctx, &request),
            // The same token is another one's in another folder; its link has the same name, so it is refused.
            async {
                let mut other = request.clone();
                other.token = token("two");
                two.create_instance(&ctx, &other).await
            }
        );
        let (a, b) = (a?, b?);
        ensure!(a.addresses != b.addresses, "{a:?} {b:?}");
        ensure!(one.list_owned(&ctx, &scope()).await?.entries.len() == 1);
        two.release(&ctx, &token("one")).await?;
        ensure!(
            one.list_owned(&ctx, &scope()).await?.entries[0].resources.len() == 3,
            "it is not the other's to free"
        );
        one.release(&ctx, &token("one")).await?;
        let bridge = setup.netns.ip(&["link", "show", "ppbr0"])?;
        ensure!(bridge.contains("ppbr0"), "the other folder's instance still needs the bridge");
        two.release(&ctx, &token("two")).await?;
        Ok(())
    })?;
    ensure!(files(&second)? == ["instances", "locks"]);
    setup.check_clean()
}

fn a_foreign_bridge_is_left_alone() -> Result<()> {
    let netns = test_support::Netns::unique("ppl")?;
    netns.bridge("ppbr0", "192.0.2.1/24")?;
    let setup = Setup::in_netns(netns)?;
    setup.run(async {
        let provider = setup.provider().await?;
        let ctx = OpContext::new();
        let error =
            provider.create_instance(&ctx, &request("one")).await.err().context("it was taken over")?;
        ensure!(
            *error.kind() == ErrorKind::Conflict && error.to_string().contains("LOCAL_BRIDGE"),
            "{error:?}"
        );
        let error = provider.verify_config(&ctx).await.unwrap().into_result().unwrap_err();
        ensure!(error.to_string().contains("LOCAL_BRIDGE"), "{error:?}");
        Ok(provider.release(&ctx, &token("one")).await?)
    })?;
    setup.check_clean()
}

fn a_subnet_of_another_interface_is_refused() -> Result<()> {
    let netns = test_support::Netns::unique("ppl")?;
    netns.bridge("other0", "198.51.100.129/25")?;
    let setup = Setup::in_netns(netns)?;
    setup.run(async {
        let provider = setup.provider().await?;
        let ctx = OpContext::new();
        let error = provider.create_instance(&ctx, &request("one")).await.err().context("it was made")?;
        let text = error.to_string();
        ensure!(text.contains("LOCAL_SUBNET") && text.contains("other0"), "{text}");
        let error = provider.verify_config(&ctx).await.unwrap().into_result().unwrap_err();
        ensure!(error.to_string().contains("other0"), "{error:?}");
        Ok(())
    })?;
    setup.check_clean()
}
