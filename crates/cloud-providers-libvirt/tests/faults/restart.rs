//! libvirtd ends in the middle of something. Its machines go on, as they do on a host whose libvirtd crashes.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cloud_providers::OpContext;
use test_support::wait_for;

use crate::{LIMIT, common::Setup, name_of, spawn_create, wait_defined, wait_running, wait_started};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_create_survives_a_restart_of_libvirtd_at_any_moment() -> Result<()> {
    let mut setup = Setup::start()?;
    let provider = setup.provider(&[]).await?;
    // As a service manager restarts it: after the definition, between the volumes, at the start, and while the machine
    // boots. Then as a crash does, which libvirt itself survives only when no machine is just being started.
    for moment in ["define", "seed", "process", "boot", "crash"] {
        let request = setup.request();
        let name = name_of(&request);
        let create = spawn_create(&provider, &request);
        match moment {
            "define" => drop(wait_defined(&setup, &name)?),
            "seed" => {
                let seed = setup.libvirtd.pool_dir().join(format!("{name}-cloudinit.iso"));
                wait_for("the seed", LIMIT, || seed.exists().then_some(()))?;
            }
            "process" => wait_running(&setup, &name)?,
            _ => wait_started(&setup, &name)?,
        }
        if moment == "crash" {
            setup.libvirtd.kill()?;
        } else {
            setup.libvirtd.stop()?;
        }
        setup.libvirtd.start_again()?;
        let instance = create.await?.context(moment)?;
        ensure!(setup.libvirtd.domains()? == [name.clone()], "{moment}");
        ensure!(setup.libvirtd.virsh(&["domstate", &name])?.trim() == "running", "{moment}");
        let again = provider.create_instance(&OpContext::new(), &request).await?;
        ensure!(again.id == instance.id, "{moment}: {again:?}");
        provider.delete_instance(&OpContext::new(), &instance.id, &setup.own()).await?;
        setup.assert_empty().context(moment)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delete_survives_a_restart_of_libvirtd_at_any_moment() -> Result<()> {
    let mut setup = Setup::start()?;
    let provider = setup.provider(&[]).await?;
    // When the machine is gone, and when its first volume is.
    for moment in ["process", "volume"] {
        let request = setup.request();
        let name = name_of(&request);
        let instance = provider.create_instance(&OpContext::new(), &request).await?;
        let (other, id, own) = (provider.clone(), instance.id.clone(), setup.own());
        let delete = tokio::spawn(async move { other.delete_instance(&OpContext::new(), &id, &own).await });
        let root = setup.libvirtd.pool_dir().join(format!("{name}-root.qcow2"));
        wait_for("the deletion to begin", LIMIT, || match moment {
            "process" => setup.libvirtd.qemu_processes().is_empty().then_some(()),
            _ => (!root.exists()).then_some(()),
        })?;
        match moment {
            "process" => setup.libvirtd.stop()?,
            _ => setup.libvirtd.kill()?,
        }
        setup.libvirtd.start_again()?;
        if let Err(error) = delete.await? {
            println!("{moment}: {error}");
            let list = provider.list_owned(&OpContext::new(), &setup.scope).await?;
            ensure!(list.entries.len() == 1, "what is left is still found: {list:?}");
            provider.delete_instance(&OpContext::new(), &instance.id, &setup.own()).await?;
        }
        setup.assert_empty().context(moment)?;
        provider.delete_instance(&OpContext::new(), &instance.id, &setup.own()).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_libvirtd_that_stays_away_or_hangs_is_a_bounded_error() -> Result<()> {
    let mut setup = Setup::start()?;
    let provider = setup.provider(&[]).await?;
    let scope = setup.scope.clone();
    let list = |limit: u64| {
        let (provider, scope) = (provider.clone(), scope.clone());
        async move {
            let ctx = OpContext::new().with_timeout(Duration::from_secs(limit));
            provider.list_owned(&ctx, &scope).await
        }
    };
    list(60).await?;
    setup.libvirtd.kill()?;
    let start = std::time::Instant::now();
    ensure!(list(5).await.is_err());
    ensure!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    setup.libvirtd.start_again()?;
    list(60).await.context("the connection is made again")?;

    setup.libvirtd.signal(nix::sys::signal::Signal::SIGSTOP)?;
    let start = std::time::Instant::now();
    let hung = list(3).await;
    setup.libvirtd.signal(nix::sys::signal::Signal::SIGCONT)?;
    ensure!(hung.is_err() && start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    list(60).await.context("libvirtd answers again")?;
    setup.assert_empty()
}
