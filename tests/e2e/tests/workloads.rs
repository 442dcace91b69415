//! Workloads in network namespaces, as a node runs them: their traffic comes to their Envoys because the kernel sends it
//! there, and is mutual TLS because both have a proxy. Nobody is configured to know of that.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use e2e::app::{self, App};
use e2e::client::{Answer, Client};
use e2e::identity::{Cluster, InPod, Workload};
use e2e::{PATIENCE, eventually};
use serde_json::json;
use testkit::rig::http::Request;
use testkit::rig::netns::{Pod, on_a_node};
use testkit::rig::process::{Process, Scratch};

const SERVER: &str = "server.shop.svc.cluster.local";
const LIMIT: Duration = Duration::from_secs(5);
/// How many clients make requests.
const CLIENTS: usize = 4;
/// As many certificates are used under load, at least.
const CERTIFICATES: usize = 4;
/// How long the replacement of a root may take: it waits for certificates of ten seconds to expire.
const ROTATION_LIMIT: Duration = Duration::from_secs(240);

#[test]
fn workloads_are_in_the_mesh_because_their_traffic_is_captured() {
    on_a_node("workloads_are_in_the_mesh_because_their_traffic_is_captured", |node| {
        let cluster = Cluster::start(node).unwrap();
        let (client, server) = start(&cluster).unwrap();
        if let Err(error) = everything(&cluster, &client, server) {
            let log = client.agent.log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(40)..].join("\n");
            panic!("{error:?}\n== weftd\n{}\n== client\n{tail}", cluster.weftd.log());
        }
    });
}

fn start(cluster: &Cluster<'_>) -> Result<(Workload, Server)> {
    Ok((cluster.workload("client-1", "client", &[])?, Server::start(cluster, "server-1")?))
}

fn everything(cluster: &Cluster<'_>, client: &Workload, server: Server) -> Result<()> {
    let address = cluster.service("server", &[&server.workload])?;
    served(client, &server, address)?;
    strangers_are_refused(cluster, client, &server)?;
    calls_to_itself_are_calls(&server, address)?;
    the_kubelet_and_prometheus_are_answered(&server)?;
    with_tproxy_the_application_sees_its_client(cluster, client)?;
    nothing_fails_while_certificates_are_replaced(client, address)?;
    nothing_fails_while_the_root_is_replaced(cluster, client, &server, address)?;
    nothing_fails_while_a_workload_is_replaced(cluster, client, address, server)?;
    a_machine_without_kubernetes_is_in_the_mesh(cluster, client)
}

/// A server with all that an application can have.
struct Server {
    workload: Workload,
    http: InPod<App>,
    _others: [InPod<App>; 2],
    _grpc: Process,
    _scratch: Scratch,
}

/// gRPC's health protocol, of which any answer is three bytes or none: 1 is serving.
const GRPC: &str = "
import concurrent.futures, grpc
def check(request, context): return b'\\x08\\x01'
handlers = {'Check': grpc.unary_unary_rpc_method_handler(check)}
server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler('grpc.health.v1.Health', handlers),))
server.add_insecure_port('0.0.0.0:8003')
server.start()
server.wait_for_termination()
";

impl Server {
    fn start(cluster: &Cluster<'_>, name: &str) -> Result<Self> {
        let probes = json!({
            "/app-health/app/livez": { "httpGet": { "path": "/live", "port": 8000 } },
            "/app-health/app/readyz": { "tcpSocket": { "port": 8001 } },
            "/app-health/app/startupz": { "grpc": { "port": 8003 }, "timeoutSeconds": 5 },
        });
        let metrics = json!({ "scrape": "true", "port": "8002", "path": "/app-metrics" });
        let workload = cluster.workload(
            name,
            "server",
            &[
                ("ISTIO_KUBE_APP_PROBERS", probes.to_string()),
                ("ISTIO_PROMETHEUS_ANNOTATIONS", metrics.to_string()),
            ],
        )?;
        let pod = &workload.pod;
        let any = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let said = name.to_owned();
        // The application's user is root: anybody but the proxy.
        let http = InPod::new(pod, || App::http(any(8000), move |request| answer(&said, request)))?;
        let bytes = InPod::new(pod, || App::tcp(any(8001), |stream| stream.write_all(b"bytes")))?;
        let metrics = InPod::new(pod, || App::http(any(8002), own_metrics))?;
        let scratch = Scratch::new("grpc")?;
        let mut grpc = Command::new(testkit::tools::python()?);
        grpc.args(["-c", GRPC]);
        let log = scratch.path().join("log");
        let grpc = pod.run(|| Process::spawn("the gRPC application", grpc, log))?;
        Ok(Self { workload, http, _others: [bytes, metrics], _grpc: grpc, _scratch: scratch })
    }

