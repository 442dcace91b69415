//! What gateways listen to: Istio's Gateway, parsed.

use crate::{Hostname, Labels, Meta, Namespace, Protocol, Str};
use std::collections::BTreeSet;

/// Servers for the gateway workloads that a selector or a Service picks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// The object.
    pub meta: Meta,
    /// Labels of the gateway's pods.
    pub selector: Labels,
    /// The services of its namespace whose workloads it is for, instead of the selector's. Ports are theirs then.
    pub services: Option<BTreeSet<Hostname>>,
    /// The servers in the order of the object. Servers that are refused are not here.
    pub servers: Vec<Server>,
}

/// One port with its hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// The server's place in the object's list, for messages.
    pub index: usize,
    /// The server's own name, if it has one.
    pub name: Option<Str>,
    /// The declared port.
    pub port: u16,
    /// The port's name.
    pub port_name: Str,
    /// What is spoken there.
    pub protocol: Protocol,
    /// An address or `unix://` path to bind instead of the wildcard.
    pub bind: Option<Str>,
    /// The hosts.
    pub hosts: Vec<ServerHost>,
    /// TLS; none for plain text.
    pub tls: Option<ServerTls>,
}

/// A host of a server, with the namespaces whose VirtualServices may use it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServerHost {
    /// Which VirtualServices may bind.
    pub namespace: HostNamespace,
    /// The host.
    pub host: Hostname,
}

/// The namespace part of `namespace/host`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostNamespace {
    /// `*`, or no such part.
    Any,
    /// That namespace (`.` is resolved to the Gateway's own).
    Only(Namespace),
    /// `~`: none.
    Nobody,
}

/// TLS of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerTls {
    /// Whether plain-text requests are redirected.
    pub https_redirect: bool,
    /// How TLS is handled.
    pub mode: ServerTlsMode,
    /// The certificate's file.
    pub server_certificate: Option<Str>,
    /// The private key's file.
    pub private_key: Option<Str>,
    /// The file of authorities that clients are checked against.
    pub ca_certificates: Option<Str>,
    /// The file of revocation lists.
    pub ca_crl: Option<Str>,
    /// The name of a secret instead of files.
    pub credential_name: Option<Str>,
    /// Several secrets (RSA and ECDSA).
    pub credential_names: Vec<Str>,
    /// Several pairs of files (RSA and ECDSA).
    pub tls_certificates: Vec<FilePair>,
    /// The secret that holds the authorities apart from the certificate.
    pub ca_cert_credential_name: Option<Str>,
    /// Names that a client certificate must have one of.
    pub subject_alt_names: Vec<Str>,
    /// Base64 SHA-256 hashes of the public keys of acceptable client certificates.
    pub verify_certificate_spki: Vec<Str>,
    /// Hex SHA-256 hashes of acceptable client certificates.
    pub verify_certificate_hash: Vec<Str>,
    /// The lowest version.
    pub min_version: TlsVersion,
    /// The highest version.
    pub max_version: TlsVersion,
    /// Cipher suites for TLS 1.2 and below; empty for Envoy's own list.
    pub cipher_suites: Vec<Str>,
    /// Key exchange curves; empty for Envoy's own list.
    pub ecdh_curves: Vec<Str>,
    /// Whether client certificates that do not verify are accepted.
    pub insecure_skip_verify: bool,
}

/// A certificate and its key, as files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilePair {
    /// The certificate chain.
    pub certificate: Str,
    /// The private key.
    pub private_key: Str,
}

/// Modes of [`ServerTls`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ServerTlsMode {
    /// Routed by SNI, not opened. Also what an absent mode means.
    Passthrough,
    /// Terminated.
    Simple,
    /// Terminated, client certificate required.
    Mutual,
    /// Routed to the cluster that the SNI names.
    AutoPassthrough,
    /// Terminated with the workload's own certificate, mesh client required.
    IstioMutual,
    /// Terminated, client certificate asked for.
    OptionalMutual,
}

/// TLS versions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "versions name themselves")]
pub enum TlsVersion {
    /// Left to the default.
    #[default]
    Auto,
    V1_0,
    V1_1,
    V1_2,
    V1_3,
}
