//! An instance comes, is found, and goes.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use cloud_providers::{InstanceState, OpContext};

use crate::common::Setup;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_comes_and_goes() -> Result<()> {
    let setup = Setup::start()?;
    let provider = setup.provider(&[]).await?;
    let ctx = OpContext::new();
    let request = setup.request();
    let (start, used) = (Instant::now(), processor_time()?);
    let instance = provider.create_instance(&ctx, &request).await?;
    let (took, used) = (start.elapsed(), processor_time()? - used);
    println!("created in {took:?}, of which {used:?} in this process: {instance:?}");
    // What the provider and libvirt's library compute themselves; the rest is waiting for libvirtd and the machine.
    ensure!(used < Duration::from_millis(100), "a create took {used:?} of processor time");
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

/// The words by which a node finds out what became of a machine that it does not reach any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_list_says_what_a_machine_does() -> Result<()> {
    let setup = Setup::start()?;
    let provider = setup.provider(&[]).await?;
    let ctx = OpContext::new();
    let instance = provider.create_instance(&ctx, &setup.request()).await?;
    let state = async || -> Result<InstanceState> {
        let list = provider.list_owned(&ctx, &setup.scope).await?;
        ensure!(list.complete && list.entries.len() == 1, "{list:?}");
        ensure!(list.entries[0].instance.as_ref().map(|i| &i.id) == Some(&instance.id), "{list:?}");
        Ok(list.entries[0].state)
    };
    ensure!(state().await? == InstanceState::Running);
    setup.libvirtd.virsh(&["suspend", instance.id.as_str()])?;
    ensure!(state().await? == InstanceState::Paused, "it goes on where it was");
    setup.libvirtd.virsh(&["resume", instance.id.as_str()])?;
    ensure!(state().await? == InstanceState::Running);
    // Switched off by hand: the definition and the disks stay.
    setup.libvirtd.virsh(&["destroy", instance.id.as_str()])?;
    ensure!(state().await? == InstanceState::Stopped);
    provider.delete_instance(&ctx, &instance.id, &setup.own()).await?;
    setup.assert_empty()
}

/// Whatever this host's KVM is worth, `auto` gives a machine that runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_domain_type_is_chosen_so_that_machines_run() -> Result<()> {
    let setup = Setup::start()?;
    let provider = setup.provider(&[("LIBVIRT_DOMAIN_TYPE", "auto")]).await?;
    let ctx = OpContext::new();
    let instance = provider.create_instance(&ctx, &setup.request()).await?;
    let xml = setup.libvirtd.virsh(&["dumpxml", instance.id.as_str()])?;
    println!("{}", xml.lines().next().unwrap_or_default());
    provider.delete_instance(&ctx, &instance.id, &setup.own()).await?;
    setup.assert_empty()
}

/// Returns the processor time that this process has used, in steps of ten milliseconds.
fn processor_time() -> Result<Duration> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    // The name of the program, in parentheses, may hold blanks.
    let (_, fields) = stat.rsplit_once(')').context("no name")?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks: u64 = [11, 12].iter().filter_map(|at| fields.get(*at)?.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 10))
}
