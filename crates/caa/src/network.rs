//! The node's side of the pod network, behind a trait so that the life of a sandbox is tested without a kernel.

use std::path::Path;

use async_trait::async_trait;
use peerpod_net::{Family, InspectOptions, NetError, PodNetwork, TeardownReport, worker};

/// What the life of a sandbox needs of the network.
#[async_trait]
pub trait Network: Send + Sync {
    /// Reads the network of a pod's namespace.
    ///
    /// # Errors
    ///
    /// What is missing in the namespace or on this node.
    async fn inspect(&self, netns: &Path) -> Result<PodNetwork, NetError>;

    /// Reserves a tunnel id by making the device, for packets that travel over that family of addresses.
    ///
    /// # Errors
    ///
    /// [`peerpod_net::NetErrorKind::IdInUse`] when another tunnel has the id.
    async fn reserve(&self, netns: &Path, id: u32, port: u16, underlay: Family) -> Result<(), NetError>;

    /// Joins the reserved tunnel to its peer and turns the pod's traffic into it.
    ///
    /// # Errors
    ///
    /// The step that the kernel refused.
    async fn connect(&self, netns: &Path, spec: &worker::TunnelSpec) -> Result<(), NetError>;

    /// Removes device, redirection and rules; never stops at the first failure.
    async fn teardown(&self, netns: &Path, id: u32, port: u16) -> TeardownReport;
}

/// The kernel's network, by netlink.
#[derive(Clone, Debug)]
pub struct KernelNetwork(pub InspectOptions);

#[async_trait]
impl Network for KernelNetwork {
    async fn inspect(&self, netns: &Path) -> Result<PodNetwork, NetError> {
        peerpod_net::inspect(netns, &self.0).await
    }

    async fn reserve(&self, netns: &Path, id: u32, port: u16, underlay: Family) -> Result<(), NetError> {
        worker::reserve(netns, id, port, underlay).await
    }

    async fn connect(&self, netns: &Path, spec: &worker::TunnelSpec) -> Result<(), NetError> {
        worker::connect(netns, spec).await
    }

    async fn teardown(&self, netns: &Path, id: u32, port: u16) -> TeardownReport {
        worker::teardown(netns, id, port).await
    }
}
