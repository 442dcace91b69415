//! Whatever a request asks for, the certificate says who the caller is, and nothing else.
//!
//! Run a million cases, as before a release, by `WEFT_CA_CASES=1000000 cargo test --release -p weft-ca --test property`.

mod common;

use ca::Csr;
use common::{DAY, NOW, Random, Request, authority, cases, der};
use model::{Namespace, SpiffeId};
use rcgen::{KeyPair, PublicKeyData as _, RsaKeySize};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Part of everything that requests ask for: no certificate may have it.
const MARK: &str = "evil";

const SEQUENCE: u8 = 0x30;
const OCTET_STRING: u8 = 0x04;
const CRITICAL: &[u8] = &[0x01, 0x01, 0xff];

#[test]
fn certificates_name_the_caller_and_nobody_else() {
    let total = cases(3_000);
    let keys = [
        KeyPair::generate().unwrap(),
        KeyPair::generate().unwrap(),
        KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap(),
        KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap(),
    ];
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
    let (mut issued, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        let keys = &keys;
        let workers: Vec<_> =
            (0..threads).map(|thread| scope.spawn(move || run(thread, total / threads + 1, keys))).collect();
        for worker in workers {
            let (good, bad) = worker.join().unwrap();
            issued += good;
            refused += bad;
        }
    });
    println!("{issued} certificates issued, {refused} requests refused");
    assert!(issued + refused >= total && issued > total / 2 && refused > total / 20);
}

fn run(seed: u64, count: u64, keys: &[KeyPair]) -> (u64, u64) {
    let authority = authority();
    let (mut issued, mut refused) = (0, 0);
    for case in 0..count {
        let random = &mut Random::new(seed << 40 | case);
        // Mostly the fast keys; each kind often enough.
        let key = &keys[[0, 1, 0, 1, 0, 1, 2, 3][random.index(8)]];
        let caller = caller(random);
        let request = request(random, key);
        let good = request.signed(key);
        let broken = random.below(8) == 0;
        let sent = if broken { broken_copy(random, &good, keys, key) } else { good };
        let csr = match Csr::from_der(&sent) {
            Ok(csr) => csr,
            Err(error) => {
                assert!(broken, "case {case} of {seed}: {error} for {sent:02x?}");
                refused += 1;
                continue;
            }
        };
        assert!(!broken, "case {case} of {seed}: taken although it is broken: {sent:02x?}");
        let serial = ca::Serial::from_random(random.bytes(20).try_into().unwrap());
        let chain = authority.issue(&csr, &caller, None, NOW, serial).unwrap();
        check(chain.leaf(), key, &caller, serial.as_bytes());
        if case % 64 == 0 {
            let (_, leaf) = X509Certificate::from_der(chain.leaf()).unwrap();
            let (_, root) = X509Certificate::from_der(authority.material().signer().der()).unwrap();
            common::verify_p256(&leaf, &root);
        }
        issued += 1;
    }
    (issued, refused)
}

fn check(der: &[u8], key: &KeyPair, caller: &SpiffeId, serial: &[u8]) {
    let (rest, leaf) = X509Certificate::from_der(der).unwrap();
    assert!(rest.is_empty());
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(names.critical);
    assert_eq!(names.value.general_names, [GeneralName::URI(caller.as_str())]);
    assert_eq!(leaf.subject().iter().count(), 0);
    assert_eq!(leaf.issuer().to_string(), "O=cluster.local");
    assert_eq!(leaf.public_key().raw, key.subject_public_key_info());
    assert_eq!(leaf.tbs_certificate.raw_serial(), serial);
    assert!(!leaf.basic_constraints().unwrap().unwrap().value.ca);
    let usage = leaf.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && !usage.key_cert_sign() && !usage.crl_sign());
    let purposes = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(purposes.client_auth && purposes.server_auth && !purposes.any && !purposes.code_signing);
    let mut extensions: Vec<String> = leaf.extensions().iter().map(|one| one.oid.to_id_string()).collect();
    extensions.sort_unstable();
    assert_eq!(extensions, ["2.5.29.14", "2.5.29.15", "2.5.29.17", "2.5.29.19", "2.5.29.35", "2.5.29.37"]);
    assert_eq!(leaf.validity().not_after.timestamp(), NOW.after(DAY).as_seconds());
    let leaks = der.windows(MARK.len()).any(|window| window.eq_ignore_ascii_case(MARK.as_bytes()));
    assert!(!leaks, "something of the request is in the certificate");
}

/// Any identity that can be authenticated.
fn caller(random: &mut Random) -> SpiffeId {
    const ALPHABET: &[u8] = b"abcdfghjkmnpqrstuwxyz0123456789-._ABC";
    let mut segment = |limit: u64| {
        let length = 1 + random.below(limit);
        let text: String = (0..length).map(|_| char::from(ALPHABET[random.index(ALPHABET.len())])).collect();
        if text.bytes().all(|byte| byte == b'.') { "x".to_owned() } else { text }
    };
    let (namespace, account) = (segment(63), segment(253));
    SpiffeId::new(&common::domain(), &Namespace::new(namespace), &account).unwrap()
}

