//! weftd on a directory: what happens when it restarts, when files are bad, and when it cannot start.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::TcpListener;
use std::time::Duration;

use anyhow::{bail, ensure};
use e2e::config::Config;
use e2e::network::Network;
use e2e::weftd::{self, Weftd};
use e2e::{PATIENCE, eventually, proxy};
use testkit::rig::http::Request;
use testkit::rig::{Envoy, HttpEcho};

const SHIFTING: &str = "traffic-shifting/traffic-shifting.yaml";
const FAULT: &str = "fault/fault.yaml";

/// Two samples behind a gateway.
struct World {
    network: Network,
    config: Config,
    weftd: Option<Weftd>,
    gateway: Envoy,
    _apps: Vec<HttpEcho>,
}

impl World {
    fn start() -> Self {
        let network = Network::claim().unwrap();
        let config = Config::new().unwrap();
        for sample in ["traffic-shifting", "fault"] {
            config.add_sample(sample, &network).unwrap();
        }
        let apps = [(2, 1, "v1"), (2, 2, "v2"), (4, 1, "v1")];
        let apps = apps.map(|(third, fourth, version)| {
            HttpEcho::start("echo", version, network.socket(third, fourth, 8000)).unwrap()
        });
        let weftd = Weftd::start(config.path(), &network).unwrap();
        let gateway = proxy::start_gateway(weftd.grpc()).unwrap();
        let world = Self { network, config, weftd: Some(weftd), gateway, _apps: apps.into() };
        world.wait_for("traffic-shifting", 200);
        world.wait_for("fault", 200);
        world
    }

    fn status(&self, sample: &str) -> anyhow::Result<u16> {
        let request = Request::get("/").header("host", &format!("{sample}.samples.example"));
        Ok(request.send(self.network.gateway(8080))?.status)
    }

    fn wait_for(&self, sample: &str, status: u16) {
        eventually(&format!("{status} from {sample}"), PATIENCE, || {
            let got = self.status(sample)?;
            ensure!(got == status, "{got}");
            Ok(())
        })
        .unwrap();
    }

    /// Makes the plain route of the sample `fault` answer `status` by itself, and waits until it does.
    fn abort_with(&self, status: u16) {
        let text = self.config.read(FAULT).unwrap();
        let (before, _) = text.split_once("  - name: plain\n").unwrap();
        let plain = format!("  - name: plain\n    directResponse:\n      status: {status}\n");
        self.config.write(FAULT, &format!("{before}{plain}")).unwrap();
        self.wait_for("fault", status);
    }

    fn log(&self) -> String {
        self.weftd.as_ref().unwrap().log()
    }

    /// Returns how many updates of each type Envoy has accepted.
    fn updates(&self) -> BTreeMap<&'static str, u64> {
        let mut updates = BTreeMap::from([("cds", 0), ("lds", 0), ("rds", 0), ("eds", 0)]);
        for (name, value) in self.gateway.stats("").unwrap() {
            if !name.ends_with(".update_success") {
                continue;
            }
            let kind = match name.as_str() {
                "cluster_manager.cds.update_success" => "cds",
                "listener_manager.lds.update_success" => "lds",
                name if name.contains(".rds.") => "rds",
                name if name.starts_with("cluster.") => "eds",
                _ => continue,
            };
            *updates.get_mut(kind).unwrap() += value;
        }
        updates
    }
}

#[test]
fn after_a_restart_an_envoy_is_sent_nothing_but_its_endpoints() {
    let mut world = World::start();
    let before = world.updates();
    assert!(before.values().all(|count| *count > 0), "{before:?}");

    world.weftd.take().unwrap().stop().unwrap();
    eventually("the end of the stream", PATIENCE, || {
        let connected = world.gateway.stat("control_plane.connected_state")?;
        ensure!(connected == Some(0), "{connected:?}");
        Ok(())
    })
    .unwrap();
    // Envoys go on without a control plane.
    assert_eq!(world.status("traffic-shifting").unwrap(), 200);
    world.weftd = Some(Weftd::start(world.config.path(), &world.network).unwrap());
    eventually("endpoints", PATIENCE, || {
        let now = world.updates();
        ensure!(now["eds"] > before["eds"], "{now:?}");
        Ok(())
    })
    .unwrap();
    // What is sent in answer to an edit comes after whatever the new stream was to be sent.
    world.abort_with(404);
    let after = world.updates();
    assert_eq!((after["cds"], after["lds"]), (before["cds"], before["lds"]), "{before:?} {after:?}");
    assert_eq!(after["rds"], before["rds"] + 1, "the edit, and nothing else: {before:?} {after:?}");
    assert_eq!(world.status("traffic-shifting").unwrap(), 200);
}