    fn requests(&self) -> u64 {
        self.http.get().map_or(0, App::requests)
    }
}

fn own_metrics(request: &app::Request) -> app::Answer {
    let status = if request.path == "/app-metrics" { 200 } else { 404 };
    app::Answer::ok("app_orders_total 7\n").status(status)
}

/// Says who answers, and who the proxy says has asked.
fn answer(name: &str, request: &app::Request) -> app::Answer {
    app::Answer::ok(format!("{name} {}", request.header("x-forwarded-client-cert")))
}

fn get(from: &Pod, at: impl Into<IpAddr>, port: u16, host: &str) -> Result<Answer> {
    let at = SocketAddr::new(at.into(), port);
    Ok(from.run(|| Client::new(at, LIMIT).get(host, "/hello"))?)
}

/// The client calls the service's address, as if there were no mesh, and the server knows who it is.
fn served(client: &Workload, server: &Server, address: Ipv4Addr) -> Result<()> {
    let answer = eventually("the first answer", PATIENCE, || {
        let answer = get(&client.pod, address, 80, SERVER)?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(answer)
    })?;
    ensure!(answer.body.starts_with("server-1 "), "{answer:?}");
    ensure!(answer.body.contains("URI=spiffe://cluster.local/ns/shop/sa/client"), "{answer:?}");
    let handshakes = client.agent.counter(&format!("cluster.outbound|80||{SERVER};.ssl.handshake"))?;
    ensure!(handshakes > 0, "the client's Envoy has made no handshake");
    ensure!(server.workload.agent.requests(8000)? > 0, "the server's Envoy has seen no request");
    // By a pod's own address and port, which are those of no service, Envoy passes on what it gets: plain text.
    match get(&client.pod, server.workload.pod.address(), 8000, SERVER) {
        Ok(answer) => bail!("plain text was answered: {answer:?}"),
        Err(error) => ensure!(is_refusal(&error), "{error:?}"),
    }
    Ok(())
}

/// STRICT: whoever has no proxy is refused, by declared and undeclared ports. The other way round there is no mesh to
/// speak of, and calls just work.
fn strangers_are_refused(cluster: &Cluster<'_>, client: &Workload, server: &Server) -> Result<()> {
    let stranger = cluster.node().pod("stranger")?;
    let to = server.workload.pod.address();
    let before = server.requests();
    for port in [8000, 8002] {
        match get(&stranger, to, port, SERVER) {
            Ok(answer) => bail!("plain text was answered on port {port}: {answer:?}"),
            Err(error) => ensure!(is_refusal(&error), "{port}: {error:?}"),
        }
    }
    // Bytes that are no HTTP come no further.
    let mut bytes = Vec::new();
    let _ = stranger.run(|| -> std::io::Result<usize> {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from((to, 8001)), LIMIT)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.write_all(b"hello")?;
        stream.read_to_end(&mut bytes)
    });
    ensure!(bytes.is_empty(), "{bytes:?}");
    assert_eq!(server.requests(), before, "the application has seen nothing of it");

    let outside = InPod::new(&stranger, || {
        App::http((Ipv4Addr::UNSPECIFIED, 8080).into(), |_| app::Answer::ok("outside"))
    })?;
    let answer = get(&client.pod, stranger.address(), 8080, "outside.example")?;
    assert_eq!((answer.status, answer.body.as_str()), (200, "outside"));
    drop(outside);
    let passed = client.agent.counter("cluster.PassthroughCluster;.upstream_cx_total")?;
    let passed = passed.max(client.agent.counter("cluster.PassthroughCluster.upstream_cx_total")?);
    ensure!(passed > 0, "the call went past the client's Envoy");
    Ok(())
}

