//! Identities proved by a token of a service account.
//!
//! ```text
//! token ─▶ seen before? ─▶ key ─▶ signature ─▶ time, audience, subject ─▶ issuer, standing ─▶ Caller
//!                           │ none published: rejected                       │ not known here
//!                           └ cannot be fetched ────────────────────────▶ TokenReview
//! ```
//!
//! In the common case the API server is not asked: a storm of tokens costs processor time only. A token that the
//! cluster's keys did not sign never gets as far as the API server, so a storm of junk costs it nothing.

mod authenticator;
mod cache;
mod claims;
mod jws;
mod keys;
mod review;

pub use authenticator::{TokenAuthenticator, TokenConfig};
pub use claims::Binding;
pub use keys::{KeySource, KeySourceError, PublishedKeys};
pub use review::{Review, ReviewError, TokenReviewer};

use model::SpiffeId;

/// What the cluster's state says about a token that is otherwise good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// What it is bound to is there.
    Good,
    /// It is not known here: deleted, or too new, or nothing is known yet.
    Unknown,
}

/// Knows what there is in the cluster.
pub trait WorkloadIndex: Send + Sync + 'static {
    /// Returns whether what a token is bound to is there, by its unique ids.
    fn standing(&self, binding: &Binding) -> Standing;

    /// Returns whether a machine outside the cluster, with a live WorkloadEntry, runs under this identity.
    fn is_machine(&self, id: &SpiffeId) -> bool;
}
