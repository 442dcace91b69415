//! The mesh: what the API server has, weftd, the agents and the app.

use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;

use anyhow::Context;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use testkit::rig::http::Request;
use testkit::rig::process::Scratch;
use testkit::rig::{ApiServer, Etcd};

use super::agent::{self, Agent, Identity};
use crate::app::{Answer, App};
use crate::network::{Network, machine_address};
use crate::weftd::Weftd;

/// The port of the server that is declared to be HTTP.
pub const HTTP_PORT: u16 = 8000;
/// The port on which anything may be spoken.
pub const BYTES_PORT: u16 = 8001;
/// The port of a service whose pods are said to run under another account than they do.
pub const IMPOSTOR_PORT: u16 = 8002;

/// Where the certificate authority is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// In a directory, by one weftd.
    Directory,
    /// In Secrets, by two: the client's side talks to one of them, the server's to the other.
    Secrets,
}

impl Kept {
    /// How long certificates live: long enough for a weftd to start anew meanwhile, if it is to.
    fn ttl(self) -> &'static str {
        match self {
            Self::Directory => "10s",
            Self::Secrets => "30s",
        }
    }
}

/// Everything; killed on drop.
#[derive(Debug)]
pub struct Mesh {
    /// The client's side.
    pub client: Agent,
    /// The server's side.
    pub server: Agent,
    /// Between them.
    pub weftd: Weftd,
    /// Another one, if the authority is kept in Secrets.
    pub other: Option<Weftd>,
    replicas: Vec<(Network, Vec<OsString>)>,
    network: Network,
    folder: Scratch,
    pods: Ipv4Addr,
    ports: [u16; 2],
    _apps: [App; 2],
    api: ApiServer,
    _etcd: Etcd,
}

impl Mesh {
    /// Starts everything and waits until both proxies serve.
    ///
    /// # Errors
    ///
    /// If a part does not start.
    pub fn start(kept: Kept) -> anyhow::Result<Self> {
        let (network, pods) = (Network::claim()?, machine_address()?);
        let folder = Scratch::new("identity")?;
        let etcd = Etcd::start()?;
        let api = ApiServer::start(&etcd)?;
        api.install_definitions()?;

        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let apps = [
            App::http(local(0), |request| Answer::ok(format!("{} {}", request.method, request.path)))?,
            App::tcp(local(0), either)?,
        ];
        let ports = [agent::free_port(pods), agent::free_port(pods)];
        let manifest = folder.path().join("mesh.yaml");
        let endpoints = [apps[0].address(), apps[1].address()];
        fs::write(&manifest, manifests(&network, pods, ports, endpoints))?;
        api.kubectl(&["create", "namespace", "istio-system"])?;
        api.kubectl(&["apply", "-f", &manifest.display().to_string()])?;
        for pod in ["client-1", "server-1", "impostor-1"] {
            let status = format!(
                r#"{{"status":{{"phase":"Running","podIP":"{pods}","podIPs":[{{"ip":"{pods}"}}]}}}}"#
            );
            api.kubectl(&["-n", "shop", "patch", "pod", pod, "--subresource=status", "-p", &status])?;
        }

        let ca = folder.path().join("ca");
        let ttl = kept.ttl();
        let names: &[&str] = if kept == Kept::Secrets { &["weftd-a", "weftd-b"] } else { &["weftd-a"] };
        let mut replicas = Vec::new();
        for name in names {
            let network = Network::claim()?;
            let secure = network.socket(255, 1, 15012).to_string();
            let mut arguments: Vec<OsString> = vec!["--kubeconfig".into(), api.kubeconfig().into()];
            for argument in ["--secure-grpc-addr", &secure, "--replica-name", name] {
                arguments.push(argument.into());
            }
            for argument in ["--workload-cert-ttl", ttl, "--max-workload-cert-ttl", ttl] {
                arguments.push(argument.into());
            }
            if kept == Kept::Directory {
                arguments.extend(["--ca-dir".into(), ca.clone().into()]);
            }
            replicas.push((network, arguments));
        }
        let mut weftds = Vec::new();
        for (network, arguments) in &replicas {
            weftds.push(Weftd::start_with(network, arguments)?);
        }
        let mut weftds = weftds.into_iter();
        let (weftd, other) = (weftds.next().context("a weftd")?, weftds.next());
        let roots = crate::eventually("weftd's roots", crate::PATIENCE, || match kept {
            Kept::Directory => fs::read_to_string(ca.join("root-cert.pem")).context("no roots yet"),
            Kept::Secrets => secret(&api, "istio-ca-secret", "root-cert.pem"),
        })?;
        let start = |account: &str, replica: usize| -> anyhow::Result<Agent> {
            let secure = replicas[replica % replicas.len()].0.socket(255, 1, 15012);
            let pod = format!("{account}-1");
            let token = api.kubectl(&[
                "-n",
                "shop",
                "create",
                "token",
                account,
                "--audience",
                "istio-ca",
                "--bound-object-kind",
                "Pod",
                "--bound-object-name",
                &pod,
            ])?;
            Agent::start(&Identity {
                pod: &pod,
                namespace: "shop",
                account,
                address: pods,
                token: token.trim(),
                roots: &roots,
                weftd: secure,
                network: None,
                variables: &[("SECRET_TTL", ttl.to_owned())],
                files: &[],
            })
        };
        let (client, server) = (start("client", 0)?, start("server", 1)?);
        let mesh = Self {
            client,
            server,
            weftd,
            other,
            replicas,
            network,
            folder,
            pods,
            ports,
            _apps: apps,
            api,
            _etcd: etcd,
        };
        for agent in [&mesh.client, &mesh.server] {
            agent.wait_ready().with_context(|| format!("{}\n{}", mesh.weftd.log(), agent.log()))?;
        }
        Ok(mesh)
    }

