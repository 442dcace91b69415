//! The loop that reports: once a second it asks everybody about what is not settled yet.

use super::conditions::{Known, accepted, conditions, of_refused, unsupported};
use super::feed::Told;
use super::local::{Answer, Asked, Local, MOST};
use super::replicas::Peers;
use crate::writer::WriterState;
use controllers::{Leads, Reported, Seen, Statuses, Wish};
use k8s_api::object::ObjectKey;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{debug, warn};

/// How often conditions may change.
const PACE: Duration = Duration::from_secs(1);
/// A replica that has answered is not called silent before.
const PATIENCE: Duration = Duration::from_secs(3);

/// What reporting rests on.
pub(crate) struct Reporting {
    pub(crate) local: Arc<Local>,
    pub(crate) peers: Option<Peers>,
    pub(crate) told: mpsc::UnboundedReceiver<Told>,
    /// Objects of kinds that nobody acts on.
    pub(crate) unsupported: mpsc::UnboundedReceiver<Reported>,
    pub(crate) state: watch::Receiver<WriterState>,
    /// Where to tell how objects are.
    pub(crate) seen: mpsc::UnboundedSender<Seen<Reported>>,
    /// Where to tell what is to be said about them.
    pub(crate) wanted: watch::Sender<Arc<Statuses>>,
}

/// Reports for as long as the future lives.
pub(crate) async fn report(reporting: Reporting, mut leads: watch::Receiver<Option<Leads>>) {
    let Reporting { local, peers, mut told, mut unsupported, state, seen, wanted } = reporting;
    let mut reporter =
        Reporter { local, peers, state, wanted, wishes: Statuses::new(), answered: HashMap::new(), turn: 0 };
    let mut tick = tokio::time::interval(PACE);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            news = told.recv() => {
                // Only when weftd ends.
                let Some(news) = news else { return std::future::pending().await };
                for object in reporter.local.board.lock().take_in(news) {
                    let _ = seen.send(Seen::Is(object));
                }
            }
            Some(object) = unsupported.recv() => {
                let _ = seen.send(Seen::Is(object.clone()));
                reporter.local.board.lock().take_in_unsupported(object);
            }
            _ = tick.tick() => {
                reporter.local.observe().await;
                let is_leader = leads.borrow_and_update().as_ref().is_some_and(Leads::is_leader);
                match is_leader {
                    true => reporter.round().await,
                    // What was wanted in another term may be wrong in the next.
                    false => reporter.forget(),
                }
            }
        }
    }
}

struct Reporter {
    local: Arc<Local>,
    peers: Option<Peers>,
    state: watch::Receiver<WriterState>,
    wanted: watch::Sender<Arc<Statuses>>,
    wishes: Statuses,
    /// When a replica has answered last.
    answered: HashMap<SocketAddr, Instant>,
    /// Where to begin, if not all can be asked about at once.
    turn: usize,
}

/// What all replicas have said.
struct Answers {
    all: Vec<Answer>,
    silent: Vec<String>,
}

impl Reporter {
    fn forget(&mut self) {
        if !self.wishes.is_empty() {
            self.wishes.clear();
            self.wanted.send_replace(Arc::default());
        }
    }

