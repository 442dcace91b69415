//! The thread that owns the engine.
//!
//! Compilation is work for a processor, not for an async runtime, so the engine has a thread of its own. What
//! arrives while it works is taken in together afterwards: the first change leaves at once, and under load the
//! rate adapts to what compilation takes. There is no timer.

use crate::engine::{Engine, Resting, SessionId};
use crate::memo::Counters;
use model::{ChangeSet, Key, MeshView, ObjectKey, Proxy};
use proto::resource::{ResourceType, Snapshot};
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Instant;
use tokio::sync::{oneshot, watch};
use tracing::{error, info};

/// A handle to the engine. Cheap to clone; the thread ends when the last one is gone.
#[derive(Clone, Debug)]
pub struct Push {
    commands: mpsc::Sender<Command>,
    stats: watch::Receiver<Stats>,
}

/// What the engine holds and has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// The generation of the view that snapshots are made from.
    pub generation: u64,
    /// Connected proxies.
    pub sessions: usize,
    /// Different selections among them.
    pub groups: usize,
    /// Answers that are remembered.
    pub remembered: usize,
    /// Work done since the start.
    pub counters: Counters,
    /// Compiler defects met since the start.
    pub failures: u64,
}

/// The engine has ended, which happens only when the process is about to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the push engine has stopped")]
pub struct Stopped;

/// A proxy's place in the engine. Dropping it gives the place up.
#[derive(Debug)]
pub struct Connected {
    /// The newest snapshot.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    id: SessionId,
    commands: mpsc::Sender<Command>,
}

impl Drop for Connected {
    fn drop(&mut self) {
        // If the engine is gone there is no place to give up.
        let _ = self.commands.send(Command::Disconnect(self.id));
    }
}

enum Command {
    View(Arc<MeshView>, ChangeSet),
    Connect(Box<Proxy>, oneshot::Sender<Connected>, mpsc::Sender<Self>),
    Disconnect(SessionId),
    RestingOn(Vec<Vec<Key>>, oneshot::Sender<Vec<Resting>>),
    ObjectsIn(ResourceType, Arc<str>, Arc<str>, oneshot::Sender<BTreeSet<ObjectKey>>),
}

impl Push {
    /// Starts the engine's thread.
    ///
    /// # Errors
    ///
    /// The operating system's, if it has no thread to give.
    pub fn spawn(view: Arc<MeshView>) -> io::Result<Self> {
        let (commands, inbox) = mpsc::channel();
        let (stats_sender, stats) = watch::channel(Stats::default());
        thread::Builder::new()
            .name("push".to_owned())
            .spawn(move || run(Engine::new(view), &inbox, &stats_sender))?;
        Ok(Self { commands, stats })
    }

    /// Makes `view`, which differs from the last one in `changes`, the newest.
    pub fn publish(&self, view: Arc<MeshView>, changes: ChangeSet) {
        // If the engine is gone there is nobody to tell.
        let _ = self.commands.send(Command::View(view, changes));
    }

    /// Adds a proxy and waits for its first snapshot.
    ///
    /// # Errors
    ///
    /// If the engine has ended.
    pub async fn connect(&self, proxy: Proxy) -> Result<Connected, Stopped> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Connect(Box::new(proxy), reply, self.commands.clone());
        self.commands.send(command).map_err(|_| Stopped)?;
        answer.await.map_err(|_| Stopped)
    }

    /// Returns, for each of these sets of keys, the resources that rest on any of them. Compiles nothing, but takes its
    /// turn among changes: ask for what is needed, and not often.
    ///
    /// # Errors
    ///
    /// If the engine has ended.
    pub async fn resting_on(&self, keys: Vec<Vec<Key>>) -> Result<Vec<Resting>, Stopped> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::RestingOn(keys, reply)).map_err(|_| Stopped)?;
        answer.await.map_err(|_| Stopped)
    }

    /// Returns the objects that went into a version of a resource, see [`Engine::objects_in`].
    ///
    /// # Errors
    ///
    /// If the engine has ended.
    pub async fn objects_in(
        &self,
        kind: ResourceType,
        name: &Arc<str>,
        version: &Arc<str>,
    ) -> Result<BTreeSet<ObjectKey>, Stopped> {
        let (reply, answer) = oneshot::channel();
        let command = Command::ObjectsIn(kind, name.clone(), version.clone(), reply);
        self.commands.send(command).map_err(|_| Stopped)?;
        answer.await.map_err(|_| Stopped)
    }

    /// Returns what the engine holds and has done.
    pub fn stats(&self) -> Stats {
        *self.stats.borrow()
    }

    /// Waits until the engine's thread is gone. While there are handles, only a defect ends it.
    pub async fn ended(&self) {
        let mut stats = self.stats.clone();
        while stats.changed().await.is_ok() {}
    }
}

/// After this many disconnections answers that nobody needs any more are forgotten.
const SWEEP_AFTER: usize = 256;

fn run(mut engine: Engine, inbox: &mpsc::Receiver<Command>, stats: &watch::Sender<Stats>) {
    let mut left = 0;
    while let Ok(first) = inbox.recv() {
        let mut newest: Option<(Arc<MeshView>, ChangeSet)> = None;
        for command in std::iter::once(first).chain(inbox.try_iter()) {
            match command {
                Command::View(view, changes) => {
                    let merged = match newest.take() {
                        Some((_, mut earlier)) => {
                            earlier.merge(changes);
                            earlier
                        }
                        None => changes,
                    };
                    newest = Some((view, merged));
                }
                Command::Connect(proxy, reply, commands) => {
                    let (id, snapshots) = engine.connect(*proxy);
                    // A client that went away in the meantime drops its place by itself.
                    let _ = reply.send(Connected { snapshots, id, commands });
                }
                // Whoever asked may have stopped to wait.
                Command::RestingOn(keys, reply) => {
                    let _ = reply.send(keys.iter().map(|keys| engine.resting_on(keys)).collect());
                }
                Command::ObjectsIn(kind, name, version, reply) => {
                    let _ = reply.send(engine.objects_in(kind, &name, &version));
                }
                Command::Disconnect(id) => {
                    engine.disconnect(id);
                    left += 1;
                }
            }
        }
        if let Some((view, changes)) = newest {
            apply(&mut engine, view, &changes);
            left += 1;
        }
        if left >= SWEEP_AFTER {
            engine.sweep();
            left = 0;
        }
        report(&engine, stats);
    }
}

fn apply(engine: &mut Engine, view: Arc<MeshView>, changes: &ChangeSet) {
    let started = Instant::now();
    let generation = view.generation();
    let applied = engine.apply(view, changes);
    let causes: Vec<String> = changes.causes.iter().take(5).map(ToString::to_string).collect();
    info!(
        generation,
        objects = changes.causes.len(),
        causes = causes.join(", "),
        proxies = applied.sessions,
        computed = applied.evaluated,
        micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
        "mesh changed"
    );
}

fn report(engine: &Engine, stats: &watch::Sender<Stats>) {
    for (query, reason) in engine.take_failures() {
        error!(query, reason, "the compiler failed; the last good result stays in use");
    }
    stats.send_replace(Stats {
        generation: engine.view().generation(),
        sessions: engine.session_count(),
        groups: engine.group_count(),
        remembered: engine.remembered(),
        counters: engine.counters(),
        failures: engine.failures(),
    });
}
