//! Services, as a node has them: their addresses lead to their endpoints, and their names to their addresses.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;
use testkit::rig::netns::Node;

use super::api::Api;
use super::container::list;
use super::text;

/// The address of the API server's Service.
pub(super) const KUBERNETES: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// Where the addresses of Services are.
const RANGE: &str = "10.96.0.0/16";
const DOMAIN: &str = "cluster.local";

/// What is known of Services.
#[derive(Debug, Default)]
pub(super) struct Services {
    rules: Mutex<String>,
    names: Mutex<BTreeMap<String, Vec<Ipv4Addr>>>,
}

impl Services {
    /// Lets the node pass packets on between pods, and packets to Services come by.
    pub(super) fn prepare() -> anyhow::Result<()> {
        for (switch, value) in [("ip_forward", "1"), ("conf/all/send_redirects", "0")] {
            fs::write(format!("/proc/sys/net/ipv4/{switch}"), value).with_context(|| switch.to_owned())?;
        }
        let status = Command::new("ip").args(["route", "add", RANGE, "dev", "weft0"]).status();
        ensure!(status.context("cannot run ip (package iproute2)")?.success(), "no route to Services");
        Ok(())
    }

    /// Takes in what the API server has now.
    pub(super) fn sync(&self, api: &Api<'_>) -> anyhow::Result<()> {
        let services = api.list("/api/v1/services")?;
        let slices = api.list("/apis/discovery.k8s.io/v1/endpointslices")?;
        *lock(&self.names) = names(&services, &slices);
        let wanted = rules(&services, &slices);
        let mut rules = lock(&self.rules);
        if *rules != wanted {
            load(&wanted)?;
            *rules = wanted;
        }
        Ok(())
    }

