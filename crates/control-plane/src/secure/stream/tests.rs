//! Random asks for secrets by random callers, in process and through everything that serves them: the index, the compiler
//! and what it remembers, permissions, streams, and the protocol. What comes back is compared with who may have what.

use super::super::authority::Keeper;
use super::super::files::Everything;
use super::super::store::Store;
use super::*;
use crate::source::EngineSource;
use crate::sources::Sources;
use crate::writer::WriterState;
use ca::Policy;
use identity::{Metrics, SigningPool};
use index::{Index, Settings, Sourced};
use k8s_api::yaml::parse_documents;
use model::ObjectKey;
use prost::Message as _;
use proto::envoy::config::core::v3::Node;
use proto::envoy::config::core::v3::data_source::Specifier;
use proto::envoy::extensions::transport_sockets::tls::v3::{Secret, secret};
use proto::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse};
use proto::google::protobuf::{Struct, Value};
use push::Push;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Instant;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};
use xds::encode::Encoder;
use xds::session::{Answer, Held as Brought, Names, Options, Protocol, Request, Session};
use xds::{ConnectError, SnapshotSource as _};

const NAMESPACES: usize = 50;
/// How often everything is started anew, with nothing remembered.
const ROUNDS: u64 = 4;
/// How many streams are opened from one change of the world to the next, and how many changes there are.
const STREAMS: usize = 100;
const CHANGES: usize = 5;
/// How many names each stream asks for.
const ASKED: usize = 50;
const PATIENCE: Duration = Duration::from_secs(60);

/// Numbers from a seed (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(number).unwrap() % limit
    }

    fn one_in(&mut self, number: usize) -> bool {
        self.below(number) == 0
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}

/// What there is, and who may have it.
struct World {
    random: Random,
    index: Index,
    /// The private key of `tls` in each namespace, and the authorities beside it.
    keys: Vec<(String, String)>,
    /// The authorities in `tls-cacert`, where there is one.
    authorities: Vec<Option<String>>,
    /// Whose Gateways may use which Secrets of a namespace; no name stands for all.
    grants: BTreeMap<usize, (usize, Option<&'static str>)>,
    /// Which service accounts may list Secrets.
    permitted: BTreeMap<(usize, &'static str), watch::Sender<Option<bool>>>,
}

const ACCOUNTS: [&str; 2] = ["edge", "app"];

fn pem() -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate =
        rcgen::CertificateParams::new(["a.test".to_owned()]).unwrap().self_signed(&key).unwrap();
    (certificate.pem(), key.serialize_pem())
}

fn indented(text: &str) -> String {
    text.lines().fold(String::from("|\n"), |mut all, line| {
        writeln!(all, "    {line}").unwrap();
        all
    })
}

impl World {
    fn new(seed: u64) -> Self {
        let index = Index::new(Settings { domain: "cluster.local".into(), cluster: "c1".into() });
        let mut world = Self {
            random: Random(seed),
            index,
            keys: vec![Default::default(); NAMESPACES],
            authorities: vec![None; NAMESPACES],
            grants: BTreeMap::new(),
            permitted: BTreeMap::new(),
        };
        for namespace in 0..NAMESPACES {
            world.replace_key(namespace);
            if world.random.one_in(2) {
                let (ca, _) = pem();
                let data = format!("  ca.crt: {}", indented(&ca));
                world.apply(&format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: tls-cacert, namespace: ns{namespace}}}\nstringData:\n{data}"));
                world.authorities[namespace] = Some(ca);
            }
            for account in ACCOUNTS {
                let may = world.random.one_in(2);
                world.permitted.insert((namespace, account), watch::channel(Some(may)).0);
            }
            if world.random.one_in(2) {
                world.grant(namespace);
            }
        }
        // Every gateway of the mesh is told to use every name that there could be.
        let mut servers = String::new();
        for (number, name) in world.referenced().iter().filter(|name| !name.ends_with("-cacert")).enumerate()
        {
            let name = name.strip_prefix("kubernetes://tls").map_or(name.as_str(), |_| "tls");
            writeln!(
                servers,
                "  - {{hosts: [h{number}.test], port: {{number: 443, name: https-{number}, protocol: HTTPS}}, tls: {{mode: MUTUAL, credentialName: {name:?}}}}}"
            )
            .unwrap();
        }
        world.apply(&format!(
            "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: all, namespace: ns0}}\nspec:\n  selector: {{edge: yes}}\n  servers:\n{servers}"
        ));
        world
    }

