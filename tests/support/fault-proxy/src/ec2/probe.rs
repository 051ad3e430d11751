//! Questions to an emulator, without an SDK: what is there, whatever the code under test believes.

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use hyper::{HeaderMap, Method};

use super::xml;
use crate::message::{Answer, Form, Request};
use crate::upstream::Upstream;

/// Asks EC2 in one region, with a signature that an emulator does not check.
#[derive(Debug)]
pub struct Probe {
    server: Upstream,
    region: String,
}

impl Probe {
    /// Asks the server at `url`.
    ///
    /// # Errors
    ///
    /// When that is no `http` address.
    pub fn new(url: &str, region: &str) -> Result<Self> {
        Ok(Self { server: Upstream::server(url)?, region: region.to_owned() })
    }

    /// Calls an operation and returns the answer, whatever it says.
    ///
    /// # Errors
    ///
    /// When there is no answer.
    pub async fn call(&self, action: &str, fields: &[(&str, &str)]) -> Result<Answer> {
        let mut form = Form::default();
        form.push("Action", action);
        form.push("Version", "2016-11-15");
        for (name, value) in fields {
            form.push(*name, *value);
        }
        let mut headers = HeaderMap::new();
        let scope = format!("Credential=probe/20260101/{}/ec2/aws4_request", self.region);
        let signed = format!("AWS4-HMAC-SHA256 {scope}, SignedHeaders=host, Signature=0");
        headers.insert("authorization", signed.parse().context("the region cannot stand in a header")?);
        let request = Request {
            method: Method::POST,
            path: "/".to_owned(),
            query: String::new(),
            headers,
            body: Bytes::new(),
        };
        self.server.send(&request.with_form(&form)).await
    }

    /// Calls an operation and returns what it says.
    ///
    /// # Errors
    ///
    /// When it says no.
    pub async fn ask(&self, action: &str, fields: &[(&str, &str)]) -> Result<String> {
        let answer = self.call(action, fields).await?;
        let text = answer.text()?.to_owned();
        if !answer.is_success() {
            bail!("{action} is answered with {}: {text}", answer.status);
        }
        Ok(text)
    }

    /// Calls an operation and returns the texts of all elements of a name in what it says.
    ///
    /// # Errors
    ///
    /// When it says no.
    pub async fn all(&self, action: &str, fields: &[(&str, &str)], name: &str) -> Result<Vec<String>> {
        texts(&self.ask(action, fields).await?, name)
    }

    /// Returns what costs money or space: instances that are not terminated, interfaces, addresses, disks.
    ///
    /// # Errors
    ///
    /// When the server does not answer.
    pub async fn leftovers(&self) -> Result<Vec<String>> {
        // Every state but terminated.
        let states = ["pending", "running", "shutting-down", "stopping", "stopped"];
        let names: Vec<String> = (1..=states.len()).map(|n| format!("Filter.1.Value.{n}")).collect();
        let mut filter = vec![("Filter.1.Name", "instance-state-name")];
        filter.extend(names.iter().map(String::as_str).zip(states));
        let mut left = Vec::new();
        let mut token: Option<String> = None;
        loop {
            let mut fields = filter.clone();
            if let Some(token) = &token {
                fields.push(("NextToken", token.as_str()));
            }
            let text = self.ask("DescribeInstances", &fields).await?;
            left.extend(texts(&text, "instanceId")?);
            token = texts(&text, "nextToken")?.pop();
            if token.is_none() {
                break;
            }
        }
        for (action, name) in [
            ("DescribeNetworkInterfaces", "networkInterfaceId"),
            ("DescribeAddresses", "allocationId"),
            ("DescribeVolumes", "volumeId"),
        ] {
            left.extend(self.all(action, &[], name).await?);
        }
        // A disk names its instance too, and an interface its address.
        left.sort();
        left.dedup();
        Ok(left)
    }
}

/// Returns the texts of all elements of a name.
///
/// # Errors
///
/// When the text is no XML.
pub fn texts(text: &str, name: &str) -> Result<Vec<String>> {
    xml::all(text, name)
}
