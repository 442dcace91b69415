//! What shows that an Envoy has taken all of its configuration: its own words, and weftd's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use anyhow::Context;
use serde_json::Value;
use testkit::rig::Envoy;
use testkit::rig::http::Request;

use crate::material;

/// Something that is not yet, or not at all, as it should be.
pub(crate) struct Complaint {
    pub(crate) text: String,
    /// No waiting will help.
    pub(crate) is_final: bool,
}

/// What a proxy should end up with.
pub(crate) struct Expected {
    node: Value,
    /// Names by type, in the words of [`TYPES`].
    names: BTreeMap<&'static str, BTreeSet<String>>,
}

/// A type of resource.
struct Type {
    /// In weftctl's output.
    plural: &'static str,
    /// In `/debug/syncz`.
    singular: &'static str,
    /// The message of dumps, and the list in it.
    dump: &'static str,
    active: &'static str,
    /// In dumps, where a resource is in an entry of the list.
    field: &'static str,
    name: &'static str,
}

const TYPES: [Type; 4] = [
    Type {
        plural: "clusters",
        singular: "cluster",
        dump: "ClustersConfigDump",
        active: "dynamic_active_clusters",
        field: "cluster",
        name: "name",
    },
    Type {
        plural: "listeners",
        singular: "listener",
        dump: "ListenersConfigDump",
        active: "dynamic_listeners",
        field: "active_state",
        name: "name",
    },
    Type {
        plural: "routes",
        singular: "route",
        dump: "RoutesConfigDump",
        active: "dynamic_route_configs",
        field: "route_config",
        name: "name",
    },
    Type {
        plural: "endpoints",
        singular: "endpoint",
        dump: "EndpointsConfigDump",
        active: "dynamic_endpoint_configs",
        field: "endpoint_config",
        name: "cluster_name",
    },
];

impl Expected {
    /// Reads what weftctl has compiled for a proxy.
    pub(crate) fn new(node: &Value, compiled: &Value) -> anyhow::Result<Self> {
        let mut names = BTreeMap::new();
        for Type { plural, name, .. } in &TYPES {
            let resources =
                compiled[plural].as_array().with_context(|| format!("no {plural} are compiled"))?;
            let key = if *name == "cluster_name" { "clusterName" } else { name };
            let found = resources.iter().filter_map(|resource| resource[key].as_str().map(str::to_owned));
            names.insert(*plural, found.collect());
        }
        Ok(Self { node: node.clone(), names })
    }
}

/// Asks Envoy and weftd, and returns what is wrong. Nothing is: each type was requested and acknowledged in the version
/// that weftd has, nothing was rejected, nothing waits, and each listener is active.
pub(crate) fn look(
    envoy: &Envoy,
    monitoring: SocketAddr,
    expected: &Expected,
) -> anyhow::Result<Vec<Complaint>> {
    let mut complaints = Complaints::default();
    let stats = envoy.stats("")?;
    for (name, count) in &stats {
        let rejected =
            name.ends_with(".update_rejected") || name == "listener_manager.listener_create_failure";
        if rejected && *count > 0 {
            complaints.finally(format!("{name}: {count}"));
        }
    }
    for gauge in ["cluster_manager.warming_clusters", "listener_manager.total_listeners_warming"] {
        let count = stats.get(gauge).with_context(|| format!("Envoy has no {gauge}"))?;
        complaints.unless(*count == 0, || format!("{gauge}: {count}"));
    }
    let state = envoy.admin_get("/ready")?.text();
    complaints.unless(state.trim() == "LIVE", || format!("Envoy is {}", state.trim()));

    let sessions = get(monitoring, "/debug/syncz?full")?;
    let of_node = format!("/debug/config_dump?proxyID={}", expected.node["id"].as_str().unwrap_or_default());
    let (Some(session), Ok(acked)) = (one(&sessions), get(monitoring, &of_node)) else {
        complaints.of_now("weftd does not know the proxy".to_owned());
        return Ok(complaints.0);
    };
    look_at_session(session, expected, &mut complaints);
    if complaints.0.is_empty() {
        // Costly, so only once there is hope.
        look_at_dumps(&envoy.config_dump()?, &acked, expected, &mut complaints);
        let listening = envoy.admin_get("/listeners?format=json")?.json()?;
        let listening = listening["listener_statuses"].as_array().map_or(0, Vec::len);
        let listeners = expected.names["listeners"].len();
        complaints
            .unless(listening == listeners, || format!("{listening} of {listeners} listeners are active"));
    }
    Ok(complaints.0)
}

#[derive(Default)]
struct Complaints(Vec<Complaint>);

impl Complaints {
    fn unless(&mut self, fine: bool, text: impl FnOnce() -> String) {
        if !fine {
            self.of_now(text());
        }
    }

    fn of_now(&mut self, text: String) {
        self.0.push(Complaint { text, is_final: false });
    }