#[test]
fn a_file_that_is_not_yaml_keeps_what_was_good_and_harms_no_other() {
    let world = World::start();
    let good = world.config.read(SHIFTING).unwrap();
    world.config.write(SHIFTING, &good.replace("spec:", "spec: [")).unwrap();
    eventually("a message", PATIENCE, || {
        ensure!(world.log().contains(SHIFTING), "{}", world.log());
        Ok(())
    })
    .unwrap();
    assert_eq!(world.status("traffic-shifting").unwrap(), 200);
    // Others are edited as before.
    world.abort_with(410);
    assert_eq!(world.status("traffic-shifting").unwrap(), 200);
    // And it is read again once it is good.
    world
        .config
        .write(SHIFTING, &good.replace("traffic-shifting.samples.example", "moved.samples.example"))
        .unwrap();
    world.wait_for("moved", 200);
    world.wait_for("traffic-shifting", 404);
}

#[test]
fn a_bad_object_keeps_its_last_good_form() {
    let world = World::start();
    let good = world.config.read(SHIFTING).unwrap();
    world.config.write(SHIFTING, &good.replace("weight: 80", "weight: -80")).unwrap();
    eventually("a message", PATIENCE, || {
        let log = world.log();
        ensure!(log.contains("weight"), "{log}");
        Ok(())
    })
    .unwrap();
    world.abort_with(409);
    assert_eq!(world.status("traffic-shifting").unwrap(), 200);
}

#[test]
fn the_last_good_form_of_what_is_bad_outlives_a_restart() {
    let mut world = World::start();
    let state = world.config.path().with_extension("state");
    let flags = |world: &World| -> Vec<OsString> {
        vec!["--config".into(), world.config.path().into(), "--state-dir".into(), state.clone().into()]
    };
    world.weftd.take().unwrap().stop().unwrap();
    world.weftd = Some(Weftd::start_with(&world.network, &flags(&world)).unwrap());
    // One object that is refused, and one file that cannot be read.
    let (shifting, fault) = (world.config.read(SHIFTING).unwrap(), world.config.read(FAULT).unwrap());
    world.config.write(SHIFTING, &shifting.replace("weight: 80", "weight: -80")).unwrap();
    world.config.write(FAULT, &fault.replace("spec:", "spec: [")).unwrap();
    let file = state.join("last-good.json");
    eventually("what is kept", PATIENCE, || {
        let text = std::fs::read_to_string(&file)?;
        ensure!(text.contains("traffic-shifting.samples.example") && text.contains(FAULT), "{text}");
        Ok(())
    })
    .unwrap();

    let weftd = world.weftd.take().unwrap();
    weftd.stop().unwrap();
    world.weftd = Some(Weftd::start_with(&world.network, &flags(&world)).unwrap());
    // A gateway that has nothing yet gets all of it from this weftd.
    world.gateway = proxy::start_gateway(world.weftd.as_ref().unwrap().grpc()).unwrap();
    world.wait_for("traffic-shifting", 200);
    world.wait_for("fault", 200);
    let findings = Request::get("/debug/findingz").send(world.weftd.as_ref().unwrap().monitoring()).unwrap();
    let text = findings.text();
    assert!(text.contains("weight") && text.contains("\"servesLastGood\":true"), "{text}");

    // Put right, nothing has to be kept any more.
    world.config.write(SHIFTING, &shifting).unwrap();
    world.config.write(FAULT, &fault).unwrap();
    eventually("nothing to keep", PATIENCE, || {
        ensure!(!file.exists(), "{}", std::fs::read_to_string(&file)?);
        Ok(())
    })
    .unwrap();
    std::fs::remove_dir_all(&state).unwrap();
}

#[test]
fn configuration_that_appears_later_is_picked_up() {
    let world = World::start();
    assert_eq!(world.status("timeouts").unwrap(), 404);
    let _app = HttpEcho::start("echo", "v1", world.network.socket(7, 1, 8000)).unwrap();
    world.config.add_sample("timeouts", &world.network).unwrap();
    world.wait_for("timeouts", 200);
    world.config.remove("timeouts/timeouts.yaml").unwrap();
    world.wait_for("timeouts", 404);
}

