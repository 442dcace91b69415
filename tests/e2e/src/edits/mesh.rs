//! What the mesh is at one moment, which edits are valid, and which answers it allows.
//!
//! There are a few services, each with pods of two versions and a subset for each version, and for each service a host
//! name at the gateway, whose VirtualService may send requests to any of the services, even to one that was deleted:
//! requests are then right to be answered 503.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;

use super::{Random, Target};

/// How many services there may be, and how many host names there are.
pub(super) const SERVICES: u8 = 4;
/// The versions of each service's pods, which are also its subsets.
pub(super) const VERSIONS: u8 = 2;
/// How many different pods of each version there may be.
pub(super) const PODS: u8 = 4;
/// How many ports pods listen on; a service uses one of them.
pub(super) const TARGET_PORTS: u16 = 2;

/// A pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pod {
    /// The service that it belongs to.
    pub service: u8,
    /// Its version.
    pub version: u8,
    /// Its number among those.
    pub number: u8,
}

impl Pod {
    /// How many pods there may be.
    pub const COUNT: u16 = SERVICES as u16 * Self::PER_SERVICE as u16;

    const PER_SERVICE: u8 = VERSIONS * PODS;

    /// Returns its number among those of its service.
    pub fn index(self) -> u8 {
        self.version * PODS + self.number
    }

    /// Returns its number among all.
    pub fn index_of_all(self) -> u16 {
        u16::from(self.service * Self::PER_SERVICE + self.index())
    }

