//! The one place where views become snapshots.
//!
//! The engine is plain state without I/O: it is told of new views and of proxies that come and go, and puts
//! each proxy's newest snapshot into a watch channel, where a slow reader finds only the latest.

use crate::memo::{Computation, Counters, Memo, Root};
use compile::Shared;
use compile::audience::Selection;
use compile::query::{self, Answer, Evaluated, Query};
use model::{ChangeSet, Key, MeshView, ObjectKey, Proxy};
use proto::resource::{Resource, ResourceType, Snapshot};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use tokio::sync::watch;

/// Names a connected proxy for as long as it is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(u64);

/// Resources by type and name, in all versions that there are of them.
pub type Resting = BTreeMap<(ResourceType, Arc<str>), BTreeSet<Arc<str>>>;

/// What a change led to, for logs and metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Sessions that have a new snapshot.
    pub sessions: usize,
    /// Computations that were done.
    pub evaluated: u64,
}

/// Compiles for the connected proxies, no more than each change calls for.
pub struct Engine {
    compiler: Compiler,
    memo: Memo<Compiler>,
    sessions: HashMap<SessionId, Session>,
    groups: HashMap<Selection, Group>,
    next_id: u64,
}

struct Session {
    /// What is selected for it.
    choice: Root,
    selection: Selection,
    snapshots: watch::Sender<Arc<Snapshot>>,
}

/// The sessions with one selection, which all get the same.
struct Group {
    compiled: Root,
    members: BTreeSet<SessionId>,
    snapshot: Arc<Snapshot>,
}

impl Engine {
    /// Makes an engine without sessions.
    pub fn new(view: Arc<MeshView>) -> Self {
        Self {
            compiler: Compiler { view, failures: Cell::new(0), log: RefCell::default() },
            memo: Memo::default(),
            sessions: HashMap::new(),
            groups: HashMap::new(),
            next_id: 0,
        }
    }

    /// Returns the view that snapshots are made from.
    pub fn view(&self) -> &Arc<MeshView> {
        &self.compiler.view
    }

    /// Adds a proxy. Its first snapshot is in the channel already.
    pub fn connect(&mut self, proxy: Proxy) -> (SessionId, watch::Receiver<Arc<Snapshot>>) {
        let proxy = Shared::new(proxy);
        let id = SessionId(self.next_id);
        self.next_id += 1;
        let choice = self.memo.retain(&Query::Select(proxy));
        let selection = select(&mut self.memo, &self.compiler, &choice);
        let snapshot = self.join(id, &selection);
        let (snapshots, receiver) = watch::channel(snapshot);
        self.sessions.insert(id, Session { choice, selection, snapshots });
        (id, receiver)
    }

    /// Removes a proxy. What was compiled for it is kept until the next [`Engine::sweep`], since proxies come back.
    pub fn disconnect(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.remove(&id) {
            self.leave(id, &session.selection);
            self.memo.release(session.choice);
        }
    }

    /// Takes in a new view, which differs from the last one in `changes`, and updates every session that it
    /// concerns.
    pub fn apply(&mut self, view: Arc<MeshView>, changes: &ChangeSet) -> Applied {
        let before = self.memo.counters().evaluated;
        self.compiler.view = view;
        self.memo.invalidate(&changes.keys);
        // Before anything is asked: answering for one session cleans what another one waits for.
        let stale: Vec<Selection> = self
            .groups
            .iter()
            .filter(|(_, group)| !self.memo.is_clean(&group.compiled))
            .map(|(selection, _)| selection.clone())
            .collect();
        let mut told = BTreeSet::new();
        self.reselect(&mut told);
        for selection in stale {
            let Some(group) = self.groups.get_mut(&selection) else { continue };
            let snapshot = compile(&mut self.memo, &self.compiler, &group.compiled);
            group.snapshot = snapshot.clone();
            for id in &group.members {
                let Some(session) = self.sessions.get(id) else { continue };
                if !Arc::ptr_eq(&session.snapshots.borrow(), &snapshot) {
                    session.snapshots.send_replace(snapshot.clone());
                    told.insert(*id);
                }
            }
        }
        Applied { sessions: told.len(), evaluated: self.memo.counters().evaluated - before }
    }

    /// Moves sessions whose selection has changed.
    fn reselect(&mut self, told: &mut BTreeSet<SessionId>) {
        let stale: Vec<SessionId> = self
            .sessions
            .iter()
            .filter(|(_, session)| !self.memo.is_clean(&session.choice))
            .map(|(id, _)| *id)
            .collect();
        for id in stale {
            let Some(session) = self.sessions.get_mut(&id) else { continue };
            let selection = select(&mut self.memo, &self.compiler, &session.choice);
            if session.selection == selection {
                continue;
            }
            let old = std::mem::replace(&mut session.selection, selection.clone());
            let snapshot = self.join(id, &selection);
            self.leave(id, &old);
            if let Some(session) = self.sessions.get(&id)
                && !query::same_snapshot(&session.snapshots.borrow(), &snapshot)
            {
                session.snapshots.send_replace(snapshot);
                told.insert(id);
            }
        }
    }

    /// Forgets what is no longer needed by anyone and returns how many answers that were.
    pub fn sweep(&mut self) -> usize {
        self.memo.sweep()
    }

