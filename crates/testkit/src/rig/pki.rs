//! Certificates for tests: an authority that lives as long as its value.

use std::net::IpAddr;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
    date_time_ymd,
};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// A certificate with its private key.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The certificate chain.
    pub certificate_pem: String,
    /// The private key (PKCS#8).
    pub key_pem: String,
}

/// A certificate authority.
#[derive(Debug)]
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    /// Returns a new authority with a new key.
    pub fn new(common_name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, new_key()).expect("the parameters are complete");
        Self { issuer }
    }

    /// Returns the authority's own certificate.
    pub fn certificate_pem(&self) -> String {
        self.issuer.pem()
    }

    /// Issues a certificate for servers and clients. A name is an IP address, a URI (with `://`) or a DNS name.
    ///
    /// # Panics
    ///
    /// If a name is none of these.
    pub fn issue(&self, common_name: &str, names: &[&str]) -> Identity {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.subject_alt_names = names.iter().map(|name| san(name)).collect();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let key = new_key();
        let certificate = params.signed_by(&key, &self.issuer).expect("the parameters are complete");
        Identity { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() }
    }

    /// Returns a list of revoked certificates, with none in it.
    pub fn revocation_list_pem(&self) -> String {
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(4000, 1, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = params.signed_by(&self.issuer).expect("the parameters are complete");
        list.pem().expect("a list has a text form")
    }

    /// Returns a client that trusts this authority only.
    pub fn client_config(&self) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).expect("our own certificate is well-formed");
        let config = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let config = config.expect("the provider has TLS 1.2 and 1.3");
        Arc::new(config.with_root_certificates(roots).with_no_client_auth())
    }
}

impl Identity {
    /// Returns a server with this certificate that offers `alpn` and asks clients for no certificate.
    pub(super) fn server_config(&self, alpn: &[&str]) -> Result<Arc<ServerConfig>, rustls::Error> {
        let unusable = |error: rustls::pki_types::pem::Error| rustls::Error::General(error.to_string());
        let chain: Result<Vec<_>, _> =
            CertificateDer::pem_slice_iter(self.certificate_pem.as_bytes()).collect();
        let key = PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes()).map_err(unusable)?;
        let config = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
        let mut config = config.with_no_client_auth().with_single_cert(chain.map_err(unusable)?, key)?;
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        Ok(Arc::new(config))
    }
}

/// A pair of keys without a certificate, such as the API server signs tokens with.
#[derive(Clone, Debug)]
pub struct Keys {
    /// The private key (P-256, PKCS#8).
    pub private_pem: String,
    /// The public key.
    pub public_pem: String,
}

impl Keys {
    /// Returns a new pair.
    pub fn generate() -> Self {
        let key = new_key();
        Self { private_pem: key.serialize_pem(), public_pem: key.public_key_pem() }
    }
}

fn new_key() -> KeyPair {
    KeyPair::generate().expect("the system has randomness")
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(default_provider())
}

fn san(name: &str) -> SanType {
    if let Ok(ip) = name.parse::<IpAddr>() {
        return SanType::IpAddress(ip);
    }
    let text = name.try_into().expect("names are ASCII");
    if name.contains("://") { SanType::URI(text) } else { SanType::DnsName(text) }
}
