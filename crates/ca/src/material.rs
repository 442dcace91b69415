//! What an authority signs with, as files or Secrets hold it.
//!
//! | layout | certificate | key | chain | roots | revoked |
//! | --- | --- | --- | --- | --- | --- |
//! | `cacerts`, `istio-ca-secret` | `ca-cert.pem` | `ca-key.pem` | `cert-chain.pem` | `root-cert.pem` | `ca-crl.pem` |
//! | cert-manager, `kubernetes.io/tls` | first of `tls.crt` | `tls.key` | rest of `tls.crt` | `ca.crt` | `ca-crl.pem` |
//! | roots only | | | | `root-cert.pem` | `ca-crl.pem` |
//!
//! A self-signed authority may do without a chain and without roots: it is its own.

use crate::bundle::TrustBundle;
use crate::certificate::{CaCertificate, CertificatesError, Fingerprint};
use crate::chain::{self, Chain, ChainError};
use crate::crl::{CrlError, RevocationLists};
use crate::key::{SigningKeyError, SigningKeyPair};
use crate::pem::MAX_FILE;
use crate::time::{UnixTime, Validity};
use std::collections::BTreeMap;
use std::fmt;

/// The most certificates of a chain.
const MAX_CHAIN: usize = 16;

/// The names of the files of an authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `ca-cert.pem` and the others, as in Istio's Secrets `cacerts` and `istio-ca-secret`.
    CaCerts,
    /// `tls.crt` and the others, as in cert-manager's Secrets.
    Tls,
    /// `root-cert.pem` alone: roots to trust, nothing to sign with.
    RootsOnly,
}

const CA_CERT: &str = "ca-cert.pem";
const CA_KEY: &str = "ca-key.pem";
const CERT_CHAIN: &str = "cert-chain.pem";
const ROOT_CERT: &str = "root-cert.pem";
const CA_CRL: &str = "ca-crl.pem";
const TLS_CERT: &str = "tls.crt";
const TLS_KEY: &str = "tls.key";
const TLS_CA: &str = "ca.crt";

/// A key, its certificate, and the way from there to a trusted root, all verified.
pub struct IssuerMaterial {
    key: SigningKeyPair,
    signer: CaCertificate,
    chain: Chain,
}

impl IssuerMaterial {
    /// Puts together a signing certificate, its key, and the intermediates above it, in any order.
    pub fn new(
        key: SigningKeyPair,
        signer: CaCertificate,
        intermediates: &[CaCertificate],
        roots: &TrustBundle,
        now: UnixTime,
    ) -> Result<Self, MaterialError> {
        if key.spki() != signer.spki() {
            return Err(MaterialError::KeyMismatch);
        }
        let chain = chain::build(&signer, intermediates, roots, now)?;
        Ok(Self { key, signer, chain })
    }

    /// Makes the material of a root that signs by itself.
    pub fn self_signed(
        key: SigningKeyPair,
        root: CaCertificate,
        now: UnixTime,
    ) -> Result<Self, MaterialError> {
        let roots = [root.clone()].into_iter().collect();
        Self::new(key, root, &[], &roots, now)
    }

    /// Returns the certificate that signs.
    pub fn signer(&self) -> &CaCertificate {
        &self.signer
    }

    /// Returns what is presented after a leaf, the signing certificate first; empty if that is a root.
    pub fn presented(&self) -> &[CaCertificate] {
        &self.chain.presented
    }

    /// Returns the root that the chain ends at.
    pub fn root(&self) -> Fingerprint {
        self.chain.root
    }

    /// Returns when all of the chain is valid.
    pub fn validity(&self) -> Validity {
        self.chain.validity
    }

    pub(crate) fn key(&self) -> &SigningKeyPair {
        &self.key
    }
}

impl fmt::Debug for IssuerMaterial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssuerMaterial")
            .field("signer", &self.signer)
            .field("presented", &self.chain.presented)
            .field("root", &self.chain.root)
            .finish_non_exhaustive()
    }
}

/// Why a key, a certificate and a chain do not go together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MaterialError {
    /// The key belongs to another certificate.
    #[error("is not the key of the signing certificate")]
    KeyMismatch,
    /// The chain does not lead to a root.
    #[error(transparent)]
    Chain(#[from] ChainError),
}

