//! Gateway (Istio's kind): what a proxy at the edge of the mesh listens to.

use std::collections::BTreeMap;

use crate::schema;
use crate::wire::{api_type, istio_kind, open_enum};

istio_kind! {
    /// Ports, hosts and TLS of the proxies that a selector picks.
    Gateway(GatewaySpec) {
        group: "networking.istio.io",
        plural: "gateways",
        short_names: &["gw"],
        categories: &["istio-io", "networking-istio-io"],
        versions: &["v1", "v1alpha3", "v1beta1"],
        columns: &[],
        spec_required: false,
    }
}

api_type! {
    /// What the selected proxies listen to.
    pub struct GatewaySpec {
        /// Labels of the proxies.
        pub selector: BTreeMap<String, String>,
        /// The servers.
        pub servers: Vec<Server>,
    }

    /// One port with its hosts and TLS settings.
    #[schemars(extend("required" = ["port", "hosts"]))]
    pub struct Server {
        /// The address to listen on; empty means all.
        pub bind: String,
        /// Accepted and not used, as in Istio.
        pub default_endpoint: String,
        /// Hosts that are served, as `host` or `namespace/host`.
        pub hosts: Vec<String>,
        /// A name for the server, unique among all servers of a proxy.
        pub name: String,
        /// The port to listen on.
        #[schemars(extend("required" = ["number", "protocol", "name"]))]
        pub port: Option<Port>,
        /// TLS of the server.
        pub tls: Option<ServerTlsSettings>,
    }

    /// A port of a gateway or sidecar.
    pub struct Port {
        /// A label for the port.
        pub name: String,
        /// The number.
        pub number: Option<u32>,
        /// HTTP, HTTPS, GRPC, GRPC-WEB, HTTP2, MONGO, REDIS, MYSQL, TCP or TLS.
        pub protocol: String,
        /// Deprecated by Istio, whose validation refuses it.
        pub target_port: Option<u32>,
    }

    /// TLS of a server. An empty message has the mode `PASSTHROUGH`.
    #[schemars(extend("x-kubernetes-validations" = schema::cel(&[
        (
            "(has(self.tlsCertificates) ? 1 : 0) + (has(self.credentialNames) ? 1 : 0) <= 1",
            "only one of credentialNames or tlsCertificates can be set",
        ),
        (
            "(has(self.credentialName) ? 1 : 0) + (has(self.credentialNames) ? 1 : 0) <= 1",
            "only one of credentialName or credentialNames can be set",
        ),
        (
            "(has(self.credentialNames) ? 1 : 0) + (has(self.tlsCertificates) ? 1 : 0) <= 1",
            "only one of credentialName or tlsCertificates can be set",
        ),
    ])))]
    pub struct ServerTlsSettings {
        /// A Secret that holds the roots for client certificates.
        pub ca_cert_credential_name: String,
        /// File with the roots for client certificates.
        pub ca_certificates: String,
        /// File with a revocation list.
        pub ca_crl: String,
        /// Cipher suites to offer; empty means the proxy's.
        pub cipher_suites: Vec<String>,
        /// A Secret that holds certificate and key.
        pub credential_name: String,
        /// Secrets that hold certificates of different key types.
        #[schemars(extend("minItems" = 1, "maxItems" = 2))]
        pub credential_names: Vec<String>,
        /// Key exchange groups to offer; empty means the proxy's.
        pub ecdh_curves: Vec<String>,
        /// Answers plaintext requests with a redirect to HTTPS.
        pub https_redirect: bool,
        /// Accepted and not used on servers, as in Istio.
        #[schemars(schema_with = "schema::nullable_bool")]
        pub insecure_skip_verify: Option<bool>,
        /// The newest TLS version.
        pub max_protocol_version: Option<TlsProtocol>,
        /// The oldest TLS version.
        pub min_protocol_version: Option<TlsProtocol>,
        /// What the server does with TLS; absent means `PASSTHROUGH`.
        pub mode: Option<ServerTlsMode>,
        /// File with the key.
        pub private_key: String,
        /// File with the certificate.
        pub server_certificate: String,
        /// Names of which a client's certificate must carry one.
        pub subject_alt_names: Vec<String>,
        /// Certificates of different key types, as files.
        #[schemars(extend("minItems" = 1, "maxItems" = 2))]
        pub tls_certificates: Vec<TlsCertificate>,
        /// SHA-256 hashes of acceptable client certificates.
        pub verify_certificate_hash: Vec<String>,
        /// SHA-256 hashes of acceptable client keys.
        pub verify_certificate_spki: Vec<String>,
    }

    /// A certificate as files.
    pub struct TlsCertificate {
        /// File with the roots for client certificates.
        pub ca_certificates: String,
        /// File with the key.
        pub private_key: String,
        /// File with the certificate.
        pub server_certificate: String,
    }
}

open_enum! {
    /// What a server does with TLS.
    pub enum ServerTlsMode {
        /// Passes it through, routing by server name.
        Passthrough = "PASSTHROUGH",
        /// Terminates it without client certificates.
        Simple = "SIMPLE",
        /// Terminates it and demands a client certificate.
        Mutual = "MUTUAL",
        /// Passes it through to the service that the server name encodes.
        AutoPassthrough = "AUTO_PASSTHROUGH",
        /// Terminates it with the workload's mesh certificate.
        IstioMutual = "ISTIO_MUTUAL",
        /// Terminates it and checks a client certificate if there is one.
        OptionalMutual = "OPTIONAL_MUTUAL",
    }

    /// A TLS version.
    pub enum TlsProtocol {
        /// The proxy's default.
        Auto = "TLS_AUTO",
        /// TLS 1.0.
        V1_0 = "TLSV1_0",
        /// TLS 1.1.
        V1_1 = "TLSV1_1",
        /// TLS 1.2.
        V1_2 = "TLSV1_2",
        /// TLS 1.3.
        V1_3 = "TLSV1_3",
    }
}
