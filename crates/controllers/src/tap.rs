//! A source for those who are no index: hands on objects as they are seen.

use crate::kinds::{Absence, Watched};
use crate::objects::{Follower, note_undecodable};
use crate::outage::Outage;
use crate::source::{Progress, Source};
use crate::state::{Reporter, States};
use index::Change;
use k8s_api::object::ObjectKey;
use kube::core::DeserializeGuard;
use kube::{Api, Client};
use std::collections::{BTreeMap, HashSet};
use tokio::sync::{mpsc, watch};

/// Namespace and name.
pub(crate) type Name = (String, String);

/// What is seen. What cannot be decoded is not seen at all.
#[derive(Debug, PartialEq)]
pub enum Seen<K> {
    /// These are all.
    All(Vec<K>),
    /// This is new or different.
    Is(K),
    /// The one with this namespace and name is gone.
    Gone((String, String)),
}

/// Which objects are watched.
pub(crate) struct Selection {
    /// The source's name in logs.
    pub(crate) name: &'static str,
    /// A selector of fields.
    pub(crate) fields: Option<String>,
    /// A selector of labels.
    pub(crate) labels: Option<String>,
    /// What stands for an empty list.
    pub(crate) absence: Absence,
}

/// Watches for as long as the future lives and somebody listens.
pub(crate) async fn tap<K: Watched>(
    client: Client,
    api: Api<DeserializeGuard<K>>,
    selection: Selection,
    sender: mpsc::UnboundedSender<Seen<K>>,
) {
    let (changes, mut told) = mpsc::channel(1);
    let closed = sender.clone();
    let source = Source {
        api,
        fields: selection.fields,
        labels: selection.labels,
        absence: selection.absence,
        follower: Tap { sender, known: HashSet::new(), undecodable: BTreeMap::new() },
        reporter: Reporter::new(selection.name, watch::channel(States::new()).0),
        outage: Outage::new(client, changes.clone()),
        sender: changes,
        progress: Progress::new(),
    };
    // There are no changes but that the list is complete, and that there was an outage.
    let drain = async { while told.recv().await.is_some() {} };
    tokio::select! {
        ((), ()) = async { tokio::join!(source.run(), drain) } => {}
        () = closed.closed() => {}
    }
}

struct Tap<K> {
    sender: mpsc::UnboundedSender<Seen<K>>,
    known: HashSet<Name>,
    undecodable: BTreeMap<String, String>,
}

impl<K: Watched> Tap<K> {
    fn judge(&mut self, object: DeserializeGuard<K>) -> Option<K> {
        let label = ObjectKey::of(&object).to_string();
        match object.0 {
            Ok(object) => {
                self.undecodable.remove(&label);
                self.known.insert(name_of(&object));
                Some(object)
            }
            Err(invalid) => {
                if note_undecodable(&mut self.undecodable, label.clone(), &invalid.error) {
                    tracing::warn!(object = label, error = invalid.error, "cannot be read");
                }
                None
            }
        }
    }
}

impl<K: Watched> Follower for Tap<K> {
    type Object = K;

    fn replace(&mut self, objects: Vec<DeserializeGuard<K>>) -> Option<Change> {
        self.known.clear();
        let seen = objects.into_iter().filter_map(|object| self.judge(object)).collect();
        // Whoever has stopped listening ends this too.
        let _ = self.sender.send(Seen::All(seen));
        None
    }

    fn apply(&mut self, object: DeserializeGuard<K>) -> Option<Change> {
        if let Some(object) = self.judge(object) {
            let _ = self.sender.send(Seen::Is(object));
        }
        None
    }

    fn delete(&mut self, object: &DeserializeGuard<K>) -> Option<Change> {
        let name = name_of(object);
        self.undecodable.remove(&ObjectKey::of(object).to_string());
        self.known.remove(&name);
        let _ = self.sender.send(Seen::Gone(name));
        None
    }

    fn len(&self) -> usize {
        self.known.len()
    }

    fn undecodable(&self) -> &BTreeMap<String, String> {
        &self.undecodable
    }
}

/// Returns namespace and name.
pub(crate) fn name_of<K: kube::Resource>(object: &K) -> Name {
    let metadata = object.meta();
    (metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
}
