#![doc = include_str!("../README.md")]

mod cgroups;
mod cloud;
mod config;
mod error;
mod host;
mod launch;
mod lock;
mod mounts;
mod netlink;
mod network;
mod process;
mod provider;
mod remove;
pub mod rootless;
mod spawn;
mod state;
#[cfg(feature = "testing")]
pub mod testing;

pub use cloud::LocalCloud;
pub use config::OPTIONS;
pub use provider::LocalProvider;

/// The name under which the provider is registered.
pub const NAME: &str = "local";

/// Where the guest programs are found inside an instance.
pub const GUEST_DIR: &str = "/run/peerpod-local/guest";

/// The NoCloud folder inside an instance, with `user-data`, `meta-data` and `vendor-data`.
pub const USER_DATA_DIR: &str = "/media/cidata";

cloud_providers::register! {
    name: NAME,
    summary: "namespaces on this host; isolates nothing: for development, tests and demonstrations",
    options: OPTIONS,
    cloud: LocalCloud::new(),
}
