//! Random asks for secrets over TLS and gRPC, by random callers who share connections: each gets what is its own and what it
//! was granted, and not a byte else.

use crate::rig::Weftd;
use crate::{SECRET, clusters, text};
use anyhow::{Context as _, Result, ensure};
use prost::Message as _;
use proto::envoy::config::core::v3::Node;
use proto::envoy::extensions::transport_sockets::tls::v3::{Secret, secret};
use proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use proto::google::protobuf::{Struct, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

const NAMESPACES: usize = 50;
/// How often weftd starts, with nothing remembered, and how many worlds it sees.
const STARTS: u64 = 2;
const WORLDS: usize = 5;
/// Streams in each world, how many share a connection, and for how many names each asks.
const STREAMS: usize = 200;
const SHARING: usize = 20;
const ASKED: usize = 50;
const PATIENCE: Duration = Duration::from_secs(120);
/// How long nothing more may come that must not come at all.
const SILENCE: Duration = Duration::from_secs(1);

/// Numbers from a seed (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        usize::try_from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33).unwrap_or_default() % limit
    }

    fn one_in(&mut self, number: usize) -> bool {
        self.below(number) == 0
    }
}

/// What there is, and who may have it.
struct World {
    random: Random,
    number: usize,
    /// The private key of `tls` in each namespace, and the authorities beside it.
    keys: Vec<(String, String)>,
    chains: Vec<String>,
    /// Whose Gateways may use the Secrets of a namespace.
    grants: BTreeMap<usize, usize>,
}

fn pem() -> Result<(String, String)> {
    let key = rcgen::KeyPair::generate()?;
    let certificate = rcgen::CertificateParams::new(["a.test".to_owned()])?.self_signed(&key)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

fn indented(text: &str) -> String {
    text.lines().fold(String::from("|\n"), |all, line| all + "    " + line + "\n")
}

/// As it was written: YAML ends its lines in its own way.
fn lines(text: &str) -> String {
    text.lines().fold(String::new(), |all, line| all + line + "\n")
}

impl World {
    fn new(seed: u64) -> Result<Self> {
        let none = vec![Default::default(); NAMESPACES];
        let mut world = Self {
            random: Random(seed),
            number: 0,
            keys: none,
            chains: vec![String::new(); NAMESPACES],
            grants: BTreeMap::new(),
        };
        for namespace in 0..NAMESPACES {
            world.replace_key(namespace)?;
            if world.random.one_in(2) {
                let to = world.random.below(NAMESPACES);
                world.grants.insert(namespace, to);
            }
        }
        Ok(world)
    }

    fn replace_key(&mut self, namespace: usize) -> Result<()> {
        let ((chain, key), (ca, _)) = (pem()?, pem()?);
        (self.keys[namespace], self.chains[namespace]) = ((key, ca), chain);
        Ok(())
    }

    /// Changes a few keys and grants, and returns the namespaces that are not what they were.
    fn change(&mut self) -> Result<BTreeSet<usize>> {
        self.number += 1;
        let mut changed = BTreeSet::new();
        for _ in 0..20 {
            let namespace = self.random.below(NAMESPACES);
            changed.insert(namespace);
            match self.random.below(3) {
                0 => self.replace_key(namespace)?,
                1 => drop(self.grants.remove(&namespace)),
                _ => {
                    let to = self.random.below(NAMESPACES);
                    self.grants.insert(namespace, to);
                }
            }
        }
        Ok(changed)
    }

    fn file(&self, namespace: usize) -> (String, String) {
        let (key, ca) = &self.keys[namespace];
        let mut text = format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: tls, namespace: ns{namespace}}}\nstringData:\n  tls.crt: {}  tls.key: {}  ca.crt: {}",
            indented(&self.chains[namespace]),
            indented(key),
            indented(ca)
        );
        if let Some(to) = self.grants.get(&namespace) {
            let _ = write!(
                text,
                "---\napiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {{name: g, namespace: ns{namespace}}}\nspec:\n  from: [{{group: gateway.networking.k8s.io, kind: Gateway, namespace: ns{to}}}]\n  to: [{{group: '', kind: Secret}}]\n"
            );
        }
        (format!("ns{namespace}.yaml"), text)
    }

    /// By which it shows that a world was taken in. Its name sorts last.
    fn marker(&self) -> (String, String) {
        let number = self.number;
        let text = format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: marker, namespace: ns0}}\nspec: {{hosts: [world{number}.test], ports: [{{number: 80, name: http, protocol: HTTP}}], resolution: STATIC, endpoints: [{{address: 10.0.0.1}}]}}\n"
        );
        ("zz-marker.yaml".to_owned(), text)
    }

    /// All files: every gateway of the mesh is told to use every name that there could be.
    fn files(&self) -> Vec<(String, String)> {
        let mut servers = String::new();
        for (number, name) in referenced().iter().filter(|name| !name.ends_with("-cacert")).enumerate() {
            let name = name.strip_prefix("kubernetes://tls").map_or(name.as_str(), |_| "tls");
            let _ = writeln!(
                servers,
                "  - {{hosts: [h{number}.test], port: {{number: 443, name: https-{number}, protocol: HTTPS}}, tls: {{mode: MUTUAL, credentialName: {name:?}}}}}"
            );
        }
        let gateway = format!(
            "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: all, namespace: ns0}}\nspec:\n  selector: {{edge: yes}}\n  servers:\n{servers}"
        );
        let mut files: Vec<_> = (0..NAMESPACES).map(|namespace| self.file(namespace)).collect();
        files.push(("gateway.yaml".to_owned(), gateway));
        files.push(self.marker());
        files
    }

    /// Returns any name: mostly those that are referred to, and what somebody might try.
    fn name(&mut self, own: usize, referenced: &[String]) -> String {
        let number = self.random.below(NAMESPACES);
        match self.random.below(16) {
            0 => format!("kubernetes://ns{number}/tls-cacert-cacert"),
            1 => format!("kubernetes-gateway://ns{number}/../ns{}/tls", self.random.below(NAMESPACES)),
            2 => format!("KUBERNETES://ns{number}/tls"),
            3 => format!("kubernetes-gateway://ns{number}"),
            4 => {
                ["default/", "rootca", "kubernetes://", "tls", "spiffe://x"][self.random.below(5)].to_owned()
            }
            5 => format!("kubernetes://ns{own}/tls"),
            6 => format!("kubernetes-gateway://ns{own}/tls-cacert"),
            _ => referenced[self.random.below(referenced.len())].clone(),
        }
    }

    /// Returns what a gateway of a namespace gets for a name: text of the private key, or of the authorities.
    fn entitled(&self, namespace: usize, name: &str) -> Option<String> {
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
        let is_granted = is_gateways && self.grants.get(&owner) == Some(&namespace);
        let (key, ca) = self.keys.get(owner).filter(|_| owner == namespace || is_granted)?;
        match object {
            "tls" => Some(lines(key)),
            "tls-cacert" => Some(lines(ca)),
            _ => None,
        }
    }
}

