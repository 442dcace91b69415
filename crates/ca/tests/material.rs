//! Authorities that are plugged in: what is taken, what is refused, and what the operator is told.

mod common;

use ca::crl::{CrlError, CrlProblem};
use ca::material::{self, Layout, LoadError, Loaded};
use ca::{Authority, CaCertificate, Policy, RevocationLists, SigningKeyPair, TrustBundle, UnixTime};
use common::{Ca, NOW, YEAR, domain, params, request, reviews, serial};
use rcgen::{
    CertificateRevocationListParams, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevocationReason,
    RevokedCertParams, RsaKeySize, SerialNumber,
};
use std::collections::BTreeMap;

fn files(files: &[(&str, &str)]) -> BTreeMap<String, Vec<u8>> {
    files.iter().map(|(name, content)| ((*name).to_owned(), content.as_bytes().to_vec())).collect()
}

fn load(list: &[(&str, &str)]) -> Result<Loaded, LoadError> {
    material::load(&files(list), NOW)
}

fn refused(list: &[(&str, &str)]) -> String {
    load(list).unwrap_err().to_string()
}

fn names(certificates: &[CaCertificate]) -> Vec<&str> {
    certificates.iter().map(CaCertificate::name).collect()
}

fn warnings(loaded: &Loaded) -> Vec<String> {
    loaded.warnings.iter().map(ToString::to_string).collect()
}

/// A root, an authority below it, and one below that.
struct Family {
    root: Ca,
    middle: Ca,
    signer: Ca,
}

impl Family {
    fn new() -> Self {
        let root = Ca::root("root");
        let middle = root.below("middle");
        let signer = middle.below("signer");
        Self { root, middle, signer }
    }
}

/// Loads an authority and lets it check itself.
fn works(loaded: Loaded) -> Authority {
    let authority =
        Authority::new(loaded.material.unwrap(), loaded.roots, Policy::new(domain()), NOW).unwrap();
    authority.issue(&request(&KeyPair::generate().unwrap()), &reviews(), None, NOW, serial(3)).unwrap();
    authority
}

#[test]
fn the_layout_of_cacerts_is_read() {
    let Family { root, middle, signer } = Family::new();
    let key = signer.key.serialize_pem();
    let other = Ca::root("other");
    let roots = root.pem.clone() + &other.pem;
    // As Istio's own scripts make it: the chain begins with the signing certificate and ends with the root. The order
    // does not matter.
    for chain in [
        signer.pem.clone() + &middle.pem + &root.pem,
        middle.pem.clone(),
        root.pem.clone() + &middle.pem + &signer.pem,
    ] {
        let loaded = load(&[
            ("ca-cert.pem", &signer.pem),
            ("ca-key.pem", &key),
            ("cert-chain.pem", &chain),
            ("root-cert.pem", &roots),
            ("notes.txt", "not ours"),
        ])
        .unwrap();
        assert_eq!(loaded.layout, Layout::CaCerts);
        assert_eq!(warnings(&loaded), [""; 0]);
        assert!(loaded.revocations.is_none());
        let authority = works(loaded);
        assert_eq!(names(authority.material().presented()), ["CN=signer", "CN=middle"]);
        assert_eq!(authority.material().root(), root.certificate().fingerprint());
        assert_eq!(authority.bundle().len(), 2);
    }
}

#[test]
fn the_layout_of_cert_manager_is_read_first() {
    let Family { root, middle, signer } = Family::new();
    let own = Ca::root("own");
    let loaded = load(&[
        ("tls.crt", &(signer.pem.clone() + &middle.pem)),
        ("tls.key", &signer.key.serialize_pem()),
        ("ca.crt", &root.pem),
        ("ca-cert.pem", &own.pem),
        ("ca-key.pem", &own.key.serialize_pem()),
    ])
    .unwrap();
    assert_eq!(loaded.layout, Layout::Tls);
    assert_eq!(names(works(loaded).material().presented()), ["CN=signer", "CN=middle"]);
}

