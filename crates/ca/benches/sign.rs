//! How many requests a core turns into certificates: `cargo bench -p weft-ca`.
//!
//! The numbers are per request and core; requests for RSA are those of Istio's agents by default.

use ca::{Authority, Csr, IssuerMaterial, Policy, Serial, SigningKeyPair, TrustBundle, UnixTime};
use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use model::{SpiffeId, TrustDomain};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, RsaKeySize};

const NOW: UnixTime = UnixTime::from_seconds(1_767_225_600);

fn main() {
    divan::main();
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    P256,
    Rsa2048,
}

impl Kind {
    fn key(self) -> KeyPair {
        match self {
            Self::P256 => KeyPair::generate(),
            Self::Rsa2048 => KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048),
        }
        .expect("the random number generator works")
    }
}

fn authority(kind: Kind) -> Authority {
    let domain = TrustDomain::parse("cluster.local").expect("a trust domain");
    let key = SigningKeyPair::new(kind.key()).expect("a key that signs");
    let root = ca::root::self_signed(&key, &domain, NOW, Serial::from_random([1; 20])).expect("a root");
    let bundle: TrustBundle = [root.clone()].into_iter().collect();
    let material = IssuerMaterial::self_signed(key, root, NOW).expect("key and root match");
    Authority::new(material, bundle, Policy::new(domain), NOW).expect("an authority")
}

fn request(kind: Kind) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.serialize_request(&kind.key()).and_then(|request| request.pem()).expect("a request")
}

fn reviews() -> SpiffeId {
    "spiffe://cluster.local/ns/bookinfo/sa/reviews".parse().expect("an identity")
}

/// From the PEM of a request to the PEM of an answer, signed by an authority with a P-256 key.
#[divan::bench(args = [Kind::P256, Kind::Rsa2048])]
fn request_to_answer(bencher: Bencher<'_, '_>, kind: Kind) {
    let (authority, request, id) = (authority(Kind::P256), request(kind), reviews());
    bencher.counter(ItemsCount::new(1_usize)).bench(|| {
        let csr = Csr::from_pem(black_box(&request)).expect("a good request");
        let serial = Serial::from_random([2; 20]);
        authority.issue(&csr, &id, None, NOW, serial).expect("a certificate").response()
    });
}

/// The same with an authority whose key is RSA.
#[divan::bench(args = [Kind::P256, Kind::Rsa2048])]
fn request_to_answer_signed_by_rsa(bencher: Bencher<'_, '_>, kind: Kind) {
    let (authority, request, id) = (authority(Kind::Rsa2048), request(kind), reviews());
    bencher.counter(ItemsCount::new(1_usize)).bench(|| {
        let csr = Csr::from_pem(black_box(&request)).expect("a good request");
        let serial = Serial::from_random([2; 20]);
        authority.issue(&csr, &id, None, NOW, serial).expect("a certificate").response()
    });
}

/// Reading a request and checking its signature.
#[divan::bench(args = [Kind::P256, Kind::Rsa2048])]
fn check_request(bencher: Bencher<'_, '_>, kind: Kind) {
    let request = request(kind);
    bencher.counter(ItemsCount::new(1_usize)).bench(|| Csr::from_pem(black_box(&request)));
}

/// Signing alone.
#[divan::bench]
fn sign(bencher: Bencher<'_, '_>) {
    let (authority, id) = (authority(Kind::P256), reviews());
    let csr = Csr::from_pem(request(Kind::P256)).expect("a good request");
    bencher
        .counter(ItemsCount::new(1_usize))
        .bench(|| authority.issue(black_box(&csr), &id, None, NOW, Serial::from_random([2; 20])));
}
