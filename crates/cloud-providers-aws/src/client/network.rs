//! Interfaces, addresses, subnets and security groups.

use std::net::IpAddr;

use super::Tags;

/// What [`super::Ec2::create_network_interface`] makes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CreateInterface {
    /// The idempotency value.
    pub client_token: String,
    /// Subnet.
    pub subnet: String,
    /// Security groups; empty means the VPC's default group.
    pub groups: Vec<String>,
    /// A fixed private IPv4 address.
    pub private_address: Option<IpAddr>,
    /// A text for people.
    pub description: String,
    /// Tags.
    pub tags: Tags,
}

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Interface {
    /// Id.
    pub id: String,
    /// EC2's word: `pending`, `available`, `in-use`, …
    pub status: String,
    /// What it is attached to.
    pub attachment: Option<InterfaceAttachment>,
    /// Private addresses, the primary one first.
    pub private_addresses: Vec<IpAddr>,
    /// Tags.
    pub tags: Tags,
}

/// What an interface is attached to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct InterfaceAttachment {
    /// Id of the attachment.
    pub id: String,
    /// Instance; `None` when a service of AWS has it.
    pub instance: Option<String>,
    /// Position.
    pub device_index: u32,
    /// EC2's word: `attaching`, `attached`, `detaching`, `detached`.
    pub state: String,
    /// It goes with the instance.
    pub delete_on_termination: bool,
}

/// An Elastic IP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Address {
    /// Id of the allocation.
    pub allocation: String,
    /// The address.
    pub public_address: Option<IpAddr>,
    /// Id of the association, where there is one.
    pub association: Option<String>,
    /// Instance that it is associated with.
    pub instance: Option<String>,
    /// Interface that it is associated with.
    pub interface: Option<String>,
    /// Tags.
    pub tags: Tags,
}

/// A subnet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Subnet {
    /// Id.
    pub id: String,
    /// Availability zone.
    pub zone: String,
    /// VPC.
    pub vpc: String,
    /// EC2's word: `pending`, `available`, …
    pub state: String,
    /// Addresses that are free, where told.
    pub free_addresses: Option<u32>,
}

/// A security group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SecurityGroup {
    /// Id.
    pub id: String,
    /// Name.
    pub name: String,
    /// VPC.
    pub vpc: Option<String>,
    /// What may come in.
    pub ingress: Vec<Rule>,
    /// What may go out.
    pub egress: Vec<Rule>,
}

/// A rule of a security group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rule {
    /// `tcp`, `udp`, `icmp`, a protocol number, or `-1` for all.
    pub protocol: String,
    /// First port; `None` or -1 means all.
    pub from_port: Option<i32>,
    /// Last port; `None` or -1 means all.
    pub to_port: Option<i32>,
    /// Ids of security groups on the other side.
    pub groups: Vec<String>,
    /// Address ranges (IPv4 and IPv6) and prefix lists on the other side.
    pub ranges: Vec<String>,
}
