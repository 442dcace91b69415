//! What the mesh is at one moment, which edits are valid, and how it is written down.
//!
//! There are a few services, each with pods of two versions and a subset for each version, and for each service a host
//! name at the gateway, whose VirtualService may send requests to any of the services.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// How many services there may be, and how many host names there are.
const SERVICES: u8 = 4;
/// The versions of each service's pods, which are also its subsets.
const VERSIONS: u8 = 2;
/// How many different pods of each version there may be.
const PODS: u8 = 4;
/// The ports that pods listen on; a service uses one of them.
pub(crate) const TARGET_PORTS: [u16; 2] = [8080, 8081];

/// A pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Pod {
    pub(crate) service: u8,
    pub(crate) version: u8,
    pub(crate) number: u8,
}

impl Pod {
    /// Returns its address as manifests have it.
    pub(crate) fn ip(self) -> String {
        format!("10.244.{}.{}", 20 + self.service, 1 + self.version * PODS + self.number)
    }

    fn name(self) -> String {
        format!("s{}-v{}-{}", self.service, self.version, self.number)
    }
}

/// What its process answers.
impl fmt::Display for Pod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.service, self.version, self.number)
    }
}

/// Where some requests go.
#[derive(Clone, Debug, PartialEq)]
struct Destination {
    service: u8,
    /// `None`: pods of any version.
    version: Option<u8>,
    weight: u32,
}

#[derive(Clone, Debug)]
struct Service {
    port: u16,
    target_port: u16,
    pods: BTreeSet<Pod>,
    /// The names of the subsets, by version.
    subsets: Vec<String>,
    /// Varies what the DestinationRule says besides subsets.
    policy: u64,
}

#[derive(Clone, Debug)]
struct Host {
    destinations: Vec<Destination>,
    /// Counts the edits of this host, and is written into its route.
    generation: u64,
}

/// All of the configuration at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Mesh {
    services: BTreeMap<u8, Service>,
    hosts: Vec<Host>,
    /// Makes names that were never used before.
    names: u64,
}

/// What was done.
#[derive(Clone, Debug)]
pub(crate) struct Edit {
    pub(crate) kind: &'static str,
    pub(crate) what: String,
}

impl Mesh {
    pub(crate) fn new(random: &mut Random) -> Self {
        let mut mesh = Self { services: BTreeMap::new(), hosts: Vec::new(), names: 0 };
        for service in 0..SERVICES {
            mesh.create(service, random);
        }
        for service in 0..SERVICES {
            let destinations = vec![Destination { service, version: Some(0), weight: 100 }];
            mesh.hosts.push(Host { destinations, generation: 0 });
        }
        mesh
    }

    /// Returns whether requests for `host` are routed to pods like `pod`, of its service and version.
    pub(crate) fn routes(&self, host: u8, pod: Pod) -> bool {
        self.hosts[usize::from(host)].destinations.iter().any(|destination| {
            destination.weight > 0
                && destination.service == pod.service
                && destination.version.is_none_or(|version| version == pod.version)
        })
    }

    /// Returns whether `pod` is an endpoint of its service.
    pub(crate) fn has(&self, pod: Pod) -> bool {
        self.services.get(&pod.service).is_some_and(|service| service.pods.contains(&pod))
    }

    /// Returns the host names, by number.
    pub(crate) fn host_name(host: u8) -> String {
        format!("host{host}.hitless.example")
    }

    pub(crate) const fn host_count() -> u8 {
        SERVICES
    }

    pub(crate) fn pods(&self) -> BTreeSet<Pod> {
        self.services.values().flat_map(|service| service.pods.iter().copied()).collect()
    }

    /// Returns the addresses of every cluster that a route refers to.
    pub(crate) fn clusters(&self) -> BTreeMap<String, Vec<String>> {
        let destinations = self.hosts.iter().flat_map(|host| &host.destinations);
        destinations
            .map(|destination| {
                let service = &self.services[&destination.service];
                let subset =
                    destination.version.map(|version| service.subsets[usize::from(version)].as_str());
                let pods =
                    service.pods.iter().filter(|pod| destination.version.is_none_or(|v| v == pod.version));
                let addresses = pods.map(|pod| format!("{}:{}", pod.ip(), service.target_port));
                (
                    cluster_name(destination.service, service.port, subset.unwrap_or_default()),
                    addresses.collect(),
                )
            })
            .collect()
    }