fn is_refusal(error: &anyhow::Error) -> bool {
    use std::io::ErrorKind::{ConnectionReset, UnexpectedEof};
    let error = error.downcast_ref::<std::io::Error>();
    error.is_some_and(|error| matches!(error.kind(), UnexpectedEof | ConnectionReset))
}

/// A workload that is chosen for its own call gets it through its own proxy, twice.
fn calls_to_itself_are_calls(server: &Server, address: Ipv4Addr) -> Result<()> {
    let answer = eventually("a call to itself", PATIENCE, || {
        let answer = get(&server.workload.pod, address, 80, SERVER)?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(answer)
    })?;
    ensure!(answer.body.contains("URI=spiffe://cluster.local/ns/shop/sa/server"), "{answer:?}");
    let direct = get(&server.workload.pod, server.workload.pod.address(), 8000, SERVER)?;
    assert_eq!(direct.body, "server-1 ", "by its own address there is nobody between");
    Ok(())
}

/// Neither speaks mutual TLS: they ask the agent, and the agent's questions are not captured.
fn the_kubelet_and_prometheus_are_answered(server: &Server) -> Result<()> {
    let status = |port, path: &str| -> Result<(u16, String)> {
        let at = SocketAddr::from((server.workload.pod.address(), port));
        let answer = Request::get(path).limit(Duration::from_secs(10)).send(at)?;
        Ok((answer.status, answer.text()))
    };
    for path in ["livez", "readyz", "startupz"] {
        eventually(path, PATIENCE, || {
            let (code, text) = status(15020, &format!("/app-health/app/{path}"))?;
            ensure!(code == 200, "{path}: {code} {text}");
            Ok(())
        })?;
    }
    ensure!(status(15021, "/healthz/ready")?.0 == 200, "readiness by way of Envoy");
    let (_, metrics) = status(15020, "/stats/prometheus")?;
    for part in ["app_orders_total 7", "envoy_server_uptime", "istio_agent_cert_expiry_seconds"] {
        ensure!(metrics.contains(part), "no {part} in {metrics}");
    }
    let (_, own) = status(15090, "/stats/prometheus")?;
    ensure!(own.contains("envoy_server_uptime") && !own.contains("app_orders_total"), "Envoy's alone");
    // An application that is broken is said to be.
    let code = status(15020, "/app-health/other/livez")?.0;
    assert_eq!(code, 400);
    Ok(())
}

/// Says who has connected.
fn say_who(stream: &mut TcpStream) -> std::io::Result<()> {
    let peer = stream.peer_addr()?.ip().to_string();
    let mut buffer = [0; 4096];
    while stream.read(&mut buffer)? > 0 {
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", peer.len());
        stream.write_all((head + &peer).as_bytes())?;
    }
    Ok(())
}

