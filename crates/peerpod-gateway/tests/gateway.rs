//! The gateway in this process, between shims on unix sockets and guests behind mutual TLS.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use peerpod_gateway::{AgentProxies, Gateway, GatewayErrorKind, ProxySpec, ProxyState, VolumeEntry};
use peerpod_proto::messages::agent::{CreateContainerRequest, WaitProcessResponse, method};
use peerpod_proto::messages::oci::{Linux, Mount, Spec};
use peerpod_proto::{Client, Code};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use common::{Guest, LIMIT, Pki, Pods, Valid, call, echo, free_address, wait_for, within};

async fn ready(gateway: &Gateway, sandbox: &str) -> peerpod_gateway::ReadyInfo {
    within(gateway.wait_ready(sandbox, CancellationToken::new())).await.expect("the guest is reached")
}

async fn not_ready(gateway: &Gateway, sandbox: &str) -> peerpod_gateway::GatewayError {
    within(gateway.wait_ready(sandbox, CancellationToken::new())).await.expect_err("the guest is not reached")
}

async fn state(gateway: &Gateway, sandbox: &str) -> ProxyState {
    let list = gateway.list().await.unwrap();
    list.into_iter().find(|status| status.sandbox_id == sandbox).expect("it is registered").state
}

#[tokio::test]
async fn calls_reach_the_guest_over_mutual_tls() {
    let (pki, pods, gateway) = (Pki::new(Valid::Now), Pods::new(), Gateway::new());
    let guest = Guest::start(Some(pki.acceptor())).await;
    gateway.register(pods.spec("s1", guest.address).with_tls(pki.spec())).await.unwrap();
    let info = ready(&gateway, "s1").await;
    assert_eq!(info.target, guest.address.to_string());
    let shim = pods.shim("s1").await;
    echo(&shim, "hello").await;
    let unknown = call(&shim, "FromTheFuture", "x").await.unwrap_err();
    assert_eq!(unknown.message, "method FromTheFuture", "the guest answers, not the gateway");
    let status = gateway.list().await.unwrap().remove(0);
    assert_eq!((status.sandbox_id.as_str(), status.fronts), ("s1", 1));
    assert!(matches!(status.state, ProxyState::Connected { connections: 1, .. }));
}

#[tokio::test]
async fn the_agent_socket_is_private_and_goes_with_the_sandbox() {
    let (pods, gateway) = (Pods::new(), Gateway::new());
    let guest = Guest::start(None).await;
    gateway.register(pods.spec("s1", guest.address)).await.unwrap();
    let socket = pods.socket("s1");
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&socket), mode(socket.parent().unwrap())), (0o600, 0o700));
    ready(&gateway, "s1").await;
    let shim = pods.shim("s1").await;
    echo(&shim, "x").await;
    within(gateway.unregister("s1")).await.unwrap();
    within(shim.closed()).await;
    assert!(!socket.exists());
    assert!(gateway.list().await.unwrap().is_empty());
    gateway.unregister("s1").await.unwrap();
    assert_eq!(not_ready(&gateway, "s1").await.kind(), GatewayErrorKind::NotFound);
    // So it does when the guest was never reached.
    let lost = pods.spec("s2", free_address().await).with_connect_timeout(Duration::from_millis(100));
    gateway.register(lost).await.unwrap();
    assert!(pods.socket("s2").exists());
    assert_eq!(not_ready(&gateway, "s2").await.kind(), GatewayErrorKind::Timeout);
    within(gateway.unregister("s2")).await.unwrap();
    assert!(!pods.socket("s2").exists());
}