    fn apply(&mut self, yaml: &str) {
        for document in parse_documents(yaml, "test.yaml") {
            self.index.apply(Sourced::from_api(document.unwrap().object));
        }
    }

    fn replace_key(&mut self, namespace: usize) {
        let ((chain, key), (ca, _)) = (pem(), pem());
        let data = format!(
            "  tls.crt: {}  tls.key: {}  ca.crt: {}",
            indented(&chain),
            indented(&key),
            indented(&ca)
        );
        self.apply(&format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: tls, namespace: ns{namespace}}}\nstringData:\n{data}"));
        self.keys[namespace] = (key, ca);
    }

    fn grant(&mut self, namespace: usize) {
        let to = self.random.below(NAMESPACES);
        let name = *self.random.pick(&[None, Some("tls"), Some("tls-cacert"), Some("other")]);
        let named = name.map_or(String::new(), |name| format!(", name: {name}"));
        self.apply(&format!(
            "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {{name: g, namespace: ns{namespace}}}\nspec:\n  from: [{{group: gateway.networking.k8s.io, kind: Gateway, namespace: ns{to}}}, {{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: ns{}}}]\n  to: [{{group: '', kind: Secret{named}}}, {{group: '', kind: Service}}]\n",
            (to + 1) % NAMESPACES
        ));
        self.grants.insert(namespace, (to, name));
    }

    fn revoke(&mut self, namespace: usize) {
        let key = ObjectKey::new(model::Kind::ReferenceGrant, format!("ns{namespace}"), "g");
        self.index.delete(&k8s_api::object::ObjectKey {
            group: "gateway.networking.k8s.io".into(),
            kind: "ReferenceGrant".into(),
            namespace: key.namespace.to_string(),
            name: "g".to_owned(),
        });
        self.grants.remove(&namespace);
    }

    /// Changes a few things: keys, grants, permissions.
    fn change(&mut self) {
        for _ in 0..10 {
            let namespace = self.random.below(NAMESPACES);
            match self.random.below(4) {
                0 => self.replace_key(namespace),
                1 => self.grant(namespace),
                2 => self.revoke(namespace),
                _ => {
                    let account = *self.random.pick(&ACCOUNTS);
                    self.permitted[&(namespace, account)].send_modify(|may| *may = may.map(|may| !may));
                }
            }
        }
    }

    /// Returns the names that listeners of gateways refer to.
    fn referenced(&self) -> Vec<String> {
        let mut names = vec!["kubernetes://tls".to_owned()];
        for namespace in 0..NAMESPACES {
            names.push(format!("kubernetes://ns{namespace}/tls"));
            names.push(format!("kubernetes-gateway://ns{namespace}/tls"));
        }
        let authorities: Vec<String> = names.iter().map(|name| format!("{name}-cacert")).collect();
        names.extend(authorities);
        names
    }

    /// Returns any name: mostly those that are referred to, and what somebody might try.
    fn name(&mut self, own: usize, referenced: &[String]) -> String {
        let number = self.random.below(NAMESPACES);
        match self.random.below(16) {
            0 => format!("kubernetes://ns{number}/tls-cacert-cacert"),
            1 => format!("kubernetes-gateway://ns{number}/../ns{}/tls", self.random.below(NAMESPACES)),
            2 => format!("KUBERNETES://ns{number}/tls"),
            3 => format!("kubernetes-gateway://ns{number}"),
            4 => (*self.random.pick(&["", "*", "default/", "rootca", "kubernetes://", "tls", "spiffe://x"]))
                .to_owned(),
            5 => format!("kubernetes://ns{own}/tls"),
            6 => format!("kubernetes-gateway://ns{own}/tls-cacert"),
            _ => self.random.pick(referenced).clone(),
        }
    }

    /// Returns what a gateway of a namespace gets for a name: text of the private key, or of the authorities.
    fn entitled(&self, namespace: usize, account: &'static str, name: &str) -> Option<String> {
        if *self.permitted[&(namespace, account)].borrow() != Some(true) {
            return None;
        }
        let (scheme, path) = name.split_once("://")?;
        let is_gateways = match scheme {
            "kubernetes" => false,
            "kubernetes-gateway" if path.contains('/') => true,
            _ => return None,
        };
        let (owner, object) = match path.strip_prefix("ns") {
            Some(path) => {
                let (owner, object) = path.split_once('/')?;
                (owner.parse().ok().filter(|owner| *owner < NAMESPACES)?, object)
            }
            None => (namespace, path),
        };
        let granted = |object: &str| {
            let by_grant = self
                .grants
                .get(&owner)
                .is_some_and(|(to, name)| *to == namespace && name.is_none_or(|name| name == object));
            owner == namespace || is_gateways && by_grant
        };
        let (key, ca) = &self.keys[owner];
        match object {
            "tls" => granted("tls").then(|| key.clone()),
            "tls-cacert" => {
                let apart = self.authorities[owner].clone().filter(|_| granted("tls-cacert"));
                apart.or_else(|| granted("tls").then(|| ca.clone()))
            }
            _ => None,
        }
    }
}

