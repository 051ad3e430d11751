//! Finds out whether KVM really runs guests.
//!
//! That libvirt lists KVM among its capabilities proves nothing: under another hypervisor, or with a KVM that only has
//! a part of the instructions, machines start and are paused seconds later. So a tiny machine has to prove it.

mod sector;

use std::{
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use cloud_providers::{Architecture, OpContext};
use virt::{
    connect::Connect, domain::Domain, error::Error as VirtError, storage_pool::StoragePool,
    storage_vol::StorageVol, stream::Stream, sys,
};

use crate::{
    boot::stopped,
    client::{CallError, CallResult, Client, Step, step},
    error::is_missing,
    look,
    xml::{CpuMode, DomainType, Element, VolumePlan},
};

/// The longest that the machine may run. A working KVM needs a fraction of a second.
const LIMIT: Duration = Duration::from_secs(5);
/// How often it is looked at.
const REST: Duration = Duration::from_millis(20);
/// Names are taken from a few, so that libvirt does not keep a log file for each probe that ever was.
const SLOTS: u32 = 16;
const PREFIX: &str = "peerpod-probe-";
/// Disks that are older, and whose machine does not run, were left behind by a process that died. The clocks of the hosts
/// that share a libvirt may differ by less.
const STALE: Duration = Duration::from_secs(60);
const PROBE: Step = step("virDomainCreateXML", "cannot find out whether KVM works");

/// What a probe found.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Proven,
    /// With the reason.
    Not(String),
}

/// Returns KVM when it is proven to work, otherwise software emulation.
///
/// # Errors
///
/// When nothing could be found out: libvirt went away, or there is no place for the probe's disk.
pub(crate) async fn domain_type(
    ctx: &OpContext,
    client: &Client,
    pool: &str,
    arch: Architecture,
) -> cloud_providers::Result<DomainType> {
    let (place, start) = (pool.to_owned(), Instant::now());
    let outcome = client.apart(ctx, PROBE, move |c| run(c, &place, arch, DomainType::Kvm)).await?;
    match outcome {
        Outcome::Proven => {
            tracing::info!(provider = crate::NAME, %arch, elapsed = ?start.elapsed(), "KVM works");
            Ok(DomainType::Kvm)
        }
        Outcome::Not(why) => {
            tracing::warn!(
                provider = crate::NAME,
                %arch,
                why,
                "KVM is there and does not work: machines run under software emulation, which is many times slower"
            );
            Ok(DomainType::Qemu)
        }
    }
}

/// Runs the machine. Nothing of it stays, also when the caller has left.
fn run(connection: &Connect, pool: &str, arch: Architecture, kind: DomainType) -> CallResult<Outcome> {
    if arch != Architecture::X86_64 {
        return start_only(connection, arch, kind);
    }
    let pool = look::pool(connection, pool)?;
    remove_stale(connection, &pool)?;
    let slot = rand_slot();
    let disk = Disk::make(connection, &pool, &format!("{PREFIX}{}-{slot}.img", now()))?;
    let domain = match started(connection, &machine(arch, kind, slot, Some(&disk.path)).to_xml()?, 0)? {
        Ok(domain) => domain,
        Err(why) => return Ok(Outcome::Not(why)),
    };
    let end = Instant::now() + LIMIT;
    let ended = loop {
        match domain.get_state() {
            Err(error) if is_missing(&error) => break Ok(()),
            Err(error) => return Err(error.into()),
            Ok((sys::VIR_DOMAIN_SHUTOFF | sys::VIR_DOMAIN_SHUTDOWN, _)) => break Ok(()),
            Ok((state, reason)) => {
                if let Some(why) = stopped(state, reason) {
                    break Err(format!("the probe's machine {why}"));
                }
            }
        }
        if Instant::now() >= end {
            break Err(format!("the probe's machine did not finish within {LIMIT:?}"));
        }
        thread::sleep(REST);
    };
    // Also after an end of its own, which may still be under way.
    let _ = domain.destroy();
    Ok(match ended {
        Err(why) => Outcome::Not(why),
        Ok(()) if sector::is_proof(&disk.second_sector(connection)?) => Outcome::Proven,
        Ok(()) => Outcome::Not("the probe's machine ended before its end".into()),
    })
}

/// On other architectures there is no firmware that every host has: QEMU must be able to make the machine, paused.
fn start_only(connection: &Connect, arch: Architecture, kind: DomainType) -> CallResult<Outcome> {
    let xml = machine(arch, kind, rand_slot(), None).to_xml()?;
    match started(connection, &xml, sys::VIR_DOMAIN_START_PAUSED)? {
        Ok(domain) => {
            let _ = domain.destroy();
            Ok(Outcome::Proven)
        }
        Err(why) => Ok(Outcome::Not(why)),
    }
}

/// Starts a machine that ends with our connection at the latest, or says why libvirt or QEMU refuses.
fn started(connection: &Connect, xml: &str, more: u32) -> CallResult<Result<Domain, String>> {
    match Domain::create_xml(connection, xml, sys::VIR_DOMAIN_START_AUTODESTROY | more) {
        Ok(domain) => Ok(Ok(domain)),
        Err(error) if !connection.is_alive().unwrap_or(false) => Err(error.into()),
        Err(error) => {
            let line = error.message().lines().last().unwrap_or_default().trim();
            Ok(Err(format!("the probe's machine does not start: {line}")))
        }
    }
}

