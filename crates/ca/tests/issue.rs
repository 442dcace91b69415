//! What certificates look like, and who gets none.

mod common;

use ca::authority::{AuthorityError, IssueError};
use ca::{Authority, BACKDATE, IssuedChain, IssuerMaterial, Policy, PublicKey, TrustBundle, UnixTime};
use common::{
    Ca, DAY, HOUR, NOW, YEAR, authority, authority_with, domain, id, request, reviews, serial, signing,
};
use rcgen::{KeyPair, RsaKeySize};
use rustls_pki_types::{CertificateDer, ServerName};
use std::time::Duration;
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Verifies a chain as a TLS peer would, with no part of the implementation under test.
fn verify(
    chain: &IssuedChain,
    roots: &TrustBundle,
    now: UnixTime,
    usage: KeyUsage,
) -> Result<(), webpki::Error> {
    let certificates = chain.der_chain();
    let anchors: Vec<_> =
        roots.iter().map(|root| webpki::anchor_from_trusted_cert(root.der()).unwrap()).collect();
    let seconds = Duration::from_secs(now.as_seconds().try_into().unwrap());
    EndEntityCert::try_from(&certificates[0])?
        .verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &anchors,
            &certificates[1..],
            rustls_pki_types::UnixTime::since_unix_epoch(seconds),
            usage,
            None,
            None,
        )
        .map(|_| ())
}

fn parsed<'a>(der: &'a CertificateDer<'static>) -> X509Certificate<'a> {
    let (rest, certificate) = X509Certificate::from_der(der).unwrap();
    assert!(rest.is_empty());
    certificate
}

#[test]
fn a_leaf_is_an_x509_svid() {
    let authority = authority();
    let issued =
        authority.issue(&request(&KeyPair::generate().unwrap()), &reviews(), None, NOW, serial(7)).unwrap();
    let leaf = parsed(issued.leaf());
    let tbs = &leaf.tbs_certificate;

    assert_eq!(tbs.version.0, 2);
    assert_eq!(tbs.subject.iter().count(), 0);
    assert_eq!(tbs.raw_serial(), serial(7).as_bytes());
    assert_eq!(tbs.issuer.to_string(), "O=cluster.local");
    assert_eq!(tbs.validity.not_before.timestamp(), NOW.before(BACKDATE).as_seconds());
    assert_eq!(tbs.validity.not_after.timestamp(), NOW.after(DAY).as_seconds());
    assert_eq!(issued.not_after(), NOW.after(DAY));

    let names = tbs.subject_alternative_name().unwrap().unwrap();
    assert!(names.critical);
    assert_eq!(
        names.value.general_names,
        [GeneralName::URI("spiffe://cluster.local/ns/bookinfo/sa/reviews")]
    );
    let constraints = tbs.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && !constraints.value.ca && constraints.value.path_len_constraint.is_none());
    let usage = tbs.key_usage().unwrap().unwrap();
    assert!(usage.critical);
    assert_eq!(usage.value.flags, 1, "digital signature only");
    let purposes = tbs.extended_key_usage().unwrap().unwrap().value;
    assert!(purposes.server_auth && purposes.client_auth && !purposes.any && purposes.other.is_empty());
    assert_eq!(tbs.extensions().len(), 6);

    let root = parsed(authority.material().signer().der());
    let key_id = |certificate: &X509Certificate<'_>| {
        certificate.iter_extensions().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        })
    };
    let authority_key_id = leaf.iter_extensions().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|id| id.0.to_vec()),
        _ => None,
    });
    assert_eq!(authority_key_id, key_id(&root));
    assert!(key_id(&leaf).is_some() && key_id(&leaf) != key_id(&root));
    common::verify_p256(&leaf, &root);
    verify(&issued, authority.bundle(), NOW, KeyUsage::client_auth()).unwrap();
    verify(&issued, authority.bundle(), NOW, KeyUsage::server_auth()).unwrap();
}

#[test]
fn every_kind_of_key_signs_for_every_kind_of_key() {
    let kinds = || {
        [
            KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap(),
            KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap(),
            KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap(),
        ]
    };
    let leaves = kinds();
    let p521 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).unwrap();
    for signer in kinds().iter().chain([&p521]) {
        let authority = authority_with(signer);
        for key in &leaves {
            let issued = authority.issue(&request(key), &reviews(), None, NOW, serial(7)).unwrap();
            verify(&issued, authority.bundle(), NOW, KeyUsage::client_auth()).unwrap();
            let leaf = parsed(issued.leaf());
            let usage = leaf.key_usage().unwrap().unwrap().value;
            let rsa = *key.algorithm() == rcgen::PKCS_RSA_SHA256;
            assert_eq!((usage.digital_signature(), usage.key_encipherment()), (true, rsa));
            assert_eq!(leaf.public_key().raw, rcgen::PublicKeyData::subject_public_key_info(key));
        }
    }
}

