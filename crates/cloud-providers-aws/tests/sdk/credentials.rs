//! Where credentials come from, by the SDK's chain in a process with an environment of its own.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_smithy_types::{DateTime, date_time::Format};
use cloud_providers_aws::client::{Connect, Query, SdkConnect, StaticKeys};

use crate::child::{Child, PROFILE, was_child};
use crate::server::{Answer, Asked, Server, access, ec2, sts_error};

/// Soon enough that the SDK fetches new credentials for the next call, since it renews them some seconds before.
const SHORT: Duration = Duration::from_secs(5);
const LONG: Duration = Duration::from_secs(3600);

fn expiry(after: Duration) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let time = DateTime::from_secs((now + after).as_secs().try_into().unwrap());
    time.fmt(Format::DateTime).unwrap()
}

/// What STS answers to a web identity: a key with the token's own text in it.
fn role(asked: &Asked, life: Duration) -> Answer {
    let token = asked.field("WebIdentityToken").unwrap_or_default();
    Answer::ok(format!(
        "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
         <AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>AKID{token}</AccessKeyId>\
         <SecretAccessKey>s3cret-{token}</SecretAccessKey><SessionToken>session-{token}</SessionToken>\
         <Expiration>{}</Expiration></Credentials><AssumedRoleUser>\
         <Arn>arn:aws:sts::123456789012:assumed-role/pods/x</Arn><AssumedRoleId>AROA:x</AssumedRoleId>\
         </AssumedRoleUser></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>",
        expiry(life)
    ))
}

/// What containers and instances are given as credentials.
fn json(key: &str, life: Duration) -> Answer {
    Answer::ok(format!(
        "{{\"Code\":\"Success\",\"Type\":\"AWS-HMAC\",\"LastUpdated\":\"2026-01-01T00:00:00Z\",\
         \"AccessKeyId\":\"{key}\",\"SecretAccessKey\":\"s3cret\",\"Token\":\"session-{key}\",\
         \"Expiration\":\"{}\"}}",
        expiry(life)
    ))
    .with_header("content-type", "application/json")
}

/// The key that a call to EC2 was signed with.
fn key(asked: &Asked) -> String {
    let header = asked.header("authorization").expect("calls are signed");
    let (_, rest) = header.split_once("Credential=").unwrap();
    rest.split('/').next().unwrap().to_owned()
}

fn calls(server: &Server) -> Vec<Asked> {
    server.asked().into_iter().filter(|asked| asked.action() == "DescribeAddresses").collect()
}

