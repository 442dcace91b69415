//! Every page, asked for by everybody.

use super::access::{PAGES, Page};
use super::*;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::Request;
use futures::future::BoxFuture;
use identity::{AuthError, Authenticator, Caller, Credentials, Proof, Rejection};
use std::net::SocketAddr;
use tower::ServiceExt as _;

const HERE: [u8; 4] = [127, 0, 0, 1];
const ELSEWHERE: [u8; 4] = [10, 0, 0, 7];

/// Takes the name of a namespace for its token.
struct Names;

impl Authenticator for Names {
    fn authenticate<'a>(
        &'a self,
        credentials: Credentials<'a>,
    ) -> BoxFuture<'a, Result<Option<Caller>, AuthError>> {
        let token = credentials.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let answer = match token.and_then(|token| token.strip_prefix("Bearer ")) {
            None => Ok(None),
            Some("expired") => Err(Rejection::Expired.into()),
            Some("foreign") => Err(Rejection::UnknownKey.into()),
            Some(namespace) => Ok(Some(Caller {
                id: format!("spiffe://cluster.local/ns/{namespace}/sa/default").parse().unwrap(),
                proof: Proof::Token,
                pod: None,
                node: None,
                expires: std::time::SystemTime::now(),
            })),
        };
        Box::pin(std::future::ready(answer))
    }
}

fn state(doorkeepers: bool) -> AdminState {
    let server = xds::Registry::default();
    let (states, _) = watch::channel(controllers::States::new());
    AdminState {
        writer: watch::channel(WriterState::default()).1,
        sources: Sources::Kubernetes(states.subscribe()),
        push: Push::spawn(Arc::default()).unwrap(),
        sessions: server,
        metrics: Arc::default(),
        rotation: None,
        doorkeepers: doorkeepers.then(|| watch::channel(vec![Arc::new(Names) as Arc<dyn Authenticator>]).1),
        namespace: "istio-system".to_owned(),
        writes: watch::channel(Default::default()).1,
        ports: Vec::new(),
        stopping: CancellationToken::new(),
    }
}

async fn ask(state: &AdminState, path: &str, from: [u8; 4], headers: &[(&str, &str)]) -> StatusCode {
    let mut request = Request::builder().uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut request = request.body(Body::empty()).unwrap();
    request.extensions_mut().insert(ConnectInfo(SocketAddr::from((from, 40_000))));
    monitoring(state.clone()).oneshot(request).await.unwrap().status()
}

fn is_denied(status: StatusCode) -> bool {
    status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN
}

#[tokio::test]
async fn pages_are_for_those_they_are_meant_for() {
    let state = state(true);
    for (path, page) in PAGES {
        let ask = async |from, token: Option<&str>| {
            let value = token.map(|token| format!("Bearer {token}"));
            let headers: Vec<(&str, &str)> =
                value.iter().map(|value| ("authorization", value.as_str())).collect();
            ask(&state, path, from, &headers).await
        };
        assert_ne!(ask(HERE, None).await, StatusCode::NOT_FOUND, "{path} is in the table, and there is none");
        assert!(!is_denied(ask(HERE, None).await), "{path}");
        for token in [None, Some("expired"), Some("foreign")] {
            assert_eq!(is_denied(ask(ELSEWHERE, token).await), *page != Page::Open, "{path} {token:?}");
        }
        assert!(!is_denied(ask(ELSEWHERE, Some("istio-system")).await), "{path}");
        assert_eq!(is_denied(ask(ELSEWHERE, Some("shop")).await), *page == Page::Operators, "{path}");
    }
}

#[tokio::test]
async fn pages_that_are_not_in_the_table_are_for_operators_alone() {
    let state = state(true);
    for path in
        ["/", "/debug", "/debug/", "/debug/syncz/", "/debug/pprof", "/debug//syncz", "/debug/config_dump/x"]
    {
        assert!(is_denied(ask(&state, path, ELSEWHERE, &[]).await), "{path}");
        assert!(is_denied(ask(&state, path, ELSEWHERE, &[("authorization", "Bearer shop")]).await), "{path}");
        assert_eq!(ask(&state, path, HERE, &[]).await, StatusCode::NOT_FOUND, "{path}");
    }
}

#[tokio::test]
async fn browsers_and_forwarded_addresses_are_not_believed() {
    let state = state(true);
    let origin = [("origin", "http://evil.example")];
    assert_eq!(ask(&state, "/debug/syncz", HERE, &origin).await, StatusCode::FORBIDDEN);
    for header in ["x-forwarded-for", "forwarded", "x-real-ip", "x-forwarded-client-cert"] {
        let status = ask(&state, "/debug/syncz", ELSEWHERE, &[(header, "127.0.0.1")]).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{header}");
    }
}

#[tokio::test]
async fn where_nobody_knows_tokens_nobody_from_elsewhere_is_known() {
    let state = state(false);
    let token = [("authorization", "Bearer istio-system")];
    assert_eq!(ask(&state, "/debug/sourcez", ELSEWHERE, &token).await, StatusCode::UNAUTHORIZED);
    assert_eq!(ask(&state, "/debug/sourcez", HERE, &[]).await, StatusCode::OK);
}

/// A Service leads to a pod that is ready, so that everybody has to be answered there.
#[tokio::test]
async fn it_is_ready_when_every_port_is_served_and_not_any_more_when_it_stops() {
    let (webhooks, served) = watch::channel(false);
    let state = AdminState { ports: vec![("webhooks", served)], ..state(false) };
    let body = async || {
        let answer = ready(State(state.clone())).await;
        let status = answer.status();
        let bytes = axum::body::to_bytes(answer.into_body(), 1024).await.unwrap();
        (status.as_u16(), String::from_utf8(bytes.to_vec()).unwrap())
    };
    assert_eq!(body().await, (503, "not served yet: webhooks\n".to_owned()));
    webhooks.send_replace(true);
    assert_eq!(body().await, (200, "ready\n".to_owned()));
    state.stopping.cancel();
    assert_eq!(body().await, (503, "stopping\n".to_owned()));
}
