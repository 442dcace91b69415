//! A cluster that signs tokens, an authority that signs certificates, and a clock.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ca::{Authority, IssuerMaterial, Policy, PublicKey, Serial, SigningKeyPair, TrustBundle, UnixTime};
use futures::future::BoxFuture;
use http::HeaderMap;
use identity::{
    AuthError, Authenticator, Binding, Caller, Clock, Credentials, KeySource, KeySourceError, Metrics,
    PublishedKeys, Review, ReviewError, Standing, TokenAuthenticator, TokenConfig, TokenReviewer,
    WorkloadIndex,
};
use model::{SpiffeId, TrustDomain};
use parking_lot::Mutex;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::RSAPublicKey;

pub(crate) const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// A clock that is set by hand.
#[derive(Clone)]
pub(crate) struct TestClock(Arc<Mutex<SystemTime>>);

impl TestClock {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(UNIX_EPOCH + Duration::from_secs(1_800_000_000))))
    }

    /// For tests with TLS, which has its own clock.
    pub(crate) fn of_the_system() -> Self {
        Self(Arc::new(Mutex::new(SystemTime::now())))
    }

    pub(crate) fn now(&self) -> SystemTime {
        *self.0.lock()
    }

    pub(crate) fn advance(&self, by: Duration) {
        *self.0.lock() += by;
    }

    pub(crate) fn clock(&self) -> Clock {
        let clock = self.clone();
        Arc::new(move || clock.now())
    }
}

/// A key that signs tokens.
pub(crate) enum SigningKey {
    Ec { id: String, key: EcdsaKeyPair },
    Rsa { id: String, key: RsaKeyPair },
}

impl SigningKey {
    pub(crate) fn ec(id: &str) -> Self {
        Self::Ec { id: id.to_owned(), key: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap() }
    }

    pub(crate) fn rsa(id: &str) -> Self {
        Self::Rsa { id: id.to_owned(), key: RsaKeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap() }
    }

    pub(crate) fn jwk(&self) -> Value {
        match self {
            Self::Ec { id, key } => {
                let point = key.public_key().as_ref();
                let (x, y) = (URL_SAFE_NO_PAD.encode(&point[1..33]), URL_SAFE_NO_PAD.encode(&point[33..]));
                json!({ "kty": "EC", "use": "sig", "alg": "ES256", "kid": id, "crv": "P-256", "x": x, "y": y })
            }
            Self::Rsa { id, key } => {
                let (_, public) = RSAPublicKey::from_der(key.public_key().as_ref()).unwrap();
                let (n, e) =
                    (URL_SAFE_NO_PAD.encode(public.modulus), URL_SAFE_NO_PAD.encode(public.exponent));
                json!({ "kty": "RSA", "use": "sig", "alg": "RS256", "kid": id, "n": n, "e": e })
            }
        }
    }

    pub(crate) fn header(&self) -> Value {
        match self {
            Self::Ec { id, .. } => json!({ "alg": "ES256", "kid": id }),
            Self::Rsa { id, .. } => json!({ "alg": "RS256", "kid": id }),
        }
    }

    pub(crate) fn sign(&self, claims: &Value) -> String {
        self.sign_with_header(&self.header(), claims)
    }

    pub(crate) fn sign_with_header(&self, header: &Value, claims: &Value) -> String {
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", encode(header), encode(claims));
        let random = SystemRandom::new();
        let signature = match self {
            Self::Ec { key, .. } => key.sign(&random, message.as_bytes()).unwrap().as_ref().to_vec(),
            Self::Rsa { key, .. } => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &random, message.as_bytes(), &mut signature).unwrap();
                signature
            }
        };
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// What a cluster publishes, and how often it was asked.
#[derive(Default)]
pub(crate) struct Keys {
    pub(crate) published: Mutex<Option<Value>>,
    pub(crate) fetches: AtomicUsize,
}

