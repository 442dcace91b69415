//! TLS contexts towards endpoints and towards clients, and where their certificates come from.
//!
//! There are three sources:
//!
//! - The agent beside the proxy serves the workload's own certificate (`default`, `ROOTCA`) and the proxy's files
//!   (`file-cert:`, `file-root:`) over SDS, through the bootstrap's static cluster `sds-grpc`.
//! - Weft serves what comes from Kubernetes (`kubernetes://…`) over ADS. Only these are among a resource's
//!   [`Needs`](proto::resource::Needs).
//! - A proxy without a workload identity has no agent: files are named directly, so Envoy reads them itself.
//!
//! **Invariant:** nothing that waits for the workload's certificate is made for a proxy without identity. Where mutual
//! TLS is demanded of one, its connections fail ([`unusable`]), so that neither plain text leaks nor a cluster
//! waits for ever.

#[cfg(test)]
mod tests;

use crate::audience::{CertificateFiles, InboundAudience, OutboundAudience, Switches};
use crate::wire;
use model::destination_rule::{ClientTls, ClientTlsMode};
use model::gateway::{ServerTls, ServerTlsMode, TlsVersion};
use model::mesh_config::TlsDefaults;
use model::{MeshConfig, Str};
use proto::envoy::config::core::v3::api_config_source::ApiType;
use proto::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use proto::envoy::config::core::v3::data_source::Specifier;
use proto::envoy::config::core::v3::grpc_service::{EnvoyGrpc, TargetSpecifier};
use proto::envoy::config::core::v3::{
    AggregatedConfigSource, ApiConfigSource, ApiVersion, ConfigSource, DataSource, GrpcService,
    SubstitutionFormatString, TransportSocket, substitution_format_string, transport_socket,
};
use proto::envoy::config::listener::v3::Filter;
use proto::envoy::extensions::filters::common::set_filter_state::v3::{FilterStateValue, filter_state_value};
use proto::envoy::extensions::filters::network::set_filter_state::v3 as set_filter_state;
use proto::envoy::extensions::transport_sockets::tls::v3::certificate_validation_context::TrustChainVerification;
use proto::envoy::extensions::transport_sockets::tls::v3::common_tls_context::{
    CombinedCertificateValidationContext, ValidationContextType,
};
use proto::envoy::extensions::transport_sockets::tls::v3::tls_parameters::TlsProtocol;
use proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig, TlsCertificate,
    TlsParameters, UpstreamTlsContext,
};
use proto::envoy::r#type::matcher::v3::StringMatcher;
use proto::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use proto::google::protobuf::{self, Struct, Value};
use proto::udpa::r#type::v1::TypedStruct;
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

/// The secret with the workload's certificate.
const WORKLOAD_CERTIFICATE: &str = "default";
/// The secret with the authorities of workload certificates.
const WORKLOAD_ROOTS: &str = "ROOTCA";
/// The bootstrap's cluster of the agent's secret server.
const AGENT_CLUSTER: &str = "sds-grpc";
/// The agent's name for the system's authorities.
const SYSTEM_ROOTS: &str = "system";
/// Where a proxy without an agent finds the system's authorities: the path of Debian's and Envoy's own images.
const SYSTEM_ROOTS_FILE: &str = "/etc/ssl/certs/ca-certificates.crt";
/// The extension that swaps workload metadata ahead of a stream, after this ALPN was agreed on.
pub(crate) const METADATA_EXCHANGE: &str = "istio.metadata_exchange";
/// The ALPN that stands for it.
const METADATA_EXCHANGE_ALPN: &str = "istio-peer-exchange";
const METADATA_EXCHANGE_TYPE: &str = "type.googleapis.com/envoy.tcp.metadataexchange.config.MetadataExchange";
/// The ALPN of mutual TLS inside the mesh.
const MESH_ALPN: &str = "istio";
/// The same, and that HTTP is inside.
const MESH_HTTP_ALPN: &str = "istio-http/1.1";
const MESH_HTTP2_ALPN: &str = "istio-h2";
/// Envoy's name for the ALPNs that a connection asks for in the place of its cluster's.
const ALPN_STATE: &str = "envoy.network.application_protocols";

