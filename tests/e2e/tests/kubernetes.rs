//! A real API server: what it accepts and refuses, and weftd following it, through its failures too.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};
use e2e::config::Config;
use e2e::network::Network;
use e2e::weftd::Weftd;
use e2e::{PATIENCE, eventually, proxy, repository};
use testkit::rig::http::Request;
use testkit::rig::{ApiServer, Envoy, Etcd};

/// How often the API server is killed.
const KILLS: u16 = 20;

#[test]
fn crds_and_samples_are_accepted_and_what_is_bad_is_refused() {
    let etcd = Etcd::start().unwrap();
    let server = server_with_crds(&etcd);
    for folder in samples() {
        let said = server.kubectl(&["apply", "-f", &folder.display().to_string()]).unwrap();
        // An unknown field is only a warning.
        assert!(!said.to_lowercase().contains("warning"), "{}: {said}", folder.display());
    }
    let refused = repository().join("tests/e2e/refused");
    let mut count = 0;
    for entry in fs::read_dir(refused).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let reason = text.lines().next().and_then(|line| line.strip_prefix("# refused: ")).unwrap();
        let error = server.kubectl(&["apply", "-f", &path.display().to_string()]);
        let error = error.expect_err(&format!("{} was accepted", path.display())).to_string();
        assert!(error.contains(reason), "{}: {reason:?} is not in: {error}", path.display());
        count += 1;
    }
    assert!(count > 0);
}

#[test]
fn edits_by_kubectl_arrive_and_nothing_is_lost_while_the_api_server_is_killed() {
    let network = Network::claim().unwrap();
    let etcd = Etcd::start().unwrap();
    let mut server = server_with_crds(&etcd);
    let cluster = Cluster { manifests: Config::new().unwrap(), network };
    for sample in ["traffic-shifting", "fault"] {
        cluster.apply_sample(&server, sample).unwrap();
    }
    let arguments = [OsString::from("--kubeconfig"), server.kubeconfig().into()];
    let weftd = Weftd::start_with(&cluster.network, &arguments).unwrap();
    let gateway = proxy::start_gateway(weftd.grpc()).unwrap();
    eventually("endpoints", PATIENCE, || has_endpoints(&gateway))
        .unwrap_or_else(|e| panic!("{e:#}\n{}", weftd.log()));
    cluster.edit_and_wait(&server, 400).unwrap_or_else(|error| panic!("{error:#}\n{}", weftd.log()));

    let stop = AtomicBool::new(false);
    let lost = Mutex::new(None);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                if let Err(error) = has_endpoints(&gateway) {
                    lost.lock().unwrap().get_or_insert(format!("{error:#}"));
                }
                thread::sleep(Duration::from_millis(20));
            }
        });
        let result = (1..=KILLS).try_for_each(|number| {
            server.kill();
            // Envoys go on meanwhile.
            ensure!(
                cluster.status()? == 400 + number - 1,
                "{number}: another answer while the API server is dead"
            );
            server.resume()?;
            cluster.edit_and_wait(&server, 400 + number).with_context(|| format!("after kill {number}"))
        });
        stop.store(true, Ordering::Relaxed);
        result.unwrap_or_else(|error: anyhow::Error| panic!("{error:#}\n{}", weftd.log()));
    });
    assert_eq!(*lost.lock().unwrap(), None, "{}", weftd.log());
}

fn server_with_crds(etcd: &Etcd) -> ApiServer {
    let server = ApiServer::start(etcd).unwrap();
    let crds = repository().join("crds").display().to_string();
    server.kubectl(&["apply", "--server-side", "-f", &crds]).unwrap();
    server.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "crd", "--all"]).unwrap();
    server
}

/// Returns the folders of `samples/`.
fn samples() -> Vec<PathBuf> {
    let entries = fs::read_dir(repository().join("samples")).unwrap();
    let mut folders: Vec<PathBuf> =
        entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect();
    folders.sort();
    assert!(folders.len() > 10, "{folders:?}");
    folders
}

/// Checks that Envoy has the endpoints of the sample `traffic-shifting`.
fn has_endpoints(gateway: &Envoy) -> anyhow::Result<()> {
    let hosts = proxy::hosts(gateway)?;
    for (subset, address) in [("v1", "10.244.2.1:8000"), ("v2", "10.244.2.2:8000")] {
        let name = format!("outbound|8000|{subset}|echo.traffic-shifting.svc.cluster.local");
        let got = hosts.get(&name).with_context(|| format!("no cluster {name}"))?;
        ensure!(got.contains(address), "{name} has {got:?}");
    }
    Ok(())
}

/// What is in the cluster.
struct Cluster {
    manifests: Config,
    network: Network,
}

impl Cluster {
    fn apply(&self, server: &ApiServer, name: &str, text: &str) -> anyhow::Result<()> {
        self.manifests.write(name, text)?;
        let path = self.manifests.file(name).display().to_string();
        // An API server that has just started may refuse for a moment.
        eventually("kubectl apply", PATIENCE, || Ok(server.kubectl(&["apply", "-f", &path]).map(drop)?))
    }

    fn apply_sample(&self, server: &ApiServer, sample: &str) -> anyhow::Result<()> {
        for file in ["app.yaml", &format!("{sample}.yaml")] {
            let text = fs::read_to_string(repository().join("samples").join(sample).join(file))?;
            self.apply(server, &format!("{sample}-{file}"), &self.network.bind_gateways(&text))?;
        }
        Ok(())
    }

    /// Makes the gateway answer `status` by itself, by kubectl, and waits until it does.
    fn edit_and_wait(&self, server: &ApiServer, status: u16) -> anyhow::Result<()> {
        let text = fs::read_to_string(repository().join("samples/fault/fault.yaml"))?;
        let (before, _) = text.split_once("  - name: plain\n").context("the sample has changed")?;
        let text = format!("{before}  - name: plain\n    directResponse:\n      status: {status}\n");
        self.apply(server, "fault-fault.yaml", &self.network.bind_gateways(&text))?;
        eventually(&format!("{status}"), Duration::from_secs(60), || {
            let got = self.status()?;
            ensure!(got == status, "{got}");
            Ok(())
        })
    }

    fn status(&self) -> anyhow::Result<u16> {
        let request = Request::get("/").header("host", "fault.samples.example");
        Ok(request.send(self.network.gateway(8080))?.status)
    }
}