#[test]
fn a_self_signed_authority_is_its_own_root() {
    let own = Ca::root("own");
    let key = own.key.serialize_pem();
    for more in
        [vec![], vec![("cert-chain.pem", ""), ("root-cert.pem", "")], vec![("root-cert.pem", &*own.pem)]]
    {
        let mut list = vec![("ca-cert.pem", &*own.pem), ("ca-key.pem", &*key)];
        list.extend(more);
        let authority = works(load(&list).unwrap());
        assert!(authority.material().presented().is_empty());
        assert_eq!(authority.bundle().to_pem(), own.pem);
    }
    let roots = load(&[("root-cert.pem", &own.pem)]).unwrap();
    assert_eq!(roots.layout, Layout::RootsOnly);
    assert!(roots.material.is_none());
    assert_eq!(roots.roots.len(), 1);
}

#[test]
fn keys_of_all_encodings_are_read() {
    let ec = KeyPair::generate().unwrap();
    let rsa = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
    // As `openssl ecparam -genkey` writes it.
    let parameters = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n";
    let (sec1, pkcs1) = (parameters.to_owned() + &sec1(&ec), pkcs1(&rsa));
    for (key, pem) in [(ec, sec1), (rsa, pkcs1)] {
        let own = Ca::root_with(params("own", None), key);
        works(load(&[("ca-cert.pem", &own.pem), ("ca-key.pem", &pem)]).unwrap());
        let kept = SigningKeyPair::from_pem(pem.as_bytes()).unwrap().to_secret_pem();
        works(load(&[("ca-cert.pem", &own.pem), ("ca-key.pem", &kept)]).unwrap());
    }
}