/// Cipher suites that workloads accept from each other below TLS 1.3.
const MESH_CIPHERS: [&str; 6] = [
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-GCM-SHA256",
];

/// What TLS contexts depend on in the proxy.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    /// Whether it has a workload certificate, and so an agent that serves it and the proxy's files.
    pub present: bool,
    /// Whether it can swap workload metadata; without the filter the ALPN for it must never be agreed on.
    pub exchanges_metadata: bool,
    /// Certificates in files, in place of the workload's own towards servers.
    pub client_files: Option<&'a CertificateFiles>,
    /// Certificates in files, in place of the workload's own towards clients.
    pub server_files: Option<&'a CertificateFiles>,
    /// What applies to TLS that is not the mesh's own.
    pub defaults: Option<&'a TlsDefaults>,
}

impl<'a> Identity<'a> {
    /// Returns the identity of proxies of `audience`.
    pub fn outbound(audience: &'a OutboundAudience) -> Self {
        Self::new(audience.has_identity, &audience.switches)
    }

    /// Returns the identity of proxies of `audience`.
    pub fn inbound(audience: &'a InboundAudience) -> Self {
        Self::new(audience.has_identity, &audience.switches)
    }

    fn new(present: bool, switches: &'a Switches) -> Self {
        Self {
            present,
            exchanges_metadata: exchanges_metadata(switches),
            client_files: switches.client_certificates.as_ref(),
            server_files: switches.server_certificates.as_ref(),
            defaults: None,
        }
    }

    /// Returns the identity with the mesh's defaults of TLS.
    #[must_use]
    pub fn under(self, config: &'a MeshConfig) -> Self {
        Self { defaults: Some(&config.tls_defaults), ..self }
    }
}

/// Returns whether a proxy can swap workload metadata.
pub fn exchanges_metadata(switches: &Switches) -> bool {
    switches.extensions.contains(METADATA_EXCHANGE)
}

/// Returns the configuration of the filter that swaps workload metadata, of clusters and of filter chains alike.
pub(crate) fn metadata_exchange() -> TypedStruct {
    let value = Struct::from_iter([
        ("protocol", Value::from(METADATA_EXCHANGE_ALPN)),
        ("enable_discovery", Value::from(true)),
    ]);
    TypedStruct { type_url: METADATA_EXCHANGE_TYPE.to_owned(), value: Some(value) }
}

/// TLS towards endpoints.
#[derive(Clone, Debug, PartialEq)]
pub struct Upstream {
    /// The context.
    pub context: UpstreamTlsContext,
    /// Whether the server name is taken from each request's `host`.
    pub auto_sni: bool,
    /// Whether the server's certificate must be for that name.
    pub auto_san_validation: bool,
    /// Secrets that are asked for over ADS.
    pub secrets: BTreeSet<Arc<str>>,
}

impl Upstream {
    fn of(context: UpstreamTlsContext) -> Self {
        Self { context, auto_sni: false, auto_san_validation: false, secrets: BTreeSet::new() }
    }

    /// Returns the transport socket.
    pub fn socket(&self) -> TransportSocket {
        socket("envoy.transport_sockets.tls", proto::any(&self.context))
    }
}

/// TLS towards clients.
#[derive(Clone, Debug, PartialEq)]
pub struct Downstream {
    /// The context.
    pub context: DownstreamTlsContext,
    /// Secrets that are asked for over ADS.
    pub secrets: BTreeSet<Arc<str>>,
}

impl Downstream {
    /// Returns the transport socket.
    pub fn socket(&self) -> TransportSocket {
        socket("envoy.transport_sockets.tls", proto::any(&self.context))
    }
}

/// Returns the transport socket without TLS.
pub fn raw_buffer(name: &str) -> TransportSocket {
    socket(
        name,
        proto::any(&proto::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer::default()),
    )
}

/// Returns a transport socket.
pub(crate) fn socket(name: &str, config: protobuf::Any) -> TransportSocket {
    let config_type = Some(transport_socket::ConfigType::TypedConfig(config));
    TransportSocket { name: name.to_owned(), config_type }
}

/// What a client says inside of mutual TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spoken {
    /// HTTP/2.
    pub http2: bool,
    /// Whatever the application happens to speak: HTTP, unless the connection says otherwise ([`says_bytes`]).
    pub sniffed: bool,
}

