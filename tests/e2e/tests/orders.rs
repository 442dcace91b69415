//! An authority in Secrets of a real API server: what cannot be used, what an operator orders, and how a new authority becomes
//! the one that is plugged in; while requests go over mutual TLS with secrets from weftd.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use e2e::client::Client;
use e2e::network::Network;
use e2e::weftd::Weftd;
use e2e::{PATIENCE, eventually, repository};
use serde_json::{Value, json};
use testkit::rig::http::Request;
use testkit::rig::pki::Authority;
use testkit::rig::process::Scratch;
use testkit::rig::{ApiServer, Envoy, Etcd};

const NAMESPACE: &str = "istio-system";
const TTL: &str = "30s";
/// How long anything may take: Secrets are looked at twice a minute, and each step waits for a minute, in which another
/// replica could act by the state before.
const LIMIT: Duration = Duration::from_secs(240);

/// An Envoy that asks for its certificate alone, before the cluster of weftd.
const SILENT: &str = r#"
node: {id: sidecar~127.0.0.1~silent-1.shop~shop.svc.cluster.local, cluster: silent, metadata: {SERVICE_ACCOUNT: silent}}
static_resources:
  listeners:
  - name: mesh
    address: {socket_address: {address: 127.0.0.1, port_value: 8443}}
    filter_chains:
    - transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          common_tls_context:
            tls_certificate_sds_secret_configs:
            - name: default
              sds_config:
                resource_api_version: V3
                api_config_source:
                  api_type: GRPC
                  transport_api_version: V3
                  grpc_services:
                  - envoy_grpc: {cluster_name: sds-grpc}
                    initial_metadata: [{key: authorization, value: Bearer TOKEN}]
      filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: mesh
          route_config: {}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
  clusters:
"#;

/// Everything; killed on drop.
struct Rig {
    envoy: Envoy,
    /// One that never shows whether it has the roots: it is in the way until somebody orders the step.
    _silent: Envoy,
    at: SocketAddr,
    started: Instant,
    weftd: Weftd,
    folder: Scratch,
    _network: Network,
    api: ApiServer,
    _etcd: Etcd,
}

type Files = BTreeMap<String, String>;

impl Rig {
    fn start() -> Result<Self> {
        let (network, folder) = (Network::claim()?, Scratch::new("orders")?);
        let etcd = Etcd::start()?;
        let api = ApiServer::start(&etcd)?;
        api.install_definitions()?;
        for namespace in [NAMESPACE, "shop"] {
            api.kubectl(&["create", "namespace", namespace])?;
        }
        for account in ["server", "silent"] {
            api.kubectl(&["-n", "shop", "create", "serviceaccount", account])?;
        }
        let secure = network.socket(255, 1, 15012);
        let mut arguments = vec!["--kubeconfig".into(), api.kubeconfig().into()];
        for argument in ["--secure-grpc-addr", &secure.to_string(), "--workload-cert-ttl", TTL] {
            arguments.push(argument.into());
        }
        arguments.extend(["--max-workload-cert-ttl".into(), TTL.into()]);
        let weftd = Weftd::start_with(&network, &arguments)?;
        let roots = eventually("weftd's roots", PATIENCE, || {
            read(&api, "istio-ca-secret")?.remove("root-cert.pem").context("no roots")
        })?;
        let file = folder.path().join("root-cert.pem");
        fs::write(&file, roots)?;
        let token = |account: &str| {
            api.kubectl(&["-n", "shop", "create", "token", account, "--audience", "istio-ca"])
        };
        let sample = fs::read_to_string(repository().join("samples/envoy-agentless.yaml"))?;
        let to_weftd = format!("address: {}, port_value: {}", secure.ip(), secure.port());
        let localized = |text: &str, account: &str, number: u8| -> Result<String> {
            Ok(text
                .replace("Bearer TOKEN", &format!("Bearer {}", token(account)?.trim()))
                .replace("/etc/weft/root-cert.pem", &file.display().to_string())
                .replace("address: 127.0.0.1, port_value: 15012", &to_weftd)
                .replace("127.0.0.1", &network.ip(1, number).to_string()))
        };
        let envoy = Envoy::start(&localized(&sample, "server", 1)?)?;
        let weftd_of_sample = sample.find("  - name: sds-grpc").context("the sample names weftd")?;
        let silent = SILENT.to_owned() + &sample[weftd_of_sample..];
        let silent = Envoy::start(&localized(&silent, "silent", 2)?)?;
        let at = network.socket(1, 1, 8080);
        Ok(Self {
            envoy,
            _silent: silent,
            at,
            started: Instant::now(),
            weftd,
            folder,
            _network: network,
            api,
            _etcd: etcd,
        })
    }

    fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        Ok(self.api.kubectl(&[&["-n", NAMESPACE], arguments].concat())?)
    }

    /// Makes a Secret, or replaces it.
    fn put(&self, name: &str, files: &Files) -> Result<()> {
        let metadata = json!({ "name": name, "namespace": NAMESPACE });
        let secret =
            json!({ "apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": files });
        let file = self.folder.path().join("secret.json");
        fs::write(&file, secret.to_string())?;
        self.kubectl(&["apply", "-f", &file.display().to_string()])?;
        Ok(())
    }

    fn delete(&self, name: &str) -> Result<()> {
        self.kubectl(&["delete", "secret", name])?;
        Ok(())
    }

    fn order(&self, text: &str) -> Result<()> {
        let patch = json!({ "stringData": { "order": text } }).to_string();
        self.kubectl(&["patch", "secret", "weft-ca-rotation", "-p", &patch])?;
        eventually("the order to be taken up", LIMIT, || {
            ensure!(!read(&self.api, "weft-ca-rotation")?.contains_key("order"), "{text:?} is still there");
            Ok(())
        })
    }

    fn state(&self) -> Result<Value> {
        let mut kept = read(&self.api, "weft-ca-rotation")?;
        Ok(serde_json::from_str(&kept.remove("rotation.json").context("no state")?)?)
    }

    /// Waits until weftd says one of these of the rotation.
    fn wait_for(&self, phases: &[&str]) -> Result<()> {
        eventually(phases[0], LIMIT, || {
            let progress = self.progress()?;
            ensure!(phases.iter().any(|phase| progress.starts_with(phase)), "{progress}");
            println!("{:?}: {}", self.started.elapsed(), progress.trim());
            Ok(())
        })
    }

    /// Returns what weftd says of the rotation.
    fn progress(&self) -> Result<String> {
        Ok(Request::get("/debug/rotationz").send(self.weftd.monitoring())?.text())
    }

    fn wait_for_log(&self, text: &str) -> Result<()> {
        eventually(text, LIMIT, || {
            ensure!(self.weftd.log().contains(text), "weftd does not say so");
            Ok(())
        })
    }

    /// Returns the serial numbers of the roots that Envoy trusts, and of the certificates that it presents.
    fn envoy_has(&self) -> Result<[Vec<String>; 2]> {
        let all = self.envoy.admin_get("/certs")?.json()?;
        let all = all["certificates"].as_array().cloned().unwrap_or_default();
        // weftd itself is known by a file.
        let ours = all.iter().filter(|entry| {
            entry["ca_cert"].as_array().into_iter().flatten().all(|ca| ca["path"] == "<inline>")
        });
        let ours: Vec<&Value> = ours.collect();
        Ok(["ca_cert", "cert_chain"].map(|part| {
            let serials = ours.iter().flat_map(|entry| entry[part].as_array().cloned().unwrap_or_default());
            let mut serials: Vec<String> =
                serials.filter_map(|one| Some(one["serial_number"].as_str()?.to_owned())).collect();
            serials.sort();
            serials.dedup();
            serials
        }))
    }

    /// Waits until Envoy trusts so many roots.
    fn wait_for_roots(&self, count: usize) -> Result<Vec<String>> {
        eventually("Envoy's roots", LIMIT, || {
            let [roots, _] = self.envoy_has()?;
            ensure!(roots.len() == count, "{roots:?}");
            Ok(roots)
        })
    }

    /// Waits until Envoy presents certificates that it has not presented before.
    fn wait_for_new_certificates(&self) -> Result<()> {
        let [_, before] = self.envoy_has()?;
        eventually("new certificates", LIMIT, || {
            let [_, now] = self.envoy_has()?;
            ensure!(!now.is_empty() && now.iter().all(|one| !before.contains(one)), "{now:?}");
            Ok(())
        })
    }
}

