//! Workloads as a node would run them: each in a network namespace of its own, with its application, the rules of
//! `weft-agent capture`, and agent and Envoy as the proxy's user.

use std::ffi::OsString;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::json;
use testkit::rig::http::Request;
use testkit::rig::netns::{Node, Pod};
use testkit::rig::process::Scratch;
use testkit::rig::{ApiServer, Etcd};

use super::agent::{Agent, Identity};
use crate::network::Network;
use crate::weftd::{self, Weftd};
use crate::{PATIENCE, eventually};

/// Where workloads live.
const NAMESPACE: &str = "shop";
/// How long certificates live.
const TTL: &str = "10s";

/// An API server and weftd on a node; killed on drop.
#[derive(Debug)]
pub struct Cluster<'n> {
    /// The control plane.
    pub weftd: Weftd,
    /// The API server.
    pub api: ApiServer,
    node: &'n Node,
    folder: Scratch,
    _network: Network,
    _etcd: Etcd,
}

/// A workload with its proxy.
#[derive(Debug)]
pub struct Workload {
    /// Its network.
    pub pod: Pod,
    /// Its proxy.
    pub agent: Agent,
}

/// What has to be dropped in the pod that it was made in.
#[derive(Debug)]
pub struct InPod<T: Send> {
    pod: Pod,
    inside: Option<T>,
}

