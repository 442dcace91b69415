//! TLS for the port that strangers reach: who is trusted, what we present, and how both change while serving.

use arc_swap::ArcSwap;
use ca::{Authority, IssueError, IssuedChain, PublicKey, Serial, UnixTime};
use model::SpiffeId;
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Whose client certificates are taken.
pub struct Trust {
    verifier: Arc<dyn ClientCertVerifier>,
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trust").finish_non_exhaustive()
    }
}

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A root that cannot be one.
    #[error("a trusted root cannot be used")]
    Root(#[source] rustls::Error),
    /// Roots or revocation lists that do not make a verifier.
    #[error("clients cannot be verified")]
    Verifier(#[from] VerifierBuilderError),
    /// There is no certificate for us.
    #[error("cannot issue a certificate for ourselves")]
    Issue(#[from] IssueError),
    /// No key could be made.
    #[error("cannot make a key for ourselves")]
    Key(#[from] rcgen::Error),
    /// A key that certificates are not issued for.
    #[error("a key for ourselves is not one that we certify")]
    PublicKey(#[from] ca::key::PublicKeyError),
    /// No randomness.
    #[error("the system has no randomness")]
    Random,
    /// What was made does not go together.
    #[error("cannot set up TLS")]
    Rustls(#[from] rustls::Error),
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

impl Trust {
    /// Trusts whoever has a certificate from one of `roots` that none of `revocations` lists. Clients without a
    /// certificate may connect; what they may do is for the gate to decide.
    pub fn new(
        roots: impl IntoIterator<Item = CertificateDer<'static>>,
        revocations: Vec<CertificateRevocationListDer<'static>>,
    ) -> Result<Self, TlsError> {
        let mut store = RootCertStore::empty();
        for root in roots {
            store.add(root).map_err(TlsError::Root)?;
        }
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider());
        let builder = if revocations.is_empty() {
            builder
        } else {
            // An authority without a list has revoked nothing.
            builder.with_crls(revocations).allow_unknown_revocation_status()
        };
        Ok(Self { verifier: builder.allow_unauthenticated().build()? })
    }

    /// Returns whether a client certificate, the leaf first, is one of those that are taken at `now`.
    pub fn takes(&self, chain: &[CertificateDer<'_>], now: SystemTime) -> bool {
        let Some((leaf, intermediates)) = chain.split_first() else { return false };
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = rustls::pki_types::UnixTime::since_unix_epoch(since);
        self.verifier.verify_client_cert(leaf, intermediates, now).is_ok()
    }

    pub(crate) fn verifier(&self) -> &dyn ClientCertVerifier {
        self.verifier.as_ref()
    }
}

/// What we present: a certificate of our own authority and its key.
#[derive(Clone, Debug)]
pub struct Identity {
    certified: Arc<CertifiedKey>,
    /// The first moment at which it is valid.
    not_before: SystemTime,
    /// The last.
    not_after: SystemTime,
}

impl Identity {
    /// Makes a key and has `authority` certify it for `names`.
    pub fn issue(
        authority: &Authority,
        names: &[ServerName<'_>],
        ttl: Option<Duration>,
        now: SystemTime,
    ) -> Result<Self, TlsError> {
        Self::make(now, |key, now, serial| authority.issue_server(key, names, ttl, now, serial))
    }

    /// Makes a key and has `authority` certify it for a workload.
    pub fn issue_workload(
        authority: &Authority,
        id: &SpiffeId,
        ttl: Option<Duration>,
        now: SystemTime,
    ) -> Result<Self, TlsError> {
        Self::make(now, |key, now, serial| authority.issue_for_key(key, id, ttl, now, serial))
    }

    fn make(
        now: SystemTime,
        issue: impl FnOnce(&PublicKey, UnixTime, Serial) -> Result<IssuedChain, IssueError>,
    ) -> Result<Self, TlsError> {
        let key = rcgen::KeyPair::generate()?;
        let public = PublicKey::from_spki(&rcgen::PublicKeyData::subject_public_key_info(&key))?;
        let mut serial = [0; 20];
        aws_lc_rs::rand::fill(&mut serial).map_err(|_| TlsError::Random)?;
        let issued = issue(&public, UnixTime::from(now), Serial::from_random(serial))?;
        let private = PrivateKeyDer::try_from(key.serialize_der()).map_err(|_| TlsError::Random)?;
        let certified = CertifiedKey::from_der(issued.der_chain(), private, &provider())?;
        let validity = issued.validity();
        Ok(Self {
            certified: Arc::new(certified),
            not_before: validity.not_before.into(),
            not_after: validity.not_after.into(),
        })
    }

    /// Returns the TLS of a client that shows this, and trusts servers with a certificate from one of `roots`.
    pub fn for_client(
        &self,
        roots: impl IntoIterator<Item = CertificateDer<'static>>,
        protocols: &[&[u8]],
    ) -> Result<rustls::ClientConfig, TlsError> {
        let mut store = RootCertStore::empty();
        for root in roots {
            store.add(root).map_err(TlsError::Root)?;
        }
        let resolver = Arc::new(rustls::sign::SingleCertAndKey::from(self.certified.clone()));
        let mut config = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(store)
            .with_client_cert_resolver(resolver);
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        config.resumption = rustls::client::Resumption::disabled();
        Ok(config)
    }

    /// Returns when it should be replaced: when half of its life is over.
    pub fn renew_at(&self) -> SystemTime {
        let life = self.not_after.duration_since(self.not_before).unwrap_or_default();
        self.not_before + life / 2
    }

    /// Returns the TLS of a port whose clients show no certificates, and that speaks these protocols.
    pub fn for_anonymous_clients(&self, protocols: &[&[u8]]) -> Result<rustls::ServerConfig, TlsError> {
        let mut config = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(self.certified.clone())));
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        // Each certificate has a configuration of its own: a session of the one before could not be resumed anyway.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}

/// The TLS of a listener. What it presents and whom it trusts can be replaced while it serves: new connections see
/// the new, and the gate checks the certificates of old connections against it.
#[derive(Clone)]
pub struct ServerTls {
    /// For [`serve::Transport::Tls`].
    pub config: Arc<ArcSwap<rustls::ServerConfig>>,
    /// For [`CertificateAuthenticator`](crate::CertificateAuthenticator).
    pub trust: Arc<ArcSwap<Trust>>,
}

impl ServerTls {
    /// Begins with `identity` and `trust`.
    pub fn new(identity: &Identity, trust: Trust) -> Result<Self, TlsError> {
        let config = server_config(identity, &trust)?;
        Ok(Self {
            config: Arc::new(ArcSwap::from_pointee(config)),
            trust: Arc::new(ArcSwap::from_pointee(trust)),
        })
    }

    /// Goes on with `identity` and `trust`.
    pub fn replace(&self, identity: &Identity, trust: Trust) -> Result<(), TlsError> {
        let config = server_config(identity, &trust)?;
        self.trust.store(Arc::new(trust));
        self.config.store(Arc::new(config));
        Ok(())
    }
}

fn server_config(identity: &Identity, trust: &Trust) -> Result<rustls::ServerConfig, TlsError> {
    let resolver = Arc::new(rustls::sign::SingleCertAndKey::from(identity.certified.clone()));
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_client_cert_verifier(trust.verifier.clone())
        .with_cert_resolver(resolver);
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session would skip the verification of the client's certificate, which may be revoked by now.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}
