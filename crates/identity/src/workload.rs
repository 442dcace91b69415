//! Secrets of workloads, as SDS serves them: the roots to trust, and a key with its certificate for clients that have no
//! agent to make one.

use crate::caller::Clock;
use crate::metrics::Metrics;
use crate::signing::SigningPool;
use bytes::Bytes;
use ca::{Authority, IssueError, IssuedChain, PublicKey, Serial, TrustBundle, UnixTime};
use model::SpiffeId;
use prost::Message as _;
use proto::envoy::config::core::v3::DataSource;
use proto::envoy::config::core::v3::data_source::Specifier;
use proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, TlsCertificate, secret,
};
use tokio::sync::watch;
use zeroize::Zeroizing;

/// Makes keys and certificates for clients that have no agent.
#[derive(Clone)]
pub struct WorkloadKeys {
    authority: watch::Receiver<Option<Authority>>,
    pool: SigningPool,
    clock: Clock,
    metrics: Metrics,
}

/// A key with its certificate.
#[derive(Clone, Debug)]
pub struct WorkloadKey {
    /// The certificate.
    pub issued: IssuedChain,
    /// Both as an encoded secret, which is wiped when nobody holds it any more.
    pub secret: Bytes,
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// There is nothing to sign with yet.
    #[error("the certificate authority is not ready")]
    NotReady,
    /// Too much to do.
    #[error("too many requests wait to be signed")]
    Overloaded,
    /// No key could be made.
    #[error("cannot make a key")]
    Key(#[from] rcgen::Error),
    /// It is not one that we certify.
    #[error("the key is not one that we certify")]
    PublicKey(#[from] ca::key::PublicKeyError),
    /// The identity is not one that we certify.
    #[error("the identity cannot be certified")]
    Identity(#[from] model::identity::IdentityError),
    /// It was not signed.
    #[error("cannot issue a certificate")]
    Issue(#[from] IssueError),
    /// No randomness.
    #[error("the system has no randomness")]
    Random,
}

impl WorkloadKeys {
    /// Makes keys that `authority` certifies, in `pool`.
    pub fn new(
        authority: watch::Receiver<Option<Authority>>,
        pool: SigningPool,
        clock: Clock,
        metrics: Metrics,
    ) -> Self {
        Self { authority, pool, clock, metrics }
    }

    /// Makes a key and has it certified for the workload of `id`, as the secret `name`.
    ///
    /// # Errors
    ///
    /// If there is no authority, or no time.
    pub async fn make(&self, name: &'static str, id: &SpiffeId) -> Result<WorkloadKey, KeyError> {
        let authority = self.authority.borrow().clone().ok_or(KeyError::NotReady)?;
        let domain = &authority.policy().trust_domain;
        let id = SpiffeId::new(domain, id.namespace(), id.service_account())?;
        let now = UnixTime::from((self.clock)());
        let made = self.pool.run(move || make(&authority, name, &id, now)).await;
        let made = made.map_err(|_| KeyError::Overloaded)??;
        self.metrics.keys_made.inc();
        Ok(made)
    }
}

fn make(authority: &Authority, name: &str, id: &SpiffeId, now: UnixTime) -> Result<WorkloadKey, KeyError> {
    let key = rcgen::KeyPair::generate()?;
    let public = PublicKey::from_spki(&rcgen::PublicKeyData::subject_public_key_info(&key))?;
    let mut serial = [0; 20];
    aws_lc_rs::rand::fill(&mut serial).map_err(|_| KeyError::Random)?;
    let issued = authority.issue_for_key(&public, id, None, now, Serial::from_random(serial))?;
    let private = Bytes::from_owner(Zeroizing::new(key.serialize_pem().into_bytes()));
    let certificate = TlsCertificate {
        certificate_chain: Some(inline(issued.pem_chain().into())),
        private_key: Some(inline(private)),
        ..TlsCertificate::default()
    };
    Ok(WorkloadKey { issued, secret: encode(name, secret::Type::TlsCertificate(certificate)) })
}

/// Returns roots as the encoded secret `name`.
pub fn roots_secret(name: &str, roots: &TrustBundle) -> Bytes {
    let context = CertificateValidationContext {
        trusted_ca: Some(inline(roots.to_pem().into())),
        ..CertificateValidationContext::default()
    };
    encode(name, secret::Type::ValidationContext(context))
}

fn encode(name: &str, content: secret::Type) -> Bytes {
    let message = Secret { name: name.to_owned(), r#type: Some(content) };
    Bytes::from_owner(Zeroizing::new(message.encode_to_vec()))
}

fn inline(bytes: Bytes) -> DataSource {
    DataSource { specifier: Some(Specifier::InlineBytes(bytes)), ..DataSource::default() }
}
