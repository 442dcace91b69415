//! The annotations that change what is injected, checked before anything is made of them.
//!
//! A value that is not understood refuses the pod, with the annotation's name: a proxy that does something else than its
//! owner asked for is harder to find than a pod that is not there.

use crate::error::InjectError;
use crate::pod;
use k8s_api::mesh_config::{InterceptionMode, ProxyConfig};
use k8s_api::pod::{Quantity, Volume, VolumeMount};
use k8s_api::yaml::parse_value;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// What a pod's annotations ask for. Absent fields are decided by the settings.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    pub(crate) templates: Option<Vec<String>>,
    pub(crate) mode: Option<InterceptionMode>,
    pub(crate) status_port: Option<u16>,
    pub(crate) readiness_initial_delay: Option<i32>,
    pub(crate) readiness_period: Option<i32>,
    pub(crate) readiness_failures: Option<i32>,
    pub(crate) include_ip_ranges: Option<String>,
    pub(crate) exclude_ip_ranges: Option<String>,
    pub(crate) include_inbound_ports: Option<String>,
    pub(crate) exclude_inbound_ports: Option<String>,
    pub(crate) include_outbound_ports: Option<String>,
    pub(crate) exclude_outbound_ports: Option<String>,
    pub(crate) exclude_interfaces: Option<String>,
    pub(crate) virtual_interfaces: Option<String>,
    pub(crate) proxy_image: Option<String>,
    pub(crate) proxy_image_type: Option<String>,
    pub(crate) requests: BTreeMap<String, Quantity>,
    pub(crate) limits: BTreeMap<String, Quantity>,
    pub(crate) log_level: Option<String>,
    pub(crate) component_log_level: Option<String>,
    pub(crate) agent_log_level: Option<String>,
    pub(crate) bootstrap_override: Option<String>,
    pub(crate) volumes: Vec<Volume>,
    pub(crate) mounts: Vec<VolumeMount>,
    pub(crate) native: Option<bool>,
    /// `proxy.istio.io/config`, to be merged over the mesh's.
    pub(crate) proxy_config: Option<Value>,
    /// What is said but has no effect.
    pub(crate) warnings: Vec<String>,
}

impl Options {
    /// Reads the annotations of a pod.
    pub(crate) fn parse(pod: &Value) -> Result<Self, InjectError> {
        let reader = Reader { annotations: pod::strings(pod, "annotations") };
        let mut options = Self {
            templates: reader.optional("inject.istio.io/templates", |text| Ok(names(text)))?,
            mode: reader.optional("sidecar.istio.io/interceptionMode", mode)?,
            status_port: reader.optional("status.sidecar.istio.io/port", port)?,
            native: reader.optional("sidecar.istio.io/nativeSidecar", boolean)?,
            proxy_config: reader.optional("proxy.istio.io/config", proxy_config)?,
            proxy_image: reader.optional("sidecar.istio.io/proxyImage", image)?,
            proxy_image_type: reader.optional("sidecar.istio.io/proxyImageType", image_type)?,
            log_level: reader.optional("sidecar.istio.io/logLevel", log_level)?,
            component_log_level: reader.optional("sidecar.istio.io/componentLogLevel", component_levels)?,
            agent_log_level: reader.optional("sidecar.istio.io/agentLogLevel", agent_levels)?,
            bootstrap_override: reader.optional("sidecar.istio.io/bootstrapOverride", config_map)?,
            volumes: reader.optional("sidecar.istio.io/userVolume", volumes)?.unwrap_or_default(),
            mounts: reader.optional("sidecar.istio.io/userVolumeMount", mounts)?.unwrap_or_default(),
            ..Self::default()
        };
        // They may also come from a template, and are read when the pod is whole.
        for name in ["sidecar.istio.io/rewriteAppHTTPProbers", "prometheus.istio.io/merge-metrics"] {
            reader.optional(name, boolean)?;
        }
        options.read_readiness(&reader)?;
        options.read_traffic(&reader)?;
        options.read_resources(&reader)?;
        options.check_statistics(&reader)?;
        options.note_what_has_no_effect(&reader)?;
        Ok(options)
    }

    fn read_readiness(&mut self, reader: &Reader) -> Result<(), InjectError> {
        let number =
            |field: &str| reader.optional(&format!("readiness.status.sidecar.istio.io/{field}"), count);
        self.readiness_initial_delay = number("initialDelaySeconds")?;
        self.readiness_period = number("periodSeconds")?;
        self.readiness_failures = number("failureThreshold")?;
        Ok(())
    }

