//! How one root takes the place of another without a failed handshake.
//!
//! A rotation is a line of four positions. What is trusted and what signs depends on the position alone:
//!
//! ```text
//!            Withdrawing      Distributing        Switched          Retiring
//! trusted    {old}            {old, new}          {old, new}        {new}
//! signs      old              old                 new               new
//!
//! forward                     ──────────────────▶ ────────────────▶ ──────────▶ Stable(new)
//!                             everybody trusts    no leaf of old    everybody
//!                             new                 is left           dropped old
//!
//! back       ◀─────────────── ◀────────────────── ◀────────────────
//!  to        no leaf of new   everybody trusts    at once
//!  Stable    is left          old
//!  (old)
//! ```
//!
//! The line is symmetric, so a rollback is as safe as the way forward: it is the same walk with the roots exchanged.
//! To add a root to what is trusted harms nobody. To sign with a root is safe when everybody who counts trusts it, and
//! to drop one when nobody can present a certificate of it any more.
//!
//! A [`Rotation`] is a value. [`Rotation::next`] returns another value, which is to be stored *before* anybody acts on
//! it: then a process that dies at any moment finds what to do, and replicas agree. One replica, the one that holds
//! the lease, takes steps; all of them sign and distribute as the stored value says.

mod evidence;
mod guard;
mod progress;
mod replica;
mod stored;

pub use evidence::{BundleLog, Evidence, LeafReport, ProxyReport, RetireWhen, Settings};
pub use progress::{Blocked, Blocker, Progress, Waiting};
pub use replica::{Replica, ReplicaError, ReplicaReport, Seen, Together, together};
pub use stored::StoredError;

use crate::bundle::TrustBundle;
use crate::certificate::{CaCertificate, Fingerprint};
use crate::time::UnixTime;
use std::collections::BTreeMap;
use std::fmt;

/// The most steps taken by order of an operator that are remembered.
const MAX_OVERRIDES: usize = 16;

/// Which root signs, which are trusted, and what is to change about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// Counts changes: of two stored values, the one with the higher number is the newer.
    generation: u64,
    /// The root that signs, and from when on nothing was to be done; or the two that a rotation is about.
    course: Course,
    /// Certificates of the roots that are spoken of.
    roots: TrustBundle,
    /// Roots that some proxy may not have yet, and since when they are trusted.
    added: BTreeMap<Fingerprint, UnixTime>,
    /// Roots that once signed, and when they stopped.
    stopped: BTreeMap<Fingerprint, UnixTime>,
    overrides: Vec<Override>,
}

/// Where the walk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Course {
    Stable { root: Fingerprint, since: UnixTime },
    Rotating { from: Fingerprint, to: Fingerprint, position: Position, direction: Direction, since: UnixTime },
}

/// A position on the line between two roots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
enum Position {
    Withdrawing,
    Distributing,
    Switched,
    Retiring,
}

/// Whether a rotation goes on or is taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Direction {
    /// Towards the new root.
    Forward,
    /// Back to the old root.
    Back,
}

/// What a rotation is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// One root signs and is trusted.
    Stable,
    /// The new root was withdrawn; proxies are told.
    Withdrawing,
    /// Both are trusted, the old one signs.
    Distributing,
    /// Both are trusted, the new one signs.
    Switched,
    /// The old root was dropped; proxies are told.
    Retiring,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stable => "stable",
            Self::Withdrawing => "withdrawing the new root",
            Self::Distributing => "distributing both roots",
            Self::Switched => "switched to the new root",
            Self::Retiring => "retiring the old root",
        })
    }
}

/// A step that an operator ordered although its condition did not hold.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Override {
    /// When.
    pub at: UnixTime,
    /// Who, and why.
    pub by: String,
    /// What was not waited for.
    pub skipped: String,
}

impl Rotation {
    /// Returns the state of a mesh that has always had one root.
    pub fn stable(root: CaCertificate, now: UnixTime) -> Self {
        Self {
            generation: 0,
            course: Course::Stable { root: root.fingerprint(), since: now },
            roots: [root].into_iter().collect(),
            added: BTreeMap::new(),
            stopped: BTreeMap::new(),
            overrides: Vec::new(),
        }
    }