/// Returns the names that listeners of gateways refer to.
fn referenced() -> Vec<String> {
    let mut names = vec!["kubernetes://tls".to_owned()];
    for namespace in 0..NAMESPACES {
        names.push(format!("kubernetes://ns{namespace}/tls"));
        names.push(format!("kubernetes-gateway://ns{namespace}/tls"));
    }
    let authorities: Vec<String> = names.iter().map(|name| format!("{name}-cacert")).collect();
    names.extend(authorities);
    names
}

/// One stream of somebody.
struct Asker {
    namespace: usize,
    is_gateway: bool,
    asked: BTreeSet<String>,
    /// What it has, by name, and what came that it had not asked for.
    has: Arc<Mutex<BTreeMap<String, String>>>,
}

impl Asker {
    /// Returns what is missing, or what it has and may not have.
    fn wrong(&self, world: &World) -> Result<(), String> {
        let has = self.has.lock().map_err(|error| error.to_string())?;
        let namespace = self.namespace;
        for name in &self.asked {
            let may = match name.as_str() {
                "default" => Some(format!("spiffe://cluster.local/ns/ns{namespace}/sa/edge")),
                "ROOTCA" if has.contains_key(name) => continue,
                "ROOTCA" => return Err(format!("ns{namespace} has no roots")),
                name => world.entitled(namespace, name).filter(|_| self.is_gateway),
            };
            if has.get(name) != may.as_ref() {
                let (has, may) = (has.contains_key(name), may.is_some());
                return Err(format!("ns{namespace} has {name}: {has}, in the right form; it may: {may}"));
            }
        }
        match has.keys().find(|name| !self.asked.contains(*name)) {
            Some(name) => Err(format!("ns{namespace} was sent {name:?} and has not asked for it")),
            None => Ok(()),
        }
    }
}

/// What a caller says it is.
fn node(number: usize, role: &str, namespace: usize) -> Node {
    let labels = Struct::from_iter([("edge", Value::from("yes"))]);
    let metadata = Struct::from_iter([
        ("NAMESPACE", Value::from(format!("ns{namespace}"))),
        ("SERVICE_ACCOUNT", Value::from("edge")),
        ("LABELS", Value::from(labels)),
    ]);
    let id = format!("{role}~10.0.0.1~p{number}.ns{namespace}~ns{namespace}.svc.cluster.local");
    Node { id, metadata: Some(metadata), ..Node::default() }
}

