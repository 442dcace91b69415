//! An API server in memory: lists in pages, watches with bookmarks, versions that expire, and everything that can break.

use bytes::Bytes;
use futures::{Stream, stream};
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, sleep_until};

pub(crate) const SERVICES: &str = "/api/v1/services";
pub(crate) const NODES: &str = "/api/v1/nodes";
pub(crate) const SECRETS: &str = "/api/v1/secrets";
pub(crate) const CONFIG_MAPS: &str = "/api/v1/namespaces/istio-system/configmaps";
pub(crate) const VIRTUAL_SERVICES: &str = "/apis/networking.istio.io/v1/virtualservices";

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/";
const OTHERS: &[&str] = &[
    "/apis/discovery.k8s.io/v1/endpointslices",
    "/api/v1/pods",
    "/api/v1/namespaces",
    "/apis/networking.istio.io/v1/destinationrules",
    "/apis/networking.istio.io/v1/gateways",
    "/apis/networking.istio.io/v1/serviceentries",
    "/apis/networking.istio.io/v1/workloadentries",
    "/apis/networking.istio.io/v1/sidecars",
    "/apis/security.istio.io/v1/peerauthentications",
    "/apis/gateway.networking.k8s.io/v1beta1/referencegrants",
    "/api/v1/configmaps",
    "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations",
];
/// Smaller than what clients ask for, so that lists have pages.
const PAGE: usize = 2;

type FakeBody = UnsyncBoxBody<Bytes, Infallible>;
type Answer = io::Result<Response<FakeBody>>;

#[derive(Clone)]
pub(crate) struct Fake(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    version: u64,
    is_down: bool,
    collections: HashMap<&'static str, Collection>,
    definitions: BTreeSet<String>,
    requests: Vec<String>,
}

#[derive(Default)]
struct Collection {
    is_served: bool,
    objects: BTreeMap<String, Value>,
    /// Every event, by the version that it made.
    log: Vec<(u64, Value)>,
    /// Watches from versions before this one are refused.
    oldest: u64,
    watches: Vec<UnboundedSender<Message>>,
    /// What lists are answered with.
    list_status: Option<u16>,
    /// What requests for further pages are answered with, once.
    page_status: Option<u16>,
    /// What watches are answered with.
    watch_status: Option<u16>,
    /// Lists that are being read, by continue token.
    snapshots: Vec<(u64, Vec<Value>)>,
}

enum Message {
    Text(String),
    /// From here on nothing arrives, not even the end.
    Mute,
}

impl Fake {
    pub(crate) fn new() -> Self {
        let mut state = State { version: 100, ..State::default() };
        let ours = [SERVICES, NODES, SECRETS, CONFIG_MAPS, VIRTUAL_SERVICES];
        for path in ours.iter().chain(OTHERS) {
            state.collections.insert(path, Collection { is_served: true, ..Collection::default() });
        }
        state.definitions.insert("virtualservices.networking.istio.io".to_owned());
        Self(Arc::new(Mutex::new(state)))
    }

