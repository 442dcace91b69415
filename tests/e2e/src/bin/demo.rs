//! The demo: bookinfo behind a real Envoy, configured by weftd from a directory of manifests.
//!
//! ```text
//! curl ──▶ gateway (Envoy) ──▶ productpage ──▶ sidecar (Envoy) ──▶ details, reviews v1, v2, v3, ratings
//!                  ▲                                ▲
//!                  └──────────── weftd ─────────────┘
//! ```

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Parser;
use e2e::app::{Answer, App};
use e2e::client::Client;
use e2e::config::Config;
use e2e::network::Network;
use e2e::weftd::Weftd;
use e2e::{PATIENCE, eventually, proxy};
use testkit::rig::Envoy;
use testkit::rig::http::Request;

/// The file whose weights the demo is about.
const REVIEWS: &str = "bookinfo/virtual-service-reviews.yaml";

/// Starts weftd on a copy of samples/bookinfo, with real Envoys and small stand-in apps on loopback.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask demo")]
struct Args {
    /// Do what the demo tells you to do, say what came of it, and exit
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    e2e::exit(run(&Args::parse()))
}

fn run(args: &Args) -> anyhow::Result<()> {
    let demo = Demo::start()?;
    if args.check { demo.check() } else { demo.show() }
}

/// All that runs.
struct Demo {
    network: Network,
    config: Config,
    load: Load,
    // Dropped in this order: clients before servers.
    _gateway: Envoy,
    _sidecar: Envoy,
    weftd: Weftd,
    _apps: Vec<App>,
}

impl Demo {
    fn start() -> anyhow::Result<Self> {
        e2e::weftd::executable()?;
        let started = Instant::now();
        let network = Network::claim()?;
        let config = Config::new()?;
        config.add_sample("bookinfo", &network)?;
        config.write("sidecar.yaml", &proxy::bound_sidecar("default", &[(9080, "HTTP")], &network))?;
        let apps = start_apps(&network)?;
        let weftd = Weftd::start(config.path(), &network)?;
        let sidecar = proxy::start(
            &proxy::sidecar_node("productpage", "default", &network.ip(1, 1).to_string()),
            weftd.grpc(),
        )?;
        let gateway = proxy::start_gateway(weftd.grpc())?;
        let address = network.gateway(8080);
        eventually("the product page", PATIENCE, || {
            let answer = Request::get("/productpage").send(address)?;
            ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
            Ok(())
        })
        .with_context(|| format!("weftd's log:\n{}", weftd.log()))?;
        println!("ready after {:.1} s\n", started.elapsed().as_secs_f32());
        let load = Load::start(address);
        Ok(Self { network, config, load, _gateway: gateway, _sidecar: sidecar, weftd, _apps: apps })
    }

    /// Prints what to do and what happens, until it is interrupted.
    fn show(&self) -> anyhow::Result<()> {
        let (gateway, file) = (self.network.gateway(8080), self.config.file(REVIEWS));
        println!("Ask for the product page, which asks for reviews:\n");
        println!("    curl http://{gateway}/productpage\n");
        println!("Edit the weights while the requests below flow, and watch them shift:\n");
        println!("    $EDITOR {}\n", file.display());
        println!("What weftd serves, and to whom:\n");
        println!("    curl http://{}/debug/syncz\n", self.weftd.monitoring());
        println!("Ctrl-C ends it all.\n");
        loop {
            self.load.take();
            thread::sleep(Duration::from_secs(2));
            println!("{}", self.load.take().line());
        }
    }

    /// Does what [`Demo::show`] tells people to do.
    fn check(&self) -> anyhow::Result<()> {
        let gateway = self.network.gateway(8080);
        let page = Request::get("/productpage").send(gateway)?;
        println!("curl http://{gateway}/productpage\n{}\n", page.text().trim_end());
        let nowhere = Request::get("/nowhere").send(gateway)?;
        ensure!(nowhere.status == 404, "/nowhere is not routed, yet the answer is {}", nowhere.status);

        println!("weights 90/10, as in {REVIEWS}");
        self.expect(90)?;
        let mut weights = (90, 10);
        for (v1, v2) in [(50, 50), (10, 90), (0, 100), (90, 10)] {
            let started = Instant::now();
            let weight = |v1: u32, v2: u32| {
                let part = |subset, weight| format!("        subset: {subset}\n      weight: {weight}\n");
                (part("v1", v1), part("v2", v2))
            };
            let ((old_v1, old_v2), (new_v1, new_v2)) = (weight(weights.0, weights.1), weight(v1, v2));
            let text = self.config.read(REVIEWS)?;
            ensure!(
                text.contains(&old_v1) && text.contains(&old_v2),
                "{REVIEWS} is not as expected:\n{text}"
            );
            self.config.write(REVIEWS, &text.replace(&old_v1, &new_v1).replace(&old_v2, &new_v2))?;
            weights = (v1, v2);
            println!("\nweights {v1}/{v2}, edited while requests flow");
            self.expect(v1)?;
            println!("    seen {:.1} s after the edit", started.elapsed().as_secs_f32());
        }
        let failed = self.load.failed();
        ensure!(failed.is_empty(), "{} requests failed, the first: {}", failed.len(), failed[0]);
        println!("\n{} requests, 0 failed", self.load.total());
        Ok(())
    }

