//! Names that others hold, and many at once.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use cloud_providers::{ErrorKind, InstanceId, OpContext, Ownership};

use crate::{common::Setup, failed, name_of, spawn_create};

fn foreign(name: &str) -> String {
    format!(
        "<domain type='qemu'><name>{name}</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>\
         <os><type arch='x86_64'>hvm</type></os><devices/></domain>"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_a_foreign_domain_holds_is_a_conflict_and_it_stays() -> Result<()> {
    let setup = Setup::start()?;
    let provider = setup.provider(&[]).await?;
    let request = setup.request();
    let name = name_of(&request);
    let file = setup.libvirtd.dir().join("foreign.xml");
    std::fs::write(&file, foreign(&name))?;
    let virsh = |args: &[&str]| setup.libvirtd.virsh(args);
    for start in [false, true] {
        virsh(&["define", &file.to_string_lossy()])?;
        if start {
            virsh(&["start", &name])?;
        }
        let before = virsh(&["dominfo", &name])?;
        let (error, _) = failed(provider.create_instance(&OpContext::new(), &request)).await?;
        ensure!(*error.kind() == ErrorKind::Conflict && error.to_string().contains(&name), "{error}");
        let uuid = |info: &str| info.lines().find(|l| l.starts_with("UUID:")).map(str::to_owned);
        let after = virsh(&["dominfo", &name])?;
        ensure!(uuid(&before) == uuid(&after) && after.contains(if start { "running" } else { "shut off" }));
        ensure!(setup.libvirtd.volumes()?.iter().all(|v| !v.starts_with("podvm-")));
        provider.release(&OpContext::new(), &request.token).await?;
        ensure!(setup.libvirtd.domains()? == [name.clone()], "a release left a foreign domain alone");
        if start {
            virsh(&["destroy", &name])?;
        }
        virsh(&["undefine", &name])?;
    }
    setup.assert_empty()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_that_somebody_made_under_our_name_is_a_conflict_and_stays() -> Result<()> {
    let setup = Setup::start()?;
    let provider = setup.provider(&[]).await?;
    let request = setup.request();
    let volume = format!("{}-cloudinit.iso", name_of(&request));
    setup.libvirtd.virsh(&["vol-create-as", "default", &volume, "4096", "--format", "raw"])?;
    let (error, _) = failed(provider.create_instance(&OpContext::new(), &request)).await?;
    ensure!(*error.kind() == ErrorKind::Conflict && error.to_string().contains(&volume), "{error}");
    ensure!(setup.libvirtd.domains()?.is_empty());
    let volumes = setup.libvirtd.volumes()?;
    ensure!(volumes.contains(&volume) && !volumes.iter().any(|v| v.ends_with("-root.qcow2")), "{volumes:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn four_creates_at_once_give_four_machines_and_four_of_one_token_give_one() -> Result<()> {
    let setup = Setup::start()?;
    // Two values, as two daemons have them.
    let providers = [setup.provider(&[]).await?, setup.provider(&[]).await?];
    let requests: Vec<_> = (0..4).map(|_| setup.request()).collect();
    let tasks: Vec<_> =
        requests.iter().enumerate().map(|(i, request)| spawn_create(&providers[i % 2], request)).collect();
    let mut made = Vec::new();
    for task in tasks {
        made.push(task.await??);
    }
    let ids: BTreeSet<_> = made.iter().map(|i| i.id.clone()).collect();
    let addresses: BTreeSet<_> = made.iter().map(|i| i.addresses[0]).collect();
    ensure!(ids.len() == 4 && addresses.len() == 4, "{made:?}");
    for instance in &made[1..] {
        providers[0].delete_instance(&OpContext::new(), &instance.id, &setup.own()).await?;
    }
    let tasks: Vec<_> = (0..4).map(|i| spawn_create(&providers[i % 2], &requests[1])).collect();
    let mut again = BTreeSet::new();
    for task in tasks {
        again.insert(task.await??.id);
    }
    ensure!(again.len() == 1, "{again:?}");
    ensure!(setup.libvirtd.domains()?.len() == 2);
    for request in &requests {
        providers[1].release(&OpContext::new(), &request.token).await?;
    }
    setup.assert_empty()
}

/// As the existing programs define it: no metadata, the root disk on SATA, the user data on a CD.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_of_the_existing_programs_goes_by_its_recorded_name_without_what_is_not_its_own()
-> Result<()> {
    let setup = Setup::start()?;
    let provider = setup.provider(&[]).await?;
    let virsh = |args: &[&str]| setup.libvirtd.virsh(args);
    let name = "podvm-shop-0a1b2c3d";
    let (root, seed) = (format!("{name}-root.qcow2"), format!("{name}-cloudinit.iso"));
    for (volume, format) in [(root.as_str(), "qcow2"), (seed.as_str(), "raw"), ("users.raw", "raw")] {
        virsh(&["vol-create-as", "default", volume, "1048576", "--format", format])?;
    }
    let path = |volume: &str| setup.libvirtd.pool_dir().join(volume).to_string_lossy().into_owned();
    let xml = format!(
        "<domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>\
         <os><type arch='x86_64'>hvm</type></os><devices>\
         <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{}'/>\
         <target dev='sda' bus='sata'/></disk>\
         <disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='{}'/>\
         <target dev='hda' bus='ide'/><readonly/></disk>\
         <disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{}'/>\
         <target dev='vda' bus='virtio'/></disk></devices></domain>",
        path(&root),
        path(&seed),
        path("users.raw")
    );
    let file = setup.libvirtd.dir().join("old.xml");
    std::fs::write(&file, xml)?;
    virsh(&["define", &file.to_string_lossy()])?;
    virsh(&["start", name])?;
    // Stopped halfway is a state too, and not one of those that run.
    virsh(&["suspend", name])?;
    let id = InstanceId::new(virsh(&["domuuid", name])?.trim());
    let ctx = OpContext::new();

    let tagged = provider.delete_instance(&ctx, &id, &setup.own()).await.unwrap_err();
    ensure!(*tagged.kind() == ErrorKind::Permission, "{tagged}");
    let other = Ownership::Recorded { name: "podvm-shop-ffffffff".into() };
    ensure!(*provider.delete_instance(&ctx, &id, &other).await.unwrap_err().kind() == ErrorKind::Permission);
    ensure!(setup.libvirtd.domains()? == [name] && setup.libvirtd.volumes()?.contains(&root));

    let recorded = Ownership::Recorded { name: name.into() };
    provider.delete_instance(&ctx, &id, &recorded).await?;
    setup.assert_empty()?;
    ensure!(setup.libvirtd.volumes()?.contains(&"users.raw".into()), "the user's disk stays");
    provider.delete_instance(&ctx, &id, &recorded).await?;
    Ok(())
}
