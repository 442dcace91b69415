//! A rotation as JSON, in a Secret or a file: how it survives the process.

use super::{Course, Direction, Override, Position, Rotation};
use crate::bundle::TrustBundle;
use crate::certificate::{CertificatesError, Fingerprint};
use crate::time::UnixTime;
use std::collections::BTreeMap;

/// The version of the format. A change that an older weftd would misread needs another number.
const VERSION: u32 = 1;
/// The largest text that is read: a few certificates and times.
const MAX_SIZE: usize = 256 << 10;

#[derive(serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Stored {
    version: u32,
    generation: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    stable: Option<StoredStable>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rotating: Option<StoredRotating>,
    /// All certificates in PEM.
    roots: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    added: BTreeMap<Fingerprint, UnixTime>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    stopped: BTreeMap<Fingerprint, UnixTime>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    overrides: Vec<Override>,
}

#[derive(serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct StoredStable {
    root: Fingerprint,
    since: UnixTime,
}

#[derive(serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct StoredRotating {
    from: Fingerprint,
    to: Fingerprint,
    position: Position,
    direction: Direction,
    since: UnixTime,
}

/// Only for telling an unknown version from a broken text.
#[derive(serde::Deserialize)]
struct Version {
    version: u32,
}

impl Rotation {
    /// Returns it as JSON.
    pub fn to_json(&self) -> String {
        let (mut stable, mut rotating) = (None, None);
        match self.course {
            Course::Stable { root, since } => stable = Some(StoredStable { root, since }),
            Course::Rotating { from, to, position, direction, since } => {
                rotating = Some(StoredRotating { from, to, position, direction, since });
            }
        }
        let stored = Stored {
            version: VERSION,
            generation: self.generation,
            stable,
            rotating,
            roots: self.roots.to_pem(),
            added: self.added.clone(),
            stopped: self.stopped.clone(),
            overrides: self.overrides.clone(),
        };
        serde_json::to_string(&stored).expect("maps have text as keys, and nothing else can fail")
    }

    /// Reads what [`Rotation::to_json`] wrote.
    pub fn from_json(text: &str) -> Result<Self, StoredError> {
        if text.len() > MAX_SIZE {
            return Err(StoredError::TooLarge(text.len()));
        }
        let malformed = |error: serde_json::Error| StoredError::Malformed(error.to_string());
        let Version { version } = serde_json::from_str(text).map_err(malformed)?;
        if version != VERSION {
            return Err(StoredError::Version(version));
        }
        let stored: Stored = serde_json::from_str(text).map_err(malformed)?;
        let course = match (stored.stable, stored.rotating) {
            (Some(StoredStable { root, since }), None) => Course::Stable { root, since },
            (None, Some(StoredRotating { from, to, position, direction, since })) => {
                Course::Rotating { from, to, position, direction, since }
            }
            _ => return Err(StoredError::Malformed("either stable or rotating must be there".to_owned())),
        };
        let roots = TrustBundle::from_pem(stored.roots.as_bytes())?;
        let spoken_of: &[Fingerprint] = match &course {
            Course::Stable { root, .. } => &[*root],
            Course::Rotating { from, to, .. } => &[*from, *to],
        };
        if let Some(missing) = spoken_of.iter().find(|root| !roots.contains(root)) {
            return Err(StoredError::RootMissing(*missing));
        }
        Ok(Self {
            generation: stored.generation,
            course,
            roots,
            added: stored.added,
            stopped: stored.stopped,
            overrides: stored.overrides,
        })
    }
}

/// Why a stored rotation is not read. Nothing must be signed or distributed then but what is in use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoredError {
    /// Larger than anything that is written.
    #[error("{0} bytes: at most {MAX_SIZE} are allowed")]
    TooLarge(usize),
    /// Written by a newer weftd.
    #[error("version {0} of the format is not known; this is version {VERSION}")]
    Version(u32),
    /// Not what is written.
    #[error("malformed: {0}")]
    Malformed(String),
    /// The certificates cannot be read.
    #[error("roots: {0}")]
    Roots(#[from] CertificatesError),
    /// A root that is spoken of is not there.
    #[error("the certificate of root {0} is missing")]
    RootMissing(Fingerprint),
}
