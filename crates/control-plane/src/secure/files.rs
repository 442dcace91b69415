//! What is known about callers without a cluster.

use super::cluster::has_machine;
use crate::writer::WriterState;
use anyhow::Context as _;
use futures::future::BoxFuture;
use identity::{Binding, KeySource, KeySourceError, PublishedKeys, Standing, WorkloadIndex};
use model::SpiffeId;
use std::path::PathBuf;
use tokio::sync::watch;

/// Keys of tokens in a file.
pub(super) struct KeyFile {
    path: PathBuf,
    issuer: String,
}

impl KeyFile {
    /// Reads the file once, so that a wrong name is noticed at the start.
    pub(super) fn new(path: PathBuf, issuer: String) -> anyhow::Result<Self> {
        std::fs::metadata(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self { path, issuer })
    }
}

impl KeySource for KeyFile {
    fn fetch(&self) -> BoxFuture<'_, Result<PublishedKeys, KeySourceError>> {
        Box::pin(async {
            let jwks = tokio::fs::read(&self.path).await;
            let jwks = jwks.map_err(|error| KeySourceError(format!("{}: {error}", self.path.display())))?;
            Ok(PublishedKeys { issuer: self.issuer.clone(), jwks: jwks.into() })
        })
    }
}

/// A world in which everything that is said to be there is: there is nobody who would know better.
pub(super) struct Everything {
    pub(super) state: watch::Receiver<WriterState>,
}

impl WorkloadIndex for Everything {
    fn standing(&self, _: &Binding) -> Standing {
        Standing::Good
    }

    fn is_machine(&self, id: &SpiffeId) -> bool {
        has_machine(&self.state, id)
    }
}