/// Returns what tells a secret from others: its key or authorities; of `default`, whom the certificate is for.
fn content(secret: &Secret) -> Result<String> {
    match secret.r#type.as_ref().context("an empty secret")? {
        secret::Type::TlsCertificate(certificate) if secret.name == "default" => {
            let chain = text(certificate.certificate_chain.as_ref())?;
            let (_, pem) = x509_parser::pem::parse_x509_pem(chain.as_bytes())?;
            let (_, leaf) = X509Certificate::from_der(&pem.contents)?;
            let names = leaf.subject_alternative_name()?.context("no names")?;
            match &names.value.general_names[..] {
                [GeneralName::URI(uri)] => Ok((*uri).to_owned()),
                other => anyhow::bail!("{other:?}"),
            }
        }
        secret::Type::TlsCertificate(certificate) => Ok(lines(&text(certificate.private_key.as_ref())?)),
        secret::Type::ValidationContext(context) => Ok(lines(&text(context.trusted_ca.as_ref())?)),
        other => anyhow::bail!("{other:?}"),
    }
}

/// Either protocol of discovery.
trait Protocol: Sized + Send + 'static {
    type Response: Send + 'static;
    fn ask(node: Node, names: &[String]) -> Self;
    fn acknowledge(response: &Self::Response, names: &[String]) -> Self;
    fn secrets(response: Self::Response) -> Result<Vec<Secret>>;
    fn open(
        client: AggregatedDiscoveryServiceClient<Channel>,
        request: tonic::Request<ReceiverStream<Self>>,
    ) -> impl Future<Output = Result<Streaming<Self::Response>, Status>> + Send;
}

impl Protocol for DiscoveryRequest {
    type Response = DiscoveryResponse;

    fn ask(node: Node, names: &[String]) -> Self {
        Self {
            node: Some(node),
            type_url: SECRET.to_owned(),
            resource_names: names.to_vec(),
            ..Self::default()
        }
    }

    fn acknowledge(response: &DiscoveryResponse, names: &[String]) -> Self {
        Self {
            type_url: SECRET.to_owned(),
            resource_names: names.to_vec(),
            version_info: response.version_info.clone(),
            response_nonce: response.nonce.clone(),
            ..Self::default()
        }
    }

    fn secrets(response: DiscoveryResponse) -> Result<Vec<Secret>> {
        response.resources.into_iter().map(|any| Ok(Secret::decode(any.value)?)).collect()
    }

    async fn open(
        mut client: AggregatedDiscoveryServiceClient<Channel>,
        request: tonic::Request<ReceiverStream<Self>>,
    ) -> Result<Streaming<DiscoveryResponse>, Status> {
        Ok(client.stream_aggregated_resources(request).await?.into_inner())
    }
}

impl Protocol for DeltaDiscoveryRequest {
    type Response = DeltaDiscoveryResponse;

    fn ask(node: Node, names: &[String]) -> Self {
        let names = names.to_vec();
        Self {
            node: Some(node),
            type_url: SECRET.to_owned(),
            resource_names_subscribe: names,
            ..Self::default()
        }
    }

    fn acknowledge(response: &DeltaDiscoveryResponse, _: &[String]) -> Self {
        Self { type_url: SECRET.to_owned(), response_nonce: response.nonce.clone(), ..Self::default() }
    }

    fn secrets(response: DeltaDiscoveryResponse) -> Result<Vec<Secret>> {
        let all = response.resources.into_iter().filter_map(|resource| resource.resource);
        all.map(|any| Ok(Secret::decode(any.value)?)).collect()
    }

    async fn open(
        mut client: AggregatedDiscoveryServiceClient<Channel>,
        request: tonic::Request<ReceiverStream<Self>>,
    ) -> Result<Streaming<DeltaDiscoveryResponse>, Status> {
        Ok(client.delta_aggregated_resources(request).await?.into_inner())
    }
}

/// Asks for names, and keeps what comes until the stream ends.
async fn ask<P: Protocol>(
    channel: Channel,
    token: String,
    node: Node,
    names: Vec<String>,
    has: Arc<Mutex<BTreeMap<String, String>>>,
) -> Result<()> {
    let (requests, outgoing) = mpsc::channel(16);
    requests.send(P::ask(node, &names)).await.ok().context("nobody takes requests")?;
    let mut request = tonic::Request::new(ReceiverStream::new(outgoing));
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
    let mut responses = P::open(AggregatedDiscoveryServiceClient::new(channel), request).await?;
    while let Some(response) = responses.next().await {
        let response = response?;
        requests.send(P::acknowledge(&response, &names)).await.ok().context("nobody takes requests")?;
        for secret in P::secrets(response)? {
            let content = content(&secret)?;
            if let Ok(mut has) = has.lock() {
                has.insert(secret.name, content);
            }
        }
    }
    Ok(())
}

