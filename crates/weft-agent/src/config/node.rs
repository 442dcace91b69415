//! Who the proxy says it is: Istio's node id and metadata.

use super::{ConfigError, Environment, Ports, ReadFile, downward, interfaces};
use crate::args::ProxyArgs;
use k8s_api::mesh_config::ProxyConfig;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

/// The version of Istio whose agent this one stands for: control planes choose features by it.
const ISTIO_VERSION: &str = "1.32.0";
const LABELS_FILE: &str = "./etc/istio/pod/labels";
const ANNOTATIONS_FILE: &str = "./etc/istio/pod/annotations";

/// Which address families a workload has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
    /// Both; the first is the primary one.
    V4AndV6,
    /// Both; the first is the primary one.
    V6AndV4,
}

impl Families {
    fn of(addresses: &[IpAddr]) -> Self {
        let first_is_v6 = addresses.first().is_some_and(IpAddr::is_ipv6);
        let both = addresses.iter().any(|address| address.is_ipv6() != first_is_v6);
        match (first_is_v6, both) {
            (false, false) => Self::V4,
            (true, false) => Self::V6,
            (false, true) => Self::V4AndV6,
            (true, true) => Self::V6AndV4,
        }
    }

    fn prefers_v6(self) -> bool {
        matches!(self, Self::V6 | Self::V6AndV4)
    }

    /// Returns the loopback address of the primary family.
    pub fn loopback(self) -> IpAddr {
        if self.prefers_v6() { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() }
    }

    /// Returns the addresses to listen on, the primary one first.
    pub fn wildcards(self) -> Vec<IpAddr> {
        let (v4, v6) = (IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED));
        match self {
            Self::V4 => vec![v4],
            Self::V6 => vec![v6],
            Self::V4AndV6 => vec![v4, v6],
            Self::V6AndV4 => vec![v6, v4],
        }
    }
}

/// What the downward API says about the pod.
#[derive(Debug, Default)]
pub(super) struct Pod {
    labels: Option<BTreeMap<String, String>>,
    pub(super) annotations: BTreeMap<String, String>,
}

impl Pod {
    pub(super) fn read(environment: &Environment, read: ReadFile<'_>) -> Result<Self, ConfigError> {
        let labels = environment.text("ISTIO_POD_LABELS_FILE").unwrap_or(LABELS_FILE);
        let annotations = environment.text("ISTIO_POD_ANNOTATIONS_FILE").unwrap_or(ANNOTATIONS_FILE);
        Ok(Self {
            labels: downward_file(Path::new(labels), read)?,
            annotations: downward_file(Path::new(annotations), read)?.unwrap_or_default(),
        })
    }
}

fn downward_file(path: &Path, read: ReadFile<'_>) -> Result<Option<BTreeMap<String, String>>, ConfigError> {
    match read(path) {
        Ok(text) => downward::parse(&text).map(Some).map_err(|reason| ConfigError::file(path, &reason)),
        // A virtual machine.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(ConfigError::file(path, &error)),
    }
}

/// What a node is made from.
pub(super) struct Facts<'a> {
    pub(super) args: &'a ProxyArgs,
    pub(super) environment: &'a Environment,
    pub(super) read: ReadFile<'a>,
    pub(super) pod: &'a Pod,
    pub(super) proxy: &'a ProxyConfig,
    pub(super) ports: Ports,
    pub(super) exit_on_zero: bool,
    pub(super) control_plane: &'a str,
}

/// Who the proxy says it is.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeSettings {
    /// `<type>~<ip>~<pod>.<namespace>~<domain>`.
    pub id: String,
    /// The name that Envoy gives as its cluster.
    pub cluster: String,
    /// Region, zone and subzone; empty if they are not known here.
    pub locality: [String; 3],
    /// What Istio's agents say of themselves.
    pub metadata: Map<String, Value>,
    /// The workload's namespace.
    pub namespace: String,
    /// The workload's service account.
    pub service_account: String,
    /// The workload's addresses, the primary one first; at least one.
    pub addresses: Vec<IpAddr>,
    /// The families of these.
    pub families: Families,
}

