//! The calls to EC2, as the provider needs them, in types of our own: no type of an SDK passes through here.
//!
//! [`Ec2`] has one method for each operation and nothing else: no waiting, no retrying, no undoing. With the feature `sdk`
//! the crate brings an implementation over the vendor's SDK; a program may bring its own.

mod catalogue;
mod common;
mod instances;
mod network;
#[cfg(feature = "sdk")]
mod sdk;
mod volumes;

use std::{fmt::Debug, sync::Arc, time::Duration};

use cloud_providers::{Result, async_trait, secrecy::SecretString};

pub use catalogue::{
    Image, ImageMapping, KeyPair, LaunchTemplate, LaunchTemplateRef, TypeInfo, TypeOffering,
};
pub use common::{AccountLimit, Filter, Page, Query, Tags};
pub use instances::{
    DryRun, Instance, InstanceInterface, InstanceVolume, MetadataOptions, NewInterface, RootVolume,
    RunInstances, State, StateReason,
};
pub use network::{Address, CreateInterface, Interface, InterfaceAttachment, Rule, SecurityGroup, Subnet};
#[cfg(feature = "sdk")]
pub use sdk::SdkConnect;
pub use volumes::{Volume, VolumeAttachment};

/// What the provider asks of EC2.
///
/// Every method is one remote call, named after its operation. Waits, limits of time, retries, paging and undoing are the
/// provider's part; an implementation must not repeat a call on its own, and must bear that the future is dropped.
///
/// # Errors
///
/// Those of [`crate::error::refused`] for an answer of EC2 with an error code, and of [`crate::error::lost`] where there is
/// no answer, so that kind and retry come from one table.
#[async_trait]
pub trait Ec2: Debug + Send + Sync {
    /// Makes one instance, or returns the one that was made with the same `client_token`.
    async fn run_instances(&self, request: &RunInstances) -> Result<Instance>;

    /// Returns a page of the instances that `query` matches; `after` is the mark of the page before.
    ///
    /// Terminated instances are listed for a while. An id that is not there is the error `InvalidInstanceID.NotFound`.
    async fn describe_instances(&self, query: &Query, after: Option<&str>) -> Result<Page<Instance>>;

    /// Begins to terminate an instance; one that is terminated already is success.
    async fn terminate_instances(&self, id: &str) -> Result<()>;

    /// Describes types by name, at most [`TYPES_PER_CALL`] in one call.
    async fn describe_instance_types(&self, names: &[String]) -> Result<Vec<TypeInfo>>;

    /// Returns a page of the zones in which types are offered.
    async fn describe_instance_type_offerings(
        &self,
        names: &[String],
        after: Option<&str>,
    ) -> Result<Page<TypeOffering>>;

    /// Describes images by id.
    async fn describe_images(&self, ids: &[String]) -> Result<Vec<Image>>;

    /// Describes subnets by id.
    async fn describe_subnets(&self, ids: &[String]) -> Result<Vec<Subnet>>;

    /// Describes security groups by id, with their rules.
    async fn describe_security_groups(&self, ids: &[String]) -> Result<Vec<SecurityGroup>>;

    /// Describes key pairs by name.
    async fn describe_key_pairs(&self, names: &[String]) -> Result<Vec<KeyPair>>;

    /// Describes one version of a launch template; `None` when the answer lists none.
    async fn describe_launch_template_versions(
        &self,
        template: &LaunchTemplateRef,
    ) -> Result<Option<LaunchTemplate>>;

    /// Returns a page of the volumes that `query` matches.
    async fn describe_volumes(&self, query: &Query, after: Option<&str>) -> Result<Page<Volume>>;

    /// Begins to attach a volume under a device name.
    async fn attach_volume(&self, volume: &str, instance: &str, device: &str) -> Result<()>;

    /// Begins to detach a volume from an instance.
    async fn detach_volume(&self, volume: &str, instance: &str) -> Result<()>;

    /// Makes a network interface, or returns the one that was made with the same `client_token`.
    async fn create_network_interface(&self, request: &CreateInterface) -> Result<Interface>;

    /// Returns a page of the network interfaces that `query` matches.
    async fn describe_network_interfaces(
        &self,
        query: &Query,
        after: Option<&str>,
    ) -> Result<Page<Interface>>;

    /// Attaches a network interface and returns the attachment's id, where the answer has one.
    async fn attach_network_interface(
        &self,
        interface: &str,
        instance: &str,
        device_index: u32,
    ) -> Result<Option<String>>;