    /// Returns the names of all clusters that there may be.
    pub(crate) fn all_clusters(&self) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for (number, service) in &self.services {
            let subsets = service.subsets.iter().map(String::as_str);
            names.extend(subsets.chain([""]).map(|subset| cluster_name(*number, service.port, subset)));
        }
        names
    }

    /// Returns what the routes of this configuration have and those of no other.
    pub(crate) fn marks(&self) -> Vec<String> {
        self.hosts.iter().enumerate().map(|(number, host)| mark(number, host.generation)).collect()
    }

    /// Makes a random valid edit.
    pub(crate) fn edit(&self, random: &mut Random) -> (Self, Edit) {
        loop {
            let mut mesh = self.clone();
            let made = match random.below(100) {
                0..20 => mesh.rename_subset(random),
                20..35 => mesh.change_weights(random),
                35..47 => mesh.retarget(random),
                47..70 => mesh.churn(random),
                70..76 => mesh.delete(random),
                76..84 => mesh.create_one(random),
                84..90 => mesh.change_port(random),
                90..95 => mesh.change_target_port(random),
                _ => mesh.change_policy(random),
            };
            if let Some(edit) = made {
                return (mesh, edit);
            }
        }
    }

    fn any_service(&self, random: &mut Random) -> u8 {
        let numbers: Vec<u8> = self.services.keys().copied().collect();
        *random.choose(&numbers)
    }

    /// Marks every host that sends requests to `service` as edited.
    fn touch(&mut self, service: u8) {
        for host in &mut self.hosts {
            if host.destinations.iter().any(|destination| destination.service == service) {
                host.generation += 1;
            }
        }
    }

    fn rename_subset(&mut self, random: &mut Random) -> Option<Edit> {
        let number = self.any_service(random);
        let version = random.below(VERSIONS.into());
        self.names += 1;
        let name = format!("v{version}-{}", self.names);
        let what = format!("rename subset v{version} of s{number} to {name}");
        self.services.get_mut(&number)?.subsets[usize::try_from(version).ok()?] = name;
        self.touch(number);
        Some(Edit { kind: "renames", what })
    }

    fn change_weights(&mut self, random: &mut Random) -> Option<Edit> {
        let number = random.index(self.hosts.len());
        let service = self.hosts[number].destinations.first()?.service;
        let weight = u32::try_from(random.below(101)).ok()?;
        let split = |version, weight| Destination { service, version: Some(version), weight };
        let host = &mut self.hosts[number];
        host.destinations = vec![split(0, weight), split(1, 100 - weight)];
        host.generation += 1;
        Some(Edit { kind: "weights", what: format!("host{number}: {weight}/{} of s{service}", 100 - weight) })
    }

    fn retarget(&mut self, random: &mut Random) -> Option<Edit> {
        let number = random.index(self.hosts.len());
        let service = self.any_service(random);
        let version = match random.below(3) {
            0 => None,
            version => Some(u8::try_from(version - 1).ok()?),
        };
        let host = &mut self.hosts[number];
        host.destinations = vec![Destination { service, version, weight: 100 }];
        host.generation += 1;
        Some(Edit { kind: "retargets", what: format!("host{number}: all to s{service} {version:?}") })
    }

    fn churn(&mut self, random: &mut Random) -> Option<Edit> {
        let number = self.any_service(random);
        let version = u8::try_from(random.below(VERSIONS.into())).ok()?;
        let pod = Pod { service: number, version, number: u8::try_from(random.below(PODS.into())).ok()? };
        let pods = &mut self.services.get_mut(&number)?.pods;
        if pods.insert(pod) {
            // Half of the time the new one takes the place of another.
            let other = pods.iter().copied().find(|other| other.version == version && *other != pod);
            if let Some(other) = other.filter(|_| random.one_in(2)) {
                pods.remove(&other);
                return Some(Edit {
                    kind: "endpoints",
                    what: format!("pod {pod} takes the place of {other}"),
                });
            }
            return Some(Edit { kind: "endpoints", what: format!("pod {pod} comes") });
        }
        // A subset without pods answers 503 and is right to do so; that is not what this is about.
        if pods.iter().filter(|other| other.version == version).count() < 2 {
            return None;
        }
        pods.remove(&pod);
        Some(Edit { kind: "endpoints", what: format!("pod {pod} goes") })
    }

    fn delete(&mut self, random: &mut Random) -> Option<Edit> {
        if self.services.len() < 3 {
            return None;
        }
        let number = self.any_service(random);
        self.services.remove(&number);
        let heir = self.any_service(random);
        for host in &mut self.hosts {
            if host.destinations.iter().any(|destination| destination.service == number) {
                host.destinations = vec![Destination { service: heir, version: Some(0), weight: 100 }];
                host.generation += 1;
            }
        }
        Some(Edit { kind: "deletions", what: format!("s{number} is deleted; s{heir} serves its hosts") })
    }

    fn create_one(&mut self, random: &mut Random) -> Option<Edit> {
        let number = (0..SERVICES).find(|number| !self.services.contains_key(number))?;
        self.create(number, random);
        let host = &mut self.hosts[usize::from(number)];
        host.destinations = vec![Destination { service: number, version: None, weight: 100 }];
        host.generation += 1;
        Some(Edit { kind: "creations", what: format!("s{number} is created and serves host{number}") })
    }

    fn create(&mut self, number: u8, random: &mut Random) {
        let pod = |version| Pod { service: number, version, number: 0 };
        let service = Service {
            port: 8000,
            target_port: *random.choose(&TARGET_PORTS),
            pods: (0..VERSIONS).map(pod).collect(),
            subsets: (0..VERSIONS).map(|version| format!("v{version}")).collect(),
            policy: 0,
        };
        self.services.insert(number, service);
    }

    fn change_port(&mut self, random: &mut Random) -> Option<Edit> {
        let number = self.any_service(random);
        let service = self.services.get_mut(&number)?;
        service.port = if service.port == 8000 { 8001 } else { 8000 };
        let what = format!("s{number} is on port {}", service.port);
        self.touch(number);
        Some(Edit { kind: "ports", what })
    }

    fn change_target_port(&mut self, random: &mut Random) -> Option<Edit> {
        let number = self.any_service(random);
        let service = self.services.get_mut(&number)?;
        let [one, other] = TARGET_PORTS;
        service.target_port = if service.target_port == one { other } else { one };
        Some(Edit { kind: "target ports", what: format!("pods of s{number} use {}", service.target_port) })
    }

    fn change_policy(&mut self, random: &mut Random) -> Option<Edit> {
        let number = self.any_service(random);
        let service = self.services.get_mut(&number)?;
        service.policy += 1;
        Some(Edit { kind: "policies", what: format!("policy {} of s{number}", service.policy) })
    }

    /// Returns the manifests, by file name.
    pub(crate) fn files(&self) -> BTreeMap<String, String> {
        let mut files = BTreeMap::from([("gateway.yaml".to_owned(), GATEWAY.to_owned())]);
        files.insert("pods.yaml".to_owned(), all_pods());
        for (number, service) in &self.services {
            files.insert(format!("service-{number}.yaml"), service.service_manifest(*number));
            files.insert(format!("endpoints-{number}.yaml"), service.slice_manifest(*number));
            files.insert(format!("rule-{number}.yaml"), service.rule_manifest(*number));
        }
        for (number, host) in (0..SERVICES).zip(&self.hosts) {
            files.insert(format!("routes-{number}.yaml"), self.routes_manifest(number, host));
        }
        files
    }

    fn routes_manifest(&self, number: u8, host: &Host) -> String {
        let mut text = format!(
            "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: host{number}, namespace: default}}
spec:
  hosts: [{}]
  gateways: [gateway]
  http:
  - name: {}
    route:
",
            Self::host_name(number),
            mark(number.into(), host.generation)
        );
        for destination in &host.destinations {
            let service = &self.services[&destination.service];
            let subset = destination
                .version
                .map(|version| format!(", subset: {}", service.subsets[usize::from(version)]));
            text.push_str(&format!(
                "    - destination: {{host: s{}, port: {{number: {}}}{}}}\n      weight: {}\n",
                destination.service,
                service.port,
                subset.unwrap_or_default(),
                destination.weight
            ));
        }
        text
    }
}

