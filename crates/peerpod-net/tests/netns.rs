//! Namespaces by name: made, entered, compared, deleted.

mod support;

use std::path::Path;

use peerpod_net::NetErrorKind;
use peerpod_net::netns::{self, NetnsGuard};
use support::{ip, unique};

#[tokio::test(flavor = "multi_thread")]
async fn code_runs_inside_and_the_caller_stays_outside() {
    let guard = support::netns("in").await;
    let outside = netns::current_inode().unwrap();
    let inside = netns::run_in(guard.path(), || async { netns::current_inode().unwrap() }).await.unwrap();
    assert_eq!(inside, netns::inode(guard.path()).unwrap());
    assert_ne!(inside, outside);
    assert_eq!(netns::current_inode().unwrap(), outside);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_namespace_has_its_loopback_up() {
    let guard = support::netns("lo").await;
    assert!(ip(guard.path(), "link show lo").contains("UP"));
    assert_eq!(support::echo(guard.path(), guard.path(), "127.0.0.1", 100).await, 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guard_deletes_its_namespace() {
    let guard = support::netns("guard").await;
    let path = guard.path().to_owned();
    assert!(path.exists());
    drop(guard);
    assert!(!path.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_is_repeatable() {
    let name = unique("twice");
    netns::create(&name).await.unwrap();
    netns::delete(&name).unwrap();
    netns::delete(&name).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_in_use_is_an_error_and_stays_what_it_was() {
    let guard = support::netns("used").await;
    let before = netns::inode(guard.path()).unwrap();
    let name = guard.path().file_name().unwrap().to_str().unwrap();
    assert_eq!(NetnsGuard::create(name).await.unwrap_err().kind(), NetErrorKind::NameTaken);
    assert_eq!(netns::inode(guard.path()).unwrap(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_paths_are_refused() {
    for name in ["", ".", "..", "a/b", "../x"] {
        assert_eq!(netns::create(name).await.unwrap_err().kind(), NetErrorKind::InvalidInput, "{name:?}");
        assert_eq!(netns::delete(name).unwrap_err().kind(), NetErrorKind::InvalidInput, "{name:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_namespace_is_an_error() {
    let path = Path::new("/run/netns/peerpod-net-was-never-here");
    assert_eq!(netns::inode(path).unwrap_err().kind(), NetErrorKind::NetnsMissing);
    let error = netns::run_in(path, || async {}).await.unwrap_err();
    assert_eq!(error.kind(), NetErrorKind::NetnsMissing);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_inside_is_an_error_outside() {
    let guard = support::netns("panic").await;
    let error = netns::run_in(guard.path(), || async { panic!("on purpose") as () }).await.unwrap_err();
    assert_eq!(error.kind(), NetErrorKind::System);
}
