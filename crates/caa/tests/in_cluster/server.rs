//! An API server in memory, on loopback, for what a real one cannot be made to do: answers that are lost, late or wrong.
//!
//! It keeps objects by their path and knows the rules that the daemon relies on: resource versions and UIDs in patches,
//! finalizers, fields that a definition prunes, pages of lists, JSON patches with tests.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Bytes,
    http::{Method, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use caa::kubernetes::{Identity, Kubernetes, Side, client::KubeApi};
use serde_json::{Value, json};

/// What goes wrong with a request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Fault {
    /// It is answered with this code, and nothing is done.
    Code(u16),
    /// It is done, and the answer is lost.
    LostReply,
    /// It is never answered, and nothing is done.
    Hang,
}

struct Rule {
    method: Method,
    path: String,
    fault: Fault,
    /// How often; `None` for always.
    times: Option<u32>,
}

#[derive(Default)]
struct World {
    objects: BTreeMap<String, Value>,
    version: u64,
    rules: Vec<Rule>,
    requests: Vec<String>,
    /// Kinds without definition, by plural.
    undefined: Vec<&'static str>,
    /// The definition of PeerPods is older than our fields.
    older: bool,
}

/// A server that is gone when it is dropped.
#[derive(Clone)]
pub(crate) struct Server {
    world: Arc<Mutex<World>>,
    pub(crate) address: SocketAddr,
    _task: Arc<Task>,
}

struct Task(tokio::task::JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

pub(crate) const RECORDS: &str = "/apis/confidentialcontainers.org/v1alpha1/namespaces/shop/peerpods";

impl Server {
    pub(crate) async fn start() -> Self {
        let world: Arc<Mutex<World>> = Arc::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let handler = {
            let world = world.clone();
            move |method: Method, uri: Uri, body: Bytes| handle(world.clone(), method, uri, body)
        };
        let app = Router::new().fallback(handler);
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { world, address, _task: Arc::new(Task(task)) }
    }

    /// A client by plain HTTP.
    pub(crate) fn api(&self) -> KubeApi {
        let mut config = kube::Config::new(format!("http://{}", self.address).parse().unwrap());
        config.default_retry = false;
        KubeApi::new(kube::Client::try_from(config).unwrap())
    }

    /// The record of node `n1`, whose provider is `scripted`.
    pub(crate) fn record(&self) -> Kubernetes {
        Kubernetes::new(Arc::new(self.api()), identity("daemon-1"))
    }

    pub(crate) fn side(&self, owner: &str) -> Side {
        Side::new(Arc::new(self.api()), identity(owner))
    }

    /// Puts an object there, with UID and version.
    pub(crate) fn put(&self, path: &str, mut object: Value) {
        let mut world = self.world.lock().unwrap();
        world.version += 1;
        let (name, version) = (path.rsplit('/').next().unwrap().to_owned(), world.version);
        let meta = &mut object["metadata"];
        if !meta.is_object() {
            *meta = json!({});
        }
        meta["name"] = name.into();
        meta["resourceVersion"] = version.to_string().into();
        if meta["uid"].is_null() {
            meta["uid"] = format!("uid-{version}").into();
        }
        let parts: Vec<&str> = path.split('/').collect();
        if let Some(at) =
            parts.iter().position(|part| *part == "namespaces").filter(|at| at + 2 < parts.len())
        {
            meta["namespace"] = parts[at + 1].into();
        }
        world.objects.insert(path.to_owned(), object);
    }

    /// Puts pod `shop/<name>` on node `n1`.
    pub(crate) fn pod(&self, name: &str, uid: &str) {
        let pod = json!({"metadata": {"uid": uid}, "spec": {"nodeName": "n1", "containers": []}});
        self.put(&format!("/api/v1/namespaces/shop/pods/{name}"), pod);
    }

    pub(crate) fn remove(&self, path: &str) {
        self.world.lock().unwrap().objects.remove(path);
    }

    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        self.world.lock().unwrap().objects.get(path).cloned()
    }

    /// Returns every object below a path.
    pub(crate) fn all(&self, folder: &str) -> Vec<Value> {
        let world = self.world.lock().unwrap();
        let inside = world.objects.iter().filter(|(path, _)| path.starts_with(&format!("{folder}/")));
        inside.map(|(_, object)| object.clone()).collect()
    }

    /// Changes an object by hand.
    pub(crate) fn change(&self, path: &str, change: impl FnOnce(&mut Value)) {
        let mut world = self.world.lock().unwrap();
        world.version += 1;
        let version = world.version.to_string();
        let object = world.objects.get_mut(path).unwrap();
        change(object);
        object["metadata"]["resourceVersion"] = version.into();
    }

    /// Has requests go wrong whose path contains `path`; for the next so many `times`, or always.
    pub(crate) fn fault(&self, method: Method, path: &str, fault: Fault, times: impl Into<Option<u32>>) {
        let rule = Rule { method, path: path.to_owned(), fault, times: times.into() };
        self.world.lock().unwrap().rules.push(rule);
    }

    pub(crate) fn mend(&self) {
        self.world.lock().unwrap().rules.clear();
    }

    pub(crate) fn without(&self, plural: &'static str) {
        self.world.lock().unwrap().undefined.push(plural);
    }

    pub(crate) fn with_older_definition(&self) {
        self.world.lock().unwrap().older = true;
    }

    /// Returns the requests so far, as method and path.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.world.lock().unwrap().requests.clone()
    }

    /// Counts the requests so far that begin with `what`.
    pub(crate) fn count(&self, what: &str) -> usize {
        self.requests().iter().filter(|request| request.starts_with(what)).count()
    }
}