/// Returns what a Secret holds.
fn read(api: &ApiServer, name: &str) -> Result<Files> {
    let secret: Value =
        serde_json::from_str(&api.kubectl(&["-n", NAMESPACE, "get", "secret", name, "-o", "json"])?)?;
    let data = secret["data"].as_object().into_iter().flatten();
    data.map(|(key, value)| {
        let bytes = STANDARD.decode(value.as_str().unwrap_or_default())?;
        Ok((key.clone(), String::from_utf8(bytes)?))
    })
    .collect()
}

/// What the clients have seen.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    requests: AtomicU64,
    failures: Mutex<Vec<String>>,
}

impl Load {
    fn make(&self, at: SocketAddr) {
        let mut client = Client::new(at, Duration::from_secs(10));
        while !self.stop.load(Ordering::Relaxed) {
            let failure = match client.get("server", "/") {
                Ok(answer) if answer.status == 200 => None,
                Ok(answer) => Some(format!("{answer:?}")),
                Err(error) => Some(error.to_string()),
            };
            self.requests.fetch_add(1, Ordering::Relaxed);
            if let Some(failure) = failure {
                self.failures.lock().unwrap().push(failure);
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn an_authority_in_secrets_takes_orders_and_nothing_that_is_broken() {
    let rig = Rig::start().unwrap();
    if let Err(error) = everything(&rig) {
        let log = rig.weftd.log();
        let lines: Vec<&str> = log.lines().collect();
        panic!("{error:?}\n{}", lines[lines.len().saturating_sub(60)..].join("\n"));
    }
}

fn everything(rig: &Rig) -> Result<()> {
    eventually("the first answer", PATIENCE, || {
        let answer = Client::new(rig.at, Duration::from_secs(5)).get("server", "/")?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(())
    })?;
    let load = Load::default();
    let done = thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| load.make(rig.at));
        }
        let done = under_load(rig);
        load.stop.store(true, Ordering::Relaxed);
        done
    });
    let (requests, failures) = (load.requests.into_inner(), load.failures.into_inner().unwrap());
    println!("{requests} requests, {} failed", failures.len());
    done?;
    ensure!(failures.is_empty(), "{:?}", &failures[..failures.len().min(5)]);
    ensure!(requests > 1_000, "{requests} requests are no load");
    Ok(())
}

