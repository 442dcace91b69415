//! A real API server: what it accepts and refuses, and weftd following it, through its failures too.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use e2e::edits::{Cluster, Options, Rollout, Target};
use e2e::network::Network;
use e2e::weftd::Weftd;
use e2e::{proxy, repository};
use testkit::rig::{ApiServer, Etcd};

/// How often the API server is killed.
const KILLS: u16 = 20;
/// How many edits are made from one kill to the next.
const EDITS_PER_KILL: u16 = 5;

#[test]
fn crds_and_samples_are_accepted_and_what_is_bad_is_refused() {
    let etcd = Etcd::start().unwrap();
    let server = server_with_crds(&etcd);
    for folder in samples() {
        let apply = ["apply", "-f", &folder.display().to_string()];
        let said = server.kubectl_of_admin().run_with_warnings(&apply).unwrap();
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
fn edits_by_kubectl_fail_no_request_and_nothing_is_lost_while_the_api_server_is_killed() {
    let etcd = Etcd::start().unwrap();
    let mut server = server_with_crds(&etcd);
    let options = Options { seed: 1, clients: 2 };
    let mut rollout = Rollout::start(Cluster::new(&server).unwrap(), &options).unwrap();

    let responses = rollout.watch_responses().unwrap();
    let (never_empty, stop) = (rollout.never_empty(), AtomicBool::new(false));
    let watch = || {
        let mut probes = 0;
        while !stop.load(Ordering::Relaxed) {
            never_empty()?;
            probes += 1;
            thread::sleep(Duration::from_millis(20));
        }
        anyhow::Ok(probes)
    };
    let (edited, probes) = thread::scope(|scope| {
        let watch = scope.spawn(watch);
        let edited = (1..=KILLS).try_for_each(|kill| {
            edit_through_a_crash(&mut server, &mut rollout).with_context(|| format!("kill {kill}"))
        });
        stop.store(true, Ordering::Relaxed);
        (edited, watch.join().unwrap())
    });
    edited.unwrap_or_else(|error| panic!("{error:#}\n{}", rollout.log()));
    let probes = probes.unwrap_or_else(|error| panic!("{error:#}\n{}", rollout.log()));

    rollout.settle().unwrap();
    rollout.ensure_nothing_is_left().unwrap();
    assert!(rollout.failures().is_empty(), "{}", rollout.report());
    let responses = responses.check().unwrap_or_else(|error| panic!("{error:#}\n{}", rollout.log()));
    let (network, arguments) = (Network::claim().unwrap(), rollout.target().weftd_arguments());
    let weftd = Weftd::start_with(&network, &arguments).unwrap();
    rollout.ensure_same_from_scratch(&proxy::start_gateway(weftd.grpc()).unwrap()).unwrap();
    println!(
        "{} requests, 0 failed, {probes} probes, {responses} responses; {}",
        rollout.requests(),
        rollout.settling()
    );
    assert!(rollout.requests() > 1_000 && probes > 100 && responses > 20);
}

/// Kills the API server a moment after an edit, and goes on with edits while it starts again.
fn edit_through_a_crash(server: &mut ApiServer, rollout: &mut Rollout<Cluster>) -> anyhow::Result<()> {
    thread::sleep(Duration::from_millis(rollout.below(300)));
    thread::scope(|scope| {
        let restart = scope.spawn(|| server.restart());
        let edited = (0..EDITS_PER_KILL).try_for_each(|_| rollout.edit().map(drop));
        restart.join().expect("it does not panic")?;
        edited
    })
}

fn server_with_crds(etcd: &Etcd) -> ApiServer {
    let server = ApiServer::start(etcd).unwrap();
    server.install_definitions().unwrap();
    // weftd keeps its authority there, and is not ready without.
    server.kubectl(&["create", "namespace", "istio-system"]).unwrap();
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
