//! Istio's chart values, as far as injection depends on them.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// A value that people write as a number, a boolean or a string, read as text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Text(pub String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::Null => Ok(Self::default()),
            Value::String(text) => Ok(Self(text)),
            Value::Number(number) => Ok(Self(number.to_string())),
            Value::Bool(bool) => Ok(Self(bool.to_string())),
            other => Err(serde::de::Error::custom(format!("{other} is neither text nor a number"))),
        }
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl std::ops::Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

/// Reads `null` as the type's default: Helm's way of taking a value back.
fn null_is_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Declares a part of the values with its defaults.
macro_rules! values {
    ($(
        $(#[$meta:meta])*
        pub struct $name:ident {
            $( $(#[$field_meta:meta])* pub $field:ident : $type:ty = $default:expr ),* $(,)?
        }
    )+) => {$(
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
        #[serde(default, rename_all = "camelCase")]
        pub struct $name {
            $(
                $(#[$field_meta])*
                #[serde(deserialize_with = "null_is_default")]
                pub $field: $type,
            )*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $field: $default, )* }
            }
        }
    )+};
}

values! {
    /// The values.
    pub struct Values {
        /// What all parts share.
        pub global: Global = Global::default(),
        /// The injector.
        pub sidecar_injector_webhook: InjectorValues = InjectorValues::default(),
        /// The CNI plugin.
        #[serde(alias = "istio_cni")]
        pub cni: Cni = Cni::default(),
        /// The control plane; newer charts have the CNI plugin here.
        pub pilot: Pilot = Pilot::default(),
        /// Injected gateways.
        pub gateways: Gateways = Gateways::default(),
        /// The revision; empty for the default one.
        pub revision: String = String::new(),
    }

    /// The control plane.
    pub struct Pilot {
        /// The CNI plugin.
        pub cni: Cni = Cni::default(),
    }

    /// The CNI plugin.
    pub struct Cni {
        /// Whether it captures traffic, so that pods need not.
        pub enabled: bool = false,
        /// `multus` if pods have to name their networks.
        pub provider: String = String::new(),
    }

    /// Injected gateways.
    pub struct Gateways {
        /// The pod's security context, instead of ours.
        pub security_context: Value = Value::Null,
    }

    /// What all parts share.
    pub struct Global {
        /// Where images come from.
        pub hub: Text = "".into(),
        /// Their tag.
        pub tag: Text = "".into(),
        /// Their variant, such as `debug`.
        pub variant: Text = "".into(),
        /// `openshift` for OpenShift.
        pub platform: String = String::new(),
        /// The control plane's namespace.
        pub istio_namespace: String = "istio-system".to_owned(),
        /// `Always`, `IfNotPresent`, `Never`, or empty for Kubernetes' choice.
        pub image_pull_policy: String = String::new(),
        /// Secrets to pull images with.
        pub image_pull_secrets: Vec<String> = Vec::new(),
        /// Whether logs are JSON.
        pub log_as_json: bool = false,
        /// What is logged.
        pub logging: Logging = Logging::default(),
        /// The proxy.
        pub proxy: ProxyValues = ProxyValues::default(),
        /// The container that captures traffic.
        #[serde(rename = "proxy_init")]
        pub proxy_init: ProxyInit = ProxyInit::default(),
        /// The certificate authority, if it is not the control plane.
        pub ca_address: String = String::new(),
        /// The mesh's id, if it is not the trust domain.
        #[serde(rename = "meshID")]
        pub mesh_id: String = String::new(),
        /// Whether a Secret with certificates is mounted.
        pub mount_mtls_certs: bool = false,
        /// The cluster.
        pub multi_cluster: MultiCluster = MultiCluster::default(),
        /// The network.
        pub network: String = String::new(),
        /// Tokens.
        pub sds: Sds = Sds::default(),
        /// Who certifies the control plane: `istiod` if its root is in a ConfigMap.
        pub pilot_cert_provider: String = "istiod".to_owned(),
        /// Whether nftables capture traffic instead of iptables.
        pub native_nftables: bool = false,
    }

    /// What is logged.
    pub struct Logging {
        /// The level, such as `default:info`.
        pub level: String = "default:info".to_owned(),
    }

    /// The proxy.
    pub struct ProxyValues {
        /// Its image: a name below the hub, or a whole reference.
        pub image: String = "proxyv2".to_owned(),
        /// The injection policy.
        pub auto_inject: String = "enabled".to_owned(),
        /// The cluster's DNS domain.
        pub cluster_domain: String = "cluster.local".to_owned(),
        /// What parts of Envoy log.
        pub component_log_level: String = "misc:error".to_owned(),
        /// What Envoy logs.
        pub log_level: String = "warning".to_owned(),
        /// Where it logs outlier detection.
        pub outlier_log_path: String = String::new(),
        /// Inbound ports that are captured; `*` for all.
        pub include_inbound_ports: Text = "*".into(),
        /// Inbound ports that are not.
        pub exclude_inbound_ports: Text = "".into(),
        /// Outbound ports that are captured whatever the address is.
        pub include_outbound_ports: Text = "".into(),
        /// Outbound ports that are not captured.
        pub exclude_outbound_ports: Text = "".into(),
        /// Outbound addresses that are captured.
        #[serde(rename = "includeIPRanges")]
        pub include_ip_ranges: Text = "*".into(),
        /// Outbound addresses that are not.
        #[serde(rename = "excludeIPRanges")]
        pub exclude_ip_ranges: Text = "".into(),
        /// Whether the containers are privileged.
        pub privileged: bool = false,
        /// Whether the kernel may write core dumps.
        pub enable_core_dump: bool = false,
        /// The seccomp profile.
        pub seccomp_profile: Value = Value::Null,
        /// How often readiness may fail.
        pub readiness_failure_threshold: i32 = 4,
        /// When readiness is first asked for.
        pub readiness_initial_delay_seconds: i32 = 0,
        /// How often readiness is asked for.
        pub readiness_period_seconds: i32 = 15,
        /// Whether the kubelet waits for the proxy to start.
        pub startup_probe: StartupProbe = StartupProbe::default(),
        /// What the proxy needs and may use.
        pub resources: Value = Value::Null,
        /// The agent's port for status; 0 turns probes of the proxy off.
        pub status_port: Text = "15020".into(),
        /// A tracer whose settings the injector passes on: `datadog`.
        pub tracer: String = "none".to_owned(),
        /// Whether the application starts after the proxy.
        pub hold_application_until_proxy_starts: bool = false,
        /// Hooks of the proxy's container, instead of ours.
        pub lifecycle: Value = Value::Null,
    }

    /// Whether the kubelet waits for the proxy to start.
    pub struct StartupProbe {
        /// Whether it does.
        pub enabled: bool = true,
        /// How many seconds it waits.
        pub failure_threshold: i32 = 600,
    }

    /// The container that captures traffic.
    pub struct ProxyInit {
        /// Its image: a name below the hub, or a whole reference.
        pub image: String = "proxyv2".to_owned(),
        /// Whether rules are written anew if they are there.
        pub force_apply_iptables: bool = false,
    }

    /// The cluster.
    pub struct MultiCluster {
        /// Its name.
        pub cluster_name: String = String::new(),
    }

    /// Tokens.
    pub struct Sds {
        /// The token that a pod shows.
        pub token: Token = Token::default(),
    }

    /// The token that a pod shows.
    pub struct Token {
        /// Whom it is for.
        pub aud: String = "istio-ca".to_owned(),
    }

    /// The injector.
    pub struct InjectorValues {
        /// Pods that get a proxy unless they say otherwise.
        pub always_inject_selector: Vec<Value> = Vec::new(),
        /// Pods that get none unless they say otherwise.
        pub never_inject_selector: Vec<Value> = Vec::new(),
        /// Annotations that every injected pod gets.
        pub injected_annotations: BTreeMap<String, Text> = BTreeMap::new(),
        /// Whether namespaces without labels are injected.
        pub enable_namespaces_by_default: bool = false,
        /// Whether probes go through the agent.
        #[serde(rename = "rewriteAppHTTPProbe")]
        pub rewrite_app_http_probe: bool = true,
        /// Templates of the user's, by name.
        pub templates: BTreeMap<String, Value> = BTreeMap::new(),
        /// The templates that pods get which do not choose.
        pub default_templates: Vec<String> = Vec::new(),
        /// Names that stand for several templates.
        pub aliases: BTreeMap<String, Vec<String>> = BTreeMap::new(),
    }
}

impl Values {
    /// Returns whether a CNI plugin captures traffic, and which networks pods have to name.
    pub(crate) fn cni(&self) -> Option<&Cni> {
        [&self.pilot.cni, &self.cni].into_iter().find(|cni| cni.enabled)
    }

    /// Returns the paths of values that injection does not know, for the log.
    pub fn unknown(written: &Value) -> Vec<String> {
        /// Parts of the chart that concern others, or that say nothing about a pod.
        const OTHERS: [&str; 5] = [
            "sidecarInjectorWebhook.reinvocationPolicy",
            "sidecarInjectorWebhook.enableNamespacesByDefault",
            "istio_cni",
            "global.sts",
            "global.podDNSSearchNamespaces",
        ];
        let known = serde_json::to_value(Self::default()).unwrap_or_default();
        let mut found = Vec::new();
        unknown(written, &known, "", &mut found);
        found.retain(|path| !OTHERS.contains(&path.as_str()));
        found
    }
}

/// Merges maps key by key, as Helm does.
pub fn overlay(target: &mut Value, value: Value) {
    match (target, value) {
        (Value::Object(target), Value::Object(value)) => {
            for (key, value) in value {
                overlay(target.entry(key).or_insert(Value::Null), value);
            }
        }
        (target, value) => *target = value,
    }
}

fn unknown(written: &Value, known: &Value, path: &str, found: &mut Vec<String>) {
    // An empty map among the defaults is one with keys of the user's.
    let (Value::Object(written), Value::Object(known)) = (written, known) else { return };
    if known.is_empty() {
        return;
    }
    for (key, value) in written {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        match known.get(key) {
            Some(known) => unknown(value, known, &path, found),
            // Parts of the chart that concern others.
            None if !path.contains('.') => {}
            None => found.push(path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_not_set_or_null_has_istios_defaults() {
        let values: Values =
            serde_json::from_value(json!({"global": {"proxy": {"statusPort": 123}}})).unwrap();
        assert_eq!(&*values.global.proxy.status_port, "123");
        assert_eq!(values.global.sds.token.aud, "istio-ca");
        let null: Values = serde_json::from_value(json!({"global": null})).unwrap();
        assert_eq!(null, Values::default());
    }

    #[test]
    fn unknown_values_are_named() {
        let written = json!({
            "global": {"hub": "h", "proxy": {"imageName": "x", "resources": {"limits": {"cpu": 1}}}},
            "sidecarInjectorWebhook": {"templates": {"mine": {}}, "reinvocationPolicy": "Never"},
            "base": {"x": 1},
        });
        assert_eq!(Values::unknown(&written), ["global.proxy.imageName"]);
    }
}
