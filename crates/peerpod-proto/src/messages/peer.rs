//! `peerpod.Peer`: how programs of this project learn what the other end understands.
//!
//! An existing peer answers Unimplemented, which counts as level 0: nothing beyond the common protocol. The
//! exchange runs beside the work and never delays a start.
//!
//! | level | what it added |
//! |---|---|
//! | 0 | nothing: an existing peer |
//! | 1 | the exchange itself |
//! | 2 | sessions: calls and answers that outlive a connection, see [`crate::relay`] |

use bytes::Bytes;

/// Name of the service on the wire.
pub const SERVICE: &str = "peerpod.Peer";
/// Exchanges levels: [`LevelRequest`] to [`LevelResponse`].
pub const LEVEL: &str = "Level";

/// The lowest level this version of the crate can speak.
pub const MIN_LEVEL: u32 = 0;
/// The highest level this version of the crate can speak.
pub const MAX_LEVEL: u32 = 2;
/// The level from which sessions are kept.
pub const LEVEL_SESSIONS: u32 = 2;

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
    /// Id of the session that begins with this connection; empty for none.
    #[prost(bytes = "bytes", tag = "5")]
    pub session: Bytes,
    /// Id of the session to go on with, instead; empty for none.
    #[prost(bytes = "bytes", tag = "6")]
    pub resume: Bytes,
    /// How many responses of that session have been received.
    #[prost(uint64, tag = "7")]
    pub received: u64,
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
    /// Whether a session is kept: the one to go on with, else the one that begins.
    #[prost(bool, tag = "5")]
    pub kept: bool,
    /// Whether it is the one to go on with.
    #[prost(bool, tag = "6")]
    pub resumed: bool,
    /// The highest stream id of a request received in it.
    #[prost(uint32, tag = "7")]
    pub received: u32,
    /// How long it is kept without a connection, in milliseconds.
    #[prost(uint64, tag = "8")]
    pub grace_millis: u64,
}