pub(crate) fn identity(owner: &str) -> Identity {
    let mut who = Identity::new("n1", "scripted", owner);
    who.namespace = "peer-pods".into();
    who.profile = Some("eu".into());
    who
}

async fn handle(world: Arc<Mutex<World>>, method: Method, uri: Uri, body: Bytes) -> Response {
    let fault = {
        let mut world = world.lock().unwrap();
        world.requests.push(format!("{method} {}", uri.path()));
        let hit = world.rules.iter_mut().find(|rule| {
            rule.method == method && uri.to_string().contains(&rule.path) && rule.times != Some(0)
        });
        hit.map(|rule| {
            rule.times = rule.times.map(|left| left - 1);
            rule.fault.clone()
        })
    };
    match fault {
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::Code(code)) => refuse(code, "", "as the test told").into_response(),
        Some(Fault::LostReply) => {
            let _ = answer(&mut world.lock().unwrap(), &method, &uri, &body);
            refuse(504, "", "the answer is lost").into_response()
        }
        None => match answer(&mut world.lock().unwrap(), &method, &uri, &body) {
            Ok(value) => axum_json(StatusCode::OK, &value),
            Err(refused) => refused.into_response(),
        },
    }
}

fn axum_json(code: StatusCode, value: &Value) -> Response {
    (code, [("content-type", "application/json")], value.to_string()).into_response()
}

struct Refused(u16, Value);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let code = StatusCode::from_u16(self.0).unwrap();
        match self.1 {
            Value::String(text) => (code, text).into_response(),
            value => axum_json(code, &value),
        }
    }
}

fn refuse(code: u16, reason: &str, message: &str) -> Refused {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure",
        "code": code, "reason": reason, "message": message,
    });
    Refused(code, status)
}

fn missing(path: &str) -> Refused {
    let name = path.rsplit('/').next().unwrap();
    let mut refused = refuse(404, "NotFound", &format!("{name} not found"));
    refused.1["details"] = json!({"name": name});
    refused
}