impl Service {
    fn service_manifest(&self, number: u8) -> String {
        format!(
            "apiVersion: v1
kind: Service
metadata: {{name: s{number}, namespace: default}}
spec:
  selector: {{app: s{number}}}
  ports: [{{name: http, port: {}, targetPort: {}}}]
",
            self.port, self.target_port
        )
    }

    fn slice_manifest(&self, number: u8) -> String {
        let mut text = format!(
            "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: s{number}-1, namespace: default, labels: {{kubernetes.io/service-name: s{number}}}}}
addressType: IPv4
ports: [{{name: http, port: {}}}]
endpoints:
",
            self.target_port
        );
        for pod in &self.pods {
            text.push_str(&format!(
                "- addresses: [{}]\n  targetRef: {{kind: Pod, name: {}, namespace: default}}\n",
                pod.ip(),
                pod.name()
            ));
        }
        text
    }

    fn rule_manifest(&self, number: u8) -> String {
        let mut text = format!(
            "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: s{number}, namespace: default}}
spec:
  host: s{number}
  trafficPolicy:
    connectionPool: {{tcp: {{connectTimeout: {}ms}}}}
    loadBalancer: {{simple: {}}}
  subsets:
",
            5000 + self.policy,
            if self.policy.is_multiple_of(2) { "ROUND_ROBIN" } else { "LEAST_REQUEST" }
        );
        for (version, name) in self.subsets.iter().enumerate() {
            text.push_str(&format!("  - {{name: {name}, labels: {{version: v{version}}}}}\n"));
        }
        text
    }
}

