//! One source: lists and watches one kind for as long as somebody listens.
//!
//! ```text
//! list ─▶ Init, InitApply.., InitDone ─▶ one Reset ─▶ Synced (once)
//!   ▲          └ breaks off: thrown away, again
//!   └── watch ─▶ Apply, Delete ─▶ the same
//!          ├ ends after 35 s, or is silent for 40 s: taken up where it was
//!          └ error: taken up after a pause, or listed again if events may be lost; an outage ends for all sources at once
//! ```

use crate::backoff::Backoff;
use crate::kinds::{Absence, Watched};
use crate::objects::Follower;
use crate::outage::Outage;
use crate::state::Reporter;
use crate::trouble::{Trouble, Verdict};
use futures::StreamExt;
use index::Change;
use kube::core::DeserializeGuard;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource};
use std::convert::Infallible;
use std::pin::pin;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// How long the server lets a watch live. The watcher gives up on a silent one five seconds later, so a connection
/// whose other end is gone is noticed within 45 seconds; the library's default makes that 295.
const WATCH_SECONDS: u32 = 35;
/// How long a list must have been forbidden before it counts as empty.
const FORBIDDEN_FOR: Duration = Duration::from_secs(15);

/// Nobody listens any more.
pub(crate) struct Closed;

/// Watches one kind.
pub(crate) struct Source<F: Follower> {
    pub(crate) api: Api<DeserializeGuard<F::Object>>,
    pub(crate) fields: Option<String>,
    pub(crate) labels: Option<String>,
    pub(crate) absence: Absence,
    pub(crate) follower: F,
    pub(crate) reporter: Reporter,
    pub(crate) sender: mpsc::Sender<Change>,
    pub(crate) progress: Progress,
    pub(crate) outage: Outage,
}

/// How far a source has come.
#[derive(Default)]
pub(crate) struct Progress {
    is_synced: bool,
    forbidden_since: Option<Instant>,
}

impl<F: Follower> Source<F> {
    /// Lists and watches until nobody listens.
    pub(crate) async fn run(mut self) {
        let Err(Closed) = self.follow().await;
    }

    async fn follow(&mut self) -> Result<Infallible, Closed> {
        let mut backoff = Backoff::new();
        loop {
            let mut events = pin!(watcher(self.api.clone(), self.config()));
            let mut listed = Vec::new();
            while let Some(event) = events.next().await {
                match event {
                    Ok(event) => self.take_in(event, &mut listed).await?,
                    Err(error) => {
                        // What came of a list that broke off says nothing about what did not come.
                        listed = Vec::new();
                        let trouble = Trouble::of(&error);
                        self.suffer(&trouble).await?;
                        let delay = backoff.next_delay();
                        if self.outage.wait(delay).await {
                            backoff = Backoff::new();
                        }
                        if trouble.must_list {
                            break;
                        }
                    }
                }
            }
        }
    }

    fn config(&self) -> watcher::Config {
        let config = watcher::Config::default().timeout(WATCH_SECONDS);
        let config = self.fields.iter().fold(config, |config, fields| config.fields(fields));
        self.labels.iter().fold(config, |config, labels| config.labels(labels))
    }

    async fn take_in(
        &mut self,
        event: Event<DeserializeGuard<F::Object>>,
        listed: &mut Vec<DeserializeGuard<F::Object>>,
    ) -> Result<(), Closed> {
        let change = match event {
            Event::Init => {
                listed.clear();
                return Ok(());
            }
            Event::InitApply(object) => {
                listed.push(object);
                return Ok(());
            }
            Event::InitDone => {
                self.progress.forbidden_since = None;
                self.reporter.listed(listed.len());
                return self.complete(std::mem::take(listed)).await;
            }
            Event::Apply(object) => self.follower.apply(object),
            Event::Delete(object) => self.follower.delete(&object),
        };
        self.reporter.recovered();
        self.tell(change).await
    }

    /// Tells of a complete list, and at the first time that there is one.
    async fn complete(&mut self, objects: Vec<DeserializeGuard<F::Object>>) -> Result<(), Closed> {
        let change = self.follower.replace(objects);
        self.tell(change).await?;
        if !std::mem::replace(&mut self.progress.is_synced, true) {
            self.tell(Some(Change::Synced(self.reporter.name()))).await?;
            self.reporter.synced();
        }
        Ok(())
    }

    async fn tell(&mut self, change: Option<Change>) -> Result<(), Closed> {
        self.reporter.holds(self.follower.len(), self.follower.undecodable());
        match change {
            Some(change) => self.sender.send(change).await.map_err(|_| Closed),
            None => Ok(()),
        }
    }

    /// Looks at an error: it may be that the kind is not there, which counts as a complete list if nothing is known.
    async fn suffer(&mut self, trouble: &Trouble) -> Result<(), Closed> {
        if trouble.verdict != Verdict::Forbidden {
            self.progress.forbidden_since = None;
        }
        match (trouble.verdict, self.absence) {
            (Verdict::NotServed, Absence::NotServed) => {
                if self.follower.len() > 0
                    && !definition_is_gone::<F::Object>(self.api.clone().into_client()).await
                {
                    // An API server that starts, or a CRD without this version: no reason to forget anything.
                    self.reporter.failed(trouble);
                    return Ok(());
                }
                let group = F::Object::group(&());
                self.reporter.absent(&format!("{group}/{}", F::Object::version(&())));
                if self.follower.len() > 0 || !self.progress.is_synced {
                    self.complete(Vec::new()).await?;
                }
            }
            (Verdict::Forbidden, Absence::Forbidden) => {
                self.reporter.failed(trouble);
                let since = *self.progress.forbidden_since.get_or_insert_with(Instant::now);
                if !self.progress.is_synced && since.elapsed() >= FORBIDDEN_FOR {
                    tracing::warn!(source = self.reporter.name(), "not allowed to list; going on without");
                    self.complete(Vec::new()).await?;
                }
            }
            _ => self.reporter.failed(trouble),
        }
        Ok(())
    }
}

impl Progress {
    /// Returns the progress of a source that has not begun.
    pub(crate) fn new() -> Self {
        Self::default()
    }
}

/// Returns an [`Api`] of all namespaces.
pub(crate) fn everywhere<K: Watched>(client: &Client) -> Api<DeserializeGuard<K>> {
    Api::all(client.clone())
}

/// Returns whether the API server says that there is no CRD of the kind, and so no object. An error says nothing.
async fn definition_is_gone<K: Watched>(client: Client) -> bool {
    let name = format!("{}.{}", K::plural(&()), K::group(&()));
    let path = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}");
    let Ok(request) = http::Request::get(path).body(Vec::new()) else { return false };
    match client.request::<serde_json::Value>(request).await {
        Err(kube::Error::Api(status)) => {
            status.code == 404 && status.details.is_some_and(|details| details.name == name)
        }
        _ => false,
    }
}