#[tokio::test]
async fn a_guest_that_begins_to_listen_is_reached_at_once() {
    let (pki, pods, gateway) = (Pki::new(Valid::Now), Pods::new(), Gateway::new());
    let address = free_address().await;
    gateway.register(pods.spec("s1", address).with_tls(pki.spec())).await.unwrap();
    test_support::wait_for_async("several attempts are refused", LIMIT, || async {
        match state(&gateway, "s1").await {
            ProxyState::Connecting { attempts, error: Some(_), .. } => (attempts > 5).then_some(()),
            _ => None,
        }
    })
    .await
    .unwrap();
    let guest = Guest::listen(address, Some(pki.acceptor())).await;
    wait_for("the guest is dialled", || guest.accepted.load(Ordering::SeqCst) == 1).await;
    assert!(ready(&gateway, "s1").await.attempts > 5);
}

#[tokio::test]
async fn a_front_that_came_early_is_served_once_the_guest_is_there() {
    let (pods, gateway) = (Pods::new(), Gateway::new());
    let address = free_address().await;
    gateway.register(pods.spec("s1", address)).await.unwrap();
    let shim = pods.shim("s1").await;
    let early = tokio::spawn(async move { call(&shim, "Echo", "early").await });
    let _guest = Guest::listen(address, None).await;
    assert_eq!(within(early).await.unwrap().unwrap(), "early");
}

#[tokio::test]
async fn a_cut_link_is_made_again_under_the_open_front() {
    let (pki, pods, gateway) = (Pki::new(Valid::Now), Pods::new(), Gateway::new());
    let guest = Guest::start(Some(pki.acceptor())).await;
    gateway.register(pods.spec("s1", guest.address).with_tls(pki.spec())).await.unwrap();
    let shim = pods.shim("s1").await;
    echo(&shim, "before").await;
    let waiting = tokio::spawn({
        let shim = shim.clone();
        async move { call(&shim, method::WAIT_PROCESS, "").await }
    });
    wait_for("the process is waited for", || guest.agent.running.load(Ordering::SeqCst) == 1).await;
    guest.cut();
    wait_for("it is waited for again", || guest.agent.waits.load(Ordering::SeqCst) == 2).await;
    echo(&shim, "after").await;
    assert!(matches!(state(&gateway, "s1").await, ProxyState::Connected { connections: 2, .. }));
    wait_for("the old waiting ended", || guest.agent.running.load(Ordering::SeqCst) == 1).await;
    guest.agent.exit.notify_one();
    let exit = within(waiting).await.unwrap().unwrap();
    assert_eq!(WaitProcessResponse::decode(exit).unwrap().status, 7);
}

#[tokio::test]
async fn the_silent_connection_of_a_shim_is_kept_open() {
    let (pods, gateway) = (Pods::new(), Gateway::new());
    let guest = Guest::start(None).await;
    gateway.register(pods.spec("s1", guest.address)).await.unwrap();
    let mut log = UnixStream::connect(pods.socket("s1")).await.unwrap();
    echo(&pods.shim("s1").await, "x").await;
    let mut byte = [0];
    let nothing = tokio::time::timeout(Duration::from_millis(50), log.read(&mut byte)).await;
    assert!(nothing.is_err(), "nothing comes and nothing ends");
}

#[tokio::test]
async fn wrong_certificates_end_the_dialling_with_one_clear_error() {
    let (right, other, expired) = (Pki::new(Valid::Now), Pki::new(Valid::Now), Pki::new(Valid::Past));
    let mut wrong_name = right.spec();
    wrong_name.server_name = "podvm-other-89abcdef".into();
    let mut unknown_ca = right.spec();
    unknown_ca.ca_pem.clone_from(&other.ca);
    let mut unknown_client = right.spec();
    (unknown_client.cert_pem, unknown_client.key_pem) =
        (other.client.0.clone(), other.client.1.as_str().into());
    let cases = [
        ("unknown-ca", &right, unknown_ca, "invalid peer certificate"),
        ("wrong-name", &right, wrong_name, "podvm-other-89abcdef"),
        ("expired", &expired, expired.spec(), "expired"),
        ("unknown-client", &right, unknown_client, "unknown issuer"),
    ];
    for (sandbox, pki, tls, reason) in cases {
        let (pods, gateway) = (Pods::new(), Gateway::new());
        let guest = Guest::start(Some(pki.acceptor())).await;
        let name = tls.server_name.clone();
        gateway.register(pods.spec(sandbox, guest.address).with_tls(tls)).await.unwrap();
        let error = not_ready(&gateway, sandbox).await;
        assert_eq!(error.kind(), GatewayErrorKind::Tls, "{sandbox}: {error}");
        let text = error.to_string();
        assert!(text.contains(&name) && text.contains(reason), "{sandbox}: {text}");
        assert!(guest.accepted.load(Ordering::SeqCst) <= 5, "{sandbox} is given up after a few tries");
        assert!(matches!(state(&gateway, sandbox).await, ProxyState::Failed { .. }));
        within(gateway.unregister(sandbox)).await.unwrap();
    }
}