/// Both proxies are between, and the server's speaks in the client's name. Without TPROXY it is the proxy that connects.
fn with_tproxy_the_application_sees_its_client(cluster: &Cluster<'_>, client: &Workload) -> Result<()> {
    let own = IpAddr::from(Ipv4Addr::new(127, 0, 0, 6));
    for (name, mode, expected) in
        [("seen", "TPROXY", IpAddr::from(client.pod.address())), ("unseen", "REDIRECT", own)]
    {
        let mode = [("ISTIO_META_INTERCEPTION_MODE", mode.to_owned())];
        let server = cluster.workload(name, name, &mode)?;
        let _app = InPod::new(&server.pod, || App::tcp((Ipv4Addr::UNSPECIFIED, 8000).into(), say_who))?;
        let address = cluster.service(name, &[&server])?;
        let host = format!("{name}.shop.svc.cluster.local");
        let answer = eventually("an answer", PATIENCE, || {
            let answer = get(&client.pod, address, 80, &host)?;
            ensure!(answer.status == 200, "{answer:?}");
            Ok(answer)
        });
        let answer = answer.with_context(|| format!("{name}:\n{}", server.agent.log()))?;
        assert_eq!(answer.body, expected.to_string(), "{name}");
        ensure!(server.agent.requests(8000)? > 0, "{name}: its Envoy has seen no request");
        // And a call of the workload to itself, by its service.
        let answer = get(&server.pod, address, 80, &host)?;
        assert_eq!(answer.status, 200, "{name}: {answer:?}");
    }
    Ok(())
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
        let mut client = Client::new(at, LIMIT);
        while !self.stop.load(Ordering::Relaxed) {
            let failure = match client.get(SERVER, "/load") {
                Ok(answer) if answer.status == 200 => None,
                Ok(answer) => Some(format!("{answer:?}")),
                Err(error) => Some(error.to_string()),
            };
            self.requests.fetch_add(1, Ordering::Relaxed);
            if let Some(failure) = failure {
                self.failures.lock().unwrap().push(failure);
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Has clients in a pod make requests while `work` is done, of which none may fail.
    fn during<T>(
        what: &str,
        from: &Workload,
        at: Ipv4Addr,
        work: impl FnOnce(&Self) -> Result<T>,
    ) -> Result<T> {
        let load = Self::default();
        let at = SocketAddr::from((at, 80));
        let done = thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| from.pod.run(|| load.make(at)));
            }
            let done = work(&load);
            load.stop.store(true, Ordering::Relaxed);
            done
        })?;
        let (failures, requests) = (load.failures.into_inner().unwrap(), load.requests.into_inner());
        println!("{what}: {requests} requests, {} failed", failures.len());
        ensure!(
            failures.is_empty(),
            "{what}: {} of {requests} failed: {:?}",
            failures.len(),
            &failures[..failures.len().min(5)]
        );
        ensure!(requests > 100, "{requests} requests are no load");
        Ok(done)
    }

    /// Waits until so many more requests were made.
    fn wait(&self, more: u64) {
        let until = self.requests.load(Ordering::Relaxed) + more;
        while self.requests.load(Ordering::Relaxed) < until {
            thread::sleep(Duration::from_millis(10));
        }
    }
}

fn nothing_fails_while_certificates_are_replaced(client: &Workload, address: Ipv4Addr) -> Result<()> {
    let before = client.agent.processes()?;
    Load::during("new certificates", client, address, |_| {
        let mut certificates = BTreeSet::new();
        eventually("certificates to be replaced", Duration::from_secs(120), || {
            certificates.extend(client.agent.certificates()?);
            ensure!(certificates.len() >= CERTIFICATES, "{} certificates", certificates.len());
            Ok(())
        })
    })?;
    assert_eq!(client.agent.processes()?, before, "nothing was restarted");
    Ok(())
}

/// Another root takes over, and its files take the place of the old ones, as the instructions have it.
fn nothing_fails_while_the_root_is_replaced(
    cluster: &Cluster<'_>,
    client: &Workload,
    server: &Server,
    address: Ipv4Addr,
) -> Result<()> {
    let agents = [&client.agent, &server.workload.agent];
    let before = [agents[0].processes()?, agents[1].processes()?];
    let old = client.agent.roots()?;
    ensure!(old.len() == 1 && server.workload.agent.roots()? == old, "{old:?}");
    Load::during("another root", client, address, |load| {
        let next = cluster.authority().join("next");
        fs::create_dir(&next)?;
        let mut most = 0;
        eventually("another root", ROTATION_LIMIT, || {
            let (progress, roots) = (cluster.rotation()?, client.agent.roots()?);
            most = most.max(roots.len());
            ensure!(
                progress.starts_with("stable") && roots.is_disjoint(&old),
                "{} roots: {progress}",
                roots.len()
            );
            Ok(())
        })?;
        ensure!(most == 2, "there was no time at which both were trusted");
        for file in fs::read_dir(&next)? {
            let file = file?;
            fs::rename(file.path(), cluster.authority().join(file.file_name()))?;
        }
        fs::remove_dir(&next)?;
        // What rests on the old root, or on a mixture of files, would show: every certificate is replaced.
        let mut certificates = client.agent.certificates()?;
        let enough = certificates.len() + CERTIFICATES;
        eventually("certificates of the new root", PATIENCE * 2, || {
            certificates.extend(client.agent.certificates()?);
            ensure!(certificates.len() >= enough, "{} certificates", certificates.len());
            Ok(())
        })?;
        load.wait(200);
        Ok(())
    })?;
    for agent in agents {
        let roots = agent.roots()?;
        ensure!(roots.len() == 1 && roots.is_disjoint(&old), "{roots:?}");
    }
    assert_eq!([agents[0].processes()?, agents[1].processes()?], before, "nothing was restarted");
    Ok(())
}