    /// Finds out about everything that is not as it should be.
    async fn round(&mut self) {
        let findings = self.state.borrow().findings.clone();
        let (mut present, mut open) = (BTreeMap::new(), Vec::new());
        {
            let board = self.local.board.lock();
            for object in board.unsupported() {
                present.insert(object.key.clone(), object.generation);
                self.wishes.insert(object.key.clone(), unsupported(&object.key.kind, object.generation));
            }
            for entry in board.ours() {
                let (key, generation) = (&entry.reported.key, entry.reported.generation);
                present.insert(key.clone(), generation);
                let accepted = accepted(model_findings(&findings, key));
                if !is_settled(&entry.reported, &accepted) {
                    open.push(Asked::new(key, generation));
                }
            }
        }
        self.wishes.retain(|key, wish| present.get(key) == Some(&wish.generation));
        if open.len() > MOST {
            let turn = self.turn % open.len();
            open.rotate_left(turn);
            open.truncate(MOST);
            self.turn += MOST;
        }
        let Some(answers) = self.ask(&open).await else { return };
        for (at, asked) in open.iter().enumerate() {
            let key = asked.key();
            let known = answers.about(at, asked);
            let wish = conditions(asked.generation, model_findings(&findings, &key), &known);
            self.wishes.insert(key, wish);
        }
        // What was in force may be refused by a proxy that has come since.
        for (asked, _) in answers.all.iter().flat_map(|answer| &answer.refusals) {
            let key = asked.key();
            if present.get(&key) == Some(&asked.generation) && !open.contains(asked) {
                let known = answers.about(usize::MAX, asked);
                let wish = conditions(asked.generation, model_findings(&findings, &key), &known);
                self.wishes.insert(key, wish);
            }
        }
        let wishes = &self.wishes;
        self.wanted.send_if_modified(|known| {
            let is_news = **known != *wishes;
            if is_news {
                *known = Arc::new(wishes.clone());
            }
            is_news
        });
    }

    /// Asks everybody. Nothing is returned if somebody may only be slow.
    async fn ask(&mut self, open: &[Asked]) -> Option<Answers> {
        let addresses = self.local.board.lock().replicas();
        self.answered.retain(|address, _| addresses.contains(address));
        let mut answers = Answers { all: vec![self.local.answer(open).await], silent: Vec::new() };
        let Some(peers) = &self.peers else { return Some(answers) };
        let asked =
            addresses.iter().map(|address| async move { (*address, peers.ask(*address, open).await) });
        for (address, answer) in futures::future::join_all(asked).await {
            match answer {
                Ok(answer) => {
                    self.answered.insert(address, Instant::now());
                    // This one is among them, by another name.
                    if !answers.all.iter().any(|known| known.replica == answer.replica) {
                        answers.all.push(answer);
                    }
                }
                Err(error) => {
                    debug!(replica = %address, error = format!("{error:#}"), "a replica does not say how far its proxies are");
                    let last = *self.answered.entry(address).or_insert_with(Instant::now);
                    if last.elapsed() < PATIENCE {
                        return None;
                    }
                    warn!(replica = %address, error = format!("{error:#}"), "a replica is silent: it is not known how far its proxies are");
                    answers.silent.push(address.to_string());
                }
            }
        }
        Some(answers)
    }
}

impl Answers {
    /// Returns what is known about the object that was asked about at this place.
    fn about(&self, at: usize, asked: &Asked) -> Known {
        let mut known = Known { silent: self.silent.clone(), ..Known::default() };
        for answer in &self.all {
            match answer.counts.get(at) {
                Some(Some(counts)) => {
                    known.counts.total += counts.total;
                    known.counts.acked += counts.acked;
                    known.counts.waiting += counts.waiting;
                    known.counts.waits_for = known.counts.waits_for.or_else(|| counts.waits_for.clone());
                }
                _ => known.behind += 1,
            }
            for (_, refusal) in answer.refusals.iter().filter(|(of, _)| of == asked) {
                match &mut known.refusal {
                    Some(known) => known.proxies += refusal.proxies,
                    None => known.refusal = Some(refusal.clone()),
                }
            }
        }
        known
    }
}

/// Returns whether an object says already all that there is to say: it is used as it is written and in force everywhere,
/// or it is refused in these words.
fn is_settled(reported: &Reported, accepted: &[String; 4]) -> bool {
    let says =
        |conditions: Vec<[String; 4]>| reported.says(&Wish { generation: reported.generation, conditions });
    let is_programmed = || {
        reported.conditions.iter().any(|condition| {
            condition.type_ == "Programmed"
                && condition.status == "True"
                && condition.observed_generation.is_some_and(|seen| seen.0 == reported.generation)
        })
    };
    match accepted[1].as_str() {
        "False" => says(vec![accepted.clone(), of_refused()]),
        _ => says(vec![accepted.clone()]) && is_programmed(),
    }
}

fn model_findings<'a>(
    findings: &'a BTreeMap<model::ObjectKey, index::Findings>,
    key: &ObjectKey,
) -> Option<&'a index::Findings> {
    findings.get(&index::model_key(key)?)
}