/// Returns mutual TLS with the workload's own certificate: `ISTIO_MUTUAL`, and what is found out automatically.
///
/// A server that does not know what is spoken on its port cannot look into TLS: the client tells it by ALPN. Istio's own
/// filter (`istio.alpn`) does so by request. Stock Envoy has none, so here the cluster says HTTP, and chains for bytes
/// say otherwise.
///
/// Without an identity the result is [`unusable`].
pub fn mesh_client<'s>(
    identity: Identity<'_>,
    names: impl IntoIterator<Item = &'s str>,
    sni: &str,
    Spoken { http2, sniffed }: Spoken,
) -> Upstream {
    if !identity.present {
        return unusable(sni);
    }
    let mut alpn = Vec::with_capacity(3);
    if sniffed {
        alpn.push(if http2 { MESH_HTTP2_ALPN } else { MESH_HTTP_ALPN }.to_owned());
    } else if identity.exchanges_metadata {
        alpn.push(METADATA_EXCHANGE_ALPN.to_owned());
    }
    alpn.push(MESH_ALPN.to_owned());
    if http2 {
        alpn.push("h2".to_owned());
    }
    let common = CommonTlsContext {
        tls_params: Some(client_versions()),
        tls_certificate_sds_secret_configs: vec![workload_secret(WORKLOAD_CERTIFICATE)],
        alpn_protocols: alpn,
        validation_context_type: Some(combined(accept(names), workload_secret(WORKLOAD_ROOTS))),
        ..CommonTlsContext::default()
    };
    Upstream::of(UpstreamTlsContext {
        common_tls_context: Some(common),
        sni: sni.to_owned(),
        ..UpstreamTlsContext::default()
    })
}

/// Returns a network filter that says that bytes are inside of mutual TLS, towards servers on whose ports it could be HTTP.
pub(crate) fn says_bytes(exchanges_metadata: bool) -> Filter {
    let exchange = if exchanges_metadata { "istio-peer-exchange," } else { "" };
    let text = format!("{exchange}{MESH_ALPN}");
    let format = SubstitutionFormatString {
        format: Some(substitution_format_string::Format::TextFormatSource(DataSource {
            specifier: Some(Specifier::InlineString(text)),
            ..DataSource::default()
        })),
        ..SubstitutionFormatString::default()
    };
    let value = FilterStateValue {
        key: Some(filter_state_value::Key::ObjectKey(ALPN_STATE.to_owned())),
        value: Some(filter_state_value::Value::FormatString(format)),
        shared_with_upstream: filter_state_value::SharedWithUpstream::Once as i32,
        ..FilterStateValue::default()
    };
    let config = set_filter_state::Config { on_new_connection: vec![value], ..Default::default() };
    wire::network_filter("envoy.filters.network.set_filter_state", &config)
}

/// Returns TLS that accepts no server's certificate, so that every connection fails at once.
pub fn unusable(sni: &str) -> Upstream {
    let nothing = CertificateValidationContext {
        verify_certificate_hash: vec!["0".repeat(64)],
        ..CertificateValidationContext::default()
    };
    let common = CommonTlsContext {
        tls_params: Some(client_versions()),
        validation_context_type: Some(ValidationContextType::ValidationContext(nothing)),
        ..CommonTlsContext::default()
    };
    Upstream::of(UpstreamTlsContext {
        common_tls_context: Some(common),
        sni: sni.to_owned(),
        ..UpstreamTlsContext::default()
    })
}