    pub(crate) fn client(&self) -> Client {
        let fake = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let answer = fake.answer(&request);
            async move { answer }
        });
        Client::new(service, "default")
    }

    /// Creates or changes an object.
    pub(crate) fn put(&self, path: &str, object: Value) {
        self.change(path, object, false, false);
    }

    /// As [`Fake::put`], but what watches get cannot be read.
    pub(crate) fn put_garbled(&self, path: &str, object: Value) {
        self.change(path, object, false, true);
    }

    pub(crate) fn delete(&self, path: &str, namespace: &str, name: &str) {
        let object = self.state().collection(path).objects.get(&format!("{namespace}/{name}")).cloned();
        if let Some(object) = object {
            self.change(path, object, true, false);
        }
    }

    fn change(&self, path: &str, mut object: Value, is_delete: bool, is_garbled: bool) {
        let mut state = self.state();
        state.version += 1;
        let version = state.version;
        let collection = state.collection(path);
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default().to_owned();
        let key = format!("{}/{}", text("namespace"), text("name"));
        let before = match is_delete {
            true => collection.objects.remove(&key),
            false => collection.objects.insert(key, object.clone()),
        };
        let kind = if is_delete {
            "DELETED"
        } else if before.is_some() {
            "MODIFIED"
        } else {
            "ADDED"
        };
        let event = json!({ "type": kind, "object": object });
        collection.log.push((version, event.clone()));
        match is_garbled {
            true => collection.send(&json!({ "type": kind, "object": { "metadata": 5 } })),
            false => collection.send(&event),
        }
    }

    /// Ends the watches in an orderly way.
    pub(crate) fn end_watches(&self, path: &str) {
        self.state().collection(path).watches.clear();
    }

    /// Ends the watches in the middle of an event.
    pub(crate) fn cut_watches(&self, path: &str) {
        let mut state = self.state();
        let collection = state.collection(path);
        collection.send_text(r#"{"type":"ADDED","object":{"apiVer"#);
        collection.watches.clear();
    }

    /// The connections of the watches are half open from now on.
    pub(crate) fn mute_watches(&self, path: &str) {
        for watch in self.state().collection(path).watches.drain(..) {
            let _ = watch.send(Message::Mute);
        }
    }

    /// Ends the watches with an error.
    pub(crate) fn fail_watches(&self, path: &str, code: u16) {
        let mut state = self.state();
        let collection = state.collection(path);
        collection.send(&json!({ "type": "ERROR", "object": status(code, "out of order", "") }));
        collection.watches.clear();
    }

    /// Tells watches the version.
    pub(crate) fn bookmark(&self, path: &str) {
        let mut state = self.state();
        let version = state.version.to_string();
        state.collection(path).send(&json!({
            "type": "BOOKMARK",
            "object": { "apiVersion": "v1", "kind": "X", "metadata": { "resourceVersion": version } },
        }));
    }

    /// Forgets what watches that end now would need.
    pub(crate) fn compact(&self, path: &str) {
        let mut state = self.state();
        state.version += 1;
        let version = state.version;
        state.collection(path).oldest = version;
    }

    /// Lists are answered with this status.
    pub(crate) fn refuse_lists(&self, path: &str, code: Option<u16>) {
        self.state().collection(path).list_status = code;
    }

    /// Watches are answered with this status.
    pub(crate) fn refuse_watches(&self, path: &str, code: Option<u16>) {
        self.state().collection(path).watch_status = code;
    }

    /// The next further page is answered with this status.
    pub(crate) fn refuse_page(&self, path: &str, code: u16) {
        self.state().collection(path).page_status = Some(code);
    }

    /// Nobody answers: connections are refused, and those that were open are closed.
    pub(crate) fn set_down(&self, is_down: bool) {
        let mut state = self.state();
        state.is_down = is_down;
        if is_down {
            state.collections.values_mut().for_each(|collection| collection.watches.clear());
        }
    }

    /// The data is an hour old: versions start again from a lower one.
    pub(crate) fn restore_backup(&self, path: &str, objects: Vec<Value>) {
        let mut state = self.state();
        state.version = 10;
        let collection = state.collection(path);
        collection.watches.clear();
        collection.log.clear();
        collection.objects.clear();
        drop(state);
        objects.into_iter().for_each(|object| self.put(path, object));
    }

    /// Whether the kind is served, and whether its CRD exists.
    pub(crate) fn serve(&self, path: &str, is_served: bool, is_defined: bool) {
        let mut state = self.state();
        let collection = state.collection(path);
        collection.is_served = is_served;
        collection.watches.clear();
        let name = "virtualservices.networking.istio.io".to_owned();
        match is_defined {
            true => drop(state.definitions.insert(name)),
            false => drop(state.definitions.remove(&name)),
        }
    }

    /// Returns the requests so far.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.state().requests.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    fn answer(&self, request: &Request<Body>) -> Answer {
        let mut state = self.state();
        let path = request.uri().path();
        let query = request.uri().query().unwrap_or_default();
        state.requests.push(format!("{path}?{query}"));
        if state.is_down {
            return Err(io::Error::from(io::ErrorKind::ConnectionRefused));
        }
        if let Some(name) = path.strip_prefix(DEFINITIONS) {
            return match state.definitions.contains(name) {
                true => json_answer(200, &json!({ "metadata": { "name": name } })),
                false => json_answer(404, &status(404, "not found", name)),
            };
        }
        let version = state.version;
        let Some(collection) = state.collections.get_mut(path).filter(|collection| collection.is_served)
        else {
            let body = Full::new(Bytes::from_static(b"404 page not found\n"));
            return Ok(Response::builder().status(404).body(UnsyncBoxBody::new(body)).unwrap());
        };
        let parameter = |name: &str| {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
        };
        if parameter("watch").is_some() {
            let from = parameter("resourceVersion").unwrap().parse().unwrap();
            let seconds = parameter("timeoutSeconds").unwrap().parse().unwrap();
            return collection.watch(from, version, Duration::from_secs(seconds));
        }
        collection.list(parameter("continue"), version)
    }
}

