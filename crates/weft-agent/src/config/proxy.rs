//! Istio's ProxyConfig, and what it says about Envoy.

use super::{ConfigError, Environment, ReadFile, duration};
use crate::args::ProxyArgs;
use k8s_api::mesh_config::{MeshConfig, ProxyConfig};
use k8s_api::yaml::{Parsed, parse_value};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// How Envoy is started.
#[derive(Clone, Debug, PartialEq)]
pub struct EnvoySettings {
    /// The program.
    pub binary: PathBuf,
    /// Where the bootstrap is written.
    pub config_dir: PathBuf,
    /// Worker threads; none means one for each processor.
    pub concurrency: Option<u32>,
    /// What it logs.
    pub log_level: String,
    /// What its parts log.
    pub component_log_level: String,
    /// Whether it logs JSON.
    pub log_as_json: bool,
    /// Whether it says which fields are deprecated.
    pub skip_deprecated_logs: bool,
    /// Where it logs outlier detection, if anywhere.
    pub outlier_log_path: String,
    /// How long it drains listeners.
    pub drain: Duration,
    /// How often access logs are written out.
    pub file_flush_interval: Duration,
    /// How many KiB of access logs are gathered.
    pub file_flush_min_size_kb: Option<u32>,
}

/// How the agent ends Envoy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainSettings {
    /// How long connections may go on after a signal to end.
    pub termination: Duration,
    /// Whether Envoy may end early, and later, when no connection is left.
    pub exit_on_zero_connections: bool,
    /// How long it lives on at least if so: endpoints are withdrawn meanwhile.
    pub minimum: Duration,
}

/// Which statistics Envoy keeps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StatsSettings {
    /// By the beginning of their names.
    pub prefixes: Vec<String>,
    /// By the end of their names.
    pub suffixes: Vec<String>,
    /// By expressions.
    pub regexes: Vec<String>,
    /// Further tags.
    pub extra_tags: Vec<String>,
    /// Buckets of histograms by the beginning of their names.
    pub histogram_buckets: BTreeMap<String, Vec<f64>>,
    /// How often they are flushed to sinks.
    pub flush_interval: Option<Duration>,
    /// How often unused ones are dropped.
    pub eviction_interval: Option<Duration>,
}

/// A runtime setting of Envoy.
#[derive(Clone, Debug, PartialEq)]
pub enum RuntimeValue {
    /// True or false.
    Bool(bool),
    /// Anything else.
    Text(String),
}

/// Merges the proxy's configuration: the mesh's defaults, `PROXY_CONFIG`, then the pod's annotation.
pub(super) fn load(
    args: &ProxyArgs,
    environment: &Environment,
    read: ReadFile<'_>,
    annotations: &BTreeMap<String, String>,
    warnings: &mut Vec<String>,
) -> Result<ProxyConfig, ConfigError> {
    let mut layers = Vec::new();
    match read(&args.mesh_config) {
        Ok(text) => {
            let invalid = |reason: String| ConfigError::file(&args.mesh_config, &reason);
            let mesh = parse::<MeshConfig>(&text, "mesh", warnings).map_err(invalid)?;
            layers.push(
                json!({ "defaultConfig": mesh.json.get("defaultConfig").cloned().unwrap_or_default() }),
            );
        }
        // Only virtual machines have it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(ConfigError::file(&args.mesh_config, &error)),
    }
    let of_annotation = annotations.get("proxy.istio.io/config").map(String::as_str);
    for (name, text) in [
        ("PROXY_CONFIG", environment.text("PROXY_CONFIG")),
        ("annotation proxy.istio.io/config", of_annotation),
    ] {
        let Some(text) = text else { continue };
        let parsed = parse::<ProxyConfig>(text, name, warnings);
        let parsed = parsed.map_err(|reason| ConfigError::variable(name, reason))?;
        layers.push(json!({ "defaultConfig": parsed.json }));
    }
    for path in layers.iter().flat_map(|layer| set_without_effect(&layer["defaultConfig"])) {
        warnings.push(format!("proxy configuration: weft-agent does not act on {path} yet"));
    }
    let merged = MeshConfig::merge(&layers);
    let mut proxy =
        merged.map_err(|error| ConfigError::variable("PROXY_CONFIG", error.to_string()))?.default_config;
    if args.concurrency.is_some() {
        proxy.concurrency = args.concurrency;
    }
    Ok(proxy)
}

