//! Resources for the model: what each means is a value that can be looked up by its bytes.

use bytes::Bytes;
use parking_lot::Mutex;
use proto::resource::{
    Body, Needs, Resource, ResourceSet, ResourceType, Snapshot, VirtualHostFragment, Warming,
};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, LazyLock};

/// How a client takes a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Quality {
    Good,
    /// Rejected, by name.
    Bad,
    /// Rejected, without saying which.
    BadUnnamed,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterSpec {
    pub name: String,
    pub version: u8,
    pub warming: Kind,
    pub secret: Option<String>,
    pub quality: Quality,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Eds,
    Dns,
    Now,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ListenerSpec {
    pub name: String,
    pub address: u8,
    pub version: u8,
    pub routes: BTreeSet<String>,
    pub clusters: BTreeSet<String>,
    pub secret: Option<String>,
    pub quality: Quality,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostSpec {
    pub name: String,
    pub domains: BTreeSet<String>,
    pub clusters: BTreeSet<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteSpec {
    pub name: String,
    pub version: u8,
    pub quality: Quality,
    pub hosts: Vec<HostSpec>,
}

/// What a resource's bytes mean.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Content {
    Cluster(ClusterSpec),
    Assignment(String, u8),
    Listener(ListenerSpec),
    Route(RouteSpec),
    Secret(String, u8),
}

/// A line of a resource's bytes. Route configurations are several lines, as their virtual hosts are fragments.
#[derive(Clone, Debug)]
enum Line {
    Whole(Content),
    Rest(RouteSpec),
    Host(HostSpec),
}

static LINES: LazyLock<Mutex<HashMap<String, Line>>> = LazyLock::new(Mutex::default);

fn line(line: Line) -> Bytes {
    let text = format!("{line:?}");
    let bytes = Bytes::from(format!("{text}\n"));
    LINES.lock().insert(text, line);
    bytes
}

/// Returns what `bytes` mean.
pub fn read(bytes: &[u8]) -> Content {
    let text = std::str::from_utf8(bytes).expect("resources are text");
    let lines = LINES.lock();
    let mut route: Option<RouteSpec> = None;
    let mut hosts = Vec::new();
    for text in text.lines() {
        match &lines[text] {
            Line::Whole(content) => return content.clone(),
            Line::Rest(rest) => route = Some(rest.clone()),
            Line::Host(host) => hosts.push(host.clone()),
        }
    }
    Content::Route(RouteSpec { hosts, ..route.expect("a route configuration has a rest") })
}

fn names(names: &BTreeSet<String>) -> BTreeSet<Arc<str>> {
    names.iter().map(|name| name.as_str().into()).collect()
}

/// Returns the resource that means `content`.
pub fn resource(content: &Content) -> Arc<Resource> {
    let mut needs = Needs::default();
    let whole = |kind, name: &str, needs: Needs| {
        Resource::new(kind, name, Body::Whole(line(Line::Whole(content.clone()))), needs)
    };
    Arc::new(match content {
        Content::Cluster(spec) => {
            if spec.warming == Kind::Eds {
                needs.assignments.insert(spec.name.as_str().into());
            }
            needs.secrets = spec.secret.iter().map(|name| name.as_str().into()).collect();
            let cluster = whole(ResourceType::Cluster, &spec.name, needs);
            match spec.warming {
                Kind::Dns => cluster.resolving_dns(),
                Kind::Eds | Kind::Now => cluster,
            }
        }
        Content::Assignment(name, _) => whole(ResourceType::ClusterLoadAssignment, name, needs),
        Content::Secret(name, _) => whole(ResourceType::Secret, name, needs),
        Content::Listener(spec) => {
            needs.clusters = names(&spec.clusters);
            needs.routes = names(&spec.routes);
            needs.secrets = spec.secret.iter().map(|name| name.as_str().into()).collect();
            whole(ResourceType::Listener, &spec.name, needs)
        }
        Content::Route(spec) => {
            let rest = line(Line::Rest(RouteSpec { hosts: Vec::new(), ..spec.clone() }));
            let virtual_hosts = spec.hosts.iter().map(|host| VirtualHostFragment {
                name: host.name.as_str().into(),
                domains: names(&host.domains),
                field: line(Line::Host(host.clone())),
                clusters: names(&host.clusters),
            });
            let body = Body::Fragments { rest, virtual_hosts: virtual_hosts.collect() };
            Resource::new(ResourceType::RouteConfiguration, spec.name.as_str(), body, needs)
        }
    })
}

/// Returns a snapshot of these resources.
pub fn snapshot(contents: &[Content]) -> Arc<Snapshot> {
    let mut snapshot = Snapshot::default();
    for content in contents {
        let resource = resource(content);
        snapshot.of_mut(resource.kind()).insert(resource.name().clone(), resource);
    }
    Arc::new(snapshot)
}

/// Returns `next`, sharing with `previous` what is equal, as a push engine would.
pub fn successor(previous: &Snapshot, next: &Snapshot) -> Arc<Snapshot> {
    let mut snapshot = previous.clone();
    for kind in ResourceType::ALL {
        let set: &mut ResourceSet = snapshot.of_mut(kind);
        let gone: Vec<Arc<str>> =
            set.keys().filter(|name| !next.of(kind).contains_key(*name)).cloned().collect();
        for name in gone {
            set.remove(&name);
        }
        for (name, resource) in next.of(kind) {
            if set.get(name) != Some(resource) {
                set.insert(name.clone(), resource.clone());
            }
        }
    }
    snapshot.covers = next.covers;
    Arc::new(snapshot)
}

pub fn eds(name: &str, version: u8) -> Content {
    cluster(name, version, Kind::Eds)
}

pub fn cluster(name: &str, version: u8, warming: Kind) -> Content {
    Content::Cluster(ClusterSpec {
        name: name.to_owned(),
        version,
        warming,
        secret: None,
        quality: Quality::Good,
    })
}

pub fn endpoints(name: &str, version: u8) -> Content {
    Content::Assignment(name.to_owned(), version)
}

pub fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

pub fn host(name: &str, clusters: &[&str]) -> HostSpec {
    HostSpec { name: name.to_owned(), domains: set(&[name]), clusters: set(clusters) }
}

pub fn route(name: &str, hosts: Vec<HostSpec>) -> Content {
    Content::Route(RouteSpec { name: name.to_owned(), version: 0, quality: Quality::Good, hosts })
}

pub fn listener(name: &str, address: u8, routes: &[&str], clusters: &[&str]) -> Content {
    Content::Listener(ListenerSpec {
        name: name.to_owned(),
        address,
        version: 0,
        routes: set(routes),
        clusters: set(clusters),
        secret: None,
        quality: Quality::Good,
    })
}

/// Returns a cluster or listener that waits for a secret.
pub fn with_secret(content: Content, name: &str) -> Content {
    let secret = Some(name.to_owned());
    match content {
        Content::Cluster(spec) => Content::Cluster(ClusterSpec { secret, ..spec }),
        Content::Listener(spec) => Content::Listener(ListenerSpec { secret, ..spec }),
        other => other,
    }
}

/// Returns `content` in a form that clients reject.
pub fn bad(content: Content, quality: Quality) -> Content {
    match content {
        Content::Cluster(spec) => Content::Cluster(ClusterSpec { quality, ..spec }),
        Content::Listener(spec) => Content::Listener(ListenerSpec { quality, ..spec }),
        Content::Route(spec) => Content::Route(RouteSpec { quality, ..spec }),
        other => other,
    }
}

/// Returns what the model waits for, as the resource says it.
pub fn warming_of(kind: Kind) -> Warming {
    match kind {
        Kind::Eds => Warming::Assignment,
        Kind::Dns => Warming::Dns,
        Kind::Now => Warming::Nothing,
    }
}