#[test]
fn the_answer_is_leaf_intermediates_and_all_roots() {
    let root = Ca::root("root");
    let middle = root.below("middle");
    let signer = middle.below("signer");
    let other = Ca::root("other");
    let roots: TrustBundle = [root.certificate(), other.certificate()].into_iter().collect();
    let material =
        IssuerMaterial::new(signing(&signer.key), signer.certificate(), &[middle.certificate()], &roots, NOW)
            .unwrap();
    let authority = Authority::new(material, roots.clone(), Policy::new(domain()), NOW).unwrap();
    let issued =
        authority.issue(&request(&KeyPair::generate().unwrap()), &reviews(), None, NOW, serial(7)).unwrap();

    let response = issued.response();
    assert!(response.iter().all(|element| element.ends_with("-----END CERTIFICATE-----\n")));
    let der = |pem: &str| pem::parse(pem).unwrap().into_contents();
    assert_eq!(der(&response[0]), issued.leaf().as_ref());
    assert_eq!(response[1], signer.pem);
    assert_eq!(response[2], middle.pem);
    assert_eq!(response[3], root.pem.clone() + &other.pem);
    assert_eq!(response.len(), 4);
    assert_eq!(issued.pem_chain(), response[..3].concat());
    assert_eq!(issued.der_chain().len(), 3);
    verify(&issued, &roots, NOW, KeyUsage::client_auth()).unwrap();

    let shrunk = roots.without(&other.certificate().fingerprint());
    let authority = authority.with_bundle(shrunk).unwrap();
    let issued =
        authority.issue(&request(&KeyPair::generate().unwrap()), &reviews(), None, NOW, serial(7)).unwrap();
    assert_eq!(issued.response()[1..], [signer.pem.clone(), middle.pem.clone(), root.pem.clone()]);
    let without_its_root = roots.without(&root.certificate().fingerprint());
    assert!(matches!(authority.with_bundle(without_its_root), Err(AuthorityError::RootNotTrusted)));
}

#[test]
fn names_of_issuers_are_repeated_as_they_are() {
    // Two of a kind and an encoding of its own: what a directory service would have made of it.
    let mut params = common::params("signer", None);
    params
        .distinguished_name
        .push(rcgen::DnType::OrganizationName, rcgen::DnValue::BmpString("Ünit".try_into().unwrap()));
    params.distinguished_name.push(rcgen::DnType::CountryName, "AT");
    let root = Ca::root("root");
    let signer = root.below_with(params, KeyPair::generate().unwrap());
    let roots: TrustBundle = [root.certificate()].into_iter().collect();
    let material = IssuerMaterial::new(signing(&signer.key), signer.certificate(), &[], &roots, NOW).unwrap();
    let authority = Authority::new(material, roots.clone(), Policy::new(domain()), NOW).unwrap();
    let issued =
        authority.issue(&request(&KeyPair::generate().unwrap()), &reviews(), None, NOW, serial(7)).unwrap();
    let signer = signer.certificate();
    assert_eq!(parsed(issued.leaf()).issuer().as_raw(), parsed(signer.der()).subject().as_raw());
    verify(&issued, &roots, NOW, KeyUsage::client_auth()).unwrap();
}

#[test]
fn lifetimes_are_those_that_are_allowed() {
    let authority = authority();
    let request = request(&KeyPair::generate().unwrap());
    let issue = |ttl| authority.issue(&request, &reviews(), ttl, NOW, serial(7));
    let life = |ttl| issue(ttl).unwrap().not_after().since(NOW);
    assert_eq!(life(None), DAY);
    assert_eq!(life(Some(Duration::ZERO)), DAY);
    assert_eq!(life(Some(HOUR)), HOUR);
    assert_eq!(life(Some(Duration::from_millis(1))), Duration::from_secs(1));
    assert_eq!(life(Some(90 * DAY)), 90 * DAY);
    for too_long in [90 * DAY + Duration::from_secs(1), 10 * YEAR, Duration::MAX] {
        let error = issue(Some(too_long)).unwrap_err();
        assert!(
            matches!(error, IssueError::TtlTooLong { asked, max } if asked == too_long && max == 90 * DAY)
        );
    }
}

