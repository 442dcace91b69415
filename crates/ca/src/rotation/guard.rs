//! The conditions of the steps.

use super::evidence::{Evidence, LeafReport, ProxyReport, RetireWhen, Settings};
use super::progress::{Blocked, Blocker, MAX_BLOCKERS, Progress, Waiting};
use super::{Course, Direction, Phase, Position, Rotation};
use crate::certificate::Fingerprint;
use crate::time::UnixTime;
use std::collections::BTreeSet;

/// What a step needs.
struct Condition {
    /// What it needs of proxies.
    waiting: Option<Waiting>,
    /// Before when it is not taken.
    not_before: UnixTime,
    /// Whether all certificates that are in question have expired, unless a proxy is known to have one.
    expired: bool,
}

pub(super) fn progress(
    rotation: &Rotation,
    evidence: &Evidence<'_>,
    settings: &Settings,
    now: UnixTime,
) -> Progress {
    let (since, direction) = match rotation.course {
        Course::Stable { since, .. } => (since, None),
        Course::Rotating { since, direction, .. } => (since, Some(direction)),
    };
    let (counted, silent): (Vec<&ProxyReport>, Vec<&ProxyReport>) =
        evidence.proxies.iter().partition(|proxy| proxy.counts(settings, now));
    let mut progress = Progress {
        phase: rotation.phase(),
        direction,
        since,
        signer: rotation.signer(),
        waiting: None,
        counted: counted.len(),
        ready: counted.len(),
        silent: silent.len(),
        blockers: Vec::new(),
        more_blockers: 0,
        not_before: None,
    };
    let Some(Condition { waiting, not_before, expired }) = condition(rotation, evidence, settings, now)
    else {
        return progress;
    };
    progress.waiting = waiting;
    progress.not_before = (now < not_before).then_some(not_before);
    let mut blockers: Vec<Blocker> = counted
        .iter()
        .filter_map(|proxy| {
            let reason = match waiting? {
                Waiting::Trust(root) => blocked_by_bundle(proxy, evidence, |roots| roots.contains(&root)),
                Waiting::Dropped(root) => blocked_by_bundle(proxy, evidence, |roots| !roots.contains(&root)),
                Waiting::Leaves(root) => blocked_by_leaf(proxy, root, expired.then_some(now)),
            }?;
            Some(Blocker { proxy: proxy.name.clone(), reason, last_seen: proxy.last_seen })
        })
        .collect();
    blockers.sort_by(|a, b| (a.last_seen, &a.proxy).cmp(&(b.last_seen, &b.proxy)));
    progress.ready = counted.len() - blockers.len();
    blockers.splice(0..0, replicas(rotation, evidence, settings, now));
    progress.more_blockers = blockers.len().saturating_sub(MAX_BLOCKERS);
    blockers.truncate(MAX_BLOCKERS);
    progress.blockers = blockers;
    progress
}

/// Returns the replicas that are in the way of any step.
fn replicas(
    rotation: &Rotation,
    evidence: &Evidence<'_>,
    settings: &Settings,
    now: UnixTime,
) -> impl Iterator<Item = Blocker> {
    evidence.replicas.iter().filter(move |replica| replica.counts(settings, now)).filter_map(move |replica| {
        let reason = if !replica.is_present(settings.replica_lag, now) {
            Blocked::Silent
        } else if replica.generation != rotation.generation {
            Blocked::Behind
        } else {
            return None;
        };
        let name = format!("replica {}", replica.name);
        Some(Blocker { proxy: name.into(), reason, last_seen: replica.written })
    })
}

/// Returns the condition of the next step; nothing if there is no next step.
fn condition(
    rotation: &Rotation,
    evidence: &Evidence<'_>,
    settings: &Settings,
    now: UnixTime,
) -> Option<Condition> {
    let Course::Rotating { from, to, position, direction, since } = rotation.course else { return None };
    // A replica may act by the state before this one for a while.
    let everybody_acts = since.after(settings.replica_lag);
    let nobody_is_missing = evidence.complete_since.after(settings.leaf_lifetime).next();
    let after = |waiting, not_before| Condition { waiting, not_before, expired: false };

    // Before signing with `root`.
    let trust = |root: Fingerprint| {
        if rotation.added.contains_key(&root) {
            after(Some(Waiting::Trust(root)), everybody_acts.max(nobody_is_missing))
        } else {
            // Every bundle that anybody can have holds it: there is nothing to prove.
            after(None, everybody_acts)
        }
    };
    // Before dropping `root`.
    let leaves = |root: Fingerprint| {
        let Some(stopped) = rotation.stopped.get(&root) else {
            // It has not signed anything that could be left.
            return after(None, everybody_acts);
        };
        let last_issued = stopped.after(settings.replica_lag);
        let last_expired = last_issued.after(settings.leaf_lifetime).next();
        let earliest = match settings.retire {
            RetireWhen::Expired => last_expired,
            RetireWhen::Replaced => last_expired.min(last_issued.max(nobody_is_missing)),
        };
        Condition {
            waiting: Some(Waiting::Leaves(root)),
            not_before: everybody_acts.max(earliest),
            expired: now >= last_expired,
        }
    };
    Some(match (direction, position) {
        (Direction::Forward, Position::Distributing) => trust(to),
        (Direction::Back, Position::Switched) => trust(from),
        (Direction::Forward, Position::Switched) => leaves(from),
        (Direction::Back, Position::Distributing) => leaves(to),
        (Direction::Forward, Position::Retiring) => after(Some(Waiting::Dropped(from)), everybody_acts),
        (Direction::Back, Position::Withdrawing) => after(Some(Waiting::Dropped(to)), everybody_acts),
        // To trust more harms nobody.
        (Direction::Back, Position::Retiring) | (Direction::Forward, Position::Withdrawing) => {
            after(None, since)
        }
    })
}

/// Returns why a proxy is not ready, if one of the bundles that it may be using is not `good`.
fn blocked_by_bundle(
    proxy: &ProxyReport,
    evidence: &Evidence<'_>,
    good: impl Fn(&BTreeSet<Fingerprint>) -> bool,
) -> Option<Blocked> {
    if proxy.acked.is_none() {
        return Some(Blocked::NoBundle);
    }
    proxy.may_use().find_map(|hash| match evidence.bundles.get(hash) {
        None => Some(Blocked::UnknownBundle),
        Some(roots) => (!good(roots)).then_some(Blocked::OtherBundle),
    })
}

/// Returns why a proxy is not ready, if it may present a certificate of `root`. When all of these have `expired`,
/// only one that is known and of a longer life than it should have is in the way.
fn blocked_by_leaf(proxy: &ProxyReport, root: Fingerprint, expired: Option<UnixTime>) -> Option<Blocked> {
    let in_the_way = |leaf: &LeafReport| leaf.root == root && expired.is_none_or(|now| now <= leaf.not_after);
    if proxy.leaves.iter().any(in_the_way) {
        return Some(Blocked::OldCertificate);
    }
    (proxy.leaves.is_empty() && expired.is_none()).then_some(Blocked::UnknownCertificate)
}

impl Progress {
    /// Returns whether there is a next step at all.
    pub fn is_rotating(&self) -> bool {
        self.phase != Phase::Stable
    }
}