impl Keys {
    pub(crate) fn publish(&self, keys: &[&SigningKey]) {
        let keys: Vec<Value> = keys.iter().map(|key| key.jwk()).collect();
        *self.published.lock() = Some(json!({ "keys": keys }));
    }

    pub(crate) fn fetches(&self) -> usize {
        self.fetches.load(Ordering::Relaxed)
    }
}

impl KeySource for Keys {
    fn fetch(&self) -> BoxFuture<'_, Result<PublishedKeys, KeySourceError>> {
        Box::pin(async {
            self.fetches.fetch_add(1, Ordering::Relaxed);
            // Time for others to ask as well.
            tokio::task::yield_now().await;
            let published = self.published.lock().clone();
            let jwks = published.ok_or_else(|| KeySourceError("no route to host".to_owned()))?;
            Ok(PublishedKeys { issuer: ISSUER.to_owned(), jwks: jwks.to_string().into() })
        })
    }
}

/// What the API server says of every token, and how often it was asked.
#[derive(Default)]
pub(crate) struct Reviewer {
    pub(crate) answer: Mutex<Option<Review>>,
    pub(crate) reviews: AtomicUsize,
}

impl Reviewer {
    pub(crate) fn reviews(&self) -> usize {
        self.reviews.load(Ordering::Relaxed)
    }
}

impl TokenReviewer for Reviewer {
    fn review<'a>(
        &'a self,
        _token: &'a str,
        audiences: &'a [String],
    ) -> BoxFuture<'a, Result<Review, ReviewError>> {
        assert_eq!(audiences, ["istio-ca"]);
        self.reviews.fetch_add(1, Ordering::Relaxed);
        let answer = self.answer.lock().clone().ok_or_else(|| ReviewError("no route to host".to_owned()));
        Box::pin(std::future::ready(answer))
    }
}

/// The unique ids that there are.
#[derive(Default)]
pub(crate) struct Index {
    pub(crate) uids: Mutex<BTreeSet<String>>,
    pub(crate) machines: Mutex<BTreeSet<String>>,
}

impl Index {
    pub(crate) fn add(&self, uid: &str) {
        self.uids.lock().insert(uid.to_owned());
    }

    pub(crate) fn remove(&self, uid: &str) {
        self.uids.lock().remove(uid);
    }
}

impl WorkloadIndex for Index {
    fn standing(&self, binding: &Binding) -> Standing {
        let uids = self.uids.lock();
        let account = binding.service_account_uid.as_ref().is_some_and(|uid| uids.contains(uid.as_ref()));
        let pod = binding.pod.as_ref().is_none_or(|pod| uids.contains(pod.uid.as_ref()));
        if account && pod { Standing::Good } else { Standing::Unknown }
    }

    fn is_machine(&self, id: &SpiffeId) -> bool {
        self.machines.lock().contains(id.as_str())
    }
}

/// A cluster with one service account, `cart` in `shop`, and one pod.
pub(crate) struct Cluster {
    pub(crate) clock: TestClock,
    pub(crate) key: SigningKey,
    pub(crate) keys: Arc<Keys>,
    pub(crate) reviewer: Arc<Reviewer>,
    pub(crate) index: Arc<Index>,
    pub(crate) metrics: Metrics,
    pub(crate) tokens: Arc<TokenAuthenticator>,
}

impl Cluster {
    pub(crate) fn new(clock: TestClock) -> Self {
        let key = SigningKey::ec("first");
        let (keys, reviewer, index) =
            (Arc::<Keys>::default(), Arc::<Reviewer>::default(), Arc::<Index>::default());
        keys.publish(&[&key]);
        index.add("account-uid");
        index.add("pod-uid");
        let metrics = Metrics::default();
        let config = TokenConfig {
            trust_domain: domain(),
            audiences: vec!["istio-ca".to_owned()],
            keys: Some(keys.clone()),
            reviewer: Some(reviewer.clone()),
            index: index.clone(),
            clock: clock.clock(),
        };
        let tokens = Arc::new(TokenAuthenticator::new(config, metrics.clone()));
        Self { clock, key, keys, reviewer, index, metrics, tokens }
    }