#[test]
fn a_port_in_use_is_a_clear_error() {
    let network = Network::claim().unwrap();
    let config = Config::new().unwrap();
    let taken = TcpListener::bind(network.socket(255, 2, 15010)).unwrap().local_addr().unwrap();
    let _taken = TcpListener::bind(taken).unwrap();
    for flag in ["--grpc-addr", "--http-addr", "--monitoring-addr"] {
        let addresses = [("--grpc-addr", 15010), ("--http-addr", 8080), ("--monitoring-addr", 15014)];
        let mut arguments = vec!["--config".to_owned(), config.path().display().to_string()];
        for (name, port) in addresses {
            let address = if name == flag { taken } else { network.socket(255, 1, port) };
            arguments.extend([name.to_owned(), address.to_string()]);
        }
        let (code, errors) = fails(&arguments).unwrap();
        assert_eq!(code, Some(1), "{flag}: {errors}");
        assert!(errors.contains(&taken.to_string()) && errors.contains("in use"), "{flag}: {errors}");
    }
}

#[test]
fn what_weftd_cannot_start_with_is_one_clear_line_and_the_right_status() {
    let network = Network::claim().unwrap();
    let config = Config::new().unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = scratch.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let here = config.path().display().to_string();
    let nobody = "apiVersion: v1
kind: Config
clusters: [{name: a, cluster: {server: 'https://127.0.0.1:1'}}]
users: [{name: a, user: {}}]
contexts: [{name: a, context: {cluster: a, user: a}}]
current-context: a
";
    let (unclosed, port, kubeconfig) =
        (file("unclosed", "a: ["), file("port", "proxyListenPort: 0"), file("kubeconfig", nobody));
    // The arguments, and what the line must say.
    let cases: [(&[&str], &[&str]); 8] = [
        (&["--config", "/nowhere/at/all"], &["/nowhere/at/all", "--config"]),
        (&["--config", &here, "--state-dir", &unclosed], &["unclosed", "--state-dir"]),
        (&["--config", &here, "--mesh-config", "/nowhere"], &["/nowhere", "--mesh-config"]),
        (&["--config", &here, "--mesh-config", &unclosed], &["unclosed:1", "bracket"]),
        (&["--config", &here, "--mesh-config", &port], &["proxyListenPort", "range"]),
        (&["--kubeconfig", "/nowhere"], &["/nowhere", "No such file"]),
        (&["--kubeconfig", &unclosed], &["unclosed", "line 1"]),
        (&["--kubeconfig", &kubeconfig], &["https://127.0.0.1:1/", "refused"]),
    ];
    for (arguments, expected) in cases {
        let mut arguments: Vec<String> = arguments.iter().map(|text| (*text).to_owned()).collect();
        for (name, port) in [("--grpc-addr", 15010), ("--http-addr", 8080), ("--monitoring-addr", 15014)] {
            arguments.extend([name.to_owned(), network.socket(255, 1, port).to_string()]);
        }
        arguments.extend(["--log-level", "error"].map(str::to_owned));
        let (code, errors) = fails(&arguments).unwrap();
        assert_eq!((code, errors.lines().count()), (Some(1), 1), "{arguments:?}: {errors}");
        assert!(errors.starts_with("weftd: "), "{errors}");
        assert!(expected.iter().all(|part| errors.contains(part)), "{expected:?}: {errors}");
    }
    for flags in [&["--no-such-flag"][..], &["--domain", "a b"], &["--config", "a", "--kubeconfig", "b"]] {
        let flags: Vec<String> = flags.iter().map(|text| (*text).to_owned()).collect();
        let (code, errors) = fails(&flags).unwrap();
        assert_eq!(code, Some(2), "{errors}");
        assert!(errors.contains(&flags[0]), "{errors}");
    }
}

/// Runs weftd, which must end by itself with an error, and returns its exit code and what it said.
fn fails(arguments: &[String]) -> anyhow::Result<(Option<i32>, String)> {
    let ended = weftd::run(arguments, Duration::from_secs(20))?;
    let Some(output) = ended else { bail!("weftd {arguments:?} did not end") };
    let said =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    ensure!(!output.status.success(), "weftd {arguments:?} succeeded: {said}");
    Ok((output.status.code(), said))
}