    fn finally(&mut self, text: String) {
        self.0.push(Complaint { text, is_final: true });
    }
}

fn get(monitoring: SocketAddr, path: &str) -> anyhow::Result<Value> {
    Ok(Request::get(path).send(monitoring)?.json()?)
}

/// Returns the only session; after the end of one Envoy the next may be there first.
fn one(sessions: &Value) -> Option<&Value> {
    match sessions.as_array()?.as_slice() {
        [session] => Some(session),
        _ => None,
    }
}

/// weftd's own view of how far the proxy is.
fn look_at_session(session: &Value, expected: &Expected, complaints: &mut Complaints) {
    for Type { plural, singular, .. } in &TYPES {
        if let Some(error) = session[format!("{singular}_error")].as_str() {
            complaints.finally(format!("{plural} are rejected: {error}"));
        }
        let status = session[format!("{singular}_status")].as_str().unwrap_or_default();
        let nothing = expected.names[plural].is_empty() && status == "NOT SENT";
        complaints.unless(status == "SYNCED" || nothing, || format!("weftd: {plural} are {status}"));
        let behind = &session[format!("{singular}_behind")];
        complaints.unless(*behind == 0, || format!("weftd: {behind} {plural} are not sent"));
    }
    let stuck = &session["stuck_clusters"];
    complaints.unless(stuck.as_array().is_some_and(Vec::is_empty), || format!("weftd: stuck: {stuck}"));
}

/// What Envoy has, next to what weftd says that it has acknowledged, next to what it should have.
fn look_at_dumps(dump: &Value, acked: &Value, expected: &Expected, complaints: &mut Complaints) {
    for kind in &TYPES {
        let plural = kind.plural;
        let names = &expected.names[plural];
        let acked = versions(acked, kind);
        complaints.unless(acked.keys().eq(names), || {
            let missing: Vec<&String> = names.iter().filter(|name| !acked.contains_key(*name)).collect();
            let other: Vec<&String> = acked.keys().filter(|name| !names.contains(*name)).collect();
            format!("{plural}: not requested and acknowledged: {missing:?}; not compiled: {other:?}")
        });
        let mut active = versions(dump, kind);
        if plural == "endpoints" {
            // Envoy's dump has the endpoints of all clusters, under their names and without versions.
            active.retain(|name, _| names.contains(name));
            complaints.unless(active.keys().eq(acked.keys()), || {
                let lacking: Vec<&String> = acked.keys().filter(|name| !active.contains_key(*name)).collect();
                format!("Envoy has no endpoints of {lacking:?}")
            });
            continue;
        }
        complaints.unless(active == acked, || {
            let differs = acked.iter().filter(|(name, version)| active.get(*name) != Some(version));
            let differs: Vec<&String> = differs.map(|(name, _)| name).collect();
            format!("{plural}: acknowledged, but not active in Envoy in that version: {differs:?}")
        });
    }
    for cluster in entries(dump, "ClustersConfigDump", "dynamic_warming_clusters") {
        complaints.of_now(format!("cluster {} is warming", cluster["cluster"]["name"]));
    }
    for secret in entries(dump, "SecretsConfigDump", "dynamic_warming_secrets") {
        let name = secret["name"].as_str().unwrap_or_default();
        complaints.unless(!material::may_have(&expected.node, name), || format!("secret {name} is missing"));
    }
    for listener in entries(dump, "ListenersConfigDump", "dynamic_listeners") {
        let name = listener["name"].as_str().unwrap_or_default();
        for state in ["warming_state", "error_state"] {
            complaints.unless(listener[state].is_null(), || {
                format!("listener {name} has {state}: {}", listener[state]["details"])
            });
        }
    }
}

/// Returns the versions of the resources of a type in a dump, by name.
fn versions(dump: &Value, kind: &Type) -> BTreeMap<String, String> {
    let entries = entries(dump, kind.dump, kind.active).filter_map(|entry| {
        let (resource, version) = match kind.field {
            "active_state" => (entry, &entry["active_state"]["version_info"]),
            field => (&entry[field], &entry["version_info"]),
        };
        let active = kind.field != "active_state" || entry["active_state"].is_object();
        let name = resource[kind.name].as_str().filter(|_| active)?;
        Some((name.to_owned(), version.as_str().unwrap_or_default().to_owned()))
    });
    entries.collect()
}

fn entries<'d>(dump: &'d Value, message: &str, list: &str) -> impl Iterator<Item = &'d Value> {
    let type_url = format!("type.googleapis.com/envoy.admin.v3.{message}");
    let configs = dump["configs"].as_array().into_iter().flatten();
    let config = configs.filter(move |config| config["@type"] == type_url.as_str());
    let list = list.to_owned();
    config.flat_map(move |config| config[list.as_str()].as_array().into_iter().flatten())
}