    /// Returns the number of connected proxies.
    pub fn session_count(&self) -> usize {
        self.sessions.len()
    }

    /// Returns the number of different selections among them.
    pub fn group_count(&self) -> usize {
        self.groups.len()
    }

    /// Returns the newest snapshot of a session.
    pub fn snapshot(&self, id: SessionId) -> Option<Arc<Snapshot>> {
        self.sessions.get(&id).map(|session| session.snapshots.borrow().clone())
    }

    /// Returns the resources that rest on any of these keys, whoever gets them.
    pub fn resting_on(&self, keys: &[Key]) -> Resting {
        let mut resting = Resting::default();
        self.memo.above(keys, |_, answer| {
            let resources: &[Arc<Resource>] = match answer {
                Answer::Resource(resource) => resource.as_slice(),
                Answer::Resources(resources) => resources,
                // They hold what was met on the way to them.
                Answer::Set(_) | Answer::Snapshot(_) => return false,
                _ => return true,
            };
            for resource in resources {
                let named = resting.entry((resource.kind(), resource.name().clone())).or_default();
                named.insert(resource.version().clone());
            }
            true
        });
        resting
    }

    /// Returns the objects that went into this version of a resource, as far as they are read by their own names. Looks at
    /// everything that is remembered: this is for what seldom happens.
    pub fn objects_in(&self, kind: ResourceType, name: &str, version: &str) -> BTreeSet<ObjectKey> {
        let is_it = |resource: &Arc<Resource>| {
            resource.kind() == kind && **resource.name() == *name && **resource.version() == *version
        };
        let keys = self.memo.below(|answer| match answer {
            Answer::Resource(resource) => resource.iter().any(is_it),
            Answer::Resources(resources) => resources.iter().any(is_it),
            _ => false,
        });
        let objects = keys.into_iter().filter_map(|key| match key {
            Key::Object(object) => Some(object),
            _ => None,
        });
        objects.collect()
    }

    /// Returns what was computed so far.
    pub fn counters(&self) -> Counters {
        self.memo.counters()
    }

    /// Returns the number of answers that are remembered.
    pub fn remembered(&self) -> usize {
        self.memo.len()
    }

    /// Returns and forgets the compiler's defects that were met, as query and reason.
    pub fn take_failures(&self) -> Vec<(String, String)> {
        self.compiler.log.take()
    }

    /// Returns how many defects were met in all.
    pub fn failures(&self) -> u64 {
        self.compiler.failures.get()
    }

    fn join(&mut self, id: SessionId, selection: &Selection) -> Arc<Snapshot> {
        if let Some(group) = self.groups.get_mut(selection) {
            group.members.insert(id);
            if self.memo.is_clean(&group.compiled) {
                return group.snapshot.clone();
            }
            // The others are told by `apply`, which is at work.
            return compile(&mut self.memo, &self.compiler, &group.compiled);
        }
        let compiled = self.memo.retain(&Query::Snapshot(selection.clone()));
        let snapshot = compile(&mut self.memo, &self.compiler, &compiled);
        let group = Group { compiled, members: BTreeSet::from([id]), snapshot: snapshot.clone() };
        self.groups.insert(selection.clone(), group);
        snapshot
    }

    fn leave(&mut self, id: SessionId, selection: &Selection) {
        let Some(group) = self.groups.get_mut(selection) else { return };
        group.members.remove(&id);
        if group.members.is_empty()
            && let Some(group) = self.groups.remove(selection)
        {
            self.memo.release(group.compiled);
        }
    }
}

/// Returns the answer of a selection query.
fn select(memo: &mut Memo<Compiler>, compiler: &Compiler, choice: &Root) -> Selection {
    match memo.ask_root(compiler, choice) {
        Answer::Selection(selection) => selection,
        other => unreachable!("a selection query is answered by a selection, not by {other:?}"),
    }
}

/// Returns the answer of a snapshot query.
fn compile(memo: &mut Memo<Compiler>, compiler: &Compiler, compiled: &Root) -> Arc<Snapshot> {
    match memo.ask_root(compiler, compiled) {
        Answer::Snapshot(snapshot) => snapshot,
        other => unreachable!("a snapshot query is answered by a snapshot, not by {other:?}"),
    }
}

/// The compiler as the memo sees it.
struct Compiler {
    view: Arc<MeshView>,
    failures: Cell<u64>,
    log: RefCell<Vec<(String, String)>>,
}

impl Computation for Compiler {
    type Query = Query;
    type Answer = Answer;
    type Key = Key;

    fn evaluate(
        &self,
        query: &Query,
        previous: Option<&Answer>,
        ask: &mut dyn FnMut(&Query) -> Answer,
    ) -> (Answer, BTreeSet<Key>) {
        let Evaluated { answer, reads, failure } = query::evaluate(&self.view, query, previous, ask);
        if let Some(reason) = failure {
            self.failures.set(self.failures.get() + 1);
            self.log.borrow_mut().push((query.to_string(), reason));
        }
        (answer, reads)
    }

    fn same(a: &Answer, b: &Answer) -> bool {
        a.same(b)
    }

    fn is_patched_by(query: &Query, below: &Query) -> bool {
        query.is_patched_by(below)
    }

    fn patch(&self, previous: &Answer, changed: &[Answer]) -> Option<Answer> {
        previous.patched(changed)
    }
}
