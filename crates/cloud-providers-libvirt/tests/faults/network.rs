//! Networks that go away.

use std::time::Duration;

use anyhow::{Result, ensure};
use cloud_providers::OpContext;

use crate::{assert_says, common::Setup, failed, name_of, spawn_create, wait_defined, wait_running};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_is_away_or_unknown_is_named() -> Result<()> {
    let setup = Setup::start()?;
    let provider = setup.provider(&[]).await?;
    setup.libvirtd.virsh(&["net-destroy", "default"])?;
    let (error, _) = failed(provider.create_instance(&OpContext::new(), &setup.request())).await?;
    assert_says(&error.to_string(), &["default", "net-start"])?;
    setup.assert_empty()?;
    setup.libvirtd.virsh(&["net-start", "default"])?;

    let unknown = setup.provider(&[("LIBVIRT_NET", "lab")]).await?;
    let (error, _) = failed(unknown.create_instance(&OpContext::new(), &setup.request())).await?;
    assert_says(&error.to_string(), &["lab"])?;
    setup.assert_empty()?;
    let error = unknown.verify_config(&OpContext::new()).await.unwrap().into_result().unwrap_err();
    assert_says(&error.to_string(), &["lab", "LIBVIRT_NET"])?;

    let bridge = setup.provider(&[("LIBVIRT_NET", "bridge:nobridge")]).await?;
    let (error, _) = failed(bridge.create_instance(&OpContext::new(), &setup.request())).await?;
    assert_says(&error.to_string(), &["nobridge"])?;
    setup.assert_empty()
}

/// The network goes at two moments of a create. It either fails, or has its address already.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_goes_in_the_middle_of_a_create_leaves_nothing() -> Result<()> {
    let setup = Setup::start()?;
    let provider = setup.provider(&[("LIBVIRT_BOOT_TIMEOUT", "8s")]).await?;
    for running in [false, true] {
        let request = setup.request();
        let create = spawn_create(&provider, &request);
        if running {
            wait_running(&setup, &name_of(&request))?;
        } else {
            wait_defined(&setup, &name_of(&request))?;
        }
        setup.libvirtd.virsh(&["net-destroy", "default"])?;
        let (error, took) = failed(async { create.await.expect("the task runs to its end") }).await?;
        println!("running: {running}: {error}");
        ensure!(took < Duration::from_secs(40), "{took:?}");
        setup.assert_empty()?;
        setup.libvirtd.virsh(&["net-start", "default"])?;
        let instance = provider.create_instance(&OpContext::new(), &request).await?;
        provider.delete_instance(&OpContext::new(), &instance.id, &setup.own()).await?;
        setup.assert_empty()?;
    }
    Ok(())
}