    /// Begins to replace the root by `to`: both are trusted from now on.
    pub fn begin(&self, to: CaCertificate, now: UnixTime) -> Result<Self, BeginError> {
        let Course::Stable { root: from, .. } = self.course else {
            return Err(BeginError::UnderWay(self.phase()));
        };
        if to.fingerprint() == from {
            return Err(BeginError::SameRoot);
        }
        if !to.validity().contains(now) {
            return Err(BeginError::NotValidNow { name: to.name().to_owned(), validity: to.validity() });
        }
        let mut next = self.changed();
        next.course = Course::Rotating {
            from,
            to: to.fingerprint(),
            position: Position::Distributing,
            direction: Direction::Forward,
            since: now,
        };
        next.added.insert(to.fingerprint(), now);
        next.roots.insert(to);
        Ok(next)
    }

    /// Turns back: the old root is to be the only one again.
    pub fn roll_back(&self) -> Result<Self, NotRotating> {
        self.turned(Direction::Back)
    }

    /// Goes on with a rotation that was being taken back.
    pub fn resume(&self, now: UnixTime) -> Result<Self, NotRotating> {
        let mut next = self.turned(Direction::Forward)?;
        // From here the way forward begins anew: the new root is not trusted any more.
        if next.position() == Some(Position::Withdrawing) {
            next.enter(Position::Distributing, now);
        }
        Ok(next)
    }

    /// Takes the next step if its condition holds; otherwise returns what is waited for.
    pub fn next(
        &self,
        evidence: &Evidence<'_>,
        settings: &Settings,
        now: UnixTime,
    ) -> Result<Self, Box<Progress>> {
        let progress = self.progress(evidence, settings, now);
        if progress.phase == Phase::Stable || progress.is_blocked() {
            return Err(Box::new(progress));
        }
        let mut next = self.step(now);
        match progress.waiting {
            // Whoever counts was seen to trust it, and whoever comes is given it.
            Some(Waiting::Trust(root)) => drop(next.added.remove(&root)),
            Some(Waiting::Leaves(root)) => drop(next.stopped.remove(&root)),
            Some(Waiting::Dropped(_)) | None => {}
        }
        Ok(next)
    }

    /// Takes the next step whether its condition holds or not, and remembers who ordered it.
    ///
    /// Proxies that the condition is there for may fail handshakes until they catch up.
    pub fn force(
        &self,
        by: &str,
        evidence: &Evidence<'_>,
        settings: &Settings,
        now: UnixTime,
    ) -> Result<Self, NotRotating> {
        let progress = self.progress(evidence, settings, now);
        if progress.phase == Phase::Stable {
            return Err(NotRotating);
        }
        if !progress.is_blocked() {
            return self.next(evidence, settings, now).map_err(|_| NotRotating);
        }
        let mut next = self.step(now);
        let limited = |text: &str| text.chars().take(256).collect();
        next.overrides.push(Override { at: now, by: limited(by), skipped: limited(&progress.to_string()) });
        let surplus = next.overrides.len().saturating_sub(MAX_OVERRIDES);
        next.overrides.drain(..surplus);
        Ok(next)
    }

    /// Returns how far the rotation is and what the next step waits for.
    pub fn progress(&self, evidence: &Evidence<'_>, settings: &Settings, now: UnixTime) -> Progress {
        guard::progress(self, evidence, settings, now)
    }

    /// Returns what it is at.
    pub fn phase(&self) -> Phase {
        match self.position() {
            None => Phase::Stable,
            Some(Position::Withdrawing) => Phase::Withdrawing,
            Some(Position::Distributing) => Phase::Distributing,
            Some(Position::Switched) => Phase::Switched,
            Some(Position::Retiring) => Phase::Retiring,
        }
    }

    /// Returns how many changes there were: of two stored values, the one with the higher number is the newer.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Returns the root that certificates are to be issued from.
    pub fn signer(&self) -> Fingerprint {
        match self.course {
            Course::Stable { root, .. } => root,
            Course::Rotating { from, position: Position::Withdrawing | Position::Distributing, .. } => from,
            Course::Rotating { to, position: Position::Switched | Position::Retiring, .. } => to,
        }
    }

    /// Returns the root that is to take over; nothing if none is.
    pub fn newcomer(&self) -> Option<Fingerprint> {
        match self.course {
            Course::Stable { .. } => None,
            Course::Rotating { to, .. } => Some(to),
        }
    }

