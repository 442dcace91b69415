//! What users are told about their objects: the conditions `Accepted` and `Programmed` in the objects themselves.
//!
//! ```text
//! writer ─▶ Feed ══ Noted ══▶ Board: objects, and since which view ─┐
//! xds sessions ── progress ─▶ Board: proxies, and up to which view ─┴▶ Counts ─▶ conditions ══▶ writer of statuses
//!                                     other replicas ── their Counts, over mTLS ─┘
//! ```
//!
//! An object is in force in a proxy when the proxy has acknowledged everything of a view in which the object was in its
//! present form ([ADR 13](../../../docs/adr/0013-when-an-object-is-in-force.md)). Without `--write status` nothing of
//! this exists.

mod board;
mod conditions;
mod feed;
mod local;
mod replicas;
mod report;
mod unsupported;

pub(crate) use feed::{Feed, Told};
pub(crate) use unsupported::follow as follow_unsupported;

use crate::secure::Secure;
use crate::writer::WriterState;
use axum::Router;
use board::Board;
use controllers::{Leads, Reported, Seen, Statuses};
use local::Local;
use parking_lot::Mutex;
use push::Push;
use replicas::Peers;
use report::Reporting;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

/// What whoever writes conditions needs.
pub(crate) struct StatusWriting {
    /// What is to be said about objects.
    pub(crate) wanted: watch::Receiver<Arc<Statuses>>,
    /// The objects.
    pub(crate) seen: mpsc::UnboundedReceiver<Seen<Reported>>,
    /// Where to tell whether this replica writes.
    pub(crate) leads: watch::Sender<Option<Leads>>,
}

/// What is known of objects and proxies here.
pub(crate) struct Ground {
    pub(crate) told: mpsc::UnboundedReceiver<Told>,
    pub(crate) unsupported: mpsc::UnboundedReceiver<Reported>,
    pub(crate) push: Push,
    pub(crate) sessions: xds::Registry,
    pub(crate) state: watch::Receiver<WriterState>,
    /// weftd's namespace and service account, and what no other replica is called.
    pub(crate) namespace: String,
    pub(crate) account: String,
    pub(crate) name: String,
}

/// Begins to find out how objects are. Returns what is to be served to other replicas, and what a writer needs.
pub(crate) fn start(
    ground: Ground,
    secure: &Secure,
    tasks: &mut JoinSet<anyhow::Result<()>>,
) -> (Router, StatusWriting) {
    let Ground { told, unsupported, push, sessions, state, namespace, account, name } = ground;
    let local = Arc::new(Local { board: Mutex::new(Board::default()), push, sessions, name });
    let own = secure.own_identity(&namespace, &account);
    let route = replicas::route(local.clone(), own.clone());
    let peers = secure.name().map(|server| Peers { identity: own, server });
    let (objects, seen) = mpsc::unbounded_channel();
    let (statuses, wanted) = watch::channel(Arc::default());
    let (leads, leading) = watch::channel(None);
    let reporting = Reporting { local, peers, told, unsupported, state, seen: objects, wanted: statuses };
    tasks.spawn(async move {
        report::report(reporting, leading).await;
        anyhow::bail!("nobody reports on objects any more")
    });
    (route, StatusWriting { wanted, seen, leads })
}