    /// Lets an interface go together with the instance that it is attached to, or not.
    async fn modify_network_interface_attribute(
        &self,
        interface: &str,
        attachment: &str,
        delete_on_termination: bool,
    ) -> Result<()>;

    /// Begins to detach an interface, by the id of its attachment.
    async fn detach_network_interface(&self, attachment: &str) -> Result<()>;

    /// Deletes a network interface that is attached to nothing.
    async fn delete_network_interface(&self, interface: &str) -> Result<()>;

    /// Allocates an Elastic IP with its tags.
    async fn allocate_address(&self, tags: &Tags) -> Result<Address>;

    /// Associates an Elastic IP with an interface and returns the association's id, where the answer has one. An address
    /// that is associated with something else is refused, not moved.
    async fn associate_address(&self, allocation: &str, interface: &str) -> Result<Option<String>>;

    /// Takes an Elastic IP from what it is associated with.
    async fn disassociate_address(&self, association: &str) -> Result<()>;

    /// Gives an Elastic IP back.
    async fn release_address(&self, allocation: &str) -> Result<()>;

    /// Returns the Elastic IPs that `query` matches; ids are allocation ids. EC2 does not page them.
    async fn describe_addresses(&self, query: &Query) -> Result<Vec<Address>>;

    /// Asks whether a changing call would be allowed, with EC2's `DryRun`, and changes nothing.
    ///
    /// # Errors
    ///
    /// Whatever EC2 says but `DryRunOperation`, which is success.
    async fn dry_run(&self, call: &DryRun) -> Result<()>;

    /// Returns what an instance wrote to its console, of which EC2 keeps the last [`CONSOLE_KEPT`] bytes; empty while there
    /// is nothing.
    ///
    /// `latest` asks for what is there at this moment. EC2 has that of instances on the Nitro system only and refuses it for
    /// others with `UnsupportedOperation`; without it, what is told was taken a while after the last start.
    async fn get_console_output(&self, id: &str, latest: bool) -> Result<Vec<u8>>;

    /// Returns the limits of the account that EC2 itself tells.
    async fn describe_account_attributes(&self) -> Result<Vec<AccountLimit>>;

    /// Returns the ARN of the identity that makes the calls (`GetCallerIdentity` of STS); `None` when this
    /// implementation has no way to ask.
    async fn get_caller_identity(&self) -> Result<Option<String>>;
}

/// The most names that [`Ec2::describe_instance_types`] takes.
pub const TYPES_PER_CALL: usize = 100;

/// How many bytes of a console EC2 keeps.
pub const CONSOLE_KEPT: usize = 64 * 1024;

/// Connects a provider to EC2 and reads the metadata of the instance it runs on.
#[async_trait]
pub trait Connect: Debug + Send + Sync {
    /// Makes a client. It is made once for each provider value; credentials are fetched when the first call needs them.
    ///
    /// # Errors
    ///
    /// [`cloud_providers::ErrorKind::Config`] naming the option to set, for instance when no source tells a region.
    async fn connect(&self, access: &Access) -> Result<Arc<dyn Ec2>>;

    /// Reads one text below `/latest/meta-data/` of the instance metadata service; `None` when the path does not exist.
    ///
    /// # Errors
    ///
    /// When the service does not answer in time, or is switched off by `AWS_EC2_METADATA_DISABLED`.
    async fn metadata(&self, path: &str) -> Result<Option<String>>;
}

/// How to reach EC2, from the provider's options.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Access {
    /// The region; `None` leaves it to the SDK's chain and to instance metadata.
    pub region: Option<String>,
    /// Static keys; `None` leaves credentials to the SDK's chain.
    pub keys: Option<StaticKeys>,
    /// A profile of the shared configuration files.
    pub profile: Option<String>,
    /// Another address of the EC2 interface, for emulators and private endpoints; `None` leaves it to the SDK.
    pub endpoint: Option<String>,
    /// Another address of every interface of AWS, STS among them; `None` leaves it to the SDK.
    pub endpoint_all: Option<String>,
    /// The longest that one call may take.
    pub call_timeout: Duration,
}

/// A static pair of keys.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StaticKeys {
    /// Access key id.
    pub id: SecretString,
    /// Secret key.
    pub secret: SecretString,
    /// Session token of a temporary pair.
    pub session_token: Option<SecretString>,
}

impl StaticKeys {
    /// Makes a pair.
    pub fn new(id: SecretString, secret: SecretString, session_token: Option<SecretString>) -> Self {
        Self { id, secret, session_token }
    }
}