    /// Returns what is to be trusted: the roots of the rotation, then `others`, such as those of the mesh's
    /// configuration.
    pub fn bundle(&self, others: &TrustBundle) -> TrustBundle {
        let trusted: &[Fingerprint] = match &self.course {
            Course::Stable { root, .. } => &[*root],
            Course::Rotating { from, position: Position::Withdrawing, .. } => &[*from],
            Course::Rotating { from, to, position: Position::Distributing | Position::Switched, .. } => {
                &[*from, *to]
            }
            Course::Rotating { to, position: Position::Retiring, .. } => &[*to],
        };
        let roots: TrustBundle = trusted.iter().filter_map(|root| self.roots.get(root)).cloned().collect();
        roots.union(others)
    }

    /// Returns the steps that operators ordered against the conditions, oldest first; only the last few are kept.
    pub fn overrides(&self) -> &[Override] {
        &self.overrides
    }

    fn position(&self) -> Option<Position> {
        match self.course {
            Course::Stable { .. } => None,
            Course::Rotating { position, .. } => Some(position),
        }
    }

    fn changed(&self) -> Self {
        Self { generation: self.generation.saturating_add(1), ..self.clone() }
    }

    fn turned(&self, to: Direction) -> Result<Self, NotRotating> {
        let mut next = self.changed();
        let Course::Rotating { direction, .. } = &mut next.course else { return Err(NotRotating) };
        *direction = to;
        Ok(next)
    }

    /// Returns the state after the next step; itself if there is none.
    fn step(&self, now: UnixTime) -> Self {
        let Course::Rotating { from, to, position, direction, .. } = self.course else { return self.clone() };
        let mut next = self.changed();
        match (direction, position) {
            (Direction::Forward, Position::Withdrawing) | (Direction::Back, Position::Switched) => {
                next.enter(Position::Distributing, now);
            }
            (Direction::Forward, Position::Distributing) | (Direction::Back, Position::Retiring) => {
                next.enter(Position::Switched, now);
            }
            (Direction::Forward, Position::Switched) => next.enter(Position::Retiring, now),
            (Direction::Back, Position::Distributing) => next.enter(Position::Withdrawing, now),
            (Direction::Forward, Position::Retiring) => next.settle(to, now),
            (Direction::Back, Position::Withdrawing) => next.settle(from, now),
        }
        next
    }

    /// Moves to a position next to the present one, and notes what that begins and ends.
    fn enter(&mut self, entered: Position, now: UnixTime) {
        let before = self.signer();
        let Course::Rotating { from, to, position, since, .. } = &mut self.course else { return };
        match (*position, entered) {
            (Position::Retiring, Position::Switched) => drop(self.added.insert(*from, now)),
            (Position::Withdrawing, Position::Distributing) => drop(self.added.insert(*to, now)),
            _ => {}
        }
        (*position, *since) = (entered, now);
        if self.signer() != before {
            self.stopped.insert(before, now);
            self.stopped.remove(&self.signer());
        }
    }

    fn settle(&mut self, root: Fingerprint, now: UnixTime) {
        self.course = Course::Stable { root, since: now };
        self.roots = self.roots.get(&root).cloned().into_iter().collect();
        self.added.retain(|known, _| *known == root);
        // What is left here was dropped on order and may still be presented: should that root be trusted again, its
        // certificates count.
        while self.stopped.len() > MAX_OVERRIDES {
            let oldest = self.stopped.iter().min_by_key(|(_, at)| **at).map(|(root, _)| *root);
            oldest.and_then(|root| self.stopped.remove(&root));
        }
    }
}

/// Why a rotation does not begin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BeginError {
    /// One thing after the other.
    #[error("a rotation is under way ({0}): finish it or roll it back first")]
    UnderWay(Phase),
    /// Nothing would change.
    #[error("this is the root that signs already")]
    SameRoot,
    /// Nobody would accept what it signs.
    #[error("\"{name}\" is valid from {} to {}, not now", validity.not_before, validity.not_after)]
    NotValidNow {
        /// The subject of the new root.
        name: String,
        /// When it is valid.
        validity: crate::time::Validity,
    },
}

/// There is nothing to roll back, resume or force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no rotation is under way")]
pub struct NotRotating;
