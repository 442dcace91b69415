//! Who a client says it is: its xDS `Node`, parsed.
//!
//! Istio's proxies have node ids of four parts, `<type>~<ip>~<pod>.<namespace>~<namespace>.svc.<domain>`, and
//! metadata of well-known names. Any other Envoy is welcome with an id of its own choice; what the id does not
//! say is taken from metadata:
//!
//! | metadata | meaning | default for other ids |
//! |---|---|---|
//! | `NAMESPACE` | the namespace whose configuration it sees | `default` |
//! | `NAME` | its pod | the node id |
//! | `LABELS` | the labels that selectors see, unless the pod is known | none |
//! | `CLUSTER_ID` | its cluster: a workload elsewhere is not behind this cluster's Services | this cluster |
//! | `INSTANCE_IPS` | its addresses, comma separated | none: IPv4 is assumed |
//! | `PROXY_TYPE` | `sidecar`, `router` (a gateway) or `grpc` | `router`; `grpc` for gRPC libraries |
//! | `PROXY_CONFIG` | settings of its own instead of the mesh's `defaultConfig` | the mesh's |
//! | `WORKLOAD_IDENTITY` | `true` if it has a workload certificate from a static cluster `sds-grpc` | `false` (Istio ids: `true`) |

use model::proxy::{Interception, ProxyRole};
use model::{Labels, Locality, Namespace, Proxy, ProxySettings, Str, WorkloadId};
use proto::envoy::config::core::v3::Node;
use proto::google::protobuf::value::Kind;
use proto::google::protobuf::{Struct, Value};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