    /// Returns where the client's Envoy listens for calls to the service port.
    pub fn outbound(&self, port: u16) -> SocketAddr {
        self.network.socket(253, 1, port)
    }

    /// Returns where the server's Envoy listens, for what is declared to be HTTP and for anything.
    pub fn inbound(&self) -> [SocketAddr; 2] {
        self.ports.map(|port| SocketAddr::from((self.pods, port)))
    }

    /// Kills one of the two weftds, and starts it anew.
    ///
    /// # Errors
    ///
    /// If it does not start.
    pub fn kill(&mut self, other: bool) -> anyhow::Result<()> {
        let (network, arguments) = &self.replicas[usize::from(other)];
        let killed = if other { self.other.as_mut() } else { Some(&mut self.weftd) };
        let killed = killed.context("there is only one")?;
        killed.kill();
        *killed = Weftd::start_with(network, arguments)?;
        Ok(())
    }

    /// Asks the API server.
    ///
    /// # Errors
    ///
    /// If it refuses.
    pub fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        Ok(self.api.kubectl(arguments)?)
    }

    /// Returns text in a Secret of weftd's namespace.
    ///
    /// # Errors
    ///
    /// If it is not there.
    pub fn secret(&self, name: &str, key: &str) -> anyhow::Result<String> {
        secret(&self.api, name, key)
    }

    /// Returns the folder of the certificate authority.
    pub fn authority(&self) -> PathBuf {
        self.folder.path().join("ca")
    }

    /// Returns what weftd says about the replacement of its root.
    ///
    /// # Errors
    ///
    /// If it says nothing.
    pub fn rotation(&self) -> anyhow::Result<String> {
        self.rotation_of(&self.weftd)
    }

    /// As [`Mesh::rotation`], of one of several.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn rotation_of(&self, weftd: &Weftd) -> anyhow::Result<String> {
        Ok(Request::get("/debug/rotationz").send(weftd.monitoring())?.text())
    }

    /// Returns one of weftd's metrics, with its labels as they are written.
    ///
    /// # Errors
    ///
    /// If weftd cannot be asked.
    pub fn metric(&self, name: &str) -> anyhow::Result<u64> {
        let text = Request::get("/metrics").send(self.weftd.monitoring())?.text();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(line.and_then(|value| value.parse().ok()).unwrap_or_default())
    }
}