fn machine(arch: Architecture, kind: DomainType, slot: u32, disk: Option<&str>) -> Element {
    let mut kind_of = Element::new("type").attr("arch", arch);
    if arch == Architecture::Aarch64 {
        kind_of = kind_of.attr("machine", "virt");
    }
    let mut devices = Element::new("devices");
    if let Some(path) = disk {
        devices = devices.child(
            Element::new("disk")
                .attr("type", "file")
                .attr("device", "disk")
                .child(Element::new("driver").attr("name", "qemu").attr("type", "raw"))
                .child(Element::new("source").attr("file", path))
                .child(Element::new("target").attr("dev", "vda").attr("bus", "virtio")),
        );
    }
    let mode = CpuMode::choose(arch, kind, None);
    let mut domain = Element::new("domain")
        .attr("type", kind.as_str())
        .child(Element::new("name").text(format!("{PREFIX}{slot}")))
        .child(Element::new("description").text("Finds out whether KVM works; gone within seconds"))
        .child(Element::new("memory").attr("unit", "MiB").text(32))
        .child(Element::new("vcpu").text(1))
        .child(Element::new("os").child(kind_of.text("hvm")));
    if arch == Architecture::X86_64 {
        domain = domain.child(Element::new("features").child(Element::new("acpi")));
    }
    domain
        .child(Element::new("cpu").attr("mode", mode.as_str()))
        // A machine that falls over starts again and is late; one that ends by itself has ended on purpose.
        .child(Element::new("on_poweroff").text("destroy"))
        .child(Element::new("on_reboot").text("restart"))
        .child(devices.child(Element::new("memballoon").attr("model", "none")))
}

/// The probe's disk, deleted when it is dropped.
struct Disk {
    volume: StorageVol,
    path: String,
}

impl Disk {
    fn make(connection: &Connect, pool: &StoragePool, name: &str) -> CallResult<Self> {
        let plan = VolumePlan {
            name: name.into(),
            capacity: sector::DISK,
            format: "raw",
            mode: "0600",
            backing: None,
        };
        let volume = StorageVol::create_xml(pool, &plan.to_xml()?, 0)?;
        let path = volume.get_path()?;
        let disk = Self { volume, path };
        let code = sector::boot_sector();
        let stream = Stream::new(connection, 0)?;
        disk.volume.upload(&stream, 0, code.len() as u64, 0)?;
        let mut sent = 0;
        while sent < code.len() {
            sent += stream.send(&code[sent..])?;
        }
        stream.finish()?;
        Ok(disk)
    }

    fn second_sector(&self, connection: &Connect) -> CallResult<Vec<u8>> {
        let stream = Stream::new(connection, 0)?;
        let size = sector::SECTOR;
        self.volume.download(&stream, size as u64, size as u64, 0)?;
        let mut bytes = vec![0; size];
        let mut read = 0;
        while read < size {
            match stream.recv(&mut bytes[read..])? {
                0 => break,
                more => read += more,
            }
        }
        // Read to its end, so that the stream may be finished.
        let _ = if read == size && stream.recv(&mut [0]).is_ok_and(|more| more == 0) {
            stream.finish()
        } else {
            stream.abort()
        };
        bytes.truncate(read);
        Ok(bytes)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = self.volume.delete(0) {
            tracing::warn!(provider = crate::NAME, path = self.path, %error, "the disk of a probe is left");
        }
    }
}

/// Deletes disks of probes whose process died: libvirt ended their machines with its connection.
fn remove_stale(connection: &Connect, pool: &StoragePool) -> CallResult<()> {
    for name in pool.list_volumes().map_err(CallError::from)? {
        let Some(slot) = slot_of_old(&name, now()) else { continue };
        if Domain::lookup_by_name(connection, &format!("{PREFIX}{slot}")).is_ok() {
            continue;
        }
        let gone: Result<(), VirtError> = StorageVol::lookup_by_name(pool, &name).and_then(|v| v.delete(0));
        if let Err(error) = gone {
            tracing::debug!(provider = crate::NAME, name, %error, "an old disk of a probe stays");
        }
    }
    Ok(())
}

