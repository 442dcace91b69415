//! A case: proxies as they would introduce themselves, the mesh configuration, and calls.

use anyhow::{Context as _, Result, anyhow};
use compile::Shared;
use model::Proxy;
use proto::envoy::config::core::v3::{Locality, Node};
use proto::google::protobuf::value::Kind;
use proto::google::protobuf::{ListValue, Struct, Value};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

/// The domain of every case.
pub(crate) const DOMAIN: &str = "cluster.local";

/// The contents of a case file.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Case {
    /// The proxies.
    pub(crate) proxies: Vec<CaseProxy>,
    /// The only proxy, in cases of calls.
    pub(crate) proxy: Option<CaseProxy>,
    /// What differs from the default mesh configuration.
    pub(crate) mesh_config: serde_json::Value,
    /// The calls.
    pub(crate) calls: Vec<CaseCall>,
}

/// A proxy of a case.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct CaseProxy {
    pub(crate) name: String,
    r#type: String,
    id: String,
    ip: Vec<String>,
    namespace: String,
    dns_domain: String,
    labels: BTreeMap<String, String>,
    locality: serde_json::Value,
    metadata: serde_json::Map<String, serde_json::Value>,
}

/// A call of a case.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct CaseCall {
    pub(crate) name: String,
    pub(crate) call: CallFields,
}

/// What a call is.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct CallFields {
    pub(crate) mode: String,
    pub(crate) address: String,
    pub(crate) port: u16,
    pub(crate) protocol: String,
    pub(crate) tls: String,
    pub(crate) alpn: String,
    pub(crate) sni: String,
    pub(crate) host: String,
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, serde_json::Value>,
    pub(crate) mtls_secret_name: String,
}

impl Case {
    /// Reads a case file.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let parsed = k8s_api::yaml::parse_value::<serde_json::Value>(&text, &path.display().to_string())?;
        serde_json::from_value(parsed.value).with_context(|| format!("{} is not a case", path.display()))
    }
}

impl CaseProxy {
    /// Parses the proxy as if it had connected.
    pub(crate) fn parse(&self) -> Result<Shared<Proxy>> {
        let node = self.node();
        let proxy =
            compile::node::parse(&node, DOMAIN).map_err(|error| anyhow!("proxy {}: {error}", self.name))?;
        Ok(Shared::new(proxy))
    }

    /// Returns how the proxy introduces itself.
    pub(crate) fn node(&self) -> Node {
        let id = match self.id.as_str() {
            "" => format!("{}.{}", self.name, self.namespace),
            id => id.to_owned(),
        };
        let ip = self.ip.first().map(String::as_str).unwrap_or_default();
        let domain = match self.dns_domain.as_str() {
            "" => format!("{}.svc.{DOMAIN}", self.namespace),
            domain => domain.to_owned(),
        };
        let text = |text: &str| Value { kind: Some(Kind::StringValue(text.to_owned())) };
        let mut fields: BTreeMap<String, Value> =
            self.metadata.iter().map(|(key, value)| (key.clone(), to_value(value))).collect();
        let mut default = |key: &str, value: Value| {
            fields.entry(key.to_owned()).or_insert(value);
        };
        // Cases are written for Istio's proxies.
        default("ISTIO_VERSION", text("1.30.0"));
        default("INSTANCE_IPS", text(&self.ip.join(",")));
        default("NAMESPACE", text(&self.namespace));
        let labels = self.labels.iter().map(|(key, value)| (key.clone(), text(value))).collect();
        default("LABELS", Value { kind: Some(Kind::StructValue(Struct { fields: labels })) });
        Node {
            id: format!("{}~{ip}~{id}~{domain}", self.r#type),
            metadata: Some(Struct { fields }),
            locality: self.locality(),
            ..Node::default()
        }
    }

    fn locality(&self) -> Option<Locality> {
        let locality = match &self.locality {
            serde_json::Value::String(text) => model::Locality::parse(text),
            serde_json::Value::Object(parts) => {
                let part = |names: &[&str]| {
                    let found = names.iter().find_map(|name| parts.get(*name)?.as_str());
                    found.unwrap_or_default().into()
                };
                model::Locality {
                    region: part(&["region"]),
                    zone: part(&["zone"]),
                    subzone: part(&["subZone", "subzone", "sub_zone"]),
                }
            }
            _ => return None,
        };
        Some(Locality {
            region: locality.region.to_string(),
            zone: locality.zone.to_string(),
            sub_zone: locality.subzone.to_string(),
        })
    }
}

fn to_value(json: &serde_json::Value) -> Value {
    let kind = match json {
        serde_json::Value::Null => Kind::NullValue(0),
        serde_json::Value::Bool(value) => Kind::BoolValue(*value),
        serde_json::Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        serde_json::Value::String(text) => Kind::StringValue(text.clone()),
        serde_json::Value::Array(values) => {
            Kind::ListValue(ListValue { values: values.iter().map(to_value).collect() })
        }
        serde_json::Value::Object(fields) => Kind::StructValue(Struct {
            fields: fields.iter().map(|(key, value)| (key.clone(), to_value(value))).collect(),
        }),
    };
    Value { kind: Some(kind) }
}