/// A request that asks for what it must not get.
fn request(random: &mut Random, key: &KeyPair) -> Request {
    Request { subject: subject(random), attributes: attributes(random), ..Request::new(key) }
}

fn subject(random: &mut Random) -> Vec<u8> {
    let attribute = |oid: u8, tag: u8, text: &str| {
        let oid = der(0x06, &[&[0x55, 0x04, oid]]);
        der(0x31, &[&der(SEQUENCE, &[&oid, &der(tag, &[text.as_bytes()])])])
    };
    let names: Vec<Vec<u8>> = (0..random.below(4))
        .map(|_| {
            let text =
                random.pick(&["evil", "spiffe://cluster.local/ns/evil/sa/evil", "evil\0reviews", "*.evil"]);
            // Common name, organisation, unit, country; text of several kinds.
            attribute([3, 10, 11, 6][random.index(4)], [0x0c, 0x13, 0x16, 0x1e][random.index(4)], text)
        })
        .collect();
    der(SEQUENCE, &names.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

fn attributes(random: &mut Random) -> Vec<u8> {
    let mut list: Vec<Vec<u8>> = Vec::new();
    for _ in 0..random.below(4) {
        list.push(match random.below(6) {
            // challengePassword
            0 => {
                let oid = [0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 7];
                der(SEQUENCE, &[&oid, &der(0x31, &[&der(0x0c, &[b"evil"])])])
            }
            1 => random.some_bytes(40),
            // extensionRequest
            _ => {
                let oid = [0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 14];
                let wanted: Vec<Vec<u8>> = (0..1 + random.below(5)).map(|_| extension(random)).collect();
                let wanted: Vec<&[u8]> = wanted.iter().map(Vec::as_slice).collect();
                der(SEQUENCE, &[&oid, &der(0x31, &[&der(SEQUENCE, &wanted)])])
            }
        });
    }
    match (list.is_empty(), random.below(4)) {
        (true, 0) => Vec::new(),
        _ => der(0xa0, &list.iter().map(Vec::as_slice).collect::<Vec<_>>()),
    }
}

fn extension(random: &mut Random) -> Vec<u8> {
    let (oid, value): (&[u8], Vec<u8>) = match random.below(8) {
        // Subject alternative names
        0..3 => (&[0x55, 0x1d, 0x11], alternative_names(random)),
        // CA:TRUE
        3 => (&[0x55, 0x1d, 0x13], der(SEQUENCE, &[CRITICAL])),
        // keyCertSign
        4 => (&[0x55, 0x1d, 0x0f], der(0x03, &[&[1, 0b0000_0110]])),
        // Any purpose, and code signing
        5 => {
            let any = [0x06, 4, 0x55, 0x1d, 0x25, 0];
            let code = [0x06, 8, 0x2b, 6, 1, 5, 5, 7, 3, 3];
            (&[0x55, 0x1d, 0x25], der(SEQUENCE, &[&any, &code]))
        }
        // Name constraints
        6 => {
            (&[0x55, 0x1d, 0x1e], der(SEQUENCE, &[&der(0xa0, &[&der(SEQUENCE, &[&der(0x82, &[b"evil"])])])]))
        }
        // Something private
        _ => (&[0x2b, 6, 1, 4, 1, 0x82, 0x37, 99], b"evil".to_vec()),
    };
    let critical = if random.below(2) == 0 { CRITICAL } else { &[] };
    der(SEQUENCE, &[&der(0x06, &[oid]), critical, &der(OCTET_STRING, &[&value])])
}

fn alternative_names(random: &mut Random) -> Vec<u8> {
    let names: Vec<Vec<u8>> = (0..1 + random.below(3))
        .map(|_| match random.below(6) {
            0 => der(0x82, &[b"evil.example.org"]),
            1 => der(0x81, &[b"root@evil"]),
            2 => der(0x87, &[&[127, 0, 0, 1]]),
            _ => {
                let uri = random.pick(&[
                    "spiffe://cluster.local/ns/evil/sa/admin",
                    "spiffe://cluster.local/ns/a/sa/b,evil",
                    "spiffe://cluster.local/ns/a/sa/b\0evil",
                    "spiffe://cluster.local/ns/a/sa/b%2eevil",
                    "spiffe://evil/ns/a/sa/b",
                    "SPIFFE://cluster.local/ns/a/sa/evil",
                    "",
                ]);
                der(0x86, &[uri.as_bytes()])
            }
        })
        .collect();
    der(SEQUENCE, &names.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

/// A copy of a request that must not be taken.
fn broken_copy(random: &mut Random, good: &[u8], keys: &[KeyPair], key: &KeyPair) -> Vec<u8> {
    let mut copy = good.to_vec();
    match random.below(4) {
        0 => copy.truncate(random.index(good.len())),
        1 => {
            let position = random.index(good.len());
            copy[position] ^= 1 << random.below(8);
        }
        2 => copy.extend(random.some_bytes(3)),
        // Signed by somebody else.
        _ => {
            let other = keys.iter().find(|other| other.public_key_raw() != key.public_key_raw()).unwrap();
            let algorithm = Request::new(key).algorithm;
            copy = Request { algorithm, ..request(random, key) }.signed(other);
        }
    }
    copy
}