    fn read_traffic(&mut self, reader: &Reader) -> Result<(), InjectError> {
        let text = |field: &str, check: fn(&str) -> Result<(), String>| {
            reader.optional(&format!("traffic.sidecar.istio.io/{field}"), |text| {
                check(text).map(|()| text.to_owned())
            })
        };
        self.include_ip_ranges = text("includeOutboundIPRanges", |text| {
            if text == "*" { Ok(()) } else { ranges(text).map_err(|why| format!("includeIPRanges: {why}")) }
        })?;
        self.exclude_ip_ranges = text("excludeOutboundIPRanges", |text| {
            ranges(text).map_err(|why| format!("excludeIPRanges: {why}"))
        })?;
        self.include_inbound_ports = text("includeInboundPorts", all_or_ports)?;
        self.exclude_inbound_ports = text("excludeInboundPorts", ports)?;
        self.include_outbound_ports = text("includeOutboundPorts", all_or_ports)?;
        self.exclude_outbound_ports = text("excludeOutboundPorts", ports)?;
        self.exclude_interfaces = text("excludeInterfaces", interfaces)?;
        let old = text("kubevirtInterfaces", interfaces)?;
        let new = reader.optional("istio.io/reroute-virtual-interfaces", |text| {
            interfaces(text).map(|()| text.to_owned())
        })?;
        self.virtual_interfaces = new.or(old);
        Ok(())
    }

    fn read_resources(&mut self, reader: &Reader) -> Result<(), InjectError> {
        for (field, resource, limits) in [
            ("proxyCPU", "cpu", false),
            ("proxyMemory", "memory", false),
            ("proxyCPULimit", "cpu", true),
            ("proxyMemoryLimit", "memory", true),
        ] {
            if let Some(amount) = reader.optional(&format!("sidecar.istio.io/{field}"), quantity)? {
                let list = if limits { &mut self.limits } else { &mut self.requests };
                list.insert(resource.to_owned(), amount);
            }
        }
        Ok(())
    }

    /// Those that the agent reads itself, from the pod's annotations. A bad one would keep it from starting.
    fn check_statistics(&self, reader: &Reader) -> Result<(), InjectError> {
        let check = |field: &str, check: fn(&str) -> Result<(), String>| {
            reader.optional(&format!("sidecar.istio.io/{field}"), check).map(|_| ())
        };
        check("statsHistogramBuckets", |text| {
            let buckets: Result<BTreeMap<String, Vec<f64>>, _> = serde_json::from_str(text);
            buckets.map(|_| ()).map_err(|error| format!("is not a map of lists of numbers: {error}"))
        })?;
        check("statsHistogramBins", |text| count(text).map(|_| ()))?;
        check("statsFlushInterval", duration)?;
        check("statsEvictionInterval", duration)
    }

    fn note_what_has_no_effect(&mut self, reader: &Reader) -> Result<(), InjectError> {
        for (name, instead) in [
            ("sidecar.istio.io/discoveryAddress", "set discoveryAddress in proxy.istio.io/config"),
            ("sidecar.istio.io/statsCompression", "weft-agent does not compress statistics"),
            ("sidecar.istio.io/statsHistogramBins", "Envoy's own bins are used"),
            ("sidecar.istio.io/bootstrapOverride", "weft-agent makes the whole bootstrap itself"),
        ] {
            if reader.annotations.contains_key(name) {
                self.warnings.push(format!("annotation {name} has no effect: {instead}"));
            }
        }
        let ports = "readiness.status.sidecar.istio.io/applicationPorts";
        if reader.optional(ports, self::ports)?.is_some() {
            self.warnings.push(format!("annotation {ports} has no effect: readiness does not look at ports"));
        }
        Ok(())
    }
}

struct Reader {
    annotations: BTreeMap<String, String>,
}

impl Reader {
    fn optional<T>(
        &self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, InjectError> {
        let Some(text) = self.annotations.get(name) else { return Ok(None) };
        parse(text).map(Some).map_err(|reason| InjectError::annotation(name, reason))
    }
}

fn names(text: &str) -> Vec<String> {
    text.split(',').map(|name| name.trim().to_owned()).collect()
}

/// Reads a boolean as Go writes it.
fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("{text:?} is neither true nor false")),
    }
}

fn count(text: &str) -> Result<i32, String> {
    let number = text.parse::<u32>().ok().and_then(|number| i32::try_from(number).ok());
    number.ok_or_else(|| format!("{text:?} is not a number that is zero or more"))
}

