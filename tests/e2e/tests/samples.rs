//! Every sample, through a real Envoy as gateway and through one as sidecar.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use e2e::config::Config;
use e2e::network::Network;
use e2e::weftd::Weftd;
use e2e::{PATIENCE, eventually, proxy};
use serde_json::Value;
use testkit::rig::http::{Request, Response};
use testkit::rig::pki::Authority;
use testkit::rig::{HttpEcho, TcpEcho, loopback};

/// Folders whose Service `echo` has the versions v1 and v2 at `127.N.third.1` and `.2`, port 8000.
const ECHO: &[(&str, u8, &[&str])] = &[
    ("traffic-shifting", 2, &["v1", "v2"]),
    ("header-routing", 3, &["v1", "v2"]),
    ("fault", 4, &["v1"]),
    ("mirror", 5, &["v1", "v2"]),
    ("retries", 6, &["v1", "v2"]),
    ("timeouts", 7, &["v1"]),
    ("circuit-breaking", 8, &["v1"]),
];

type Check = fn(&World, &Entry) -> anyhow::Result<()>;

const CHECKS: &[(&str, Check)] = &[
    ("bookinfo", bookinfo),
    ("traffic-shifting", traffic_shifting),
    ("header-routing", header_routing),
    ("fault", fault),
    ("mirror", mirror),
    ("retries", retries),
    ("timeouts", timeouts),
    ("circuit-breaking", circuit_breaking),
    ("external-services", external_services),
    ("tls-passthrough", tls_passthrough),
    ("tcp", tcp),
];

#[test]
fn samples_through_a_gateway() {
    let world = World::start().unwrap();
    let _envoy = proxy::start_gateway(world.weftd.grpc()).unwrap();
    let gateway = |port| world.network.gateway(port);
    world.check(&Entry { kind: Kind::Gateway, http: gateway(8080), tls: gateway(8443), tcp: gateway(9000) });
}

#[test]
fn samples_through_a_sidecar() {
    let world = World::start().unwrap();
    let ports = [(8000, "HTTP"), (9080, "HTTP"), (9000, "TCP"), (8443, "TLS")];
    world.config.write("client.yaml", &proxy::bound_sidecar("client", &ports, &world.network)).unwrap();
    let ip = world.network.ip(50, 1).to_string();
    let _envoy = proxy::start(&proxy::sidecar_node("client", "client", &ip), world.weftd.grpc()).unwrap();
    let listener = |port| world.network.socket(253, 1, port);
    world.check(&Entry {
        kind: Kind::Sidecar,
        http: listener(8000),
        tls: listener(8443),
        tcp: listener(9000),
    });
}

/// An app behind its own sidecar: what arrives at the pod's address goes through Envoy to the app.
#[test]
fn a_sidecar_takes_what_is_sent_to_its_pod() {
    let network = Network::claim().unwrap();
    let config = Config::new().unwrap();
    config.add_sample("bookinfo", &network).unwrap();
    let port = loopback::free_port(Ipv4Addr::LOCALHOST).unwrap();
    let pod = network.ip(1, 1);
    let ingress = format!(
        "apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: productpage, namespace: default}}
spec:
  workloadSelector: {{labels: {{app: productpage}}}}
  ingress:
  - port: {{number: 9080, name: http, protocol: HTTP}}
    bind: {pod}
    captureMode: NONE
    defaultEndpoint: 127.0.0.1:{port}
"
    );
    config.write("ingress.yaml", &ingress).unwrap();
    let app = HttpEcho::start("productpage", "v1", SocketAddr::from((Ipv4Addr::LOCALHOST, port))).unwrap();
    let weftd = Weftd::start(config.path(), &network).unwrap();
    let node = proxy::sidecar_node("productpage", "default", &pod.to_string());
    let _sidecar = proxy::start(&node, weftd.grpc()).unwrap();
    let _gateway = proxy::start_gateway(weftd.grpc()).unwrap();
    let answer = eventually("the product page", PATIENCE, || {
        let answer = Request::get("/productpage").send(network.gateway(8080))?;
        ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
        Ok(answer)
    })
    .unwrap();
    assert_eq!(answer.json().unwrap()["name"], "productpage");
    assert_eq!(app.requests(), 1);
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Gateway,
    Sidecar,
}

/// Where a client gets in.
struct Entry {
    kind: Kind,
    http: SocketAddr,
    tls: SocketAddr,
    tcp: SocketAddr,
}

