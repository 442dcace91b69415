//! OpenSSL, through Python's `ssl`, verifies what is issued: whole handshakes of mutual TLS in memory, as strict as it
//! can be made. Python is needed to build Weft; its `ssl` is OpenSSL.

mod common;

use ca::{Authority, IssuedChain, IssuerMaterial, Policy, PublicKey, TrustBundle};
use common::{Ca, domain, id, request, reviews, serial, signing};
use rcgen::{KeyPair, RsaKeySize};
use rustls_pki_types::ServerName;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Does handshakes between two ends in memory and prints what each sees of the other.
const HANDSHAKE: &str = r#"
import json, ssl, sys

def context(purpose, side):
    made = ssl.SSLContext(purpose)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_REQUIRED
    made.verify_flags |= ssl.VERIFY_X509_STRICT
    made.load_cert_chain(side["chain"], side["key"])
    made.load_verify_locations(side["roots"])
    return made

def handshake(ask):
    client_context = context(ssl.PROTOCOL_TLS_CLIENT, ask["client"])
    server_context = context(ssl.PROTOCOL_TLS_SERVER, ask["server"])
    name = ask["name"]
    if name:
        client_context.check_hostname = True
    a, b = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(a, b, server_side=False, server_hostname=name)
    server = server_context.wrap_bio(b, a, server_side=True)

    def advance(end):
        try:
            end.do_handshake()
            return True
        except ssl.SSLWantReadError:
            return False

    try:
        for _ in range(20):
            if advance(client) & advance(server):
                break
        else:
            raise Exception("the handshake does not end")
        # In TLS 1.3 the client is done before the server has verified it.
        server.write(b"x")
        client.read(1)
        return {"client": server.getpeercert(), "server": client.getpeercert()}
    except ssl.SSLCertVerificationError as error:
        return {"refused": error.verify_message}
    except ssl.SSLError as error:
        return {"refused": str(error)}

print(json.dumps([handshake(ask) for ask in json.load(sys.stdin)]))
"#;

/// One end of a connection, in files.
struct Side {
    chain: PathBuf,
    key: PathBuf,
    roots: PathBuf,
}

impl Side {
    fn write(directory: &Path, name: &str, issued: &IssuedChain, key: &KeyPair, roots: &TrustBundle) -> Self {
        let file = |kind: &str, content: String| {
            let path = directory.join(format!("{name}-{kind}.pem"));
            fs::write(&path, content).unwrap();
            path
        };
        Self {
            chain: file("chain", issued.pem_chain()),
            key: file("key", key.serialize_pem()),
            roots: file("roots", roots.to_pem()),
        }
    }

    fn json(&self) -> serde_json::Value {
        serde_json::json!({ "chain": self.chain, "key": self.key, "roots": self.roots })
    }
}

/// A client, a server, and the name that the client knows it by.
type Ask<'a> = (&'a Side, &'a Side, Option<&'a str>);

fn handshakes(asks: &[Ask<'_>]) -> Vec<serde_json::Value> {
    let mut python = Command::new("python3")
        .args(["-c", HANDSHAKE])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 is missing: install Python 3.10 or newer, as CONTRIBUTING.md says");
    let ask = |(client, server, name): &Ask<'_>| serde_json::json!({ "client": client.json(), "server": server.json(), "name": name });
    let asks: serde_json::Value = asks.iter().map(ask).collect();
    python.stdin.take().unwrap().write_all(asks.to_string().as_bytes()).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success(), "python3 failed");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Authorities whose certificates are valid now, since OpenSSL reads the clock.
fn now() -> ca::UnixTime {
    #[expect(clippy::disallowed_methods, reason = "OpenSSL does the same")]
    std::time::SystemTime::now().into()
}

fn current(mut params: rcgen::CertificateParams) -> rcgen::CertificateParams {
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2060, 1, 1);
    params
}