fn port(text: &str) -> Result<u16, String> {
    text.trim().parse().map_err(|_| format!("{text:?} is not a port"))
}

fn ports(text: &str) -> Result<(), String> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(());
    }
    text.split(',').try_for_each(|item| port(item).map(|_| ()))
}

fn all_or_ports(text: &str) -> Result<(), String> {
    if text == "*" { Ok(()) } else { ports(text) }
}

fn ranges(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Ok(());
    }
    let check = |range: &str| {
        let parsed: Result<ipnet::IpNet, _> = range.parse();
        parsed.map(|_| ()).map_err(|_| format!("{range:?} is not a range of addresses such as 10.0.0.0/8"))
    };
    text.split(',').try_for_each(check)
}

/// Names of network interfaces, as Linux allows them.
fn interfaces(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Ok(());
    }
    let is_name = |name: &str| {
        !name.is_empty() && name.len() <= 15 && !name.contains(|c: char| c == '/' || c.is_whitespace())
    };
    // KubeVirt's can be given by their addresses, too.
    let is_address = |name: &str| name.parse::<ipnet::IpNet>().is_ok() || name.parse::<IpAddr>().is_ok();
    match text.split(',').map(str::trim).find(|name| !is_name(name) && !is_address(name)) {
        Some(bad) => Err(format!("{bad:?} is not the name of a network interface")),
        None => Ok(()),
    }
}

fn mode(text: &str) -> Result<InterceptionMode, String> {
    match InterceptionMode::from(text) {
        InterceptionMode::Other(_) => Err(format!("{text:?} is none of REDIRECT, TPROXY and NONE")),
        mode => Ok(mode),
    }
}

/// Checks the form of Kubernetes' quantities: digits, a point, and a unit.
fn quantity(text: &str) -> Result<Quantity, String> {
    const UNITS: [&str; 16] =
        ["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (amount, unit) = text.split_at(end);
    let exponent = unit.strip_prefix(['e', 'E']).is_some_and(|digits| digits.parse::<i32>().is_ok());
    let valid = amount.parse::<f64>().is_ok() && (UNITS.contains(&unit) || exponent);
    if valid {
        Ok(Quantity(text.to_owned()))
    } else {
        Err(format!("{text:?} is not an amount such as 100m or 1Gi"))
    }
}

fn image(text: &str) -> Result<String, String> {
    let valid = !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || c.is_control());
    if valid { Ok(text.to_owned()) } else { Err(format!("{text:?} is not the name of an image")) }
}

fn image_type(text: &str) -> Result<String, String> {
    let valid = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    if valid { Ok(text.to_owned()) } else { Err(format!("{text:?} cannot be a part of an image's tag")) }
}

const LOG_LEVELS: [&str; 8] = ["trace", "debug", "info", "warning", "warn", "error", "critical", "off"];

fn log_level(text: &str) -> Result<String, String> {
    // The flag also takes levels of parts behind the level.
    let (level, parts) = text.split_once(',').unwrap_or((text, ""));
    if !LOG_LEVELS.contains(&level) {
        return Err(format!("{level:?} is none of {}", LOG_LEVELS.join(", ")));
    }
    component_levels(parts).map(|_| text.to_owned())
}

fn component_levels(text: &str) -> Result<String, String> {
    levels(text, &LOG_LEVELS)
}

fn agent_levels(text: &str) -> Result<String, String> {
    levels(text, &["debug", "info", "warn", "error", "fatal", "none"])
}

/// Checks a list such as `misc:error,rbac:debug`.
fn levels(text: &str, known: &[&str]) -> Result<String, String> {
    let is_pair = |pair: &str| {
        pair.split_once(':').is_some_and(|(part, level)| !part.is_empty() && known.contains(&level))
    };
    match text.split(',').map(str::trim).find(|pair| !pair.is_empty() && !is_pair(pair)) {
        Some(bad) => Err(format!("{bad:?} is not part:level, with a level of {}", known.join(", "))),
        None => Ok(text.to_owned()),
    }
}

fn config_map(text: &str) -> Result<String, String> {
    let valid = !text.is_empty()
        && text.len() <= 253
        && text
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-".contains(&byte));
    if valid { Ok(text.to_owned()) } else { Err(format!("{text:?} is not the name of a ConfigMap")) }
}

