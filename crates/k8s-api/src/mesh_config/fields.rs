//! Which fields of MeshConfig Weft acts on. The table is data, so that logs and documentation cannot differ from it, and a test
//! demands an entry for every field of the types.

use serde_json::Value;

/// Whether Weft acts on a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// It does.
    Read,
    /// The injector and weft-agent do, which make proxies what it says; nothing that is served depends on it.
    InPods,
    /// Not yet: setting it has no effect, which is logged.
    NotYet,
}

/// A field and what Weft does with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// The path, such as `defaultConfig.concurrency`.
    pub path: &'static str,
    /// Whether Weft acts on it.
    pub used: Use,
}

const fn read(path: &'static str) -> Field {
    Field { path, used: Use::Read }
}

const fn in_pods(path: &'static str) -> Field {
    Field { path, used: Use::InPods }
}

const fn not_yet(path: &'static str) -> Field {
    Field { path, used: Use::NotYet }
}

/// Every field of MeshConfig and of its `defaultConfig`.
pub const FIELDS: &[Field] = &[
    read("accessLogEncoding"),
    read("accessLogFile"),
    read("accessLogFormat"),
    not_yet("ca"),
    not_yet("caCertificates"),
    not_yet("certificates"),
    not_yet("configSources"),
    read("connectTimeout"),
    not_yet("defaultConfig.availabilityZone"),
    in_pods("defaultConfig.binaryPath"),
    not_yet("defaultConfig.caCertificatesPem"),
    in_pods("defaultConfig.concurrency"),
    in_pods("defaultConfig.configPath"),
    read("defaultConfig.connectionSettings"),
    in_pods("defaultConfig.controlPlaneAuthPolicy"),
    not_yet("defaultConfig.customConfigFile"),
    in_pods("defaultConfig.discoveryAddress"),
    not_yet("defaultConfig.discoveryRefreshDelay"),
    read("defaultConfig.drainDuration"),
    not_yet("defaultConfig.envoyAccessLogService"),
    not_yet("defaultConfig.envoyMetricsService"),
    not_yet("defaultConfig.envoyMetricsServiceAddress"),
    in_pods("defaultConfig.extraStatTags"),
    in_pods("defaultConfig.fileFlushInterval"),
    in_pods("defaultConfig.fileFlushMinSizeKb"),
    read("defaultConfig.gatewayTopology"),
    in_pods("defaultConfig.holdApplicationUntilProxyStarts"),
    in_pods("defaultConfig.image"),
    in_pods("defaultConfig.interceptionMode"),
    not_yet("defaultConfig.meshId"),
    not_yet("defaultConfig.parentShutdownDuration"),
    not_yet("defaultConfig.privateKeyProvider"),
    in_pods("defaultConfig.proxyAdminPort"),
    not_yet("defaultConfig.proxyBootstrapTemplatePath"),
    read("defaultConfig.proxyHeaders"),
    in_pods("defaultConfig.proxyMetadata"),
    in_pods("defaultConfig.proxyStatsMatcher"),
    not_yet("defaultConfig.readinessProbe"),
    in_pods("defaultConfig.runtimeValues"),
    not_yet("defaultConfig.sds"),
    in_pods("defaultConfig.serviceCluster"),
    not_yet("defaultConfig.statNameLength"),
    in_pods("defaultConfig.statsEvictionInterval"),
    not_yet("defaultConfig.statsdUdpAddress"),
    in_pods("defaultConfig.statusPort"),
    in_pods("defaultConfig.terminationDrainDuration"),
    not_yet("defaultConfig.tracing"),
    in_pods("defaultConfig.tracingServiceName"),
    not_yet("defaultConfig.zipkinAddress"),
    read("defaultDestinationRuleExportTo"),
    read("defaultHttpRetryPolicy"),
    read("defaultInboundHttpRetryPolicy"),
    not_yet("defaultProviders"),
    read("defaultServiceExportTo"),
    read("defaultTrafficPolicy"),
    read("defaultVirtualServiceExportTo"),
    read("disableEnvoyListenerLog"),
    read("discoverySelectors"),
    read("dnsRefreshRate"),
    read("enableAutoMtls"),
    not_yet("enableEnvoyAccessLogService"),
    in_pods("enablePrometheusMerge"),
    not_yet("enableTracing"),
    not_yet("extensionProviders"),
    read("h2UpgradePolicy"),
    not_yet("hboneIdleTimeout"),
    read("inboundClusterStatName"),
    read("inboundTrafficPolicy"),
    not_yet("ingressClass"),
    not_yet("ingressControllerMode"),
    not_yet("ingressSelector"),
    not_yet("ingressService"),
    read("localityLbSetting"),
    read("meshMTLS"),
    read("outboundClusterStatName"),
    read("outboundTrafficPolicy"),
    read("pathNormalization"),
    read("protocolDetectionTimeout"),
    read("proxyHttpPort"),
    read("proxyInboundListenPort"),
    read("proxyListenPort"),
    read("rootNamespace"),
    read("serviceEntryVisibility"),
    not_yet("serviceScopeConfigs"),
    read("serviceSettings"),
    read("tcpKeepalive"),
    read("tlsDefaults"),
    read("trustDomain"),
    read("trustDomainAliases"),
    not_yet("verifyCertificateAtClient"),
    not_yet("zoneAwareLbSetting"),
];

/// Returns the entry of a field, by its path.
pub fn field(path: &str) -> Option<&'static Field> {
    let index = FIELDS.binary_search_by(|field| field.path.cmp(path)).ok()?;
    Some(&FIELDS[index])
}

/// Returns the table as Markdown, for the documentation.
pub fn markdown() -> String {
    let mut text = String::from("| field | today |\n| --- | --- |\n");
    for Field { path, used } in FIELDS {
        let used = match used {
            Use::Read => "read",
            Use::InPods => "read by the injector and weft-agent",
            Use::NotYet => "not yet: setting it has no effect and is logged",
        };
        text.push_str(&format!("| `{path}` | {used} |\n"));
    }
    text
}

/// Returns the paths of fields that are set and not read, in the order of their names.
pub(super) fn not_read(layer: &Value) -> Vec<String> {
    let mut paths = Vec::new();
    for (key, value) in layer.as_object().into_iter().flatten() {
        match value {
            Value::Object(fields) if key == "defaultConfig" => {
                paths.extend(fields.keys().map(|field| format!("{key}.{field}")));
            }
            Value::Null => {}
            _ => paths.push(key.clone()),
        }
    }
    paths.retain(|path| field(path).is_some_and(|field| field.used == Use::NotYet));
    paths.sort();
    paths
}