/// Returns TLS as a DestinationRule asks for it: `SIMPLE` and `MUTUAL`.
///
/// `service_names` are a ServiceEntry's `subjectAltNames`, which count where the rule has none.
pub fn client(identity: Identity<'_>, tls: &ClientTls, service_names: &[Str], http2: bool) -> Upstream {
    let skip_verify = tls.insecure_skip_verify == Some(true);
    let expected = if tls.subject_alt_names.is_empty() { service_names } else { &tls.subject_alt_names };
    let sni = tls.sni.as_deref().unwrap_or_default();
    let mutual = tls.mode == ClientTlsMode::Mutual;

    let mut parts = Parts::new(identity.present);
    let mut accepted = accept(names(expected));
    match &tls.credential_name {
        Some(credential) => {
            if mutual {
                parts.certificate(Source::Credential(credential.as_ref().into()));
            }
            match skip_verify {
                true => parts.accept_anything(),
                false => parts.roots(accepted, Source::Credential(ca_of(credential).into())),
            }
        }
        None => {
            if mutual {
                parts.certificate(Source::Files {
                    certificate: tls.client_certificate.as_deref().unwrap_or_default(),
                    private_key: tls.private_key.as_deref().unwrap_or_default(),
                });
            }
            if skip_verify {
                parts.accept_anything();
            } else {
                accepted.crl = tls.ca_crl.as_deref().map(file);
                parts.roots(accepted, Source::Roots(tls.ca_certificates.as_deref().unwrap_or(SYSTEM_ROOTS)));
            }
        }
    }
    let defaults = identity.defaults;
    parts.common.tls_params = Some(TlsParameters {
        cipher_suites: defaults.map(|defaults| owned(&defaults.cipher_suites)).unwrap_or_default(),
        ecdh_curves: defaults.map(|defaults| owned(&defaults.ecdh_curves)).unwrap_or_default(),
        ..client_versions()
    });
    if http2 {
        parts.common.alpn_protocols.push("h2".to_owned());
    }
    let auto_sni = sni.is_empty();
    Upstream {
        auto_sni,
        auto_san_validation: auto_sni && tls.subject_alt_names.is_empty() && !skip_verify,
        secrets: parts.secrets,
        context: UpstreamTlsContext {
            common_tls_context: Some(parts.common),
            sni: sni.to_owned(),
            ..UpstreamTlsContext::default()
        },
    }
}

/// Returns mutual TLS with certificates in the proxy's files (`TLS_CLIENT_…` of its metadata).
pub fn client_files<'s>(
    identity: Identity<'_>,
    files: &CertificateFiles,
    names: impl IntoIterator<Item = &'s str>,
    sni: &str,
    http2: bool,
) -> Upstream {
    let text = |text: &Str| if text.is_empty() { None } else { Some(text.clone()) };
    let tls = ClientTls {
        mode: ClientTlsMode::Mutual,
        client_certificate: text(&files.certificate),
        private_key: text(&files.private_key),
        ca_certificates: text(&files.root),
        credential_name: None,
        subject_alt_names: names.into_iter().map(Str::from).collect(),
        sni: if sni.is_empty() { None } else { Some(sni.into()) },
        insecure_skip_verify: None,
        ca_crl: None,
    };
    client(Identity { defaults: None, ..identity }, &tls, &[], http2)
}

/// What is inside TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Application {
    /// HTTP.
    Http,
    /// Bytes.
    Tcp,
}

/// Returns mutual TLS towards the mesh's clients, as workloads accept it; nothing without an identity.
pub fn mesh_server(
    config: &MeshConfig,
    identity: Identity<'_>,
    application: Application,
) -> Option<Downstream> {
    if !identity.present {
        return None;
    }
    let trust_domains = std::iter::once(&config.trust_domain).chain(&config.trust_domain_aliases);
    let accepted =
        validation(trust_domains.map(|domain| MatchPattern::Prefix(format!("spiffe://{domain}/"))).collect());
    let mut common = workload_server(identity, accepted);
    common.alpn_protocols = server_alpn(identity, application);
    let mut parameters = client_versions();
    parameters.cipher_suites = match config.mesh_tls.cipher_suites.as_slice() {
        [] => MESH_CIPHERS.iter().map(|&cipher| cipher.to_owned()).collect(),
        given => owned(given),
    };
    if config.mesh_tls.min_version != TlsVersion::Auto {
        parameters.tls_minimum_protocol_version = version(config.mesh_tls.min_version) as i32;
    }
    common.tls_params = Some(parameters);
    Some(Downstream { context: downstream(common, true), secrets: BTreeSet::new() })
}

