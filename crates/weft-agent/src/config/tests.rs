//! Whole configurations, from what an injector and a virtual machine give.

use super::*;
use serde_json::{Value, json};
use std::time::Duration;

/// A pod, or a machine, of a test.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    pub(crate) words: Vec<&'static str>,
    pub(crate) variables: Vec<(&'static str, String)>,
    pub(crate) files: Vec<(&'static str, &'static str)>,
}

impl Host {
    /// A pod as the injector makes it.
    pub(crate) fn pod() -> Self {
        let variables = [
            ("POD_NAME", "reviews-v1-7d9f-x2x"),
            ("POD_NAMESPACE", "app"),
            ("INSTANCE_IP", "10.244.0.7"),
            ("HOST_IP", "172.18.0.2"),
            ("SERVICE_ACCOUNT", "bookinfo-reviews"),
            ("CA_ADDR", "istiod.istio-system.svc:15012"),
            ("PILOT_CERT_PROVIDER", "istiod"),
            ("PROXY_CONFIG", "{}"),
            ("ISTIO_META_CLUSTER_ID", "Kubernetes"),
            ("ISTIO_META_NODE_NAME", "node-1"),
            ("ISTIO_META_INTERCEPTION_MODE", "REDIRECT"),
            ("ISTIO_META_WORKLOAD_NAME", "reviews-v1"),
            ("ISTIO_META_OWNER", "kubernetes://apis/apps/v1/namespaces/app/deployments/reviews-v1"),
            ("ISTIO_META_MESH_ID", "cluster.local"),
            ("ISTIO_META_POD_PORTS", "[{\"containerPort\":9080,\"protocol\":\"TCP\"}]"),
            ("ISTIO_META_APP_CONTAINERS", "reviews"),
            ("TRUST_DOMAIN", "cluster.local"),
            ("ISTIO_CPU_LIMIT", "2"),
        ];
        Self {
            words: vec!["proxy", "sidecar", "--domain", "app.svc.cluster.local"],
            variables: variables.into_iter().map(|(name, value)| (name, value.to_owned())).collect(),
            files: vec![
                ("./etc/istio/pod/labels", "app=\"reviews\"\npod-template-hash=\"7d9f\"\nversion=\"v1\"\n"),
                ("./etc/istio/pod/annotations", "sidecar.istio.io/inject=\"true\"\n"),
            ],
        }
    }

    pub(crate) fn set(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.variables.retain(|(other, _)| *other != name);
        self.variables.push((name, value.into()));
        self
    }

    pub(crate) fn file(mut self, path: &'static str, text: &'static str) -> Self {
        self.files.retain(|(other, _)| *other != path);
        self.files.push((path, text));
        self
    }

    pub(crate) fn load(&self) -> Result<Config, ConfigError> {
        use clap::Parser as _;
        let words = ["weft-agent"].into_iter().chain(self.words.iter().copied());
        let args = crate::args::Args::try_parse_from(words).unwrap();
        let crate::args::Command::Proxy(args) = args.command else { panic!("another command") };
        let environment = self.variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let read = |path: &Path| {
            let found = self.files.iter().find(|(name, _)| Path::new(name) == path);
            found.map(|(_, text)| (*text).to_owned()).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
        };
        Config::load(&args, &environment, &read)
    }
}

#[test]
fn a_pod_says_what_istios_agent_would() {
    let config = Host::pod().load().unwrap();
    assert_eq!(config.node.id, "sidecar~10.244.0.7~reviews-v1-7d9f-x2x.app~app.svc.cluster.local");
    assert_eq!(config.node.cluster, "reviews.app");
    let metadata = Value::Object(config.node.metadata.clone());
    for (name, expected) in [
        ("NAME", json!("reviews-v1-7d9f-x2x")),
        ("NAMESPACE", json!("app")),
        ("SERVICE_ACCOUNT", json!("bookinfo-reviews")),
        ("INSTANCE_IPS", json!("10.244.0.7")),
        ("CLUSTER_ID", json!("Kubernetes")),
        ("NODE_NAME", json!("node-1")),
        ("INTERCEPTION_MODE", json!("REDIRECT")),
        ("WORKLOAD_NAME", json!("reviews-v1")),
        ("MESH_ID", json!("cluster.local")),
        ("LABELS", json!({"app": "reviews", "version": "v1"})),
        ("ANNOTATIONS", json!({"sidecar.istio.io/inject": "true"})),
        ("ENVOY_STATUS_PORT", json!(15021)),
        ("ENVOY_PROMETHEUS_PORT", json!(15090)),
        ("PILOT_SAN", json!(["istiod.istio-system.svc"])),
        ("APP_CONTAINERS", json!("reviews")),
    ] {
        assert_eq!(metadata[name], expected, "{name}");
    }
    assert_eq!(metadata["PROXY_CONFIG"]["discoveryAddress"], "istiod.istio-system.svc:15012");
    assert!(metadata.get("EXIT_ON_ZERO_ACTIVE_CONNECTIONS").is_none());

    assert_eq!(config.identity.spiffe_id, "spiffe://cluster.local/ns/app/sa/bookinfo-reviews");
    assert_eq!(config.identity.key, KeyKind::EcdsaP256);
    let CertificateSource::Authority { server, token, provisioned, output } = &config.identity.source else {
        panic!("files")
    };
    assert_eq!((server.host.as_str(), server.port), ("istiod.istio-system.svc", 15012));
    let trust = server.trust.as_ref().unwrap();
    assert_eq!(trust.name, "istiod.istio-system.svc");
    let mounted =
        Roots::File { path: "./var/run/secrets/istio/root-cert.pem".into(), and_workload_roots: true };
    assert_eq!(trust.roots, mounted);
    assert_eq!(token, Path::new("./var/run/secrets/tokens/istio-token"));
    assert_eq!((provisioned, output), (&None, &None));
    assert_eq!(config.envoy.concurrency, Some(2));
    assert_eq!(config.drain.termination, Duration::from_secs(5));
    assert_eq!(config.warnings, [""; 0]);
}

