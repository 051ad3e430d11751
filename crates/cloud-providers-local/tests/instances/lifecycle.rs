//! From creation to deletion.

use anyhow::{Context, Result, ensure};
use cloud_providers::{ErrorKind, OpContext, Ownership, Resource};

use crate::{
    guest,
    runner::Test,
    setup::{Recorder, Setup, address, recording, request, scope, token},
};

pub(crate) const TESTS: &[Test] = &[
    ("an_instance_is_reachable_and_goes_completely", an_instance_is_reachable_and_goes_completely),
    ("the_same_request_gives_the_same_instance", the_same_request_gives_the_same_instance),
    ("two_calls_at_once_give_one_instance", two_calls_at_once_give_one_instance),
    ("another_request_with_the_token_is_a_conflict", another_request_with_the_token_is_a_conflict),
    ("eight_instances_at_once_have_eight_addresses", eight_instances_at_once_have_eight_addresses),
    (
        "processes_that_ignore_signals_end_with_their_instance",
        processes_that_ignore_signals_end_with_their_instance,
    ),
    ("a_wanted_address_is_given_once", a_wanted_address_is_given_once),
    ("what_the_provider_does_not_have_is_refused", what_the_provider_does_not_have_is_refused),
    ("verifying_finds_nothing_wrong_and_leaves_nothing", verifying_finds_nothing_wrong_and_leaves_nothing),
    (
        "twenty_instances_one_after_the_other_leave_nothing",
        twenty_instances_one_after_the_other_leave_nothing,
    ),
];

fn an_instance_is_reachable_and_goes_completely() -> Result<()> {
    let setup = Setup::new()?;
    let recorder = std::sync::Arc::new(Recorder::default());
    let (provider, instance) = setup.run(async {
        let provider = setup.provider().await?;
        let instance = provider.create_instance(&recording(&recorder), &request("one")).await?;
        Ok((provider, instance))
    })?;
    ensure!(instance.name == "podvm-pod-one-one", "{}", instance.name);
    ensure!(address(&instance)?.to_string() == "198.51.100.2", "the first free address: {instance:?}");

    let report = setup.report(&instance)?;
    ensure!(report.pid == 1 && report.processes == 1, "{report:?}");
    ensure!(report.hostname == instance.name, "{report:?}");
    ensure!(report.user_data == "#cloud-config\n", "{report:?}");
    ensure!(report.meta_data.contains("local-hostname: podvm-pod-one-one"), "{report:?}");
    ensure!(report.netns != format!("net:[{}]", setup.netns.inode()?), "{report:?}");
    ensure!(report.netns != std::fs::read_link("/proc/self/ns/net")?.display().to_string(), "{report:?}");
    ensure!(report.args.windows(2).any(|w| w == ["--user-data-dir", "/media/cidata"]), "{report:?}");
    // The fourth is the folder that lists them.
    ensure!(report.open_files == ["0", "1", "2", "3"], "{:?}", report.open_files);
    ensure!(report.env.len() == 4, "nothing of our environment goes in: {:?}", report.env);

    let seen = recorder.seen.lock().unwrap().clone();
    let list = setup.run(async { Ok(provider.list_owned(&OpContext::new(), &scope()).await?) })?;
    ensure!(list.complete && list.entries.len() == 1, "{list:?}");
    let entry = &list.entries[0];
    ensure!(
        entry.token.as_ref() == Some(&token("one")) && entry.token_tag == token("one").tag_value(),
        "{entry:?}"
    );
    ensure!(
        entry.holder.as_deref() == Some("node-1") && entry.instance.as_ref() == Some(&instance),
        "{entry:?}"
    );
    ensure!(entry.resources == seen, "recorded and listed differ: {seen:?} {entry:?}");
    ensure!(seen.contains(&Resource::new(Resource::INSTANCE, instance.id.as_str())), "{seen:?}");

    setup.run(async {
        let owner = Ownership::Tagged(scope());
        provider.delete_instance(&OpContext::new(), &instance.id, &owner).await?;
        ensure!(provider.list_owned(&OpContext::new(), &scope()).await?.entries.is_empty());
        // Gone is gone, however often one asks.
        provider.delete_instance(&OpContext::new(), &instance.id, &owner).await?;
        provider.release(&OpContext::new(), &token("one")).await?;
        provider.teardown().await?;
        Ok(provider.teardown().await?)
    })?;
    setup.check_clean()
}

