//! Certificate requests (PKCS#10): a key, and the proof that the caller has its private half.

use crate::der::{self, Malformed, Reader, Signed};
use crate::key::{KeyKind, PublicKey, PublicKeyError, RawPublicKey, SignatureError};

/// The largest request that is read. One for RSA of 8192 bits with many extensions has 4 KiB.
const MAX_DER: usize = 32 << 10;
/// The same in base64, with room for line ends and comments.
const MAX_PEM: usize = 64 << 10;
const LABELS: [&str; 2] = ["CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST"];

/// A certificate request whose signature was checked.
///
/// Only the key is kept. Subject, names and extensions that a caller asks for are not even read: who it is follows
/// from how it authenticated, and what its certificate may do from our policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Csr {
    key: PublicKey,
}

impl Csr {
    /// Reads the first block of `pem`, which must be a certificate request.
    pub fn from_pem(pem: impl AsRef<[u8]>) -> Result<Self, CsrError> {
        let pem = pem.as_ref();
        if pem.len() > MAX_PEM {
            return Err(CsrError::TooLarge { size: pem.len(), limit: MAX_PEM });
        }
        let block = pem::parse(pem).map_err(|_| CsrError::NotPem)?;
        if !LABELS.contains(&block.tag()) {
            return Err(CsrError::Label(block.tag().chars().take(40).collect()));
        }
        Self::from_der(block.contents())
    }

    /// Reads a request and checks its signature.
    pub fn from_der(request: &[u8]) -> Result<Self, CsrError> {
        if request.len() > MAX_DER {
            return Err(CsrError::TooLarge { size: request.len(), limit: MAX_DER });
        }
        let signed = Signed::parse(request)?;
        let mut info = Reader::new(signed.message.content);
        let version = info.expect(der::INTEGER)?;
        if version.content != [0] {
            return Err(CsrError::Malformed);
        }
        let _subject = info.expect(der::SEQUENCE)?;
        let raw = RawPublicKey::parse(info.expect(der::SEQUENCE)?.content)?;
        // Some clients leave the attributes out altogether, although they are mandatory.
        if let Ok(attributes) = info.any()
            && attributes.tag != der::context_constructed(0)
        {
            return Err(CsrError::Malformed);
        }
        info.finish()?;
        let key = PublicKey::from_raw(&raw)?;
        raw.verify(&signed)?;
        Ok(Self { key })
    }

    /// Returns the key that is to be certified.
    pub fn public_key(&self) -> &PublicKey {
        &self.key
    }

    /// Returns the kind of the key.
    pub fn key_kind(&self) -> KeyKind {
        self.key.kind()
    }
}

/// Why a certificate request is refused. All of these are the caller's fault: `InvalidArgument` in terms of gRPC.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// Larger than any request needs to be.
    #[error("the certificate request has {size} bytes: at most {limit} are allowed")]
    TooLarge {
        /// How large it is.
        size: usize,
        /// How large it may be.
        limit: usize,
    },
    /// Not PEM.
    #[error("the certificate request is not PEM encoded")]
    NotPem,
    /// PEM of something else.
    #[error("expected a CERTIFICATE REQUEST, got a {0:?}")]
    Label(String),
    /// Not a request.
    #[error("the certificate request is malformed")]
    Malformed,
    /// A key that no certificate is issued for.
    #[error(transparent)]
    Key(#[from] PublicKeyError),
    /// No proof that the caller has the private key.
    #[error("the certificate request does not prove possession of its key: {0}")]
    Signature(#[from] SignatureError),
}

impl From<Malformed> for CsrError {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}