    /// Waits until 300 requests in a row are shared as `v1` percent says, give or take what chance does.
    fn expect(&self, v1: u32) -> anyhow::Result<()> {
        const SAMPLE: u32 = 300;
        let seen = eventually(&format!("a share of {v1} % for v1"), PATIENCE, || {
            self.load.take();
            let seen = eventually("300 answers", PATIENCE, || {
                let seen = self.load.peek();
                ensure!(seen.total() >= SAMPLE, "only {} answers", seen.total());
                Ok(seen)
            })?;
            let share = 100.0 * f64::from(seen.of("v1")) / f64::from(seen.total());
            // Four standard deviations of a sample of 300, and one for what chance cannot do.
            let expected = f64::from(v1);
            let tolerance = 4.0 * (expected * (100.0 - expected) / f64::from(SAMPLE)).sqrt() + 0.01;
            ensure!((share - expected).abs() <= tolerance, "{}", seen.line());
            ensure!(seen.of("v3") == 0, "v3 has no weight: {}", seen.line());
            Ok(seen)
        })?;
        println!("    {}", seen.line());
        Ok(())
    }
}

/// Starts the applications of bookinfo on the addresses of their pods.
fn start_apps(network: &Network) -> anyhow::Result<Vec<App>> {
    let egress = network.socket(253, 1, 9080);
    let call = move |service: &str, path: &str| {
        let answer = Request::get(path).header("host", &format!("{service}:9080")).send(egress);
        answer.map_or_else(
            |error| (502, error.to_string()),
            |answer| (answer.status, answer.text().trim_end().to_owned()),
        )
    };
    let mut apps = vec![
        App::http(network.socket(1, 1, 9080), move |_| {
            let details = call("details", "/details/0");
            let reviews = call("reviews", "/reviews/0");
            let status = if (details.0, reviews.0) == (200, 200) { 200 } else { 502 };
            Answer::ok(format!("productpage v1\n  {}\n  {}\n", details.1, reviews.1)).status(status)
        })?,
        App::http(network.socket(1, 2, 9080), |_| Answer::ok("details v1: 200 pages, paperback\n"))?,
        App::http(network.socket(1, 3, 9080), |_| Answer::ok("ratings v1: 5 and 4 of 5\n"))?,
    ];
    for (fourth, version) in [(4, "v1"), (5, "v2"), (6, "v3")] {
        apps.push(App::http(network.socket(1, fourth, 9080), move |_| {
            if version == "v1" {
                return Answer::ok("reviews v1: well written\n");
            }
            let (status, ratings) = call("ratings", "/ratings/0");
            Answer::ok(format!("reviews {version}: well written ({ratings})\n")).status(status)
        })?);
    }
    Ok(apps)
}

/// Requests that flow all the time.
struct Load {
    state: Arc<LoadState>,
}

#[derive(Default)]
struct LoadState {
    stopping: AtomicBool,
    seen: Mutex<(Seen, Seen)>,
}

/// What came back.
#[derive(Clone, Debug, Default)]
struct Seen {
    versions: BTreeMap<String, u32>,
    failed: Vec<String>,
}

impl Load {
    fn start(gateway: std::net::SocketAddr) -> Self {
        let state = Arc::new(LoadState::default());
        for _ in 0..2 {
            let state = state.clone();
            thread::spawn(move || {
                let mut client = Client::new(gateway, Duration::from_secs(10));
                while !state.stopping.load(Ordering::Relaxed) {
                    let result = match client.get("bookinfo.example", "/productpage") {
                        Ok(answer) if answer.status == 200 => version(&answer.body).ok_or(answer.body),
                        Ok(answer) => Err(format!("{}: {}", answer.status, answer.body)),
                        Err(error) => Err(error.to_string()),
                    };
                    let mut seen = state.lock();
                    seen.0.add(&result);
                    seen.1.add(&result);
                    drop(seen);
                    thread::sleep(Duration::from_millis(3));
                }
            });
        }
        Self { state }
    }

    /// Returns what came back since this was last called.
    fn take(&self) -> Seen {
        std::mem::take(&mut self.state.lock().0)
    }

    fn peek(&self) -> Seen {
        self.state.lock().0.clone()
    }

    fn total(&self) -> u32 {
        self.state.lock().1.total()
    }

    fn failed(&self) -> Vec<String> {
        self.state.lock().1.failed.clone()
    }
}

impl LoadState {
    fn lock(&self) -> std::sync::MutexGuard<'_, (Seen, Seen)> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.state.stopping.store(true, Ordering::Relaxed);
    }
}

impl Seen {
    fn add(&mut self, result: &Result<String, String>) {
        match result {
            Ok(version) => *self.versions.entry(version.clone()).or_default() += 1,
            Err(failure) => self.failed.push(failure.clone()),
        }
    }

    fn of(&self, version: &str) -> u32 {
        self.versions.get(version).copied().unwrap_or(0)
    }

    fn total(&self) -> u32 {
        self.versions.values().sum()
    }

    fn line(&self) -> String {
        let total = self.total().max(1);
        let mut line = String::new();
        for version in ["v1", "v2", "v3"] {
            let percent = f64::from(self.of(version)) * 100.0 / f64::from(total);
            line.push_str(&format!("reviews {version} {percent:5.1} %   "));
        }
        line.push_str(&format!("{} requests, {} failed", self.total(), self.failed.len()));
        line
    }
}

/// Finds which version of reviews a product page comes from.
fn version(page: &str) -> Option<String> {
    let (_, rest) = page.split_once("reviews ")?;
    rest.split(':').next().map(str::to_owned)
}