/// One stream of somebody.
struct Client {
    namespace: usize,
    account: &'static str,
    is_gateway: bool,
    id: String,
    asked: BTreeSet<String>,
    session: Session,
    protocol: Protocol,
    /// What it repeats with every answer (SotW).
    names: Vec<String>,
    connection: xds::Connection,
    /// What it has, by name.
    has: BTreeMap<String, String>,
}

impl Client {
    /// Takes in everything that has arrived.
    fn take_in(&mut self) {
        let snapshot = self.connection.snapshots.borrow_and_update().clone();
        self.session.on_snapshot(snapshot, Instant::now());
        // A protocol that goes on for ever is wrong.
        assert!((0..1_000).any(|_| !self.exchange()), "there is no end of responses");
    }

    /// Takes one round of responses, and answers them. Returns whether there were any.
    fn exchange(&mut self) -> bool {
        for event in self.session.take_events() {
            self.connection.observer.observe(&event);
        }
        let responses = self.session.take_responses();
        let any = !responses.is_empty();
        for response in responses {
            let names = match self.protocol {
                Protocol::Sotw => Names::All(self.names.clone()),
                Protocol::Delta => Names::Change { subscribe: Vec::new(), unsubscribe: Vec::new() },
            };
            let answer = Some(Answer { nonce: response.nonce.clone(), error: None });
            let request = Request { kind: response.kind, names, held: Brought::Nothing, answer };
            self.session.on_request(request, Instant::now());
            let message = response.frame.message();
            let secrets: Vec<Secret> = match self.protocol {
                Protocol::Sotw => {
                    let response = DiscoveryResponse::decode(message).unwrap();
                    response.resources.iter().map(|any| Secret::decode(any.value.clone()).unwrap()).collect()
                }
                Protocol::Delta => {
                    let response = DeltaDiscoveryResponse::decode(message).unwrap();
                    let resources =
                        response.resources.iter().filter_map(|resource| resource.resource.as_ref());
                    resources.map(|any| Secret::decode(any.value.clone()).unwrap()).collect()
                }
            };
            for secret in secrets {
                assert!(self.asked.contains(&secret.name), "{:?} was not asked for", secret.name);
                if secret.name == "default" {
                    assert_eq!(identity_in(&secret), self.id, "somebody else's certificate");
                }
                let text = text(&secret);
                self.has.insert(secret.name, text);
            }
        }
        any
    }

    /// Waits until it has exactly what it may have, of what it asked for.
    async fn settle(&mut self, world: &World) {
        let until = tokio::time::Instant::now() + PATIENCE;
        loop {
            self.take_in();
            let mut missing = Vec::new();
            for name in &self.asked {
                if name == "default" || name == "ROOTCA" {
                    if !self.has.contains_key(name) {
                        missing.push(name);
                    }
                    continue;
                }
                let may = world.entitled(self.namespace, self.account, name).filter(|_| self.is_gateway);
                let has = self.has.get(name);
                if may.is_some() && has != may.as_ref() {
                    missing.push(name);
                }
            }
            if missing.is_empty() {
                return;
            }
            let changed = tokio::time::timeout_at(until, self.connection.snapshots.changed()).await;
            let snapshot = self.connection.snapshots.borrow().clone();
            let there: Vec<bool> =
                missing.iter().map(|name| snapshot.secrets.contains_key(name.as_str())).collect();
            let had: Vec<bool> = missing.iter().map(|name| self.has.contains_key(*name)).collect();
            assert!(
                changed.is_ok(),
                "ns{} {} ({:?}) never got {missing:?}: in the snapshot {there:?}, in another form {had:?}; {} secrets",
                self.namespace,
                self.account,
                self.protocol,
                snapshot.secrets.len()
            );
            changed.unwrap().unwrap();
        }
    }