fn parse<T: DeserializeOwned>(
    text: &str,
    origin: &str,
    warnings: &mut Vec<String>,
) -> Result<Parsed<T>, String> {
    let parsed = parse_value::<T>(text, origin).map_err(|error| error.to_string())?;
    warnings.extend(
        parsed.warnings.iter().map(|warning| format!("{origin}: {}: {}", warning.path, warning.message)),
    );
    Ok(parsed)
}

/// The fields that say something about the proxy which is not done here. Those that only the control plane and the
/// injector read are not among them.
fn set_without_effect(proxy: &Value) -> Vec<&'static str> {
    const FIELDS: [&str; 10] = [
        "parentShutdownDuration",
        "statsdUdpAddress",
        "envoyMetricsServiceAddress",
        "envoyMetricsService",
        "envoyAccessLogService",
        "customConfigFile",
        "proxyBootstrapTemplatePath",
        "readinessProbe",
        "privateKeyProvider",
        "zipkinAddress",
    ];
    FIELDS
        .into_iter()
        .filter(|field| proxy.get(field).is_some_and(|value| !value.is_null() && value != ""))
        .collect()
}

/// Reads how the agent ends Envoy.
pub(super) fn drain(proxy: &ProxyConfig, environment: &Environment) -> Result<DrainSettings, ConfigError> {
    Ok(DrainSettings {
        termination: environment.duration(
            "TERMINATION_DRAIN_DURATION_SECONDS",
            field(&proxy.termination_drain_duration, "terminationDrainDuration")?,
        )?,
        exit_on_zero_connections: environment.flag("EXIT_ON_ZERO_ACTIVE_CONNECTIONS", false)?,
        minimum: environment.duration("MINIMUM_DRAIN_DURATION", Duration::from_secs(5))?,
    })
}

/// Reads how Envoy is started.
pub(super) fn envoy(
    proxy: &ProxyConfig,
    args: &ProxyArgs,
    environment: &Environment,
    annotations: &BTreeMap<String, String>,
) -> Result<EnvoySettings, ConfigError> {
    let limit = environment.parse::<u32>("ISTIO_CPU_LIMIT", "a number of processors")?;
    let concurrency = proxy.concurrency.or(limit);
    let level =
        annotations.get("sidecar.istio.io/logLevel").map_or(args.proxy_log_level.as_str(), String::as_str);
    let components = annotations.get("sidecar.istio.io/componentLogLevel");
    let components = components.map_or(args.proxy_component_log_level.as_str(), String::as_str);
    // Istio allows both in one, such as `warning,misc:error`.
    let (level, inline) = level.split_once(',').unwrap_or((level, ""));
    let components: Vec<&str> = [components, inline].into_iter().filter(|part| !part.is_empty()).collect();
    let flush = match &proxy.file_flush_interval {
        Some(text) => field(text, "fileFlushInterval")?,
        None => Duration::from_secs(1),
    };
    Ok(EnvoySettings {
        binary: proxy.binary_path.clone().into(),
        config_dir: proxy.config_path.clone().into(),
        concurrency: concurrency.filter(|count| *count > 0),
        log_level: level.to_owned(),
        component_log_level: components.join(","),
        log_as_json: args.log.log_as_json,
        skip_deprecated_logs: environment.flag("ENVOY_SKIP_DEPRECATED_LOGS", true)?,
        outlier_log_path: args.outlier_log_path.clone(),
        drain: field(&proxy.drain_duration, "drainDuration")?,
        file_flush_interval: flush,
        file_flush_min_size_kb: proxy.file_flush_min_size_kb,
    })
}