/// Returns a P-256 key in the older encoding of ECDSA keys.
fn sec1(key: &KeyPair) -> String {
    let pkcs8 = key.serialize_der();
    // INTEGER 1, OCTET STRING of 32 bytes
    let private = &pkcs8[after(&pkcs8, &[0x02, 0x01, 0x01, 0x04, 0x20])..][..32];
    let curve = [6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
    let der = common::der(0x30, &[&[2, 1, 1], &common::der(4, &[private]), &common::der(0xa0, &[&curve])]);
    pem::encode(&pem::Pem::new("EC PRIVATE KEY", der))
}

/// Returns an RSA key in the older encoding, which the newer one wraps.
fn pkcs1(key: &KeyPair) -> String {
    let pkcs8 = key.serialize_der();
    // The OCTET STRING after the algorithm
    let start = after(&pkcs8, &[0x01, 0x01, 0x01, 0x05, 0x00]) + 4;
    pem::encode(&pem::Pem::new("RSA PRIVATE KEY", &pkcs8[start..]))
}

fn after(bytes: &[u8], wanted: &[u8]) -> usize {
    bytes.windows(wanted.len()).position(|window| window == wanted).unwrap() + wanted.len()
}

#[test]
fn what_does_not_fit_together_is_refused_with_file_and_reason() {
    let Family { root, middle, signer } = Family::new();
    let key = signer.key.serialize_pem();
    let stranger = Ca::root("root");
    let good = [
        ("ca-cert.pem", signer.pem.as_str()),
        ("ca-key.pem", &key),
        ("cert-chain.pem", &middle.pem),
        ("root-cert.pem", &root.pem),
    ];
    let with = |file: &str, content: &str| {
        let mut list = good.map(|(name, old)| (name, if name == file { content } else { old })).to_vec();
        if !list.iter().any(|(name, _)| *name == file) {
            panic!("{file} is not one of the files");
        }
        list.retain(|(_, content)| *content != "absent");
        refused(&list)
    };

    assert_eq!(with("ca-cert.pem", "absent"), "ca-cert.pem: missing or empty");
    assert_eq!(with("ca-cert.pem", " \n"), "ca-cert.pem: missing or empty");
    assert_eq!(with("ca-key.pem", "absent"), "ca-key.pem: missing or empty");
    assert_eq!(with("root-cert.pem", "absent"), "root-cert.pem: missing or empty");
    assert_eq!(
        with("cert-chain.pem", "absent"),
        "ca-cert.pem: the issuer of \"CN=signer\" is neither in the chain nor among the roots"
    );
    assert_eq!(
        with("root-cert.pem", &stranger.pem),
        "ca-cert.pem: \"CN=root\" is named as the issuer of \"CN=middle\", but did not sign it: \
         the signature does not verify"
    );
    assert_eq!(
        with("ca-key.pem", &middle.key.serialize_pem()),
        "ca-key.pem: is not the key of the signing certificate"
    );
    assert_eq!(with("ca-key.pem", &signer.pem), "ca-key.pem: holds no private key in PEM");
    assert_eq!(
        with("ca-cert.pem", &(signer.pem.clone() + &middle.pem)),
        "ca-cert.pem: holds 2 certificates, where only the signing one belongs; the others belong into cert-chain.pem"
    );
    assert_eq!(with("root-cert.pem", "garbage"), "root-cert.pem: holds no \"CERTIFICATE\"");
    assert_eq!(
        with("root-cert.pem", &key),
        "root-cert.pem: holds a \"PRIVATE KEY\", which does not belong there"
    );
    let cut = format!("{}-----BEGIN CERTIFICATE-----\nAAAA\n", root.pem);
    assert!(with("root-cert.pem", &cut).starts_with("root-cert.pem: not PEM: "));
    let junk = pem::encode(&pem::Pem::new("CERTIFICATE", [0x30, 0]));
    assert_eq!(
        with("root-cert.pem", &(root.pem.clone() + &junk)),
        "root-cert.pem: certificate 2: the certificate is malformed"
    );
    assert_eq!(
        with("cert-chain.pem", &middle.pem.repeat(17)),
        "cert-chain.pem: holds 17 blocks: at most 16 are allowed"
    );
    assert_eq!(
        with("cert-chain.pem", &"A".repeat((1 << 20) + 1)),
        "cert-chain.pem: 1048577 bytes: at most 1048576 are allowed"
    );
    assert_eq!(refused(&[]), "ca-cert.pem: missing or empty");
    assert!(load(&good).is_ok());
}

#[test]
fn certificates_that_may_not_sign_are_refused() {
    let root = Ca::root("root");
    let mut leaf = params("leaf", None);
    leaf.is_ca = rcgen::IsCa::ExplicitNoCa;
    let mut usage = params("for lists", None);
    usage.key_usages = vec![KeyUsagePurpose::CrlSign];
    for (params, reason) in [
        (leaf, "\"CN=leaf\" is no certificate of an authority (basic constraints without CA)"),
        (usage, "\"CN=for lists\" may not sign certificates (key usage without keyCertSign)"),
    ] {
        let bad = root.below_with(params, KeyPair::generate().unwrap());
        let key = bad.key.serialize_pem();
        let list = [("ca-cert.pem", &*bad.pem), ("ca-key.pem", &*key), ("root-cert.pem", &*root.pem)];
        assert_eq!(refused(&list), format!("ca-cert.pem: certificate 1: {reason}"));
    }
}

#[test]
fn path_lengths_are_kept() {
    let root = Ca::root_with(params("root", Some(1)), KeyPair::generate().unwrap());
    let one = root.below_with(params("one", Some(0)), KeyPair::generate().unwrap());
    let two = one.below("two");
    let load_with = |signer: &Ca, chain: &str| {
        let key = signer.key.serialize_pem();
        let list = [
            ("ca-cert.pem", &*signer.pem),
            ("ca-key.pem", &*key),
            ("cert-chain.pem", chain),
            ("root-cert.pem", &*root.pem),
        ];
        load(&list).map(works).map_err(|error| error.to_string())
    };
    assert!(load_with(&one, "").is_ok());
    assert_eq!(
        load_with(&two, &one.pem).unwrap_err(),
        "ca-cert.pem: \"CN=one\" allows 0 intermediate authorities below it, and there are more"
    );
}

#[test]
fn authorities_that_are_not_valid_now_are_refused() {
    let Family { root, middle, signer } = Family::new();
    let key = signer.key.serialize_pem();
    let list = files(&[
        ("ca-cert.pem", &signer.pem),
        ("ca-key.pem", &key),
        ("cert-chain.pem", &middle.pem),
        ("root-cert.pem", &root.pem),
    ]);
    let at = |now: UnixTime| material::load(&list, now).unwrap_err().to_string();
    let text = at(NOW.after(2 * YEAR));
    assert_eq!(
        text,
        "ca-cert.pem: \"CN=signer\" is valid from 2025-12-01T00:00:00Z to 2027-01-01T00:00:00Z, not now, \
         2028-01-01T00:00:00Z"
    );
    at(NOW.before(YEAR));

    let mut old = params("root", None);
    old.not_after = rcgen::date_time_ymd(2025, 12, 31);
    let expired = Ca::root_with(old, KeyPair::from_pem(&root.key.serialize_pem()).unwrap());
    let list = [
        ("ca-cert.pem", &*signer.pem),
        ("ca-key.pem", &*key),
        ("cert-chain.pem", &*middle.pem),
        ("root-cert.pem", &*expired.pem),
    ];
    assert!(refused(&list).starts_with("ca-cert.pem: \"CN=root\" is valid from"));
    // Beside a good one of the same name and key it is passed over, with a word.
    let both = expired.pem.clone() + &root.pem;
    let loaded = load(&[list[0], list[1], list[2], ("root-cert.pem", &both)]).unwrap();
    assert_eq!(
        warnings(&loaded),
        ["root-cert.pem: \"CN=root\" is valid from 2025-12-01T00:00:00Z to 2025-12-31T00:00:00Z, not now"]
    );
    assert_eq!(works(loaded).material().root(), root.certificate().fingerprint());
}

#[test]
fn a_cross_signed_root_is_presented() {
    let (old, new) = (Ca::root("old"), Ca::root("new"));
    let crossed = old.below_with(params("new", None), KeyPair::from_pem(&new.key.serialize_pem()).unwrap());
    let signer = new.below("signer");
    let stray = Ca::root("stray").below("unrelated");
    let chain = stray.pem.clone() + &crossed.pem;
    let loaded = load(&[
        ("ca-cert.pem", &signer.pem),
        ("ca-key.pem", &signer.key.serialize_pem()),
        ("cert-chain.pem", &chain),
        ("root-cert.pem", &(new.pem.clone() + &old.pem)),
    ])
    .unwrap();
    assert_eq!(
        warnings(&loaded),
        ["cert-chain.pem: \"CN=unrelated\" is not on the way to a root and is not presented"]
    );
    let authority = works(loaded);
    assert_eq!(names(authority.material().presented()), ["CN=signer", "CN=new"]);
    assert_eq!(authority.material().root(), old.certificate().fingerprint());
}

#[test]
fn a_maze_of_certificates_ends() {
    // Sixteen keys of one name, none of which leads anywhere.
    let maze: String = (0..15).map(|_| Ca::root("maze").below("maze").pem).collect();
    let signer = Ca::root("maze").below("signer");
    let text = refused(&[
        ("ca-cert.pem", &signer.pem),
        ("ca-key.pem", &signer.key.serialize_pem()),
        ("cert-chain.pem", &maze),
        ("root-cert.pem", &Ca::root("root").pem),
    ]);
    assert!(text.contains("did not sign it"), "{text}");
    // One key under one name many times over: every order of them is a way.
    let key = KeyPair::generate().unwrap();
    let same = |not_after| {
        let mut params = params("loop", None);
        params.not_after = rcgen::date_time_ymd(2027, 1, not_after);
        Ca::root_with(params, KeyPair::from_pem(&key.serialize_pem()).unwrap())
    };
    let maze: Vec<Ca> = (1..=16).map(same).collect();
    let pem: String = maze.iter().map(|ca| ca.pem.as_str()).collect();
    let signer = maze[0].below("signer");
    let text = refused(&[
        ("ca-cert.pem", &signer.pem),
        ("ca-key.pem", &signer.key.serialize_pem()),
        ("cert-chain.pem", &pem),
        ("root-cert.pem", &Ca::root("root").pem),
    ]);
    assert_eq!(text, "ca-cert.pem: the certificates sign each other in too many ways");
}

/// A revocation list of `issuer`.
fn crl(
    issuer: &Ca,
    revoked: &[&CaCertificate],
    change: impl FnOnce(&mut CertificateRevocationListParams),
) -> String {
    let revoked_certs = revoked
        .iter()
        .map(|certificate| {
            let (_, parsed) = x509_parser::parse_x509_certificate(certificate.der()).unwrap();
            RevokedCertParams {
                serial_number: SerialNumber::from_slice(parsed.raw_serial()),
                revocation_time: rcgen::date_time_ymd(2025, 12, 24),
                reason_code: Some(RevocationReason::KeyCompromise),
                invalidity_date: None,
            }
        })
        .collect();
    let mut params = CertificateRevocationListParams {
        this_update: rcgen::date_time_ymd(2025, 12, 24),
        next_update: rcgen::date_time_ymd(2026, 2, 1),
        crl_number: SerialNumber::from(7_u64),
        issuing_distribution_point: None,
        revoked_certs,
        key_identifier_method: KeyIdMethod::Sha256,
    };
    change(&mut params);
    params.signed_by(&Issuer::from_params(&issuer.params, &issuer.key)).unwrap().pem().unwrap()
}

#[test]
fn revocation_lists_are_checked_and_kept() {
    let Family { root, middle, signer } = Family::new();
    let key = signer.key.serialize_pem();
    let load_with = |crl: &str| {
        load(&[
            ("ca-cert.pem", &signer.pem),
            ("ca-key.pem", &key),
            ("cert-chain.pem", &middle.pem),
            ("root-cert.pem", &root.pem),
            ("ca-crl.pem", crl),
        ])
    };
    let other = root.below("other").certificate();
    let text = crl(&root, &[&other], |_| {}) + &crl(&middle, &[], |_| {});
    let loaded = load_with(&text).unwrap();
    assert_eq!(warnings(&loaded), [""; 0]);
    let lists = loaded.revocations.unwrap().unwrap();
    assert!(lists.revokes(&other) && !lists.revokes(&middle.certificate()));
    assert_eq!(lists.to_pem().matches("BEGIN X509 CRL").count(), 2);
    let all = [root.certificate(), middle.certificate(), signer.certificate()];
    let missing: Vec<&str> = lists.missing(&all).map(CaCertificate::name).collect();
    assert_eq!(missing, ["CN=signer"]);

    for (revoked, issuer, name) in [(&middle, &root, "middle"), (&signer, &middle, "signer")] {
        let text = crl(issuer, &[&revoked.certificate()], |_| {});
        let error = load_with(&text).unwrap_err().to_string();
        assert_eq!(error, format!("ca-cert.pem: \"CN={name}\" is revoked by ca-crl.pem"));
    }
    let overdue = crl(&root, &[], |params| params.next_update = rcgen::date_time_ymd(2025, 12, 31));
    assert_eq!(
        warnings(&load_with(&overdue).unwrap()),
        ["ca-crl.pem: the list of \"CN=root\" should have been replaced by now"]
    );
}

#[test]
fn bad_revocation_lists_do_not_stop_the_authority() {
    let own = Ca::root("own");
    let key = own.key.serialize_pem();
    let error = |crl: &str| {
        let list = [("ca-cert.pem", &*own.pem), ("ca-key.pem", &*key), ("ca-crl.pem", crl)];
        let loaded = load(&list).unwrap();
        let error = loaded.revocations.as_ref().unwrap().as_ref().unwrap_err().clone();
        works(loaded);
        error
    };
    let problem = |text: &str| match error(text) {
        CrlError::List { number: 1, source } => source,
        other => panic!("{other}"),
    };
    let good = crl(&own, &[], |_| {});
    assert!(matches!(error("nothing"), CrlError::Pem(_)));
    assert!(matches!(error(&own.pem), CrlError::Pem(_)));
    let junk = pem::encode(&pem::Pem::new("X509 CRL", [0x30, 0]));
    assert_eq!(problem(&junk), CrlProblem::Malformed);
    let der = pem::parse(&good).unwrap().into_contents();
    for length in 0..der.len() {
        let cut = pem::encode(&pem::Pem::new("X509 CRL", &der[..length]));
        assert_eq!(problem(&cut), CrlProblem::Malformed);
    }
    assert!(matches!(problem(&crl(&Ca::root("own"), &[], |_| {})), CrlProblem::Signature(_)));
    assert!(matches!(problem(&crl(&Ca::root("else"), &[], |_| {})), CrlProblem::UnknownIssuer(_)));
    let partial = crl(&own, &[], |params| {
        params.issuing_distribution_point = Some(rcgen::CrlIssuingDistributionPoint {
            distribution_point: rcgen::CrlDistributionPoint { uris: vec!["http://own".to_owned()] },
            scope: Some(rcgen::CrlScope::UserCertsOnly),
        });
    });
    assert!(matches!(problem(&partial), CrlProblem::Partial(_)));

    let mut params = params("no lists", None);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let certificate = Ca::root_with(params.clone(), KeyPair::from_pem(&key).unwrap()).certificate();
    params.key_usages.push(KeyUsagePurpose::CrlSign);
    let signer = Ca::root_with(params, KeyPair::from_pem(&key).unwrap());
    let text = crl(&signer, &[], |_| {});
    let error = RevocationLists::from_pem(text.as_bytes(), &[&certificate]).unwrap_err();
    assert!(matches!(error, CrlError::List { source: CrlProblem::MayNotSign(_), .. }), "{error}");
}

#[test]
fn bundles_hold_each_root_once_in_their_order() {
    let (a, b, c) = (Ca::root("a"), Ca::root("b"), Ca::root("c"));
    let pem = [&a.pem, &b.pem, &a.pem].map(String::as_str).concat();
    let bundle = TrustBundle::from_pem(pem.as_bytes()).unwrap();
    assert_eq!(bundle.to_pem(), a.pem.clone() + &b.pem);
    let other = TrustBundle::from_pem((c.pem.clone() + &a.pem).as_bytes()).unwrap();
    let union = bundle.union(&other);
    assert_eq!(union.to_pem(), [a.pem.as_str(), &b.pem, &c.pem].concat());
    assert_eq!(union.hash(), other.union(&bundle).hash(), "what is trusted counts, not the order");
    assert_eq!(union, other.union(&bundle));
    assert_ne!(union.hash(), bundle.hash());
    let without = union.without(&b.certificate().fingerprint());
    assert_eq!((without.len(), without.hash()), (2, other.hash()));
    assert!(!without.contains(&b.certificate().fingerprint()));
    assert!(TrustBundle::from_pem(b"").unwrap().is_empty());
    assert_eq!(bundle.invalid_at(NOW.after(2 * YEAR)).count(), 2);
    assert_eq!(bundle.invalid_at(NOW).count(), 0);
    let print = a.certificate().fingerprint();
    assert_eq!(print.to_string().parse(), Ok(print));
    for wrong in ["", "ab", &"g".repeat(64), &"0".repeat(65), &"é".repeat(32)] {
        assert!(wrong.parse::<ca::Fingerprint>().is_err(), "{wrong}");
    }
}