#[tokio::test]
async fn a_guest_that_never_comes_is_given_up_in_time() {
    let (pods, gateway) = (Pods::new(), Gateway::new());
    let address = free_address().await;
    let spec = pods.spec("s1", address).with_connect_timeout(Duration::from_millis(200));
    gateway.register(spec).await.unwrap();
    let error = not_ready(&gateway, "s1").await;
    assert_eq!(error.kind(), GatewayErrorKind::Timeout);
    let text = error.to_string();
    assert!(
        text.contains(&address.to_string()) && text.contains("200ms") && text.contains("refused"),
        "{text}"
    );
    let refused = call(&pods.shim("s1").await, "Echo", "x").await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message.contains(&format!("no connection to the guest at {address}")), "{refused}");
}

#[tokio::test]
async fn waiting_for_a_guest_can_be_cancelled() {
    let (pods, gateway) = (Pods::new(), Gateway::new());
    gateway.register(pods.spec("s1", free_address().await)).await.unwrap();
    let cancel = CancellationToken::new();
    let waiting = tokio::spawn({
        let (gateway, cancel) = (gateway.clone(), cancel.clone());
        async move { gateway.wait_ready("s1", cancel).await }
    });
    cancel.cancel();
    assert_eq!(within(waiting).await.unwrap().unwrap_err().kind(), GatewayErrorKind::Cancelled);
    let waiting = tokio::spawn({
        let gateway = gateway.clone();
        async move { gateway.wait_ready("s1", CancellationToken::new()).await }
    });
    tokio::task::yield_now().await;
    within(gateway.unregister("s1")).await.unwrap();
    assert_eq!(within(waiting).await.unwrap().unwrap_err().kind(), GatewayErrorKind::NotFound);
}

#[tokio::test]
async fn registering_again_is_fine_and_another_specification_is_not() {
    let (pods, gateway) = (Pods::new(), Gateway::new());
    let guest = Guest::start(None).await;
    let spec = pods.spec("s1", guest.address);
    gateway.register(spec.clone()).await.unwrap();
    let shim = pods.shim("s1").await;
    gateway.register(spec.clone()).await.unwrap();
    echo(&shim, "still there").await;
    let other = spec.with_volumes(vec![VolumeEntry::new(0, "/a", "ext4", "disk")]);
    let error = gateway.register(other).await.unwrap_err();
    assert_eq!(error.kind(), GatewayErrorKind::Conflict);
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let (pods, gateway) = (Pods::new(), Gateway::new());
    let guest = Guest::start(None).await;
    let path = pods.socket("s1");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "a listener leaves its file behind");
    gateway.register(pods.spec("s1", guest.address)).await.unwrap();
    echo(&pods.shim("s1").await, "x").await;

    let taken = pods.socket("s2");
    std::fs::create_dir_all(taken.parent().unwrap()).unwrap();
    let _live = UnixListener::bind(&taken).unwrap();
    let error = gateway.register(pods.spec("s2", guest.address)).await.unwrap_err();
    assert_eq!(error.kind(), GatewayErrorKind::SocketInUse);
    assert!(error.to_string().contains(&taken.display().to_string()));
    // The path of another sandbox is a live one too.
    let error = gateway.register(ProxySpec::new("s3", &path, ["127.0.0.1:1".into()])).await.unwrap_err();
    assert_eq!(error.kind(), GatewayErrorKind::SocketInUse);

    let file = pods.socket("s4");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, "precious").unwrap();
    let error = gateway.register(pods.spec("s4", guest.address)).await.unwrap_err();
    assert_eq!(error.kind(), GatewayErrorKind::Invalid);
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    assert_eq!(gateway.list().await.unwrap().len(), 1, "a refused sandbox leaves nothing");
}