fn field(text: &str, name: &str) -> Result<Duration, ConfigError> {
    duration::parse(text).map_err(|reason| ConfigError::variable("PROXY_CONFIG", format!("{name}: {reason}")))
}

/// Reads which statistics Envoy keeps. An annotation of the pod replaces the field of the same meaning.
pub(super) fn stats(
    proxy: &ProxyConfig,
    annotations: &BTreeMap<String, String>,
    addresses: &[IpAddr],
    warnings: &mut Vec<String>,
) -> Result<StatsSettings, ConfigError> {
    let matcher = proxy.proxy_stats_matcher.clone().unwrap_or_default();
    let annotation = |name: &str| annotations.get(&format!("sidecar.istio.io/{name}"));
    let chosen = |name: &str, of_config: Vec<String>| {
        let patterns = annotation(name).map_or(of_config, |text| list(text));
        patterns.into_iter().flat_map(|pattern| for_each_address(pattern, addresses)).collect()
    };
    let interval = |name: &'static str, of_config: Option<&String>| {
        let text = annotation(name).or(of_config);
        let parsed = text.map(|text| duration::parse(text)).transpose();
        parsed.map_err(|reason| {
            ConfigError::variable("annotation", format!("sidecar.istio.io/{name}: {reason}"))
        })
    };
    let buckets = annotation("statsHistogramBuckets").map(|text| serde_json::from_str(text)).transpose();
    let buckets = buckets.map_err(|error| {
        ConfigError::variable("annotation", format!("sidecar.istio.io/statsHistogramBuckets: {error}"))
    })?;
    for name in ["statsCompression", "statsHistogramBins", "bootstrapOverride"] {
        if annotation(name).is_some() {
            warnings.push(format!("annotation sidecar.istio.io/{name} has no effect on weft-agent"));
        }
    }
    let mut extra_tags = Vec::new();
    let of_annotation = annotation("extraStatTags").map_or_else(Vec::new, |text| list(text));
    for tag in proxy.extra_stat_tags.iter().cloned().chain(of_annotation) {
        if !tag.is_empty() && !extra_tags.contains(&tag) {
            extra_tags.push(tag);
        }
    }
    Ok(StatsSettings {
        prefixes: chosen("statsInclusionPrefixes", matcher.inclusion_prefixes),
        suffixes: chosen("statsInclusionSuffixes", matcher.inclusion_suffixes),
        regexes: chosen("statsInclusionRegexps", matcher.inclusion_regexps),
        extra_tags,
        histogram_buckets: buckets.unwrap_or_default(),
        flush_interval: interval("statsFlushInterval", None)?,
        eviction_interval: interval("statsEvictionInterval", proxy.stats_eviction_interval.as_ref())?,
    })
}

fn list(text: &str) -> Vec<String> {
    text.split(',').filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

/// Istio's patterns may say `{pod_ip}`.
fn for_each_address(pattern: String, addresses: &[IpAddr]) -> Vec<String> {
    if !pattern.contains("{pod_ip}") {
        return vec![pattern];
    }
    addresses.iter().map(|address| pattern.replace("{pod_ip}", &address.to_string())).collect()
}

/// Reads Envoy's runtime settings: Istio's defaults, and the user's over them. An empty value unsets a default.
pub(super) fn runtime(proxy: &ProxyConfig) -> BTreeMap<String, RuntimeValue> {
    let mut values = BTreeMap::from([(
        "re2.max_program_size.error_level".to_owned(),
        RuntimeValue::Text("32768".to_owned()),
    )]);
    for (name, value) in &proxy.runtime_values {
        let value = match value.as_str() {
            "" => {
                values.remove(name);
                continue;
            }
            "true" => RuntimeValue::Bool(true),
            "false" => RuntimeValue::Bool(false),
            text => RuntimeValue::Text(text.to_owned()),
        };
        values.insert(name.clone(), value);
    }
    values
}
