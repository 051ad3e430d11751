//! Volumes.

use super::Tags;

/// An EBS volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Volume {
    /// Id.
    pub id: String,
    /// EC2's word: `creating`, `available`, `in-use`, `deleting`, `deleted`, `error`.
    pub state: String,
    /// Availability zone.
    pub zone: String,
    /// It may be attached to several instances at a time.
    pub multi_attach: bool,
    /// What it is attached to.
    pub attachments: Vec<VolumeAttachment>,
    /// Tags.
    pub tags: Tags,
}

/// What a volume is attached to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct VolumeAttachment {
    /// Instance.
    pub instance: String,
    /// Device name.
    pub device: String,
    /// EC2's word: `attaching`, `attached`, `detaching`, `detached`, `busy`.
    pub state: String,
    /// It goes with the instance.
    pub delete_on_termination: bool,
}