/// Returns TLS as a Gateway's server asks for it; nothing if it does not open TLS, or if it wants the workload's
/// certificate and there is none.
pub fn server(identity: Identity<'_>, tls: &ServerTls, application: Application) -> Option<Downstream> {
    let (verifies, requires) = match tls.mode {
        ServerTlsMode::Simple => (false, false),
        ServerTlsMode::Mutual => (true, true),
        ServerTlsMode::OptionalMutual => (true, false),
        ServerTlsMode::IstioMutual if identity.present => {
            let mut common = workload_server(identity, accept(names(&tls.subject_alt_names)));
            common.alpn_protocols = server_alpn(identity, application);
            return Some(Downstream { context: downstream(common, true), secrets: BTreeSet::new() });
        }
        ServerTlsMode::IstioMutual | ServerTlsMode::Passthrough | ServerTlsMode::AutoPassthrough => {
            return None;
        }
    };
    let mut parts = Parts::new(identity.present);
    let mut accepted = accept(names(&tls.subject_alt_names));
    accepted.verify_certificate_spki = owned(&tls.verify_certificate_spki);
    accepted.verify_certificate_hash = owned(&tls.verify_certificate_hash);
    if verifies && tls.insecure_skip_verify {
        accepted.trust_chain_verification = TrustChainVerification::AcceptUntrusted as i32;
    }
    let credentials = match tls.credential_names.is_empty() {
        true => tls.credential_name.as_slice(),
        false => tls.credential_names.as_slice(),
    };
    for credential in credentials {
        parts.certificate(Source::Credential(credential.as_ref().into()));
    }
    if credentials.is_empty() {
        for (certificate, private_key) in file_pairs(tls) {
            parts.certificate(Source::Files { certificate, private_key });
        }
    }
    if verifies {
        let roots = match (&tls.ca_cert_credential_name, credentials.first()) {
            (Some(name), _) => Source::Credential(name.as_ref().into()),
            (None, Some(first)) => Source::Credential(ca_of(first).into()),
            (None, None) => {
                accepted.crl = tls.ca_crl.as_deref().map(file);
                Source::Roots(tls.ca_certificates.as_deref().unwrap_or_default())
            }
        };
        parts.roots(accepted, roots);
    } else {
        // Names without authorities to vouch for them say nothing, and Envoy refuses to look at them.
        clear_names(&mut accepted);
        if accepted != CertificateValidationContext::default() {
            parts.common.validation_context_type = Some(ValidationContextType::ValidationContext(accepted));
        }
    }
    // What is inside does not matter here: clients outside the mesh negotiate HTTP or nothing.
    parts.common.alpn_protocols = server_alpn(identity, Application::Http);
    parts.common.tls_params = server_parameters(tls, identity.defaults.unwrap_or(&TlsDefaults::default()));
    Some(Downstream { context: downstream(parts.common, requires), secrets: parts.secrets })
}

fn downstream(common: CommonTlsContext, requires_certificate: bool) -> DownstreamTlsContext {
    DownstreamTlsContext {
        common_tls_context: Some(common),
        require_client_certificate: Some(requires_certificate.into()),
        ..DownstreamTlsContext::default()
    }
}

/// A server's side of mutual TLS with the workload's own certificate, or with the files in its place.
fn workload_server(identity: Identity<'_>, accepted: CertificateValidationContext) -> CommonTlsContext {
    let (certificate, roots) = match identity.server_files {
        Some(files) => {
            let roots = match files.root.is_empty() {
                true => workload_secret(WORKLOAD_ROOTS),
                false => file_secret(&format!("file-root:{}", files.root)),
            };
            (file_secret(&format!("file-cert:{}~{}", files.certificate, files.private_key)), roots)
        }
        None => (workload_secret(WORKLOAD_CERTIFICATE), workload_secret(WORKLOAD_ROOTS)),
    };
    CommonTlsContext {
        tls_certificate_sds_secret_configs: vec![certificate],
        validation_context_type: Some(combined(accepted, roots)),
        ..CommonTlsContext::default()
    }
}

/// Servers match the ALPNs of the mesh in filter chains but never offer `istio`: offering it breaks HTTP/2.
fn server_alpn(identity: Identity<'_>, application: Application) -> Vec<String> {
    let exchange = application == Application::Tcp && identity.exchanges_metadata;
    let exchange = exchange.then_some(METADATA_EXCHANGE_ALPN);
    exchange.into_iter().chain(["h2", "http/1.1"]).map(str::to_owned).collect()
}

