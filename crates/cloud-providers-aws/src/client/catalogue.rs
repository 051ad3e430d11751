//! Types, images, key pairs and launch templates.

/// An instance type.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TypeInfo {
    /// Name.
    pub name: String,
    /// Virtual processors, where told.
    pub vcpus: Option<u32>,
    /// Memory in MiB, where told.
    pub memory_mib: Option<u64>,
    /// Number of GPUs, of all models together.
    pub gpus: u32,
    /// Model of the GPUs.
    pub gpu_model: Option<String>,
    /// EC2's words: `x86_64`, `arm64`, `i386`, …
    pub architectures: Vec<String>,
    /// `amd-sev-snp` is among the features of the processor.
    pub sev_snp: bool,
    /// EC2's words: `legacy-bios`, `uefi`.
    pub boot_modes: Vec<String>,
    /// The most interfaces that an instance of it may have, where told.
    pub max_interfaces: Option<u32>,
    /// EC2's words: `on-demand`, `spot`, …; empty when not told.
    pub usage_classes: Vec<String>,
}

/// A type and a zone in which it is offered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TypeOffering {
    /// Name of the type.
    pub instance_type: String,
    /// Availability zone.
    pub zone: String,
}

/// An image (AMI).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Image {
    /// Id.
    pub id: String,
    /// EC2's word: `pending`, `available`, `failed`, …
    pub state: String,
    /// EC2's word: `x86_64`, `arm64`, …
    pub architecture: Option<String>,
    /// EC2's word: `legacy-bios`, `uefi`, `uefi-preferred`; `None` when the image does not say.
    pub boot_mode: Option<String>,
    /// Device name of the root.
    pub root_device: Option<String>,
    /// Block devices, in the image's order.
    pub mappings: Vec<ImageMapping>,
    /// It supports enhanced networking, which current types need.
    pub ena: Option<bool>,
}

/// A block device of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageMapping {
    /// Device name.
    pub device: String,
    /// Size in GiB; `None` for what is no EBS volume, or tells no size.
    pub size_gib: Option<u32>,
}

/// A key pair.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyPair {
    /// Name.
    pub name: String,
}

/// Names a launch template.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LaunchTemplateRef {
    /// Name.
    pub name: String,
    /// Version: a number, `$Default` or `$Latest`.
    pub version: String,
}

impl LaunchTemplateRef {
    /// Names a version of a template.
    pub fn new(name: impl Into<String>, version: impl Into<String>) -> Self {
        Self { name: name.into(), version: version.into() }
    }
}

/// What a launch template says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LaunchTemplate {
    /// Id.
    pub id: String,
    /// Number of the version.
    pub version: Option<i64>,
    /// Image id; it may begin with `resolve:ssm:`.
    pub image: Option<String>,
    /// Instance type.
    pub instance_type: Option<String>,
    /// Key pair.
    pub key_name: Option<String>,
    /// Subnets of its interfaces, those that it names.
    pub subnets: Vec<String>,
    /// Security groups, of the template and of its interfaces.
    pub groups: Vec<String>,
    /// Number of interfaces that it describes.
    pub interfaces: u32,
    /// What it says about AMD SEV-SNP.
    pub sev_snp: Option<bool>,
    /// It asks for the spot market.
    pub spot: bool,
}
