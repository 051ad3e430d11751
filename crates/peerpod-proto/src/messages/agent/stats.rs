//! Usage of containers, metrics of the agent, and its reports of exhausted memory.

use std::collections::HashMap;

/// Asks for the usage of a container.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StatsContainerRequest {
    /// Id of the container.
    #[prost(string, tag = "1")]
    pub container_id: String,
}

/// Tells the usage of a container.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StatsContainerResponse {
    /// Counters of the control group.
    #[prost(message, optional, tag = "1")]
    pub cgroup_stats: Option<CgroupStats>,
    /// Counters of each interface.
    #[prost(message, repeated, tag = "2")]
    pub network_stats: Vec<NetworkStats>,
}

/// Counters of a control group.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CgroupStats {
    /// Processors.
    #[prost(message, optional, tag = "1")]
    pub cpu_stats: Option<CpuStats>,
    /// Memory.
    #[prost(message, optional, tag = "2")]
    pub memory_stats: Option<MemoryStats>,
    /// Processes.
    #[prost(message, optional, tag = "3")]
    pub pids_stats: Option<PidsStats>,
}

/// Usage of processors.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CpuStats {
    /// Times.
    #[prost(message, optional, tag = "1")]
    pub cpu_usage: Option<CpuUsage>,
    /// Throttling.
    #[prost(message, optional, tag = "2")]
    pub throttling_data: Option<ThrottlingData>,
}

/// Processor time, in nanoseconds.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CpuUsage {
    /// Total.
    #[prost(uint64, tag = "1")]
    pub total_usage: u64,
    /// By processor.
    #[prost(uint64, repeated, tag = "2")]
    pub percpu_usage: Vec<u64>,
    /// In the kernel.
    #[prost(uint64, tag = "3")]
    pub usage_in_kernelmode: u64,
    /// In user space.
    #[prost(uint64, tag = "4")]
    pub usage_in_usermode: u64,
}

/// How often a group was throttled.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ThrottlingData {
    /// Periods.
    #[prost(uint64, tag = "1")]
    pub periods: u64,
    /// Periods with throttling.
    #[prost(uint64, tag = "2")]
    pub throttled_periods: u64,
    /// Nanoseconds.
    #[prost(uint64, tag = "3")]
    pub throttled_time: u64,
}

/// Number of processes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PidsStats {
    /// Now.
    #[prost(uint64, tag = "1")]
    pub current: u64,
    /// Allowed.
    #[prost(uint64, tag = "2")]
    pub limit: u64,
}

/// Usage of memory.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MemoryStats {
    /// Bytes of cache.
    #[prost(uint64, tag = "1")]
    pub cache: u64,
    /// Memory.
    #[prost(message, optional, tag = "2")]
    pub usage: Option<MemoryData>,
    /// Memory and swap.
    #[prost(message, optional, tag = "3")]
    pub swap_usage: Option<MemoryData>,
    /// Kernel memory.
    #[prost(message, optional, tag = "4")]
    pub kernel_usage: Option<MemoryData>,
    /// Whether children count.
    #[prost(bool, tag = "5")]
    pub use_hierarchy: bool,
    /// Counters of the kernel by name.
    #[prost(map = "string, uint64", tag = "6")]
    pub stats: HashMap<String, u64>,
}

/// Usage of one kind of memory, in bytes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MemoryData {
    /// Now.
    #[prost(uint64, tag = "1")]
    pub usage: u64,
    /// At most so far.
    #[prost(uint64, tag = "2")]
    pub max_usage: u64,
    /// Failed allocations.
    #[prost(uint64, tag = "3")]
    pub failcnt: u64,
    /// Allowed.
    #[prost(uint64, tag = "4")]
    pub limit: u64,
}

/// Counters of an interface.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NetworkStats {
    /// Name of the interface.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Bytes received.
    #[prost(uint64, tag = "2")]
    pub rx_bytes: u64,
    /// Packets received.
    #[prost(uint64, tag = "3")]
    pub rx_packets: u64,
    /// Errors on receiving.
    #[prost(uint64, tag = "4")]
    pub rx_errors: u64,
    /// Packets dropped on receiving.
    #[prost(uint64, tag = "5")]
    pub rx_dropped: u64,
    /// Bytes sent.
    #[prost(uint64, tag = "6")]
    pub tx_bytes: u64,
    /// Packets sent.
    #[prost(uint64, tag = "7")]
    pub tx_packets: u64,
    /// Errors on sending.
    #[prost(uint64, tag = "8")]
    pub tx_errors: u64,
    /// Packets dropped on sending.
    #[prost(uint64, tag = "9")]
    pub tx_dropped: u64,
}

/// Asks for the metrics of the agent.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetMetricsRequest {}

/// Metrics of the agent.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Metrics {
    /// Text in the format of Prometheus.
    #[prost(string, tag = "1")]
    pub metrics: String,
}

/// Waits for a container to run out of memory.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetOomEventRequest {}

/// A container ran out of memory.
#[derive(Clone, PartialEq, prost::Message)]
pub struct OomEvent {
    /// Id of the container.
    #[prost(string, tag = "1")]
    pub container_id: String,
}
