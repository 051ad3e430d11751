//! A small cloud in memory that is asked over HTTP. It stands in for an emulator of a real one, and is no part of what an
//! author of a provider writes.
//!
//! Names are unique, idempotency values are replayed also for a machine that is gone, lists have pages, a wrong key is
//! quoted in the refusal, and each call can be made to fail, hang or lose its reply. Lists show every change at once.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use cloud_providers::CancellationToken;
use cloud_providers_conformance::Effect;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep},
};

/// The key that the cloud accepts.
pub(crate) const KEY: &str = "key-of-the-tests";
/// How long each call takes.
const LATENCY: Duration = Duration::from_millis(3);

/// One cloud with one account. Clones are the same cloud.
#[derive(Clone, Default)]
pub(crate) struct Toy(Arc<Mutex<World>>);

/// What is in the cloud and what is the matter with it.
#[derive(Default)]
pub(crate) struct World {
    pub(crate) machines: BTreeMap<String, Machine>,
    /// Calls so far.
    pub(crate) calls: usize,
    pub(crate) trouble: Trouble,
    /// Idempotency value to the request's body and the machine's id.
    launches: BTreeMap<String, (Value, String)>,
}

/// What goes wrong.
#[derive(Default)]
pub(crate) struct Trouble {
    /// The call that something happens to, counted from the next one; what happens; who is told.
    pub(crate) fault: Option<(usize, Effect, CancellationToken)>,
    /// Nothing can be removed.
    pub(crate) no_removals: bool,
    /// Lists answer this many pages of one entry, and then no more.
    pub(crate) pages: Option<usize>,
    /// How long a machine needs to start.
    pub(crate) boot: Boot,
    /// Status, code and delay of the answer to every launch.
    pub(crate) refusal: Option<(u16, String, Option<u64>)>,
}

/// How long machines take to start.
#[derive(Clone, Copy)]
pub(crate) enum Boot {
    After(Duration),
    Never,
}

impl Default for Boot {
    fn default() -> Self {
        Self::After(Duration::ZERO)
    }
}

/// One machine.
#[derive(Clone)]
pub(crate) struct Machine {
    pub(crate) name: String,
    pub(crate) tags: BTreeMap<String, String>,
    pub(crate) user_data: Vec<u8>,
    /// Whether somebody switched it off.
    pub(crate) off: bool,
    ready: Option<Instant>,
    address: String,
}

impl Machine {
    /// Makes a machine that is up.
    pub(crate) fn up(name: &str) -> Self {
        let (tags, user_data) = (BTreeMap::new(), Vec::new());
        let ready = Some(Instant::now());
        Self { name: name.into(), tags, user_data, off: false, ready, address: "198.51.100.1".into() }
    }
}

struct Request {
    method: String,
    path: String,
    key: String,
    body: Value,
}

impl Toy {
    /// Starts a cloud on a free port and returns it with its address. It ends with the runtime.
    pub(crate) async fn start() -> io::Result<(Self, String)> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (toy, address) = (Self::default(), listener.local_addr()?);
        let serving = toy.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serving.clone().serve(stream));
            }
        });
        Ok((toy, format!("http://{address}")))
    }

    /// Looks at the cloud, or changes it, from outside.
    pub(crate) fn with<T>(&self, look: impl FnOnce(&mut World) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn serve(self, mut stream: TcpStream) {
        let Ok(Some(request)) = read(&mut stream).await else { return };
        let (mut reader, mut writer) = stream.split();
        let mut rest = [0];
        tokio::select! {
            reply = self.answer(&request) => {
                // No reply: the connection breaks.
                let Some((status, body)) = reply else { return };
                let text = format!("HTTP/1.1 {status} -\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
                let _ = writer.write_all(text.as_bytes()).await;
            }
            // The client gave up: what did not happen until then does not happen.
            _ = reader.read(&mut rest) => {}
        }
    }

    async fn answer(&self, request: &Request) -> Option<(u16, String)> {
        let fault = self.with(|world| {
            world.calls += 1;
            let (left, ..) = world.trouble.fault.as_mut()?;
            *left -= 1;
            if *left == 0 { world.trouble.fault.take() } else { None }
        });
        sleep(LATENCY).await;
        let Some((_, effect, told)) = fault else { return Some(self.with(|world| world.handle(request))) };
        if effect == Effect::Fail {
            told.cancel();
            return Some(refusal(403, "Forbidden", "the cloud fails as told"));
        }
        if effect != Effect::HangBefore {
            self.with(|world| world.handle(request));
        }
        told.cancel();
        if effect == Effect::LoseReply { None } else { std::future::pending().await }
    }
}

async fn read(stream: &mut TcpStream) -> io::Result<Option<Request>> {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let header = |name: &str| {
                let line = head.lines().find_map(|line| line.strip_prefix(name));
                line.unwrap_or_default().trim_start_matches(':').trim().to_owned()
            };
            if body.len() >= header("content-length").parse().unwrap_or_default() {
                let mut words = head.split(' ').map(str::to_owned);
                let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
                let body = serde_json::from_str(body).unwrap_or_default();
                return Ok(Some(Request {
                    method,
                    path,
                    key: header("authorization").replace("Bearer ", ""),
                    body,
                }));
            }
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
    }
}

