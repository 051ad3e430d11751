//! A tunnel made as for a pod, between two network namespaces that nobody else sees.

use std::{fs::File, io, os::fd::AsRawFd as _, path::PathBuf, time::Duration};

use cloud_providers::Finding;
use nix::{
    errno::Errno,
    sched::{CloneFlags, unshare},
};
use peerpod_net::{Family, NetError, netns, worker};

use super::checks::TUNNEL;
use crate::config::DaemonConfig;

/// How long the kernel may take, modules that it loads included.
const LIMIT: Duration = Duration::from_secs(20);
/// An address that is nobody's.
const PEER: [u8; 4] = [192, 0, 2, 1];
/// The interface that every namespace has.
const INTERFACE: &str = "lo";

/// Makes the tunnel. What cannot be made for lack of rights is told by the check of rights.
pub(super) async fn look(config: &DaemonConfig) -> Finding {
    if config.vxlan_port == 0 {
        return Finding::not_checked(TUNNEL, "-vxlan-port has to be mended first");
    }
    let (node, pod) = match (namespace(), namespace()) {
        (Ok(node), Ok(pod)) => (node, pod),
        (Err(error), _) | (_, Err(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Finding::not_checked(TUNNEL, format!("no network namespace can be made: {error}"))
                .with_remedy("run it as root, as the daemon runs");
        }
        (Err(error), _) | (_, Err(error)) => {
            return Finding::failed(TUNNEL, format!("no network namespace can be made: {error}"))
                .with_remedy(
                    "build the kernel with CONFIG_NET_NS, or raise the sysctl user.max_net_namespaces",
                );
        }
    };
    let (port, id) = (config.vxlan_port, config.vxlan_min_id.max(1));
    let (outside, place) = (path(&node), path(&pod));
    let made = netns::run_in(&outside, move || async move {
        worker::reserve(&place, id, port, Family::V4).await?;
        let spec = worker::TunnelSpec::new(id, port, PEER.into(), INTERFACE);
        worker::connect(&place, &spec).await
    });
    let made = tokio::time::timeout(LIMIT, made).await;
    // Both namespaces, and all that is in them, go with their files.
    drop((node, pod));
    match made {
        Ok(Ok(Ok(()))) => Finding::ok(TUNNEL, "vxlan: device, redirects and packet filter rules can be made"),
        Ok(Ok(Err(error)) | Err(error)) if error.chain().contains(Errno::EPERM.desc()) => {
            Finding::not_checked(TUNNEL, format!("vxlan: {}", error.chain()))
                .with_remedy("run it as root, as the daemon runs")
        }
        Ok(Ok(Err(error)) | Err(error)) => Finding::failed(TUNNEL, format!("vxlan: {}", error.chain()))
            .with_option("-tunnel-type or TUNNEL_TYPE")
            .with_remedy(remedy(&error)),
        Err(_) => Finding::failed(TUNNEL, format!("vxlan: the kernel did not answer within {LIMIT:?}"))
            .with_remedy("look at the kernel's log"),
    }
}

/// Says which feature of the kernel a step needs.
fn remedy(error: &NetError) -> &'static str {
    let text = error.to_string();
    if text.contains("redirect") {
        return "load or build the kernel's sch_ingress, cls_u32 and act_mirred";
    }
    if text.contains("packet filter") || text.contains("nf_tables") {
        return "load or build the kernel's nf_tables and nft_ct";
    }
    "load or build the kernel's vxlan"
}

/// Makes a namespace that lives as long as the file.
fn namespace() -> io::Result<File> {
    let made = || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        File::open("/proc/thread-self/ns/net")
    };
    let thread = std::thread::Builder::new().name("check-netns".into()).spawn(made)?;
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that makes it panicked")))
}

fn path(namespace: &File) -> PathBuf {
    format!("/proc/self/fd/{}", namespace.as_raw_fd()).into()
}
