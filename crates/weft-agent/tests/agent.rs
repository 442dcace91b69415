//! The agent with a real Envoy, and a control plane of the test's own.

mod fake;

use base64::Engine as _;
use fake::{ControlPlane, NAME, TOKEN, new_authority};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use testkit::rig::http::{Request, Response};
use testkit::rig::process::{Process, Scratch};
use testkit::rig::{HttpEcho, loopback};

const PATIENCE: Duration = Duration::from_secs(30);

/// An agent in a folder of its own, which stands for the root of a container.
struct Agent {
    process: Process,
    scratch: Scratch,
    ports: Ports,
    listener: SocketAddr,
}

#[derive(Clone, Copy)]
struct Ports {
    admin: u16,
    status: u16,
    envoy_status: u16,
    prometheus: u16,
}

impl Ports {
    /// Ports below those that the system gives out by itself, which are free on all addresses.
    fn new() -> Self {
        let free = || {
            loop {
                let port = fastrand::u16(16_000..32_000);
                if TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
                    return port;
                }
            }
        };
        Self { admin: free(), status: free(), envoy_status: free(), prometheus: free() }
    }
}

struct Options {
    proxy: Value,
    variables: Vec<(&'static str, String)>,
    token: Option<&'static str>,
}

impl Default for Options {
    fn default() -> Self {
        Self { proxy: json!({}), variables: Vec::new(), token: Some(TOKEN) }
    }
}

impl Agent {
    fn start(control_plane: &ControlPlane, listener: SocketAddr, options: &Options) -> Self {
        let scratch = Scratch::new("agent").unwrap();
        let ports = Ports::new();
        let write = |path: &str, text: &str| {
            let path = scratch.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("var/run/secrets/istio/root-cert.pem", &control_plane.roots.to_pem());
        if let Some(token) = options.token {
            write("var/run/secrets/tokens/istio-token", token);
        }
        write("etc/istio/pod/labels", "app=\"web\"\n");
        let mut proxy = json!({
            "binaryPath": testkit::tools::envoy().unwrap(),
            "discoveryAddress": control_plane.address.to_string(),
            "proxyAdminPort": ports.admin,
            "statusPort": ports.status,
            "terminationDrainDuration": "2s",
            "concurrency": 1,
        });
        for (name, value) in options.proxy.as_object().unwrap() {
            proxy[name] = value.clone();
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_weft-agent"));
        command.args(["proxy", "sidecar", "--log_output_level", "default:debug"]);
        command.current_dir(scratch.path()).env_clear().envs([
            ("POD_NAME", "web-1"),
            ("POD_NAMESPACE", "app"),
            ("SERVICE_ACCOUNT", "web"),
            ("INSTANCE_IP", &listener.ip().to_string()),
            ("ISTIOD_SAN", NAME),
            ("ISTIO_META_CLUSTER_ID", "Kubernetes"),
            ("ENVOY_STATUS_PORT", &ports.envoy_status.to_string()),
            ("ENVOY_PROMETHEUS_PORT", &ports.prometheus.to_string()),
            ("PROXY_CONFIG", &proxy.to_string()),
        ]);
        command.envs(options.variables.iter().map(|(name, value)| (*name, value)));
        let process = Process::spawn("weft-agent", command, scratch.path().join("agent.log")).unwrap();
        Self { process, scratch, ports, listener }
    }

    fn wait<T>(&self, what: &str, probe: impl FnMut() -> Option<T>) -> T {
        self.process.wait_until(what, PATIENCE, probe).unwrap()
    }

    fn get(&self, port: u16, path: &str) -> Option<Response> {
        Request::get(path).limit(Duration::from_secs(5)).send((Ipv4Addr::LOCALHOST, port).into()).ok()
    }

    fn readiness(&self) -> Option<u16> {
        self.get(self.ports.envoy_status, "/healthz/ready").map(|answer| answer.status)
    }

    fn wait_ready(&self) {
        self.wait("the proxy to be ready", || self.readiness().filter(|status| *status == 200));
    }

    /// The certificates that Envoy uses.
    fn certificates(&self) -> Value {
        self.get(self.ports.admin, "/certs").unwrap().json().unwrap()
    }

    /// The serial numbers of the workload's certificates.
    fn serials(&self) -> BTreeSet<String> {
        let certificates = self.certificates();
        let all = certificates["certificates"].as_array().unwrap().iter();
        let leaves = all.flat_map(|entry| entry["cert_chain"].as_array().unwrap().clone());
        leaves.map(|leaf| leaf["serial_number"].as_str().unwrap().to_owned()).collect()
    }

    /// How many roots Envoy trusts for workloads.
    fn roots(&self) -> usize {
        let dump = self.get(self.ports.admin, "/config_dump?resource=dynamic_active_secrets").unwrap();
        let dump = dump.json().unwrap();
        let secrets = dump["configs"].as_array().unwrap();
        let roots = secrets.iter().find(|entry| entry["name"] == "ROOTCA").expect("Envoy asked for roots");
        let source = &roots["secret"]["validation_context"]["trusted_ca"]["inline_bytes"];
        let pem = base64::engine::general_purpose::STANDARD.decode(source.as_str().unwrap()).unwrap();
        String::from_utf8(pem).unwrap().matches("BEGIN CERTIFICATE").count()
    }

    fn envoy_pid(&self) -> i32 {
        let children = format!("/proc/{0}/task/{0}/children", self.process.id());
        let of_task = |path: &Path| fs::read_to_string(path).ok()?.split_whitespace().next()?.parse().ok();
        let tasks = Path::new(&children).parent().unwrap().parent().unwrap();
        let mut tasks = fs::read_dir(tasks).unwrap().flatten();
        tasks.find_map(|task| of_task(&task.path().join("children"))).expect("Envoy is a child of the agent")
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw).unwrap();
        kill_process(pid, signal).unwrap();
    }

    fn wait_end(&self) -> std::process::ExitStatus {
        let ended = self.process.wait_until("the end", PATIENCE, || self.process.status().unwrap());
        ended.unwrap()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.scratch.path().join("agent.log")).unwrap()
    }
}

async fn start(options: Options) -> (ControlPlane, Agent) {
    let listener = loopback::socket().unwrap();
    let control_plane = ControlPlane::start(loopback::socket().unwrap(), listener).await;
    let agent = Agent::start(&control_plane, listener, &options);
    (control_plane, agent)
}

/// Certificates that last four seconds.
fn short_lived() -> Options {
    Options { variables: vec![("SECRET_TTL", "4s".to_owned())], ..Options::default() }
}

fn assert_no_key_was_written(agent: &Agent) {
    let mut folders = vec![agent.scratch.path().to_owned()];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                let text = fs::read(entry.path()).unwrap();
                let text = String::from_utf8_lossy(&text);
                assert!(!text.contains("PRIVATE KEY"), "{}", entry.path().display());
                files += 1;
            }
        }
    }
    assert!(files >= 4, "the log, the bootstrap, the roots and the token are looked at");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_gets_ready_with_a_certificate_that_is_renewed_without_a_restart() {
    let (control_plane, agent) = start(short_lived()).await;
    agent.wait_ready();

    // Both streams are authenticated by the certificate.
    let id = "spiffe://cluster.local/ns/app/sa/web".to_owned();
    let streams = || control_plane.seen.lock().unwrap().streams.clone();
    agent.wait("both streams", || {
        let expected = [(id.clone(), "envoy".to_owned()), (id.clone(), "weft-agent".to_owned())];
        expected.iter().all(|stream| streams().contains(stream)).then_some(())
    });
    let socket = agent.scratch.path().join("var/run/secrets/workload-spiffe-uds/socket");
    assert_eq!(fs::metadata(socket).unwrap().permissions().mode() & 0o777, 0o600);

    let first = agent.serials();
    let pid = agent.envoy_pid();
    agent.wait("two renewals", || {
        let requests = control_plane.seen.lock().unwrap().requests.clone();
        (requests.len() >= 3 && agent.serials().is_disjoint(&first)).then_some(())
    });
    assert_eq!(agent.envoy_pid(), pid, "Envoy was not restarted");
    assert_eq!(streams().iter().filter(|(_, agent)| agent == "envoy").count(), 1, "nor did it reconnect");
    assert_eq!(agent.readiness(), Some(200));
    assert!(control_plane.seen.lock().unwrap().requests.iter().all(|who| who == "token"));
    assert_no_key_was_written(&agent);
}