impl NodeSettings {
    pub(super) fn new(facts: &Facts<'_>) -> Result<Self, ConfigError> {
        let environment = facts.environment;
        let name = match environment.text("POD_NAME") {
            Some(name) => name.to_owned(),
            None => host_name(facts.read)
                .ok_or_else(|| ConfigError::variable("POD_NAME", "is not set, and there is no host name"))?,
        };
        let namespace = environment.text("POD_NAMESPACE").ok_or_else(|| {
            ConfigError::variable("POD_NAMESPACE", "is not set: it is the workload's namespace")
        })?;
        let addresses = addresses(environment, facts.read)?;
        let domain = match &facts.args.domain {
            Some(domain) => domain.clone(),
            None => format!("{namespace}.svc.cluster.local"),
        };
        let mut metadata = of_environment(environment, facts.proxy)?;
        let labels = labels(&mut metadata, facts.pod);
        add_facts(&mut metadata, facts, &name, namespace, &addresses);
        Ok(Self {
            id: format!("{}~{}~{name}.{namespace}~{domain}", facts.args.role.as_str(), addresses[0]),
            cluster: service_cluster(facts.proxy, &metadata, &labels, namespace),
            locality: locality(&mut metadata, &labels),
            metadata,
            namespace: namespace.to_owned(),
            service_account: environment.text("SERVICE_ACCOUNT").unwrap_or("default").to_owned(),
            families: Families::of(&addresses),
            addresses,
        })
    }
}

fn host_name(read: ReadFile<'_>) -> Option<String> {
    let text = read(Path::new("/proc/sys/kernel/hostname")).ok()?;
    Some(text.trim().to_owned()).filter(|name| !name.is_empty())
}

/// The pod's own address first, then those of the interfaces.
fn addresses(environment: &Environment, read: ReadFile<'_>) -> Result<Vec<IpAddr>, ConfigError> {
    let mut addresses = Vec::new();
    for text in environment.text("INSTANCE_IP").unwrap_or_default().split(',').filter(|text| !text.is_empty())
    {
        let address = text.trim().parse();
        addresses.push(
            address.map_err(|_| {
                ConfigError::variable("INSTANCE_IP", format!("{text:?} is not an IP address"))
            })?,
        );
    }
    let text = |path: &str| read(Path::new(path)).unwrap_or_default();
    let found = interfaces::ipv4(&text("/proc/net/fib_trie"))
        .into_iter()
        .chain(interfaces::ipv6(&text("/proc/net/if_inet6")));
    for address in found {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.is_empty() {
        addresses.push(Ipv4Addr::LOCALHOST.into());
    }
    Ok(addresses)
}

/// Says that connections of both families are captured.
const DUAL_STACK: &str = "ISTIO_DUAL_STACK";

/// `ISTIO_META_` variables are metadata of these names, also those among the proxy's `proxyMetadata`;
/// `ISTIO_METAJSON_` variables are objects of metadata.
fn of_environment(environment: &Environment, proxy: &ProxyConfig) -> Result<Map<String, Value>, ConfigError> {
    let mut metadata = Map::new();
    let of_config = proxy
        .proxy_metadata
        .iter()
        .filter_map(|(name, value)| Some((name.strip_prefix("ISTIO_META_")?, value.as_str())));
    for (name, value) in of_config.chain(environment.with_prefix("ISTIO_META_")) {
        metadata.insert(name.to_owned(), Value::from(value));
    }
    // What is captured has to arrive: weftd has Envoy listen for both families if this says so.
    let of_config = proxy.proxy_metadata.get(DUAL_STACK).is_some_and(|value| value == "true");
    if environment.flag(DUAL_STACK, of_config)? {
        metadata.insert(DUAL_STACK.to_owned(), Value::from("true"));
    }
    for (name, value) in environment.with_prefix("ISTIO_METAJSON_") {
        let object: Map<String, Value> = serde_json::from_str(value).map_err(|error| {
            ConfigError::variable("ISTIO_METAJSON_", format!("{name}: not a JSON object: {error}"))
        })?;
        // Labels come without a key around them.
        if name == "LABELS" && object.values().all(Value::is_string) {
            metadata.insert("LABELS".to_owned(), Value::Object(object.clone()));
            metadata.insert("STATIC_LABELS".to_owned(), Value::Object(object));
        } else {
            metadata.extend(object);
        }
    }
    Ok(metadata)
}

/// The labels of the pod over those that were given; a hash that differs for every ReplicaSet is nobody's business.
fn labels(metadata: &mut Map<String, Value>, pod: &Pod) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    if let Some(Value::Object(given)) = metadata.get("LABELS") {
        let text = |(name, value): (&String, &Value)| Some((name.clone(), value.as_str()?.to_owned()));
        labels.extend(given.iter().filter_map(text));
    }
    let of_pod = pod.labels.iter().flatten().filter(|(name, _)| *name != "pod-template-hash");
    labels.extend(of_pod.map(|(name, value)| (name.clone(), value.clone())));
    if !labels.is_empty() {
        metadata.insert("LABELS".to_owned(), object(&labels));
    }
    if !pod.annotations.is_empty() {
        let annotations = pod.annotations.iter().map(|(name, value)| (name.clone(), value.clone()));
        metadata.insert("ANNOTATIONS".to_owned(), object(&annotations.collect()));
    }
    labels
}