fn refusal(status: u16, code: &str, message: &str) -> (u16, String) {
    (status, json!({ "code": code, "message": message }).to_string())
}

impl World {
    fn handle(&mut self, request: &Request) -> (u16, String) {
        if request.key != KEY {
            return refusal(401, "Unauthorized", &format!("the key {} is not known", request.key));
        }
        let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
        let id = path.strip_prefix("/machines/");
        match (request.method.as_str(), path, id) {
            ("GET", "/account", _) => (200, json!({}).to_string()),
            ("GET", "/machines", _) => self.list(query),
            ("POST", "/machines", _) => self.launch(&request.body),
            ("DELETE", _, Some(_)) if self.trouble.no_removals => {
                refusal(403, "Forbidden", "nothing may be removed")
            }
            (_, _, Some(id)) if !self.machines.contains_key(id) => {
                refusal(404, "NotFound", "there is no such machine")
            }
            ("GET", _, Some(id)) => (200, self.shown(id).to_string()),
            ("DELETE", _, Some(id)) => {
                self.machines.remove(id);
                (202, json!({}).to_string())
            }
            _ => refusal(405, "NotAllowed", "there is no such call"),
        }
    }

    fn list(&mut self, query: &str) -> (u16, String) {
        let of = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        let (key, value, after) =
            (of("tag").unwrap_or_default(), of("value").unwrap_or_default(), of("after"));
        let mut page = 100;
        if let Some(pages) = &mut self.trouble.pages {
            if *pages == 0 {
                return refusal(503, "Unavailable", "lists are out of order");
            }
            (*pages, page) = (*pages - 1, 1);
        }
        let fits = |(id, machine): &(&String, &Machine)| {
            machine.tags.get(key).is_some_and(|v| v == value) && after.is_none_or(|after| id.as_str() > after)
        };
        let ids: Vec<&String> = self.machines.iter().filter(fits).map(|(id, _)| id).collect();
        let shown: Vec<Value> = ids.iter().take(page).map(|id| self.shown(id)).collect();
        let next = ids.get(page).and(ids.get(page - 1));
        (200, json!({ "machines": shown, "next": next }).to_string())
    }

    fn launch(&mut self, body: &Value) -> (u16, String) {
        if let Some((status, code, after)) = &self.trouble.refusal {
            let body = json!({ "code": code, "message": "refused as told", "retry_after": after });
            return (*status, body.to_string());
        }
        let text = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
        if let Some((first, id)) = self.launches.get(&text("client_token")) {
            // As in most clouds, another time of creation among the tags is another parameter.
            if first != body {
                return refusal(409, "TokenReused", "the idempotency value was used with other parameters");
            }
            return (200, self.shown(id).to_string());
        }
        if self.machines.values().any(|machine| machine.name == text("name")) {
            return refusal(409, "NameTaken", "a machine of this name exists");
        }
        let tags = body["tags"].as_object().into_iter().flatten();
        let tags = tags.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned()));
        let ready = match self.trouble.boot {
            Boot::After(time) => Some(Instant::now() + time),
            Boot::Never => None,
        };
        let number = self.launches.len() + 1;
        let (id, address) = (format!("m-{number:04}"), format!("10.1.{}.{}", number / 250, number % 250 + 1));
        let (name, user_data) =
            (text("name"), serde_json::from_value(body["user_data"].clone()).unwrap_or_default());
        let machine = Machine { name, tags: tags.collect(), user_data, off: false, ready, address };
        self.launches.insert(text("client_token"), (body.clone(), id.clone()));
        self.machines.insert(id.clone(), machine);
        (201, self.shown(&id).to_string())
    }

    fn shown(&self, id: &str) -> Value {
        let Some(machine) = self.machines.get(id) else { return json!({ "id": id, "state": "gone" }) };
        let state = |up| if machine.off { "off" } else { ["coming", "up"][usize::from(up)] };
        let up = machine.ready.is_some_and(|ready| Instant::now() >= ready);
        json!({
            "id": id,
            "name": machine.name,
            "tags": machine.tags,
            "address": up.then_some(&machine.address),
            "state": state(up),
        })
    }
}