    /// Answers questions about names until `stop`.
    pub(super) fn answer(&self, stop: &AtomicBool) -> anyhow::Result<()> {
        let socket = UdpSocket::bind((Node::ADDRESS, 53)).context("a name server")?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let mut buffer = [0; 512];
        while !stop.load(Ordering::Relaxed) {
            let Ok((length, client)) = socket.recv_from(&mut buffer) else { continue };
            if let Some(answer) = answer(&buffer[..length], &lock(&self.names)) {
                // Who does not wait any more asks again.
                let _ = socket.send_to(&answer, client);
            }
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn load(rules: &str) -> anyhow::Result<()> {
    let mut nft = Command::new("nft");
    nft.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut nft = nft.spawn().context("cannot run nft (package nftables)")?;
    nft.stdin.take().context("stdin is piped")?.write_all(rules.as_bytes())?;
    let output = nft.wait_with_output()?;
    ensure!(output.status.success(), "nft: {}\n{rules}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Returns the endpoints of a Service, each with its port, that get connections to the port of this name.
fn endpoints(service: &Value, port: &str, slices: &[Value]) -> Vec<(Ipv4Addr, u64)> {
    let (name, namespace) = (&service["metadata"]["name"], &service["metadata"]["namespace"]);
    let mut found = Vec::new();
    let of_service = slices.iter().filter(|slice| {
        let metadata = &slice["metadata"];
        metadata["namespace"] == *namespace
            && metadata["labels"]["kubernetes.io/service-name"] == *name
            && slice["addressType"] == "IPv4"
    });
    for slice in of_service {
        let ports = slice["ports"].as_array().into_iter().flatten();
        let Some(number) = ports
            .into_iter()
            .find(|other| text(&other["name"]) == port)
            .and_then(|port| port["port"].as_u64())
        else {
            continue;
        };
        let ready = |endpoint: &&Value| endpoint["conditions"]["ready"] != Value::Bool(false);
        for endpoint in slice["endpoints"].as_array().into_iter().flatten().filter(ready) {
            let addresses = list(&endpoint["addresses"], |address| address.as_str()?.parse().ok());
            found.extend(addresses.into_iter().map(|address: Ipv4Addr| (address, number)));
        }
    }
    found.sort_unstable();
    found
}

/// As kube-proxy has them: each connection goes to one of the ready endpoints.
fn rules(services: &[Value], slices: &[Value]) -> String {
    let mut all = String::new();
    for service in services {
        let Ok(address) = text(&service["spec"]["clusterIP"]).parse::<Ipv4Addr>() else { continue };
        for port in service["spec"]["ports"].as_array().into_iter().flatten() {
            let endpoints = endpoints(service, text(&port["name"]), slices);
            for (index, (endpoint, number)) in endpoints.iter().enumerate() {
                let share = endpoints.len() - index;
                let chance = if share > 1 { format!("numgen random mod {share} 0 ") } else { String::new() };
                let _ = writeln!(
                    all,
                    "    ip daddr {address} tcp dport {} {chance}dnat to {endpoint}:{number}",
                    port["port"]
                );
            }
        }
    }
    format!(
        "table ip services {{}}
delete table ip services
table ip services {{
  chain services {{
{all}  }}
  chain from_pods {{ type nat hook prerouting priority dstnat; jump services; }}
  chain from_node {{ type nat hook output priority -100; jump services; }}
  chain back {{ type nat hook postrouting priority srcnat; ct status dnat masquerade; }}
}}
"
    )
}

fn names(services: &[Value], slices: &[Value]) -> BTreeMap<String, Vec<Ipv4Addr>> {
    let entry = |service: &Value| {
        let metadata = &service["metadata"];
        let name = format!("{}.{}.svc.{DOMAIN}", text(&metadata["name"]), text(&metadata["namespace"]));
        let addresses = match text(&service["spec"]["clusterIP"]).parse() {
            Ok(address) => vec![address],
            Err(_) => {
                let port = text(&service["spec"]["ports"][0]["name"]);
                endpoints(service, port, slices).into_iter().map(|(address, _)| address).collect()
            }
        };
        (name, addresses)
    };
    services.iter().map(entry).collect()
}

/// Answers one question: addresses for A, nothing for other types, and that there is no such name for others.
fn answer(question: &[u8], names: &BTreeMap<String, Vec<Ipv4Addr>>) -> Option<Vec<u8>> {
    const HEADER: usize = 12;
    const ADDRESS: [u8; 2] = [0, 1];
    let mut end = HEADER;
    let mut labels = Vec::new();
    loop {
        let length = usize::from(*question.get(end)?);
        end += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(question.get(end..end + length)?).to_lowercase());
        end += length;
    }
    let kind = question.get(end..end + 2)?;
    let known = names.get(&labels.join("."));
    let addresses = known.filter(|_| kind == ADDRESS).map(Vec::as_slice).unwrap_or_default();
    let mut answer = question.get(..2)?.to_vec();
    // An answer with authority; 3 is: no such name.
    answer.extend([0x85, if known.is_some() { 0x80 } else { 0x83 }, 0, 1]);
    answer.extend(u16::try_from(addresses.len()).ok()?.to_be_bytes());
    answer.extend([0; 4]);
    answer.extend(question.get(HEADER..end + 4)?);
    for address in addresses {
        // The name of the question, an address, for five seconds.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4]);
        answer.extend(address.octets());
    }
    Some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn cluster() -> (Vec<Value>, Vec<Value>) {
        let metadata = json!({ "name": "web", "namespace": "shop" });
        let service = json!({
            "metadata": metadata,
            "spec": { "clusterIP": "10.96.0.7", "ports": [{ "name": "http", "port": 80 }] },
        });
        let endpoint =
            |address: &str, ready: bool| json!({ "addresses": [address], "conditions": { "ready": ready } });
        let slice = json!({
            "metadata": { "namespace": "shop", "labels": { "kubernetes.io/service-name": "web" } },
            "addressType": "IPv4", "ports": [{ "name": "http", "port": 8080 }],
            "endpoints": [endpoint("10.244.0.3", true), endpoint("10.244.0.2", true), endpoint("10.244.0.4", false)],
        });
        (vec![service], vec![slice])
    }

    #[test]
    fn connections_are_shared_by_ready_endpoints() {
        let (services, slices) = cluster();
        let rules = rules(&services, &slices);
        assert!(rules.contains(
            "    ip daddr 10.96.0.7 tcp dport 80 numgen random mod 2 0 dnat to 10.244.0.2:8080\n    \
             ip daddr 10.96.0.7 tcp dport 80 dnat to 10.244.0.3:8080\n  }"
        ));
    }

    #[test]
    fn names_of_services_are_answered() {
        let (services, slices) = cluster();
        let names = names(&services, &slices);
        let question = |name: &str, kind: u8| {
            let mut bytes = vec![7, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
            for label in name.split('.') {
                bytes.push(u8::try_from(label.len()).unwrap());
                bytes.extend(label.as_bytes());
            }
            bytes.extend([0, 0, kind, 0, 1]);
            bytes
        };
        let found = answer(&question("web.shop.svc.cluster.local", 1), &names).unwrap();
        assert_eq!((&found[..2], found[3], found[7]), (&[7, 9][..], 0x80, 1));
        assert!(found.ends_with(&[10, 96, 0, 7]));
        let none = answer(&question("web.shop.svc.cluster.local", 28), &names).unwrap();
        assert_eq!((none[3], none[7]), (0x80, 0));
        let unknown = answer(&question("web.shop", 1), &names).unwrap();
        assert_eq!((unknown[3], unknown[7]), (0x83, 0));
        assert!(answer(&[0; 5], &names).is_none());
    }
}