fn variables(server: &Server, more: &[(&'static str, String)]) -> Vec<(&'static str, String)> {
    let mut all = vec![
        ("AWS_REGION", "test-region-1".to_owned()),
        ("AWS_ENDPOINT_URL", server.url()),
        ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
    ];
    all.retain(|(name, _)| !more.iter().any(|(other, _)| other == name));
    all.extend(more.iter().cloned());
    all
}

fn path(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_web_identity_token_is_read_anew_when_it_was_rotated() {
    if was_child().await {
        return;
    }
    let server = Server::start(|asked| match asked.action().as_str() {
        "AssumeRoleWithWebIdentity" => role(asked, SHORT),
        other => ec2(other, ""),
    })
    .await;
    let home = tempfile::tempdir().unwrap();
    let token = home.path().join("token");
    fs::write(&token, "ONE").unwrap();
    let arn = "arn:aws:iam::123456789012:role/pods".to_owned();
    let variables = variables(
        &server,
        &[
            ("AWS_WEB_IDENTITY_TOKEN_FILE", path(&token)),
            ("AWS_ROLE_ARN", arn.clone()),
            ("AWS_ROLE_SESSION_NAME", "caa".to_owned()),
        ],
    );
    let test = "credentials::a_web_identity_token_is_read_anew_when_it_was_rotated";
    let mut child = Child::start(test, home.path(), &variables);
    assert_eq!(child.call().await, "ok");
    // As a kubelet does it: a new file takes the place of the old one.
    fs::write(home.path().join("new"), "TWO").unwrap();
    fs::rename(home.path().join("new"), &token).unwrap();
    assert_eq!(child.call().await, "ok");

    let calls = calls(&server);
    assert_eq!(calls.iter().map(key).collect::<Vec<_>>(), ["AKIDONE", "AKIDTWO"]);
    assert_eq!(calls[1].header("x-amz-security-token"), Some("session-TWO"));
    let asked = server.asked();
    let sts = asked.iter().find(|asked| asked.action() == "AssumeRoleWithWebIdentity").unwrap();
    assert_eq!(sts.field("RoleArn").as_deref(), Some(arn.as_str()));
    assert_eq!(sts.field("RoleSessionName").as_deref(), Some("caa"));
    assert_eq!(sts.header("authorization"), None, "the token is all there is");
}

#[tokio::test]
async fn credentials_are_kept_until_they_are_old_and_their_refusal_is_told() {
    if was_child().await {
        return;
    }
    let server = Server::start(|asked| match asked.action().as_str() {
        "AssumeRoleWithWebIdentity" if asked.field("WebIdentityToken").as_deref() == Some("BAD") => {
            sts_error(403, "AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity")
        }
        "AssumeRoleWithWebIdentity" if asked.field("WebIdentityToken").as_deref() == Some("LATER") => {
            sts_error(503, "ServiceUnavailable", "later")
        }
        "AssumeRoleWithWebIdentity" => role(asked, LONG),
        other => ec2(other, ""),
    })
    .await;
    let home = tempfile::tempdir().unwrap();
    let test = "credentials::credentials_are_kept_until_they_are_old_and_their_refusal_is_told";
    let run = |text: &str| {
        let token = home.path().join(text);
        fs::write(&token, text).unwrap();
        let arn = "arn:aws:iam::123456789012:role/pods".to_owned();
        let more = [("AWS_WEB_IDENTITY_TOKEN_FILE", path(&token)), ("AWS_ROLE_ARN", arn)];
        Child::start(test, home.path(), &variables(&server, &more))
    };
    let mut child = run("GOOD");
    for _ in 0..3 {
        assert_eq!(child.call().await, "ok");
    }
    let asked = server.asked().iter().filter(|a| a.action() == "AssumeRoleWithWebIdentity").count();
    assert_eq!(
        (asked, calls(&server).len()),
        (1, 3),
        "credentials that are good for an hour are asked for once"
    );

    let told = run("BAD").call().await;
    assert!(told.starts_with("auth ") && told.contains("AccessDenied"), "{told}");
    let told = run("LATER").call().await;
    assert!(told.starts_with("transient ") && told.contains("ServiceUnavailable"), "{told}");
    // The file is not there at all.
    let gone = run("GONE");
    fs::remove_file(home.path().join("GONE")).unwrap();
    let mut gone = gone;
    let told = gone.call().await;
    assert!(told.starts_with("auth "), "{told}");
}

#[tokio::test]
async fn a_pod_identity_is_asked_for_with_its_rotated_token() {
    if was_child().await {
        return;
    }
    let server = Server::start(|asked| match asked.path.as_str() {
        "/v1/credentials" => json(&format!("AKID{}", asked.header("authorization").unwrap_or("NONE")), SHORT),
        _ => ec2(&asked.action(), ""),
    })
    .await;
    let home = tempfile::tempdir().unwrap();
    let token = home.path().join("token");
    fs::write(&token, "POD1").unwrap();
    let more = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("{}/v1/credentials", server.url())),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", path(&token)),
    ];
    let test = "credentials::a_pod_identity_is_asked_for_with_its_rotated_token";
    let mut child = Child::start(test, home.path(), &variables(&server, &more));
    assert_eq!(child.call().await, "ok");
    fs::write(home.path().join("new"), "POD2").unwrap();
    fs::rename(home.path().join("new"), &token).unwrap();
    assert_eq!(child.call().await, "ok");
    assert_eq!(calls(&server).iter().map(key).collect::<Vec<_>>(), ["AKIDPOD1", "AKIDPOD2"]);
}

#[tokio::test]
async fn a_container_has_its_token_in_a_variable() {
    if was_child().await {
        return;
    }
    let server = Server::start(|asked| match asked.path.as_str() {
        "/creds?id=7" if asked.header("authorization") == Some("of-the-task") => json("AKIDTASK", LONG),
        "/creds?id=7" => Answer::new(401, "who?"),
        _ => ec2(&asked.action(), ""),
    })
    .await;
    let home = tempfile::tempdir().unwrap();
    let more = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("{}/creds?id=7", server.url())),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "of-the-task".to_owned()),
    ];
    let test = "credentials::a_container_has_its_token_in_a_variable";
    assert_eq!(Child::start(test, home.path(), &variables(&server, &more)).call().await, "ok");
    assert_eq!(key(&calls(&server)[0]), "AKIDTASK");
}