fn the_same_request_gives_the_same_instance() -> Result<()> {
    let setup = Setup::new()?;
    setup.run(async {
        let provider = setup.provider().await?;
        let ctx = OpContext::new();
        let first = provider.create_instance(&ctx, &request("one")).await?;
        let again = provider.create_instance(&ctx, &request("one")).await?;
        ensure!(first == again, "{first:?} {again:?}");
        // Another value of the provider, as after a restart, knows the instance too.
        let other = setup.provider().await?;
        let third = other.create_instance(&ctx, &request("one")).await?;
        ensure!(first == third && other.list_owned(&ctx, &scope()).await?.entries.len() == 1);
        Ok(other.release(&ctx, &token("one")).await?)
    })?;
    setup.check_clean()
}

fn two_calls_at_once_give_one_instance() -> Result<()> {
    let setup = Setup::new()?;
    setup.run(async {
        let (one, two) = (setup.provider().await?, setup.provider().await?);
        let ctx = OpContext::new();
        let request = request("one");
        let (a, b, c) = tokio::join!(
            one.create_instance(&ctx, &request),
            one.create_instance(&ctx, &request),
            two.create_instance(&ctx, &request),
        );
        let (a, b, c) = (a?, b?, c?);
        ensure!(a == b && b == c, "{a:?} {b:?} {c:?}");
        ensure!(setup.instance_processes().len() == 1);
        Ok(one.release(&ctx, &token("one")).await?)
    })?;
    setup.check_clean()
}

fn another_request_with_the_token_is_a_conflict() -> Result<()> {
    let setup = Setup::new()?;
    setup.run(async {
        let provider = setup.provider().await?;
        let ctx = OpContext::new();
        let instance = provider.create_instance(&ctx, &request("one")).await?;
        let other = request("one").with_user_data("other");
        let error = provider.create_instance(&ctx, &other).await.err().context("it was taken")?;
        ensure!(*error.kind() == ErrorKind::Conflict, "{error:?}");
        ensure!(
            provider.create_instance(&ctx, &request("one")).await? == instance,
            "the instance is untouched"
        );
        Ok(provider.release(&ctx, &token("one")).await?)
    })?;
    setup.check_clean()
}

fn eight_instances_at_once_have_eight_addresses() -> Result<()> {
    let setup = Setup::new()?;
    let units: Vec<String> = (0..8).map(|n| format!("unit{n}")).collect();
    let (provider, instances) = setup.run(async {
        let provider = setup.provider().await?;
        let tasks: Vec<_> = units
            .iter()
            .map(|unit| {
                let (provider, request) = (provider.clone(), request(unit));
                tokio::spawn(async move { provider.create_instance(&OpContext::new(), &request).await })
            })
            .collect();
        let mut instances = Vec::new();
        for task in tasks {
            instances.push(task.await??);
        }
        Ok((provider, instances))
    })?;
    let addresses: std::collections::BTreeSet<_> = instances.iter().flat_map(|i| &i.addresses).collect();
    ensure!(addresses.len() == 8, "{instances:?}");
    for instance in &instances {
        ensure!(setup.report(instance)?.hostname == instance.name);
    }
    setup.run(async {
        let tasks: Vec<_> = units
            .iter()
            .map(|unit| {
                let (provider, token) = (provider.clone(), token(unit));
                tokio::spawn(async move { provider.release(&OpContext::new(), &token).await })
            })
            .collect();
        for task in tasks {
            task.await??;
        }
        Ok(())
    })?;
    setup.check_clean()
}