    /// Checks that it has nothing that it may not have, nor is about to be sent it.
    fn check(&mut self, world: &World) -> usize {
        self.take_in();
        let snapshot = self.connection.snapshots.borrow().clone();
        let about_to = snapshot.secrets.keys().map(|name| name.to_string());
        for name in about_to.chain(self.has.keys().cloned()) {
            if name == "default" || name == "ROOTCA" {
                continue;
            }
            let may = world.entitled(self.namespace, self.account, &name).filter(|_| self.is_gateway);
            assert!(may.is_some(), "ns{} {} got {name}", self.namespace, self.account);
            if let Some(has) = self.has.get(&name) {
                assert_eq!(Some(has), may.as_ref(), "ns{} {}: {name}", self.namespace, self.account);
            }
        }
        self.has.len()
    }
}

fn text(secret: &Secret) -> String {
    let source = match secret.r#type.as_ref().unwrap() {
        secret::Type::TlsCertificate(certificate) => certificate.private_key.as_ref(),
        secret::Type::ValidationContext(context) => context.trusted_ca.as_ref(),
        other => panic!("{other:?}"),
    };
    let Some(Specifier::InlineBytes(bytes)) = source.unwrap().specifier.as_ref() else {
        panic!("not inline")
    };
    // As it was written: YAML ends its lines in its own way.
    String::from_utf8(bytes.to_vec()).unwrap().lines().fold(String::new(), |all, line| all + line + "\n")
}

/// Returns the identity that a certificate is for.
fn identity_in(secret: &Secret) -> String {
    let Some(secret::Type::TlsCertificate(certificate)) = &secret.r#type else { panic!("no certificate") };
    let Some(Specifier::InlineBytes(chain)) = &certificate.certificate_chain.as_ref().unwrap().specifier
    else {
        panic!("not inline")
    };
    let (_, pem) = x509_parser::pem::parse_x509_pem(chain).unwrap();
    let (_, leaf) = X509Certificate::from_der(&pem.contents).unwrap();
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    match &names.value.general_names[..] {
        [GeneralName::URI(uri)] => (*uri).to_owned(),
        other => panic!("{other:?}"),
    }
}

/// Everything that serves, with nothing remembered.
struct Everywhere {
    source: EngineSource,
    push: Push,
    _state: watch::Sender<WriterState>,
    _keeper: tokio::task::JoinHandle<()>,
    _folder: tempfile::TempDir,
}

impl Everywhere {
    async fn start(world: &mut World) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (holder, mut held) = watch::channel(None);
        let clock = identity::system_clock();
        let proxies = Arc::new(Proxies::new(clock.clone()));
        let keeper = Keeper {
            store: Store::Directory(folder.path().to_owned()),
            policy: Policy::new("cluster.local".parse().unwrap()),
            clock: clock.clone(),
            metrics: Metrics::default(),
            proxies: proxies.clone(),
            replicas: None,
            stopping: CancellationToken::new(),
            held: holder,
            progress: watch::channel(String::new()).0,
        };
        let keeper = tokio::spawn(keeper.keep());
        let authority =
            held.wait_for(Option::is_some).await.unwrap().as_ref().map(|held| held.authority.clone());
        let authorities = watch::channel(authority).1;
        let push = Push::spawn(Arc::default()).unwrap();
        let view = world.index.view();
        let (state, receiver) = watch::channel(WriterState { view, ..WriterState::default() });
        let known = world.permitted.iter().map(|((namespace, account), may)| {
            ((format!("ns{namespace}"), (*account).to_owned()), may.clone())
        });
        let secrets = Secrets {
            held,
            keys: WorkloadKeys::new(
                authorities,
                SigningPool::for_this_machine(),
                clock.clone(),
                Metrics::default(),
            ),
            index: Arc::new(Everything { state: receiver.clone() }),
            permissions: Permissions::Known(Arc::new(known.collect())),
            proxies,
            clock,
            metrics: Metrics::default(),
        };
        let source = EngineSource {
            is_reported: false,
            push: push.clone(),
            state: receiver,
            sources: Sources::Kubernetes(watch::channel(controllers::States::new()).1),
            domain: "cluster.local".to_owned(),
            secrets_anywhere: false,
            secrets: Some(secrets),
        };
        Self { source, push, _state: state, _keeper: keeper, _folder: folder }
    }

    async fn connect(
        &self,
        namespace: usize,
        account: &str,
        node: &Node,
    ) -> Result<xds::Connection, ConnectError> {
        let caller = Caller {
            id: format!("spiffe://cluster.local/ns/ns{namespace}/sa/{account}").parse().unwrap(),
            proof: Proof::Token,
            pod: None,
            node: None,
            expires: SystemTime::now() + Duration::from_secs(3600),
        };
        let mut extensions = tonic::codegen::http::Extensions::new();
        extensions.insert(caller);
        let peer = PeerInfo { address: None, encrypted: true, extensions: Arc::new(extensions) };
        self.source.connect(node, &peer).await
    }
}