impl Entry {
    /// Returns the name that clients know the sample by.
    fn host(&self, sample: &str) -> String {
        match self.kind {
            Kind::Gateway => format!("{sample}.samples.example"),
            Kind::Sidecar => format!("echo.{sample}.svc.cluster.local:8000"),
        }
    }

    fn send(&self, sample: &str, path: &str, headers: &[(&str, &str)]) -> anyhow::Result<Response> {
        let mut request = Request::get(path).header("host", &self.host(sample));
        for (name, value) in headers {
            request = request.header(name, value);
        }
        Ok(request.send(self.http)?)
    }

    /// Sends requests until the first success, which says that the sample is being served.
    fn wait(&self, sample: &str) -> anyhow::Result<()> {
        eventually(sample, PATIENCE, || {
            let answer = self.send(sample, "/", &[])?;
            ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
            Ok(())
        })
    }
}

fn version(answer: &Response) -> anyhow::Result<String> {
    ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
    Ok(answer.json()?["version"].as_str().context("no version")?.to_owned())
}

/// weftd with all samples, and all their apps.
struct World {
    network: Network,
    config: Config,
    weftd: Weftd,
    echo: BTreeMap<(&'static str, &'static str), HttpEcho>,
    _bookinfo: Vec<HttpEcho>,
    _external: Vec<HttpEcho>,
    authority: Authority,
    _secure: HttpEcho,
    _tcp: Vec<TcpEcho>,
}