/// A node that cannot be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// There is no node id.
    #[error("the first request must carry a node with an id")]
    MissingId,
    /// The id has four parts like Istio's but not of the right kind.
    #[error("node id {id:?}: {reason}")]
    InvalidId {
        /// The id.
        id: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Metadata that cannot be understood.
    #[error("node {id:?}: metadata {field}: {reason}")]
    InvalidMetadata {
        /// The node's id.
        id: String,
        /// The name of the entry.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

/// Parses `node`; `domain` is the mesh's DNS domain.
pub fn parse(node: &Node, domain: &str) -> Result<Proxy, NodeError> {
    if node.id.is_empty() {
        return Err(NodeError::MissingId);
    }
    let metadata = Metadata { id: &node.id, fields: node.metadata.as_ref() };
    let id = Id::parse(node, &metadata, domain)?;
    let namespace = metadata.text("NAMESPACE").map_or(id.namespace, Namespace::new);
    let locality = node.locality.as_ref().map_or_else(Locality::default, |locality| Locality {
        region: locality.region.as_str().into(),
        zone: locality.zone.as_str().into(),
        subzone: locality.sub_zone.as_str().into(),
    });
    let ips = metadata.addresses("INSTANCE_IPS")?;
    Ok(Proxy {
        role: id.role,
        node_id: node.id.as_str().into(),
        workload: WorkloadId {
            namespace: id.workload_namespace.unwrap_or_else(|| namespace.clone()),
            name: id.name,
        },
        dns_domain: id.dns_domain.unwrap_or_else(|| format!("{namespace}.svc.{domain}").into()),
        namespace,
        ips: if ips.is_empty() { id.ips } else { ips },
        labels: metadata.labels("LABELS"),
        locality,
        cluster: metadata.text("CLUSTER_ID").unwrap_or_default().into(),
        network: metadata.text("NETWORK").unwrap_or_default().into(),
        node: metadata.text("NODE_NAME").map(Str::from),
        interception: match metadata.text("INTERCEPTION_MODE").as_deref() {
            Some("TPROXY") => Interception::Tproxy,
            Some("NONE") => Interception::None,
            _ => Interception::Redirect,
        },
        has_identity: metadata.flag("WORKLOAD_IDENTITY").unwrap_or(id.has_identity),
        metadata: metadata.scalars(),
        settings: metadata.settings("PROXY_CONFIG"),
        extensions: extensions(node),
    })
}

/// Returns the names of extensions that stock Envoy lacks; of a proxy that lists none of these, the first one that it
/// lists. Every Envoy lists some hundred, which are not worth keeping for each proxy.
fn extensions(node: &Node) -> Vec<Str> {
    let mut names = node.extensions.iter().map(|extension| extension.name.as_str());
    let own: Vec<Str> = names.clone().filter(|name| name.starts_with("istio")).map(Str::from).collect();
    if own.is_empty() { names.next().map(Str::from).into_iter().collect() } else { own }
}

/// What a node id says.
struct Id {
    role: ProxyRole,
    ips: Vec<IpAddr>,
    name: Str,
    workload_namespace: Option<Namespace>,
    namespace: Namespace,
    dns_domain: Option<Str>,
    has_identity: bool,
}

impl Id {
    fn parse(node: &Node, metadata: &Metadata<'_>, domain: &str) -> Result<Self, NodeError> {
        let parts: Vec<&str> = node.id.split('~').collect();
        if let [role, ip, workload, dns_domain] = parts[..] {
            return Self::of_parts(&node.id, role, ip, workload, dns_domain, metadata, domain);
        }
        let grpc_library = node.user_agent_name.to_ascii_lowercase().contains("grpc");
        let role = match metadata.text("PROXY_TYPE").as_deref() {
            Some(name) => role_named(name).ok_or_else(|| NodeError::InvalidMetadata {
                id: node.id.clone(),
                field: "PROXY_TYPE",
                reason: format!("{name:?} is none of sidecar, router and grpc"),
            })?,
            None if grpc_library => ProxyRole::Grpc,
            None => ProxyRole::Router,
        };
        Ok(Self {
            role: metadata.generator().unwrap_or(role),
            ips: Vec::new(),
            name: metadata.text("NAME").unwrap_or_else(|| node.id.clone()).into(),
            workload_namespace: None,
            namespace: "default".into(),
            dns_domain: None,
            has_identity: false,
        })
    }

    fn of_parts(
        id: &str,
        role: &str,
        ip: &str,
        workload: &str,
        dns_domain: &str,
        metadata: &Metadata<'_>,
        domain: &str,
    ) -> Result<Self, NodeError> {
        let invalid = |reason: String| NodeError::InvalidId { id: id.to_owned(), reason };
        let role = role_named(role).ok_or_else(|| {
            invalid(format!("{role:?} is none of sidecar, router and grpc, which are served"))
        })?;
        let ip = match ip {
            "" => None,
            text => Some(text.parse().map_err(|_| invalid(format!("{text:?} is not an IP address")))?),
        };
        let (name, namespace) = match workload.rsplit_once('.') {
            Some((name, namespace)) => (name, Some(Namespace::new(namespace))),
            None => (workload, None),
        };
        let of_domain =
            dns_domain.strip_suffix(&format!(".svc.{domain}")).or_else(|| dns_domain.split('.').next());
        Ok(Self {
            role: metadata.generator().unwrap_or(role),
            ips: ip.into_iter().collect(),
            name: name.into(),
            namespace: match of_domain {
                Some(name) if !name.is_empty() => Namespace::new(name),
                _ => namespace.clone().unwrap_or_else(|| "default".into()),
            },
            workload_namespace: namespace,
            dns_domain: (!dns_domain.is_empty()).then(|| dns_domain.into()),
            has_identity: true,
        })
    }
}

fn role_named(name: &str) -> Option<ProxyRole> {
    match name {
        "sidecar" => Some(ProxyRole::Sidecar),
        "router" => Some(ProxyRole::Router),
        "grpc" => Some(ProxyRole::Grpc),
        _ => None,
    }
}

struct Metadata<'a> {
    id: &'a str,
    fields: Option<&'a Struct>,
}

impl Metadata<'_> {
    fn get(&self, name: &str) -> Option<&Kind> {
        self.fields?.fields.get(name)?.kind.as_ref()
    }

    /// Returns a scalar as text: Istio writes even booleans and numbers as strings, others do not.
    fn text(&self, name: &str) -> Option<String> {
        scalar(self.get(name)?).filter(|text| !text.is_empty())
    }

    fn flag(&self, name: &str) -> Option<bool> {
        self.text(name).map(|text| matches!(text.as_str(), "true" | "1"))
    }

    /// Returns the role that Istio's `GENERATOR` metadata chooses, if it chooses one.
    fn generator(&self) -> Option<ProxyRole> {
        (self.text("GENERATOR").as_deref() == Some("grpc")).then_some(ProxyRole::Grpc)
    }

    fn addresses(&self, field: &'static str) -> Result<Vec<IpAddr>, NodeError> {
        let text = self.text(field).unwrap_or_default();
        let parse = |part: &str| {
            part.trim().parse().map_err(|_| NodeError::InvalidMetadata {
                id: self.id.to_owned(),
                field,
                reason: format!("{part:?} is not an IP address"),
            })
        };
        text.split(',').filter(|part| !part.trim().is_empty()).map(parse).collect()
    }

    fn labels(&self, name: &str) -> Labels {
        let Some(Kind::StructValue(labels)) = self.get(name) else { return Labels::new() };
        let text = |value: &Value| value.kind.as_ref().and_then(scalar);
        labels.fields.iter().filter_map(|(key, value)| Some((key.as_str(), text(value)?))).collect()
    }

    /// Returns the settings of a ProxyConfig. Whoever started the proxy has checked it: what cannot be used counts as not
    /// said.
    fn settings(&self, name: &str) -> Option<Arc<ProxySettings>> {
        let Some(Kind::StructValue(config)) = self.get(name) else { return None };
        let get = |path: &str| {
            let mut fields = config;
            let mut parts = path.split('.').peekable();
            loop {
                let kind = fields.fields.get(parts.next()?)?.kind.as_ref()?;
                match (kind, parts.peek()) {
                    (Kind::StructValue(inner), Some(_)) => fields = inner,
                    (Kind::StructValue(_), None) => return Some(String::new()),
                    (_, None) => return scalar(kind),
                    _ => return None,
                }
            }
        };
        Some(Arc::new(ProxySettings::read(&get, &mut |_, _| {})))
    }

    /// Returns every scalar, by name, and `PROXY_CONFIG` and other structures not at all.
    fn scalars(&self) -> BTreeMap<Str, Str> {
        let fields = self.fields.into_iter().flat_map(|metadata| &metadata.fields);
        fields
            .filter_map(|(name, value)| {
                Some((name.as_str().into(), value.kind.as_ref().and_then(scalar)?.into()))
            })
            .collect()
    }
}

