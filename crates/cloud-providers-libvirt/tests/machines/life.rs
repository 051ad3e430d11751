//! An instance comes, is found, and goes.

use std::time::Instant;

use anyhow::{Result, ensure};
use cloud_providers::OpContext;

use crate::common::Setup;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_comes_and_goes() -> Result<()> {
    let setup = Setup::start()?;
    let provider = setup.provider(&[]).await?;
    let ctx = OpContext::new();
    let request = setup.request();
    let start = Instant::now();
    let instance = provider.create_instance(&ctx, &request).await?;
    println!("created in {:?}: {instance:?}", start.elapsed());
    ensure!(instance.addresses[0].is_ipv4());
    let leases = setup.libvirtd.leases()?;
    ensure!(leases.iter().any(|l| instance.addresses[0].to_string() == l.address), "{leases:?}");

    let again = provider.create_instance(&ctx, &request).await?;
    ensure!(again == instance, "{again:?}");
    let list = provider.list_owned(&ctx, &setup.scope).await?;
    ensure!(list.complete && list.entries.len() == 1, "{list:?}");
    ensure!(list.entries[0].token.as_ref() == Some(&request.token) && list.entries[0].resources.len() == 3);

    let start = Instant::now();
    provider.delete_instance(&ctx, &instance.id, &setup.own()).await?;
    println!("deleted in {:?}", start.elapsed());
    setup.assert_empty()?;
    provider.delete_instance(&ctx, &instance.id, &setup.own()).await?;
    ensure!(provider.list_owned(&ctx, &setup.scope).await?.entries.is_empty());
    provider.teardown().await?;
    provider.teardown().await?;
    Ok(())
}