    /// The claims of a good token, as Kubernetes writes them.
    pub(crate) fn claims(&self) -> Value {
        let now = self.clock.now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        json!({
            "aud": ["istio-ca"],
            "exp": now + 3600,
            "iat": now,
            "nbf": now,
            "iss": ISSUER,
            "jti": "0b1e4a4c-3ab6-4a4a-a1a4-000000000000",
            "sub": "system:serviceaccount:shop:cart",
            "kubernetes.io": {
                "namespace": "shop",
                "node": { "name": "node-1", "uid": "node-uid" },
                "pod": { "name": "cart-1", "uid": "pod-uid" },
                "serviceaccount": { "name": "cart", "uid": "account-uid" },
                "warnafter": now + 3000,
            },
        })
    }

    /// A good token, changed.
    pub(crate) fn token(&self, change: impl FnOnce(&mut Value)) -> String {
        let mut claims = self.claims();
        change(&mut claims);
        self.key.sign(&claims)
    }

    /// What the API server says of a good token.
    pub(crate) fn good_review(&self) -> Review {
        Review {
            authenticated: true,
            username: "system:serviceaccount:shop:cart".to_owned(),
            uid: "account-uid".to_owned(),
            audiences: vec!["istio-ca".to_owned()],
            pod: None,
            node: None,
        }
    }

    pub(crate) async fn authenticate(&self, token: &str) -> Result<Option<Caller>, AuthError> {
        authenticate(self.tokens.as_ref(), token).await
    }
}

pub(crate) async fn authenticate(
    authenticator: &dyn Authenticator,
    token: &str,
) -> Result<Option<Caller>, AuthError> {
    let mut headers = HeaderMap::new();
    headers.insert(http::header::AUTHORIZATION, format!("Bearer {token}").parse().unwrap());
    authenticator.authenticate(Credentials { address: address(), certificates: &[], headers: &headers }).await
}

pub(crate) fn address() -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], 4000))
}

pub(crate) fn domain() -> TrustDomain {
    "cluster.local".parse().unwrap()
}

pub(crate) fn cart() -> SpiffeId {
    "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap()
}

/// An authority of `domain` whose root is valid from `now`.
pub(crate) fn authority(domain: &TrustDomain, now: SystemTime) -> Authority {
    let now = UnixTime::from(now);
    let key = SigningKeyPair::new(rcgen::KeyPair::generate().unwrap()).unwrap();
    let root = ca::root::self_signed(&key, domain, now, serial()).unwrap();
    let bundle: TrustBundle = [root.clone()].into_iter().collect();
    let material = IssuerMaterial::self_signed(key, root, now).unwrap();
    Authority::new(material, bundle, Policy::new(domain.clone()), now).unwrap()
}

pub(crate) fn serial() -> Serial {
    let mut bytes = [0; 20];
    aws_lc_rs::rand::fill(&mut bytes).unwrap();
    Serial::from_random(bytes)
}

/// A workload's certificate and key.
pub(crate) struct Leaf {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
}

pub(crate) fn leaf(authority: &Authority, id: &SpiffeId, ttl: Duration, now: SystemTime) -> Leaf {
    let key = rcgen::KeyPair::generate().unwrap();
    let public = PublicKey::from_spki(&rcgen::PublicKeyData::subject_public_key_info(&key)).unwrap();
    let issued = authority.issue_for_key(&public, id, Some(ttl), UnixTime::from(now), serial()).unwrap();
    Leaf { chain: issued.der_chain(), key: PrivateKeyDer::try_from(key.serialize_der()).unwrap() }
}

/// A certificate request in PEM.
pub(crate) fn request() -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap()
}