/// Returns the slot of a probe's disk that is old.
fn slot_of_old(name: &str, now: u64) -> Option<u32> {
    let (made, slot) = name.strip_prefix(PREFIX)?.strip_suffix(".img")?.split_once('-')?;
    let made: u64 = made.parse().ok()?;
    (made.saturating_add(STALE.as_secs()) < now).then(|| slot.parse().ok()).flatten()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Any slot: two processes that probe at once should not meet.
fn rand_slot() -> u32 {
    u32::from(uuid::Uuid::new_v4().as_bytes()[0]) % SLOTS
}

#[cfg(test)]
mod tests {
    use cloud_providers::OpContext;
    use test_support::Libvirtd;

    use super::*;
    use crate::{config::Config, host::Hosts};

    fn client(libvirtd: &Libvirtd) -> Client {
        Client::new(&libvirtd.uri()).unwrap()
    }

    fn nothing_is_left(libvirtd: &Libvirtd) {
        assert_eq!(libvirtd.domains().unwrap(), [""; 0]);
        assert_eq!(libvirtd.volumes().unwrap(), [""; 0]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_probe_proves_what_works() {
        let libvirtd = Libvirtd::start().unwrap();
        let client = client(&libvirtd);
        let run_here = |c: &Connect| run(c, "default", Architecture::X86_64, DomainType::Qemu);
        let outcome = client.apart(&OpContext::new(), PROBE, run_here).await.unwrap();
        assert_eq!(outcome, Outcome::Proven);
        nothing_is_left(&libvirtd);
        let run_kvm = |c: &Connect| run(c, "default", Architecture::X86_64, DomainType::Kvm);
        let start = Instant::now();
        // Either is an answer, and it comes in time.
        let outcome = client.apart(&OpContext::new(), PROBE, run_kvm).await.unwrap();
        println!("KVM on this machine after {:?}: {outcome:?}", start.elapsed());
        assert!(start.elapsed() < LIMIT * 4, "{:?}", start.elapsed());
        nothing_is_left(&libvirtd);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_answer_is_asked_for_once_for_each_start_of_libvirt() {
        let mut libvirtd = Libvirtd::start().unwrap();
        let client = client(&libvirtd);
        let ctx = OpContext::new();
        let config = config(&libvirtd);
        let hosts = Hosts::default();
        let host = hosts.get(&ctx, &client).await.unwrap();
        let first = host.domain_type(&ctx, &client, &config, Architecture::X86_64).await.unwrap();
        nothing_is_left(&libvirtd);
        let probes = |calls: Vec<&str>| calls.iter().filter(|c| **c == PROBE.operation).count();
        let advertised = host.facts.guest(Architecture::X86_64).unwrap().advertises(DomainType::Kvm);
        assert_eq!(probes(client.faults().take_calls()), usize::from(advertised));
        for _ in 0..3 {
            let host = hosts.get(&ctx, &client).await.unwrap();
            let again = host.domain_type(&ctx, &client, &config, Architecture::X86_64).await.unwrap();
            assert_eq!(again, first);
        }
        assert_eq!(probes(client.faults().take_calls()), 0);

        libvirtd.restart().unwrap();
        // Whatever call comes next notices that the connection broke.
        let ask = step("virConnectGetType", "cannot ask");
        client.read(&ctx, ask, |c| Ok(c.get_capabilities().map(drop)?)).await.unwrap();
        let host = hosts.get(&ctx, &client).await.unwrap();
        let again = host.domain_type(&ctx, &client, &config, Architecture::X86_64).await.unwrap();
        assert_eq!(again, first);
        assert_eq!(probes(client.faults().take_calls()), usize::from(advertised));
        nothing_is_left(&libvirtd);
    }

    fn config(libvirtd: &Libvirtd) -> Config {
        let mut settings = cloud_providers::Settings::new(crate::OPTIONS);
        settings.load_env(&cloud_providers::MapEnv::new([("LIBVIRT_URI".to_owned(), libvirtd.uri())]));
        let (values, mut problems) = settings.parse_all();
        let config = Config::read(&values, &mut problems);
        assert!(problems.is_empty(), "{problems:?}");
        config
    }

    #[test]
    fn only_old_disks_of_probes_are_stale() {
        assert_eq!(slot_of_old("peerpod-probe-1000-3.img", 1061), Some(3));
        assert_eq!(slot_of_old("peerpod-probe-1000-3.img", 1060), None);
        for other in ["peerpod-probe-x-3.img", "base.img", "peerpod-probe-1000-3", "peerpod-probe-1000-x.img"]
        {
            assert_eq!(slot_of_old(other, 2000), None, "{other}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_next_probe_removes_what_a_killed_one_left_and_not_what_one_uses() {
        let libvirtd = Libvirtd::start().unwrap();
        let client = client(&libvirtd);
        let (killed, running) = ("peerpod-probe-1000-90.img", "peerpod-probe-1000-91.img");
        let fresh = format!("{PREFIX}{}-92.img", now());
        for name in [killed, running, &fresh] {
            libvirtd.virsh(&["vol-create-as", "default", name, "4096", "--format", "raw"]).unwrap();
        }
        let file = libvirtd.dir().join("running.xml");
        let machine = machine(Architecture::X86_64, DomainType::Qemu, 91, None).to_xml().unwrap();
        std::fs::write(&file, machine).unwrap();
        libvirtd.virsh(&["create", &file.to_string_lossy(), "--paused"]).unwrap();
        let run_here = |c: &Connect| run(c, "default", Architecture::X86_64, DomainType::Qemu);
        client.apart(&OpContext::new(), PROBE, run_here).await.unwrap();
        let mut left = libvirtd.volumes().unwrap();
        left.sort();
        assert_eq!(left, [running.to_owned(), fresh]);
    }
}