fn object(values: &BTreeMap<String, String>) -> Value {
    values.iter().map(|(name, value)| (name.clone(), Value::from(value.as_str()))).collect()
}

fn add_facts(
    metadata: &mut Map<String, Value>,
    facts: &Facts<'_>,
    name: &str,
    namespace: &str,
    addresses: &[IpAddr],
) {
    let ips: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
    let mut set = |name: &str, value: Value| metadata.insert(name.to_owned(), value);
    set("NAME", name.into());
    set("NAMESPACE", namespace.into());
    set("INSTANCE_IPS", ips.join(",").into());
    set("ENVOY_STATUS_PORT", facts.ports.envoy_status.into());
    set("ENVOY_PROMETHEUS_PORT", facts.ports.envoy_prometheus.into());
    set("PILOT_SAN", vec![facts.control_plane].into());
    set("WEFT_VERSION", env!("CARGO_PKG_VERSION").into());
    set("PROXY_CONFIG", serde_json::to_value(facts.proxy).unwrap_or_default());
    if facts.exit_on_zero {
        set("EXIT_ON_ZERO_ACTIVE_CONNECTIONS", "true".into());
    }
    if let Some(account) = facts.environment.text("SERVICE_ACCOUNT") {
        set("SERVICE_ACCOUNT", account.into());
    }
    metadata.entry("ISTIO_VERSION").or_insert_with(|| ISTIO_VERSION.into());
}

/// How Envoy calls itself in traces: the configuration's name, or else one made of the workload.
fn service_cluster(
    proxy: &ProxyConfig,
    metadata: &Map<String, Value>,
    labels: &BTreeMap<String, String>,
    namespace: &str,
) -> String {
    let workload = metadata.get("WORKLOAD_NAME").and_then(Value::as_str).filter(|name| !name.is_empty());
    let or_default = |name: &str| match (name, labels.get("app"), workload) {
        (name, _, _) if !name.is_empty() && name != "istio-proxy" => name.to_owned(),
        (_, Some(app), _) => format!("{app}.{namespace}"),
        (_, None, Some(workload)) => format!("{workload}.{namespace}"),
        (_, None, None) => format!("istio-proxy.{namespace}"),
    };
    let canonical = || {
        let names = ["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"];
        let label = names.into_iter().find_map(|name| labels.get(name)).map(String::as_str);
        label.or(workload).unwrap_or("istio-proxy").to_owned()
    };
    match proxy.tracing_service_name.as_deref() {
        None => or_default(&proxy.service_cluster),
        Some("CANONICAL_NAME_ONLY") => or_default(&canonical()),
        Some("CANONICAL_NAME_AND_NAMESPACE") => format!("{}.{namespace}", canonical()),
        Some(_) => or_default("istio-proxy"),
    }
}

/// A label `region.zone.subzone`, or with slashes, which is then what the metadata say too.
fn locality(metadata: &mut Map<String, Value>, labels: &BTreeMap<String, String>) -> [String; 3] {
    const NAMES: [&str; 2] = ["topology.istio.io/locality", "istio-locality"];
    let Some((name, value)) = NAMES.iter().find_map(|name| Some((*name, labels.get(*name)?))) else {
        return Default::default();
    };
    let value = if value.contains('/') { value.clone() } else { value.replace('.', "/") };
    let mut parts = value.split('/').map(str::to_owned);
    let mut next = || parts.next().unwrap_or_default();
    let locality = [next(), next(), next()];
    if let Some(Value::Object(labels)) = metadata.get_mut("LABELS") {
        labels.insert(name.to_owned(), value.into());
    }
    locality
}