/// What the files of an authority hold.
#[derive(Debug)]
pub struct Loaded {
    /// How the files are named.
    pub layout: Layout,
    /// What to sign with; nothing if there are only roots.
    pub material: Option<IssuerMaterial>,
    /// All roots that are trusted.
    pub roots: TrustBundle,
    /// Revocation lists, if there are any. Bad ones do not keep the authority from working, but its operator must
    /// hear of them, and those read before should stay in use.
    pub revocations: Option<Result<RevocationLists, CrlError>>,
    /// What works and yet may not be what the operator wants.
    pub warnings: Vec<Warning>,
}

/// Something that works and yet may not be what the operator wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// The file it is about.
    pub file: &'static str,
    /// What it is.
    pub text: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.file, self.text)
    }
}

/// Why the files of an authority are refused: all of them, so that what was in use stays in use.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {reason}")]
pub struct LoadError {
    /// The file it is about.
    pub file: &'static str,
    /// What is wrong with it.
    pub reason: LoadReason,
}

/// What is wrong with a file of an authority.
#[derive(Debug, thiserror::Error)]
pub enum LoadReason {
    /// It is needed and not there, or empty.
    #[error("missing or empty")]
    Missing,
    /// It is too large for anything it could hold.
    #[error("{0} bytes: at most {MAX_FILE} are allowed")]
    TooLarge(usize),
    /// It does not hold certificates of authorities.
    #[error(transparent)]
    Certificates(#[from] CertificatesError),
    /// It holds several certificates where one belongs.
    #[error(
        "holds {0} certificates, where only the signing one belongs; the others belong into cert-chain.pem"
    )]
    NotOne(usize),
    /// It does not hold a usable key.
    #[error(transparent)]
    Key(#[from] SigningKeyError),
    /// Key, certificate and roots do not go together.
    #[error(transparent)]
    Material(#[from] MaterialError),
    /// It is on a revocation list.
    #[error("\"{0}\" is revoked by ca-crl.pem")]
    Revoked(String),
}

/// Reads the files of an authority: those of a directory, or the data of a Secret. Others are passed over.
///
/// If there are files of several layouts, that of cert-manager comes first, as in Istio.
pub fn load(files: &BTreeMap<String, Vec<u8>>, now: UnixTime) -> Result<Loaded, LoadError> {
    let files = Files { files, now };
    files.check_sizes()?;
    let has = |file| files.optional(file).is_some();
    if has(TLS_CERT) && has(TLS_KEY) && has(TLS_CA) {
        files.cert_manager()
    } else if has(ROOT_CERT) && !has(CA_CERT) && !has(CA_KEY) {
        files.roots_only()
    } else {
        files.ca_certs()
    }
}

/// The files, and when they are read.
struct Files<'a> {
    files: &'a BTreeMap<String, Vec<u8>>,
    now: UnixTime,
}

/// Which file is blamed for what.
#[derive(Clone, Copy)]
struct Names {
    certificate: &'static str,
    key: &'static str,
    chain: &'static str,
    roots: &'static str,
}

