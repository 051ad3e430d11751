//! Processes of a container: start, signal, wait, and their streams.

use bytes::Bytes;

use super::StringUser;
use crate::messages::oci::Process;

/// Starts a further process in a container.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ExecProcessRequest {
    /// Id of the container.
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// Id of the new process.
    #[prost(string, tag = "2")]
    pub exec_id: String,
    /// User by name.
    #[prost(message, optional, tag = "3")]
    pub string_user: Option<StringUser>,
    /// What to start.
    #[prost(message, optional, tag = "4")]
    pub process: Option<Process>,
}

/// Sends a signal.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SignalProcessRequest {
    /// Id of the container.
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// Id of the process; empty for all processes of the container.
    #[prost(string, tag = "2")]
    pub exec_id: String,
    /// Number of the signal.
    #[prost(uint32, tag = "3")]
    pub signal: u32,
}

/// Waits for the end of a process.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WaitProcessRequest {
    /// Id of the container.
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// Id of the process; empty for the first one.
    #[prost(string, tag = "2")]
    pub exec_id: String,
}

/// Tells how a process ended.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WaitProcessResponse {
    /// Exit code, or 128 plus the signal.
    #[prost(int32, tag = "1")]
    pub status: i32,
}

/// Writes to the standard input of a process.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WriteStreamRequest {
    /// Id of the container.
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// Id of the process.
    #[prost(string, tag = "2")]
    pub exec_id: String,
    /// What to write.
    #[prost(bytes = "bytes", tag = "3")]
    pub data: Bytes,
}

/// Tells how much was written.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WriteStreamResponse {
    /// Number of bytes.
    #[prost(uint32, tag = "1")]
    pub len: u32,
}

/// Reads from the output of a process.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReadStreamRequest {
    /// Id of the container.
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// Id of the process.
    #[prost(string, tag = "2")]
    pub exec_id: String,
    /// Most bytes to return.
    #[prost(uint32, tag = "3")]
    pub len: u32,
}

/// Output of a process.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReadStreamResponse {
    /// The bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub data: Bytes,
}

/// Closes the standard input of a process.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CloseStdinRequest {
    /// Id of the container.
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// Id of the process.
    #[prost(string, tag = "2")]
    pub exec_id: String,
}

/// Sets the size of a terminal.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TtyWinResizeRequest {
    /// Id of the container.
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// Id of the process.
    #[prost(string, tag = "2")]
    pub exec_id: String,
    /// Rows.
    #[prost(uint32, tag = "3")]
    pub row: u32,
    /// Columns.
    #[prost(uint32, tag = "4")]
    pub column: u32,
}