/// Reads a JSON map by name into values that hold their names.
fn named<T: DeserializeOwned>(text: &str) -> Result<Vec<T>, String> {
    let map: BTreeMap<String, Map<String, Value>> =
        serde_json::from_str(text).map_err(|error| format!("is not a JSON map of objects: {error}"))?;
    let convert = |(name, mut fields): (String, Map<String, Value>)| {
        fields.insert("name".to_owned(), Value::String(name.clone()));
        serde_json::from_value(Value::Object(fields)).map_err(|error| format!("{name:?}: {error}"))
    };
    map.into_iter().map(convert).collect()
}

fn volumes(text: &str) -> Result<Vec<Volume>, String> {
    named(text)
}

fn mounts(text: &str) -> Result<Vec<VolumeMount>, String> {
    let mounts: Vec<VolumeMount> = named(text)?;
    match mounts.iter().find(|mount| mount.mount_path.is_empty()) {
        Some(mount) => Err(format!("{:?}: mountPath is required", mount.name)),
        None => Ok(mounts),
    }
}

/// Checks Go's notation of durations, such as `10s` or `1h30m`.
fn duration(text: &str) -> Result<(), String> {
    let invalid = || format!("{text:?} is not a duration such as 10s or 1h30m");
    let mut rest = text;
    if rest.is_empty() {
        return Err(invalid());
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(invalid)?;
        rest[..end].parse::<f64>().map_err(|_| invalid())?;
        let unit = rest[end..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |length| end + length);
        if !["h", "m", "s", "ms", "us", "µs", "ns"].contains(&&rest[end..unit]) {
            return Err(invalid());
        }
        rest = &rest[unit..];
    }
    Ok(())
}

/// Reads a ProxyConfig. Unlike MeshConfig it is written for one workload, so that a misspelt field is its author's.
fn proxy_config(text: &str) -> Result<Value, String> {
    let parsed = parse_value::<ProxyConfig>(text, "value").map_err(|error| error.to_string())?;
    if let Some(warning) = parsed.warnings.first() {
        return Err(format!("{}: {}", warning.path, warning.message));
    }
    check_proxy_config(&parsed.json)?;
    Ok(parsed.json)
}