fn secret(api: &ApiServer, name: &str, key: &str) -> anyhow::Result<String> {
    let object = api.kubectl(&["-n", "istio-system", "get", "secret", name, "-o", "json"])?;
    let object: serde_json::Value = serde_json::from_str(&object)?;
    let data = object["data"][key].as_str().with_context(|| format!("{name} has no {key}"))?;
    Ok(String::from_utf8(STANDARD.decode(data)?)?)
}

/// Answers HTTP to HTTP, and anything else with itself.
fn either(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let length = stream.read(&mut buffer)?;
        match &buffer[..length] {
            [] => return Ok(()),
            bytes if bytes.starts_with(b"GET ") => {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nhttp")?;
            }
            bytes => stream.write_all(bytes)?,
        }
    }
}

fn manifests(network: &Network, pods: Ipv4Addr, [http, bytes]: [u16; 2], apps: [SocketAddr; 2]) -> String {
    let bind = network.ip(253, 1);
    let [http_app, bytes_app] = apps;
    let mut text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n".to_owned();
    for account in ["client", "server", "impostor"] {
        text.push_str(&format!(
            "---
apiVersion: v1
kind: ServiceAccount
metadata: {{name: {account}, namespace: shop}}
---
apiVersion: v1
kind: Pod
metadata:
  name: {account}-1
  namespace: shop
  labels: {{app: {account}, security.istio.io/tlsMode: istio}}
spec:
  serviceAccountName: {account}
  containers: [{{name: app, image: none}}]
"
        ));
    }
    for (service, ports) in [
        ("server", vec![("http", HTTP_PORT, http), ("any", BYTES_PORT, bytes)]),
        ("impostor", vec![("http", IMPOSTOR_PORT, http)]),
    ] {
        let list = |what: &dyn Fn(&(&str, u16, u16)) -> String| {
            ports.iter().map(what).collect::<Vec<_>>().join(", ")
        };
        let services =
            list(&|(name, port, target)| format!("{{name: {name}, port: {port}, targetPort: {target}}}"));
        let targets = list(&|(name, _, target)| format!("{{name: {name}, port: {target}}}"));
        text.push_str(&format!(
            "---
apiVersion: v1
kind: Service
metadata: {{name: {service}, namespace: shop}}
spec: {{selector: {{app: {service}}}, ports: [{services}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: {service}
  namespace: shop
  labels: {{kubernetes.io/service-name: {service}}}
addressType: IPv4
ports: [{targets}]
endpoints:
- addresses: [{pods}]
  conditions: {{ready: true}}
  targetRef: {{kind: Pod, name: {service}-1, namespace: shop}}
"
        ));
    }
    text.push_str(&format!(
        "---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: default, namespace: shop}}
spec: {{mtls: {{mode: STRICT}}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: server, namespace: shop}}
spec:
  host: server.shop.svc.cluster.local
  # Many handshakes.
  trafficPolicy: {{connectionPool: {{http: {{maxRequestsPerConnection: 5}}}}}}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: server, namespace: shop}}
spec:
  workloadSelector: {{labels: {{app: server}}}}
  ingress:
  - bind: {pods}
    captureMode: NONE
    port: {{number: {http}, protocol: HTTP, name: http}}
    defaultEndpoint: {http_app}
  - bind: {pods}
    captureMode: NONE
    port: {{number: {bytes}, protocol: \"\", name: any}}
    defaultEndpoint: {bytes_app}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: client, namespace: shop}}
spec:
  workloadSelector: {{labels: {{app: client}}}}
  egress:
"
    ));
    for (port, protocol) in [(HTTP_PORT, "HTTP"), (BYTES_PORT, ""), (IMPOSTOR_PORT, "HTTP")] {
        text.push_str(&format!(
            "  - bind: {bind}
    captureMode: NONE
    port: {{number: {port}, protocol: \"{protocol}\", name: port-{port}}}
    hosts: [\"./*\"]
"
        ));
    }
    text
}
