//! The calls over the interface of the toy cloud.

use std::{io, time::Duration};

use cloud_providers::{
    Error, ErrorKind, Result, async_trait,
    secrecy::{ExposeSecret as _, SecretString},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{Client, Launch, Launched, Machine, Page, State};
use crate::{config::Config, error::refused};

/// Calls the cloud. An SDK's client is held here, and made in [`ApiClient::new`].
#[derive(Debug)]
pub(crate) struct ApiClient {
    endpoint: String,
    key: SecretString,
}

impl ApiClient {
    /// Prepares the calls and makes none.
    pub(crate) fn new(config: &Config) -> Result<Self> {
        Ok(Self { endpoint: config.endpoint.clone(), key: config.key.clone() })
    }

    /// Makes one call and returns status and answer, `None` when what the path names is not there.
    async fn call(&self, method: &str, path: &str, body: Option<Value>) -> Result<Option<(u16, Value)>> {
        let (key, body) = (self.key.expose_secret(), body.map(|body| body.to_string()).unwrap_or_default());
        let head = format!(
            "{method} {path} HTTP/1.1\r\nauthorization: Bearer {key}\r\ncontent-length: {}",
            body.len()
        );
        let no_tls = || Error::config("the toy cloud has no TLS").with("set", "TOY_ENDPOINT");
        let address = self.endpoint.strip_prefix("http://").ok_or_else(no_tls)?;
        let exchange = async {
            let mut stream = TcpStream::connect(address).await?;
            stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).await?;
            let mut reply = String::new();
            stream.read_to_string(&mut reply).await?;
            let (head, body) = reply.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
            let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
            io::Result::Ok((status, serde_json::from_str::<Value>(body)?))
        };
        let broken = |error| Error::new(ErrorKind::Transient, "the connection broke").with_source(error);
        match exchange.await.map_err(broken)? {
            (status @ 200..300, answer) => Ok(Some((status, answer))),
            (404, _) => Ok(None),
            (status, answer) => {
                let after = answer["retry_after"].as_u64().map(Duration::from_secs);
                // It may quote the key.
                Err(refused(status, &text(&answer, "code"), &text(&answer, "message"), after).redact(key))
            }
        }
    }
}

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_default().to_owned()
}

fn machine(value: &Value) -> Machine {
    let tags = value["tags"].as_object().into_iter().flatten();
    Machine {
        id: text(value, "id"),
        name: text(value, "name"),
        tags: tags.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned())).collect(),
        addresses: text(value, "address").parse().into_iter().collect(),
        state: match value["state"].as_str() {
            Some("coming") => State::Starting,
            Some("up") => State::Running,
            Some("off") => State::Stopped,
            _ => State::Going,
        },
    }
}

#[async_trait]
impl Client for ApiClient {
    async fn check_account(&self) -> Result<()> {
        self.call("GET", "/account", None).await.map(drop)
    }

    async fn list_machines(&self, key: &str, value: &str, after: Option<&str>) -> Result<Page> {
        // Keys, values and ids are plain: nothing has to be encoded.
        let after = after.map(|after| format!("&after={after}")).unwrap_or_default();
        let path = format!("/machines?tag={key}&value={value}{after}");
        let (_, page) = self.call("GET", &path, None).await?.unwrap_or_default();
        let machines = page["machines"].as_array().into_iter().flatten().map(machine).collect();
        Ok(Page { machines, next: page["next"].as_str().map(str::to_owned) })
    }

    async fn launch(&self, launch: &Launch) -> Result<Launched> {
        let body = json!({
            "name": launch.name,
            "client_token": launch.client_token,
            "tags": launch.tags,
            "user_data": launch.user_data.as_bytes(),
        });
        match self.call("POST", "/machines", Some(body)).await {
            Ok(Some((201, made))) => Ok(Launched::New(machine(&made))),
            Ok(known) => Ok(Launched::Known(machine(&known.unwrap_or_default().1))),
            Err(error) if error.code() == Some("NameTaken") => Ok(Launched::NameTaken),
            Err(error) if error.code() == Some("TokenReused") => Ok(Launched::TokenTaken),
            Err(error) => Err(error),
        }
    }

    async fn get_machine(&self, id: &str) -> Result<Option<Machine>> {
        let plain = !id.is_empty() && id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        // An id of another form is no part of a path, and nothing has it.
        let found = if plain { self.call("GET", &format!("/machines/{id}"), None).await? } else { None };
        Ok(found.map(|(_, found)| machine(&found)))
    }

    async fn remove_machine(&self, id: &str) -> Result<()> {
        self.call("DELETE", &format!("/machines/{id}"), None).await.map(drop)
    }

    fn list_lag(&self) -> Duration {
        // Lists show every change at once.
        Duration::ZERO
    }
}