impl<T: Send> InPod<T> {
    /// Makes it in `pod`.
    ///
    /// # Errors
    ///
    /// If it cannot be made.
    pub fn new(pod: &Pod, make: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<Self> {
        Ok(Self { pod: pod.clone(), inside: Some(pod.run(make)?) })
    }

    /// Returns it, until it is dropped.
    pub fn get(&self) -> Option<&T> {
        self.inside.as_ref()
    }
}

impl<T: Send> Drop for InPod<T> {
    fn drop(&mut self) {
        let inside = self.inside.take();
        self.pod.run(move || drop(inside));
    }
}

impl<'n> Cluster<'n> {
    /// The address of weftd for proxies.
    const WEFTD: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Node::ADDRESS), 15012);

    /// Starts an API server and weftd, with STRICT mutual TLS for all workloads.
    ///
    /// # Errors
    ///
    /// If a part does not start.
    pub fn start(node: &'n Node) -> anyhow::Result<Self> {
        let network = Network::claim()?;
        let folder = Scratch::new("cluster")?;
        let etcd = Etcd::start()?;
        let api = ApiServer::start(&etcd)?;
        api.install_definitions()?;
        for namespace in ["istio-system", NAMESPACE] {
            api.kubectl(&["create", "namespace", namespace])?;
        }
        let ca = folder.path().join("ca");
        let arguments: [OsString; 10] = [
            "--kubeconfig".into(),
            api.kubeconfig().into(),
            "--ca-dir".into(),
            ca.clone().into(),
            "--secure-grpc-addr".into(),
            Self::WEFTD.to_string().into(),
            "--workload-cert-ttl".into(),
            TTL.into(),
            "--max-workload-cert-ttl".into(),
            TTL.into(),
        ];
        let weftd = Weftd::start_with(&network, &arguments)?;
        let cluster = Self { weftd, api, node, folder, _network: network, _etcd: etcd };
        eventually("weftd's roots", PATIENCE, || cluster.roots())?;
        let strict = json!({
            "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
            "metadata": { "name": "default", "namespace": "istio-system" },
            "spec": { "mtls": { "mode": "STRICT" } },
        });
        cluster.apply(&strict)?;
        Ok(cluster)
    }

    /// Returns the roots that weftd is known by.
    ///
    /// # Errors
    ///
    /// If there are none.
    pub fn roots(&self) -> anyhow::Result<String> {
        fs::read_to_string(self.authority().join("root-cert.pem")).context("no roots")
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
        Ok(Request::get("/debug/rotationz").send(self.weftd.monitoring())?.text())
    }

    /// Returns the node that it runs on.
    pub fn node(&self) -> &'n Node {
        self.node
    }

    /// Creates or changes an object.
    ///
    /// # Errors
    ///
    /// If the API server refuses it.
    pub fn apply(&self, object: &serde_json::Value) -> anyhow::Result<()> {
        let file = self.folder.path().join("object.json");
        fs::write(&file, object.to_string())?;
        self.api.kubectl(&["apply", "-f", &file.display().to_string()])?;
        Ok(())
    }

    /// Creates a Service whose port 80 is HTTP on port 8000 of these workloads, and returns its address.
    ///
    /// # Errors
    ///
    /// If the API server refuses it.
    pub fn service(&self, name: &str, workloads: &[&Workload]) -> anyhow::Result<Ipv4Addr> {
        self.apply(&json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": NAMESPACE },
            "spec": {
                "selector": { "app": name }, "ports": [{ "name": "http", "port": 80, "targetPort": 8000 }],
            },
        }))?;
        let endpoint = |workload: &&Workload| {
            json!({
                "addresses": [workload.pod.address()], "conditions": { "ready": true },
                "targetRef": { "kind": "Pod", "name": workload.pod.name(), "namespace": NAMESPACE },
            })
        };
        self.apply(&json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": name, "namespace": NAMESPACE, "labels": { "kubernetes.io/service-name": name },
            },
            "addressType": "IPv4", "ports": [{ "name": "http", "port": 8000 }],
            "endpoints": workloads.iter().map(endpoint).collect::<Vec<_>>(),
        }))?;
        let path = "jsonpath={.spec.clusterIP}";
        let address = self.api.kubectl(&["-n", NAMESPACE, "get", "service", name, "-o", path])?;
        address.trim().parse().with_context(|| format!("{address:?} is no address"))
    }

    /// Makes a pod of this service account with a proxy that takes all of its traffic, and waits until the proxy is ready.
    ///
    /// # Errors
    ///
    /// If that does not work; the error has what the proxy has logged.
    pub fn workload(
        &self,
        pod: &str,
        account: &str,
        variables: &[(&str, String)],
    ) -> anyhow::Result<Workload> {
        let place = self.node.pod(pod)?;
        let metadata = json!({ "name": account, "namespace": NAMESPACE });
        self.apply(&json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata }))?;
        self.apply(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": pod, "namespace": NAMESPACE,
                "labels": { "app": account, "security.istio.io/tlsMode": "istio" },
            },
            "spec": { "serviceAccountName": account, "containers": [{ "name": "app", "image": "none" }] },
        }))?;
        let address = place.address();
        let status = json!({
            "status": { "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }] },
        });
        let status = status.to_string();
        self.api.kubectl(&["-n", NAMESPACE, "patch", "pod", pod, "--subresource=status", "-p", &status])?;
        let bound = ["--bound-object-kind", "Pod", "--bound-object-name", pod];
        let token = ["-n", NAMESPACE, "create", "token", account, "--audience", "istio-ca"];
        let token = self.api.kubectl(&[&token[..], &bound[..]].concat())?;
        self.proxy(place, account, token.trim(), variables, &[])
    }

    /// Makes a virtual machine, of which the API server knows a WorkloadEntry only, with a service at `address`: its port 80
    /// is HTTP on port 8000. Returns its place and a token, by which it may have a certificate.
    ///
    /// # Errors
    ///
    /// If the API server refuses an object.
    pub fn machine(&self, name: &str, address: Ipv4Addr) -> anyhow::Result<(Pod, String)> {
        let place = self.node.pod(name)?;
        let metadata = json!({ "name": name, "namespace": NAMESPACE });
        self.apply(&json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata }))?;
        self.apply(&json!({
            "apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry", "metadata": metadata,
            "spec": {
                "address": place.address(), "serviceAccount": name,
                "labels": { "app": name, "security.istio.io/tlsMode": "istio" },
            },
        }))?;
        self.apply(&json!({
            "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": metadata,
            "spec": {
                "hosts": [format!("{name}.{NAMESPACE}.svc.cluster.local")], "addresses": [address],
                "ports": [{ "name": "http", "number": 80, "protocol": "HTTP", "targetPort": 8000 }],
                "location": "MESH_INTERNAL", "resolution": "STATIC",
                "workloadSelector": { "labels": { "app": name } },
            },
        }))?;
        let token =
            self.api.kubectl(&["-n", NAMESPACE, "create", "token", name, "--audience", "istio-ca"])?;
        Ok((place, token.trim().to_owned()))
    }

    /// Captures a pod's traffic and starts its proxy, which knows who it is by a token, or by what else it is told.
    ///
    /// # Errors
    ///
    /// If that does not work; the error has what the proxy has logged.
    pub fn proxy(
        &self,
        pod: Pod,
        account: &str,
        token: &str,
        variables: &[(&str, String)],
        files: &[(&str, String)],
    ) -> anyhow::Result<Workload> {
        let roots = self.roots()?;
        let identity = Identity {
            pod: pod.name(),
            namespace: NAMESPACE,
            account,
            address: pod.address(),
            token,
            roots: &roots,
            weftd: Self::WEFTD,
            network: Some(&pod),
            variables,
            files,
        };
        capture(&pod, if identity.keeps_addresses() { "TPROXY" } else { "REDIRECT" })?;
        let agent = Agent::start(&identity)?;
        agent.wait_ready().with_context(|| format!("{}\n{}", self.weftd.log(), agent.log()))?;
        Ok(Workload { pod, agent })
    }
}

/// Does what a pod's init container does, with the arguments that the injector gives it.
fn capture(pod: &Pod, mode: &str) -> anyhow::Result<()> {
    let mut command = Command::new(weftd::agent()?);
    command.args(["istio-iptables", "-p", "15001", "-z", "15006", "-u", "1337", "-m", mode]);
    command.args(["-i", "*", "-x", "", "-b", "*", "-d", "15090,15021,15020"]);
    let output = pod.run(|| command.output()).context("cannot run weft-agent")?;
    ensure!(output.status.success(), "capture: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
