//! How far a rotation is, for people and for status.

use super::{Direction, Phase};
use crate::certificate::Fingerprint;
use crate::time::UnixTime;
use std::fmt;
use std::sync::Arc;

/// The most blockers that are listed by name.
pub(super) const MAX_BLOCKERS: usize = 20;

/// How far a rotation is, and what its next step waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What it is at.
    pub phase: Phase,
    /// Where it goes; nothing if it is stable.
    pub direction: Option<Direction>,
    /// Since when it is there.
    pub since: UnixTime,
    /// The root that signs.
    pub signer: Fingerprint,
    /// What the next step waits for from proxies; nothing if it depends on none.
    pub waiting: Option<Waiting>,
    /// How many proxies count.
    pub counted: usize,
    /// How many of those are ready for the next step.
    pub ready: usize,
    /// How many were silent for so long that they do not count.
    pub silent: usize,
    /// Those that are not ready, oldest sign of life first; at most 20.
    pub blockers: Vec<Blocker>,
    /// How many more are not ready.
    pub more_blockers: usize,
    /// Before when the next step is not taken, whatever proxies say; only if that is in the future.
    pub not_before: Option<UnixTime>,
}

impl Progress {
    /// Returns whether something is in the way of the next step.
    pub fn is_blocked(&self) -> bool {
        self.not_before.is_some() || !self.blockers.is_empty()
    }
}

/// What the next step waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// That everybody trusts a root, so that it can sign.
    Trust(Fingerprint),
    /// That nobody has a certificate of a root any more, so that it can be dropped.
    Leaves(Fingerprint),
    /// That everybody has dropped a root, so that the rotation is over.
    Dropped(Fingerprint),
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Trust(root) => write!(f, "until every proxy trusts {}", short(root)),
            Self::Leaves(root) => write!(f, "until no certificate of {} is in use", short(root)),
            Self::Dropped(root) => write!(f, "until every proxy has dropped {}", short(root)),
        }
    }
}

fn short(root: &Fingerprint) -> String {
    root.to_string().chars().take(12).collect()
}

/// A proxy that is not ready for the next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocker {
    /// Its name.
    pub proxy: Arc<str>,
    /// Why it is not ready.
    pub reason: Blocked,
    /// When it was last seen.
    pub last_seen: UnixTime,
}

/// Why a proxy is not ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocked {
    /// It has not acknowledged any bundle.
    NoBundle,
    /// It acknowledged a bundle that does not do, or may be using one.
    OtherBundle,
    /// It acknowledged a bundle that is not remembered.
    UnknownBundle,
    /// It presents a certificate of the root that is to be dropped.
    OldCertificate,
    /// Which certificate it presents is not known.
    UnknownCertificate,
    /// A replica of the control plane that was not heard of lately.
    Silent,
    /// A replica of the control plane that acts by another state.
    Behind,
}

impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoBundle => "has not acknowledged any roots",
            Self::OtherBundle => "has not acknowledged the present roots",
            Self::UnknownBundle => "acknowledged roots that are not remembered",
            Self::OldCertificate => "presents a certificate of the root that is to be dropped",
            Self::UnknownCertificate => "presents a certificate that is not known",
            Self::Silent => "was not heard of lately",
            Self::Behind => "does not act by the present state yet",
        })
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.phase)?;
        if self.direction == Some(Direction::Back) {
            f.write_str(", rolling back")?;
        }
        if let Some(waiting) = &self.waiting {
            write!(f, ", waiting {waiting}: {} of {} proxies are ready", self.ready, self.counted)?;
        }
        if let Some(not_before) = self.not_before {
            write!(f, ", not before {not_before}")?;
        }
        for blocker in &self.blockers {
            write!(f, "; {} {}", blocker.proxy, blocker.reason)?;
        }
        if self.more_blockers > 0 {
            write!(f, "; and {} more", self.more_blockers)?;
        }
        Ok(())
    }
}
