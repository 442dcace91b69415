//! Signed tokens: their form, and the keys that verify them.
//!
//! A key decides how it verifies, not the token: each key has the algorithms that fit it, and a token that names
//! another is rejected. There is no `none`, and no algorithm with a shared secret.

use crate::caller::Rejection;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ParsedPublicKey,
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512,
    RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512, RsaParameters,
    RsaPublicKeyComponents, VerificationAlgorithm,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use std::fmt;

/// The most keys that are read from one set.
const MAX_KEYS: usize = 100;

/// A token, taken apart but not verified.
pub(crate) struct Jws<'a> {
    pub(crate) algorithm: String,
    pub(crate) key_id: Option<String>,
    /// What is signed: header and payload as they are written.
    message: &'a str,
    payload: &'a str,
    signature: Vec<u8>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: Option<String>,
    #[serde(default)]
    crit: Option<serde_json::Value>,
}

impl<'a> Jws<'a> {
    pub(crate) fn parse(token: &'a str) -> Result<Self, Rejection> {
        let (message, signature) = token.rsplit_once('.').ok_or(Rejection::Malformed)?;
        let (header, payload) = message.split_once('.').ok_or(Rejection::Malformed)?;
        if payload.contains('.') {
            return Err(Rejection::Malformed);
        }
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| Rejection::Malformed);
        let header: Header = serde_json::from_slice(&decode(header)?).map_err(|_| Rejection::Malformed)?;
        if header.crit.is_some() {
            // Extensions that must be understood: none is.
            return Err(Rejection::Algorithm);
        }
        let signature = decode(signature)?;
        Ok(Self { algorithm: header.alg, key_id: header.kid, message, payload, signature })
    }

    /// Returns the payload if one of `key`'s algorithms verifies the signature.
    pub(crate) fn verify(&self, key: &Key) -> Result<Vec<u8>, Rejection> {
        let (_, key) =
            key.verifiers.iter().find(|(name, _)| *name == self.algorithm).ok_or(Rejection::Algorithm)?;
        key.verify_sig(self.message.as_bytes(), &self.signature).map_err(|_| Rejection::Signature)?;
        URL_SAFE_NO_PAD.decode(self.payload).map_err(|_| Rejection::Malformed)
    }
}

/// A public key that tokens are verified with.
pub(crate) struct Key {
    id: Option<String>,
    verifiers: Vec<(&'static str, ParsedPublicKey)>,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("id", &self.id).finish_non_exhaustive()
    }
}

/// The keys that a cluster publishes.
#[derive(Debug, Default)]
pub(crate) struct KeySet {
    keys: Vec<Key>,
}

#[derive(Deserialize)]
struct WireSet {
    keys: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct WireKey {
    kty: String,
    #[serde(default)]
    kid: Option<String>,
    #[serde(default, rename = "use")]
    usage: Option<String>,
    #[serde(default)]
    alg: Option<String>,
    #[serde(default)]
    n: Option<String>,
    #[serde(default)]
    e: Option<String>,
    #[serde(default)]
    crv: Option<String>,
    #[serde(default)]
    x: Option<String>,
    #[serde(default)]
    y: Option<String>,
}

const RSA: [(&str, &RsaParameters); 6] = [
    ("RS256", &RSA_PKCS1_2048_8192_SHA256),
    ("RS384", &RSA_PKCS1_2048_8192_SHA384),
    ("RS512", &RSA_PKCS1_2048_8192_SHA512),
    ("PS256", &RSA_PSS_2048_8192_SHA256),
    ("PS384", &RSA_PSS_2048_8192_SHA384),
    ("PS512", &RSA_PSS_2048_8192_SHA512),
];

impl KeySet {
    /// Reads a JSON Web Key Set. Keys of unknown kinds, or for other uses, are passed over: a set may have keys for
    /// others. A set without any key for us is an error, as is one that is none.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, String> {
        let set: WireSet = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        if set.keys.len() > MAX_KEYS {
            return Err(format!("{} keys: at most {MAX_KEYS} are read", set.keys.len()));
        }
        let keys: Vec<Key> = set
            .keys
            .into_iter()
            .filter_map(|key| serde_json::from_value::<WireKey>(key).ok())
            .filter_map(|key| key.parse())
            .collect();
        if keys.is_empty() {
            return Err("no key in it can verify tokens".to_owned());
        }
        Ok(Self { keys })
    }

    /// Returns the key with an id; the only one there is for a token without.
    pub(crate) fn find(&self, id: Option<&str>) -> Option<&Key> {
        match (id, self.keys.as_slice()) {
            (None, [only]) => Some(only),
            (None, _) => None,
            (Some(id), keys) => keys.iter().find(|key| key.id.as_deref() == Some(id)),
        }
    }
}

impl WireKey {
    fn parse(self) -> Option<Key> {
        if self.usage.as_deref().is_some_and(|usage| usage != "sig") {
            return None;
        }
        let mut verifiers = match self.kty.as_str() {
            "RSA" => self.rsa()?,
            "EC" => vec![self.elliptic()?],
            _ => return None,
        };
        if let Some(algorithm) = &self.alg {
            verifiers.retain(|(name, _)| name == algorithm);
        }
        (!verifiers.is_empty()).then_some(Key { id: self.kid, verifiers })
    }

    fn rsa(&self) -> Option<Vec<(&'static str, ParsedPublicKey)>> {
        let (n, e) = (number(self.n.as_deref()?)?, number(self.e.as_deref()?)?);
        let components = RsaPublicKeyComponents { n: &n, e: &e };
        RSA.into_iter()
            .map(|(name, parameters)| Some((name, components.to_parsed_public_key(parameters).ok()?)))
            .collect()
    }

    fn elliptic(&self) -> Option<(&'static str, ParsedPublicKey)> {
        let (name, algorithm, size): (_, &'static dyn VerificationAlgorithm, usize) =
            match self.crv.as_deref()? {
                "P-256" => ("ES256", &ECDSA_P256_SHA256_FIXED, 32),
                "P-384" => ("ES384", &ECDSA_P384_SHA384_FIXED, 48),
                "P-521" => ("ES512", &ECDSA_P521_SHA512_FIXED, 66),
                _ => return None,
            };
        let mut point = vec![4];
        for coordinate in [self.x.as_deref()?, self.y.as_deref()?] {
            let bytes = URL_SAFE_NO_PAD.decode(coordinate).ok()?;
            if bytes.len() != size {
                return None;
            }
            point.extend(bytes);
        }
        Some((name, ParsedPublicKey::new(algorithm, point).ok()?))
    }
}

/// Decodes a number without the zeros that some write in front.
fn number(text: &str) -> Option<Vec<u8>> {
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    let start = bytes.iter().position(|byte| *byte != 0)?;
    Some(bytes[start..].to_vec())
}
