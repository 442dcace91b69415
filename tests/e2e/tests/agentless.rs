//! The sample of an Envoy without an agent, with a token of a real API server: its key and its roots come from weftd's secret
//! discovery service.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::client::Client;
use e2e::network::Network;
use e2e::weftd::Weftd;
use e2e::{PATIENCE, eventually, repository};
use testkit::rig::process::Scratch;
use testkit::rig::{ApiServer, Envoy, Etcd};

/// How long certificates live.
const TTL: &str = "10s";

#[test]
fn an_envoy_without_an_agent_gets_its_certificate_and_new_ones_in_time() {
    let etcd = Etcd::start().unwrap();
    let api = ApiServer::start(&etcd).unwrap();
    api.install_definitions().unwrap();
    for namespace in ["istio-system", "shop"] {
        api.kubectl(&["create", "namespace", namespace]).unwrap();
    }
    for account in ["server", "other"] {
        api.kubectl(&["-n", "shop", "create", "serviceaccount", account]).unwrap();
    }
    let scratch = Scratch::new("agentless").unwrap();
    let (ca, network) = (scratch.path().join("ca"), Network::claim().unwrap());
    let secure = network.socket(255, 1, 15012);
    let mut arguments =
        vec!["--kubeconfig".into(), api.kubeconfig().into(), "--ca-dir".into(), ca.clone().into()];
    for argument in ["--secure-grpc-addr", &secure.to_string(), "--workload-cert-ttl", TTL] {
        arguments.push(argument.into());
    }
    let weftd = Weftd::start_with(&network, &arguments).unwrap();
    let roots = ca.join("root-cert.pem");
    eventually("weftd's roots", PATIENCE, || fs::metadata(&roots).context("no roots yet")).unwrap();
    let token = |account: &str| {
        let token =
            api.kubectl(&["-n", "shop", "create", "token", account, "--audience", "istio-ca"]).unwrap();
        token.trim().to_owned()
    };
    let sample = fs::read_to_string(repository().join("samples/envoy-agentless.yaml")).unwrap();
    let start = |account: &str, number: u8| {
        let weftd = format!("address: {}, port_value: {}", secure.ip(), secure.port());
        let ours = sample
            .replace("Bearer TOKEN", &format!("Bearer {}", token(account)))
            .replace("/etc/weft/root-cert.pem", &roots.display().to_string())
            .replace("address: 127.0.0.1, port_value: 15012", &weftd)
            .replace("127.0.0.1", &network.ip(1, number).to_string());
        (Envoy::start(&ours).unwrap(), network.socket(1, number, 8080))
    };
    let (envoy, client) = start("server", 1);
    if let Err(error) = serves(&envoy, client) {
        panic!("{error:?}\n{}", weftd.log());
    }

    // Somebody who says to be `server` with the token of `other` gets nothing.
    let (liar, _) = start("other", 2);
    eventually("weftd to refuse who lies", PATIENCE, || {
        ensure!(weftd.log().contains("proxy is not who it says"), "not yet");
        Ok(())
    })
    .unwrap();
    assert!(certificates(&liar).unwrap().is_empty());
}

fn serves(envoy: &Envoy, at: SocketAddr) -> Result<()> {
    let hello = || -> Result<()> {
        let answer = Client::new(at, Duration::from_secs(5)).get("server", "/")?;
        ensure!(answer.status == 200 && answer.body == "hello", "{answer:?}");
        Ok(())
    };
    eventually("an answer over mutual TLS", PATIENCE, hello)?;
    let mut seen = certificates(envoy)?;
    ensure!(!seen.is_empty(), "Envoy has no certificate");
    // Certificates live for ten seconds: what comes later is over new ones.
    let enough = seen.len() + 4;
    eventually("other certificates", PATIENCE, || {
        hello()?;
        seen.extend(certificates(envoy)?);
        ensure!(seen.len() >= enough, "{} of {enough}", seen.len());
        Ok(())
    })
}

/// Returns the serial numbers of the certificates that Envoy uses.
fn certificates(envoy: &Envoy) -> Result<BTreeSet<String>> {
    let certificates = envoy.admin_get("/certs")?.json()?;
    let all = certificates["certificates"].as_array().into_iter().flatten();
    let leaves = all.flat_map(|entry| entry["cert_chain"].as_array().cloned().unwrap_or_default());
    Ok(leaves.filter_map(|leaf| Some(leaf["serial_number"].as_str()?.to_owned())).collect())
}