#[tokio::test]
async fn a_specification_that_cannot_be_right_is_refused_with_its_reason() {
    let (pki, pods, gateway) = (Pki::new(Valid::Now), Pods::new(), Gateway::new());
    let address = free_address().await;
    let good = pods.spec("s1", address);
    let tls = |change: fn(&mut peerpod_gateway::TlsSpec)| {
        let mut tls = pki.spec();
        change(&mut tls);
        good.clone().with_tls(tls)
    };
    let socket = |path: &str| ProxySpec::new("s1", path, [address.to_string()]);
    let cases = [
        (ProxySpec::new("", pods.socket("x"), [address.to_string()]), "names no sandbox"),
        (ProxySpec::new("s1", pods.socket("x"), []), "no target"),
        (ProxySpec::new("s1", pods.socket("x"), ["10.0.0.1".into()]), "host:port"),
        (socket("relative/agent.ttrpc"), "not absolute"),
        (socket(&format!("/{}", "x".repeat(120))), "107 bytes"),
        (socket("/tmp/a:b/agent.ttrpc"), "colon"),
        (tls(|tls| tls.ca_pem.clear()), "CA certificate for servers"),
        (tls(|tls| tls.key_pem = "nonsense".into()), "client key"),
        (tls(|tls| tls.server_name = "not a name".into()), "not a name"),
        (tls(|tls| tls.min_version = "VersionTLS10".into()), "TLS_MIN_VERSION"),
    ];
    for (spec, reason) in cases {
        let error = gateway.register(spec).await.unwrap_err();
        assert_eq!(error.kind(), GatewayErrorKind::Invalid);
        assert!(error.to_string().contains(reason), "{error} should contain {reason}");
    }
    assert!(gateway.list().await.unwrap().is_empty());
    assert_eq!(std::fs::read_dir(pods.0.path()).unwrap().count(), 0, "no directory is left");
}