#[tokio::test]
async fn the_role_of_the_instance_is_asked_for_with_a_session_token() {
    if was_child().await {
        return;
    }
    let server = Server::start(|asked| {
        let has_token = asked.header("x-aws-ec2-metadata-token") == Some("session-of-metadata");
        match (asked.method.as_str(), asked.path.as_str()) {
            ("PUT", "/latest/api/token")
                if asked.header("x-aws-ec2-metadata-token-ttl-seconds").is_some() =>
            {
                Answer::ok("session-of-metadata").with_header("x-aws-ec2-metadata-token-ttl-seconds", "21600")
            }
            ("GET", _) if !has_token => Answer::new(401, ""),
            ("GET", "/latest/meta-data/iam/security-credentials/") => Answer::ok("node-role"),
            ("GET", "/latest/meta-data/iam/security-credentials/node-role") => json("AKIDNODE", LONG),
            ("GET", "/latest/meta-data/placement/region") => Answer::ok("test-region-7"),
            ("GET", _) => Answer::new(404, ""),
            _ => ec2(&asked.action(), ""),
        }
    })
    .await;
    let home = tempfile::tempdir().unwrap();
    let more = [
        ("AWS_EC2_METADATA_DISABLED", "false".to_owned()),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", server.url()),
        // Left to the metadata service as well.
        ("AWS_REGION", String::new()),
    ];
    let test = "credentials::the_role_of_the_instance_is_asked_for_with_a_session_token";
    assert_eq!(Child::start(test, home.path(), &variables(&server, &more)).call().await, "ok");
    let call = &calls(&server)[0];
    assert_eq!(key(call), "AKIDNODE");
    assert!(call.header("authorization").unwrap().contains("/test-region-7/ec2/"), "{call:?}");
}

#[tokio::test]
async fn a_profile_that_is_named_goes_before_the_variables_of_the_process() {
    if was_child().await {
        return;
    }
    let server = Server::start(|asked| match asked.action().as_str() {
        "AssumeRoleWithWebIdentity" => role(asked, LONG),
        other => ec2(other, ""),
    })
    .await;
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join(".aws")).unwrap();
    let token = home.path().join("token");
    fs::write(&token, "PROFILE").unwrap();
    let config = format!(
        "[default]\nregion = test-region-2\n\n[profile pods]\nregion = test-region-3\naws_access_key_id = AKIDPODS\n\
         aws_secret_access_key = s3cret\n\n[profile role]\nrole_arn = arn:aws:iam::123456789012:role/pods\n\
         web_identity_token_file = {}\n\n[profile signon]\nsso_start_url = https://example.invalid\n\
         sso_region = test-region-1\nsso_account_id = 123456789012\nsso_role_name = pods\n\n\
         [profile program]\ncredential_process = /bin/echo \
         '{{\"Version\":1,\"AccessKeyId\":\"AKIDPROGRAM\",\"SecretAccessKey\":\"x\"}}'\n",
        path(&token)
    );
    fs::write(home.path().join(".aws/config"), config).unwrap();
    let shared = "[default]\naws_access_key_id = AKIDDEFAULT\naws_secret_access_key = s3cret\n";
    fs::write(home.path().join(".aws/credentials"), shared).unwrap();
    let test = "credentials::a_profile_that_is_named_goes_before_the_variables_of_the_process";
    let process = [
        ("AWS_REGION", String::new()),
        ("AWS_ACCESS_KEY_ID", "AKIDPROCESS".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "s3cret".to_owned()),
    ];
    let run = |profile: &str, more: &[(&'static str, String)]| {
        let more = [&[(PROFILE, profile.to_owned())], more].concat();
        Child::start(test, home.path(), &variables(&server, &more))
    };
    for (profile, expected, region) in [
        ("", "AKIDPROCESS", "test-region-2"),
        ("pods", "AKIDPODS", "test-region-3"),
        ("role", "AKIDPROFILE", "test-region-2"),
        ("program", "AKIDPROGRAM", "test-region-2"),
    ] {
        // A profile without a region has that of the default one here.
        let region_of =
            |profile| ("AWS_DEFAULT_REGION", if profile == "pods" { "" } else { region }.to_owned());
        let told = run(profile, &[&process[..], &[region_of(profile)]].concat()).call().await;
        assert_eq!(told, "ok", "{profile}");
        let call = calls(&server).pop().unwrap();
        assert_eq!(key(&call), expected, "{profile}");
        assert!(call.header("authorization").unwrap().contains(&format!("/{region}/ec2/")), "{call:?}");
    }
    // Without anything else the default profile is found in the home.
    assert_eq!(run("", &[("AWS_REGION", String::new())]).call().await, "ok");
    assert_eq!(key(&calls(&server).pop().unwrap()), "AKIDDEFAULT");

    let before = calls(&server).len();
    let told = run("nobody", &process[1..]).call().await;
    assert!(told.contains("nobody"), "{told}");
    let told = run("signon", &process[1..]).call().await;
    assert!(told.contains("sso"), "{told}");
    assert_eq!(calls(&server).len(), before, "no other identity takes the place of the one that was named");
}