#[tokio::test(flavor = "multi_thread")]
async fn roots_are_acknowledged_only_when_envoy_has_them() {
    let (control_plane, agent) = start(Options::default()).await;
    agent.wait_ready();
    let answers = || control_plane.seen.lock().unwrap().answers.clone();
    agent.wait("the first roots to be answered", || (answers() == [None]).then_some(()));
    assert_eq!(agent.roots(), 1);

    let other = new_authority().bundle().clone();
    control_plane.send_roots(control_plane.roots.union(&other).to_pem());
    agent.wait("the second roots to be answered", || (answers() == [None, None]).then_some(()));
    assert_eq!(agent.roots(), 2, "Envoy has them when they are acknowledged");

    control_plane.send_roots("no roots at all".to_owned());
    let refused = agent.wait("bad roots to be refused", || answers().get(2).cloned());
    assert!(refused.is_some());
    assert_eq!(agent.roots(), 2, "what cannot be used takes nothing away");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_comes_before_the_end() {
    let (_control_plane, agent) = start(Options::default()).await;
    agent.wait_ready();
    let pid = agent.envoy_pid();
    std::net::TcpStream::connect(agent.listener).unwrap();

    agent.signal(Signal::TERM);
    agent.wait("readiness to fail", || agent.readiness().filter(|status| *status == 503));
    agent.wait("Envoy to drain", || {
        agent.log().contains("Envoy drains its listeners inbound_only=true").then_some(())
    });
    assert!(agent.process.status().unwrap().is_none(), "it takes two seconds");
    let status = agent.wait_end();
    assert!(status.success(), "{status}: {}", agent.process.log_tail());
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "Envoy is gone, and nobody has to bury it");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_waited_for() {
    let options = Options {
        variables: vec![
            ("EXIT_ON_ZERO_ACTIVE_CONNECTIONS", "true".to_owned()),
            ("MINIMUM_DRAIN_DURATION", "100ms".to_owned()),
        ],
        ..Options::default()
    };
    let (_control_plane, agent) = start(options).await;
    agent.wait_ready();
    let connection = std::net::TcpStream::connect(agent.listener).unwrap();
    agent.wait("Envoy to have the connection", || {
        let stats = agent.get(agent.ports.admin, "/stats?filter=downstream_cx_active$")?.text();
        let name = format!("listener.{}_{}.", agent.listener.ip(), agent.listener.port());
        stats.lines().find(|line| line.starts_with(&name) && line.ends_with(": 1")).map(|_| ())
    });
    agent.signal(Signal::TERM);
    agent.wait("connections to be counted", || agent.log().contains("connections=Some(1)").then_some(()));
    assert!(agent.process.status().unwrap().is_none());
    drop(connection);
    assert!(agent.wait_end().success());
    assert!(agent.log().contains("no connection is left"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_envoy_that_dies_takes_the_agent_along() {
    let (_control_plane, agent) = start(Options::default()).await;
    agent.wait_ready();
    kill_process(Pid::from_raw(agent.envoy_pid()).unwrap(), Signal::KILL).unwrap();
    assert_eq!(agent.wait_end().code(), Some(1));
    assert!(agent.log().contains("weft-agent: Envoy was killed"), "{}", agent.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_end_their_proxy() {
    let (_control_plane, agent) = start(Options::default()).await;
    agent.wait_ready();
    let address = (Ipv4Addr::LOCALHOST, agent.ports.status).into();
    assert_eq!(Request::get("/quitquitquit").send(address).unwrap().status, 405);
    assert_eq!(Request::new("POST", "/quitquitquit").send(address).unwrap().status, 200);
    assert!(agent.wait_end().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_that_is_down_is_asked_again_and_takes_nothing_away() {
    let listener = loopback::socket().unwrap();
    let control_plane = ControlPlane::start(loopback::socket().unwrap(), listener).await;
    control_plane.seen.lock().unwrap().refuse = true;
    let agent = Agent::start(&control_plane, listener, &short_lived());
    agent.wait("three attempts", || (control_plane.seen.lock().unwrap().requests.len() >= 3).then_some(()));
    assert_ne!(agent.readiness(), Some(200), "without a certificate there is no configuration");
    control_plane.seen.lock().unwrap().refuse = false;
    agent.wait_ready();
    assert!(agent.log().contains("the authority answered Internal: not now"), "{}", agent.log());

    // It fails again when the certificate should be renewed: the proxy goes on.
    control_plane.seen.lock().unwrap().refuse = true;
    let count = control_plane.seen.lock().unwrap().requests.len();
    agent.wait("a renewal to fail", || {
        (control_plane.seen.lock().unwrap().requests.len() > count + 1).then_some(())
    });
    assert_eq!(agent.readiness(), Some(200));
    assert_eq!(agent.serials().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_renews_with_its_own_certificate_when_its_token_is_over() {
    let (control_plane, agent) = start(short_lived()).await;
    agent.wait_ready();
    let token = agent.scratch.path().join("var/run/secrets/tokens/istio-token");
    fs::write(&token, "an-old-token").unwrap();
    let id = "spiffe://cluster.local/ns/app/sa/web";
    agent.wait("a renewal with the certificate", || {
        control_plane.seen.lock().unwrap().requests.iter().any(|who| who == id).then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sent_to_an_impostor() {
    let listener = loopback::socket().unwrap();
    let impostor = ControlPlane::start(loopback::socket().unwrap(), listener).await;
    let agent = Agent::start(&ControlPlane::at(impostor.address), listener, &Options::default());
    agent.wait("the authority not to be believed", || {
        agent.log().contains("invalid peer certificate").then_some(())
    });
    assert!(impostor.seen.lock().unwrap().requests.is_empty());
    assert_ne!(agent.readiness(), Some(200));
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_of_all_three_and_probes_are_answered() {
    let app = HttpEcho::start("app", "v1", loopback::socket().unwrap()).unwrap();
    let probes = json!({
        "/app-health/web/readyz": { "httpGet": { "port": app.address().port(), "host": app.address().ip() } },
    });
    let metrics_port = Ports::new().admin;
    let metrics = HttpEcho::start("metrics", "v1", (Ipv4Addr::LOCALHOST, metrics_port).into()).unwrap();
    let annotations = json!({ "scrape": "true", "port": metrics_port.to_string(), "path": "/app-metrics" });
    let options = Options {
        variables: vec![
            ("ISTIO_KUBE_APP_PROBERS", probes.to_string()),
            ("ISTIO_PROMETHEUS_ANNOTATIONS", annotations.to_string()),
        ],
        ..Options::default()
    };
    let (_control_plane, agent) = start(options).await;
    agent.wait_ready();
    let text = agent.get(agent.ports.status, "/stats/prometheus").unwrap().text();
    for expected in [
        "istio_agent_cert_expiry_seconds{resource_name=\"default\"}",
        "istio_agent_scrapes_total 1",
        "envoy_cluster_upstream_cx_active{cluster_name=\"xds-grpc\"}",
        "/app-metrics",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    metrics.set_status(500);
    let text = agent.get(agent.ports.status, "/stats/prometheus").unwrap().text();
    assert!(text.contains("istio_agent_scrape_failures_total{type=\"application\"} 1"), "{text}");
    assert!(text.contains("envoy_server_"), "a broken application hides nothing");

    assert_eq!(agent.get(agent.ports.status, "/app-health/web/readyz").unwrap().status, 200);
    app.set_status(503);
    assert_eq!(agent.get(agent.ports.status, "/app-health/web/readyz").unwrap().status, 503);
    assert_eq!(agent.get(agent.ports.status, "/app-health/web/livez").unwrap().status, 400);

    let wait = Command::new(env!("CARGO_BIN_EXE_weft-agent"))
        .args(["wait", "--timeoutSeconds", "5", "--url"])
        .arg(format!("http://localhost:{}/healthz/ready", agent.ports.envoy_status))
        .status();
    assert!(wait.unwrap().success());
    let stats = Command::new(env!("CARGO_BIN_EXE_weft-agent"))
        .args(["request", "GET", "server_info", "--port", &agent.ports.admin.to_string()])
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&stats.stdout).contains("\"state\": \"LIVE\""));
}
