//! Definitions of every kind of machine, compared with files below `tests/golden`.
//!
//! The integration test `documents` gives the same files to libvirt.

use std::{fs, path::Path};

use cloud_providers::{Architecture, CreateRequest, EnvSource, OptionSpec, ProcessEnv, Scope, Token, Unit};
use uuid::Uuid;

use super::*;
use crate::config::LaunchSecurity;

fn metadata() -> Metadata {
    let token = Token::new(Scope::Cluster("c-1".into()), "0a1b2c3d4e5f", 1);
    let unit = Unit { id: "0a1b2c3d4e5f".into(), name_hint: "shop & <co>".into() };
    let volume = |name: String| OwnVolume { pool: "default".into(), name };
    let volumes = vec![volume(root_name("podvm-web-0a1b2c3d")), volume(seed_name("podvm-web-0a1b2c3d"))];
    Metadata::for_request(&CreateRequest::new(token, unit, "Node.1"), 1_700_000_000, volumes)
}

pub(super) fn plan(arch: Architecture) -> DomainPlan {
    let pool = "/var/lib/libvirt/images";
    let (machine, emulator, firmware) = match arch {
        Architecture::Aarch64 => (Some("virt-7.2"), Some("/usr/bin/qemu-system-aarch64"), Firmware::Efi),
        Architecture::S390x => {
            (Some("s390-ccw-virtio-7.2"), Some("/usr/bin/qemu-system-s390x"), Firmware::Bios)
        }
        _ => (None, None, Firmware::Bios),
    };
    DomainPlan {
        name: "podvm-web-0a1b2c3d".into(),
        uuid: Uuid::from_u128(0x0a1b_2c3d_4e5f_4678_89ab_cdef_0123_4567),
        metadata: metadata(),
        domain_type: DomainType::Kvm,
        arch,
        machine: machine.map(str::to_owned),
        emulator: emulator.map(str::to_owned),
        firmware,
        vcpus: 2,
        cpuset: None,
        memory_mib: 2048,
        security: None,
        root: format!("{pool}/podvm-web-0a1b2c3d-root.qcow2"),
        data: Vec::new(),
        seed: format!("{pool}/podvm-web-0a1b2c3d-cloudinit.iso"),
        disk_bus: DiskBus::Virtio,
        seed_bus: SeedBus::Virtio,
        nics: vec![Nic::Network("default".into())],
        agent: true,
    }
}

fn data() -> Vec<DataDisk> {
    let disk = |path: &str, block, format: &str, given| DataDisk {
        path: path.into(),
        block,
        format: format.into(),
        serial: DataDisk::serial_of(path, given).unwrap(),
    };
    vec![
        disk("/var/lib/libvirt/images/data-1.raw", false, "raw", None),
        disk("/dev/vg0/data-2", true, "raw", Some("data-2")),
    ]
}

fn variants() -> Vec<(&'static str, DomainPlan)> {
    use Architecture::{Aarch64, S390x, X86_64};
    let code = || Firmware::Loader("/usr/share/OVMF/OVMF_CODE_4M.fd".into());
    let qemu = DomainType::Qemu;
    let protected =
        |arch, security, firmware| DomainPlan { security: Some(security), firmware, ..plan(arch) };
    vec![
        ("x86_64-bios", plan(X86_64)),
        ("x86_64-bios-emulated", DomainPlan { domain_type: qemu, ..plan(X86_64) }),
        (
            "x86_64-bios-sata-ide",
            DomainPlan { disk_bus: DiskBus::Sata, seed_bus: SeedBus::Ide, data: data(), ..plan(X86_64) },
        ),
        ("x86_64-loader", DomainPlan { firmware: code(), ..plan(X86_64) }),
        (
            "x86_64-loader-sata",
            DomainPlan { firmware: code(), disk_bus: DiskBus::Sata, seed_bus: SeedBus::Sata, ..plan(X86_64) },
        ),
        (
            "x86_64-efi-q35-scsi",
            DomainPlan {
                firmware: Firmware::Efi,
                machine: Some("q35".into()),
                disk_bus: DiskBus::Scsi,
                seed_bus: SeedBus::Scsi,
                data: data(),
                ..plan(X86_64)
            },
        ),
        (
            "x86_64-everything",
            DomainPlan {
                domain_type: qemu,
                cpuset: Some("0-1".into()),
                data: data(),
                nics: vec![
                    Nic::Network("default".into()),
                    Nic::Bridge("br0".into()),
                    Nic::Network("lab & <co>".into()),
                ],
                seed_bus: SeedBus::Scsi,
                agent: false,
                ..plan(X86_64)
            },
        ),
        ("x86_64-sev-snp", protected(X86_64, LaunchSecurity::SevSnp, Firmware::Efi)),
        (
            "x86_64-sev-snp-loader",
            protected(
                X86_64,
                LaunchSecurity::SevSnp,
                Firmware::Loader("/usr/share/ovmf/OVMF.amdsev.fd".into()),
            ),
        ),
        ("x86_64-tdx", protected(X86_64, LaunchSecurity::Tdx, Firmware::Efi)),
        ("aarch64", plan(Aarch64)),
        ("aarch64-emulated", DomainPlan { domain_type: qemu, ..plan(Aarch64) }),
        ("aarch64-scsi", DomainPlan { seed_bus: SeedBus::Scsi, data: data(), ..plan(Aarch64) }),
        ("s390x", plan(S390x)),
        ("s390x-emulated", DomainPlan { domain_type: qemu, data: data(), ..plan(S390x) }),
        ("s390x-s390-pv", protected(S390x, LaunchSecurity::S390Pv, Firmware::Bios)),
    ]
}

