//! Keeps the objects of one kind in order while this process leads: the loop around an [`Agenda`].

use super::agenda::{Agenda, Next};
use super::{WriteState, WriteStates};
use crate::tap::Seen;
use crate::trouble::reason;
use http::{Method, Request};
use kube::Client;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::fmt::Display;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// How long a write may take.
const LIMIT: Duration = Duration::from_secs(10);

/// What is kept in order.
pub(super) trait Domain: Send {
    /// What names an object.
    type Key: Ord + Clone + Display + Send + Sync;
    /// The kind.
    type Object: DeserializeOwned + Send;
    /// What the objects are to be like.
    type Wanted: Clone + Send + Sync;

    /// Takes in what is seen, and returns the objects that may be different now; nothing for all of them.
    fn take_in(&mut self, seen: Seen<Self::Object>) -> Option<Vec<Self::Key>>;
    /// Takes in what objects are to be like.
    fn want(&mut self, wanted: Self::Wanted);
    /// Returns all objects that there are or should be.
    fn keys(&self) -> Vec<Self::Key>;
    /// Returns whether the object is there, or should be.
    fn has(&self, key: &Self::Key) -> bool;
    /// Returns what has to be written; nothing if the object is as it should be.
    fn difference(&self, key: &Self::Key) -> Option<Apply>;
}

/// A server-side apply.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Apply {
    /// The object's path.
    pub(super) path: String,
    /// The fields that are ours, and the version that they rest on.
    pub(super) body: Value,
    /// Stands for what is wanted.
    pub(super) want: u64,
}

/// Returns what stands for a value.
pub(super) fn stands_for(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// A loop.
pub(super) struct Keeper<D: Domain> {
    pub(super) name: &'static str,
    /// The name that fields are owned by. What it does not name in a write is not its own any more.
    pub(super) manager: &'static str,
    pub(super) client: Client,
    pub(super) domain: D,
    pub(super) seen: mpsc::UnboundedReceiver<Seen<D::Object>>,
    pub(super) wanted: watch::Receiver<D::Wanted>,
    pub(super) leads: watch::Receiver<Option<Instant>>,
    pub(super) states: watch::Sender<WriteStates>,
}

impl<D: Domain> Keeper<D> {
    /// Goes on for as long as the future lives.
    pub(super) async fn keep(mut self) {
        let mut agenda = Agenda::new(Instant::now());
        let mut led = false;
        let first = self.wanted.borrow_and_update().clone();
        self.domain.want(first);
        loop {
            let now = Instant::now();
            let until = *self.leads.borrow_and_update();
            let until = until.filter(|until| *until > now);
            if std::mem::replace(&mut led, until.is_some()) != until.is_some() {
                agenda.begin_term();
            }
            let wait = match until {
                None => None,
                Some(until) => match agenda.next(now) {
                    Next::Write(key) => {
                        self.write(&mut agenda, &key, until).await;
                        continue;
                    }
                    Next::Wait(wait) => wait,
                },
            };
            let alarm = async {
                match wait {
                    Some(wait) => tokio::time::sleep_until(wait).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                seen = self.seen.recv() => match seen {
                    Some(seen) => {
                        let concerned = self.domain.take_in(seen);
                        self.note(&mut agenda, concerned);
                    }
                    // Only when weftd ends.
                    None => return std::future::pending().await,
                },
                changed = self.wanted.changed() => {
                    if changed.is_err() {
                        return std::future::pending().await;
                    }
                    let wanted = self.wanted.borrow_and_update().clone();
                    self.domain.want(wanted);
                    self.note(&mut agenda, None);
                }
                changed = self.leads.changed() => if changed.is_err() {
                    return std::future::pending().await;
                },
                () = alarm => {}
            }
        }
    }

    /// Looks at objects; at all of them, if none is named.
    fn note(&self, agenda: &mut Agenda<D::Key>, concerned: Option<Vec<D::Key>>) {
        let now = Instant::now();
        for key in concerned.unwrap_or_else(|| self.domain.keys()) {
            match self.domain.difference(&key) {
                Some(apply) => {
                    if agenda.differs(&key, apply.want, now) {
                        tracing::warn!(object = %key, "somebody else has changed what weftd keeps in order");
                        self.count(|state| state.corrections += 1);
                    }
                }
                None if self.domain.has(&key) => agenda.agrees(&key),
                None => agenda.forget(&key),
            }
        }
    }

    async fn write(&mut self, agenda: &mut Agenda<D::Key>, key: &D::Key, until: Instant) {
        let Some(apply) = self.domain.difference(key) else { return agenda.agrees(key) };
        // Whoever leads next must not be overtaken by what was asked for before.
        let limit = until.min(Instant::now() + LIMIT);
        let sent = tokio::time::timeout_at(limit, self.send(&apply)).await;
        let failure = match sent {
            Ok(Ok(object)) => {
                agenda.wrote(key, apply.want);
                tracing::info!(object = %key, "written");
                self.count(|state| {
                    state.writes += 1;
                    state.last_error = None;
                });
                // The watch tells of it again, which is no news then.
                if let Some(object) = object {
                    let concerned = self.domain.take_in(Seen::Is(object));
                    self.note(agenda, concerned);
                }
                return;
            }
            Ok(Err(failure)) => failure,
            Err(_) => "no answer in time".to_owned(),
        };
        agenda.failed(key, Instant::now());
        let text = format!("{key}: {failure}");
        let is_news =
            self.states.borrow().get(self.name).and_then(|state| state.last_error.as_ref()) != Some(&text);
        if is_news {
            tracing::warn!(object = %key, reason = failure, "cannot be written; trying again");
        }
        self.count(|state| {
            state.failures += 1;
            state.last_error = Some(text);
        });
    }

    async fn send(&self, apply: &Apply) -> Result<Option<D::Object>, String> {
        let path = format!("{}?fieldManager={}&force=true", apply.path, self.manager);
        let request = Request::builder()
            .method(Method::PATCH)
            .uri(path)
            .header(http::header::CONTENT_TYPE, "application/apply-patch+yaml")
            .body(apply.body.to_string().into_bytes())
            .map_err(|error| error.to_string())?;
        let answer: Value = self.client.request(request).await.map_err(|error| reason(&error))?;
        // What cannot be read here is seen by the watch.
        Ok(serde_json::from_value(answer).ok())
    }

    fn count(&self, change: impl FnOnce(&mut WriteState)) {
        self.states.send_modify(|states| change(states.entry(self.name).or_default()));
    }
}

/// Returns whether a version is older than the one that is known. Where versions are no numbers, nobody can tell.
pub(super) fn is_older(version: &str, known: &str) -> bool {
    matches!((version.parse::<u64>(), known.parse::<u64>()), (Ok(version), Ok(known)) if version < known)
}