#[test]
fn a_leaf_does_not_outlive_its_chain() {
    let root = Ca::root("root");
    let mut params = common::params("signer", None);
    params.not_before = rcgen::date_time_ymd(2025, 12, 31);
    params.not_after = rcgen::date_time_ymd(2026, 1, 2);
    let signer = root.below_with(params, KeyPair::generate().unwrap());
    let roots: TrustBundle = [root.certificate()].into_iter().collect();
    let material = IssuerMaterial::new(signing(&signer.key), signer.certificate(), &[], &roots, NOW).unwrap();
    let authority = Authority::new(material, roots.clone(), Policy::new(domain()), NOW).unwrap();
    let request = request(&KeyPair::generate().unwrap());
    let end = NOW.after(DAY);
    let begin = NOW.before(DAY);
    let at = |now: UnixTime| authority.issue(&request, &reviews(), None, now, serial(7));

    assert_eq!(at(end.before(HOUR)).unwrap().not_after(), end);
    assert_eq!(at(end.before(Duration::from_secs(1))).unwrap().not_after(), end);
    assert!(matches!(at(end), Err(IssueError::IssuerExpired(_))));
    assert!(matches!(at(end.after(YEAR)), Err(IssueError::IssuerExpired(_))));
    assert_eq!(at(begin).unwrap().validity().not_before, begin, "no earlier than the issuer");
    assert!(matches!(at(begin.before(HOUR)), Err(IssueError::IssuerNotYetValid(_))));
}

#[test]
fn at_no_time_is_a_leaf_valid_when_its_chain_is_not() {
    let root = Ca::root("root");
    let signer = root.below("signer");
    let roots: TrustBundle = [root.certificate()].into_iter().collect();
    let material = IssuerMaterial::new(signing(&signer.key), signer.certificate(), &[], &roots, NOW).unwrap();
    let authority = Authority::new(material, roots, Policy::new(domain()), NOW).unwrap();
    let chain = authority.validity_of_chain();
    let request = request(&KeyPair::generate().unwrap());
    let mut random = common::Random::new(1);
    let (mut issued, mut refused) = (0, 0);
    for _ in 0..common::cases(3_000) {
        // From well before the chain to well after it, and often near its ends.
        let near = [chain.not_before, chain.not_after, NOW][random.index(3)];
        let distance = Duration::from_secs(random.next() >> (32 + random.below(30)));
        let now = if random.below(2) == 0 { near.before(distance) } else { near.after(distance) };
        let ttl = Duration::from_secs(random.next() >> (40 + random.below(24)));
        match authority.issue(&request, &reviews(), Some(ttl), now, serial(7)) {
            Ok(leaf) => {
                let validity = leaf.validity();
                assert!(validity.not_before >= chain.not_before && validity.not_before <= now);
                assert!(validity.not_after <= chain.not_after && validity.not_after > now);
                let asked = if ttl.is_zero() { DAY } else { ttl };
                assert!(validity.not_after.since(now) <= asked && asked <= 90 * DAY);
                issued += 1;
                continue;
            }
            Err(IssueError::TtlTooLong { .. }) => assert!(ttl > 90 * DAY),
            Err(IssueError::IssuerExpired(end)) => assert!(now >= end),
            Err(IssueError::IssuerNotYetValid(begin)) => assert!(now < begin),
            Err(error) => panic!("{error}"),
        }
        refused += 1;
    }
    assert!(issued > 100 && refused > 100, "{issued} {refused}");
}

#[test]
fn serial_numbers_are_positive_and_keep_their_randomness() {
    for bytes in [[0; 20], [0xff; 20], [0x80; 20]] {
        let serial = ca::Serial::from_random(bytes);
        assert!((0x40..0x80).contains(&serial.as_bytes()[0]), "{serial}");
        assert_eq!(serial.as_bytes()[1..], bytes[1..]);
        assert_eq!(serial.as_bytes()[0] & 0x3f, bytes[0] & 0x3f);
    }
}

#[test]
fn other_trust_domains_are_not_certified() {
    let authority = authority();
    let request = request(&KeyPair::generate().unwrap());
    let foreign = id("spiffe://cluster.localx/ns/bookinfo/sa/reviews");
    let error = authority.issue(&request, &foreign, None, NOW, serial(7)).unwrap_err();
    assert!(matches!(error, IssueError::ForeignTrustDomain { .. }), "{error}");
}

