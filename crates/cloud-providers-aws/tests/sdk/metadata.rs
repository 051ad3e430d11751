//! The metadata service of the instance that the program runs on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cloud_providers::{ErrorKind, MapEnv};
use cloud_providers_aws::client::{Access, Connect, SdkConnect};
use tokio::net::TcpListener;

use crate::server::{Answer, Server};

const ENDPOINT: &str = "AWS_EC2_METADATA_SERVICE_ENDPOINT";
const DISABLED: &str = "AWS_EC2_METADATA_DISABLED";

fn connect(variables: &[(&str, &str)]) -> SdkConnect {
    SdkConnect::with_env(Arc::new(MapEnv::new(variables.iter().copied())))
}

/// Answers as the service does: a token first, and then texts.
async fn service() -> Server {
    Server::start(|asked| match (asked.method.as_str(), asked.path.as_str()) {
        ("PUT", "/latest/api/token") => {
            Answer::ok("token").with_header("x-aws-ec2-metadata-token-ttl-seconds", "21600")
        }
        _ if asked.header("x-aws-ec2-metadata-token") != Some("token") => Answer::new(401, ""),
        (_, "/latest/meta-data/mac") => Answer::ok("0e:49:61:0f:c3:11\n"),
        (_, "/latest/meta-data/placement/region") => Answer::ok("test-region-9"),
        (_, "/latest/meta-data/broken") => Answer::new(500, ""),
        (_, "/latest/meta-data/closed") => Answer::new(403, ""),
        _ => Answer::new(404, "<html>not found</html>"),
    })
    .await
}

#[tokio::test]
async fn texts_are_read_with_one_token_and_what_is_missing_is_none() {
    let service = service().await;
    let connect = connect(&[(ENDPOINT, &service.url())]);
    assert_eq!(connect.metadata("mac").await.unwrap().as_deref(), Some("0e:49:61:0f:c3:11"));
    assert_eq!(connect.metadata("placement/region").await.unwrap().as_deref(), Some("test-region-9"));
    assert_eq!(connect.metadata("public-keys").await.unwrap(), None);
    let tokens = service.asked().iter().filter(|asked| asked.method == "PUT").count();
    assert_eq!(tokens, 1);
    for (path, kind) in [("broken", ErrorKind::Transient), ("closed", ErrorKind::Permission)] {
        let error = connect.metadata(path).await.unwrap_err();
        assert_eq!(*error.kind(), kind, "{error:?}");
        assert!(error.to_string().contains(&format!("path: {path}")), "{error}");
    }
}

#[tokio::test]
async fn a_service_that_is_switched_off_is_not_asked() {
    let service = service().await;
    for word in ["true", "TRUE"] {
        let connect = connect(&[(ENDPOINT, &service.url()), (DISABLED, word)]);
        let error = connect.metadata("mac").await.unwrap_err();
        assert!(error.to_string().contains("AWS_EC2_METADATA_DISABLED"), "{error}");
        let error = connect.connect(&Access::default()).await.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Config);
        let text = error.report();
        assert!(text.contains("-aws-region or AWS_REGION") && text.contains("DISABLED"), "{text}");
    }
    assert!(service.asked().is_empty());
    let connect = connect(&[(ENDPOINT, &service.url()), (DISABLED, "false")]);
    assert!(connect.metadata("mac").await.unwrap().is_some());
}

#[tokio::test]
async fn elsewhere_than_on_an_instance_the_question_ends_soon() {
    // Takes connections and says nothing, as the address does behind some networks.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let connect = connect(&[(ENDPOINT, &url)]);
    let start = Instant::now();
    let error = connect.metadata("mac").await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Transient, "{error:?}");
    // Four seconds are allowed; the rest is for a machine that does other things.
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
}

#[tokio::test]
async fn the_region_is_taken_from_the_nearest_source() {
    let service = service().await;
    // Files of the account that runs the tests must not matter; no profile of this name is in them.
    let mut access = Access::default();
    access.profile = Some("no-such-profile-in-tests".to_owned());
    let url = service.url();
    let text = |ec2| format!("{ec2:?}");
    let from_metadata = connect(&[(ENDPOINT, &url)]).connect(&access).await.unwrap();
    assert!(text(from_metadata).contains("test-region-9"));
    let variables = [(ENDPOINT, url.as_str()), ("AWS_DEFAULT_REGION", "test-region-4")];
    let from_variable = connect(&variables).connect(&access).await.unwrap();
    assert!(text(from_variable).contains("test-region-4"));
    access.region = Some("test-region-5".to_owned());
    let given = connect(&variables).connect(&access).await.unwrap();
    assert!(text(given).contains("test-region-5"));
}

#[tokio::test]
async fn an_address_of_the_service_that_is_none_names_its_variable() {
    for (name, value) in [(ENDPOINT, "here"), ("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "IPv5")] {
        let error = connect(&[(name, value)]).metadata("mac").await.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains(name) && error.to_string().contains(value), "{error}");
    }
}
