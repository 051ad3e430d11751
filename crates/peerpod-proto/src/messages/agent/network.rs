//! Interfaces and routes of the guest. Neither shim sends changes of them with the remote hypervisor.

/// An address with its prefix.
#[derive(Clone, PartialEq, prost::Message)]
pub struct IpAddress {
    /// 0 for IPv4, 1 for IPv6.
    #[prost(int32, tag = "1")]
    pub family: i32,
    /// Address.
    #[prost(string, tag = "2")]
    pub address: String,
    /// Prefix length.
    #[prost(string, tag = "3")]
    pub mask: String,
}

/// A network interface of the guest.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Interface {
    /// Name in the guest.
    #[prost(string, tag = "1")]
    pub device: String,
    /// Name it is to get.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Addresses.
    #[prost(message, repeated, tag = "3")]
    pub ip_addresses: Vec<IpAddress>,
    /// Largest packet.
    #[prost(uint64, tag = "4")]
    pub mtu: u64,
    /// Hardware address.
    #[prost(string, tag = "5")]
    pub hw_addr: String,
    /// Path of the device.
    #[prost(string, tag = "6")]
    pub device_path: String,
    /// Type of interface.
    #[prost(string, tag = "7")]
    pub kind: String,
    /// Flags of the kernel.
    #[prost(uint32, tag = "8")]
    pub raw_flags: u32,
}

/// Network interfaces of the guest.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Interfaces {
    /// The interfaces.
    #[prost(message, repeated, tag = "1")]
    pub interfaces: Vec<Interface>,
}

/// A route of the guest.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Route {
    /// Destination, with its prefix.
    #[prost(string, tag = "1")]
    pub dest: String,
    /// Next hop.
    #[prost(string, tag = "2")]
    pub gateway: String,
    /// Interface.
    #[prost(string, tag = "3")]
    pub device: String,
    /// Preferred source address.
    #[prost(string, tag = "4")]
    pub source: String,
    /// Scope.
    #[prost(uint32, tag = "5")]
    pub scope: u32,
    /// 0 for IPv4, 1 for IPv6.
    #[prost(int32, tag = "6")]
    pub family: i32,
    /// Flags of the kernel.
    #[prost(uint32, tag = "7")]
    pub flags: u32,
}

/// Routes of the guest.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Routes {
    /// The routes.
    #[prost(message, repeated, tag = "1")]
    pub routes: Vec<Route>,
}

/// Changes an interface; not sent with the remote hypervisor.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateInterfaceRequest {
    /// The interface.
    #[prost(message, optional, tag = "1")]
    pub interface: Option<Interface>,
}

/// Changes the routes; not sent with the remote hypervisor.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateRoutesRequest {
    /// The routes.
    #[prost(message, optional, tag = "1")]
    pub routes: Option<Routes>,
}

/// Asks for the interfaces.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ListInterfacesRequest {}

/// Asks for the routes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ListRoutesRequest {}