    /// Returns its name.
    pub fn name(self) -> String {
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
pub(super) struct Destination {
    pub(super) service: u8,
    /// `None`: pods of any version.
    pub(super) version: Option<u8>,
    pub(super) weight: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Service {
    pub(super) port: u16,
    pub(super) target_port: u16,
    pub(super) pods: BTreeSet<Pod>,
    /// The names of the subsets, by version.
    pub(super) subsets: Vec<String>,
    /// Varies what the DestinationRule says besides subsets.
    pub(super) policy: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Host {
    pub(super) destinations: Vec<Destination>,
    /// Counts the edits of this host, and is written into its route.
    pub(super) generation: u64,
}

/// What a request was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// This pod answered.
    Pod(Pod),
    /// Envoy answered 503.
    Unavailable,
}

/// All of the configuration at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Mesh {
    pub(super) services: BTreeMap<u8, Service>,
    /// Services that were deleted while routes named them, and may still do so. Their DestinationRules are still there.
    pub(super) gone: BTreeMap<u8, Service>,
    pub(super) hosts: Vec<Host>,
    /// Makes names that were never used before.
    names: u64,
}

/// What was done.
#[derive(Clone, Debug)]
pub struct Edit {
    /// What kind of edit it was, in the plural.
    pub kind: &'static str,
    /// What it did.
    pub what: String,
}

impl Mesh {
    /// Returns the mesh that everything begins with.
    pub fn new(random: &mut Random) -> Self {
        let mut mesh = Self { services: BTreeMap::new(), gone: BTreeMap::new(), hosts: Vec::new(), names: 0 };
        for service in 0..SERVICES {
            mesh.create(service, random);
        }
        for service in 0..SERVICES {
            let destinations = vec![Destination { service, version: Some(0), weight: 100 }];
            mesh.hosts.push(Host { destinations, generation: 0 });
        }
        mesh
    }

    /// Returns whether this configuration allows a request for `host` to be answered so.
    pub fn allows(&self, host: u8, outcome: Outcome) -> bool {
        let destinations = &self.hosts[usize::from(host)].destinations;
        destinations.iter().filter(|destination| destination.weight > 0).any(|destination| {
            match (self.services.get(&destination.service), outcome) {
                (Some(service), Outcome::Pod(pod)) => {
                    service.pods.contains(&pod) && destination.version.is_none_or(|v| v == pod.version)
                }
                (None, Outcome::Unavailable) => true,
                _ => false,
            }
        })
    }

    /// Returns the host names, by number.
    pub fn host_name(host: u8) -> String {
        format!("host{host}.hitless.example")
    }

    /// Returns how many hosts there are.
    pub const fn host_count() -> u8 {
        SERVICES
    }

    /// Returns the pods that are endpoints of a service.
    pub fn pods(&self) -> BTreeSet<Pod> {
        self.services.values().flat_map(|service| service.pods.iter().copied()).collect()
    }

    /// Returns a service, which may have been deleted.
    pub(super) fn service(&self, number: u8) -> &Service {
        self.services.get(&number).unwrap_or_else(|| &self.gone[&number])
    }

    /// Returns the addresses of every cluster that a route refers to; none if its service was deleted.
    pub fn clusters(&self, target: &impl Target) -> BTreeMap<String, Option<BTreeSet<SocketAddr>>> {
        let destinations = self.hosts.iter().flat_map(|host| &host.destinations);
        destinations
            .map(|destination| {
                let service = self.service(destination.service);
                let subset =
                    destination.version.map(|version| service.subsets[usize::from(version)].as_str());
                let name = cluster_name(destination.service, service.port, subset.unwrap_or_default());
                let pods =
                    service.pods.iter().filter(|pod| destination.version.is_none_or(|v| v == pod.version));
                let addresses = pods.map(|pod| target.address(*pod, service.target_port)).collect();
                (name, self.services.contains_key(&destination.service).then_some(addresses))
            })
            .collect()
    }

    /// Returns the names of the clusters that a route refers to and whose service is there: each has endpoints.
    pub fn clusters_with_endpoints(&self) -> BTreeSet<String> {
        let destinations = self.hosts.iter().flat_map(|host| &host.destinations);
        destinations
            .filter_map(|destination| {
                let service = self.services.get(&destination.service)?;
                let subset =
                    destination.version.map(|version| service.subsets[usize::from(version)].as_str());
                Some(cluster_name(destination.service, service.port, subset.unwrap_or_default()))
            })
            .collect()
    }

    /// Returns the names of all clusters that there may be.
    pub fn all_clusters(&self) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for (number, service) in &self.services {
            let subsets = service.subsets.iter().map(String::as_str);
            names.extend(subsets.chain([""]).map(|subset| cluster_name(*number, service.port, subset)));
        }
        names
    }

    /// Returns whether a cluster may belong to a mesh; Kubernetes has services of its own.
    pub fn is_own_cluster(name: &str) -> bool {
        let service = name.strip_prefix("outbound|").and_then(|rest| rest.rsplit('|').next());
        (0..SERVICES).any(|number| service == Some(service_name(number).as_str()))
    }

    /// Returns what the routes of this configuration have and those of no other.
    pub fn marks(&self) -> Vec<String> {
        self.hosts.iter().enumerate().map(|(number, host)| mark(number, host.generation)).collect()
    }

    /// Makes a random valid edit.
    pub fn edit(&self, random: &mut Random) -> (Self, Edit) {
        loop {
            let mut mesh = self.clone();
            let made = match random.below(100) {
                0..20 => mesh.rename_subset(random),
                20..35 => mesh.change_weights(random),
                35..47 => mesh.retarget(random),
                47..69 => mesh.churn(random),
                69..75 => mesh.delete(random),
                75 => mesh.orphan(random),
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
        self.forget_unnamed();
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
        self.forget_unnamed();
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

    /// Deletes a service that routes go on to name.
    fn orphan(&mut self, random: &mut Random) -> Option<Edit> {
        if self.services.len() < 3 {
            return None;
        }
        let number = self.any_service(random);
        let service = self.services.remove(&number)?;
        self.gone.insert(number, service);
        self.forget_unnamed();
        Some(Edit {
            kind: "deletions of what is named",
            what: format!("s{number} is deleted; its hosts stay"),
        })
    }

    /// Forgets deleted services that no route names any more.
    fn forget_unnamed(&mut self) {
        let hosts = &self.hosts;
        self.gone.retain(|number, _| {
            hosts.iter().flat_map(|host| &host.destinations).any(|destination| destination.service == *number)
        });
    }

    fn create_one(&mut self, random: &mut Random) -> Option<Edit> {
        let missing: Vec<u8> = (0..SERVICES).filter(|number| !self.services.contains_key(number)).collect();
        if missing.is_empty() {
            return None;
        }
        let number = *random.choose(&missing);
        if let Some(service) = self.gone.remove(&number) {
            self.services.insert(number, service);
            return Some(Edit { kind: "creations", what: format!("s{number} is there again") });
        }
        self.create(number, random);
        let host = &mut self.hosts[usize::from(number)];
        host.destinations = vec![Destination { service: number, version: None, weight: 100 }];
        host.generation += 1;
        self.forget_unnamed();
        Some(Edit { kind: "creations", what: format!("s{number} is created and serves host{number}") })
    }

    fn create(&mut self, number: u8, random: &mut Random) {
        let pod = |version| Pod { service: number, version, number: 0 };
        let service = Service {
            port: 8000,
            target_port: u16::try_from(random.below(TARGET_PORTS.into())).unwrap_or_default(),
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
        service.target_port = (service.target_port + 1) % TARGET_PORTS;
        Some(Edit {
            kind: "target ports",
            what: format!("pods of s{number} use port {}", service.target_port),
        })
    }

    fn change_policy(&mut self, random: &mut Random) -> Option<Edit> {
        let number = self.any_service(random);
        let service = self.services.get_mut(&number)?;
        service.policy += 1;
        Some(Edit { kind: "policies", what: format!("policy {} of s{number}", service.policy) })
    }
}

pub(super) fn cluster_name(service: u8, port: u16, subset: &str) -> String {
    format!("outbound|{port}|{subset}|{}", service_name(service))
}

fn service_name(service: u8) -> String {
    format!("s{service}.default.svc.cluster.local")
}

pub(super) fn mark(host: usize, generation: u64) -> String {
    format!("host{host}-generation-{generation}-end")
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
                for service in next.services.values() {
                    for version in 0..VERSIONS {
                        assert!(service.pods.iter().any(|pod| pod.version == version), "{}", edit.what);
                    }
                }
                for destination in next.hosts.iter().flat_map(|host| &host.destinations) {
                    next.service(destination.service);
                }
                assert_ne!(mesh, next, "{}", edit.what);
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
        let pod = |service, version, number| Outcome::Pod(Pod { service, version, number });
        assert!(mesh.allows(0, pod(0, 0, 0)));
        assert!(!mesh.allows(0, pod(0, 1, 0)), "another subset");
        assert!(!mesh.allows(0, pod(0, 0, 1)), "not among the endpoints");
        assert!(!mesh.allows(0, pod(1, 0, 0)), "another service");
        assert!(!mesh.allows(0, Outcome::Unavailable));
        mesh.hosts[0].destinations[0].weight = 0;
        assert!(!mesh.allows(0, pod(0, 0, 0)), "no weight");
    }

    #[test]
    fn nobody_may_answer_for_a_service_that_is_deleted() {
        let mut random = Random::new(1);
        let mut mesh = Mesh::new(&mut random);
        mesh.orphan(&mut random).unwrap();
        let number = *mesh.gone.keys().next().unwrap();
        assert!(mesh.allows(number, Outcome::Unavailable));
        assert!(!mesh.allows(number, Outcome::Pod(Pod { service: number, version: 0, number: 0 })));
        // All others are there, so this one is created again.
        mesh.create_one(&mut random).unwrap();
        assert!(!mesh.allows(number, Outcome::Unavailable));
    }
}