#[tokio::test]
async fn without_any_source_the_error_says_so() {
    if was_child().await {
        return;
    }
    let server = Server::start(|asked| ec2(&asked.action(), "")).await;
    let home = tempfile::tempdir().unwrap();
    let test = "credentials::without_any_source_the_error_says_so";
    let told = Child::start(test, home.path(), &variables(&server, &[])).call().await;
    assert!(told.starts_with("auth ") && told.contains("no source has credentials"), "{told}");
    assert!(told.contains("docs/providers/aws.md"), "{told}");
    assert!(server.asked().is_empty());
}

#[tokio::test]
async fn static_keys_with_a_session_token_are_used_as_they_are() {
    let server = Server::start(|asked| ec2(&asked.action(), "")).await;
    let mut access = access(&server.url());
    let secret = |text: &str| text.to_owned().into();
    access.keys = Some(StaticKeys::new(secret("AKIDGIVEN"), secret("s"), Some(secret("session-given"))));
    let ec2 = SdkConnect::new().connect(&access).await.unwrap();
    ec2.describe_addresses(&Query::default()).await.unwrap();
    let call = server.last();
    assert_eq!(
        (key(&call).as_str(), call.header("x-amz-security-token")),
        ("AKIDGIVEN", Some("session-given"))
    );
}

#[tokio::test]
async fn the_address_of_ec2_goes_before_that_of_all_interfaces() {
    if was_child().await {
        return;
    }
    let all = Server::start(|asked| ec2(&asked.action(), "")).await;
    let own = Server::start(|asked| ec2(&asked.action(), "")).await;
    let mut access = access(&all.url());
    access.endpoint = Some(own.url());
    let client = SdkConnect::new().connect(&access).await.unwrap();
    client.describe_addresses(&Query::default()).await.unwrap();
    assert_eq!((all.asked().len(), own.asked().len()), (0, 1));
    // Left to the SDK, the variables of the process decide in the same way.
    let home = tempfile::tempdir().unwrap();
    let keys = [
        ("AWS_ACCESS_KEY_ID", "AKIDPROCESS".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "s3cret".to_owned()),
        ("AWS_ENDPOINT_URL_EC2", own.url()),
    ];
    let test = "credentials::the_address_of_ec2_goes_before_that_of_all_interfaces";
    assert_eq!(Child::start(test, home.path(), &variables(&all, &keys)).call().await, "ok");
    assert_eq!((all.asked().len(), own.asked().len()), (0, 2));
    assert_eq!(Child::start(test, home.path(), &variables(&all, &keys[..2])).call().await, "ok");
    assert_eq!((all.asked().len(), own.asked().len()), (1, 2));
}

#[tokio::test]
async fn a_proxy_of_the_environment_is_used() {
    if was_child().await {
        return;
    }
    // A plain request to a proxy has the whole address in its first line.
    let proxy = Server::start(|asked| ec2(&asked.action(), "")).await;
    let home = tempfile::tempdir().unwrap();
    let more = [
        ("AWS_ENDPOINT_URL", "http://ec2.example.invalid".to_owned()),
        ("AWS_ACCESS_KEY_ID", "AKIDPROCESS".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "s3cret".to_owned()),
        ("HTTP_PROXY", proxy.url()),
    ];
    let test = "credentials::a_proxy_of_the_environment_is_used";
    assert_eq!(Child::start(test, home.path(), &variables(&proxy, &more)).call().await, "ok");
    assert_eq!(proxy.last().path, "http://ec2.example.invalid/");
    let told = Child::start(
        test,
        home.path(),
        &variables(&proxy, &[&more[..], &[("NO_PROXY", "*".to_owned())]].concat()),
    )
    .call()
    .await;
    assert!(told.starts_with("transient "), "{told}");
    assert_eq!(proxy.asked().len(), 1);
}