fn server_parameters(tls: &ServerTls, defaults: &TlsDefaults) -> Option<TlsParameters> {
    let either = |own: &[Str], default: &[Str]| owned(if own.is_empty() { default } else { own });
    let min_version = match tls.min_version {
        TlsVersion::Auto => defaults.min_version,
        own => own,
    };
    let parameters = TlsParameters {
        tls_minimum_protocol_version: version(min_version) as i32,
        tls_maximum_protocol_version: version(tls.max_version) as i32,
        cipher_suites: either(&tls.cipher_suites, &defaults.cipher_suites),
        ecdh_curves: either(&tls.ecdh_curves, &defaults.ecdh_curves),
        ..TlsParameters::default()
    };
    (parameters != TlsParameters::default()).then_some(parameters)
}

fn version(version: TlsVersion) -> TlsProtocol {
    match version {
        TlsVersion::Auto => TlsProtocol::TlsAuto,
        TlsVersion::V1_0 => TlsProtocol::TlSv10,
        TlsVersion::V1_1 => TlsProtocol::TlSv11,
        TlsVersion::V1_2 => TlsProtocol::TlSv12,
        TlsVersion::V1_3 => TlsProtocol::TlSv13,
    }
}

fn client_versions() -> TlsParameters {
    TlsParameters {
        tls_minimum_protocol_version: TlsProtocol::TlSv12 as i32,
        tls_maximum_protocol_version: TlsProtocol::TlSv13 as i32,
        ..TlsParameters::default()
    }
}

/// The certificate and key files of a server, one pair an algorithm.
fn file_pairs(tls: &ServerTls) -> Vec<(&str, &str)> {
    if tls.tls_certificates.is_empty() {
        let private_key = tls.private_key.as_deref().unwrap_or_default();
        return tls.server_certificate.iter().map(|certificate| (&**certificate, private_key)).collect();
    }
    tls.tls_certificates.iter().map(|pair| (&*pair.certificate, &*pair.private_key)).collect()
}

