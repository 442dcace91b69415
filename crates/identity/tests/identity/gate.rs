//! The gate: every method that any service could have, with every kind of credential.

use crate::rig::{Cluster, TestClock, address, authority, cart, domain, leaf};
use arc_swap::ArcSwap;
use http_body_util::Empty;
use identity::{
    Access, Caller, CertificateAuthenticator, Gate, GateConfig, METHODS, Purpose, REPLICA_COUNTS, Trust,
    TrustDomains, access_of,
};
use prost_reflect::DescriptorPool;
use rustls::pki_types::CertificateDer;
use serve::Peer;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tonic::{Code, Status};
use tower::ServiceExt as _;

/// Every method of every service that could be registered: those that we have types for, Envoy's whole API, health
/// checks and reflection; and some that there are not.
fn every_method() -> BTreeSet<String> {
    let pools = [
        proto::pool().clone(),
        DescriptorPool::decode(tonic_health::pb::FILE_DESCRIPTOR_SET).unwrap(),
        DescriptorPool::decode(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET).unwrap(),
    ];
    let mut methods = BTreeSet::new();
    for service in pools.iter().flat_map(|pool| pool.services()) {
        for method in service.methods() {
            methods.insert(format!("/{}/{}", service.full_name(), method.name()));
        }
    }
    for odd in
        ["/", "", "//", "/grpc.health.v1.Health/check", "/grpc.health.v1.Health/Check/", "/debug/config_dump"]
    {
        methods.insert(odd.to_owned());
    }
    methods
}

/// What stands behind the gate: it notes who came through.
#[derive(Clone, Default)]
struct Behind(Arc<Mutex<Vec<Option<Caller>>>>);

impl Behind {
    fn take(&self) -> Vec<Option<Caller>> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

type Request = http::Request<Empty<bytes::Bytes>>;

struct Rig {
    cluster: Cluster,
    behind: Behind,
    config: GateConfig,
    certificate: Vec<CertificateDer<'static>>,
}

impl Rig {
    fn new() -> Self {
        let cluster = Cluster::new(TestClock::new());
        let authority = authority(&domain(), cluster.clock.now());
        let roots = authority.bundle().iter().map(|root| root.der().clone());
        let trust = Arc::new(ArcSwap::from_pointee(Trust::new(roots, Vec::new()).unwrap()));
        let domains = TrustDomains { own: domain(), aliases: Vec::new() };
        let by_certificate = |purpose| {
            let (trust, clock) = (trust.clone(), cluster.clock.clock());
            Arc::new(CertificateAuthenticator::new(trust, domains.clone(), purpose, clock))
        };
        let config = GateConfig {
            proved: vec![by_certificate(Purpose::Identity), cluster.tokens.clone()],
            fresh: vec![cluster.tokens.clone(), by_certificate(Purpose::Renewal(cluster.index.clone()))],
        };
        let certificate = leaf(&authority, &cart(), Duration::from_secs(600), cluster.clock.now()).chain;
        Self { cluster, behind: Behind::default(), config, certificate }
    }