#[test]
fn a_virtual_machine_needs_little() {
    let machine = Host {
        words: vec!["proxy"],
        variables: vec![
            ("POD_NAMESPACE", "vms".to_owned()),
            ("SERVICE_ACCOUNT", "db".to_owned()),
            ("PROV_CERT", "/etc/certs".to_owned()),
            ("OUTPUT_CERTS", "/etc/certs".to_owned()),
            ("ISTIO_METAJSON_LABELS", r#"{"app":"db"}"#.to_owned()),
            ("ISTIO_META_WORKLOAD_NAME", "db".to_owned()),
        ],
        files: vec![
            ("/proc/sys/kernel/hostname", "vm-7\n"),
            ("/proc/net/fib_trie", "|-- 192.0.2.7\n/32 host LOCAL\n"),
            ("/proc/net/if_inet6", "20010db8000000000000000000000007 02 40 00 80 eth0\n"),
            (
                "./etc/istio/config/mesh",
                "defaultConfig:\n  discoveryAddress: istiod.example.com:15012\n  proxyMetadata:\n    ISTIO_META_NETWORK: vm-network\n",
            ),
        ],
    };
    let config = machine.load().unwrap();
    assert_eq!(config.node.id, "sidecar~192.0.2.7~vm-7.vms~vms.svc.cluster.local");
    assert_eq!(config.node.families, Families::V4AndV6);
    assert_eq!(config.node.metadata["INSTANCE_IPS"], "192.0.2.7,2001:db8::7");
    assert_eq!(config.node.metadata["LABELS"], json!({"app": "db"}));
    assert_eq!(config.node.metadata["STATIC_LABELS"], json!({"app": "db"}));
    assert_eq!(config.node.metadata["NETWORK"], "vm-network");
    assert_eq!(config.discovery.host, "istiod.example.com");
    let CertificateSource::Authority { server, provisioned, output, .. } = &config.identity.source else {
        panic!("files")
    };
    // Without CA_ADDR the authority is the control plane.
    assert_eq!(server.host, "istiod.example.com");
    assert_eq!(provisioned.as_ref().unwrap().private_key, Path::new("/etc/certs/key.pem"));
    assert_eq!(output.as_deref(), Some(Path::new("/etc/certs")));
    let trust = server.trust.as_ref().unwrap();
    let roots = Roots::File { path: "/etc/certs/root-cert.pem".into(), and_workload_roots: true };
    assert_eq!(trust.roots, roots);
}

#[test]
fn later_layers_of_the_proxy_configuration_win() {
    let config = Host::pod()
        .set("PROXY_CONFIG", r#"{"concurrency":4,"drainDuration":"20s","terminationDrainDuration":"7s"}"#)
        .file(
            "./etc/istio/pod/annotations",
            "proxy.istio.io/config=\"concurrency: 1\\nstatusPort: 16020\\n\"\nsidecar.istio.io/statsInclusionPrefixes=\"http.{pod_ip}_,cluster.outbound\"\n",
        )
        .set("EXIT_ON_ZERO_ACTIVE_CONNECTIONS", "true")
        .set("MINIMUM_DRAIN_DURATION", "3s")
        .load()
        .unwrap();
    assert_eq!(config.envoy.concurrency, Some(1));
    assert_eq!(config.envoy.drain, Duration::from_secs(20));
    assert_eq!(config.ports.status, 16020);
    assert_eq!(config.stats.prefixes, ["http.10.244.0.7_", "cluster.outbound"]);
    let drain = DrainSettings {
        termination: Duration::from_secs(7),
        exit_on_zero_connections: true,
        minimum: Duration::from_secs(3),
    };
    assert_eq!(config.drain, drain);
    assert_eq!(config.node.metadata["EXIT_ON_ZERO_ACTIVE_CONNECTIONS"], "true");
}

#[test]
fn locality_comes_from_a_label() {
    let pod = Host::pod().file("./etc/istio/pod/labels", "istio-locality=\"eu.eu-1.a\"\n");
    let config = pod.load().unwrap();
    assert_eq!(config.node.locality, ["eu", "eu-1", "a"]);
    assert_eq!(config.node.metadata["LABELS"]["istio-locality"], "eu/eu-1/a");
}

#[test]
fn certificates_in_files_need_no_authority() {
    let by_variable = Host::pod().set("FILE_MOUNTED_CERTS", "true").load().unwrap();
    let CertificateSource::Files(files) = &by_variable.identity.source else { panic!("an authority") };
    assert_eq!(files.certificate, Path::new("./etc/certs/cert-chain.pem"));
    let mounted = Host::pod().file("./var/run/secrets/workload-spiffe-credentials/certificates.pem", "x");
    let CertificateSource::Files(files) = &mounted.load().unwrap().identity.source else {
        panic!("an authority")
    };
    assert!(files.private_key.ends_with("workload-spiffe-credentials/private_key.pem"));
}

#[test]
fn keys_are_rsa_on_request() {
    for (variables, expected) in [
        (vec![("WORKLOAD_RSA_KEY_SIZE", "3072")], KeyKind::Rsa(3072)),
        (vec![("WORKLOAD_RSA_KEY_SIZE", "2048"), ("ECC_SIGNATURE_ALGORITHM", "ECDSA")], KeyKind::EcdsaP256),
        (vec![("ECC_SIGNATURE_ALGORITHM", "ECDSA"), ("ECC_CURVE", "P384")], KeyKind::EcdsaP384),
    ] {
        let host = variables.into_iter().fold(Host::pod(), |host, (name, value)| host.set(name, value));
        assert_eq!(host.load().unwrap().identity.key, expected);
    }
}

#[test]
fn what_is_not_understood_is_refused_by_name() {
    for (name, value, expected) in [
        ("POD_NAMESPACE", "", "POD_NAMESPACE: is not set"),
        ("INSTANCE_IP", "10.0.0", "INSTANCE_IP: \"10.0.0\" is not an IP address"),
        ("CA_ADDR", "istiod", "CA_ADDR: \"istiod\" is not host:port"),
        (
            "CA_ADDR",
            "istiod.istio-system.svc:15010",
            "CA_ADDR: \"istiod.istio-system.svc:15010\" is a port for plain",
        ),
        ("PROXY_CONFIG", "{", "PROXY_CONFIG: "),
        ("PROXY_CONFIG", "concurrency: many", "PROXY_CONFIG: "),
        ("PROXY_CONFIG", "drainDuration: 3 s", "PROXY_CONFIG: drainDuration: \"3 s\" is not a duration"),
        ("PROXY_CONFIG", "controlPlaneAuthPolicy: SOME", "PROXY_CONFIG: controlPlaneAuthPolicy: \"SOME\""),
        ("SECRET_TTL", "1d", "SECRET_TTL: \"1d\" is not a duration"),
        ("SECRET_GRACE_PERIOD_RATIO", "1.5", "SECRET_GRACE_PERIOD_RATIO: 1.5 is not between 0 and 1"),
        ("WORKLOAD_RSA_KEY_SIZE", "1024", "WORKLOAD_RSA_KEY_SIZE: 1024 is none of"),
        ("ECC_CURVE", "P521", "ECC_CURVE: \"P521\" is neither"),
        ("ISTIO_META_DNS_CAPTURE", "true", "ISTIO_META_DNS_CAPTURE: weft-agent has no DNS proxy yet"),
        ("CA_PROVIDER", "GoogleCA", "CA_PROVIDER: \"GoogleCA\" is not supported"),
        ("ISTIO_METAJSON_X", "[1]", "ISTIO_METAJSON_: X: not a JSON object"),
        ("ENVOY_STATUS_PORT", "high", "ENVOY_STATUS_PORT: \"high\" is not a port"),
    ] {
        let error = Host::pod().set(name, value).load().unwrap_err().to_string();
        assert!(error.starts_with(expected), "{name}={value}: {error}");
    }
}

#[test]
fn what_has_no_effect_is_said() {
    let host = Host::pod()
        .set("XDS_AUTH_PROVIDER", "gcp")
        .set("PROXY_CONFIG", "statsdUdpAddress: statsd:8125\nnoSuchField: 1\n");
    let warnings = host.load().unwrap().warnings;
    assert_eq!(warnings.len(), 3, "{warnings:?}");
    for expected in ["XDS_AUTH_PROVIDER", "statsdUdpAddress", "noSuchField"] {
        assert!(warnings.iter().any(|warning| warning.contains(expected)), "{expected}: {warnings:?}");
    }
}