/// A root of our own, and a plugged-in authority two steps below a foreign root.
fn authorities(key: impl Fn() -> KeyPair) -> [Authority; 2] {
    let own_key = key();
    let own = ca::root::self_signed(&signing(&own_key), &domain(), now(), serial(1)).unwrap();
    let material = IssuerMaterial::self_signed(signing(&own_key), own.clone(), now()).unwrap();
    let self_signed =
        Authority::new(material, [own].into_iter().collect(), Policy::new(domain()), now()).unwrap();

    let root = Ca::root_with(current(common::params("root", None)), key());
    let middle = root.below_with(current(common::params("middle", Some(1))), key());
    let signer = middle.below_with(current(common::params("signer", Some(0))), key());
    let roots: TrustBundle = [root.certificate()].into_iter().collect();
    let material = IssuerMaterial::new(
        signing(&signer.key),
        signer.certificate(),
        &[middle.certificate()],
        &roots,
        now(),
    )
    .unwrap();
    [self_signed, Authority::new(material, roots, Policy::new(domain()), now()).unwrap()]
}

fn p256() -> KeyPair {
    KeyPair::generate().unwrap()
}

fn p384() -> KeyPair {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap()
}

fn rsa() -> KeyPair {
    KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap()
}

#[test]
fn openssl_accepts_both_ends_and_sees_their_identities() {
    let directory = tempfile::tempdir().unwrap();
    let ratings = id("spiffe://cluster.local/ns/bookinfo/sa/ratings");
    let leaf_keys = [p256(), p384(), rsa()];
    let mut sides = Vec::new();
    for authority in [p256, p384, rsa].into_iter().flat_map(authorities) {
        for key in &leaf_keys {
            let side = |end: &str, who| {
                let issued = authority.issue(&request(key), who, None, now(), serial(7)).unwrap();
                let name = format!("{}-{end}", sides.len());
                Side::write(directory.path(), &name, &issued, key, authority.bundle())
            };
            let pair = (side("client", &reviews()), side("server", &ratings));
            sides.push(pair);
        }
    }
    let asks: Vec<Ask<'_>> = sides.iter().map(|(client, server)| (client, server, None)).collect();
    let seen = handshakes(&asks);
    assert_eq!(seen.len(), 18);
    for seen in seen {
        let names = |end: &str| seen[end]["subjectAltName"].clone();
        assert_eq!(names("client"), serde_json::json!([["URI", reviews().as_str()]]), "{seen}");
        assert_eq!(names("server"), serde_json::json!([["URI", ratings.as_str()]]), "{seen}");
        assert_eq!(seen["client"]["subject"], serde_json::json!([]));
    }
}

#[test]
fn openssl_refuses_who_is_not_trusted() {
    let directory = tempfile::tempdir().unwrap();
    let [ours, theirs] = authorities(p256);
    let side = |name: &str, by: &Authority, trusts: &Authority| {
        let key = p256();
        let issued = by.issue(&request(&key), &reviews(), None, now(), serial(7)).unwrap();
        Side::write(directory.path(), name, &issued, &key, trusts.bundle())
    };
    let (client, server) = (side("client", &ours, &ours), side("server", &ours, &ours));
    let stranger = side("stranger", &theirs, &ours);
    let sceptic = side("sceptic", &ours, &theirs);
    let seen = handshakes(&[
        (&client, &server, None),
        (&client, &stranger, None),
        (&stranger, &server, None),
        (&client, &sceptic, None),
        (&sceptic, &server, None),
    ]);
    assert!(seen[0]["client"].is_object(), "{}", seen[0]);
    for seen in &seen[1..] {
        assert!(seen["refused"].is_string(), "{seen}");
    }
}

#[test]
fn openssl_knows_a_server_by_its_name_and_takes_it_for_no_client() {
    let directory = tempfile::tempdir().unwrap();
    let [authority, _] = authorities(p256);
    let (key, client_key) = (p256(), p256());
    let name = ServerName::try_from("istiod.istio-system.svc").unwrap();
    let issued = authority
        .issue_server(&PublicKey::of(&signing(&key)).unwrap(), &[name], None, now(), serial(7))
        .unwrap();
    let server = Side::write(directory.path(), "server", &issued, &key, authority.bundle());
    let issued = authority.issue(&request(&client_key), &reviews(), None, now(), serial(8)).unwrap();
    let client = Side::write(directory.path(), "client", &issued, &client_key, authority.bundle());
    let seen = handshakes(&[
        (&client, &server, Some("istiod.istio-system.svc")),
        (&client, &server, Some("istiod.istio-system")),
        (&server, &client, None),
    ]);
    assert!(seen[0]["server"].is_object(), "{}", seen[0]);
    assert!(seen[1]["refused"].is_string() && seen[2]["refused"].is_string(), "{seen:?}");
}
