//! `grpc.AgentService`: the messages of the Kata agent that are read, changed or answered here.
//!
//! The service has more methods than are named; a relay forwards those as bytes. As with [`super::oci`], a
//! message that is forwarded after a change is edited with [`crate::wire`] and not encoded again.

mod container;
mod network;
mod process;
mod sandbox;
mod stats;

pub use container::*;
pub use network::*;
pub use process::*;
pub use sandbox::*;
pub use stats::*;

/// Name of the service on the wire.
pub const SERVICE: &str = "grpc.AgentService";

/// `google.protobuf.Empty`: the answer of most methods.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Empty {}

/// Names of the methods.
pub mod method {
    /// [`super::CreateContainerRequest`] to [`super::Empty`].
    pub const CREATE_CONTAINER: &str = "CreateContainer";
    /// [`super::StartContainerRequest`] to [`super::Empty`].
    pub const START_CONTAINER: &str = "StartContainer";
    /// [`super::RemoveContainerRequest`] to [`super::Empty`].
    pub const REMOVE_CONTAINER: &str = "RemoveContainer";
    /// [`super::ExecProcessRequest`] to [`super::Empty`].
    pub const EXEC_PROCESS: &str = "ExecProcess";
    /// [`super::SignalProcessRequest`] to [`super::Empty`].
    pub const SIGNAL_PROCESS: &str = "SignalProcess";
    /// [`super::WaitProcessRequest`] to [`super::WaitProcessResponse`]; answered when the process ends.
    pub const WAIT_PROCESS: &str = "WaitProcess";
    /// [`super::UpdateContainerRequest`] to [`super::Empty`].
    pub const UPDATE_CONTAINER: &str = "UpdateContainer";
    /// [`super::UpdateEphemeralMountsRequest`] to [`super::Empty`].
    pub const UPDATE_EPHEMERAL_MOUNTS: &str = "UpdateEphemeralMounts";
    /// [`super::StatsContainerRequest`] to [`super::StatsContainerResponse`].
    pub const STATS_CONTAINER: &str = "StatsContainer";
    /// [`super::PauseContainerRequest`] to [`super::Empty`].
    pub const PAUSE_CONTAINER: &str = "PauseContainer";
    /// [`super::ResumeContainerRequest`] to [`super::Empty`].
    pub const RESUME_CONTAINER: &str = "ResumeContainer";
    /// [`super::WriteStreamRequest`] to [`super::WriteStreamResponse`].
    pub const WRITE_STDIN: &str = "WriteStdin";
    /// [`super::ReadStreamRequest`] to [`super::ReadStreamResponse`]; answered when there is output.
    pub const READ_STDOUT: &str = "ReadStdout";
    /// [`super::ReadStreamRequest`] to [`super::ReadStreamResponse`]; answered when there is output.
    pub const READ_STDERR: &str = "ReadStderr";
    /// [`super::CloseStdinRequest`] to [`super::Empty`].
    pub const CLOSE_STDIN: &str = "CloseStdin";
    /// [`super::TtyWinResizeRequest`] to [`super::Empty`].
    pub const TTY_WIN_RESIZE: &str = "TtyWinResize";
    /// [`super::UpdateInterfaceRequest`] to [`super::Interface`].
    pub const UPDATE_INTERFACE: &str = "UpdateInterface";
    /// [`super::UpdateRoutesRequest`] to [`super::Routes`].
    pub const UPDATE_ROUTES: &str = "UpdateRoutes";
    /// [`super::ListInterfacesRequest`] to [`super::Interfaces`].
    pub const LIST_INTERFACES: &str = "ListInterfaces";
    /// [`super::ListRoutesRequest`] to [`super::Routes`].
    pub const LIST_ROUTES: &str = "ListRoutes";
    /// [`super::GetMetricsRequest`] to [`super::Metrics`].
    pub const GET_METRICS: &str = "GetMetrics";
    /// [`super::CreateSandboxRequest`] to [`super::Empty`].
    pub const CREATE_SANDBOX: &str = "CreateSandbox";
    /// [`super::DestroySandboxRequest`] to [`super::Empty`]; runtime-rs never sends it.
    pub const DESTROY_SANDBOX: &str = "DestroySandbox";
    /// [`super::OnlineCpuMemRequest`] to [`super::Empty`].
    pub const ONLINE_CPU_MEM: &str = "OnlineCPUMem";
    /// [`super::ReseedRandomDevRequest`] to [`super::Empty`].
    pub const RESEED_RANDOM_DEV: &str = "ReseedRandomDev";
    /// [`super::GuestDetailsRequest`] to [`super::GuestDetailsResponse`].
    pub const GET_GUEST_DETAILS: &str = "GetGuestDetails";
    /// [`super::SetGuestDateTimeRequest`] to [`super::Empty`].
    pub const SET_GUEST_DATE_TIME: &str = "SetGuestDateTime";
    /// [`super::CopyFileRequest`] to [`super::Empty`].
    pub const COPY_FILE: &str = "CopyFile";
    /// [`super::GetOomEventRequest`] to [`super::OomEvent`]; answered at the next event.
    pub const GET_OOM_EVENT: &str = "GetOOMEvent";
    /// [`super::SetPolicyRequest`] to [`super::Empty`].
    pub const SET_POLICY: &str = "SetPolicy";

    /// The methods that only wait for something to happen. They carry no deadline, and asking again after a
    /// broken connection does no harm.
    pub const WAITING: [&str; 4] = [WAIT_PROCESS, GET_OOM_EVENT, READ_STDOUT, READ_STDERR];
}
