//! Base volumes and pools that are not as they should be.

use std::{fs, os::unix::fs::PermissionsExt};

use anyhow::{Context, Result, ensure};
use cloud_providers::{ErrorKind, OpContext, VolumeRequest};
use test_support::run;

use crate::{
    assert_says,
    common::{BASE, Setup},
    failed, name_of,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_base_volume_that_is_missing_is_named_with_its_option() -> Result<()> {
    let setup = Setup::start()?;
    let provider = setup.provider(&[("LIBVIRT_VOL_NAME", "nobody.qcow2")]).await?;
    let (error, _) = failed(provider.create_instance(&OpContext::new(), &setup.request())).await?;
    assert_says(&error.to_string(), &["nobody.qcow2", "LIBVIRT_VOL_NAME"])?;
    let error = provider.verify_config(&OpContext::new()).await.unwrap().into_result().unwrap_err();
    assert_says(&error.to_string(), &["nobody.qcow2", "LIBVIRT_VOL_NAME"])?;
    let unknown = setup.provider(&[("LIBVIRT_POOL", "nopool")]).await?;
    let (error, _) = failed(unknown.create_instance(&OpContext::new(), &setup.request())).await?;
    assert_says(&error.to_string(), &["nopool", "LIBVIRT_POOL"])?;
    setup.assert_empty()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_corrupt_base_volume_is_an_error_and_leaves_nothing() -> Result<()> {
    let setup = Setup::start()?;
    let (pool, dir) = (setup.libvirtd.pool_dir(), tempfile::tempdir()?);
    let image = |name: &str, base: Option<&str>| -> Result<Vec<u8>> {
        let file = dir.path().join(name).to_string_lossy().into_owned();
        let mut args = vec!["create", "-q", "-f", "qcow2"];
        args.extend(base.into_iter().flat_map(|base| ["-u", "-F", "raw", "-b", base]));
        run("qemu-img", &[args.as_slice(), &[file.as_str(), "1M"]].concat())?;
        Ok(fs::read(file)?)
    };
    let whole = image("whole", None)?;
    let mut version = whole.clone();
    version[7] = 9;
    // A header that promises what no program knows, one that is cut short, and one whose own base is nowhere.
    for (bad, bytes) in [
        ("version.qcow2", version),
        ("short.qcow2", whole[..80].to_vec()),
        ("upper.qcow2", image("upper", Some("/nowhere/lower.raw"))?),
    ] {
        fs::write(pool.join(bad), bytes)?;
        let provider = setup.provider(&[("LIBVIRT_VOL_NAME", bad), ("LIBVIRT_BOOT_TIMEOUT", "5s")]).await?;
        let (error, _) = failed(provider.create_instance(&OpContext::new(), &setup.request())).await?;
        println!("{bad}: {error}");
        ensure!(error.leftovers().is_empty(), "{bad}: {error}");
        fs::remove_file(pool.join(bad)).with_context(|| format!("{bad} is the user's"))?;
        // libvirt gives up a pool in which it finds such a file, which only its owner can mend.
        if setup.libvirtd.virsh(&["pool-info", "default"])?.contains("inactive") {
            assert_says(&error.to_string(), &["storage pool", "damaged"])?;
            setup.libvirtd.virsh(&["pool-start", "default"])?;
        }
        setup.assert_empty().context(bad)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_pool_is_a_lack_of_room_and_leaves_nothing() -> Result<()> {
    let setup = Setup::start()?;
    // A file system of its own, in libvirtd's mount namespace only.
    let small = setup.libvirtd.dir().join("small");
    fs::create_dir(&small)?;
    let small = small.to_string_lossy().into_owned();
    let inside = |program: &str, args: &[&str]| -> Result<()> {
        let status = setup.libvirtd.inside(program).args(args).status()?;
        ensure!(status.success(), "{program} {args:?}");
        Ok(())
    };
    inside("mount", &["-t", "tmpfs", "-o", "size=1500k", "tmpfs", &small])?;
    let base = setup.libvirtd.pool_dir().join(BASE);
    inside("cp", &["--sparse=always", &base.to_string_lossy(), &small])?;
    let virsh = |args: &[&str]| setup.libvirtd.virsh(args);
    virsh(&["pool-define-as", "small", "dir", "--target", &small])?;
    virsh(&["pool-start", "small"])?;
    let provider = setup.provider(&[("LIBVIRT_POOL", "small")]).await?;

    let request = setup.request().with_user_data(vec![b'x'; 2 << 20]);
    let (error, _) = failed(provider.create_instance(&OpContext::new(), &request)).await?;
    ensure!(matches!(error.kind(), ErrorKind::Capacity { .. }), "{error:?}");
    ensure!(error.leftovers().is_empty(), "{error}");
    let left = virsh(&["vol-list", "small"])?;
    ensure!(!left.contains("podvm-"), "{left}");
    setup.assert_empty()?;

    // The same pool has room for a small one, also when it is asked for by the same token.
    let request = request.with_user_data("#cloud-config\n");
    let instance = provider.create_instance(&OpContext::new(), &request).await?;
    ensure!(virsh(&["vol-list", "small"])?.contains(&name_of(&request)));
    provider.delete_instance(&OpContext::new(), &instance.id, &setup.own()).await?;
    setup.assert_empty()?;
    virsh(&["pool-destroy", "small"])?;
    inside("umount", &[&small])
}

/// The pool lacks the volumes' names, not the room: a volume of the same name in another pool is another volume.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_of_the_same_name_in_another_pool_stays() -> Result<()> {
    let setup = Setup::start()?;
    let other = setup.libvirtd.dir().join("other");
    fs::create_dir(&other)?;
    let virsh = |args: &[&str]| setup.libvirtd.virsh(args);
    virsh(&["pool-define-as", "other", "dir", "--target", &other.to_string_lossy()])?;
    virsh(&["pool-start", "other"])?;
    let provider = setup.provider(&[]).await?;
    let request = setup.request();
    let volumes =
        [format!("{}-root.qcow2", name_of(&request)), format!("{}-cloudinit.iso", name_of(&request))];
    for volume in &volumes {
        virsh(&["vol-create-as", "other", volume, "4096", "--format", "raw"])?;
    }
    let instance = provider.create_instance(&OpContext::new(), &request).await?;
    // Somebody attaches a disk by hand.
    virsh(&["vol-create-as", "default", "guest-data.raw", "4096", "--format", "raw"])?;
    let disk = setup.libvirtd.pool_dir().join("guest-data.raw");
    virsh(&["attach-disk", &instance.name, &disk.to_string_lossy(), "vdz", "--persistent"])?;
    provider.delete_instance(&OpContext::new(), &instance.id, &setup.own()).await?;
    setup.assert_empty()?;
    ensure!(volumes.iter().all(|v| other.join(v).exists()) && disk.exists());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_volumes_have_their_serial_numbers_and_letters_and_stay() -> Result<()> {
    let setup = Setup::start()?;
    let provider = setup.provider(&[]).await?;
    let virsh = |args: &[&str]| setup.libvirtd.virsh(args);
    for (name, format) in [("data-1", "raw"), ("data-2.qcow2", "qcow2")] {
        virsh(&["vol-create-as", "default", name, "1048576", "--format", format])?;
    }
    // One by name, one by path, one that no pool knows.
    let by_path = setup.libvirtd.pool_dir().join("data-2.qcow2").to_string_lossy().into_owned();
    let outside = setup.libvirtd.dir().join("outside.raw");
    fs::File::create(&outside)?.set_len(1 << 20)?;
    let outside = outside.to_string_lossy().into_owned();
    let mut request = setup.request();
    for id in ["data-1", &by_path, &outside] {
        request.spec.volumes.push(VolumeRequest::new(id));
    }
    let instance = provider.create_instance(&OpContext::new(), &request).await?;
    for part in ["root.qcow2", "cloudinit.iso"] {
        let file = setup.libvirtd.pool_dir().join(format!("{}-{part}", instance.name));
        let mode = fs::metadata(&file)?.permissions().mode() & 0o777;
        ensure!(mode == 0o600, "{part} holds secrets and has mode {mode:o}");
    }
    let disks = virsh(&["domblklist", &instance.name])?;
    let targets: Vec<&str> = disks.lines().filter_map(|l| l.split_whitespace().next()).collect();
    ensure!(targets == ["vda", "vdb", "vdc", "vdd", "vde"], "{disks}");
    ensure!(
        disks.lines().last().is_some_and(|l| l.contains("cloudinit.iso")),
        "the user data are last: {disks}"
    );
    let xml = virsh(&["dumpxml", &instance.name])?;
    let hash = |id: &str| cloud_providers::tags::hash(id, 20);
    for serial in ["data-1".to_owned(), hash(&by_path), hash(&outside)] {
        ensure!(xml.contains(&format!("<serial>{serial}</serial>")), "{serial} is not in {xml}");
    }
    provider.delete_instance(&OpContext::new(), &instance.id, &setup.own()).await?;
    setup.assert_empty()?;
    let volumes = setup.libvirtd.volumes()?;
    ensure!(volumes.contains(&"data-1".into()) && volumes.contains(&"data-2.qcow2".into()), "{volumes:?}");
    ensure!(fs::exists(&outside)?);

    let mut request = setup.request();
    request.spec.volumes.push(VolumeRequest::new("nobody"));
    let (error, _) = failed(provider.create_instance(&OpContext::new(), &request)).await?;
    assert_says(&error.to_string(), &["nobody"])?;
    setup.assert_empty()
}

/// Also where KVM would have to be proven first, for which a pool is needed: that is what is set unless somebody chose.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_that_is_away_hides_no_other_problem() -> Result<()> {
    let setup = Setup::start()?;
    for (pool, words) in [("nopool", "LIBVIRT_POOL"), ("default", "pool-start")] {
        if pool == "default" {
            setup.libvirtd.virsh(&["pool-destroy", "default"])?;
        }
        let provider = setup
            .provider(&[
                ("LIBVIRT_DOMAIN_TYPE", "auto"),
                ("LIBVIRT_POOL", pool),
                ("LIBVIRT_NET", "lab"),
                ("LIBVIRT_EFI_FIRMWARE", "/nowhere/OVMF.fd"),
            ])
            .await?;
        let error = provider.verify_config(&OpContext::new()).await.unwrap().into_result().unwrap_err();
        ensure!(*error.kind() == ErrorKind::Config, "{error:?}");
        assert_says(&error.to_string(), &[pool, words, "LIBVIRT_NET", "LIBVIRT_EFI_FIRMWARE"])?;
        let (error, _) = failed(provider.create_instance(&OpContext::new(), &setup.request())).await?;
        assert_says(&error.to_string(), &[pool, words])?;
        ensure!(setup.libvirtd.domains()?.is_empty());
    }
    setup.libvirtd.virsh(&["pool-start", "default"])?;
    setup.assert_empty()
}

/// Whoever may name an image or a volume would read the keys of another pod's machine.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disks_of_an_instance_are_neither_images_nor_data_volumes_of_another() -> Result<()> {
    let setup = Setup::start()?;
    let provider = setup.provider(&[]).await?;
    let victim = provider.create_instance(&OpContext::new(), &setup.request()).await?;
    let pool = setup.libvirtd.pool_dir();
    let folder = pool.file_name().and_then(|n| n.to_str()).context("the pool's folder has a name")?;
    for part in ["root.qcow2", "cloudinit.iso"] {
        let name = format!("{}-{part}", victim.name);
        let path = pool.join(&name).to_string_lossy().into_owned();
        let round_about = format!("{}/../{folder}/{name}", pool.display());
        let mut requests = Vec::new();
        for image in [&name, &path] {
            let mut request = setup.request();
            request.spec.image = Some(image.clone());
            requests.push(request);
        }
        for volume in [&name, &path, &round_about] {
            let mut request = setup.request();
            request.spec.volumes.push(VolumeRequest::new(volume));
            requests.push(request);
        }
        for request in requests {
            let (error, _) = failed(provider.create_instance(&OpContext::new(), &request)).await?;
            ensure!(*error.kind() == ErrorKind::Permission, "{error}");
            assert_says(&error.to_string(), &[&name, &victim.name])?;
        }
    }
    ensure!(setup.libvirtd.domains()? == std::slice::from_ref(&victim.name));
    provider.delete_instance(&OpContext::new(), &victim.id, &setup.own()).await?;

    // A name that only looks like it.
    setup.add_disk("golden-root.qcow2", "ready", crate::common::sectors::Then::AskForAddress)?;
    let mut request = setup.request();
    request.spec.image = Some("golden-root.qcow2".into());
    let instance = provider.create_instance(&OpContext::new(), &request).await?;
    provider.delete_instance(&OpContext::new(), &instance.id, &setup.own()).await?;
    setup.assert_empty()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_volume_that_is_asked_for_twice_is_refused_before_anything_is_made() -> Result<()> {
    let setup = Setup::start()?;
    let provider = setup.provider(&[]).await?;
    setup.libvirtd.virsh(&["vol-create-as", "default", "data-1", "1048576", "--format", "raw"])?;
    let path = setup.libvirtd.pool_dir().join("data-1").to_string_lossy().into_owned();
    for other in ["data-1", &path] {
        let mut request = setup.request();
        request.spec.volumes = vec![VolumeRequest::new("data-1"), VolumeRequest::new(other)];
        let (error, _) = failed(provider.create_instance(&OpContext::new(), &request)).await?;
        ensure!(*error.kind() == ErrorKind::Config, "{error:?}");
        assert_says(&error.to_string(), &["twice", "data-1"])?;
    }
    let log = setup.libvirtd.dir().join("log/qemu");
    ensure!(fs::read_dir(&log).map_or(0, |entries| entries.count()) == 0, "no machine was started");
    setup.assert_empty()
}