impl Files<'_> {
    fn check_sizes(&self) -> Result<(), LoadError> {
        let all = [CA_CERT, CA_KEY, CERT_CHAIN, ROOT_CERT, CA_CRL, TLS_CERT, TLS_KEY, TLS_CA];
        let too_large = all.into_iter().find_map(|file| {
            let size = self.optional(file)?.len();
            (size > MAX_FILE).then_some(LoadError { file, reason: LoadReason::TooLarge(size) })
        });
        too_large.map_or(Ok(()), Err)
    }

    fn cert_manager(&self) -> Result<Loaded, LoadError> {
        let names = Names { certificate: TLS_CERT, key: TLS_KEY, chain: TLS_CERT, roots: TLS_CA };
        let mut chain = self.certificates(TLS_CERT)?;
        if chain.is_empty() {
            return Err(LoadError { file: TLS_CERT, reason: LoadReason::Missing });
        }
        let signer = chain.remove(0);
        self.assemble(Layout::Tls, names, signer, &chain)
    }

    fn ca_certs(&self) -> Result<Loaded, LoadError> {
        let names = Names { certificate: CA_CERT, key: CA_KEY, chain: CERT_CHAIN, roots: ROOT_CERT };
        let mut certificates = self.certificates(CA_CERT)?;
        let signer = match certificates.len() {
            1 => certificates.remove(0),
            0 => return Err(LoadError { file: CA_CERT, reason: LoadReason::Missing }),
            count => return Err(LoadError { file: CA_CERT, reason: LoadReason::NotOne(count) }),
        };
        let chain =
            if self.optional(CERT_CHAIN).is_some() { self.certificates(CERT_CHAIN)? } else { Vec::new() };
        self.assemble(Layout::CaCerts, names, signer, &chain)
    }

    fn roots_only(&self) -> Result<Loaded, LoadError> {
        let roots = self.roots(ROOT_CERT)?;
        let warnings = self.warn_of_roots(ROOT_CERT, &roots);
        let revocations = self.revocations(&[], &roots);
        Ok(Loaded { layout: Layout::RootsOnly, material: None, roots, revocations, warnings })
    }

    fn assemble(
        &self,
        layout: Layout,
        names: Names,
        signer: CaCertificate,
        chain: &[CaCertificate],
    ) -> Result<Loaded, LoadError> {
        let key = self.required(names.key)?;
        let key = SigningKeyPair::from_pem(key)
            .map_err(|error| LoadError { file: names.key, reason: error.into() })?;
        // Istio's own Secret has no roots: a self-signed authority is its own.
        let roots = if self.optional(names.roots).is_none() && signer.is_self_signed() {
            [signer.clone()].into_iter().collect()
        } else {
            self.roots(names.roots)?
        };
        let material = IssuerMaterial::new(key, signer, chain, &roots, self.now).map_err(|error| {
            let file = if error == MaterialError::KeyMismatch { names.key } else { names.certificate };
            LoadError { file, reason: error.into() }
        })?;

        let mut warnings = self.warn_of_roots(names.roots, &roots);
        warnings.extend(unused(chain, &material, &roots).map(|certificate| Warning {
            file: names.chain,
            text: format!("\"{}\" is not on the way to a root and is not presented", certificate.name()),
        }));
        let authorities: Vec<CaCertificate> =
            material.presented().iter().chain([material.signer()]).chain(chain).cloned().collect();
        let revocations = self.revocations(&authorities, &roots);
        if let Some(Ok(lists)) = &revocations {
            let path = material.presented().iter().chain([material.signer()]);
            if let Some(revoked) = path.into_iter().find(|certificate| lists.revokes(certificate)) {
                let reason = LoadReason::Revoked(revoked.name().to_owned());
                return Err(LoadError { file: names.certificate, reason });
            }
            warnings.extend(lists.overdue(self.now).map(|issuer| Warning {
                file: CA_CRL,
                text: format!("the list of \"{issuer}\" should have been replaced by now"),
            }));
        }
        Ok(Loaded { layout, material: Some(material), roots, revocations, warnings })
    }

    /// Returns a file, unless it is empty.
    fn optional(&self, file: &str) -> Option<&[u8]> {
        self.files.get(file).map(Vec::as_slice).filter(|content| !content.trim_ascii().is_empty())
    }

    fn required(&self, file: &'static str) -> Result<&[u8], LoadError> {
        self.optional(file).ok_or(LoadError { file, reason: LoadReason::Missing })
    }

    fn certificates(&self, file: &'static str) -> Result<Vec<CaCertificate>, LoadError> {
        CaCertificate::all_from_pem(self.required(file)?, MAX_CHAIN)
            .map_err(|error| LoadError { file, reason: error.into() })
    }

    fn roots(&self, file: &'static str) -> Result<TrustBundle, LoadError> {
        TrustBundle::from_pem(self.required(file)?).map_err(|error| LoadError { file, reason: error.into() })
    }

    fn revocations(
        &self,
        authorities: &[CaCertificate],
        roots: &TrustBundle,
    ) -> Option<Result<RevocationLists, CrlError>> {
        let pem = self.optional(CA_CRL)?;
        let authorities: Vec<&CaCertificate> =
            authorities.iter().chain(roots.iter().map(AsRef::as_ref)).collect();
        Some(RevocationLists::from_pem(pem, &authorities))
    }

    fn warn_of_roots(&self, file: &'static str, roots: &TrustBundle) -> Vec<Warning> {
        roots
            .invalid_at(self.now)
            .map(|root| {
                let Validity { not_before, not_after } = root.validity();
                let text = format!("\"{}\" is valid from {not_before} to {not_after}, not now", root.name());
                Warning { file, text }
            })
            .collect()
    }
}

/// Returns those certificates of a chain that nobody is presented, except roots.
fn unused<'a>(
    chain: &'a [CaCertificate],
    material: &'a IssuerMaterial,
    roots: &'a TrustBundle,
) -> impl Iterator<Item = &'a CaCertificate> {
    chain.iter().filter(|certificate| {
        let presented = *certificate == material.signer() || material.presented().contains(certificate);
        !presented && !roots.contains(&certificate.fingerprint())
    })
}
