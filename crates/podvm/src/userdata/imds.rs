//! The metadata servers of the clouds, over plain HTTP on a link-local address.
//!
//! Requests go straight to the address: no proxy, no redirect, no name to resolve (whoever controls the name service
//! would otherwise choose the user data).

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use tracing::debug;

use super::MAX_USER_DATA;

/// Bound of one request; a metadata server answers within milliseconds or not at all.
const REQUEST: Duration = Duration::from_secs(5);

/// Where the metadata servers are; tests put servers of their own here.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Endpoints {
    /// Azure, Amazon and Google.
    pub link_local: String,
    /// Alibaba Cloud.
    pub alibaba: String,
}

impl Default for Endpoints {
    fn default() -> Self {
        Self { link_local: "http://169.254.169.254".to_owned(), alibaba: "http://100.100.100.200".to_owned() }
    }
}

pub(super) fn azure(at: &Endpoints, deadline: Instant) -> Result<Vec<u8>> {
    let url =
        format!("{}/metadata/instance/compute/userData?api-version=2021-01-01&format=text", at.link_local);
    unbase64(get(&url, &[("Metadata", "true")], deadline)?)
}

pub(super) fn aws(at: &Endpoints, deadline: Instant) -> Result<Vec<u8>> {
    let url = format!("{}/latest/user-data", at.link_local);
    match aws_token(at, deadline) {
        Ok(token) => get(&url, &[("X-aws-ec2-metadata-token", &token)], deadline),
        // Version 1 knows no tokens; an instance that requires them refuses the plain request.
        Err(error) => {
            debug!("no metadata token ({error:#}), asking without");
            get(&url, &[], deadline)
        }
    }
}

fn aws_token(at: &Endpoints, deadline: Instant) -> Result<String> {
    let url = format!("{}/latest/api/token", at.link_local);
    let mut reply = agent(deadline)
        .put(&url)
        .header("X-aws-ec2-metadata-token-ttl-seconds", "60")
        .send_empty()
        .with_context(|| format!("PUT {url}"))?;
    if reply.status().as_u16() != 200 {
        bail!("PUT {url} answered {}", reply.status());
    }
    Ok(reply.body_mut().with_config().limit(4096).read_to_string()?.trim().to_owned())
}

pub(super) fn gcp(at: &Endpoints, deadline: Instant) -> Result<Vec<u8>> {
    let url = format!("{}/computeMetadata/v1/instance/attributes/user-data", at.link_local);
    unbase64(get(&url, &[("Metadata-Flavor", "Google")], deadline)?)
}

pub(super) fn alibaba(at: &Endpoints, deadline: Instant) -> Result<Vec<u8>> {
    get(&format!("{}/latest/user-data", at.alibaba), &[], deadline)
}

fn agent(deadline: Instant) -> ureq::Agent {
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    ureq::Agent::config_builder()
        .timeout_global(Some(left.min(REQUEST)))
        .proxy(None)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .http_status_as_error(false)
        .build()
        .into()
}

fn get(url: &str, headers: &[(&str, &str)], deadline: Instant) -> Result<Vec<u8>> {
    let agent = agent(deadline);
    let request = headers.iter().fold(agent.get(url), |request, (name, value)| request.header(*name, *value));
    let mut reply = request.call().with_context(|| format!("GET {url}"))?;
    if reply.status().as_u16() != 200 {
        bail!("GET {url} answered {}", reply.status());
    }
    reply
        .body_mut()
        .with_config()
        .limit(MAX_USER_DATA)
        .read_to_vec()
        .with_context(|| format!("GET {url}: read body"))
}

fn unbase64(text: Vec<u8>) -> Result<Vec<u8>> {
    let text: Vec<u8> = text.into_iter().filter(|byte| !byte.is_ascii_whitespace()).collect();
    base64::engine::general_purpose::STANDARD.decode(text).context("the answer is not base64")
}