/// Another pod takes over, and the old one ends as Kubernetes ends pods: its endpoint goes, and its containers are told to
/// end, at the same time.
fn nothing_fails_while_a_workload_is_replaced(
    cluster: &Cluster<'_>,
    client: &Workload,
    address: Ipv4Addr,
    old: Server,
) -> Result<()> {
    let new = Load::during("another pod", client, address, |load| {
        let new = Server::start(cluster, "server-2")?;
        cluster.service("server", &[&old.workload, &new.workload])?;
        eventually("the new pod to be used", PATIENCE, || {
            ensure!(new.requests() > 0, "no requests yet");
            Ok(())
        })?;
        let Server { workload, http, .. } = old;
        let Workload { agent, .. } = workload;
        thread::scope(|scope| -> Result<()> {
            let started = Instant::now();
            let ended = scope.spawn(move || agent.terminate(Duration::from_secs(30)));
            cluster.service("server", &[&new.workload])?;
            let log = ended.join().map_err(|_| anyhow::anyhow!("the agent was not ended"))??;
            ensure!(log.contains("the drain is over"), "no drain: {log}");
            println!("the old proxy took {:?} to end", started.elapsed());
            Ok(())
        })?;
        drop(http);
        load.wait(200);
        Ok(new)
    })?;
    let answer = get(&client.pod, address, 80, SERVER)?;
    ensure!(answer.body.starts_with("server-2 "), "{answer:?}");
    drop(new);
    Ok(())
}

/// A virtual machine has a certificate instead of a pod: it was given one by a token once, keeps it in files, and is known
/// by it again after a restart.
fn a_machine_without_kubernetes_is_in_the_mesh(cluster: &Cluster<'_>, client: &Workload) -> Result<()> {
    let variables = [("OUTPUT_CERTS", "./certs".to_owned()), ("PROV_CERT", "./certs".to_owned())];
    let address = Ipv4Addr::new(10, 96, 255, 9);
    let (pod, token) = cluster.machine("machine", address)?;
    // As the instructions for virtual machines have it.
    let roots = [("certs/root-cert.pem", cluster.roots()?)];
    let first = cluster.proxy(pod, "machine", &token, &variables, &roots)?;
    const FILES: [&str; 3] = ["certs/cert-chain.pem", "certs/key.pem", "certs/root-cert.pem"];
    let kept = FILES.map(|path| first.agent.file(path).map(|text| (path, text)));
    let kept = kept.into_iter().collect::<Result<Vec<_>>>().context("the certificate is kept")?;
    let Workload { pod, agent } = first;
    agent.terminate(Duration::from_secs(30))?;
    let again = cluster.proxy(pod, "machine", "", &variables, &kept)?;
    let host = "machine.shop.svc.cluster.local";
    let _app = InPod::new(&again.pod, || {
        App::http((Ipv4Addr::UNSPECIFIED, 8000).into(), |request| answer("machine", request))
    })?;
    let answer = eventually("the machine to answer", PATIENCE, || {
        let answer = get(&client.pod, address, 80, host)?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(answer)
    })?;
    ensure!(answer.body.contains("/sa/client"), "{answer:?}");
    // It goes on being somebody after its first certificate.
    let before = again.agent.certificates()?;
    eventually("a certificate by a certificate", PATIENCE, || {
        let now = again.agent.certificates()?;
        ensure!(now.is_disjoint(&before), "{now:?}");
        Ok(())
    })?;
    Ok(())
}