fn answer(world: &mut World, method: &Method, uri: &Uri, body: &[u8]) -> Result<Value, Refused> {
    let path = uri.path().trim_end_matches("/status").to_owned();
    if world.undefined.iter().any(|plural| path.contains(&format!("/{plural}"))) {
        return Err(Refused(404, "404 page not found\n".into()));
    }
    let sent =
        || serde_json::from_slice::<Value>(body).map_err(|e| refuse(400, "BadRequest", &e.to_string()));
    match *method {
        Method::GET => match world.objects.get(&path) {
            Some(object) => Ok(object.clone()),
            None if is_collection(&path) => Ok(list(world, &path, uri.query().unwrap_or_default())),
            None => Err(missing(&path)),
        },
        Method::POST => {
            let mut object = sent()?;
            let path = format!("{path}/{}", object["metadata"]["name"].as_str().unwrap());
            if world.objects.contains_key(&path) {
                return Err(refuse(409, "AlreadyExists", "it exists"));
            }
            world.version += 1;
            let version = world.version;
            let meta = &mut object["metadata"];
            meta["uid"] = format!("uid-{version}").into();
            meta["resourceVersion"] = version.to_string().into();
            meta["creationTimestamp"] = "2026-01-01T00:00:00Z".into();
            store(world, &path, object)
        }
        Method::PATCH => {
            let before = world.objects.get(&path).cloned().ok_or_else(|| missing(&path))?;
            let mut object = before.clone();
            match sent()? {
                Value::Array(steps) => steps.iter().try_for_each(|step| json_step(&mut object, step))?,
                patch => {
                    for key in ["uid", "resourceVersion"] {
                        let wanted = &patch["metadata"][key];
                        if !wanted.is_null() && *wanted != before["metadata"][key] {
                            return Err(refuse(409, "Conflict", "the object has been modified"));
                        }
                    }
                    merge(&mut object, &patch);
                }
            }
            let finalizers =
                |object: &Value| object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
            let added = finalizers(&object).iter().any(|name| !finalizers(&before).contains(name));
            if added && before["metadata"]["deletionTimestamp"].is_string() {
                return Err(refuse(
                    422,
                    "Invalid",
                    "no new finalizers can be added if the object is being deleted",
                ));
            }
            if object != before {
                world.version += 1;
                object["metadata"]["resourceVersion"] = world.version.to_string().into();
            }
            store(world, &path, object)
        }
        Method::DELETE => {
            let mut object = world.objects.get(&path).cloned().ok_or_else(|| missing(&path))?;
            let wanted = sent().map(|options| options["preconditions"]["uid"].clone()).unwrap_or_default();
            if !wanted.is_null() && wanted != object["metadata"]["uid"] {
                return Err(refuse(409, "Conflict", "another UID"));
            }
            object["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            store(world, &path, object)
        }
        _ => Err(refuse(405, "MethodNotAllowed", "no such method")),
    }
}

/// Keeps an object, unless nothing holds it any more.
fn store(world: &mut World, path: &str, mut object: Value) -> Result<Value, Refused> {
    if world.older && path.contains("/peerpods/") {
        let spec = object["spec"].as_object_mut().unwrap();
        spec.retain(|key, _| key == "cloudProvider" || key == "instanceID");
    }
    let held = object["metadata"]["finalizers"].as_array().is_some_and(|f| !f.is_empty());
    if object["metadata"]["deletionTimestamp"].is_string() && !held {
        world.objects.remove(path);
    } else {
        world.objects.insert(path.to_owned(), object.clone());
    }
    Ok(object)
}

fn is_collection(path: &str) -> bool {
    let last = path.rsplit('/').next().unwrap();
    ["pods", "peerpods", "nodes", "events"].contains(&last)
}

/// Lists by the selector of nodes, in pages.
fn list(world: &World, path: &str, query: &str) -> Value {
    let query: BTreeMap<&str, &str> = query.split('&').filter_map(|pair| pair.split_once('=')).collect();
    let plural = path.rsplit('/').next().unwrap();
    let node = query.get("fieldSelector").map(|s| s.rsplit_once("%3D").unwrap().1);
    let found: Vec<&Value> = world
        .objects
        .iter()
        .filter(|(at, _)| at.contains(&format!("/{plural}/")))
        .filter(|(_, object)| node.is_none_or(|node| object["spec"]["nodeName"] == node))
        .map(|(_, object)| object)
        .collect();
    let from: usize = query.get("continue").map_or(0, |token| token.parse().unwrap());
    let size: usize = query.get("limit").map_or(usize::MAX, |limit| limit.parse().unwrap());
    let page: Vec<&Value> = found.iter().skip(from).take(size).copied().collect();
    let more = from + page.len() < found.len();
    let token = if more { (from + page.len()).to_string() } else { String::new() };
    json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1", "continue": token}, "items": page})
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(changes) = patch else { return target.clone_from(patch) };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in changes {
        if value.is_null() {
            target.as_object_mut().unwrap().remove(key);
        } else {
            merge(&mut target[key], value);
        }
    }
}

fn json_step(object: &mut Value, step: &Value) -> Result<(), Refused> {
    let failed = || refuse(422, "Invalid", "the server rejected our request due to an error in our request");
    let path = step["path"].as_str().unwrap();
    match step["op"].as_str().unwrap() {
        "test" => (object.pointer(path) == Some(&step["value"])).then_some(()).ok_or_else(failed),
        "remove" => {
            let (parent, key) = path.rsplit_once('/').unwrap();
            let key = key.replace("~1", "/").replace("~0", "~");
            let parent = object.pointer_mut(parent).and_then(Value::as_object_mut).ok_or_else(failed)?;
            parent.remove(&key).map(drop).ok_or_else(failed)
        }
        other => panic!("the server does not know {other}"),
    }
}