    /// Calls `path` with a token, if there is one, over a connection with or without a certificate.
    async fn call(&self, path: &str, token: Option<&str>, certificates: &[CertificateDer<'static>]) -> Code {
        let mut request = Request::new(Empty::new());
        *request.uri_mut() =
            http::Uri::builder().path_and_query(if path.is_empty() { "/" } else { path }).build().unwrap();
        if let Some(token) = token {
            let value = format!("Bearer {token}").parse().unwrap();
            request.headers_mut().insert(http::header::AUTHORIZATION, value);
        }
        request.extensions_mut().insert(Peer::detached(address(), true, certificates.to_vec()));
        self.send(request).await
    }

    async fn send(&self, request: Request) -> Code {
        let behind = self.behind.clone();
        let inner = tower::service_fn(move |request: Request| {
            behind.0.lock().unwrap().push(request.extensions().get::<Caller>().cloned());
            std::future::ready(Ok::<_, Infallible>(Status::ok("").into_http::<tonic::body::Body>()))
        });
        let gate = Gate::new(inner, self.config.clone(), self.cluster.metrics.clone());
        let response = gate.oneshot(request).await.unwrap();
        Status::from_header_map(response.headers()).map_or(Code::Ok, |status| status.code())
    }
}

#[tokio::test]
async fn without_credentials_only_health_is_served() {
    let rig = Rig::new();
    for method in every_method() {
        let expected = match access_of(&method) {
            Some(Access::Anyone) => Code::Ok,
            Some(_) => Code::Unauthenticated,
            None => Code::PermissionDenied,
        };
        assert_eq!(rig.call(&method, None, &[]).await, expected, "{method}");
        let reached = rig.behind.take();
        assert_eq!(
            reached.len(),
            usize::from(method.starts_with("/grpc.health.v1.Health/") && expected == Code::Ok),
            "{method}"
        );
    }
}

#[tokio::test]
async fn foreign_and_expired_credentials_are_worth_nothing() {
    let rig = Rig::new();
    let now = rig.cluster.clock.now();
    let foreign = authority(&domain(), now);
    let foreign = leaf(&foreign, &cart(), Duration::from_secs(600), now).chain;
    let foreign_token = crate::rig::SigningKey::ec("first").sign(&rig.cluster.claims());
    let expired_token = rig.cluster.token(|c| c["exp"] = serde_json::json!(1));
    let foreign_audience = rig.cluster.token(|c| c["aud"] = serde_json::json!("vault"));
    let junk = "junk".to_owned();
    for method in every_method() {
        if access_of(&method) == Some(Access::Anyone) {
            continue;
        }
        let expected = match access_of(&method) {
            None => Code::PermissionDenied,
            Some(_) => Code::Unauthenticated,
        };
        for token in [&foreign_token, &expired_token, &foreign_audience, &junk] {
            assert_eq!(rig.call(&method, Some(token), &[]).await, expected, "{method}");
        }
        assert_eq!(rig.call(&method, None, &foreign).await, expected, "{method}");
        assert_eq!(rig.call(&method, Some(&expired_token), &foreign).await, expected, "{method}");
    }
    rig.cluster.clock.advance(Duration::from_secs(601));
    for (method, access) in METHODS {
        if *access != Access::Anyone {
            assert_eq!(rig.call(method, None, &rig.certificate).await, Code::Unauthenticated, "{method}");
        }
    }
    assert!(rig.behind.take().is_empty(), "nothing came through");
    assert_eq!(rig.cluster.reviewer.reviews(), 0);
}

#[tokio::test]
async fn the_known_may_call_what_is_in_the_table_and_nothing_else() {
    let rig = Rig::new();
    let token = rig.cluster.token(|_| ());
    for method in every_method() {
        let by_token = rig.call(&method, Some(&token), &[]).await;
        let by_certificate = rig.call(&method, None, &rig.certificate).await;
        let reached = rig.behind.take();
        match access_of(&method) {
            None => {
                assert_eq!(
                    (by_token, by_certificate),
                    (Code::PermissionDenied, Code::PermissionDenied),
                    "{method}"
                );
                assert!(reached.is_empty(), "{method}");
            }
            Some(Access::Anyone) => assert_eq!(reached, [None, None], "{method}"),
            Some(Access::Proved) => {
                let ids: Vec<_> = reached.into_iter().map(|caller| caller.unwrap().id).collect();
                assert_eq!(ids, [cart(), cart()], "{method}");
            }
            Some(Access::Fresh) => {
                assert_eq!((by_token, by_certificate), (Code::Ok, Code::Unauthenticated), "{method}");
                assert_eq!(reached.len(), 1, "{method}");
            }
        }
    }
}

#[tokio::test]
async fn every_method_of_the_table_is_one() {
    let methods = every_method();
    // One is not gRPC: it is where replicas ask each other.
    for (method, _) in METHODS.iter().filter(|(method, _)| *method != REPLICA_COUNTS) {
        assert!(methods.contains(*method), "{method} is in the table, and no service has it");
    }
}

#[tokio::test]
async fn a_certificate_makes_up_for_a_token_that_is_too_old() {
    let rig = Rig::new();
    let expired = rig.cluster.token(|c| c["exp"] = serde_json::json!(1));
    let (stream, _) = METHODS[0];
    assert_eq!(rig.call(stream, Some(&expired), &rig.certificate).await, Code::Ok);
}

#[tokio::test]
async fn nobody_brings_a_caller_along() {
    let rig = Rig::new();
    let caller = Caller {
        id: cart(),
        proof: identity::Proof::Token,
        pod: None,
        node: None,
        expires: std::time::SystemTime::now(),
    };
    for (method, expected) in
        [(METHODS[0].0, Code::Unauthenticated), ("/grpc.health.v1.Health/Check", Code::Ok)]
    {
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = method.parse().unwrap();
        request.extensions_mut().insert(caller.clone());
        assert_eq!(rig.send(request).await, expected, "and without a listener nobody is known");
    }
    assert_eq!(rig.behind.take(), [None]);
}

#[tokio::test]
async fn a_connection_is_settled_by_a_known_caller_only() {
    let rig = Rig::new();
    let token = rig.cluster.token(|_| ());
    for (method, token, settled) in [
        (METHODS[0].0, None, false),
        ("/grpc.health.v1.Health/Check", None, false),
        (METHODS[0].0, Some(token), true),
    ] {
        let peer = Peer::detached(address(), true, Vec::new());
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = method.parse().unwrap();
        if let Some(token) = token {
            let value = format!("Bearer {token}").parse().unwrap();
            request.headers_mut().insert(http::header::AUTHORIZATION, value);
        }
        request.extensions_mut().insert(peer.clone());
        rig.send(request).await;
        assert_eq!(peer.is_settled(), settled, "{method}");
    }
}