#[test]
fn a_server_is_known_by_its_names_and_is_no_client() {
    let authority = authority();
    let key = PublicKey::of(&signing(&KeyPair::generate().unwrap())).unwrap();
    let names =
        ["istiod.istio-system.svc", "127.0.0.1", "::1"].map(|name| ServerName::try_from(name).unwrap());
    let issued = authority.issue_server(&key, &names, None, NOW, serial(7)).unwrap();
    let leaf = EndEntityCert::try_from(issued.leaf()).unwrap();
    for name in &names {
        leaf.verify_is_valid_for_subject_name(name).unwrap();
    }
    let other = ServerName::try_from("istiod.istio-system").unwrap();
    leaf.verify_is_valid_for_subject_name(&other).unwrap_err();
    verify(&issued, authority.bundle(), NOW, KeyUsage::server_auth()).unwrap();
    verify(&issued, authority.bundle(), NOW, KeyUsage::client_auth()).unwrap_err();
    let nameless = authority.issue_server(&key, &[], None, NOW, serial(7)).unwrap_err();
    assert!(matches!(nameless, IssueError::NoName));
}

#[test]
fn an_authority_that_cannot_work_is_not_made() {
    let root = Ca::root("root");
    let roots: TrustBundle = [root.certificate()].into_iter().collect();
    let made = |signer: &Ca, policy: Policy| {
        let material =
            IssuerMaterial::new(signing(&signer.key), signer.certificate(), &[], &roots, NOW).unwrap();
        Authority::new(material, roots.clone(), policy, NOW)
    };
    let policy = || Policy::new(domain());

    // No identity of ours may be below an authority for the names of others.
    let mut params = common::params("constrained", None);
    params.name_constraints = Some(rcgen::NameConstraints {
        permitted_subtrees: vec![rcgen::GeneralSubtree::DnsName("example.org".to_owned())],
        excluded_subtrees: Vec::new(),
    });
    let constrained = root.below_with(params, KeyPair::generate().unwrap());
    made(&constrained, policy()).expect("constraints on DNS names do not concern URIs");
    // Not every implementation understands constraints on URIs: peers would disagree about what is trusted.
    let mut params = common::params("constrained", None);
    let permitted = common::der(0xa0, &[&common::der(0x30, &[&common::der(0x86, &[b"cluster.local"])])]);
    let value = common::der(0x30, &[&permitted]);
    let mut constraints = rcgen::CustomExtension::from_oid_content(&[2, 5, 29, 30], value);
    constraints.set_criticality(true);
    params.custom_extensions.push(constraints);
    let constrained = root.below_with(params, KeyPair::generate().unwrap());
    let error = made(&constrained, policy()).unwrap_err();
    assert!(matches!(error, AuthorityError::NotVerifiable(_)), "{error}");
    let mut params = common::params("for mail", None);
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::EmailProtection];
    let mail = root.below_with(params, KeyPair::generate().unwrap());
    let error = made(&mail, policy()).unwrap_err();
    assert!(matches!(error, AuthorityError::NotVerifiable(_)), "{error}");

    let good = root.below("good");
    for (default_ttl, max_ttl) in [(Duration::ZERO, DAY), (2 * DAY, DAY)] {
        let error = made(&good, Policy { default_ttl, max_ttl, ..policy() }).unwrap_err();
        assert!(matches!(error, AuthorityError::Policy { .. }), "{error}");
    }
    let elsewhere: TrustBundle = [Ca::root("elsewhere").certificate()].into_iter().collect();
    let material = IssuerMaterial::new(signing(&good.key), good.certificate(), &[], &roots, NOW).unwrap();
    let error = Authority::new(material, elsewhere, policy(), NOW).unwrap_err();
    assert!(matches!(error, AuthorityError::RootNotTrusted), "{error}");
}

#[test]
fn a_root_of_our_own_lasts_ten_years() {
    let key = KeyPair::generate().unwrap();
    let root = common::self_signed(&key);
    let certificate = parsed(root.der());
    assert_eq!(root.validity().not_after.since(NOW), ca::root::ROOT_LIFETIME);
    assert!(root.is_self_signed());
    let constraints = certificate.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && constraints.value.ca);
    let usage = certificate.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.key_cert_sign() && usage.value.crl_sign());
    assert!(!usage.value.digital_signature());
    let names = certificate.subject_alternative_name().unwrap().unwrap();
    assert_eq!(names.value.general_names, [GeneralName::URI("spiffe://cluster.local")]);
    common::verify_p256(&certificate, &certificate);

    let due = |after: Duration| ca::root::is_due(root.validity(), NOW.after(after));
    assert!(!due(7 * YEAR) && due(8 * YEAR + DAY) && due(20 * YEAR));
}
