//! What a cluster knows about callers.

use crate::writer::WriterState;
use controllers::{Client, ServiceAccounts};
use futures::future::BoxFuture;
use identity::{
    Binding, KeySource, KeySourceError, Pod, PublishedKeys, Review, ReviewError, Standing, TokenReviewer,
    WorkloadIndex,
};
use model::{Namespace, SpiffeId, WorkloadId};
use tokio::sync::watch;

/// The keys that the API server publishes.
pub(super) struct ClusterKeys(pub(super) Client);

impl KeySource for ClusterKeys {
    fn fetch(&self) -> BoxFuture<'_, Result<PublishedKeys, KeySourceError>> {
        Box::pin(async {
            let keys = controllers::token_keys(&self.0).await;
            let keys = keys.map_err(|error| KeySourceError(error.to_string()))?;
            Ok(PublishedKeys { issuer: keys.issuer, jwks: keys.jwks.into() })
        })
    }
}

/// The API server as the judge of tokens.
pub(super) struct Reviewer(pub(super) Client);

impl TokenReviewer for Reviewer {
    fn review<'a>(
        &'a self,
        token: &'a str,
        audiences: &'a [String],
    ) -> BoxFuture<'a, Result<Review, ReviewError>> {
        Box::pin(async move {
            let review = controllers::review_token(&self.0, token, audiences).await;
            let review = review.map_err(|error| ReviewError(error.to_string()))?;
            Ok(Review {
                authenticated: review.authenticated,
                username: review.username,
                uid: review.uid,
                audiences: review.audiences,
                pod: review.pod.map(|(name, uid)| Pod { name: name.into(), uid: uid.into() }),
                node: review.node.map(Into::into),
            })
        })
    }
}

/// The pods, machines and accounts of a cluster, as far as they have been heard of.
pub(super) struct ClusterIndex {
    pub(super) state: watch::Receiver<WriterState>,
    pub(super) accounts: ServiceAccounts,
}

impl WorkloadIndex for ClusterIndex {
    fn standing(&self, binding: &Binding) -> Standing {
        let (namespace, account) = (&binding.namespace, &binding.service_account);
        let has_account = binding
            .service_account_uid
            .as_ref()
            .is_some_and(|uid| self.accounts.has(namespace, account, uid));
        let has_pod = || {
            let Some(pod) = &binding.pod else { return true };
            let id = WorkloadId { namespace: Namespace::new(namespace.clone()), name: pod.name.clone() };
            let view = self.state.borrow().view.clone();
            view.find_workload(&id).is_some_and(|known| {
                known.uid.as_ref() == Some(&pod.uid) && known.service_account == *account
            })
        };
        if has_account && has_pod() { Standing::Good } else { Standing::Unknown }
    }

    fn is_machine(&self, id: &SpiffeId) -> bool {
        has_machine(&self.state, id)
    }
}

/// Returns whether there is a WorkloadEntry that runs as `id`. A pod has a unique id, a machine has none.
pub(super) fn has_machine(state: &watch::Receiver<WriterState>, id: &SpiffeId) -> bool {
    let view = state.borrow().view.clone();
    view.workloads_in(id.namespace())
        .any(|known| known.uid.is_none() && known.service_account.as_ref() == id.service_account())
}
