//! Who may see which page.
//!
//! Metrics, readiness and the version are for everybody. Debug pages tell what is configured for whom: they are for those
//! on this machine (`kubectl port-forward` is), for service accounts of weftd's own namespace, and, as far as they are
//! about proxies of their own namespace, for everybody else with a token.

use super::AdminState;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use identity::{AuthError, Authenticator, Caller, Credentials};
use model::Namespace;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::watch;
use xds::registry::SessionView;

/// For whom a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Page {
    /// Everybody.
    Open,
    /// Whoever has proved a namespace, as far as it is about that.
    OwnNamespace,
    /// Operators.
    Operators,
}

/// Every page of the monitoring port.
pub(super) const PAGES: &[(&str, Page)] = &[
    ("/ready", Page::Open),
    ("/metrics", Page::Open),
    ("/version", Page::Open),
    ("/debug/syncz", Page::OwnNamespace),
    ("/debug/config_dump", Page::OwnNamespace),
    ("/debug/registryz", Page::Operators),
    ("/debug/sourcez", Page::Operators),
    ("/debug/findingz", Page::Operators),
    ("/debug/rotationz", Page::Operators),
];

/// What somebody may see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Viewer {
    Everything,
    Of(Namespace),
}

impl Viewer {
    /// Returns whether they may see what is about a session: one of a proxy that has proved to be of their namespace.
    pub(super) fn may_see(&self, session: &SessionView) -> bool {
        match self {
            Self::Everything => true,
            Self::Of(namespace) => {
                let caller = session.peer.extensions.get::<Caller>();
                caller.is_some_and(|caller| caller.id.namespace() == namespace)
            }
        }
    }
}

/// Those who know tokens, as soon as there are any.
pub(crate) type Doorkeepers = watch::Receiver<Vec<Arc<dyn Authenticator>>>;

/// Lets a request through to those pages that it may see.
pub(super) async fn guard(
    State(state): State<AdminState>,
    ConnectInfo(address): ConnectInfo<SocketAddr>,
    mut request: Request<Body>,
    next: Next,
) -> Response {
    let path = request.uri().path();
    let page = PAGES.iter().find(|(known, _)| *known == path).map_or(Page::Operators, |(_, page)| *page);
    if page == Page::Open {
        return next.run(request).await;
    }
    // A page in somebody's browser has no business here, whatever name it found this address under.
    if request.headers().contains_key(header::ORIGIN) {
        return (StatusCode::FORBIDDEN, "not for browsers\n").into_response();
    }
    let headers = request.headers().clone();
    let viewer = match viewer(&state, address, &headers).await {
        Ok(viewer) => viewer,
        Err(AuthError::Unavailable(_)) => {
            return (StatusCode::SERVICE_UNAVAILABLE, "cannot authenticate now: try again\n").into_response();
        }
        Err(_) => {
            let text = "debug pages ask for a token of a service account, or for a client on the same host\n";
            return (StatusCode::UNAUTHORIZED, text).into_response();
        }
    };
    if page == Page::Operators && viewer != Viewer::Everything {
        let text = "this page is for service accounts of the control plane's namespace\n";
        return (StatusCode::FORBIDDEN, text).into_response();
    }
    request.extensions_mut().insert(viewer);
    next.run(request).await
}

async fn viewer(state: &AdminState, address: SocketAddr, headers: &HeaderMap) -> Result<Viewer, AuthError> {
    if address.ip().to_canonical().is_loopback() {
        return Ok(Viewer::Everything);
    }
    let doorkeepers = state.doorkeepers.as_ref().map(|doorkeepers| doorkeepers.borrow().clone());
    let credentials = Credentials { address, certificates: &[], headers };
    let caller = identity::authenticate(&doorkeepers.unwrap_or_default(), credentials).await?;
    Ok(match caller.id.namespace().as_str() == state.namespace {
        true => Viewer::Everything,
        false => Viewer::Of(caller.id.namespace().clone()),
    })
}