/// What a proxy says it is: in the namespace, if it does not lie.
fn node(number: usize, role: &str, namespace: usize, account: &str) -> Node {
    let labels = Struct::from_iter([("edge", Value::from("yes"))]);
    let metadata = Struct::from_iter([
        ("NAMESPACE", Value::from(format!("ns{namespace}"))),
        ("SERVICE_ACCOUNT", Value::from(account)),
        ("LABELS", Value::from(labels)),
    ]);
    let id = format!("{role}~10.0.0.1~p{number}.ns{namespace}~ns{namespace}.svc.cluster.local");
    Node { id, metadata: Some(metadata), ..Node::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_hundred_thousand_random_asks_none_is_answered_with_what_is_not_the_callers() {
    let (mut asks, mut answers, mut liars) = (0, 0, 0);
    for seed in 1..=ROUNDS {
        let mut world = World::new(seed);
        let published = world.index.publish().unwrap();
        assert!(
            world
                .index
                .findings()
                .values()
                .all(|found| !found.findings.iter().any(|finding| finding.is_error))
        );
        let served = Everywhere::start(&mut world).await;
        served.push.publish(published.0, published.1);
        let encoder = Arc::new(Encoder::new("test", 1 << 20));
        let referenced = world.referenced();
        for change in 0..CHANGES {
            if change > 0 {
                world.change();
                if let Some((view, changes)) = world.index.publish() {
                    served.push.publish(view, changes);
                }
            }
            let mut clients = Vec::with_capacity(STREAMS);
            while clients.len() < STREAMS {
                let number = clients.len();
                let (namespace, account) = (world.random.below(NAMESPACES), *world.random.pick(&ACCOUNTS));
                if world.random.one_in(10) {
                    // One that claims another's namespace, or account.
                    let other = (namespace + 1 + world.random.below(NAMESPACES - 1)) % NAMESPACES;
                    let (claimed, as_account) =
                        if world.random.one_in(2) { (other, account) } else { (namespace, "somebody") };
                    let node = node(number, "router", claimed, as_account);
                    let refused = served.connect(namespace, account, &node).await;
                    assert!(matches!(refused, Err(ConnectError::PermissionDenied(_))));
                    liars += 1;
                    continue;
                }
                let is_gateway = !world.random.one_in(5);
                let role = if is_gateway { "router" } else { "sidecar" };
                let node = node(number, role, namespace, account);
                let connection = served.connect(namespace, account, &node).await.unwrap();
                let protocol = *world.random.pick(&[Protocol::Sotw, Protocol::Delta]);
                let options = Options { on_demand: connection.on_demand, ..Options::STANDARD };
                let first = connection.snapshots.borrow().clone();
                let mut session =
                    Session::new(protocol, options, encoder.clone(), number as u64, first, Instant::now());
                let mut names: Vec<String> = (0..ASKED).map(|_| world.name(namespace, &referenced)).collect();
                for own in ["default", "ROOTCA"] {
                    if world.random.one_in(10) {
                        names[0] = own.to_owned();
                    }
                }
                asks += names.len();
                let asked = names.iter().cloned().collect();
                // An empty name and an asterisk mean other things in the protocol.
                names.retain(|name| !name.is_empty() && name != "*");
                let wanted = match protocol {
                    Protocol::Sotw => Names::All(names.clone()),
                    Protocol::Delta => Names::Change { subscribe: names.clone(), unsubscribe: Vec::new() },
                };
                session.on_request(
                    Request {
                        kind: ResourceType::Secret,
                        names: wanted,
                        held: Brought::Nothing,
                        answer: None,
                    },
                    Instant::now(),
                );
                let id = format!("spiffe://cluster.local/ns/ns{namespace}/sa/{account}");
                let has = BTreeMap::new();
                clients.push(Client {
                    namespace,
                    account,
                    is_gateway,
                    id,
                    asked,
                    session,
                    protocol,
                    names,
                    connection,
                    has,
                });
            }
            for client in &mut clients {
                client.settle(&world).await;
            }
            // What came late would show now.
            answers += clients.iter_mut().map(|client| client.check(&world)).sum::<usize>();
        }
    }
    println!("{asks} asks, {answers} answers, {liars} callers claimed to be somebody else");
    assert!(
        asks >= 100_000 && answers > 1_500 && liars > 100,
        "{asks} asks, {answers} answers, {liars} liars"
    );
}