impl State {
    fn collection(&mut self, path: &str) -> &mut Collection {
        self.collections.get_mut(path).unwrap()
    }
}

impl Collection {
    fn send(&mut self, event: &Value) {
        self.send_text(&format!("{event}\n"));
    }

    fn send_text(&mut self, text: &str) {
        self.watches.retain(|watch| watch.send(Message::Text(text.to_owned())).is_ok());
    }

    fn list(&mut self, token: Option<String>, version: u64) -> Answer {
        let refusal = if token.is_some() { self.page_status.take() } else { self.list_status };
        if let Some(code) = refusal {
            return json_answer(code, &status(code, "no list for you", ""));
        }
        let (version, items, offset) = match token {
            Some(token) => {
                let (snapshot, offset) = token.split_once('-').unwrap();
                let (version, items) = &self.snapshots[snapshot.parse::<usize>().unwrap()];
                (*version, items.clone(), offset.parse().unwrap())
            }
            None => {
                let items: Vec<Value> = self.objects.values().cloned().collect();
                self.snapshots.push((version, items.clone()));
                (version, items, 0)
            }
        };
        let end = usize::min(offset + PAGE, items.len());
        let token = match end < items.len() {
            true => format!("{}-{end}", self.snapshots.len() - 1),
            false => String::new(),
        };
        let metadata = json!({ "resourceVersion": version.to_string(), "continue": token });
        let list =
            json!({ "apiVersion": "v1", "kind": "List", "metadata": metadata, "items": items[offset..end] });
        json_answer(200, &list)
    }

    fn watch(&mut self, from: u64, version: u64, lifetime: Duration) -> Answer {
        if let Some(code) = self.watch_status {
            return json_answer(code, &status(code, "no watch for you", ""));
        }
        if from > version {
            return json_answer(504, &status(504, "Too large resource version", ""));
        }
        let (sender, receiver) = unbounded_channel();
        let send = |event: &Value| drop(sender.send(Message::Text(format!("{event}\n"))));
        if from < self.oldest {
            send(&json!({ "type": "ERROR", "object": status(410, "too old resource version", "") }));
        } else {
            self.log.iter().filter(|(version, _)| *version > from).for_each(|(_, event)| send(event));
            self.watches.push(sender);
        }
        let body = StreamBody::new(frames(receiver, Instant::now() + lifetime));
        Ok(Response::new(UnsyncBoxBody::new(body.boxed_unsync())))
    }
}

fn frames(
    receiver: UnboundedReceiver<Message>,
    end: Instant,
) -> impl Stream<Item = Result<Frame<Bytes>, Infallible>> + Send {
    stream::unfold((receiver, end), |(mut receiver, end)| async move {
        let message = tokio::select! {
            biased;
            message = receiver.recv() => message?,
            () = sleep_until(end) => return None,
        };
        match message {
            Message::Text(text) => Some((Ok(Frame::data(Bytes::from(text))), (receiver, end))),
            Message::Mute => std::future::pending().await,
        }
    })
}

fn json_answer(code: u16, value: &Value) -> Answer {
    let body = UnsyncBoxBody::new(Full::new(Bytes::from(value.to_string())));
    Ok(Response::builder().status(StatusCode::from_u16(code).unwrap()).body(body).unwrap())
}

fn status(code: u16, message: &str, name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "message": message,
        "reason": "X", "details": { "name": name },
    })
}
