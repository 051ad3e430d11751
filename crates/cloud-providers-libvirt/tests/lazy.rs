//! A program with this provider starts without libvirt, and loads it with the first provider.
//!
//! Nothing else is in this file, so that nothing else loads it. Linkers other than rustc's own on x86-64 may keep the
//! library among what a program needs to be started.
#![cfg(target_arch = "x86_64")]

use cloud_providers::{Cloud, MapEnv};
use cloud_providers_libvirt::LibvirtCloud;

#[tokio::test]
async fn libvirt_is_loaded_by_the_first_provider_and_not_before() {
    let is_loaded = || std::fs::read_to_string("/proc/self/maps").unwrap().contains("libvirt.so");
    let mut cloud = LibvirtCloud::new();
    cloud.load_env(&MapEnv::new([("LIBVIRT_URI", "test:///default")])).unwrap();
    assert!(cloud.problems().is_empty());
    assert!(!is_loaded());
    cloud.new_provider().await.unwrap().teardown().await.unwrap();
    assert!(is_loaded());
}