const UPDATE: OptionSpec = OptionSpec::bool("update-golden", "Writes the files anew").env("UPDATE_GOLDEN");

fn compare(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if ProcessEnv.option(&UPDATE).is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        text,
        golden,
        "{}: run the tests once with UPDATE_GOLDEN=1 and look at the difference",
        path.display()
    );
}

#[test]
fn definitions_are_those_of_the_golden_files() {
    for (name, plan) in variants() {
        compare(&format!("domain-{name}.xml"), &plan.to_xml().unwrap());
    }
}

#[test]
fn volumes_are_those_of_the_golden_files() {
    let base = VolumeFacts {
        name: "podvm-base.qcow2".into(),
        key: "/var/lib/libvirt/images/podvm-base.qcow2".into(),
        path: "/var/lib/libvirt/images/podvm-base.qcow2".into(),
        kind: "file".into(),
        format: "qcow2".into(),
        capacity: 20 << 30,
        backing: None,
    };
    let small = VolumePlan::root("podvm-web-0a1b2c3d", 10, &base).unwrap();
    assert_eq!(small.capacity, 20 << 30, "never less than the base");
    let root = VolumePlan::root("podvm-web-0a1b2c3d", 40, &base).unwrap();
    compare("volume-root.xml", &root.to_xml().unwrap());
    compare("volume-seed.xml", &VolumePlan::seed("podvm-web-0a1b2c3d", 49_152).to_xml().unwrap());
    let error = VolumePlan::root("x", u64::MAX, &base).unwrap_err().to_string();
    assert!(error.contains("LIBVIRT_ROOT_DISK_SIZE"), "{error}");
    let device = VolumeFacts { kind: "block".into(), ..base };
    assert!(VolumePlan::root("x", 10, &device).unwrap_err().to_string().contains("LIBVIRT_VOL_NAME"));
}

#[test]
fn what_is_written_reads_back() {
    let plan = DomainPlan { data: data(), ..plan(Architecture::X86_64) };
    let facts = DomainFacts::parse(&plan.to_xml().unwrap()).unwrap();
    assert_eq!((facts.name.as_str(), facts.uuid), (plan.name.as_str(), plan.uuid.to_string()));
    assert_eq!(facts.metadata, Some(plan.metadata));
    let targets: Vec<&str> = facts.disks.iter().map(|d| d.target.as_str()).collect();
    assert_eq!(targets, ["vda", "vdb", "vdc", "vdd"]);
    assert_eq!(facts.disks[2].path.as_deref(), Some("/dev/vg0/data-2"));
    assert_eq!(facts.disks[2].serial.as_deref(), Some("data-2"));
    assert!(facts.disks[3].read_only && facts.disks[3].path.as_deref() == Some(plan.seed.as_str()));
    assert_eq!(facts.nics[0].network.as_deref(), Some("default"));
}
