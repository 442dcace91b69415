//! Which requests are taken.

mod common;

use ca::key::{PublicKeyError, SignatureError};
use ca::{Csr, CsrError, KeyKind, PublicKey};
use common::{Request, cases};
use proptest::prelude::*;
use rcgen::{CertificateParams, KeyPair, PublicKeyData as _, RsaKeySize};
use std::sync::LazyLock;

fn p256() -> &'static KeyPair {
    static KEY: LazyLock<KeyPair> = LazyLock::new(|| KeyPair::generate().unwrap());
    &KEY
}

#[test]
fn keys_that_envoy_takes_are_taken() {
    let rsa = |size| KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, size).unwrap();
    for (key, kind) in [
        (KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap(), KeyKind::EcdsaP256),
        (KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap(), KeyKind::EcdsaP384),
        (rsa(RsaKeySize::_2048), KeyKind::Rsa(2048)),
        (rsa(RsaKeySize::_3072), KeyKind::Rsa(3072)),
        (KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA512, RsaKeySize::_2048).unwrap(), KeyKind::Rsa(2048)),
    ] {
        let request = CertificateParams::default().serialize_request(&key).unwrap();
        let csr = Csr::from_der(request.der()).unwrap();
        assert_eq!(csr, Csr::from_pem(request.pem().unwrap()).unwrap());
        assert_eq!(csr.key_kind(), kind);
        assert_eq!(csr.public_key().spki(), key.subject_public_key_info());
    }
}

#[test]
fn other_keys_are_refused_by_name() {
    for (algorithm, name) in
        [(&rcgen::PKCS_ED25519, "Ed25519"), (&rcgen::PKCS_ECDSA_P521_SHA512, "ECDSA P-521")]
    {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let request = CertificateParams::default().serialize_request(&key).unwrap();
        let error = Csr::from_der(request.der()).unwrap_err();
        assert_eq!(error, CsrError::Key(PublicKeyError::Unsupported(name.to_owned())));
    }
    // Sizes are checked before anything is computed with the key.
    for bits in [512, 1024, 2047, 8193, 16_384] {
        let error = PublicKey::from_spki(&rsa_spki(bits, &[1, 0, 1])).unwrap_err();
        assert_eq!(error, PublicKeyError::RsaSize(bits));
    }
    for exponent in [&[1][..], &[2], &[1, 0, 0], &[1, 0, 0, 0, 1]] {
        let error = PublicKey::from_spki(&rsa_spki(2048, exponent)).unwrap_err();
        assert_eq!(error, PublicKeyError::Malformed, "{exponent:?}");
    }
    assert!(PublicKey::from_spki(&rsa_spki(8192, &[3])).is_ok());
}

/// A key with an odd modulus of that many bits.
fn rsa_spki(bits: usize, exponent: &[u8]) -> Vec<u8> {
    let mut modulus = vec![0xff; bits.div_ceil(8)];
    modulus[0] = 0xff >> (modulus.len() * 8 - bits);
    let number = |digits: &[u8]| {
        let zero: &[u8] = if digits[0] >= 0x80 { &[0] } else { &[] };
        common::der(0x02, &[zero, digits])
    };
    let key = common::der(0x30, &[&number(&modulus), &number(exponent)]);
    let algorithm = [0x30, 13, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1, 5, 0];
    common::der(0x30, &[&algorithm, &common::der(0x03, &[&[0], &key])])
}

#[test]
fn a_key_is_written_in_one_way_only() {
    let spki = p256().subject_public_key_info();
    let point = &spki[spki.len() - 65..];
    let algorithm = &spki[2..23];
    let encode = |key: &[u8]| common::der(0x30, &[algorithm, &common::der(0x03, &[&[0], key])]);
    assert_eq!(PublicKey::from_spki(&encode(point)).unwrap().spki(), spki);
    let mut compressed = point[..33].to_vec();
    compressed[0] = 2 + (point[64] & 1);
    let mut hybrid = point.to_vec();
    hybrid[0] = 6 + (point[64] & 1);
    for other in [compressed.as_slice(), &hybrid, &[0], &[], &point[..64], &[point, &[0]].concat()] {
        assert_eq!(PublicKey::from_spki(&encode(other)).unwrap_err(), PublicKeyError::Malformed);
    }
    let trailing = [spki.as_slice(), &[0]].concat();
    assert_eq!(PublicKey::from_spki(&trailing).unwrap_err(), PublicKeyError::Malformed);
}

