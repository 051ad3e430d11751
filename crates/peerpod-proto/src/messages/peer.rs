//! `peerpod.Peer`: how programs of this project learn what the other end understands.
//!
//! An existing peer answers Unimplemented, which counts as level 0: nothing beyond the common protocol. The
//! exchange runs beside the work and never delays a start.

/// Name of the service on the wire.
pub const SERVICE: &str = "peerpod.Peer";
/// Exchanges levels: [`LevelRequest`] to [`LevelResponse`].
pub const LEVEL: &str = "Level";

/// The lowest level this version of the crate can speak.
pub const MIN_LEVEL: u32 = 0;
/// The highest level this version of the crate can speak.
pub const MAX_LEVEL: u32 = 1;

/// Picks the highest level that both ends speak, or nothing when the ranges do not meet.
pub fn common_level(ours: (u32, u32), theirs: (u32, u32)) -> Option<u32> {
    let highest = ours.1.min(theirs.1);
    (highest >= ours.0.max(theirs.0)).then_some(highest)
}

/// Introduces the caller.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LevelRequest {
    /// Name of the calling program.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Version of the calling program.
    #[prost(string, tag = "2")]
    pub version: String,
    /// Lowest level the caller speaks.
    #[prost(uint32, tag = "3")]
    pub min_level: u32,
    /// Highest level the caller speaks.
    #[prost(uint32, tag = "4")]
    pub max_level: u32,
}

/// Introduces the program that answers.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LevelResponse {
    /// Name of the answering program.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Version of the answering program.
    #[prost(string, tag = "2")]
    pub version: String,
    /// Lowest level the answering program speaks.
    #[prost(uint32, tag = "3")]
    pub min_level: u32,
    /// Highest level the answering program speaks.
    #[prost(uint32, tag = "4")]
    pub max_level: u32,
}