impl World {
    fn start() -> anyhow::Result<Self> {
        let network = Network::claim()?;
        let config = Config::new()?;
        for (sample, _) in CHECKS {
            config.add_sample(sample, &network)?;
        }
        let mut echo = BTreeMap::new();
        for &(sample, third, versions) in ECHO {
            for (fourth, &version) in (1..).zip(versions) {
                let app = HttpEcho::start(sample, version, network.socket(third, fourth, 8000))?;
                echo.insert((sample, version), app);
            }
        }
        let mut bookinfo = Vec::new();
        let pods = [
            ("productpage", "v1"),
            ("details", "v1"),
            ("ratings", "v1"),
            ("reviews", "v1"),
            ("reviews", "v2"),
            ("reviews", "v3"),
        ];
        for (fourth, (name, version)) in (1..).zip(pods) {
            bookinfo.push(HttpEcho::start(name, version, network.socket(1, fourth, 9080))?);
        }
        let port = loopback::free_port(Ipv4Addr::LOCALHOST)?;
        let file = "external-services/external-services.yaml";
        config.replace(file, "targetPort: 8085", &format!("targetPort: {port}"))?;
        let external = vec![
            HttpEcho::start("catalogue", "v1", network.socket(10, 1, 8000))?,
            HttpEcho::start("weather", "v1", SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?,
        ];
        let authority = Authority::new("samples");
        let identity = authority.issue(
            "secure",
            &["tls-passthrough.samples.example", "secure.tls-passthrough.svc.cluster.local"],
        );
        let secure = HttpEcho::start_tls("secure", "v1", network.socket(9, 1, 8443), &identity)?;
        let tcp = vec![
            TcpEcho::start("tcp-echo", "v1", network.socket(11, 1, 9000))?,
            TcpEcho::start("tcp-echo", "v2", network.socket(11, 2, 9000))?,
        ];
        let weftd = Weftd::start(config.path(), &network)?;
        Ok(Self {
            network,
            config,
            weftd,
            echo,
            _bookinfo: bookinfo,
            _external: external,
            authority,
            _secure: secure,
            _tcp: tcp,
        })
    }

    fn app(&self, sample: &'static str, version: &'static str) -> &HttpEcho {
        &self.echo[&(sample, version)]
    }

    /// Runs every check and reports all that fail, not only the first.
    fn check(&self, entry: &Entry) {
        let mut failures = Vec::new();
        for (sample, check) in CHECKS {
            let started = Instant::now();
            match check(self, entry) {
                Ok(()) => println!("{sample}: ok ({:.1} s)", started.elapsed().as_secs_f32()),
                Err(error) => failures.push(format!("{sample}: {error:#}")),
            }
        }
        assert!(failures.is_empty(), "{}\n--- weftd:\n{}", failures.join("\n"), self.weftd.log());
    }
}

fn bookinfo(world: &World, entry: &Entry) -> anyhow::Result<()> {
    if entry.kind == Kind::Gateway {
        eventually("the product page", PATIENCE, || {
            let answer = Request::get("/productpage").send(entry.http)?;
            ensure!(answer.status == 200 && answer.json()?["name"] == "productpage", "{}", answer.text());
            Ok(())
        })?;
        let elsewhere = Request::get("/admin").send(entry.http)?;
        ensure!(elsewhere.status == 404, "/admin is not routed: {}", elsewhere.status);
        return Ok(());
    }
    let reviews = || {
        let request = Request::get("/reviews/0").header("host", "reviews.default.svc.cluster.local:9080");
        version(&request.send(world.network.socket(253, 1, 9080))?)
    };
    eventually("reviews", PATIENCE, reviews)?;
    // 90 and 10 of 100; what five standard deviations exclude happens once in a million runs.
    shares(200, reviews, &[("v1", 0.90), ("v2", 0.10)])
}

/// Checks that answers are shared out as the weights say.
fn shares(
    count: u32,
    mut ask: impl FnMut() -> anyhow::Result<String>,
    expected: &[(&str, f64)],
) -> anyhow::Result<()> {
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..count {
        *seen.entry(ask()?).or_default() += 1;
    }
    let count = f64::from(count);
    for (version, share) in expected {
        let got = f64::from(seen.remove(*version).unwrap_or(0));
        let deviation = (count * share * (1.0 - share)).sqrt();
        ensure!((got - count * share).abs() <= 5.0 * deviation, "{version}: {got} of {count}, not {share}");
    }
    ensure!(seen.is_empty(), "answers from elsewhere: {seen:?}");
    Ok(())
}

fn traffic_shifting(_: &World, entry: &Entry) -> anyhow::Result<()> {
    entry.wait("traffic-shifting")?;
    shares(200, || version(&entry.send("traffic-shifting", "/", &[])?), &[("v1", 0.8), ("v2", 0.2)])
}

fn header_routing(_: &World, entry: &Entry) -> anyhow::Result<()> {
    entry.wait("header-routing")?;
    let send = |path: &str, headers: &[(&str, &str)]| entry.send("header-routing", path, headers);
    for _ in 0..5 {
        let tester = send("/", &[("end-user", "tester")])?;
        ensure!(version(&tester)? == "v2", "a tester got v1");
        ensure!(tester.header("x-preview") == Some("yes"), "no x-preview: {:?}", tester.headers);
        ensure!(version(&send("/?preview=true", &[])?)? == "v2", "a preview got v1");
        ensure!(version(&send("/?preview=false", &[("end-user", "nobody")])?)? == "v1", "all others get v1");
        let beta = send("/beta/a", &[])?;
        ensure!(version(&beta)? == "v2" && beta.json()?["path"] == "/a", "not rewritten: {}", beta.text());
        let plain = send("/", &[])?;
        ensure!(version(&plain)? == "v1" && plain.header("x-preview").is_none(), "{:?}", plain.headers);
    }
    Ok(())
}

fn fault(world: &World, entry: &Entry) -> anyhow::Result<()> {
    entry.wait("fault")?;
    let quick = Instant::now();
    version(&entry.send("fault", "/", &[])?)?;
    ensure!(quick.elapsed() < Duration::from_millis(450), "a plain request took {:?}", quick.elapsed());
    let delayed = Instant::now();
    version(&entry.send("fault", "/", &[("x-fault", "delay")])?)?;
    ensure!(delayed.elapsed() >= Duration::from_millis(490), "a delayed one took {:?}", delayed.elapsed());
    let before = world.app("fault", "v1").requests();
    let aborted = entry.send("fault", "/", &[("x-fault", "abort")])?;
    ensure!(aborted.status == 418, "not aborted: {}", aborted.status);
    ensure!(world.app("fault", "v1").requests() == before, "an aborted request reached the app");
    Ok(())
}

fn mirror(world: &World, entry: &Entry) -> anyhow::Result<()> {
    entry.wait("mirror")?;
    let shadow = world.app("mirror", "v2");
    let before = shadow.requests();
    // Mirrored requests are on their way when the answer is there already, so some of `wait` may still come.
    let count = 20;
    for _ in 0..count {
        ensure!(version(&entry.send("mirror", "/", &[])?)? == "v1", "the mirror answered");
    }
    eventually("the copies", Duration::from_secs(5), || {
        let copies = shadow.requests() - before;
        ensure!(copies >= count, "{copies} copies of {count}");
        Ok(())
    })
}

fn retries(world: &World, entry: &Entry) -> anyhow::Result<()> {
    entry.wait("retries")?;
    let broken = world.app("retries", "v2");
    broken.set_status(503);
    let before = broken.requests();
    for _ in 0..40 {
        ensure!(version(&entry.send("retries", "/", &[])?)? == "v1", "v2 answers 503 only");
    }
    let met = broken.requests() - before;
    broken.set_status(200);
    ensure!(met > 0, "no request met v2, so nothing was tried again");
    Ok(())
}

fn timeouts(_: &World, entry: &Entry) -> anyhow::Result<()> {
    entry.wait("timeouts")?;
    let started = Instant::now();
    let answer = entry.send("timeouts", "/delay/3000", &[])?;
    ensure!(answer.status == 504, "not given up on: {}", answer.status);
    let took = started.elapsed();
    ensure!((450..2500).contains(&took.as_millis()), "given up on after {took:?}, not half a second");
    version(&entry.send("timeouts", "/report/delay/1000", &[])?).context("reports have ten seconds")?;
    Ok(())
}

fn circuit_breaking(_: &World, entry: &Entry) -> anyhow::Result<()> {
    entry.wait("circuit-breaking")?;
    let answers = thread::scope(|scope| {
        let threads: Vec<_> =
            (0..10).map(|_| scope.spawn(|| entry.send("circuit-breaking", "/delay/700", &[]))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect::<anyhow::Result<Vec<_>>>()
    })?;
    let good = answers.iter().filter(|answer| answer.status == 200).count();
    let refused =
        answers.iter().filter(|a| a.status == 503 && a.header("x-envoy-overloaded") == Some("true")).count();
    ensure!(good + refused == 10, "{:?}", answers.iter().map(|answer| answer.status).collect::<Vec<_>>());
    // One is served and one waits. A worker may let one more in before it hears of the others.
    ensure!((1..=5).contains(&good), "{good} of ten were let in");
    version(&entry.send("circuit-breaking", "/", &[])?).context("closed again afterwards")?;
    Ok(())
}

fn external_services(_: &World, entry: &Entry) -> anyhow::Result<()> {
    let port = if entry.kind == Kind::Sidecar { ":8000" } else { "" };
    let ask = |name: &str| -> anyhow::Result<Value> {
        eventually(name, PATIENCE, || {
            let request = Request::get("/").header("host", &format!("{name}.external.example{port}"));
            let answer = request.send(entry.http)?;
            ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
            Ok(answer.json()?)
        })
    };
    let catalogue = ask("catalogue")?;
    ensure!(catalogue["name"] == "catalogue", "{catalogue}");
    ensure!(catalogue["headers"]["x-partner"][0] == "weft-samples", "{catalogue}");
    let weather = ask("weather")?;
    ensure!(weather["name"] == "weather", "{weather}");
    Ok(())
}

fn tls_passthrough(world: &World, entry: &Entry) -> anyhow::Result<()> {
    let name = match entry.kind {
        Kind::Gateway => "tls-passthrough.samples.example",
        Kind::Sidecar => "secure.tls-passthrough.svc.cluster.local",
    };
    let client = world.authority.client_config();
    // The certificate is the app's own, so nobody between has opened the connection.
    let answer = eventually("an answer over TLS", PATIENCE, || {
        Ok(Request::get("/").header("host", name).send_tls(entry.tls, name, client.clone())?)
    })?;
    ensure!(answer.json()?["sni"] == name, "{}", answer.text());
    if entry.kind == Kind::Gateway {
        let other = Request::get("/").send_tls(entry.tls, "other.samples.example", client);
        ensure!(other.is_err(), "a name that nobody routes got an answer");
    }
    Ok(())
}

fn tcp(_: &World, entry: &Entry) -> anyhow::Result<()> {
    let ask = || -> anyhow::Result<String> {
        let stream = TcpStream::connect(entry.tcp)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        (&stream).write_all(b"ping\n")?;
        // It greets with its name and version, and then sends back what it gets.
        let mut reader = BufReader::new(&stream);
        let mut lines = [String::new(), String::new()];
        for line in &mut lines {
            reader.read_line(line)?;
        }
        let [greeting, echo] = lines;
        ensure!(echo == "ping\n", "not echoed: {echo:?} after {greeting:?}");
        let version = greeting.trim_end().strip_prefix("tcp-echo ");
        Ok(version.with_context(|| format!("an answer of nobody: {greeting:?}"))?.to_owned())
    };
    eventually("TCP", PATIENCE, ask)?;
    match entry.kind {
        Kind::Gateway => shares(200, ask, &[("v1", 0.8), ("v2", 0.2)]),
        // The weights are the gateway's; in the mesh the service is shared out evenly.
        Kind::Sidecar => shares(200, ask, &[("v1", 0.5), ("v2", 0.5)]),
    }
}
