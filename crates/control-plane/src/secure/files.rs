//! What is known about callers without a cluster.

use super::cluster::has_machine;
use crate::writer::WriterState;
use anyhow::{Context as _, anyhow};
use futures::future::BoxFuture;
use identity::{Binding, KeySource, KeySourceError, PublishedKeys, Standing, WorkloadIndex};
use model::SpiffeId;
use std::path::PathBuf;
use tokio::io::AsyncReadExt as _;
use tokio::sync::watch;

/// The largest file with keys that is read, and one byte more, by which it is noticed.
const READ_AT_MOST: u64 = (1 << 20) + 1;

/// Keys of tokens in a file.
#[derive(Clone)]
pub(super) struct KeyFile {
    path: PathBuf,
    issuer: String,
}

impl KeyFile {
    /// Reads the file once, so that what is wrong with it is known at the start and not when somebody comes.
    pub(super) async fn new(path: PathBuf, issuer: String) -> anyhow::Result<Self> {
        let file = Self { path, issuer };
        file.read().await?.check().map_err(|error| {
            anyhow!(
                "{} is no JSON Web Key Set that tokens can be verified with: {error}",
                file.path.display()
            )
        })?;
        Ok(file)
    }

    async fn read(&self) -> anyhow::Result<PublishedKeys> {
        let read = async {
            let mut jwks = Vec::new();
            tokio::fs::File::open(&self.path).await?.take(READ_AT_MOST).read_to_end(&mut jwks).await?;
            std::io::Result::Ok(jwks)
        };
        let jwks = read.await.with_context(|| format!("cannot read {}", self.path.display()))?;
        Ok(PublishedKeys { issuer: self.issuer.clone(), jwks: jwks.into() })
    }
}

impl KeySource for KeyFile {
    fn fetch(&self) -> BoxFuture<'_, Result<PublishedKeys, KeySourceError>> {
        Box::pin(async { self.read().await.map_err(|error| KeySourceError(format!("{error:#}"))) })
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
