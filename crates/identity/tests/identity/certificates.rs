//! Client certificates: which prove an identity.

use crate::rig::{Index, Leaf, TestClock, address, authority, cart, domain, leaf};
use arc_swap::ArcSwap;
use ca::Authority;
use http::HeaderMap;
use identity::{
    AuthError, Authenticator as _, Caller, CertificateAuthenticator, Credentials, Proof, Purpose, Rejection,
    Trust, TrustDomains,
};
use model::TrustDomain;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls::pki_types::CertificateDer;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

const DAY: Duration = Duration::from_secs(86_400);

fn trust(authorities: &[&Authority]) -> Trust {
    let roots = authorities.iter().flat_map(|authority| authority.bundle().iter());
    Trust::new(roots.map(|root| root.der().clone()), Vec::new()).unwrap()
}

struct Rig {
    clock: TestClock,
    trust: Arc<ArcSwap<Trust>>,
    authenticator: CertificateAuthenticator,
}

fn rig(authorities: &[&Authority], clock: TestClock, aliases: Vec<TrustDomain>, purpose: Purpose) -> Rig {
    let trust = Arc::new(ArcSwap::from_pointee(trust(authorities)));
    let domains = TrustDomains { own: domain(), aliases };
    let authenticator = CertificateAuthenticator::new(trust.clone(), domains, purpose, clock.clock());
    Rig { clock, trust, authenticator }
}

impl Rig {
    async fn check(&self, chain: &[CertificateDer<'static>]) -> Result<Option<Caller>, AuthError> {
        let headers = HeaderMap::new();
        let credentials = Credentials { address: address(), certificates: chain, headers: &headers };
        self.authenticator.authenticate(credentials).await
    }
}

fn rejected(rejection: Rejection) -> Result<Option<Caller>, AuthError> {
    Err(AuthError::Rejected(rejection))
}

#[tokio::test]
async fn a_certificate_of_ours_proves_its_identity_until_it_ends() {
    let clock = TestClock::new();
    let ours = authority(&domain(), clock.now());
    let rig = rig(&[&ours], clock, Vec::new(), Purpose::Identity);
    let Leaf { chain, .. } = leaf(&ours, &cart(), DAY, rig.clock.now());
    let caller = rig.check(&chain).await.unwrap().unwrap();
    assert_eq!((caller.id, caller.proof), (cart(), Proof::Certificate));
    assert_eq!(caller.expires, rig.clock.now() + DAY);
    // On a connection that was made in time.
    rig.clock.advance(DAY + Duration::from_secs(1));
    assert_eq!(rig.check(&chain).await, rejected(Rejection::Expired));
    assert_eq!(rig.check(&[]).await, Ok(None));
}

#[tokio::test]
async fn a_root_that_is_not_trusted_any_more_proves_nothing_on_old_connections() {
    let clock = TestClock::new();
    let (old, new) = (authority(&domain(), clock.now()), authority(&domain(), clock.now()));
    let rig = rig(&[&old, &new], clock, Vec::new(), Purpose::Identity);
    let Leaf { chain, .. } = leaf(&old, &cart(), DAY, rig.clock.now());
    assert!(rig.check(&chain).await.is_ok());
    rig.trust.store(Arc::new(trust(&[&new])));
    assert_eq!(rig.check(&chain).await, rejected(Rejection::Untrusted));
}

#[tokio::test]
async fn other_trust_domains_are_foreign_unless_they_are_aliases() {
    let clock = TestClock::new();
    let other: TrustDomain = "old.example".parse().unwrap();
    let theirs = authority(&other, clock.now());
    let id = "spiffe://old.example/ns/shop/sa/cart".parse().unwrap();
    let Leaf { chain, .. } = leaf(&theirs, &id, DAY, clock.now());
    // Even if their root is trusted, as in a federation.
    let strict = rig(&[&theirs], clock.clone(), Vec::new(), Purpose::Identity);
    assert_eq!(strict.check(&chain).await, rejected(Rejection::TrustDomain));
    let lenient = rig(&[&theirs], clock, vec![other], Purpose::Identity);
    assert_eq!(lenient.check(&chain).await.unwrap().unwrap().id, id);
}

#[tokio::test]
async fn with_a_certificate_alone_only_machines_get_another() {
    let clock = TestClock::new();
    let ours = authority(&domain(), clock.now());
    let index = Arc::new(Index::default());
    let rig = rig(&[&ours], clock, Vec::new(), Purpose::Renewal(index.clone()));
    let Leaf { chain, .. } = leaf(&ours, &cart(), DAY, rig.clock.now());
    assert_eq!(rig.check(&chain).await, rejected(Rejection::NotFresh));
    index.machines.lock().insert(cart().as_str().to_owned());
    assert_eq!(rig.check(&chain).await.unwrap().unwrap().id, cart());
}

/// A certificate as only an authority that was plugged in could issue it.
fn odd(names: Vec<SanType>) -> (CertificateDer<'static>, Vec<CertificateDer<'static>>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = params.self_signed(&key).unwrap().der().clone();
    let issuer = Issuer::new(params, key);
    let mut params = CertificateParams::default();
    params.subject_alt_names = names;
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let leaf = params.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap();
    (root, vec![leaf.der().clone()])
}

#[tokio::test]
async fn exactly_one_uri_of_the_right_form_is_asked_for() {
    let uri = |text: &str| SanType::URI(text.try_into().unwrap());
    let dns = |text: &str| SanType::DnsName(text.try_into().unwrap());
    let good = "spiffe://cluster.local/ns/shop/sa/cart";
    for (names, expected) in [
        (vec![uri(good)], Ok(())),
        (vec![dns("cart.shop"), uri(good)], Ok(())),
        (vec![], Err(Rejection::Subject)),
        (vec![dns("cart.shop")], Err(Rejection::Subject)),
        (vec![uri(good), uri("spiffe://cluster.local/ns/bank/sa/admin")], Err(Rejection::Subject)),
        (vec![uri(good), uri("https://example.com")], Err(Rejection::Subject)),
        (vec![uri("https://example.com")], Err(Rejection::Subject)),
        (vec![uri("spiffe://cluster.local/ns/shop/sa/cart/x")], Err(Rejection::Subject)),
        (vec![uri("spiffe://cluster.local/ns/shop/sa/cart,x")], Err(Rejection::Subject)),
    ] {
        let (root, chain) = odd(names.clone());
        let trust = Arc::new(ArcSwap::from_pointee(Trust::new([root], Vec::new()).unwrap()));
        let domains = TrustDomains { own: domain(), aliases: Vec::new() };
        // Certificates of this library are valid for millennia.
        let clock: identity::Clock = Arc::new(SystemTime::now);
        let authenticator = CertificateAuthenticator::new(trust, domains, Purpose::Identity, clock);
        let headers = HeaderMap::new();
        let credentials = Credentials { address: address(), certificates: &chain, headers: &headers };
        let result = authenticator.authenticate(credentials).await.map(|_| ());
        assert_eq!(result, expected.map_err(AuthError::Rejected), "{names:?}");
    }
}
