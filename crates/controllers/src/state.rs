//! How the sources are doing, for metrics and debugging.

use crate::trouble::{Trouble, Verdict};
use std::collections::BTreeMap;
use std::time::SystemTime;
use tokio::sync::watch;

/// The state of every source, by its name in [`crate::SOURCES`].
pub type States = BTreeMap<&'static str, SourceState>;

/// The state of a source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceState {
    /// Whether `Synced` was told.
    pub is_synced: bool,
    /// Whether the API server does not serve the kind: its CRD is not installed. It is looked for on and on.
    pub is_absent: bool,
    /// The number of objects told of.
    pub objects: usize,
    /// The number of complete lists: the first one, and one for each time that a watch could not be taken up again.
    pub lists: u64,
    /// The number of errors.
    pub errors: u64,
    /// The last error. It may be over: a watch without events does not say that it works again.
    pub last_error: Option<SourceError>,
    /// What cannot be decoded, and why. The last form that could be decoded stays in use.
    pub undecodable: BTreeMap<String, String>,
}

/// An error of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceError {
    /// What happened.
    pub message: String,
    /// When it happened.
    pub at: SystemTime,
}

/// Tells the state of one source, and logs what changes in it.
pub(crate) struct Reporter {
    name: &'static str,
    states: watch::Sender<States>,
    /// The message of the error that is not known to be over.
    failing: Option<String>,
}

impl Reporter {
    pub(crate) fn new(name: &'static str, states: watch::Sender<States>) -> Self {
        states.send_modify(|states| drop(states.insert(name, SourceState::default())));
        Self { name, states, failing: None }
    }

    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// An error has happened. The same error is logged once.
    pub(crate) fn failed(&mut self, trouble: &Trouble) {
        let message = &trouble.message;
        if self.failing.as_ref() == Some(message) {
            tracing::debug!(source = self.name, "{message}");
        } else if trouble.verdict == Verdict::Expired {
            tracing::info!(source = self.name, "listing again: {message}");
        } else {
            tracing::warn!(source = self.name, "{message}; what is known stays in use");
        }
        self.failing = Some(message.clone());
        let error = SourceError { message: message.clone(), at: SystemTime::now() };
        self.modify(|state| {
            state.errors += 1;
            state.last_error = Some(error);
        });
    }

    /// The API server does not serve the kind.
    pub(crate) fn absent(&mut self, group_version: &str) {
        self.recovered();
        let is_news = self.modify(|state| !std::mem::replace(&mut state.is_absent, true));
        if is_news {
            tracing::info!(
                source = self.name,
                group_version,
                "the API server does not serve this kind; it is used once its CRD is installed"
            );
        }
    }

    /// A list is complete.
    pub(crate) fn listed(&mut self, objects: usize) {
        self.recovered();
        let was_absent = self.modify(|state| {
            state.lists += 1;
            std::mem::take(&mut state.is_absent)
        });
        if was_absent {
            tracing::info!(source = self.name, objects, "the API server serves this kind now");
        } else {
            tracing::debug!(source = self.name, objects, "listed");
        }
    }

    /// Something has arrived.
    pub(crate) fn recovered(&mut self) {
        if self.failing.take().is_some() {
            tracing::info!(source = self.name, "works again");
        }
    }

    /// `Synced` was told.
    pub(crate) fn synced(&mut self) {
        self.modify(|state| state.is_synced = true);
    }

    /// This is what is known now.
    pub(crate) fn holds(&mut self, objects: usize, undecodable: &BTreeMap<String, String>) {
        self.states.send_if_modified(|states| {
            let state = states.entry(self.name).or_default();
            let is_news = state.objects != objects || state.undecodable != *undecodable;
            if is_news {
                state.objects = objects;
                state.undecodable.clone_from(undecodable);
            }
            is_news
        });
    }

    fn modify<R>(&self, change: impl FnOnce(&mut SourceState) -> R) -> R {
        let mut result = None;
        self.states.send_modify(|states| result = Some(change(states.entry(self.name).or_default())));
        result.expect("send_modify calls its argument")
    }
}
