//! The one place where it is decided who may call what.

use crate::caller::{AuthError, Authenticator, Caller, Credentials, authenticate};
use crate::methods::{Access, access_of};
use crate::metrics::Metrics;
use futures::future::BoxFuture;
use serve::Peer;
use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use tonic::Status;
use tonic::body::Body;
use tracing::debug;

/// Who vouches for callers.
#[derive(Clone, Default)]
pub struct GateConfig {
    /// For [`Access::Proved`], in this order.
    pub proved: Vec<Arc<dyn Authenticator>>,
    /// For [`Access::Fresh`], in this order.
    pub fresh: Vec<Arc<dyn Authenticator>>,
}

/// A gate in front of gRPC services: what is not in the table of methods is refused, and what asks for an identity is
/// called only with a [`Caller`] in the request's extensions. Nothing of a request's body is read before.
#[derive(Clone)]
pub struct Gate<S> {
    inner: S,
    config: Arc<GateConfig>,
    metrics: Metrics,
}

impl<S> Gate<S> {
    /// Puts a gate in front of `inner`.
    pub fn new(inner: S, config: GateConfig, metrics: Metrics) -> Self {
        Self { inner, config: Arc::new(config), metrics }
    }
}

impl<S, B> tower_service::Service<http::Request<B>> for Gate<S>
where
    S: tower_service::Service<http::Request<B>, Response = http::Response<Body>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        // The clone stays; what has been polled ready is what is called.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        // Whatever claims to be a result of this gate is none.
        request.extensions_mut().remove::<Caller>();
        let Some(access) = access_of(request.uri().path()) else {
            self.metrics.refused("method");
            let status = Status::permission_denied("this method is not offered");
            return Box::pin(std::future::ready(Ok(status.into_http())));
        };
        if access == Access::Anyone {
            return Box::pin(inner.call(request));
        }
        let (config, metrics) = (self.config.clone(), self.metrics.clone());
        Box::pin(async move {
            match identify(&config, access, &request).await {
                Ok((caller, peer)) => {
                    metrics.known(caller.proof);
                    peer.settle(Some(caller.id.as_str()));
                    request.extensions_mut().insert(caller);
                    inner.call(request).await
                }
                Err(error) => {
                    metrics.unknown(&error);
                    if access == Access::Fresh {
                        metrics.csr_authentication_failures.inc();
                    }
                    debug!(method = request.uri().path(), %error, "caller not known");
                    Ok(Status::from(error).into_http())
                }
            }
        })
    }
}

/// Returns who makes `request`. It holds no reference to the body, which need not be shareable.
fn identify<'a, B>(
    config: &'a GateConfig,
    access: Access,
    request: &'a http::Request<B>,
) -> impl Future<Output = Result<(Caller, Peer), AuthError>> + Send + use<'a, B> {
    let (headers, peer) = (request.headers(), request.extensions().get::<Peer>());
    async move {
        // Without a peer the request did not come through a listener of ours: nothing is known of it.
        let peer = peer.ok_or(AuthError::Missing)?.clone();
        let authenticators = match access {
            Access::Fresh => &config.fresh,
            Access::Proved | Access::Anyone => &config.proved,
        };
        let credentials = Credentials { address: peer.address(), certificates: peer.certificates(), headers };
        let caller = authenticate(authenticators, credentials).await?;
        Ok((caller, peer))
    }
}
