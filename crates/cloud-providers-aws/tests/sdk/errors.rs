//! Failures, from answers as EC2 writes them to the error of the provider.

use std::time::Duration;

use cloud_providers::{ErrorKind, Retry};
use cloud_providers_aws::client::{Query, RunInstances};
use tokio::net::TcpListener;

use crate::server::{Answer, Server, access, ec2, ec2_error};
use cloud_providers_aws::client::{Connect, SdkConnect};

/// One code of each kind, with the status and the text that EC2 sends.
const TABLE: &[(u16, &str, &str, &str)] = &[
    (401, "AuthFailure", "AWS was not able to validate the provided access credentials", "auth"),
    (400, "RequestExpired", "Request has expired.", "auth"),
    (403, "UnauthorizedOperation", "You are not authorized to perform this operation.", "permission"),
    (400, "OptInRequired", "You are not subscribed to this service.", "permission"),
    (
        500,
        "InsufficientInstanceCapacity",
        "We currently do not have sufficient m6a.large capacity in the Availability Zone you requested \
         (us-east-1a).",
        "capacity",
    ),
    (400, "InsufficientFreeAddressesInSubnet", "Not enough free addresses in subnet subnet-1", "capacity"),
    (400, "Unsupported", "Your requested instance type (m6a.large) is not supported here.", "capacity"),
    (400, "VcpuLimitExceeded", "You have requested more vCPU capacity than your current limit of 8", "quota"),
    (400, "AddressLimitExceeded", "The maximum number of addresses has been reached.", "quota"),
    (503, "RequestLimitExceeded", "Request limit exceeded.", "throttled"),
    (400, "InvalidInstanceID.NotFound", "The instance ID 'i-0123456789abcdef0' does not exist", "not_found"),
    (
        400,
        "IdempotentParameterMismatch",
        "The request uses the same client token as a previous one",
        "conflict",
    ),
    (400, "VolumeInUse", "vol-1 is already attached to an instance", "conflict"),
    (503, "Unavailable", "The service is unavailable. Please try again shortly.", "transient"),
    (500, "InternalError", "An internal error has occurred", "transient"),
    (400, "IncorrectInstanceState", "The instance 'i-1' is not in the 'running' state.", "transient"),
    (400, "InvalidAMIID.NotFound", "The image id '[ami-0deadbeefdeadbeef]' does not exist", "config"),
    (400, "InvalidParameterValue", "Invalid value 'zz.bad' for InstanceType.", "config"),
    (400, "UnsupportedOperation", "The operation is not supported for this instance.", "unsupported"),
    (400, "UnknownParameter", "The parameter Foo is not recognized", "internal"),
    (400, "NeverHeardOf", "A code that no table has", "internal"),
    (502, "NeverHeardOf", "A code that no table has", "transient"),
];

#[tokio::test]
async fn each_code_becomes_its_kind_and_nothing_of_the_answer_is_lost() {
    for (status, code, message, kind) in TABLE.iter().copied() {
        let server = Server::always(ec2_error(status, code, message)).await;
        let error = server.connect().await.run_instances(&RunInstances::default()).await.unwrap_err();
        assert_eq!(error.kind().to_string(), kind, "{code}: {error:?}");
        assert_eq!((error.code(), error.cloud_message()), (Some(code), Some(message)));
        assert_eq!(error.operation(), Some("RunInstances"));
        let text = error.to_string();
        assert!(text.contains("ea966190-f9aa-478e-9ede-example"), "the request id is not in {text}");
        // Whoever retries does so above: one question, one call.
        assert_eq!(server.asked().len(), 1, "{code}");
    }
}

#[tokio::test]
async fn capacity_is_tried_elsewhere_and_the_delay_of_the_server_is_followed() {
    let server = Server::always(ec2_error(500, "InsufficientInstanceCapacity", "no room")).await;
    let error = server.connect().await.run_instances(&RunInstances::default()).await.unwrap_err();
    assert_eq!(error.retry(), Retry::Elsewhere);

    let slow = ec2_error(503, "RequestLimitExceeded", "slow down").with_header("retry-after", "7");
    let server = Server::always(slow).await;
    let error = server.connect().await.describe_addresses(&Query::default()).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Throttled);
    assert_eq!(error.retry(), Retry::After { delay: Duration::from_secs(7) });
}