fn processes_that_ignore_signals_end_with_their_instance() -> Result<()> {
    let setup = Setup::new()?;
    let (provider, instance) = setup.run(async {
        let provider = setup.provider().await?;
        let request = request("one").with_user_data(guest::BREED);
        let instance = provider.create_instance(&OpContext::new(), &request).await?;
        Ok((provider, instance))
    })?;
    test_support::wait_for("the guest's children", crate::setup::LIMIT, || {
        setup.report(&instance).ok().filter(|r| r.processes >= 7)
    })?;
    setup.run(async { Ok(provider.release(&OpContext::new(), &token("one")).await?) })?;
    setup.check_clean()
}

fn a_wanted_address_is_given_once() -> Result<()> {
    let setup = Setup::new()?;
    let wanting = |unit: &str, address: &str| {
        let mut wanted = request(unit);
        let mut network = cloud_providers::NetworkRequest::default();
        network.address = Some(address.parse().expect("a literal address"));
        wanted.networks.push(network);
        wanted
    };
    setup.run(async {
        let provider = setup.provider().await?;
        let ctx = OpContext::new();
        let instance = provider.create_instance(&ctx, &wanting("one", "198.51.100.77")).await?;
        ensure!(address(&instance)?.to_string() == "198.51.100.77");
        let taken = provider.create_instance(&ctx, &wanting("two", "198.51.100.77")).await.unwrap_err();
        ensure!(*taken.kind() == ErrorKind::Conflict, "{taken:?}");
        for outside in ["198.51.100.0", "198.51.100.1", "198.51.100.255", "192.0.2.1"] {
            let error = provider.create_instance(&ctx, &wanting("two", outside)).await.unwrap_err();
            ensure!(*error.kind() == ErrorKind::Config, "{outside}: {error:?}");
        }
        Ok(provider.release(&ctx, &token("one")).await?)
    })?;
    setup.check_clean()
}

fn what_the_provider_does_not_have_is_refused() -> Result<()> {
    let setup = Setup::new()?;
    setup.run(async {
        let provider = setup.provider().await?;
        ensure!(!provider.capabilities().isolation, "it isolates nothing and says so");
        let mut cases =
            vec![request("type"), request("plain"), request("image"), request("gpu"), request("cvm")];
        cases[0].spec.instance_type = Some("m9.huge".into());
        cases[1].role = cloud_providers::Role::Plain;
        cases[2].spec.image = Some("debian".into());
        cases[3].spec.gpus = 1;
        cases[4].spec.confidential = cloud_providers::Confidential::Yes;
        let mut public = request("public");
        let mut network = cloud_providers::NetworkRequest::default();
        network.public = true;
        public.networks.push(network);
        cases.push(public);
        for case in cases {
            let error =
                provider.create_instance(&OpContext::new(), &case).await.err().context("it was taken")?;
            ensure!(*error.kind() == ErrorKind::Unsupported, "{}: {error:?}", case.unit.id);
        }
        let large = request("large").with_user_data(vec![b'x'; (16 << 20) + 1]);
        let error = provider.create_instance(&OpContext::new(), &large).await.unwrap_err();
        ensure!(*error.kind() == ErrorKind::Config, "{error:?}");
        Ok(())
    })?;
    setup.check_clean()
}

fn verifying_finds_nothing_wrong_and_leaves_nothing() -> Result<()> {
    let setup = Setup::new()?;
    setup
        .run(async { Ok(setup.provider().await?.verify_config(&OpContext::new()).await?.into_result()?) })?;
    setup.check_clean()
}

fn twenty_instances_one_after_the_other_leave_nothing() -> Result<()> {
    let setup = Setup::new()?;
    setup.run(async {
        let provider = setup.provider().await?;
        for n in 0..20 {
            let unit = format!("u{n}");
            provider.create_instance(&OpContext::new(), &request(&unit)).await?;
            provider.release(&OpContext::new(), &token(&unit)).await?;
        }
        Ok(())
    })?;
    setup.check_clean()
}