#[tokio::test]
async fn garbage_on_one_socket_disturbs_no_other_of_eight() {
    let (pki, pods, gateway) = (Pki::new(Valid::Now), Pods::new(), Gateway::new());
    let mut guests = Vec::new();
    for number in 0..8 {
        let guest = Guest::start(Some(pki.acceptor())).await;
        let spec = pods.spec(&format!("s{number}"), guest.address).with_tls(pki.spec());
        gateway.register(spec).await.unwrap();
        guests.push(guest);
    }
    let mut shims = Vec::new();
    for number in 0..8 {
        ready(&gateway, &format!("s{number}")).await;
        shims.push(pods.shim(&format!("s{number}")).await);
    }
    let mut garbage = UnixStream::connect(pods.socket("s3")).await.unwrap();
    let noise: Vec<u8> = (0..200_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
    garbage.write_all(&noise).await.unwrap();
    guests[5].cut();
    for (number, shim) in shims.iter().enumerate().filter(|(number, _)| *number != 5) {
        echo(shim, "fine").await;
        assert!(matches!(state(&gateway, &format!("s{number}")).await, ProxyState::Connected { .. }));
    }
    drop(garbage);
    echo(&shims[3], "also fine").await;
    echo(&shims[5], "back again").await;
    let begin = std::time::Instant::now();
    within(gateway.shutdown()).await;
    // One after the other they may take two seconds each.
    assert!(begin.elapsed() < Duration::from_secs(12), "all end side by side");
    for number in 0..8 {
        assert!(!pods.socket(&format!("s{number}")).exists());
    }
}

#[tokio::test]
async fn the_level_of_the_forwarder_is_learned_beside_the_work() {
    let (pods, gateway) = (Pods::new(), Gateway::new());
    for (sandbox, knows, level) in [("new", true, 1), ("old", false, 0)] {
        let guest = Guest::start(None).await;
        guest.agent.knows_levels.store(knows, Ordering::SeqCst);
        gateway.register(pods.spec(sandbox, guest.address)).await.unwrap();
        ready(&gateway, sandbox).await;
        test_support::wait_for_async("the level is known", LIMIT, || async {
            let list = gateway.list().await.unwrap();
            list.into_iter().find(|status| status.sandbox_id == sandbox)?.peer_level
        })
        .await
        .map(|known| assert_eq!(known, level))
        .unwrap();
    }
}

fn create(oci: Option<Spec>) -> Bytes {
    let request = CreateContainerRequest { container_id: "c1".into(), oci, ..Default::default() };
    request.encode_to_vec().into()
}

#[tokio::test]
async fn create_container_reaches_the_guest_with_its_annotations() {
    let (pods, gateway) = (Pods::new(), Gateway::new());
    let guest = Guest::start(None).await;
    let source = "/var/lib/kubelet/pods/u1/volumes/kubernetes.io~csi/pvc-1/mount";
    let spec = pods
        .spec("s1", guest.address)
        .with_volumes(vec![VolumeEntry::new(0, source, "xfs", "vol-0abc").with_encryption("luks2", "k/1")]);
    gateway.register(spec).await.unwrap();
    let shim = pods.shim("s1").await;
    let mount = Mount {
        destination: "/data".into(),
        source: source.into(),
        kind: "bind".into(),
        ..Default::default()
    };
    let oci = Spec { mounts: vec![mount], linux: Some(Linux::default()), ..Default::default() };
    call(&shim, method::CREATE_CONTAINER, create(Some(oci))).await.unwrap();
    let got = CreateContainerRequest::decode(guest.agent.created.lock().unwrap()[0].clone()).unwrap();
    assert_eq!(
        got.oci.unwrap().annotations["io.confidentialcontainers.org.cloud_volumes"],
        r#"{"vol-0":{"mount_point":"/data","fs_type":"xfs","lun":"0","disk_id":"vol-0abc","encrypt_type":"luks2","key_id":"k/1"}}"#
    );
}

#[tokio::test]
async fn create_container_without_a_specification_is_an_error_of_that_call() {
    let (pods, gateway) = (Pods::new(), Gateway::new());
    let guest = Guest::start(None).await;
    gateway.register(pods.spec("s1", guest.address)).await.unwrap();
    let shim = pods.shim("s1").await;
    let status = call(&shim, method::CREATE_CONTAINER, create(None)).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message.contains("c1") && status.message.contains("OCI"), "{}", status.message);
    let status = call(&shim, method::CREATE_CONTAINER, "\x0a\x7f").await.unwrap_err();
    assert_eq!(status.code(), Code::Internal);
    assert!(guest.agent.created.lock().unwrap().is_empty());
    echo(&shim, "on").await;
}

#[tokio::test]
async fn a_dropped_gateway_takes_its_sockets_along() {
    let pods = Pods::new();
    let guest = Guest::start(None).await;
    let gateway = Gateway::new();
    gateway.register(pods.spec("s1", guest.address)).await.unwrap();
    let shim: Client = pods.shim("s1").await;
    echo(&shim, "x").await;
    drop(gateway);
    within(shim.closed()).await;
    wait_for("the socket is gone", || !pods.socket("s1").exists()).await;
}

#[test]
fn keys_show_in_no_debug_output() {
    let pki = Pki::new(Valid::Now);
    let spec = ProxySpec::new("s1", "/run/x", ["h:1".into()]).with_tls(pki.spec());
    let shown = format!("{spec:?}");
    assert!(shown.contains("SecretPem(..)") && !shown.contains("PRIVATE KEY"), "{shown}");
}