/// Checks what the types of the fields leave open.
fn check_proxy_config(config: &Value) -> Result<(), String> {
    let field = |name: &str, reason: String| format!("{name}: {reason}");
    for name in ["drainDuration", "terminationDrainDuration", "parentShutdownDuration", "fileFlushInterval"] {
        if let Some(text) = config[name].as_str() {
            duration(text).map_err(|reason| field(name, reason))?;
        }
    }
    for name in ["configPath", "binaryPath", "serviceCluster"] {
        if config[name] == json!("") {
            return Err(field(name, "must not be empty".to_owned()));
        }
    }
    for name in ["proxyAdminPort", "statusPort"] {
        if config[name] == json!(0) {
            return Err(field(name, "0 is not a port".to_owned()));
        }
    }
    if let Some(text) = config["interceptionMode"].as_str() {
        mode(text).map_err(|reason| field("interceptionMode", reason))?;
    }
    if let Some(text) = config["controlPlaneAuthPolicy"].as_str()
        && !["MUTUAL_TLS", "NONE"].contains(&text)
    {
        let reason = format!("{text:?} is neither MUTUAL_TLS nor NONE");
        return Err(field("controlPlaneAuthPolicy", reason));
    }
    if let Some(text) = config["discoveryAddress"].as_str() {
        let is_address = text
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0));
        if !is_address {
            return Err(field("discoveryAddress", format!("{text:?} is not host:port")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(name: &str, value: &str) -> Result<Options, InjectError> {
        Options::parse(&json!({"metadata": {"annotations": {name: value}}}))
    }

    #[test]
    fn values_that_are_not_understood_are_refused_by_name() {
        for (name, values) in [
            ("sidecar.istio.io/interceptionMode", &["redirect", ""][..]),
            ("status.sidecar.istio.io/port", &["http", "-1", "65536"]),
            ("readiness.status.sidecar.istio.io/initialDelaySeconds", &["-1", "1.5", "4294967296"]),
            ("readiness.status.sidecar.istio.io/periodSeconds", &["soon"]),
            ("readiness.status.sidecar.istio.io/failureThreshold", &["-3"]),
            ("readiness.status.sidecar.istio.io/applicationPorts", &["a,b"]),
            (
                "traffic.sidecar.istio.io/includeOutboundIPRanges",
                &["bad", "10.0.0.0/33", "10.0.0.1", "*,10.0.0.0/8"],
            ),
            ("traffic.sidecar.istio.io/excludeOutboundIPRanges", &["*", "10.0.0.0/8,"]),
            ("traffic.sidecar.istio.io/includeInboundPorts", &["*,80", "http"]),
            ("traffic.sidecar.istio.io/excludeInboundPorts", &["*", "70000", "80,"]),
            ("traffic.sidecar.istio.io/includeOutboundPorts", &["x"]),
            ("traffic.sidecar.istio.io/excludeOutboundPorts", &["bad"]),
            ("traffic.sidecar.istio.io/excludeInterfaces", &["a b", "a-name-that-is-too-long"]),
            ("traffic.sidecar.istio.io/kubevirtInterfaces", &["net/1"]),
            ("istio.io/reroute-virtual-interfaces", &["net1,"]),
            ("prometheus.istio.io/merge-metrics", &["yes"]),
            ("sidecar.istio.io/nativeSidecar", &["on"]),
            ("sidecar.istio.io/rewriteAppHTTPProbers", &["no"]),
            ("sidecar.istio.io/proxyCPU", &["much", "-1", "1 Gi", ""]),
            ("sidecar.istio.io/proxyMemoryLimit", &["1GiB"]),
            ("sidecar.istio.io/proxyImage", &["", "a b"]),
            ("sidecar.istio.io/proxyImageType", &["a/b"]),
            ("sidecar.istio.io/logLevel", &["loud"]),
            ("sidecar.istio.io/componentLogLevel", &["misc", "misc:loud"]),
            ("sidecar.istio.io/agentLogLevel", &["default:trace"]),
            ("sidecar.istio.io/bootstrapOverride", &["", "My Map"]),
            ("sidecar.istio.io/userVolume", &["[]", "{\"v\": 1}", "{", "{\"v\": {\"emptyDir\": 1}}"]),
            ("sidecar.istio.io/userVolumeMount", &["{\"v\": {}}"]),
            ("sidecar.istio.io/statsHistogramBuckets", &["{\"a\": \"b\"}"]),
            ("sidecar.istio.io/statsHistogramBins", &["x"]),
            ("sidecar.istio.io/statsFlushInterval", &["10", "x"]),
            ("sidecar.istio.io/statsEvictionInterval", &["1d"]),
            (
                "proxy.istio.io/config",
                &[
                    "{",
                    "concurency: 1",
                    "concurrency: -1",
                    "statusPort: 0",
                    "drainDuration: 5",
                    "drainDuration: soon",
                    "discoveryAddress: istiod",
                    "interceptionMode: redirect",
                    "controlPlaneAuthPolicy: TLS",
                    "binaryPath: ''",
                ],
            ),
        ] {
            for value in values {
                let error = parse(name, value).map(|_| ()).expect_err(&format!("{name}={value:?}"));
                let InjectError::Annotation { name: named, reason } = &error else { panic!("{error}") };
                assert_eq!(named, name);
                assert!(!reason.is_empty());
            }
        }
    }

    #[test]
    fn values_of_istios_documentation_are_understood() {
        for (name, values) in [
            ("sidecar.istio.io/interceptionMode", &["REDIRECT", "TPROXY", "NONE"][..]),
            ("status.sidecar.istio.io/port", &["0", "15020"]),
            ("traffic.sidecar.istio.io/includeOutboundIPRanges", &["*", "", "10.96.0.2/24,fd00::/8"]),
            ("traffic.sidecar.istio.io/excludeInboundPorts", &["", "4,5,6", " 4, 5 "]),
            ("sidecar.istio.io/proxyCPU", &["100m", "1", "0.5", "1e3"]),
            ("sidecar.istio.io/proxyMemory", &["1Gi", "500M"]),
            ("sidecar.istio.io/logLevel", &["debug", "warning,misc:error"]),
            ("sidecar.istio.io/agentLogLevel", &["default:debug,grpc:none"]),
            ("istio.io/reroute-virtual-interfaces", &["net1ps5,net2qr9"]),
            (
                "proxy.istio.io/config",
                &["concurrency: 0\ntracing: {}\n", "{ \"holdApplicationUntilProxyStarts\": true }"],
            ),
        ] {
            for value in values {
                assert!(parse(name, value).is_ok(), "{name}={value:?}: {:?}", parse(name, value).map(|_| ()));
            }
        }
    }

    #[test]
    fn what_has_no_effect_is_said() {
        let warnings = parse("readiness.status.sidecar.istio.io/applicationPorts", "1,2").unwrap().warnings;
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].contains("applicationPorts has no effect"), "{warnings:?}");
    }
}