#[test]
fn a_point_beside_the_curve_proves_nothing() {
    let request = Request::new(p256());
    let mut der = request.signed(p256());
    let spki = p256().subject_public_key_info();
    let position = der.windows(spki.len()).position(|window| window == spki).unwrap();
    der[position + spki.len() - 1] ^= 1;
    assert_eq!(Csr::from_der(&der).unwrap_err(), CsrError::Signature(SignatureError::Invalid));
}

#[test]
fn possession_must_be_proven() {
    let other = KeyPair::generate().unwrap();
    let error = Csr::from_der(&Request::new(p256()).signed(&other)).unwrap_err();
    assert_eq!(error, CsrError::Signature(SignatureError::Invalid));

    // ecdsa-with-SHA1
    let sha1 = [0x30, 9, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 1];
    let request = Request { algorithm: sha1.to_vec(), ..Request::new(p256()) };
    let error = Csr::from_der(&request.signed(p256())).unwrap_err();
    assert_eq!(error, CsrError::Signature(SignatureError::Unsupported));
}

#[test]
fn what_is_no_request_is_refused() {
    let good = Request::new(p256()).signed(p256());
    let pem = |label: &str, der: &[u8]| pem::encode(&pem::Pem::new(label, der));
    assert!(Csr::from_pem(pem("CERTIFICATE REQUEST", &good)).is_ok());
    assert!(Csr::from_pem(pem("NEW CERTIFICATE REQUEST", &good)).is_ok());
    assert_eq!(Csr::from_pem("").unwrap_err(), CsrError::NotPem);
    assert_eq!(Csr::from_pem("-----BEGIN CERTIFICATE REQUEST-----\n").unwrap_err(), CsrError::NotPem);
    assert_eq!(Csr::from_pem(&good).unwrap_err(), CsrError::NotPem);
    let error = Csr::from_pem(pem("CERTIFICATE", &good)).unwrap_err();
    assert_eq!(error, CsrError::Label("CERTIFICATE".to_owned()));
    assert!(matches!(Csr::from_pem(vec![b'A'; 1 << 20]), Err(CsrError::TooLarge { size: 1_048_576, .. })));
    assert!(matches!(Csr::from_der(&vec![0x30; 1 << 20]), Err(CsrError::TooLarge { .. })));

    for length in 0..good.len() {
        assert_eq!(Csr::from_der(&good[..length]).unwrap_err(), CsrError::Malformed, "{length}");
    }
    assert_eq!(Csr::from_der(&[good.as_slice(), &[0]].concat()).unwrap_err(), CsrError::Malformed);
    let version = Request { version: vec![2, 1, 1], ..Request::new(p256()) };
    assert_eq!(Csr::from_der(&version.signed(p256())).unwrap_err(), CsrError::Malformed);
    let extra = Request { attributes: vec![0xa0, 0, 0xa1, 0], ..Request::new(p256()) };
    assert_eq!(Csr::from_der(&extra.signed(p256())).unwrap_err(), CsrError::Malformed);
}

#[test]
fn attributes_may_be_missing_or_nonsense() {
    for attributes in [vec![], vec![0xa0, 0], vec![0xa0, 3, 1, 2, 3], vec![0xa0, 2, 0x30, 0x80]] {
        let request = Request { attributes: attributes.clone(), ..Request::new(p256()) };
        assert!(Csr::from_der(&request.signed(p256())).is_ok(), "{attributes:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(u32::try_from(cases(2_000)).unwrap_or(u32::MAX)))]

    #[test]
    fn no_change_to_a_request_is_taken_or_panics(position in any::<prop::sample::Index>(), bit in 0..8_u8) {
        let good = CertificateParams::default().serialize_request(p256()).unwrap().der().to_vec();
        let mut changed = good.clone();
        changed[position.index(good.len())] ^= 1 << bit;
        prop_assert!(Csr::from_der(&changed).is_err());
    }

    #[test]
    fn no_text_panics(text in "(-----BEGIN CERTIFICATE REQUEST-----)?[A-Za-z0-9+/=\n]{0,200}(-----END CERTIFICATE REQUEST-----)?") {
        prop_assert!(Csr::from_pem(text).is_err());
    }
}
