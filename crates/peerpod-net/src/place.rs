//! The two namespaces a tunnel joins, opened together: the caller's, through which the tunnel's packets travel, and
//! the pod's, in which its device stands.

use std::fs::File;
use std::net::IpAddr;
use std::path::Path;

use nix::errno::Errno;

use crate::netlink::{Link, NewVxlan, RouteSocket};
use crate::{Family, NetError, NetErrorKind, netns};

/// Ids are 24 bits wide on the wire; 0 stands for "none" in the guest's configuration.
const ID_LIMIT: u32 = 1 << 24;

/// How the node's side calls the namespace it runs in.
pub(crate) const NODE: &str = "the node's network namespace";
/// How the guest's side calls the namespace it runs in.
pub(crate) const GUEST: &str = "the guest's root network namespace";

/// Sockets of both namespaces. Made on a fresh thread, which stays in the pod's namespace from then on.
pub(crate) struct Places {
    /// The node's namespace, or the guest's root namespace.
    pub(crate) host: RouteSocket,
    /// The pod's namespace.
    pub(crate) pod: RouteSocket,
    /// The node's namespace as a file, to move interfaces back to it.
    pub(crate) host_file: File,
    /// The pod's namespace as a file, to put interfaces into it.
    pub(crate) pod_file: File,
}

impl Places {
    pub(crate) fn open(pod: &Path, host_name: &str) -> Result<Self, NetError> {
        let host_file = netns::open_own()?;
        let pod_file = netns::open(pod)?;
        if netns::inode(pod)? == netns::current_inode()? {
            return Err(NetError::new(
                NetErrorKind::InvalidInput,
                format!("{} is {host_name} itself, not a pod's network namespace", pod.display()),
            ));
        }
        let host = RouteSocket::open(host_name)?;
        netns::enter(&pod_file, pod)?;
        let pod = RouteSocket::open(format!("network namespace {}", pod.display()))?;
        Ok(Self { host, pod, host_file, pod_file })
    }

    /// Makes a tunnel device in the pod's namespace, with its underlay in the host's.
    ///
    /// The kernel has one answer for a taken name and for a taken id, so a look at the names tells them apart. Kernels
    /// before 6.14 also refuse a name that is taken in the host's namespace, where the device is never seen: every
    /// guest has an `eth0` there, and most pods want one. Such a device is made under another name and renamed.
    pub(crate) fn create_tunnel(&mut self, tunnel: &Tunnel<'_>) -> Result<Link, NetError> {
        let passing = format!("pp{:x}p{:x}", tunnel.vni, tunnel.port);
        let is_taken = self.host.link(tunnel.name)?.is_some();
        if is_taken {
            // Left by somebody who was killed before renaming it.
            self.delete_tunnel(&passing)?;
        }
        let new = NewVxlan {
            name: if is_taken { &passing } else { tunnel.name },
            id: tunnel.vni,
            port: tunnel.port,
            family: tunnel.family,
            remote: tunnel.remote,
            mac: tunnel.mac,
            mtu: tunnel.mtu,
            namespace: &self.pod_file,
        };
        let step = format!("cannot make tunnel device {} in {}", tunnel.name, self.pod.place());
        match self.host.create_vxlan(&new) {
            Ok(()) => {}
            Err(e) if e.errno() == Some(Errno::EEXIST) => {
                let kind = match self.pod.link(new.name)? {
                    Some(_) => NetErrorKind::NameTaken,
                    None => NetErrorKind::IdInUse,
                };
                let why = match kind {
                    NetErrorKind::NameTaken => "the name is taken".to_owned(),
                    _ => format!("another tunnel uses id {} on UDP port {}", tunnel.vni, tunnel.port),
                };
                return Err(NetError::new(kind, format!("{step}: {why}")).with_source(e));
            }
            Err(e) => return Err(e.at(step)),
        }
        let mut made = self.pod.link(new.name)?.ok_or_else(|| {
            NetError::new(NetErrorKind::NoInterface, format!("{step}: it vanished right after it was made"))
        })?;
        if is_taken {
            if let Err(e) = self.pod.rename_link(made.index, tunnel.name) {
                delete(&mut self.pod, &made)?;
                return Err(match e.errno() {
                    Some(Errno::EEXIST) => {
                        NetError::new(NetErrorKind::NameTaken, format!("{step}: the name is taken"))
                            .with_source(e)
                    }
                    _ => e.at(step),
                });
            }
            made.name = tunnel.name.to_owned();
        }
        Ok(made)
    }

    /// Deletes the tunnel device of that name in the pod's namespace; says whether there was one.
    ///
    /// An interface of another kind is somebody else's and an error.
    pub(crate) fn delete_tunnel(&mut self, name: &str) -> Result<bool, NetError> {
        match self.pod.link(name)? {
            None => Ok(false),
            Some(link) if link.is_vxlan() => {
                delete(&mut self.pod, &link)?;
                Ok(true)
            }
            Some(link) => Err(NetError::new(
                NetErrorKind::NameTaken,
                format!(
                    "interface {name} of {} is of kind {:?}, not a tunnel of ours",
                    self.pod.place(),
                    link.kind
                ),
            )),
        }
    }
}

/// Deletes an interface; one that is gone already is fine.
pub(crate) fn delete(socket: &mut RouteSocket, link: &Link) -> Result<(), NetError> {
    match socket.delete_link(link.index) {
        Err(e) if e.errno() != Some(Errno::ENODEV) => {
            Err(e.at(format!("cannot delete interface {} of {}", link.name, socket.place())))
        }
        _ => Ok(()),
    }
}

/// A tunnel device to be made.
pub(crate) struct Tunnel<'a> {
    pub(crate) name: &'a str,
    pub(crate) vni: u32,
    pub(crate) port: u16,
    /// The family its packets travel over.
    pub(crate) family: Family,
    pub(crate) remote: Option<IpAddr>,
    pub(crate) mac: Option<[u8; 6]>,
    pub(crate) mtu: Option<u32>,
}

/// Refuses ids the wire format has no room for.
pub(crate) fn check_id(vni: u32, port: u16) -> Result<(), NetError> {
    if vni == 0 || vni >= ID_LIMIT {
        return Err(NetError::new(
            NetErrorKind::IdOutOfRange,
            format!("tunnel id {vni} is not between 1 and {}", ID_LIMIT - 1),
        ));
    }
    if port == 0 {
        return Err(NetError::new(NetErrorKind::InvalidInput, "the tunnel's UDP port is 0"));
    }
    Ok(())
}