fn under_load(rig: &Rig) -> Result<()> {
    let old = rig.wait_for_roots(1)?;
    broken_authorities_change_nothing(rig)?;
    ensure!(rig.wait_for_roots(1)? == old, "a broken authority has changed the roots");

    // Another one is to take over; and then not.
    rig.put("weft-ca-next", &Files::new())?;
    rig.wait_for(&["distributing"])?;
    rig.wait_for_roots(2)?;
    eventually("the one that is in the way to be named", LIMIT, || {
        let progress = rig.progress()?;
        ensure!(progress.contains("sa/silent") && progress.contains("has not acknowledged"), "{progress}");
        Ok(())
    })?;
    rig.order("force")?;
    rig.wait_for_log("say who orders it, and why")?;
    rig.order("rollback")?;
    rig.wait_for(&["distributing both roots, rolling back", "withdrawing"])?;
    rig.wait_for(&["withdrawing"])?;
    // Whoever is silent may have the root that is to be dropped: nobody can tell.
    rig.order("force anna: it trusts what it was started with")?;
    rig.wait_for(&["stable"])?;
    ensure!(rig.wait_for_roots(1)? == old, "it was rolled back");
    rig.wait_for_new_certificates()?;
    ensure!(rig.state()?["declined"].is_string(), "it would begin again: {}", rig.state()?);

    // And after all.
    rig.order("resume")?;
    rig.wait_for(&["distributing"])?;
    rig.wait_for_roots(2)?;
    rig.order("force anna: we are in a hurry")?;
    rig.wait_for(&["switched", "retiring"])?;
    rig.wait_for_new_certificates()?;
    if rig.progress()?.starts_with("switched") {
        rig.order("force berta: everybody has a new certificate")?;
    }
    rig.wait_for(&["retiring"])?;
    let new = rig.wait_for_roots(1)?;
    ensure!(new != old, "it is still the old root");
    // Trusting more harms nobody: this step back is taken at once.
    rig.order("rollback")?;
    rig.wait_for_roots(2)?;
    rig.order("resume")?;
    rig.wait_for(&["switched", "retiring"])?;
    if rig.progress()?.starts_with("switched") {
        rig.order("force berta: enough of this")?;
    }
    rig.wait_for(&["retiring"])?;
    rig.order("force berta: it is over")?;
    rig.wait_for(&["stable"])?;
    let kept = rig.state()?.to_string();
    for part in ["anna: we are in a hurry", "berta: it is over"] {
        ensure!(kept.contains(part), "{part:?} is forgotten: {kept}");
    }
    ensure!(rig.wait_for_roots(1)? == new, "the new root is the only one");

    // As the instructions have it: the new authority becomes the one that is plugged in.
    rig.put("cacerts", &read(&rig.api, "weft-ca-next")?)?;
    rig.delete("weft-ca-next")?;
    let ready = rig.weftd.log().matches("the certificate authority is ready").count();
    eventually("weftd to take it in", LIMIT, || {
        let now = rig.weftd.log().matches("the certificate authority is ready").count();
        ensure!(now > ready, "not yet");
        Ok(())
    })?;
    rig.wait_for_new_certificates()?;
    ensure!(rig.wait_for_roots(1)? == new, "it has the root that signs already");
    Ok(())
}

/// Authorities that do not hold together are reported, and the one that signs goes on.
fn broken_authorities_change_nothing(rig: &Rig) -> Result<()> {
    let good = read(&rig.api, "istio-ca-secret")?;
    let stranger = Authority::new("a stranger");
    let with = |name: &str, text: &str| {
        let mut files = good.clone();
        files.insert(name.to_owned(), text.to_owned());
        files
    };
    let mut other_key = good.clone();
    other_key.insert("ca-key.pem".to_owned(), stranger.issue("a", &["a.test"]).key_pem);
    let (signs, takes_over) = (
        "the certificate authority cannot be used; the one before stays in use",
        "the authority that is to take over cannot be used",
    );
    let stranger_root = with("root-cert.pem", &stranger.certificate_pem());
    for (secret, complaint, what, files) in [
        ("cacerts", signs, "its chain does not lead to its root", stranger_root),
        ("cacerts", signs, "its key is another's", other_key),
        ("weft-ca-next", takes_over, "its certificate is none", with("ca-cert.pem", "nonsense")),
    ] {
        let before = rig.weftd.log().matches(complaint).count();
        rig.put(secret, &files)?;
        eventually(what, LIMIT, || {
            ensure!(rig.weftd.log().matches(complaint).count() > before, "{secret}: nothing is said");
            Ok(())
        })?;
        if complaint == takes_over || what.contains("key") {
            rig.delete(secret)?;
        }
    }
    rig.wait_for_new_certificates()?;
    ensure!(rig.state().is_err(), "something has begun");
    Ok(())
}
