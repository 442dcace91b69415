//! Keys, authorities and requests for tests. The requests and intermediates are made by another implementation.

#![allow(dead_code, reason = "each test program uses a part of it")]

use ca::{
    Authority, CaCertificate, Csr, IssuerMaterial, Policy, Serial, SigningKeyPair, TrustBundle, UnixTime,
};
use model::{SpiffeId, TrustDomain};
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose};
use x509_parser::prelude::X509Certificate;

/// 2026-01-01
pub(crate) const NOW: UnixTime = UnixTime::from_seconds(1_767_225_600);
pub(crate) const HOUR: std::time::Duration = std::time::Duration::from_secs(3_600);
pub(crate) const DAY: std::time::Duration = std::time::Duration::from_secs(24 * 3_600);
pub(crate) const YEAR: std::time::Duration = std::time::Duration::from_secs(365 * 24 * 3_600);

pub(crate) fn domain() -> TrustDomain {
    TrustDomain::parse("cluster.local").unwrap()
}

pub(crate) fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

pub(crate) fn reviews() -> SpiffeId {
    id("spiffe://cluster.local/ns/bookinfo/sa/reviews")
}

pub(crate) fn serial(number: u8) -> Serial {
    Serial::from_random([number; 20])
}

/// A copy of a key: the type of the library cannot be cloned.
pub(crate) fn signing(key: &KeyPair) -> SigningKeyPair {
    SigningKeyPair::from_pem(key.serialize_pem().as_bytes()).unwrap()
}

pub(crate) fn self_signed(key: &KeyPair) -> CaCertificate {
    ca::root::self_signed(&signing(key), &domain(), NOW, serial(1)).unwrap()
}

/// An authority whose root signs.
pub(crate) fn authority() -> Authority {
    authority_with(&KeyPair::generate().unwrap())
}

pub(crate) fn authority_with(key: &KeyPair) -> Authority {
    let root = self_signed(key);
    let bundle: TrustBundle = [root.clone()].into_iter().collect();
    let material = IssuerMaterial::self_signed(signing(key), root, NOW).unwrap();
    Authority::new(material, bundle, Policy::new(domain()), NOW).unwrap()
}

/// A request for `key` as agents send it.
pub(crate) fn request(key: &KeyPair) -> Csr {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name = DistinguishedName::new();
    Csr::from_pem(params.serialize_request(key).unwrap().pem().unwrap()).unwrap()
}

pub(crate) fn params(name: &str, path_len: Option<u8>) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(path_len.map_or(BasicConstraints::Unconstrained, BasicConstraints::Constrained));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params.not_before = rcgen::date_time_ymd(2025, 12, 1);
    params.not_after = rcgen::date_time_ymd(2027, 1, 1);
    params
}

/// A certificate of an authority, made by the library, that can sign others.
pub(crate) struct Ca {
    pub(crate) params: CertificateParams,
    pub(crate) key: KeyPair,
    pub(crate) pem: String,
}

impl Ca {
    pub(crate) fn root(name: &str) -> Self {
        Self::root_with(params(name, None), KeyPair::generate().unwrap())
    }

    pub(crate) fn root_with(params: CertificateParams, key: KeyPair) -> Self {
        let pem = params.self_signed(&key).unwrap().pem();
        Self { params, key, pem }
    }

    pub(crate) fn below(&self, name: &str) -> Self {
        self.below_with(params(name, None), KeyPair::generate().unwrap())
    }

    pub(crate) fn below_with(&self, params: CertificateParams, key: KeyPair) -> Self {
        let issuer = rcgen::Issuer::from_params(&self.params, &self.key);
        let pem = params.signed_by(&key, &issuer).unwrap().pem();
        Self { params, key, pem }
    }

    pub(crate) fn certificate(&self) -> CaCertificate {
        CaCertificate::from_der(pem::parse(&self.pem).unwrap().contents()).unwrap()
    }
}

/// Checks the signature of a P-256 key.
pub(crate) fn verify_p256(certificate: &X509Certificate<'_>, issuer: &X509Certificate<'_>) {
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
    let key = &issuer.public_key().subject_public_key.data;
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key)
        .verify(certificate.tbs_certificate.as_ref(), &certificate.signature_value.data)
        .unwrap();
}

/// How many cases of a property are tried: `WEFT_CA_CASES`, or `default`.
pub(crate) fn cases(default: u64) -> u64 {
    #[expect(clippy::disallowed_methods, reason = "a test is asked for more cases from outside")]
    let asked = std::env::var("WEFT_CA_CASES").ok();
    asked.map_or(default, |asked| asked.parse().expect("WEFT_CA_CASES is a number"))
}

/// Random numbers that are the same for the same seed, wherever the test runs (SplitMix64).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub(crate) fn index(&mut self, length: usize) -> usize {
        self.below(length as u64) as usize
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }

    /// One to `limit` bytes.
    pub(crate) fn some_bytes(&mut self, limit: usize) -> Vec<u8> {
        let length = 1 + self.index(limit);
        self.bytes(length)
    }

    pub(crate) fn pick<'a, T: ?Sized>(&mut self, choices: &[&'a T]) -> &'a T {
        choices[self.index(choices.len())]
    }
}

/// An element in the distinguished encoding. Written for tests a second time: what is tested should not be its own
/// judge.
pub(crate) fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let length = content.len();
    let mut element = vec![tag];
    match length {
        0..0x80 => element.push(length as u8),
        0x80..0x100 => element.extend([0x81, length as u8]),
        _ => element.extend([0x82, (length >> 8) as u8, length as u8]),
    }
    element.extend(content);
    element
}

/// A certificate request in pieces, any of which may be wrong.
pub(crate) struct Request {
    pub(crate) version: Vec<u8>,
    pub(crate) subject: Vec<u8>,
    pub(crate) spki: Vec<u8>,
    pub(crate) attributes: Vec<u8>,
    pub(crate) algorithm: Vec<u8>,
}

impl Request {
    /// A good one that asks for nothing.
    pub(crate) fn new(key: &KeyPair) -> Self {
        let ecdsa = |hash| vec![0x30, 10, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, hash];
        let algorithm = if *key.algorithm() == rcgen::PKCS_ECDSA_P256_SHA256 {
            ecdsa(2)
        } else if *key.algorithm() == rcgen::PKCS_ECDSA_P384_SHA384 {
            ecdsa(3)
        } else {
            vec![0x30, 13, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 11, 5, 0]
        };
        Self {
            version: vec![2, 1, 0],
            subject: vec![0x30, 0],
            spki: rcgen::PublicKeyData::subject_public_key_info(key),
            attributes: vec![0xa0, 0],
            algorithm,
        }
    }

    pub(crate) fn signed(&self, key: &KeyPair) -> Vec<u8> {
        let info = der(0x30, &[&self.version, &self.subject, &self.spki, &self.attributes]);
        let signature = rcgen::SigningKey::sign(key, &info).unwrap();
        der(0x30, &[&info, &self.algorithm, &der(0x03, &[&[0], &signature])])
    }
}