const GATEWAY: &str = "apiVersion: networking.istio.io/v1
kind: Gateway
metadata:
  name: gateway
  namespace: default
spec:
  selector:
    istio: ingressgateway
  servers:
  - port:
      number: 8080
      name: http
      protocol: HTTP
    hosts: [\"*\"]
";

fn all_pods() -> String {
    let mut text = String::new();
    for service in 0..SERVICES {
        for version in 0..VERSIONS {
            for number in 0..PODS {
                let pod = Pod { service, version, number };
                text.push_str(&format!(
                    "---
apiVersion: v1
kind: Pod
metadata: {{name: {}, namespace: default, labels: {{app: s{service}, version: v{version}}}}}
status: {{podIP: {}}}
",
                    pod.name(),
                    pod.ip()
                ));
            }
        }
    }
    text
}

fn cluster_name(service: u8, port: u16, subset: &str) -> String {
    format!("outbound|{port}|{subset}|s{service}.default.svc.cluster.local")
}

fn mark(host: usize, generation: u64) -> String {
    format!("host{host}-generation-{generation}-end")
}

/// Numbers that look random and are the same for the same seed (SplitMix64).
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub(crate) fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).expect("it is less than a usize")
    }

    fn choose<'a, T>(&mut self, values: &'a [T]) -> &'a T {
        &values[self.index(values.len())]
    }

    pub(crate) fn shuffle<T>(&mut self, values: &mut [T]) {
        for last in (1..values.len()).rev() {
            values.swap(last, self.index(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_valid_and_the_same_for_the_same_seed() {
        let run = |seed| {
            let mut random = Random::new(seed);
            let mut mesh = Mesh::new(&mut random);
            let mut log = Vec::new();
            for _ in 0..2000 {
                let (next, edit) = mesh.edit(&mut random);
                // Every destination exists and has pods.
                assert!(next.clusters().values().all(|addresses| !addresses.is_empty()), "{}", edit.what);
                assert!(
                    next.clusters().keys().all(|name| next.all_clusters().contains(name)),
                    "{}",
                    edit.what
                );
                assert_ne!(mesh.files(), next.files(), "{}", edit.what);
                log.push(edit.what);
                mesh = next;
            }
            log
        };
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
    }

    #[test]
    fn only_pods_behind_a_weight_may_answer() {
        let mut mesh = Mesh::new(&mut Random::new(1));
        let pod = |service, version, number| Pod { service, version, number };
        assert!(mesh.routes(0, pod(0, 0, 0)) && mesh.has(pod(0, 0, 0)));
        assert!(!mesh.routes(0, pod(0, 1, 0)), "another subset");
        assert!(!mesh.has(pod(0, 0, 1)), "not among the endpoints");
        assert!(!mesh.routes(0, pod(1, 0, 0)), "another service");
        mesh.hosts[0].destinations[0].weight = 0;
        assert!(!mesh.routes(0, pod(0, 0, 0)), "no weight");
    }
}