fn scalar(kind: &Kind) -> Option<String> {
    match kind {
        Kind::StringValue(text) => Some(text.clone()),
        Kind::BoolValue(value) => Some(value.to_string()),
        Kind::NumberValue(value) => Some(value.to_string()),
        Kind::NullValue(_) | Kind::StructValue(_) | Kind::ListValue(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: &str, metadata: &[(&str, &str)]) -> Node {
        let text = |value: &str| Value { kind: Some(Kind::StringValue(value.to_owned())) };
        let fields = metadata.iter().map(|(key, value)| ((*key).to_owned(), text(value))).collect();
        Node { id: id.to_owned(), metadata: Some(Struct { fields }), ..Node::default() }
    }

    #[test]
    fn an_istio_id_says_it_all() {
        let proxy = parse(&node("sidecar~10.1.2.3~cart-1.app~app.svc.cluster.local", &[]), "cluster.local");
        let proxy = proxy.expect("a valid id");
        assert_eq!(proxy.role, ProxyRole::Sidecar);
        assert_eq!(proxy.ips, ["10.1.2.3".parse::<IpAddr>().unwrap()]);
        assert_eq!(proxy.workload.to_string(), "cart-1.app");
        assert_eq!(proxy.namespace.as_str(), "app");
        assert_eq!(proxy.dns_domain.as_ref(), "app.svc.cluster.local");
        assert!(proxy.has_identity);
    }

    #[test]
    fn metadata_overrides_the_id() {
        let metadata =
            [("INSTANCE_IPS", "10.0.0.1, fd00::1"), ("NAMESPACE", "other"), ("WORKLOAD_IDENTITY", "false")];
        let proxy = parse(&node("router~1.1.1.1~gw.app~app.svc.cluster.local", &metadata), "cluster.local");
        let proxy = proxy.expect("a valid id");
        assert_eq!(proxy.ips.len(), 2);
        assert_eq!(proxy.namespace.as_str(), "other");
        assert!(!proxy.has_identity);
    }

    #[test]
    fn a_proxy_brings_its_own_settings() {
        let parse_config = |json: serde_json::Value| {
            let node = serde_json::json!({ "id": "x", "metadata": { "PROXY_CONFIG": json } });
            let bytes = proto::json::from_json(&<Node as prost::Name>::type_url(), &node).unwrap();
            parse(&<Node as prost::Message>::decode(bytes).unwrap(), "cluster.local").unwrap().settings
        };
        let config = serde_json::json!({
            "gatewayTopology": { "numTrustedProxies": 3, "proxyProtocol": {} },
            "proxyHeaders": { "server": { "value": "own" }, "requestId": { "disabled": true } },
            "connectionSettings": { "httpIdleTimeout": "soon" },
        });
        let settings = parse_config(config).expect("there are some");
        assert_eq!((settings.num_trusted_proxies, settings.proxy_protocol), (3, true));
        assert!(settings.headers.no_request_id);
        assert_eq!(settings.connection.idle_timeout, None);
        assert_eq!(parse_config(serde_json::json!({})), Some(Arc::default()));
        assert_eq!(parse_config(serde_json::json!("text")), None);
    }

    #[test]
    fn any_other_id_is_a_gateway_without_identity() {
        let proxy = parse(&node("edge", &[("NAMESPACE", "web")]), "cluster.local").expect("any id will do");
        assert_eq!(proxy.role, ProxyRole::Router);
        assert_eq!(proxy.workload.to_string(), "edge.web");
        assert_eq!(proxy.dns_domain.as_ref(), "web.svc.cluster.local");
        assert!(!proxy.has_identity);
    }

    #[test]
    fn grpc_libraries_are_recognised() {
        let library = Node { user_agent_name: "gRPC C-core".to_owned(), ..node("client", &[]) };
        assert_eq!(parse(&library, "cluster.local").expect("any id will do").role, ProxyRole::Grpc);
        let istio = node("sidecar~10.1.2.3~cart-1.app~app.svc.cluster.local", &[("GENERATOR", "grpc")]);
        assert_eq!(parse(&istio, "cluster.local").expect("a valid id").role, ProxyRole::Grpc);
    }

    #[test]
    fn bad_nodes_are_refused_with_a_reason() {
        for (node, expected) in [
            (node("", &[]), "the first request must carry a node with an id"),
            (
                node("sidecar~nowhere~a.b~b.svc.cluster.local", &[]),
                "node id \"sidecar~nowhere~a.b~b.svc.cluster.local\": \"nowhere\" is not an IP address",
            ),
            (
                node("ztunnel~1.1.1.1~a.b~b.svc.cluster.local", &[]),
                "node id \"ztunnel~1.1.1.1~a.b~b.svc.cluster.local\": \"ztunnel\" is none of sidecar, router and \
                 grpc, which are served",
            ),
            (
                node("x", &[("INSTANCE_IPS", "1.2.3")]),
                "node \"x\": metadata INSTANCE_IPS: \"1.2.3\" is not an IP address",
            ),
        ] {
            assert_eq!(parse(&node, "cluster.local").unwrap_err().to_string(), expected);
        }
    }
}