#[tokio::test]
async fn an_answer_that_is_not_of_ec2_is_shown_and_judged_by_its_status() {
    for (status, kind) in [
        (503, ErrorKind::Transient),
        (429, ErrorKind::Throttled),
        (407, ErrorKind::Internal),
        (403, ErrorKind::Permission),
    ] {
        let page =
            Answer::new(status, "<html><head><title>Proxy</title></head>\n\n<body>go away</body></html>");
        let server = Server::always(page).await;
        let error = server.connect().await.describe_addresses(&Query::default()).await.unwrap_err();
        assert_eq!(*error.kind(), kind, "{error:?}");
        assert!(error.to_string().contains("go away"), "{error}");
    }
    // A proxy that signs people in answers every question with its page: no list may be taken for empty then.
    for page in ["<html>Please sign in</html>", "not even markup", ""] {
        let server = Server::always(Answer::ok(page)).await;
        let ec2 = server.connect().await;
        let error = ec2.describe_addresses(&Query::default()).await.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Transient, "{page:?}: {error:?}");
        let error = ec2.run_instances(&RunInstances::default()).await.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Transient, "{page:?}: {error:?}");
    }
}

#[tokio::test]
async fn an_answer_without_the_instance_is_an_error_and_no_panic() {
    for fields in ["", "<instancesSet/>", "<instancesSet><item/></instancesSet>"] {
        let server = Server::always(ec2("RunInstances", fields)).await;
        let error = server.connect().await.run_instances(&RunInstances::default()).await.unwrap_err();
        assert!(error.to_string().contains("missing: inst"), "{fields}: {error}");
    }
    let server = Server::always(ec2("CreateNetworkInterface", "")).await;
    let made = server.connect().await.create_network_interface(&Default::default()).await;
    assert!(made.unwrap_err().to_string().contains("missing: networkInterface"));
}

#[tokio::test]
async fn without_an_answer_nobody_knows_and_the_call_ends_in_time() {
    // Nobody listens at this port: it was free a moment ago and is not given out again at once.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let ec2 = SdkConnect::new().connect(&access(&closed)).await.unwrap();
    let error = ec2.terminate_instances("i-1").await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Transient, "{error:?}");
    assert!(matches!(error.retry(), Retry::After { .. }));
    assert!(error.report().contains("onnect"), "{}", error.report());

    // Somebody takes the connection and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut access = access(&format!("http://{}", silent.local_addr().unwrap()));
    access.call_timeout = Duration::from_millis(300);
    let ec2 = SdkConnect::new().connect(&access).await.unwrap();
    let start = std::time::Instant::now();
    let error = ec2.terminate_instances("i-1").await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Transient, "{error:?}");
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());

    // The connection is cut in the middle of the answer.
    let cut = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", cut.local_addr().unwrap());
    let task = tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (mut stream, _) = cut.accept().await.unwrap();
        let mut buffer = [0; 4096];
        let _ = stream.read(&mut buffer).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n<RunInstances").await.unwrap();
    });
    let ec2 = SdkConnect::new().connect(&crate::server::access(&url)).await.unwrap();
    let error = ec2.run_instances(&RunInstances::default()).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Transient, "{error:?}");
    task.await.unwrap();
}

#[tokio::test]
async fn an_address_that_is_none_is_a_configuration_error_before_any_call() {
    for url in ["http://", "ec2.example.org", "https://a b", "http:///x"] {
        let error = SdkConnect::new().connect(&access(url)).await.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Config, "{error:?}");
        assert!(error.to_string().contains(url), "{error}");
    }
}

#[tokio::test]
async fn user_data_is_in_no_error() {
    let mut request = RunInstances::default();
    request.user_data = cloud_providers::UserData::new("canary of a private key");
    let encoded =
        base64::Engine::encode(&base64::engine::general_purpose::STANDARD, request.user_data.as_bytes());
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    // The second is taken for an address until the call is to be sent.
    for url in [format!("http://{closed}"), "http://[::1".to_owned(), "http://a:b:c/".to_owned()] {
        let ec2 = SdkConnect::new().connect(&access(&url)).await.unwrap();
        let error = ec2.run_instances(&request).await.unwrap_err();
        for text in [error.report(), format!("{error:?}")] {
            assert!(!text.contains(&encoded[..12]) && !text.contains("UserData="), "{text}");
        }
    }
}

#[tokio::test]
async fn no_secret_is_in_an_error() {
    let server = Server::always(ec2_error(403, "SignatureDoesNotMatch", "check your key")).await;
    let ec2 = server.connect().await;
    let error = ec2.describe_addresses(&Query::default()).await.unwrap_err();
    for text in [error.report(), format!("{error:?}"), format!("{ec2:?}")] {
        assert!(!text.contains("secret-of-tests") && !text.contains("AKIDTEST"), "{text}");
    }
}
