//! What this replica knows, put together from its parts.

use super::board::{Board, Counts, Refusal, keys_of};
use k8s_api::object::ObjectKey;
use parking_lot::Mutex;
use push::Push;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// At most so many objects are asked about at once.
pub(crate) const MOST: usize = 500;

/// The proxies and objects of this replica.
pub(crate) struct Local {
    pub(crate) board: Mutex<Board>,
    pub(crate) push: Push,
    pub(crate) sessions: xds::Registry,
    /// What no other replica is called.
    pub(crate) name: String,
}

/// An object that somebody asks about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Asked {
    pub(crate) group: String,
    pub(crate) kind: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) generation: i64,
}

/// What a replica knows about what it was asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// Who answers.
    pub(crate) replica: String,
    /// In the order in which they were asked for; nothing for a generation that it does not have yet.
    pub(crate) counts: Vec<Option<Counts>>,
    /// What proxies refuse, of all objects.
    pub(crate) refusals: Vec<(Asked, Refusal)>,
}

impl Asked {
    pub(crate) fn new(key: &ObjectKey, generation: i64) -> Self {
        Self {
            group: key.group.clone().into_owned(),
            kind: key.kind.clone().into_owned(),
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            generation,
        }
    }

    pub(crate) fn key(&self) -> ObjectKey {
        ObjectKey {
            group: self.group.clone().into(),
            kind: self.kind.clone().into(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
        }
    }
}

impl Local {
    /// Looks how far proxies are. To be called about once a second: what a proxy refuses is put down to what has changed
    /// since.
    pub(crate) async fn observe(&self) {
        // In this order: proxies have been told of everything up to this view.
        let generation = self.push.stats().generation;
        let refused = self.board.lock().observe(self.sessions.progress(), generation, Instant::now());
        for version in refused {
            let (kind, name, hash) = &version;
            let Ok(objects) = self.push.objects_in(*kind, name, hash).await else { return };
            self.board.lock().blame(version, objects);
        }
    }

    /// Answers what is asked.
    pub(crate) async fn answer(&self, asked: &[Asked]) -> Answer {
        self.observe().await;
        let generation = self.push.stats().generation;
        let (mut keys, mut since) = (Vec::new(), Vec::new());
        {
            let board = self.board.lock();
            for asked in asked.iter().take(MOST) {
                let entry = board.entry(&asked.key(), asked.generation);
                let entry = entry.filter(|entry| entry.since <= generation);
                let object = entry.and_then(|entry| entry.object.as_ref());
                keys.push(object.map(|object| keys_of(object)).unwrap_or_default());
                since.push(entry.map(|entry| entry.since));
            }
        }
        let resting = self.push.resting_on(keys).await.unwrap_or_default();
        let (now, board) = (Instant::now(), self.board.lock());
        let counts = since.iter().zip(&resting);
        let counts = counts.map(|(since, resting)| Some(board.counts((*since)?, resting, now))).collect();
        let refusals = board.refusals().into_iter().filter_map(|(key, refusal)| {
            let generation = board.ours().find(|entry| entry.reported.key == key)?.reported.generation;
            Some((Asked::new(&key, generation), refusal))
        });
        Answer { replica: self.name.clone(), counts, refusals: refusals.take(MOST).collect() }
    }
}