/// Where a certificate or authorities come from.
enum Source<'a> {
    /// A secret that Weft serves.
    Credential(Cow<'a, str>),
    /// A certificate and key in the proxy's files.
    Files { certificate: &'a str, private_key: &'a str },
    /// Authorities in a file of the proxy, or the system's.
    Roots(&'a str),
}

/// A context that is being put together from sources.
struct Parts {
    has_agent: bool,
    common: CommonTlsContext,
    secrets: BTreeSet<Arc<str>>,
}

impl Parts {
    fn new(has_agent: bool) -> Self {
        Self { has_agent, common: CommonTlsContext::default(), secrets: BTreeSet::new() }
    }

    fn certificate(&mut self, source: Source<'_>) {
        match source {
            Source::Credential(name) => {
                let secret = self.served(&name);
                self.common.tls_certificate_sds_secret_configs.push(secret);
            }
            Source::Files { certificate, private_key } if self.has_agent => {
                let secret = file_secret(&format!("file-cert:{certificate}~{private_key}"));
                self.common.tls_certificate_sds_secret_configs.push(secret);
            }
            Source::Files { certificate, private_key } => {
                self.common.tls_certificates.push(TlsCertificate {
                    certificate_chain: Some(file(certificate)),
                    private_key: Some(file(private_key)),
                    ..TlsCertificate::default()
                });
            }
            // Authorities are no certificate to present.
            Source::Roots(_) => {}
        }
    }

    fn roots(&mut self, mut accepted: CertificateValidationContext, source: Source<'_>) {
        let context = match source {
            Source::Credential(name) => combined(accepted, self.served(&name)),
            Source::Roots(path) if self.has_agent => {
                combined(accepted, file_secret(&format!("file-root:{path}")))
            }
            Source::Roots(path) => {
                let path = if path == SYSTEM_ROOTS { SYSTEM_ROOTS_FILE } else { path };
                accepted.trusted_ca = Some(file(path));
                ValidationContextType::ValidationContext(accepted)
            }
            // A certificate to present says nothing about whom to trust.
            Source::Files { .. } => return,
        };
        self.common.validation_context_type = Some(context);
    }

    fn accept_anything(&mut self) {
        let anything = CertificateValidationContext::default();
        self.common.validation_context_type = Some(ValidationContextType::ValidationContext(anything));
    }

    /// A secret over ADS.
    fn served(&mut self, credential: &str) -> SdsSecretConfig {
        use crate::secret::{CONFIG_MAP_SCHEME, GATEWAY_SCHEME, KUBERNETES_SCHEME};
        const SCHEMES: [&str; 3] = [KUBERNETES_SCHEME, GATEWAY_SCHEME, CONFIG_MAP_SCHEME];
        let name = match SCHEMES.iter().any(|scheme| credential.starts_with(scheme)) {
            true => credential.to_owned(),
            false => format!("{KUBERNETES_SCHEME}{credential}"),
        };
        self.secrets.insert(name.as_str().into());
        SdsSecretConfig {
            name,
            sds_config: Some(ConfigSource {
                resource_api_version: ApiVersion::V3 as i32,
                config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
                ..ConfigSource::default()
            }),
        }
    }
}

fn ca_of(credential: &str) -> String {
    format!("{credential}{}", crate::secret::CA_SUFFIX)
}

/// A secret that the agent serves from the workload's certificate. Envoy waits for it as long as it takes.
fn workload_secret(name: &str) -> SdsSecretConfig {
    let mut secret = file_secret(name);
    if let Some(source) = &mut secret.sds_config {
        source.initial_fetch_timeout = Some(protobuf::Duration::default());
    }
    secret
}

/// A secret that the agent serves from the proxy's files.
fn file_secret(name: &str) -> SdsSecretConfig {
    let agent = EnvoyGrpc { cluster_name: AGENT_CLUSTER.to_owned(), ..EnvoyGrpc::default() };
    let api = ApiConfigSource {
        api_type: ApiType::Grpc as i32,
        transport_api_version: ApiVersion::V3 as i32,
        grpc_services: vec![GrpcService {
            target_specifier: Some(TargetSpecifier::EnvoyGrpc(agent)),
            ..GrpcService::default()
        }],
        set_node_on_first_message_only: true,
        ..ApiConfigSource::default()
    };
    SdsSecretConfig {
        name: name.to_owned(),
        sds_config: Some(ConfigSource {
            resource_api_version: ApiVersion::V3 as i32,
            config_source_specifier: Some(ConfigSourceSpecifier::ApiConfigSource(api)),
            ..ConfigSource::default()
        }),
    }
}

fn combined(accepted: CertificateValidationContext, roots: SdsSecretConfig) -> ValidationContextType {
    ValidationContextType::CombinedValidationContext(CombinedCertificateValidationContext {
        default_validation_context: Some(accepted),
        validation_context_sds_secret_config: Some(roots),
        ..CombinedCertificateValidationContext::default()
    })
}

/// A context that accepts certificates with any of these names; with none, every name.
fn accept<'s>(names: impl IntoIterator<Item = &'s str>) -> CertificateValidationContext {
    validation(names.into_iter().map(|name| MatchPattern::Exact(name.to_owned())).collect())
}

#[expect(deprecated, reason = "see `validation`")]
fn clear_names(accepted: &mut CertificateValidationContext) {
    accepted.match_subject_alt_names.clear();
}

#[expect(
    deprecated,
    reason = "matches names of every kind, as Istio's users expect; the new field takes one kind each"
)]
fn validation(names: Vec<MatchPattern>) -> CertificateValidationContext {
    let matcher = |pattern| StringMatcher { match_pattern: Some(pattern), ..StringMatcher::default() };
    CertificateValidationContext {
        match_subject_alt_names: names.into_iter().map(matcher).collect(),
        ..CertificateValidationContext::default()
    }
}

fn names(names: &[Str]) -> impl Iterator<Item = &str> {
    names.iter().map(AsRef::as_ref)
}

fn owned(texts: &[Str]) -> Vec<String> {
    texts.iter().map(|text| text.as_ref().to_owned()).collect()
}

fn file(path: &str) -> DataSource {
    DataSource { specifier: Some(Specifier::Filename(path.to_owned())), ..DataSource::default() }
}
