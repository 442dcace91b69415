//! A Kubernetes cluster whose objects are changed by kubectl.

use std::ffi::OsString;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tempfile::TempDir;
use testkit::rig::{ApiServer, Kubectl};

use super::manifests::is_slice;
use super::{Change, Pod, Random, Target, all_pods};
use crate::network::{Network, machine_address};

/// Where the ports of pods begin: below those that the system gives to clients.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
/// How many ports one mesh has: two for each pod, and one that says that the others are taken.
const PORTS_PER_MESH: u16 = 2 * Pod::COUNT + 1;

/// How long kubectl may be refused: an API server that was killed takes a while to come back.
const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster behind an API server that may be away at times.
#[derive(Debug)]
pub struct Cluster {
    network: Network,
    kubectl: Kubectl,
    kubeconfig: PathBuf,
    manifests: TempDir,
    pods: Ipv4Addr,
    /// Taken by us; the ports after it are those of pods.
    claim: TcpListener,
}

impl Cluster {
    /// Uses the cluster of an API server that has the CRDs, and makes the pods there.
    ///
    /// Kubernetes takes no loopback addresses as endpoints, so the pods share the machine's own address, and differ by
    /// their ports.
    ///
    /// # Errors
    ///
    /// If the machine has no address, or the API server refuses the pods.
    pub fn new(server: &ApiServer) -> anyhow::Result<Self> {
        let pods = machine_address()?;
        let cluster = Self {
            network: Network::claim()?,
            kubectl: server.kubectl_of_admin(),
            kubeconfig: server.kubeconfig().to_owned(),
            manifests: tempfile::Builder::new().prefix("weft-kubectl-").tempdir()?,
            pods,
            claim: claim_ports(pods)?,
        };
        cluster.kubectl("apply", &all_pods())?;
        Ok(cluster)
    }

    /// Runs kubectl on manifests until it succeeds.
    fn kubectl(&self, verb: &str, manifests: &str) -> anyhow::Result<()> {
        let file = self.manifests.path().join("objects.yaml");
        fs::write(&file, manifests).context("cannot write manifests")?;
        let file = file.display().to_string();
        let mut arguments = vec![verb, "-f", &file];
        if verb == "delete" {
            arguments.extend(["--ignore-not-found", "--wait=false"]);
        }
        let started = Instant::now();
        loop {
            match self.kubectl.run(&arguments) {
                Ok(_) => return Ok(()),
                Err(error) if started.elapsed() > PATIENCE => {
                    return Err(error).context(format!("kubectl {verb}"));
                }
                Err(_) => thread::sleep(Duration::from_millis(200)),
            }
        }
    }
}

impl Target for Cluster {
    fn network(&self) -> &Network {
        &self.network
    }

    fn address(&self, pod: Pod, port: u16) -> SocketAddr {
        let first = self.claim.local_addr().map(|address| address.port()).unwrap_or_default() + 1;
        SocketAddr::from((self.pods, first + 2 * pod.index_of_all() + port))
    }

    fn slice(&self, pod: Pod) -> String {
        pod.name()
    }

    fn weftd_arguments(&self) -> Vec<OsString> {
        vec![OsString::from("--kubeconfig"), self.kubeconfig.clone().into()]
    }

    /// One run of kubectl for changes that follow each other and are of one kind. EndpointSlices have runs of their own:
    /// they are watched on another connection than what they have to be there before, and must be known first.
    fn change(&self, changes: &[Change], _random: &mut Random) -> anyhow::Result<()> {
        let kind = |change: &Change| (change.delete, is_slice(&change.name));
        for run in changes.chunk_by(|one, other| kind(one) == kind(other)) {
            let manifests: Vec<&str> = run.iter().map(|change| change.manifest.as_str()).collect();
            let verb = if run[0].delete { "delete" } else { "apply" };
            self.kubectl(verb, &manifests.join("---\n"))?;
        }
        Ok(())
    }
}

/// Finds ports that nobody uses, and takes the one before them.
fn claim_ports(address: Ipv4Addr) -> anyhow::Result<TcpListener> {
    let free = |port: u16| TcpListener::bind((address, port));
    for first in PORTS.step_by(usize::from(PORTS_PER_MESH)) {
        let Ok(claim) = free(first) else { continue };
        if (first + 1..first + PORTS_PER_MESH).all(|port| free(port).is_ok()) {
            return Ok(claim);
        }
    }
    bail!("no free ports in {PORTS:?}")
}