/// Opens streams in this world, checks what each is sent, and returns how many names were asked for, how many secrets came
/// and how many liars were refused.
async fn look(weftd: &Weftd, world: &mut World) -> Result<[usize; 3]> {
    let referenced = referenced();
    let expires = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() + 3600;
    let (mut askers, mut tasks, mut liars) = (Vec::new(), JoinSet::new(), JoinSet::new());
    let mut channel = weftd.connect(None).await?;
    for number in 0..STREAMS {
        if number % SHARING == 0 {
            channel = weftd.connect(None).await?;
        }
        let namespace = world.random.below(NAMESPACES);
        let token = weftd.token_of(&format!("ns{namespace}"), "edge", expires)?;
        let mut names: Vec<String> = (0..ASKED).map(|_| world.name(namespace, &referenced)).collect();
        for own in ["default", "ROOTCA"] {
            if world.random.one_in(10) {
                names[0] = own.to_owned();
            }
        }
        let is_gateway = !world.random.one_in(5);
        let node_in = |namespace| node(number, if is_gateway { "router" } else { "sidecar" }, namespace);
        let is_delta = world.random.one_in(2);
        let has = Arc::new(Mutex::new(BTreeMap::new()));
        if world.random.one_in(10) {
            // The same as somebody else.
            let other = (namespace + 1 + world.random.below(NAMESPACES - 1)) % NAMESPACES;
            let lie = ask::<DeltaDiscoveryRequest>(
                channel.clone(),
                token.clone(),
                node_in(other),
                names.clone(),
                has,
            );
            liars.spawn(lie);
        }
        let has = Arc::new(Mutex::new(BTreeMap::new()));
        let (channel, node) = (channel.clone(), node_in(namespace));
        askers.push(Asker {
            namespace,
            is_gateway,
            asked: names.iter().cloned().collect(),
            has: has.clone(),
        });
        match is_delta {
            true => tasks.spawn(ask::<DeltaDiscoveryRequest>(channel, token, node, names, has)),
            false => tasks.spawn(ask::<DiscoveryRequest>(channel, token, node, names, has)),
        };
    }
    let mut refused = 0;
    while let Some(lie) = liars.join_next().await {
        let status = lie?.err().context("a liar was let in")?;
        let status = status.downcast::<Status>()?;
        ensure!(status.code() == Code::PermissionDenied, "{status:?}");
        refused += 1;
    }
    let until = tokio::time::Instant::now() + PATIENCE;
    for asker in &askers {
        while let Err(wrong) = asker.wrong(world) {
            ensure!(tasks.try_join_next().is_none(), "a stream has ended");
            ensure!(tokio::time::Instant::now() < until, "{wrong}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    // What must not come would come late.
    tokio::time::sleep(SILENCE).await;
    ensure!(tasks.try_join_next().is_none(), "a stream has ended");
    let mut answers = 0;
    for asker in &askers {
        asker.wrong(world).map_err(anyhow::Error::msg)?;
        answers += asker.has.lock().map_or(0, |has| has.len());
    }
    Ok([STREAMS * ASKED, answers, refused])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_hundred_thousand_random_asks_over_tls_none_is_answered_with_what_is_not_the_callers()
-> Result<()> {
    let mut totals = [0; 3];
    for seed in 1..=STARTS {
        let mut world = World::new(seed)?;
        let weftd = Weftd::start_with(&world.files())?;
        for number in 0..WORLDS {
            if number > 0 {
                let mut files: Vec<_> =
                    world.change()?.into_iter().map(|namespace| world.file(namespace)).collect();
                files.push(world.marker());
                for (name, content) in files {
                    std::fs::write(weftd.config().join(name), content)?;
                }
            }
            taken_in(&weftd, &world).await?;
            for (total, more) in totals.iter_mut().zip(look(&weftd, &mut world).await?) {
                *total += more;
            }
        }
    }
    let [asks, answers, liars] = totals;
    println!("{asks} asks, {answers} answers, {liars} callers claimed to be somebody else");
    ensure!(
        asks >= 100_000 && answers > 1_500 && liars > 100,
        "{asks} asks, {answers} answers, {liars} liars"
    );
    Ok(())
}

/// Waits until weftd serves this world.
async fn taken_in(weftd: &Weftd, world: &World) -> Result<()> {
    let host = format!("world{}.test", world.number);
    let identity = weftd.identity().await?;
    let until = tokio::time::Instant::now() + PATIENCE;
    loop {
        let node = "sidecar~10.0.0.9~cart-1.shop~shop.svc.cluster.local";
        let served = clusters(weftd.connect(Some(&identity)).await?, node).await?;
        if served.resources.iter().any(|resource| resource.name.contains(&host)) {
            return Ok(());
        }
        ensure!(tokio::time::Instant::now() < until, "{host} is not there");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
